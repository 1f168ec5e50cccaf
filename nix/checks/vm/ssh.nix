# The administrator logs in with a baked-in key and becomes root; a password, another key, or the root's key
# at the administrator's door gets nobody in; a machine without user data is still reachable by root's EC2 key
# pair.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
let
  # nixpkgs' own throwaway keys, made for tests: both halves are public.
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
        # The instance's metadata, as EC2 would have given it: another key pair, for root.
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

    with subtest("the EC2 key pair opens root's account and no other"):
        assert client.succeed(f"{ssh} -i root.key root@machine id -u").strip() == "0"
        client.fail(f"{ssh} -i root.key altf4@machine true")

    with subtest("the administrator's key does not open root's account"):
        client.fail(f"{ssh} -i admin.key root@machine true")

    with subtest("passwords are not asked for"):
        client.fail(
            "ssh -o StrictHostKeyChecking=no -o PreferredAuthentications=password,keyboard-interactive"
            " altf4@machine true </dev/null"
        )
  '';
}
