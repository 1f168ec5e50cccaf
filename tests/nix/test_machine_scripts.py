"""The scripts that run on the machines: fetching metadata, writing secrets, finding the root disk.

Each runs unchanged with bash; Nix only adds a PATH. The metadata script runs in a network namespace of its
own, where the boot test's metadata service answers on EC2's real address.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import DEADLINE, require, wait_until
from vmsnix_ops.boot import metadata

MODULES = Path(__file__).parents[2] / "nix/modules"
FETCH = MODULES / "profiles/fetch-metadata.sh"
SECRET = MODULES / "secret.sh"
BLOCK = MODULES / "mixins/docker/block-metadata.sh"
ROOT_DISK = MODULES / "profiles/root-disk.sh"
SERVICE = """
import pathlib, socketserver, sys, time
sys.path.insert(0, sys.argv[1])
import metadata, json
given = json.loads(pathlib.Path(sys.argv[2]).read_text())

class Page(str):  # the hexadecimal digits of bytes that need not be text
    def encode(self):
        return bytes.fromhex(self)

pages = {path: Page(page) for path, page in given["pages"].items()}

class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        if given["status"]:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(f"HTTP/1.1 {given['status']} -\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
        else:
            metadata.serve(self.rfile, self.wfile, pages, b"secret", given["log"])

time.sleep(given["delay"])
socketserver.ThreadingTCPServer.daemon_threads = True
with socketserver.ThreadingTCPServer(("169.254.169.254", 80), Connection) as server:
    server.serve_forever()
"""
PAGES = {
    "meta-data/hostname": b"ip-10-0-0-1.ec2.internal",
    "meta-data/public-keys/0/openssh-key": b"ssh-ed25519 AAAA alice",
    "user-data": b'#!/bin/sh\necho it\'s "me" $HOME\n',
}
FILES = {path.replace("meta-data/", "").replace("/", "-"): page for path, page in PAGES.items()}


def in_namespace(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program with no network except its own loopback device, which has the service's address."""
    prefix = ("unshare", "--map-root-user", "--net", "bash", "-c")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=DEADLINE).returncode:
        pytest.skip("this user may not create a network namespace")
    setup = 'ip link set lo up && ip address add 169.254.169.254/32 dev lo && exec "$@"'
    return subprocess.run(
        [*prefix, setup, "bash", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        env={**os.environ, **more},
    )


LISTENS = "for _ in $(seq 600); do (: </dev/tcp/169.254.169.254/80) 2>&- && break; sleep 0.1; done; "


def fetch(
    folder: Path, *, delay: float = 0, status: int = 0, pages: dict[str, bytes] = PAGES, seconds: int = 60
) -> subprocess.CompletedProcess[str]:
    """Run the script while the service appears after `delay` seconds, with one `status` for all requests."""
    require("curl")
    given = {"delay": delay, "status": status, "log": str(folder / "log")}
    given["pages"] = {path: page.hex() for path, page in pages.items()}
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "service.py").write_text(SERVICE)
    place = Path(metadata.__file__).parent
    service = f"{sys.executable} {folder}/service.py {place} {folder}/given.json"
    # Without a delay, the time of the script must not pass while a busy machine starts the service.
    both = f"{service} & {'' if delay else LISTENS}bash {FETCH}; end=$?; kill $!; exit $end"
    return in_namespace(
        *("bash", "-c", both),
        VMSNIX_METADATA_FOLDER=str(folder / "data"),
        VMSNIX_METADATA_SECONDS=str(seconds),
    )


def fetched(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.mark.parametrize(
    "delay", [0, 3, pytest.param(20, marks=pytest.mark.long(seconds=35))], ids="after {} s".format
)
def test_metadata_is_fetched_when_the_service_appears(tmp_path: Path, delay: int) -> None:
    """nixpkgs' script ends without user data and with success when the service appears after 3 s."""
    result = fetch(tmp_path, delay=delay)
    assert result.returncode == 0, result.stderr
    assert fetched(tmp_path) == FILES
    assert result.stdout == ""
    assert (tmp_path / "data/user-data").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data/hostname").stat().st_mode & 0o777 == 0o644


def test_without_a_service_the_boot_continues_with_one_line_on_the_console(tmp_path: Path) -> None:
    result = fetch(tmp_path, delay=999, seconds=3)
    assert result.returncode == 1
    assert re.fullmatch(
        r"No instance metadata after \d s: no answer from .*\. This boot continues without .*\.\n",
        result.stdout,
    )
    assert fetched(tmp_path) == {}


def test_a_service_that_is_off_is_success_with_nothing_fetched(tmp_path: Path) -> None:
    result = fetch(tmp_path, status=403)
    assert (result.returncode, result.stdout, fetched(tmp_path)) == (0, "", {})
    assert "is off" in result.stderr


def test_a_service_that_fails_for_long_ends_with_its_status(tmp_path: Path) -> None:
    result = fetch(tmp_path, status=503, seconds=2)
    assert result.returncode == 1
    assert "status 503" in result.stdout


def test_what_an_instance_does_not_have_is_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/user-data").write_text("of an earlier boot")
    result = fetch(tmp_path, pages={"meta-data/hostname": b"new"})
    assert (result.returncode, fetched(tmp_path)) == (0, {"hostname": b"new"})


@pytest.mark.parametrize(
    "packed", [gzip.compress(PAGES["user-data"]), lzma.compress(PAGES["user-data"])], ids=["gzip", "xz"]
)
def test_compressed_user_data_is_unpacked(tmp_path: Path, packed: bytes) -> None:
    for tool in ("file", "gzip", "xz"):
        require(tool)
    assert fetch(tmp_path, pages={"user-data": packed}).returncode == 0
    assert fetched(tmp_path) == {"user-data": PAGES["user-data"]}
    assert (tmp_path / "data/user-data").stat().st_mode & 0o777 == 0o600


def write_secret(folder: Path, name: str, content: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SECRET, name],
        input=content,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        env={**os.environ, "VMSNIX_KEYS": str(folder)},
    )


