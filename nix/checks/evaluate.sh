#!/bin/sh
# Evaluate every image on both systems with a nixpkgs tree on this machine, without a network. Nothing is built.
#
#   NIXPKGS_TREE=/path/to/nixpkgs sh nix/checks/evaluate.sh [--json | --facts SYSTEM.IMAGE]
#
# NIXPKGS_TREE  a checkout of nixpkgs, or a store path of one (a checkout is added to the store first: about 20 s)
# SRVOS_TREE    a checkout of srvos; default: the locked one, from the store or the network
# NIX           the nix to use; nixpkgs requires 2.18 or newer
#
# Prints a table; with --json the figures; with --facts the package facts of an image. Exits with status 1 if an
# assertion or a fact is false, if there is a warning, or if nixosGenerate differs from the package. A separate process
# evaluates each image, because Nix frees no memory before it ends. It needs up to 3 GB (1 GB with --facts).
set -eu

if [ -z "${NIXPKGS_TREE:-}" ]; then
  echo "NIXPKGS_TREE is not set. Set it to a checkout of nixpkgs: NIXPKGS_TREE=/path/to/nixpkgs just nix-eval" >&2
  exit 2
fi

nix() {
  command "${NIX:-nix}" --extra-experimental-features "nix-command flakes" "$@"
}

# A path in the store is hashed only once; any other path is hashed at every call.
in_store() {
  case $1 in
    /nix/store/*) echo "$1" ;;
    *) nix store add-path --name source "$(cd "$1" && pwd -P)" ;;
  esac
}

checks=$(cd "$(dirname "$0")" && pwd -P)
flake="path:$(in_store "$checks/..")"
form=${1:-}
wanted=${2:-}

tree=$(in_store "$NIXPKGS_TREE")
set -- --quiet --no-write-lock-file --override-input nixpkgs "path:$tree"
if [ -n "${SRVOS_TREE:-}" ]; then
  tree=$(in_store "$SRVOS_TREE")
  set -- "$@" --override-input srvos "path:$tree"
fi

if [ "$form" = --facts ]; then
  exec "${NIX:-nix}" --extra-experimental-features "nix-command flakes" \
    eval --read-only --json "$flake#packages.$wanted-facts.facts" "$@"
fi

images=$(nix eval --read-only --raw "$flake#lib.report" "$@" --apply '
  report: builtins.concatStringsSep "\n" (builtins.concatMap (
    system: map (name: "${system}.${name}") (builtins.attrNames report.${system})
  ) (builtins.attrNames report))')

if [ "$form" = --json ]; then
  figures=
  for image in $images; do
    figures="$figures$(nix eval --read-only --json "$flake#lib.report.$image" "$@" --apply "
      figures: { system = \"${image%%.*}\"; name = \"${image#*.}\"; inherit figures; }")
"
  done
  printf %s "$figures" | jq --slurp 'group_by(.system) | map({(.[0].system): (map({(.name): .figures}) | add)}) | add'
  exit
fi

wrong=0
for image in $images; do
  # The last line is the number of problems.
  text=$(nix eval --read-only --raw "$flake#lib.report.$image" "$@" --apply "($(cat "$checks/table.nix")) \"$image\"")
  wrong=$((wrong + ${text##*
}))
  echo "${text%
*}"
done
if [ "$wrong" -gt 0 ]; then
  echo
  echo "WRONG: $wrong problems, see above."
  exit 1
fi
echo
echo "Good: $(echo "$images" | wc -l) images evaluate without errors."
