# Alloy accepts the configuration of each image and answers; the forwarder's ports are open, and only the
# forwarder's.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
let
  machine =
    mixin:
    import ./machine.nix {
      inherit lib;
      modules = [
        vmsnix.modules.${mixin}
        {
          vmsnix.alloy.forwarder.endpoint = "forwarder:4317";
          # There is no Grafana Cloud in a test; the token only has to be there.
          systemd.services.alloy.environment.GRAFANA_CLOUD_TOKEN = "none";
          systemd.tmpfiles.settings.test."/run/keys/grafana-cloud".f.argument = "GRAFANA_CLOUD_TOKEN=none";
          environment.systemPackages = [ pkgs.grafana-alloy ];
        }
      ];
    };
in
{
  name = "vmsnix-alloy";

  nodes = {
    plain = machine "alloy";
    forwarder = machine "alloy-forwarder";
  };

  testScript = ''
    start_all()

    for each in [plain, forwarder]:
        with subtest(f"{each.name} answers"):
            each.wait_for_unit("alloy.service")
            each.wait_for_open_port(12345)
            each.wait_until_succeeds("curl --silent --fail http://127.0.0.1:12345/-/healthy")

    with subtest("the configuration is valid"):
        for each in [plain, forwarder]:
            each.succeed("alloy validate /etc/alloy")

    with subtest("the forwarder takes OTLP from the network"):
        plain.wait_until_succeeds("nc -z forwarder 4317", timeout=60)

    with subtest("a machine that forwards takes nothing"):
        forwarder.fail("nc -z -w 3 plain 4317")
  '';
}
