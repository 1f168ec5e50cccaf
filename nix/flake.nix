# The images of vmsnix_ops. Everything here is plain attribute sets and functions: no framework, so that the
# way from an image's name to its derivation can be read top to bottom. README.md beside this file says what
# is where.
{
  description = "NixOS machine images for AWS: profiles, mixins, three images and their checks";

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
        # The figures of every image on every system: what `just nix-eval` prints.
        report = import ./checks/report.nix { inherit self nixpkgs vmsnix; };
      };

      # Each profile and each mixin, for other people's flakes.
      nixosModules = vmsnix.modules;

      # What the machines run, for deployments: `ecs-node` on x86_64, `ecs-node-aarch64` on Graviton.
      nixosConfigurations =
        vmsnix.configurations "x86_64-linux"
        // nixpkgs.lib.mapAttrs' (name: nixpkgs.lib.nameValuePair "${name}-aarch64") (
          vmsnix.configurations "aarch64-linux"
        );

      packages = forEachSystem (
        system:
        builtins.mapAttrs (_: vmsnix.imagePackage) (vmsnix.configurations system)
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

      # Virtual machine tests need KVM and a binary cache: `nix build ./nix#vmTests.ssh` runs one. They are no
      # part of `checks`, so that `nix flake check` passes on a machine without KVM; the check `vm-tests`
      # evaluates them all.
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

      # nixfmt over a whole tree: `nix fmt ./nix`.
      formatter = forEachSystem (system: nixpkgs.legacyPackages.${system}.nixfmt-tree);
    };
}
