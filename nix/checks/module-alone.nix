# One module on an otherwise empty machine: every profile and mixin must be usable from somebody else's flake,
# without srvos and without the others.
{ lib, system }:
name: module:
let
  # No private half of this key exists: its body is the bytes from 0 to 31.
  throwaway = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody";

  machine = lib.nixosSystem {
    modules = [
      module
      {
        nixpkgs.hostPlatform = system;
        system.stateVersion = lib.mkOverride 1400 "26.05";
        # A machine needs a root, a boot loader and somebody who can log in to be evaluated at all; the
        # profiles `amazon` and `base` bring their own.
        fileSystems."/" = lib.mkOverride 1400 {
          device = "/dev/disk/by-label/nixos";
          fsType = "ext4";
        };
        boot.loader.grub.device = lib.mkOverride 1400 "/dev/vda";
        users.allowNoPasswordLogin = true;
      }
    ]
    ++ lib.optional (name == "base") { vmsnix.admin.keys = [ throwaway ]; };
  };
in
{
  failedAssertions = map (assertion: assertion.message) (
    lib.filter (assertion: !assertion.assertion) machine.config.assertions
  );
  inherit (machine.config) warnings;
  drvPath = builtins.unsafeDiscardStringContext machine.config.system.build.toplevel.drvPath;
}
