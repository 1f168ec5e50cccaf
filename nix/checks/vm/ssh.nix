# Test that the administrator can log in with a key of the image and become root; that a password, another key, or
# root's key for the administrator are refused; and that root can log in with the EC2 key pair without user data.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
let
  # nixpkgs' own keys for tests: the private keys are public too.
  keys = import (pkgs.path + "/nixos/tests/ssh-keys.nix") pkgs;
in
{
  name = "vmsnix-ssh";

  nodes.machine = import ./machine.nix {
    inherit lib;
    modules = [
      vmsnix.modules.base
      vmsnix.modules.immutable
      vmsnix.modules.amazon
      {
        networking.hostName = "machine";
        vmsnix.admin.keys = [ keys.snakeOilEd25519PublicKey ];
        # The instance's metadata as on EC2: another key pair, for root.
        systemd.services.fetch-ec2-metadata.script = lib.mkForce ''
          cp ${pkgs.writeText "key" keys.snakeOilPublicKey} /etc/ec2-metadata/public-keys-0-openssh-key
        '';
      }
    ];
  };

  nodes.client = { };

  testScript = ''
    start_all()
    machine.wait_for_unit("sshd.service")
    machine.wait_for_unit("apply-ec2-data.service")
    client.succeed(
        "install -m 600 ${keys.snakeOilEd25519PrivateKey} admin.key",
        "install -m 600 ${keys.snakeOilPrivateKey} root.key",
    )
    ssh = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"

    with subtest("the administrator logs in and becomes root"):
        assert client.succeed(f"{ssh} -i admin.key altf4@machine sudo id -u").strip() == "0"

    with subtest("the EC2 key pair can log in only as root"):
        assert client.succeed(f"{ssh} -i root.key root@machine id -u").strip() == "0"
        client.fail(f"{ssh} -i root.key altf4@machine true")

    with subtest("the administrator's key cannot log in as root"):
        client.fail(f"{ssh} -i admin.key root@machine true")

    with subtest("passwords are refused"):
        client.fail(
            "ssh -o StrictHostKeyChecking=no -o PreferredAuthentications=password,keyboard-interactive"
            " altf4@machine true </dev/null"
        )
  '';
}
