# Profile `immutable`: the system is not changed after the build; state is in a few folders.
#
# Adds a read-only store, a read-only /etc (an overlay of the store, without a writable layer), only declared
# users, and SSH host keys below /var/lib. A change of the system needs a new image or a deployment, and can be
# rolled back.
#
# This prevents mistakes and drift, not an attacker with root. Programs without root cannot change the system. Root
# cannot edit the store or /etc by accident, because both are mounted read-only, but root can change all of it: the
# root file system is ext4 and mounted read-write (/nix/var and the store's database are on it, and a deployment
# with the Cachix agent adds store paths), the store can be remounted, and /boot and /var/lib/nixos/passwd are
# ordinary files. Nothing verifies at boot that the disk contains what was built.
#
# /home, /root, /var, /tmp and /run are writable.
#
# The machine's identity (/etc/machine-id) is systemd's transient one. On EC2 systemd derives it from the
# instance's SMBIOS UUID, so it is the same after a reboot without being stored.
#
# Adds `vmsnix-secret`, which writes a secret file to /run/keys in one step.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  options.vmsnix.immutable.sshHostKeyDirectory = lib.mkOption {
    type = lib.types.path;
    default = "/var/lib/ssh";
    example = "/var/lib/secrets/ssh";
    description = ''
      Directory of the SSH host keys, which cannot be below a read-only /etc. Must be on a writable,
      persistent file system.
    '';
  };

  config =
    let
      hostKeys = toString config.vmsnix.immutable.sshHostKeyDirectory;
    in
    {
      # systemd mounts the overlay on /etc in the initial RAM disk.
      boot.initrd.systemd.enable = true;
      system.etc.overlay = {
        enable = true;
        mutable = false;
      };

      # With a read-only /etc, passwd and shadow have to be written elsewhere: userborn uses /var/lib/nixos.
      services.userborn.enable = true;
      users.mutableUsers = false;

      # nixpkgs' default, repeated here because the profile depends on it.
      boot.nixStoreMountOpts = [
        "ro"
        "nodev"
        "nosuid"
      ];

      # Name servers change while a machine runs, but /etc/resolv.conf cannot: resolved writes it to /run.
      networking.useNetworkd = lib.mkDefault true;
      services.resolved.enable = true;

      services.openssh.hostKeys = [
        {
          type = "ed25519";
          path = "${hostKeys}/ssh_host_ed25519_key";
        }
        {
          type = "rsa";
          bits = 4096;
          path = "${hostKeys}/ssh_host_rsa_key";
        }
      ];

      systemd.tmpfiles.settings."10-vmsnix-state" = {
        ${hostKeys}.d = {
          mode = "0755";
          user = "root";
          group = "root";
        };
        "/var/lib/nixos-configuration".d = {
          mode = "0700";
          user = "root";
          group = "root";
        };
        # Secrets that user data, SSM or a person writes. This is a RAM disk: a reboot deletes them.
        "/run/keys".d = {
          mode = "0750";
          user = "root";
          group = "keys";
        };
      };

      environment.systemPackages = [
        (pkgs.writeShellScriptBin "vmsnix-secret" ''
          PATH=${pkgs.coreutils}/bin
          ${builtins.readFile ../secret.sh}
        '')
      ];

      # nixos-rebuild, and amazon-init with a Nix expression as user data, read and write configuration.nix
      # here.
      environment.etc.nixos = {
        source = "/var/lib/nixos-configuration";
        mode = "direct-symlink";
      };
    };
}
