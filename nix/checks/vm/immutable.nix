# Test that the store, /etc and the users cannot be changed, and that files below /home and /var and the machine's
# identity are the same after a reboot.
{ lib, vmsnix, ... }:
{
  name = "vmsnix-immutable";

  nodes.machine = import ./machine.nix {
    inherit lib;
    modules = [
      vmsnix.modules.base
      vmsnix.modules.immutable
      { vmsnix.admin.keys = import ../../keys.nix; }
    ];
  };

  testScript = ''
    machine.wait_for_unit("multi-user.target")

    with subtest("the store and /etc are read-only"):
        machine.fail("touch /nix/store/file")
        machine.fail("touch /etc/file")
        machine.fail("sh -c 'echo line >> /etc/ssh/sshd_config'")
        assert "ro" in machine.succeed("findmnt --noheadings --output OPTIONS /etc").strip().split(",")

    with subtest("users cannot be added"):
        machine.fail("useradd somebody")

    with subtest("name servers are configured"):
        machine.succeed("test -e /etc/resolv.conf")

    with subtest("state survives a reboot"):
        machine.wait_for_unit("sshd.service")
        machine.succeed("test -s /var/lib/ssh/ssh_host_ed25519_key")
        key = machine.succeed("cat /var/lib/ssh/ssh_host_ed25519_key.pub")
        machine.succeed("echo kept > /var/lib/kept", "echo kept > /home/altf4/kept", "sync")
        machine.shutdown()
        machine.start()
        machine.wait_for_unit("multi-user.target")
        assert machine.succeed("cat /var/lib/kept /home/altf4/kept").split() == ["kept", "kept"]
        assert machine.succeed("cat /var/lib/ssh/ssh_host_ed25519_key.pub") == key

    with subtest("secrets do not survive a reboot"):
        machine.succeed("echo secret > /run/keys/secret")
        machine.shutdown()
        machine.start()
        machine.wait_for_unit("multi-user.target")
        machine.fail("test -e /run/keys/secret")
  '';
}
