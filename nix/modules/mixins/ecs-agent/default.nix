# Mixin `ecs-agent`: a machine that joins an ECS cluster and runs its tasks.
#
# Adds nixpkgs' ECS agent as a service, task IAM roles, draining before a spot instance is reclaimed, and the
# agent's metrics through Alloy. Two things are different from the original images. The agent is part of the
# image: the original pulled a container of a fixed old version at every boot, with a port list that host
# networking ignores. The packet rules of the credentials address are added once, and removed when the
# firewall stops: the original added them again at every reload of the firewall.
#
# Tasks may use the network modes `bridge` and `host`. `awsvpc`, ECS Exec and EFS volumes do not work: they need
# programs of AWS that nixpkgs does not contain (CNI plugins, the agent of ECS Exec, amazon-efs-utils). The agent
# does not offer them to the cluster, so ECS does not place such a task on this machine.
#
# The settings file contains the agent's own variables, one on each line, at least ECS_CLUSTER=NAME. They override
# the defaults below. A machine whose image names the cluster has no settings file.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.vmsnix.ecs;

  # Tasks request the credentials of their IAM role from a fixed link-local address; the agent answers on this port.
  credentialsAddress = "169.254.170.2";
  credentialsPort = "51679";
  rules = [
    "PREROUTING -p tcp -d ${credentialsAddress} --dport 80 -j DNAT --to-destination 127.0.0.1:${credentialsPort}"
    "OUTPUT -p tcp -d ${credentialsAddress} --dport 80 -j REDIRECT --to-ports ${credentialsPort}"
  ];
  iptables = lib.getExe' pkgs.iptables "iptables";
in
{
  imports = [
    ../alloy
    ../docker
  ];

  options.vmsnix.ecs = {
    cluster = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9_-]{1,255}");
      default = null;
      example = "production";
      description = ''
        Name of the cluster, as a part of the image. Then the agent reads no settings file. With null, the settings
        file contains the name.
      '';
    };

    settingsFile = mkOption {
      type = types.path;
      default = "/run/keys/ecs.config";
      example = "/var/lib/ecs/ecs.config";
      description = ''
        Environment file of the agent, with at least ECS_CLUSTER. The agent starts when the file has content.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.str;
      example = {
        ECS_LOGLEVEL = "debug";
      };
      description = "Variables of the agent that are part of the image; the settings file can override each of them.";
    };
  };

  config = lib.mkMerge [
    {
      vmsnix.ecs.settings = lib.mapAttrs (_: lib.mkDefault) {
        # For a machine whose settings turn ECS_ENABLE_TASK_ENI on.
        ECS_AWSVPC_BLOCK_IMDS = lib.boolToString (!config.vmsnix.docker.instanceMetadata);
        ECS_AVAILABLE_LOGGING_DRIVERS = builtins.toJSON [
          "journald"
          "awslogs"
        ];
        ECS_DATADIR = "/var/lib/ecs/data";
        ECS_ENABLE_PROMETHEUS_METRICS = "true";
        ECS_ENABLE_SPOT_INSTANCE_DRAINING = "true";
        # No network mode awsvpc.
        ECS_ENABLE_TASK_ENI = "false";
        ECS_ENABLE_TASK_IAM_ROLE = "true";
        ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST = "true";
        ECS_LOGFILE = "/var/log/ecs/ecs-agent.log";
        ECS_LOGLEVEL = "info";
        # At most 4 files of 10 MB.
        ECS_LOG_MAX_FILE_SIZE_MB = "10";
        ECS_LOG_MAX_ROLL_COUNT = "4";
        ECS_LOG_ROLLOVER_TYPE = "size";
        # To update the agent, build a new image; it must not update itself.
        ECS_UPDATES_ENABLED = "false";
      };

      services.ecs-agent = {
        enable = true;
        extra-environment = cfg.settings;
      };

      systemd.services.ecs-agent = {
        after = [
          "docker.service"
          "network-online.target"
        ];
        wants = [ "network-online.target" ];
        requires = [ "docker.service" ];
        serviceConfig = {
          LogsDirectory = "ecs";
          StateDirectory = "ecs";
          Restart = "always";
          RestartSec = 10;
        };
      };

      # Allow packets for a link-local address to be redirected to 127.0.0.1.
      boot.kernel.sysctl."net.ipv4.conf.all.route_localnet" = 1;

      networking.firewall = {
        logRefusedConnections = true;
        extraCommands = lib.concatMapStringsSep "\n" (
          rule: "${iptables} -w -t nat -C ${rule} 2>/dev/null || ${iptables} -w -t nat -A ${rule}"
        ) rules;
        extraStopCommands = lib.concatMapStringsSep "\n" (
          rule: "${iptables} -w -t nat -D ${rule} 2>/dev/null || true"
        ) rules;

        # From Docker's bridge only: tasks send OTLP to the machine's Alloy, and request credentials.
        interfaces.docker0.allowedTCPPorts = [
          4317
          4318
          51679
        ];
      };

      environment.etc."alloy/ecs-agent.alloy".source = ./ecs-agent.alloy;
    }
    (lib.mkIf (cfg.cluster != null) { vmsnix.ecs.settings.ECS_CLUSTER = lib.mkForce cfg.cluster; })
    (lib.mkIf (cfg.cluster == null) (
      lib.mkMerge [
        { systemd.services.ecs-agent.serviceConfig.EnvironmentFile = toString cfg.settingsFile; }
        (import ../../start-when-present.nix "ecs-agent" (toString cfg.settingsFile))
      ]
    ))
  ];
}
