# The one machine of a network that talks to Grafana Cloud: every other machine's Alloy sends it metrics, logs
# and traces. The token comes in at launch: user data writes /run/keys/grafana-cloud with a line
# GRAFANA_CLOUD_TOKEN=TOKEN.
{
  imports = [ ../modules/mixins/alloy-forwarder ];

  vmsnix.image.description = "Forwarder of metrics, logs and traces to Grafana Cloud";
}
