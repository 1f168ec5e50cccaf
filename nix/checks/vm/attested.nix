# Test the attested images. They boot from their own disks with UEFI and a TPM. They run no user data, and read it as
# data without changing any character. Nothing on the data partition can be executed. They start no privileged
# container, and no container that reaches the TPM or instance metadata.
{
  lib,
  pkgs,
  vmsnix,
  ...
}:
let
  metadata = import ./metadata.nix { inherit lib pkgs; } 0;
  value = "$(touch /var/ran) `touch /var/ran` ../../etc \"quoted\" 'single' \\ *";

  machine =
    networking: userData: modules:
    import ./machine.nix {
      inherit lib;
      modules = modules ++ [
        (metadata userData)
        {
          inherit networking;
          vmsnix.admin.keys = import ../../keys.nix;
          # The machine boots from the disk of the image, with its file systems and with firmware.
          virtualisation = {
            fileSystems = lib.mkVMOverride { };
            directBoot.enable = false;
            mountHostNixStore = false;
            tpm.enable = true;
            useEFIBoot = true;
          };
        }
      ];
    };

  # An image for containers with one program.
  tools = pkgs.dockerTools.buildImage {
    name = "tools";
    tag = "1";
    copyToRoot = pkgs.busybox;
  };
in
{
  name = "vmsnix-attested";

  nodes = {
    scripted = machine { hostName = "scripted"; } "#!/bin/sh\ntouch /var/ran\n" [
      vmsnix.modules.attested
      { vmsnix.attested.userData.token = [ "TOKEN" ]; }
    ];
    valued = machine { hostName = "valued"; } "TOKEN=${value}\n" [
      vmsnix.modules.attested
      {
        vmsnix.attested.userData.token = [ "TOKEN" ];
        systemd.services.reader = {
          serviceConfig.EnvironmentFile = "/run/keys/token";
          script = ''printf %s "$TOKEN" > /run/read'';
        };
      }
    ];
    host = machine { hostName = "host"; } "" [
      vmsnix.modules.attested
      vmsnix.modules.docker
    ];
  };

  testScript =
    { nodes, ... }:
    let
      disk =
        name:
        let
          image = nodes.${name}.system.build.images.attested;
        in
        "${image}/${image.passthru.config.image.baseName}.raw";
    in
    ''
      import os
      import subprocess
      import tempfile

      def boot(machine, image):
          disk = tempfile.NamedTemporaryFile(delete=False).name
          tool = "${lib.getExe' pkgs.qemu-utils "qemu-img"}"
          subprocess.run([tool, "create", "-f", "qcow2", "-b", image, "-F", "raw", disk, "8G"], check=True)
          os.environ["NIX_DISK_IMAGE"] = disk
          machine.start()
          machine.wait_for_unit("multi-user.target")

      def options(machine, path):
          return set(machine.succeed(f"findmnt --noheadings --output OPTIONS --target {path}").strip().split(","))

      boot(scripted, "${disk "scripted"}")

      with subtest("the store is verified, and the root file system is a tmpfs"):
          assert "ACTIVE" in scripted.succeed("dmsetup info --target verity usr")
          assert scripted.succeed("findmnt --noheadings --output FSTYPE /").strip() == "tmpfs"
          scripted.fail("touch /nix/store/file")
          scripted.fail("mount -o remount,rw /usr")

      with subtest("nothing on the data partition can be executed"):
          for path in ("/var", "/home"):
              assert {"noexec", "nosuid", "nodev"} <= options(scripted, path), path
          scripted.succeed("cp $(readlink -f $(command -v true)) /var/true")
          scripted.fail("/var/true")

      with subtest("user data that is a script is not run, and is named on the console"):
          scripted.wait_until_succeeds("journalctl -u user-data | grep 'It is a script'")
          scripted.fail("test -e /var/ran")
          scripted.fail("test -e /run/keys/token")

      with subtest("the administrator has no sudo"):
          scripted.fail("su altf4 -c 'sudo -n true'")

      with subtest("the TPM and its tool are there"):
          scripted.succeed("test -c /dev/tpmrm0", "command -v nitro-tpm-attest")
          scripted.succeed("test $(cat /sys/class/tpm/tpm0/pcr-sha384/4) != $(printf 0%.0s $(seq 96))")

      with subtest("state survives a reboot"):
          scripted.succeed("echo kept > /var/kept", "sync")
          scripted.reboot()
          scripted.wait_for_unit("multi-user.target")
          assert scripted.succeed("cat /var/kept").strip() == "kept"
      scripted.shutdown()

      boot(valued, "${disk "valued"}")

      with subtest("a value with shell and path characters is kept as it is"):
          valued.wait_for_file("/run/keys/token")
          valued.succeed("systemctl start reader.service")
          assert valued.succeed("cat /run/read") == ${builtins.toJSON value}
          valued.fail("test -e /var/ran")
      valued.shutdown()

      boot(host, "${disk "host"}")
      host.wait_for_unit("docker.service")
      host.succeed("docker load --input ${tools}")

      with subtest("a container runs"):
          assert host.succeed("docker run --rm tools:1 echo runs").strip() == "runs"

      with subtest("a privileged container is refused"):
          assert "no privileged containers" in host.fail("docker run --rm --privileged tools:1 true 2>&1")

      with subtest("a container does not reach the TPM"):
          for device in ("tpm0", "tpmrm0"):
              host.fail(f"docker run --rm --device /dev/{device} tools:1 dd if=/dev/{device} count=0")

      with subtest("a container does not reach instance metadata, also in the network of the host"):
          host.wait_for_open_port(80, "169.254.169.254")
          wget = "wget -q -T 5 -O - http://169.254.169.254/latest/user-data"
          host.fail(f"docker run --rm --network host tools:1 {wget}")

      with subtest("the state of containers is empty after a boot"):
          host.succeed("touch /var/lib/docker/added")
          host.reboot()
          host.wait_for_unit("docker.service")
          host.fail("test -e /var/lib/docker/added")

      with subtest("Docker does not start beside a file that cannot be deleted"):
          host.succeed("touch /var/lib/docker/added", "chattr +i /var/lib/docker/added", "sync")
          host.reboot()
          host.wait_until_succeeds("systemctl is-failed empty-state.service")
          host.fail("systemctl start docker.service")
    '';
}
