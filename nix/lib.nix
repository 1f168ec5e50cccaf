# What the flake is made of: the systems, the modules, the images, and `nixosGenerate`.
{ inputs }:
let
  inherit (inputs) nixpkgs srvos;
  inherit (nixpkgs) lib;

  profiles = {
    base = ./modules/profiles/base.nix;
    immutable = ./modules/profiles/immutable.nix;
    amazon = ./modules/profiles/amazon.nix;
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

  # The names that nixos-generators used, where nixpkgs' `system.build.images` calls the same format
  # otherwise. A name that is not here is passed on as it is.
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

  # What every image of this flake is made of before its own file is read: srvos' server defaults (a firewall,
  # networkd, UTC, no mutable users, no documentation), our four profiles, and ALT-F4's keys. The keys are
  # given here and not in `profiles.base`, so that a flake that only imports our modules never trusts them by
  # accident.
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

  # One system's configurations, image by image.
  configurations =
    system:
    lib.mapAttrs (
      name: file:
      lib.nixosSystem {
        modules = imageModules name file ++ [ { nixpkgs.hostPlatform = lib.mkDefault system; } ];
      }
    ) images;

  # A configuration's image for EC2. It carries what a list of images shows (vmsnix_ops/nix/flake.py reads
  # it), so that listing them asks for two options of each machine and not for its derivation.
  imagePackage =
    machine:
    let
      inherit (machine.config.vmsnix.image) description diskSize;
    in
    machine.config.system.build.images.amazon
    // {
      vmsnix = { inherit description diskSize; };
    };

  # nixos-generators' entry point, with its signature, backed by nixpkgs' own image builders.
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

  # Every format name that `nixosGenerate` takes.
  formats = lib.naturalSort (
    lib.attrNames formatAliases
    ++ lib.attrNames (
      (lib.nixosSystem { modules = [ { nixpkgs.hostPlatform = "x86_64-linux"; } ]; })
      .config.image.modules
    )
  );
}
