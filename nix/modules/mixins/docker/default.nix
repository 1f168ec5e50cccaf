# Mixin `docker`: the Docker daemon, metrics of its containers, and a weekly clean-up.
#
# Docker writes its logs to the journal, where Alloy reads them, with the container's name as a label. If Alloy
# runs on the machine, cAdvisor adds metrics of every container. Different from the original images: Alloy's
# user is a member of Docker's group, without which Alloy cannot read Docker's socket. A member of this group can
# become root, but Alloy's configuration is part of the image.
#
# Containers in Docker's own networks cannot reach the instance metadata service, and so neither the credentials of
# the instance's role nor its user data. A container in the host's network can. An AMI cannot set the hop limit of the
# metadata service: start instances with limit 1, which blocks containers also without these rules.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  block = pkgs.writeShellScript "block-metadata" ''
    PATH=${lib.makeBinPath [ pkgs.iptables ]}
    ${builtins.readFile ./block-metadata.sh}
  '';
in
{
  options.vmsnix.docker.instanceMetadata = lib.mkOption {
    type = lib.types.bool;
    default = false;
    example = true;
    description = ''
      Let containers, and the jobs of a GitHub runner, reach the instance metadata service: the credentials of
      the instance's role, and user data.
    '';
  };

  config = {
    virtualisation.docker = {
      enable = true;
      # journald has a size limit; the files of Docker's json logger have none.
      logDriver = "journald";
      # Delete images that were not used for a week; otherwise old versions fill a small disk.
      autoPrune = {
        enable = lib.mkDefault true;
        dates = lib.mkDefault "weekly";
        flags = lib.mkDefault [
          "--all"
          "--filter=until=168h"
        ];
      };
    };

    virtualisation.oci-containers.backend = "docker";

    environment.etc = lib.mkIf config.services.alloy.enable {
      "alloy/docker.alloy".source = ./docker.alloy;
    };

    systemd.services.alloy = lib.mkIf config.services.alloy.enable {
      after = [ "docker.socket" ];
      serviceConfig.SupplementaryGroups = [ "docker" ];
    };

    # Before Docker, so that no container is ever without the rule.
    systemd.services.block-instance-metadata = lib.mkIf (!config.vmsnix.docker.instanceMetadata) {
      description = "Block the instance metadata service for containers";
      requiredBy = [ "docker.service" ];
      before = [ "docker.service" ];
      after = [ "firewall.service" ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${block} start";
        ExecStop = "${block} stop";
      };
    };
  };
}
