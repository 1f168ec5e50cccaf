# The only machine of a network that sends to Grafana Cloud: Alloy on every other machine sends metrics, logs
# and traces to it. At launch, user data writes /run/keys/grafana-cloud with the line GRAFANA_CLOUD_TOKEN=TOKEN.
{
  imports = [ ../modules/mixins/alloy-forwarder ];

  vmsnix.image.description = "Forwarder of metrics, logs and traces to Grafana Cloud";
}
