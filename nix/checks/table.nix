# The report as a table for people, used by `evaluate.sh`. The last line begins with "Good" or with "WRONG".
report:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    length
    map
    toString
    ;

  rows = concatMap (
    system: map (name: report.${system}.${name} // { inherit system name; }) (attrNames report.${system})
  ) (attrNames report);

  problems =
    row:
    map (message: "assertion failed: ${message}") row.failedAssertions
    ++ map (message: "warning: ${message}") row.warnings
    ++ map (fact: "not true: ${fact}") row.failedFacts
    ++ (if row.nixosGenerateParity then [ ] else [ "nixosGenerate makes another derivation" ]);

  line =
    row:
    concatStringsSep "\n" (
      [
        "${row.name} (${row.system})"
        "  failed assertions ${toString (length row.failedAssertions)}, warnings ${toString (length row.warnings)}, facts ${
          toString (row.facts - length row.failedFacts)
        } of ${toString row.facts}, nixosGenerate parity ${if row.nixosGenerateParity then "yes" else "NO"}"
        "  disk ${toString row.diskSizeMiB} MiB, ${row.bootMode}"
        "  ${row.drvPath}"
      ]
      ++ map (text: "  ! ${text}") (problems row)
    );

  wrong = concatMap problems rows;
in
concatStringsSep "\n" (map line rows)
+ "\n\n"
+ (
  if wrong == [ ] then
    "Good: ${toString (length rows)} images evaluate without errors.\n"
  else
    "WRONG: ${toString (length wrong)} problems, see above.\n"
)
