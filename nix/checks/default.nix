# The checks of `nix flake check`, all done by evaluation. Each derivation only writes a line of text with
# /bin/sh, so that it builds without a binary cache.
{
  self,
  nixpkgs,
  vmsnix,
  system,
}:
let
  inherit (nixpkgs) lib;

  # A derivation with a summary, or an error that lists what is wrong.
  check =
    name: wrong: summary:
    if wrong != [ ] then
      throw "\n${name}:\n${lib.concatMapStringsSep "\n" (line: "- ${line}") wrong}\n"
    else
      derivation {
        inherit name system;
        builder = "/bin/sh";
        args = [
          "-c"
          "echo \"$summary\" > $out"
        ];
        inherit summary;
      };

  image =
    name: figures:
    lib.nameValuePair "image-${name}" (
      check "image-${name}"
        (
          map (message: "assertion failed: ${message}") figures.failedAssertions
          ++ map (warning: "warning: ${warning}") figures.warnings
          ++ map (fact: "not true: ${fact}") figures.failedFacts
          ++ lib.optional (
            !figures.nixosGenerateParity
          ) "nixosGenerate makes another derivation than packages.${system}.${name}"
        )
        "${toString figures.facts} facts are true; disk ${toString figures.diskSizeMiB} MiB; ${figures.drvPath}"
    );

  module =
    name: file:
    let
      alone = import ./module-alone.nix { inherit lib system; } name file;
    in
    lib.nameValuePair "module-${name}" (
      check "module-${name}" (alone.failedAssertions ++ alone.warnings) "evaluates alone: ${alone.drvPath}"
    );

  # An image of this flake with other settings.
  changed =
    name: settings:
    lib.nixosSystem {
      modules = vmsnix.imageModules name vmsnix.images.${name} ++ [
        { nixpkgs.hostPlatform = system; }
        settings
      ];
    };

  # Without administrator keys the build must stop with a message, also in a flake that uses only our modules.
  refused = lib.any (
    assertion: !assertion.assertion && lib.hasInfix "vmsnix.admin.keys is empty" assertion.message
  );
  withoutKeys = changed "ecs-node" { vmsnix.admin.keys = lib.mkForce [ ]; };
  onlyModules =
    modules: lib.nixosSystem { modules = modules ++ [ { nixpkgs.hostPlatform = system; } ]; };
  keysInModules = lib.concatMap (user: user.openssh.authorizedKeys.keys) (
    lib.attrValues (onlyModules (lib.attrValues vmsnix.modules)).config.users.users
  );

  # Without Nix there is nothing to clean up, and a timer for it is an error.
  withoutNix = (changed "gc-fwd" { nix.enable = false; }).config;

  # The facts of an attested image must be true also with its two options.
  failedFacts =
    machine: map (fact: fact.fact) (lib.filter (fact: !fact.isTrue) (import ./facts.nix { inherit lib; } machine));

  # The three formats of the original nixosGenerate, on a machine without the profile amazon.
  generated = lib.genAttrs [ "amazon" "qcow" "raw" ] (
    format:
    builtins.unsafeDiscardStringContext
      (vmsnix.nixosGenerate {
        inherit system format;
        modules = [
          vmsnix.modules.base
          vmsnix.modules.docker
          { vmsnix.admin.keys = import ../keys.nix; }
        ];
      }).drvPath
  );
in
lib.mapAttrs' image self.lib.report.${system}
// lib.mapAttrs' module vmsnix.modules
// {
  keys-are-required = check "keys-are-required" (
    lib.optional (
      !refused withoutKeys.config.assertions
    ) "an image without administrator keys is not refused"
    ++ lib.optional (
      !refused (onlyModules [ vmsnix.modules.base ]).config.assertions
    ) "the profile base without administrator keys is not refused"
    ++ map (key: "a module contains the key ${key}") keysInModules
  ) "an image without keys is refused, and no module contains one";

  without-nix = check "without-nix" (
    map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion) withoutNix.assertions)
    ++ withoutNix.warnings
    ++ lib.optional withoutNix.nix.gc.automatic "nix.gc is on without Nix"
    ++ lib.optional withoutNix.nix.optimise.automatic "nix.optimise is on without Nix"
  ) "an image without Nix has no timers for its store";

  attested-interactive = check "attested-interactive" (failedFacts (
    changed "gc-fwd-attested" { vmsnix.attested.interactive = true; }
  )) "an interactive image has sudo, and a word for it in its command line";

  attested-cluster = check "attested-cluster" (failedFacts (
    changed "ecs-node-attested" { vmsnix.ecs.cluster = null; }
  )) "user data sets only the cluster's name";

  formats = check "formats" [ ] (builtins.toJSON generated);

  vm-tests = check "vm-tests" [ ] (
    lib.concatStringsSep "\n" (
      lib.mapAttrsToList (
        name: test: "${name}: ${builtins.unsafeDiscardStringContext test.drvPath}"
      ) self.legacyPackages.${system}.vmTests
    )
  );
}
