# Mixin `alloy-forwarder`: the machine to which Alloy on every other machine sends its data. Only this machine has
# the Grafana Cloud token.
#
# Adds receivers for OTLP (gRPC and HTTP), Prometheus remote write and Loki push to the mixin `alloy`, and sends all
# data to Grafana Cloud. So only one machine needs the token and access to the internet. The ports accept data from
# everyone who can reach the machine: its security group must allow only the private network.
{
  imports = [ ../alloy ];

  vmsnix.alloy.destination = "grafana-cloud";

  environment.etc."alloy/receive.alloy".source = ./receive.alloy;

  networking.firewall.allowedTCPPorts = [
    3100 # Loki push
    4317 # OTLP over gRPC
    4318 # OTLP over HTTP
    9090 # Prometheus remote write
  ];
}
