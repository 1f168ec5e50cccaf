# The development shell: `nix develop ./nix`, from the root of the checkout.
#
# The shell contains the Python interpreter, the shared libraries that the wheels are linked against, and the
# programs of the justfile. The Python packages come from the repository's own environment, locked with hashes
# (`just setup` makes it): nixpkgs' pandas, deltalake and papermill are older than the package requires. During
# evaluation the shell uses nothing outside this folder, so that `path:./nix` works too; it finds the checkout
# when it starts.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.awscli2
    pkgs.git
    pkgs.jq
    pkgs.just
    pkgs.nixfmt-tree
    pkgs.python3
    pkgs.qemu-utils
    pkgs.uv
  ];

  env.LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [
    pkgs.stdenv.cc.cc.lib
    pkgs.zlib
  ];

  shellHook = ''
    root=$(git rev-parse --show-toplevel 2>/dev/null || pwd)
    if [ -x "$root/.venv/bin/python" ]; then
      export PATH="$root/.venv/bin:$PATH"
    else
      echo "The Python environment does not exist yet. Make it with: just setup" >&2
    fi
    unset root
  '';
}
