# One module on an otherwise empty machine: every profile and mixin must be usable from somebody else's flake,
# without srvos and without the others. The administrator's key is a throwaway: its private half was never
# kept.
{ lib, system }:
module:
let
  machine = lib.nixosSystem {
    modules = [
      module
      (
        { config, options, ... }:
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = lib.mkOverride 1400 "26.05";
          # A machine needs a root and a boot loader to be evaluated at all; the profile `amazon` brings its
          # own.
          fileSystems."/" = lib.mkOverride 1400 {
            device = "/dev/disk/by-label/nixos";
            fsType = "ext4";
          };
          boot.loader.grub.device = lib.mkOverride 1400 "/dev/vda";
          users.allowNoPasswordLogin = true;
        }
        // lib.optionalAttrs (options.vmsnix ? admin) {
          vmsnix.admin.keys = [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody"
          ];
        }
      )
    ];
  };
in
{
  failedAssertions = map (assertion: assertion.message) (
    lib.filter (assertion: !assertion.assertion) machine.config.assertions
  );
  inherit (machine.config) warnings;
  drvPath = builtins.unsafeDiscardStringContext machine.config.system.build.toplevel.drvPath;
}
