# The development shell: `nix develop ./nix`, from the root of the checkout.
#
# The Python environment is the repository's own, locked with hashes (`just setup` makes it): nixpkgs' pandas,
# deltalake and papermill are older than the package asks for. The shell brings the interpreter, the shared
# libraries that the wheels are linked against, and what the justfile calls. It refers to nothing outside this
# folder at evaluation, so that `path:./nix` works too; the checkout is looked up when the shell starts.
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
      echo "The Python environment is not there yet. Make it with: just setup" >&2
    fi
    unset root
  '';
}
