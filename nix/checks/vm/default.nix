# Tests that boot a machine. They need KVM and a binary cache, and have never been run: see ../../README.md.
#
#   nix build ./nix#vmTests.ssh        or all of them: nix build ./nix#vmTests.all
{ pkgs, vmsnix }:
let
  inherit (pkgs) lib;

  tests =
    lib.mapAttrs
      (
        _: file:
        pkgs.testers.runNixOSTest {
          imports = [ file ];
          _module.args = { inherit vmsnix; };
        }
      )
      {
        alloy = ./alloy.nix;
        amazon-init = ./amazon-init.nix;
        attested = ./attested.nix;
        immutable = ./immutable.nix;
        ssh = ./ssh.nix;
      };
in
tests // { all = pkgs.linkFarm "vmsnix-vm-tests" tests; }
