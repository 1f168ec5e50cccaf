# Mixin `alloy-forwarder`: the machine that every other machine's Alloy reports to, and that alone holds the
# Grafana Cloud token.
#
# Gives receivers for OTLP (gRPC and HTTP), Prometheus remote write and Loki push on top of the mixin `alloy`,
# all sent on to Grafana Cloud. Why one machine: one place holds the token, one place needs a way out of the
# network. The ports are open to whoever reaches the machine: its security group must admit the private
# network only.
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
