# Profile `immutable`: a main disk that nothing changes after the build, and the places where state lives.
#
# Gives a read-only store, a read-only /etc (an overlay of the store, without a writable layer), users that
# exist only by declaration, and SSH host keys below /var/lib. Why: what runs is what was built; a change is a
# new image or a deployment, and can be rolled back.
#
# Writable stay /home, /root, /var, /tmp and /run. The root file system itself is mounted read-write, because
# /nix/var and the store's own database live on it: a deployment through the Cachix agent adds store paths.
# What is guaranteed is that no file of the running system (the store, /etc, the users) can be edited in
# place.
#
# The machine's identity (/etc/machine-id) is systemd's transient one, which it derives from the instance's
# SMBIOS UUID on EC2, so that it is the same after a reboot without being written anywhere.
{ config, lib, ... }:
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
      # The overlay on /etc is mounted by systemd in the initial RAM disk.
      boot.initrd.systemd.enable = true;
      system.etc.overlay = {
        enable = true;
        mutable = false;
      };

      # A read-only /etc needs a writer of passwd and shadow that keeps them elsewhere (/var/lib/nixos).
      services.userborn.enable = true;
      users.mutableUsers = false;

      # nixpkgs' default, said here because the whole profile rests on it.
      boot.nixStoreMountOpts = [
        "ro"
        "nodev"
        "nosuid"
      ];

      # Name servers change while a machine runs, and /etc/resolv.conf cannot: resolved keeps it in /run.
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
        # Secrets that user data, SSM or a person hands to the machine; on a RAM disk, so that they are gone
        # after a reboot.
        "/run/keys".d = {
          mode = "0750";
          user = "root";
          group = "keys";
        };
      };

      # nixos-rebuild, and amazon-init with a Nix expression as user data, look for and write
      # configuration.nix here.
      environment.etc.nixos = {
        source = "/var/lib/nixos-configuration";
        mode = "direct-symlink";
      };
    };
}
