# Test that Alloy accepts the configuration of each image and answers, and that only the forwarder's ports are
# open.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
let
  # The fields of Grafana Cloud's answer for a stack that the configuration uses. Nothing listens on the addresses.
  stack = pkgs.writeTextDir "instances/altf4llc" (
    builtins.toJSON {
      hmInstancePromUrl = "http://127.0.0.1:9";
      hmInstancePromId = 1;
      hlInstanceUrl = "http://127.0.0.1:9";
      hlInstanceId = 2;
      htInstanceUrl = "http://127.0.0.1";
      htInstanceId = 3;
    }
  );

  machine =
    mixin:
    import ./machine.nix {
      inherit lib;
      modules = [
        vmsnix.modules.${mixin}
        {
          vmsnix.alloy.forwarder.endpoint = "forwarder:4317";
          vmsnix.alloy.grafanaCloud.api = "http://127.0.0.1:8000";
          systemd.tmpfiles.settings.test."/run/keys/grafana-cloud".f.argument = "GRAFANA_CLOUD_TOKEN=none";
          systemd.services.stack = {
            wantedBy = [ "multi-user.target" ];
            before = [ "alloy.service" ];
            script = "${lib.getExe pkgs.python3} -m http.server --directory ${stack} 8000";
          };
          environment.systemPackages = [
            pkgs.grafana-alloy
            pkgs.netcat
          ];
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

        with subtest(f"the configuration of {each.name} is valid"):
            each.succeed(
                "env GRAFANA_CLOUD_API=http://127.0.0.1:8000 GRAFANA_CLOUD_STACK=altf4llc"
                " GRAFANA_CLOUD_TOKEN=none alloy validate /etc/alloy"
            )

    with subtest("the forwarder accepts OTLP from the network"):
        plain.wait_until_succeeds("nc -z forwarder 4317", timeout=60)

    with subtest("a machine that only sends accepts nothing"):
        forwarder.fail("nc -z -w 3 plain 4317")
  '';
}
