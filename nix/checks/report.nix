# The figures of every image on every system, as plain data: what checks assert and what `just nix-eval`
# prints.
{
  self,
  nixpkgs,
  vmsnix,
}:
let
  inherit (nixpkgs) lib;
  facts = import ./facts.nix { inherit lib; };
  # A derivation's path as text: the report must not make anybody build an image.
  text = builtins.unsafeDiscardStringContext;

  figures =
    system: name: machine:
    let
      image = self.packages.${system}.${name};
      generated = vmsnix.nixosGenerate {
        inherit system;
        modules = vmsnix.imageModules name vmsnix.images.${name};
        format = "amazon";
      };
      inherit (machine) config;
    in
    {
      inherit (config) warnings;
      failedAssertions = map (assertion: assertion.message) (
        lib.filter (assertion: !assertion.assertion) config.assertions
      );
      failedFacts = map (fact: fact.fact) (lib.filter (fact: !fact.holds) (facts machine));
      facts = lib.length (facts machine);
      inherit (config.vmsnix.image) description registerImage;
      diskSizeMiB = config.vmsnix.image.diskSize;
      bootMode = config.vmsnix.image.registerImage.BootMode;
      drvPath = text image.drvPath;
      nixosGenerateParity = text generated.drvPath == text image.drvPath;
    };
in
lib.genAttrs vmsnix.systems (system: lib.mapAttrs (figures system) (vmsnix.configurations system))
