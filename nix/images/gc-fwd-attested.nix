# The forwarder `gc-fwd`, attested: no code that was not measured runs as root. At launch, user data contains the line
# GRAFANA_CLOUD_TOKEN=TOKEN, or GRAFANA_CLOUD_TOKEN=ssm:NAME with the name of an SSM parameter.
{
  imports = [
    ../modules/mixins/alloy-forwarder
    ../modules/profiles/attested.nix
  ];

  vmsnix.image.description = "Forwarder of metrics, logs and traces to Grafana Cloud, attested by a TPM";

  vmsnix.attested.userData.grafana-cloud = [ "GRAFANA_CLOUD_TOKEN" ];
}
