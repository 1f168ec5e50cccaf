# Test that user data that begins with #! runs at boot with a read-only /etc, and that a service that waits for a
# secret starts when user data writes the secret.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
{
  name = "vmsnix-amazon-init";

  nodes.machine = import ./machine.nix {
    inherit lib;
    modules = [
      vmsnix.modules.base
      vmsnix.modules.immutable
      vmsnix.modules.amazon
      vmsnix.modules.cachix
      {
        networking.hostName = "machine";
        vmsnix.admin.keys = import ../../keys.nix;
        vmsnix.image.name = "test";
        systemd.services.fetch-ec2-metadata.script = lib.mkForce ''
          install -m 600 ${pkgs.writeText "user-data" ''
            #!/bin/sh
            echo ran > /var/lib/user-data
            echo CACHIX_AGENT_TOKEN=none > /run/keys/cachix-agent
          ''} /etc/ec2-metadata/user-data
        '';
        # The real agent would connect to Cachix; this test needs only its name and its start.
        systemd.services.cachix-agent.serviceConfig.ExecStart = lib.mkForce (
          pkgs.writeShellScript "agent" ''
            echo "$CACHIX_AGENT_NAME" > /var/lib/agent-name
            exec sleep infinity
          ''
        );
      }
    ];
  };

  testScript = ''
    machine.wait_for_unit("amazon-init.service")

    with subtest("user data is run"):
        assert machine.succeed("cat /var/lib/user-data").strip() == "ran"

    with subtest("user data is not on the disk"):
        kind = machine.succeed("findmnt --noheadings --output FSTYPE --target /run/ec2-metadata/user-data")
        assert kind.strip() == "tmpfs"

    with subtest("a service starts when its secret exists, with the image's name"):
        machine.wait_for_unit("cachix-agent.service")
        machine.wait_until_succeeds("grep --line-regexp test /var/lib/agent-name")
  '';
}