def test_a_secret_appears_with_its_whole_content(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    secret = "TOKEN=a'b\"c $d\n"
    for content in ("old", secret):
        assert write_secret(folder, "ecs.config", content).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["ecs.config"]
    assert (folder / "ecs.config").read_text() == secret
    assert (folder / "ecs.config").stat().st_mode & 0o777 == 0o600


def test_an_unfinished_secret_is_not_visible(tmp_path: Path) -> None:
    command = ["bash", SECRET, "token"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, "VMSNIX_KEYS": str(tmp_path)}
    ) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"first half, ")
        writer.stdin.flush()
        wait_until(
            lambda: any(path.stat().st_size for path in tmp_path.iterdir()), "the first half is written"
        )
        assert not (tmp_path / "token").exists()
        writer.stdin.write(b"second half")
        writer.stdin.close()
        assert writer.wait(DEADLINE) == 0
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first half, second half"]


def test_an_empty_secret_is_not_written_and_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old")
    result = write_secret(tmp_path, "token", "")
    assert result.returncode == 1
    assert "standard input is empty" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd"])
def test_a_secret_needs_a_plain_file_name(tmp_path: Path, name: str) -> None:
    result = write_secret(tmp_path, name, "x")
    assert result.returncode == 2
    assert "Usage" in result.stderr
    assert list(tmp_path.iterdir()) == []


# Prints the folder of the device; a partition has a file of that name there, as in /sys.
DISKS = [
    ("vbd-768/block/xvda/xvda1", "xvda"),  # Xen
    ("vbd-768/block/xvda", "xvda"),  # a file system without a partition table
    ("pci0/nvme/nvme0/nvme0n1/nvme0n1p1", "nvme0n1"),
    ("pci0/virtio2/block/vda/vda1", "vda"),
]


@pytest.mark.parametrize(("device", "disk"), DISKS)
def test_the_disk_of_the_root_file_system_is_found(tmp_path: Path, device: str, disk: str) -> None:
    folder = tmp_path / device
    folder.mkdir(parents=True)
    if folder.name != disk:
        (folder / "partition").write_text("1\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in {
        "stat": 'test "$*" = "--format=%Hd:%Ld /" && echo 202:1',
        "readlink": f'test "$*" = "--canonicalize-existing /sys/dev/block/202:1" && echo {folder}',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)

    def find(*names: str) -> tuple[int, str]:
        command = ["bash", ROOT_DISK, *names]
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DEADLINE, env=environment
        )
        return found.returncode, found.stdout

    assert find() == (0, f"{disk}\n")
    assert find(disk) == (0, "")
    assert find("sdb") == (1, "")


# The machine is between a container and the service, each with a network of its own. The rule that sends the
# packets of containers through DOCKER-USER is Docker's.
NETWORKS = r"""
set -e
mount -t tmpfs none /run
for other in container service; do
  ip netns add $other
  ip link add $other type veth peer name eth0 netns $other
  ip link set $other up
  ip -n $other link set eth0 up
  ip -n $other link set lo up
done
ip link set lo up
ip address add 172.17.0.1/24 dev container
ip -n container address add 172.17.0.2/24 dev eth0
ip -n container route add default via 172.17.0.1
ip address add 10.0.0.2/24 dev service
ip -n service address add 10.0.0.1/24 dev eth0
ip -n service address add 169.254.169.254/32 dev eth0
ip -n service route add default via 10.0.0.2
ip route add 169.254.169.254 via 10.0.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
mkdir /run/empty
ip netns exec service "$2" -m http.server --bind 169.254.169.254 --directory /run/empty 80 >/dev/null 2>&1 &
address=http://169.254.169.254/
reach() { "$@" curl --silent --fail --output /dev/null --max-time 5 $address && echo yes || echo no; }
for _ in $(seq 200); do [ "$(reach env)" = yes ] && break; sleep 0.1; done
all() {
  echo "$1: root $(reach env), job $(reach setpriv --reuid 1234 --clear-groups)," \
    "container $(reach ip netns exec container), rules $(iptables -S | grep -c 169.254)"
}
export VMSNIX_OWNERS="--uid-owner 1234"
all "before"
bash "$1" start
iptables -I FORWARD -j DOCKER-USER
bash "$1" start
all "started twice"
bash "$1" stop
all "stopped"
"""


@pytest.mark.long(seconds=5)
def test_containers_and_jobs_cannot_reach_the_metadata_service(tmp_path: Path) -> None:
    for tool in ("iptables", "curl", "ip", "setpriv"):
        require(tool)
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    if os.getuid() or subprocess.run([*namespaces, "true"], timeout=DEADLINE).returncode:
        pytest.skip("this user may not create namespaces")
    command = [*namespaces, "bash", "-c", NETWORKS, "networks", str(BLOCK), sys.executable]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert result.stdout.splitlines() == [
        "before: root yes, job yes, container yes, rules 0",
        "started twice: root yes, job no, container no, rules 2",
        "stopped: root yes, job yes, container yes, rules 0",
    ], result.stderr
