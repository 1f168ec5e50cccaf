# Profile `amazon`: settings for a machine on EC2.
#
# Adds the SSM agent, amazon-init (runs user data at boot), the instance's EC2 key pair for root, a root
# partition that grows with its volume, and a serial console, as people expect from any AMI. It uses nixpkgs'
# amazon-image module and not srvos' hardware-amazon, which replaces amazon-init by cloud-init.
#
# Different from nixpkgs: GRUB is installed to the disk of the root file system under whatever name the hypervisor
# gives it, and the metadata is fetched also if the network is up late.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  immutableEtc = config.system.etc.overlay.enable && !config.system.etc.overlay.mutable;
  hostKeys = builtins.dirOf (builtins.head config.services.openssh.hostKeys).path;

  rootDiskLink = "vmsnix-root-disk";
  rootDisk = pkgs.writeShellScript "root-disk" ''
    PATH=${pkgs.coreutils}/bin
    ${builtins.readFile ./root-disk.sh}
  '';
in
{
  imports = [
    "${modulesPath}/virtualisation/amazon-image.nix"
    ./image.nix
  ];

  config = lib.mkMerge [
    {
      services.amazon-ssm-agent.enable = true;
      virtualisation.amazon-init.enable = true;
      boot.growPartition = true;

      # mkOverride 90 has priority over a plain setting of nixpkgs and srvos, and leaves mkForce to you.

      # The EFI system partition contains the boot loader and, on a machine with a TPM, a random seed.
      fileSystems."/boot" = lib.mkIf config.ec2.efi {
        device = "/dev/disk/by-label/ESP";
        fsType = "vfat";
        options = [ "umask=0077" ];
      };

      # srvos turns this off because some interface of a server may stay down. One interface is enough here.
      systemd.network.wait-online = {
        enable = lib.mkOverride 90 true;
        anyInterface = true;
      };

      # nixpkgs' script gives up after about three seconds and reports success: then user data, key pair and host
      # name are missing. Its one line for the console is on standard output.
      systemd.services.fetch-ec2-metadata = {
        script = lib.mkOverride 90 (builtins.readFile ./fetch-metadata.sh);
        serviceConfig.StandardError = "journal";
      };

      # Compressed swap in memory where a deployment or a burst of logs would otherwise exhaust it: up to 4 GiB.
      zramSwap.enable = lib.mkDefault true;
      services.zram-generator.settings.zram0.host-memory-limit = lib.mkDefault 4096;

      # apply-ec2-data writes the key pair of the instance to /root/.ssh. srvos forces SSH to read keys only
      # below /etc, which would ignore it; mkOverride 49 has priority over mkForce. The second path is root's
      # own on purpose: other users, also the administrator, cannot read it, and keep exactly the keys that the
      # image declares.
      services.openssh.authorizedKeysFiles = lib.mkOverride 49 [
        "/etc/ssh/authorized_keys.d/%u"
        "/root/.ssh/authorized_keys"
      ];

      # The SSM agent's user ssm-user has a sudo rule and is not in wheel. srvos allows sudo only to wheel.
      security.sudo.execWheelOnly = lib.mkForce false;

      # EC2's serial console and its console output use the first serial port. The last console parameter
      # becomes /dev/console; other modules name the screen, which no instance has.
      systemd.services."serial-getty@ttyS0".enable = true;
      boot.kernelParams = lib.mkAfter [ "console=ttyS0,115200n8" ];
    }

    # nixpkgs writes GRUB to /dev/xvda, which does not exist on Nitro: after an update of nixpkgs, every deployment
    # would fail. So udev maintains a link to the right disk. The script that installs GRUB makes the link too:
    # the first deployment with this rule installs GRUB before udev has read the rule, and the machine that builds
    # an image has no udev.
    (lib.mkIf (!config.ec2.efi) {
      boot.loader.grub.device = lib.mkOverride 90 "/dev/${rootDiskLink}";
      boot.loader.grub.extraPrepareConfig = ''
        disk=$(${rootDisk}) && ${pkgs.coreutils}/bin/ln -sfn "/dev/$disk" /dev/${rootDiskLink}
      '';
      services.udev.extraRules = ''
        ACTION!="remove", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", PROGRAM=="${rootDisk} %k", SYMLINK+="${rootDiskLink}"
      '';
    })

    # nixpkgs' three EC2 services write to /etc. If /etc is read-only, the metadata of this boot is written to
    # /run. So user data, which may contain secrets, is never written to the disk. The services that handle host
    # keys get the directory of the keys bound to /etc/ssh.
    (lib.mkIf immutableEtc {
      environment.etc."ec2-metadata" = {
        source = "/run/ec2-metadata";
        mode = "direct-symlink";
      };

      systemd.services.fetch-ec2-metadata.serviceConfig = {
        RuntimeDirectory = "ec2-metadata";
        RuntimeDirectoryMode = "0755";
        RuntimeDirectoryPreserve = true;
      };

      systemd.services.apply-ec2-data.serviceConfig.BindPaths = [ "${hostKeys}:/etc/ssh" ];
      systemd.services.print-host-key.serviceConfig.BindReadOnlyPaths = [ "${hostKeys}:/etc/ssh" ];
    })
  ];
}
