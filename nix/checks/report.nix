# The figures of every image on every system, as plain data, for the checks and for `just nix-eval`.
{
  self,
  nixpkgs,
  vmsnix,
}:
let
  inherit (nixpkgs) lib;
  facts = import ./facts.nix { inherit lib; };
  # A derivation's path as text without context, so that the report builds no image.
  text = builtins.unsafeDiscardStringContext;

  figures =
    system: name: machine:
    let
      image = self.packages.${system}.${name};
      generated = vmsnix.nixosGenerate {
        inherit system;
        modules = vmsnix.imageModules name vmsnix.images.${name};
        inherit (machine.config.vmsnix.image) format;
      };
      inherit (machine) config;
    in
    {
      inherit (config) warnings;
      failedAssertions = map (assertion: assertion.message) (
        lib.filter (assertion: !assertion.assertion) config.assertions
      );
      failedFacts = map (fact: fact.fact) (lib.filter (fact: !fact.isTrue) (facts machine));
      facts = lib.length (facts machine);
      inherit (config.vmsnix.image) description registerImage;
      diskSizeMiB = config.vmsnix.image.diskSize;
      bootMode = config.vmsnix.image.registerImage.BootMode;
      drvPath = text image.drvPath;
      nixosGenerateParity = text generated.drvPath == text image.drvPath;
    };
in
lib.genAttrs vmsnix.systems (system: lib.mapAttrs (figures system) (vmsnix.configurations system))
