# The parts of the flake: systems, modules, images, and `nixosGenerate`.
{ inputs }:
let
  inherit (inputs) nixpkgs srvos;
  inherit (nixpkgs) lib;

  profiles = {
    base = ./modules/profiles/base.nix;
    immutable = ./modules/profiles/immutable.nix;
    amazon = ./modules/profiles/amazon.nix;
    attested = ./modules/profiles/attested.nix;
    cachix = ./modules/profiles/cachix.nix;
    image = ./modules/profiles/image.nix;
  };

  mixins = {
    docker = ./modules/mixins/docker;
    ecs-agent = ./modules/mixins/ecs-agent;
    alloy = ./modules/mixins/alloy;
    alloy-forwarder = ./modules/mixins/alloy-forwarder;
    github-actions = ./modules/mixins/github-actions;
  };

  # Format names of nixos-generators that have another name in nixpkgs' `system.build.images`. A name that is
  # not listed is used unchanged.
  formatAliases = {
    do = "digital-ocean";
    gce = "google-compute";
    install-iso = "iso-installer";
    kexec-bundle = "kexec";
    qcow = "qemu";
    qcow-efi = "qemu-efi";
    sd-aarch64 = "sd-card";
  };
in
rec {
  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];

  modules = profiles // mixins;

  images = import ./images;

  # The modules of every image of this flake: srvos' server defaults (a firewall, networkd, UTC, no mutable
  # users, no documentation), our four profiles, the image's own file, and ALT-F4's keys. An attested image
  # disables the profile `cachix`. The keys are set here and not in `profiles.base`, so that a flake that imports
  # only our modules never trusts them by accident.
  imageModules =
    name: file:
    [
      srvos.nixosModules.server
      profiles.base
      profiles.immutable
      profiles.amazon
      profiles.cachix
      file
    ]
    ++ [
      {
        vmsnix.image.name = lib.mkDefault name;
        vmsnix.admin.keys = import ./keys.nix;
      }
    ];

  # The configuration of every image for one system.
  configurations =
    system:
    lib.mapAttrs (
      name: file:
      lib.nixosSystem {
        modules = imageModules name file ++ [ { nixpkgs.hostPlatform = lib.mkDefault system; } ];
      }
    ) images;

  # The image of a configuration, with description and disk size. vmsnix_ops/nix/flake.py reads these two to
  # list the images, so that a list evaluates two options of each machine and not its derivation.
  imagePackage =
    machine:
    let
      inherit (machine.config.vmsnix.image) description diskSize format;
    in
    machine.config.system.build.images.${format}
    // {
      vmsnix = { inherit description diskSize; };
    };

  # What evaluation knows about the packages of a machine: see package-facts.nix. It is a package of its own, so
  # that it does not change the image's derivation.
  factsPackage =
    machine:
    let
      facts = import ./package-facts.nix { inherit lib; } machine;
    in
    machine.pkgs.writeText "${machine.config.vmsnix.image.name}-facts.json" (builtins.toJSON facts)
    // {
      inherit facts;
    };

  # Build an image. The arguments are those of nixos-generators' function; nixpkgs' own image builders build it.
  #
  # Type: { system, modules, format, specialArgs ? { } } -> derivation
  nixosGenerate =
    {
      system,
      modules ? [ ],
      format,
      specialArgs ? { },
    }:
    let
      machine = lib.nixosSystem {
        inherit specialArgs;
        modules = modules ++ [ { nixpkgs.hostPlatform = lib.mkDefault system; } ];
      };
      builders = machine.config.system.build.images;
      known = formatAliases.${format} or format;
    in
    builders.${known}
      or (throw "nixosGenerate: no image format '${format}'; there are ${lib.concatStringsSep ", " formats}");

  # Every format name that `nixosGenerate` accepts.
  formats = lib.naturalSort (
    lib.attrNames formatAliases
    ++ lib.attrNames (
      (lib.nixosSystem { modules = [ { nixpkgs.hostPlatform = "x86_64-linux"; } ]; })
      .config.image.modules
    )
  );
}
