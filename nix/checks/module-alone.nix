# One module on an otherwise empty machine: every profile and mixin must be usable in another flake, without
# srvos and without the other modules.
{ lib, system }:
name: module:
let
  # There is no private key for this public key: its body is the bytes from 0 to 31.
  throwaway = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody";

  machine = lib.nixosSystem {
    modules = [
      module
      {
        nixpkgs.hostPlatform = system;
        system.stateVersion = lib.mkOverride 1400 "26.05";
        # Evaluation requires a root file system, a boot loader and a user who can log in. The profiles `amazon`
        # and `base` set their own.
        fileSystems."/" = lib.mkOverride 1400 {
          device = "/dev/disk/by-label/nixos";
          fsType = "ext4";
        };
        boot.loader.grub.device = lib.mkOverride 1400 "/dev/vda";
        users.allowNoPasswordLogin = true;
      }
    ]
    ++ lib.optional (name == "base" || name == "attested") { vmsnix.admin.keys = [ throwaway ]; };
  };
in
{
  failedAssertions = map (assertion: assertion.message) (
    lib.filter (assertion: !assertion.assertion) machine.config.assertions
  );
  inherit (machine.config) warnings;
  drvPath = builtins.unsafeDiscardStringContext machine.config.system.build.toplevel.drvPath;
}
