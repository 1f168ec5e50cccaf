# Mixin `alloy`: Grafana Alloy, which sends the machine's metrics, its journal and all data received by OTLP to
# one destination.
#
# Adds host metrics, Alloy's own metrics and the journal, labelled with the machine's name, and two destinations:
# the network's forwarder (default) or Grafana Cloud. Other mixins add their own `.alloy` files to /etc/alloy; all
# files there are one configuration. The comment at the top of host.alloy lists the components that they may use.
#
# Different from the original images: those read the machine's name from /etc/hostname, which does not exist on
# EC2. EC2's name is set by apply-ec2-data; therefore the order below.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.vmsnix.alloy;

  destinations = {
    forwarder = builtins.replaceStrings [ "@endpoint@" "@insecure@" ] [
      cfg.forwarder.endpoint
      (lib.boolToString (!cfg.forwarder.tls))
    ] (builtins.readFile ./to-forwarder.alloy);
    grafana-cloud = builtins.readFile ./to-grafana-cloud.alloy;
  };
in
{
  options.vmsnix.alloy = {
    destination = mkOption {
      type = types.enum [
        "forwarder"
        "grafana-cloud"
      ];
      default = "forwarder";
      example = "grafana-cloud";
      description = ''
        Destination of all data: the network's forwarder, or Grafana Cloud itself (which needs a token on this
        machine).
      '';
    };

    forwarder.endpoint = mkOption {
      type = types.strMatching "[A-Za-z0-9.-]+:[0-9]+";
      default = "gc-fwd.altf4.internal:4317";
      example = "telemetry.example.internal:4317";
      description = "Host and port of the forwarder's OTLP/gRPC receiver.";
    };

    forwarder.tls = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Use TLS to the forwarder. The image gc-fwd does not support it: it is meant for a private network.
      '';
    };

    grafanaCloud.stack = mkOption {
      type = types.strMatching "[a-z0-9]+";
      default = "altf4llc";
      example = "example";
      description = ''
        Name of the Grafana Cloud stack. Alloy requests the stack's addresses and user numbers at start.
      '';
    };

    grafanaCloud.api = mkOption {
      type = types.strMatching "https?://.+";
      default = "https://grafana.com/api";
      example = "https://grafana.example.org/api";
      description = "Address of the API from which Alloy requests the stack.";
    };

    grafanaCloud.tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/grafana-cloud";
      example = "/var/lib/secrets/grafana-cloud";
      description = ''
        Environment file with GRAFANA_CLOUD_TOKEN, an access policy token that may write metrics, logs and
        traces and read stacks. Alloy starts when the file has content. Only for the destination `grafana-cloud`.
      '';
    };
  };

  config = lib.mkMerge [
    {
      services.alloy = {
        enable = true;
        extraFlags = [ "--disable-reporting" ];
      };

      environment.etc = {
        "alloy/host.alloy".source = ./host.alloy;
        "alloy/destination.alloy".text = destinations.${cfg.destination};
      };

      systemd.services.alloy = {
        wants = [ "network-online.target" ];
        # Only an order: on a machine without apply-ec2-data (not on EC2), nothing waits.
        after = [
          "apply-ec2-data.service"
          "network-online.target"
        ];
        # Alloy stops if it cannot read its stack. Restart it without a limit; by default systemd stops after
        # five attempts.
        startLimitIntervalSec = 0;
        serviceConfig.RestartSec = lib.mkForce 10;
      };
    }

    (lib.mkIf (cfg.destination == "grafana-cloud") (
      lib.mkMerge [
        {
          services.alloy.environmentFile = toString cfg.grafanaCloud.tokenFile;
          systemd.services.alloy.environment = {
            GRAFANA_CLOUD_API = cfg.grafanaCloud.api;
            GRAFANA_CLOUD_STACK = cfg.grafanaCloud.stack;
          };
        }
        (import ../../start-when-present.nix "alloy" (toString cfg.grafanaCloud.tokenFile))
      ]
    ))
  ];
}
