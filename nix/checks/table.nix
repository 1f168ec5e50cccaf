# The figures of one image as lines for people, and last the number of problems. Used by `evaluate.sh`.
#
# Type: string -> figures -> string
image: figures:
let
  inherit (builtins)
    concatStringsSep
    length
    map
    toString
    ;

  problems =
    map (message: "assertion failed: ${message}") figures.failedAssertions
    ++ map (warning: "warning: ${warning}") figures.warnings
    ++ map (fact: "not true: ${fact}") figures.failedFacts
    ++ (if figures.nixosGenerateParity then [ ] else [ "nixosGenerate makes another derivation" ]);
in
concatStringsSep "\n" (
  [
    image
    "  failed assertions ${toString (length figures.failedAssertions)}, warnings ${toString (length figures.warnings)}, facts ${
      toString (figures.facts - length figures.failedFacts)
    } of ${toString figures.facts}, nixosGenerate parity ${if figures.nixosGenerateParity then "yes" else "NO"}"
    "  disk ${toString figures.diskSizeMiB} MiB, ${figures.bootMode}"
    "  ${figures.drvPath}"
  ]
  ++ map (text: "  ! ${text}") problems
  ++ [ (toString (length problems)) ]
)
