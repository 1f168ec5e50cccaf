# Mixin `docker`: the Docker daemon, metrics of its containers, and a weekly clean-up.
#
# Docker writes its logs to the journal, where Alloy reads them, with the container's name as a label. If Alloy
# runs on the machine, cAdvisor adds metrics of every container. Different from the original images: Alloy runs
# as its own user, which was not in Docker's group and could not read Docker's socket; here it is a member. A member
# of this group can become root; Alloy's configuration is part of the image and read-only.
{ config, lib, ... }:
{
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
}
