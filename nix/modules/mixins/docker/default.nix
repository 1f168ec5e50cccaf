# Mixin `docker`: the Docker daemon, its containers' metrics, and a weekly cleaning.
#
# Gives Docker with its logs in the journal (where Alloy reads them, with the container's name as a label)
# and, when Alloy runs on the machine, cAdvisor's metrics of every container. Differs from the seed in that
# Alloy may really read Docker's socket: it runs as a user of its own, which was never a member of the group.
# Membership is as good as root; Alloy's configuration is part of the image and read-only.
{ config, lib, ... }:
{
  virtualisation.docker = {
    enable = true;
    # journald is bounded by the machine's own limit; files of Docker's json logger have none.
    logDriver = "journald";
    # Images that nothing has used for a week, or a small disk fills with old versions.
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
}
