# Profile `amazon`: settings for a machine on EC2.
#
# Adds the SSM agent, amazon-init (runs user data at boot), the instance's EC2 key pair for root, a root
# partition that grows with its volume, and a serial console, as people expect from any AMI. It uses nixpkgs'
# amazon-image module and not srvos' hardware-amazon, which replaces amazon-init by cloud-init.
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
