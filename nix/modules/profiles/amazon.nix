# Profile `amazon`: what a machine on EC2 has.
#
# Gives the SSM agent, amazon-init (user data is run at boot), the instance's EC2 key pair for root, a root
# partition that grows with its volume, and a serial console. Why: these are what people expect of any AMI. It
# builds on nixpkgs' amazon-image module and not on srvos' hardware-amazon, which replaces amazon-init by
# cloud-init.
{
  config,
  lib,
  modulesPath,
  ...
}:
let
  immutableEtc = config.system.etc.overlay.enable && !config.system.etc.overlay.mutable;
  hostKeys = builtins.dirOf (builtins.head config.services.openssh.hostKeys).path;
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

      # The key pair of the instance is written to /root/.ssh by apply-ec2-data. srvos forces SSH to look at
      # keys below /etc only, which would ignore it; one step below mkForce wins over that. The path is root's
      # own on purpose: other users, the administrator among them, cannot read it and keep exactly the keys
      # that the image declares.
      services.openssh.authorizedKeysFiles = lib.mkOverride 49 [
        "/etc/ssh/authorized_keys.d/%u"
        "/root/.ssh/authorized_keys"
      ];

      # The SSM agent's user ssm-user has a sudo rule without being in wheel. srvos sets and asserts the
      # contrary.
      security.sudo.execWheelOnly = lib.mkForce false;

      # EC2's serial console and its console output are the first serial port. The last console named is
      # /dev/console, and other modules name the screen, which no instance has.
      systemd.services."serial-getty@ttyS0".enable = true;
      boot.kernelParams = lib.mkAfter [ "console=ttyS0,115200n8" ];
    }

    # nixpkgs' three EC2 services write to /etc. On a read-only /etc the metadata of this boot goes to /run,
    # which also means that user data (it may hold secrets) never reaches the disk, and the services that
    # handle host keys see their directory under its usual name.
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
