# A small machine for nix/package-facts.nix, which Nix can evaluate and build without nixpkgs and network.
{ packageFacts }:
let
  # The functions of nixpkgs' lib that package-facts.nix uses.
  lib = builtins // rec {
    isDerivation = value: value.type or null == "derivation";
    isOption = value: value._type or null == "option";
    nameValuePair = name: value: { inherit name value; };
    genAttrs = names: make: builtins.listToAttrs (map (name: nameValuePair name (make name)) names);
    optional = condition: value: if condition then [ value ] else [ ];
    toList = value: if builtins.isList value then value else [ value ];
    unique = builtins.foldl' (list: one: if builtins.elem one list then list else list ++ [ one ]) [ ];
    escapeRegex = builtins.replaceStrings [ "." ] [ "\\." ];
    hasSuffix = suffix: text: builtins.match ".*${builtins.replaceStrings [ "." ] [ "\\." ] suffix}" text != null;
    removeSuffix =
      suffix: text:
      if hasSuffix suffix text then
        builtins.substring 0 (builtins.stringLength text - builtins.stringLength suffix) text
      else
        text;
    toLower = builtins.replaceStrings [ "G" ] [ "g" ];
    getName = package: (builtins.parseDrvName package.name).name;
    getVersion = package: (builtins.parseDrvName package.name).version;
  };

  make =
    name: content: attributes:
    let
      drvAttrs = {
        inherit name content;
        system = builtins.currentSystem;
        builder = "/bin/sh";
        args = [
          "-c"
          "echo \"$content\" > $out"
        ];
      }
      // attributes;
    in
    derivation drvAttrs // { inherit drvAttrs; };

  library = make "libhello-1.1" "library" { } // {
    pname = "libhello";
    version = "1.1";
    meta.license.spdxId = "MIT";
  };
  hello =
    make "hello-2.12" "hello with ${library}" {
      buildInputs = [ library ];
      patches = [ (builtins.toFile "fix-greeting.patch" "a patch") ];
    }
    // {
      pname = "hello";
      version = "2.12";
      meta = {
        license = [
          { spdxId = "GPL-3.0-or-later"; }
          { fullName = "A licence without an identifier"; }
        ];
        identifiers = {
          cpe = "cpe:2.3:a:gnu:hello:2.12:*:*:*:*:*:*:*";
          purl = "pkg:generic/hello@2.12";
        };
        knownVulnerabilities = [ "CVE-2026-0001" ];
      };
    };
  # Only texts refer to these two: nixpkgs has the first one under its name, and another one of the second.
  greet = make "Greet-3.0" "greet" { } // {
    pname = "Greet";
    meta.license = throw "this licence cannot be evaluated";
  };
  lost = make "lost-4.0" "lost" { };

  web = make "web-5.0" "web" { } // { pname = "web"; };
  unit = make "unit-web.service" "ExecStart=${greet} ${lost} ${web}" { };
  toplevel = make "nixos-system-small-26.11" "system ${unit} ${hello}" { };

  nothing = { };
  machine = {
    pkgs = {
      inherit greet;
      lost = make "lost-4.0" "another one" { };
      stdenv.cc = {
        cc = [ ];
        libc = [ ];
      };
      perlPackages.XMLLibXML = [ ];
    };
    options.services = {
      web.enable = {
        _type = "option";
        isDefined = true;
      };
      renamed.enable = {
        _type = "option";
        isDefined = false;
      };
    };
    config = {
      services = {
        web = {
          enable = true;
          package = web;
        };
        renamed = abort "the old name of an option is read";
        dbus.packages = [ ];
        udev.packages = [ ];
      };
      system = {
        build = { inherit toplevel; };
        path = [ ];
        activationScripts = nothing;
        preSwitchChecks = nothing;
        modulesTree = [ ];
      };
      environment = {
        systemPackages = [ hello ];
        etc = nothing;
      };
      systemd = {
        package = [ ];
        packages = [ ];
        units.web = {
          text = "unit ${unit}";
          unit = [ ];
        };
        services.web.script = "${greet}";
        tmpfiles.packages = [ ];
        network.units = nothing;
      };
      boot = {
        extraModulePackages = [ ];
        initrd.systemd = {
          units = nothing;
          services = nothing;
          storePaths = [ ];
          contents = nothing;
          extraBin = nothing;
        };
      };
      hardware.firmware = [ ];
      security.wrappers = nothing;
      nix.package = nothing;
    };
  };
in
{
  inherit toplevel;
  facts = import packageFacts { inherit lib; } machine;
}
