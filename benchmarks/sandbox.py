"""Measure how many requests a second the sandbox answers, and compare with moto's server.

::

    .ci/foreign moto                     # once: moto in an environment of its own
    python -m benchmarks.sandbox         # 10,000 AMIs and 2 GiB, about three minutes

Each server is a process of its own. The clients are threads that send prepared, signed requests and read the
answers without parsing them. moto has no EBS direct APIs: PutSnapshotBlock is compared with nginx
(`benchmarks.sink`), which stores nothing. Ratios compare columns of one run;
other programs on the machine change the CPU time less than the rates.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from benchmarks.sink import null_sink
from vmsnix_ops.aws.ebs_direct.wire import BlockWire, Keys, Target
from vmsnix_ops.sandbox.credentials import DEFAULT_ACCESS_KEY, DEFAULT_SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parents[1]
MOTO = FOLDER / ".cache/foreign/moto/bin/python"
REGION, BUCKET = "us-east-1", "benchmark"
PART, BLOCK = 8 * 2**20, 524_288
CONNECTIONS = 64
BLOCKS = "PutSnapshotBlock"
MOST_MIB = 100
SERVERS = {
    "sandbox": [sys.executable, "-m", "vmsnix_ops.sandbox", "--speed", "1000", "--port"],
    "moto": [str(MOTO), "-m", "moto.server", "-H", "127.0.0.1", "-p"],
}


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    start_seconds: float = 0.0
    pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(maxsize=CONNECTIONS, retries=False)
    )

    def send(
        self, service: str, method: str, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> bytes:
        """Send a signed request, and return the answer's body."""
        request = AWSRequest(method, self.url + path, dict(headers or {}), body)  # type: ignore[no-untyped-call]
        signer = SigV4Auth(Credentials(DEFAULT_ACCESS_KEY, DEFAULT_SECRET_KEY), service, REGION)  # type: ignore[no-untyped-call]
        signer.add_auth(request)  # type: ignore[no-untyped-call]
        answer = self.pool.request(method, request.url, body=body, headers=dict(request.headers.items()))
        if answer.status >= 300:
            raise SystemExit(f"{self.url}: {method} {path}: {answer.status} {answer.data[:500]!r}")
        return answer.data

    def call(self, service: str, action: str, version: str = "2016-11-15", **params: Any) -> str:
        """Call an operation of EC2 or STS, and return its XML."""
        body = urlencode({"Action": action, "Version": version, **params}).encode()
        form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        return self.send(service, "POST", "/", body, form).decode()

    def cpu_seconds(self) -> float:
        """Return the processor time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        """Return the largest memory of the process so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@contextmanager
