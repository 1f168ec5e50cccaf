# The images of vmsnix_ops. The flake uses plain attribute sets and functions and no framework, so that you can
# read from top to bottom how an image's name becomes a derivation. README.md beside this file lists the files.
{
  description = "NixOS machine images for AWS: profiles, mixins, images and their checks";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable-small";

    srvos.url = "github:nix-community/srvos";
    srvos.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { self, nixpkgs, ... }@inputs:
    let
      vmsnix = import ./lib.nix { inherit inputs; };
      forEachSystem = nixpkgs.lib.genAttrs vmsnix.systems;
    in
    {
      lib = {
        # Build any list of modules in any format, as nixos-generators did.
        inherit (vmsnix) nixosGenerate formats;
        # The figures of every image on every system. `just nix-eval` prints them.
        report = import ./checks/report.nix { inherit self nixpkgs vmsnix; };
      };

      # Each profile and each mixin, for use in other flakes.
      nixosModules = vmsnix.modules;

      # The configurations of the machines, for deployments: `ecs-node` for x86_64, `ecs-node-aarch64` for Graviton.
      nixosConfigurations =
        vmsnix.configurations "x86_64-linux"
        // nixpkgs.lib.mapAttrs' (name: nixpkgs.lib.nameValuePair "${name}-aarch64") (
          vmsnix.configurations "aarch64-linux"
        );

      packages = forEachSystem (
        system:
        let
          machines = vmsnix.configurations system;
          facts = name: machine: nixpkgs.lib.nameValuePair "${name}-facts" (vmsnix.factsPackage machine);
        in
        builtins.mapAttrs (_: vmsnix.imagePackage) machines // nixpkgs.lib.mapAttrs' facts machines
      );

      checks = forEachSystem (
        system:
        import ./checks {
          inherit
            self
            nixpkgs
            vmsnix
            system
            ;
        }
      );

      # Virtual machine tests need KVM and a binary cache: `nix build ./nix#vmTests.ssh` runs one. They are not in
      # `checks`, so that `nix flake check` passes on a machine without KVM. The check `vm-tests` evaluates them
      # all.
      legacyPackages = forEachSystem (
        system:
        {
          vmTests = import ./checks/vm {
            inherit vmsnix;
            pkgs = nixpkgs.legacyPackages.${system};
          };
        }
      );

      devShells = forEachSystem (system: {
        default = import ./shell.nix { pkgs = nixpkgs.legacyPackages.${system}; };
      });

      # `nix fmt ./nix` formats all files with nixfmt.
      formatter = forEachSystem (system: nixpkgs.legacyPackages.${system}.nixfmt-tree);
    };
}
