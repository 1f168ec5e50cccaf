#!/bin/sh
# Evaluate every image on both systems with a nixpkgs tree on this machine, without a network. Nothing is built.
#
#   NIXPKGS_TREE=/path/to/nixpkgs sh nix/checks/evaluate.sh [--json]
#
# NIXPKGS_TREE  a checkout of nixpkgs, or a store path of one (a checkout is added to the store first: about 20 s)
# SRVOS_TREE    a checkout of srvos; default: the locked one, from the store or the network
# NIX           the nix to use; nixpkgs requires 2.18 or newer
#
# Prints a table, or with --json the figures. Exit status 1: an assertion or a fact is false, there is a warning, or nixosGenerate
# differs from the package.
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

flake="path:$(cd "$(dirname "$0")/.." && pwd -P)"
checks=$(cd "$(dirname "$0")" && pwd -P)

tree=$(in_store "$NIXPKGS_TREE")
set -- "${1:-}" --no-write-lock-file --override-input nixpkgs "path:$tree"
if [ -n "${SRVOS_TREE:-}" ]; then
  tree=$(in_store "$SRVOS_TREE")
  set -- "$@" --override-input srvos "path:$tree"
fi

form=$1
shift
if [ "$form" = --json ]; then
  exec "${NIX:-nix}" --extra-experimental-features "nix-command flakes" eval --read-only --json "$flake#lib.report" "$@"
fi

table=$(nix eval --read-only --raw "$flake#lib.report" --apply "$(cat "$checks/table.nix")" "$@")
echo "$table"
case $table in
  *WRONG:*) exit 1 ;;
esac