def serve(name: str) -> Iterator[Server]:
    """Start a server, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    process = subprocess.Popen(
        [*SERVERS[name], str(port)], cwd=FOLDER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        while True:
            try:
                server.call("sts", "GetCallerIdentity", "2011-06-15")
                break
            except urllib3.exceptions.HTTPError:
                if process.poll() is not None or time.monotonic() - began > 60:
                    raise SystemExit(f"{name} does not start.") from None
                time.sleep(0.01)
        server.start_seconds = time.monotonic() - began
        yield server
    finally:
        process.terminate()
        process.wait(30)


def rate(work: Callable[[int], object], count: int, threads: int) -> float:
    """Do some work this many times, and return how many times a second."""
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(count)):
            pass
    return count / (time.monotonic() - began)


def register(server: Server, amis: int) -> float:
    """Register AMIs of one snapshot, and return the requests a second."""
    volume = server.call("ec2", "CreateVolume", AvailabilityZone="us-east-1a", Size=1)
    volume_id = re.findall(r"<volumeId>([^<]+)", volume)[0]
    snapshot_id = re.findall(
        r"<snapshotId>(snap-[^<]+)", server.call("ec2", "CreateSnapshot", VolumeId=volume_id)
    )[0]
    while "completed" not in server.call("ec2", "DescribeSnapshots", **{"SnapshotId.1": snapshot_id}):
        time.sleep(0.1)

    def one(number: int) -> None:
        device = {"DeviceName": "/dev/sda1", "Ebs.SnapshotId": snapshot_id}
        server.call(
            "ec2",
            "RegisterImage",
            Name=f"image-{number}",
            Architecture="x86_64",
            RootDeviceName="/dev/sda1",
            VirtualizationType="hvm",
            **{f"BlockDeviceMapping.1.{name}": value for name, value in device.items()},
        )

    return rate(one, amis, 4)


def describe(server: Server, amis: int, count: int) -> float:
    """Return how often a second all AMIs are listed in one answer."""

    def one(_number: int) -> None:
        answer = server.call("ec2", "DescribeImages", **{"Owner.1": "self"})
        if (found := answer.count("<imageId>")) != amis:
            raise SystemExit(f"{server.url} lists {found} AMIs instead of {amis}.")

    return rate(one, count, 1)


def put_objects(server: Server, mib: int) -> float:
    """Put objects of 8 MiB over 8 connections, and return MiB a second."""
    body = os.urandom(PART)
    server.send("s3", "PUT", f"/{BUCKET}", b"", {"x-amz-content-sha256": hashlib.sha256().hexdigest()})
    # As boto3 does: without a checksum, S3 and the sandbox compute a CRC-64.
    checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    unsigned = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-checksum-crc32": checksum}

    def one(number: int) -> None:
        server.send("s3", "PUT", f"/{BUCKET}/{number}", body, unsigned)

    return rate(one, mib * 2**20 // PART, 8) * PART / 2**20


def put_blocks(url: str, snapshot_id: str, count: int) -> float:
    """Put blocks over 64 connections, and return the requests a second."""
    wire = BlockWire(Target(url, REGION), Keys(DEFAULT_ACCESS_KEY, DEFAULT_SECRET_KEY))
    data = bytearray(os.urandom(BLOCK))

    def one(index: int) -> None:
        block = index.to_bytes(8, "big") + data[8:]
        answer = wire.put(snapshot_id, index, block, hashlib.sha256(block).digest())
        if answer.status != 201:
            raise SystemExit(f"{url} refused a block: {answer.code} {answer.message}")

    return rate(one, count, CONNECTIONS)


def start_snapshot(server: Server, mib: int) -> str:
    body = json.dumps({"VolumeSize": max(1, mib // 1024)}).encode()
    answer = server.send("ebs", "POST", "/snapshots", body, {"Content-Type": "application/json"})
    return str(json.loads(answer)["SnapshotId"])


def measure(name: str, amis: int, mib: int, answers: int) -> dict[str, float]:
    """Return the figures of one server."""
    found: dict[str, float] = {}
    half = mib // 2
    with serve(name) as server:

        def add(work: str, unit: str, count: int, measured: Callable[[], float]) -> None:
            before = server.cpu_seconds()
            found[f"{work}, {unit}/s"] = measured()
            found[f"{work}, CPU ms"] = (server.cpu_seconds() - before) / count * 1e3

        found["start, seconds"] = server.start_seconds
        add("PutObject of 8 MiB", "MiB", half * 2**20 // PART, lambda: put_objects(server, half))
        if name == "sandbox":
            blocks, snapshot_id = half * 2**20 // BLOCK, start_snapshot(server, half)
            add(BLOCKS, "requests", blocks, lambda: put_blocks(server.url, snapshot_id, blocks))
        found[f"memory after {mib} MiB, MiB"] = server.peak_mib()
        add("RegisterImage", "requests", amis, lambda: register(server, amis))
        listed = f"DescribeImages of {amis:,} AMIs"
        add(listed, "requests", answers, lambda: describe(server, amis, answers))
    return found


def main() -> None:
    """Measure both servers and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--amis", type=int, default=10_000, help="AMIs that DescribeImages lists")
    parser.add_argument("--mib", type=int, default=2048, help="MiB that are sent, half to S3, half as blocks")
    parser.add_argument("--answers", type=int, default=5, help="how often all AMIs are listed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON to this file")
    options = parser.parse_args()
    if not MOTO.exists():
        print("moto is not measured: it is not installed. Run .ci/foreign moto")
    names = [name for name in SERVERS if name == "sandbox" or MOTO.exists()]
    found = {name: measure(name, options.amis, options.mib, options.answers) for name in names}
    with null_sink(tls=False) as sink:
        blocks = options.mib // 2 * 2**20 // BLOCK
        found["nginx"] = {f"{BLOCKS}, requests/s": put_blocks(sink.url, "snap-0123456789abcdef0", blocks)}
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
    columns = [*found]
    print(f"| | {' | '.join(columns)} | sandbox / other |\n|---|{'---:|' * (len(columns) + 1)}")
    for figure, own in found["sandbox"].items():
        others = [found[name].get(figure) for name in columns[1:]]
        ratio = next((f"{own / other:.2f}" for other in others if other), "")
        shown = " | ".join("" if value is None else f"{value:.3g}" for value in (own, *others))
        print(f"| {figure} | {shown} | {ratio} |")
    memory = found["sandbox"][f"memory after {options.mib} MiB, MiB"]
    print(f"\nMemory of the sandbox: {memory:.0f} MiB (aim: at most {MOST_MIB})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
