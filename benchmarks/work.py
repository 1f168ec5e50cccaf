"""Run one case of `benchmarks.upload` in a process of its own: ``python -m benchmarks.work NAME JSON``.

It prints a JSON object with ``seconds``, ``cpu_seconds`` and ``sent`` (blocks). Libraries and clients are
loaded before the clock starts, except for the upload to S3, which is compared with a program that has to
start too. `direct` does the work of `vmsnix_ops.aws.ebs_direct.writing`, `boto3_threads` the same with boto3.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.sink import BUCKET, KEY

BLOCK = 524_288
SNAPSHOT = "snap-0123456789abcdef0"
REGION = "us-east-1"


class Clock:
    """Wall time and CPU time (with ended child processes) from `restart` to the first `stop`."""

    def __init__(self) -> None:
        self.restart()
        self.found: dict[str, float] = {}

    def restart(self) -> None:
        """Start the clock again, once everything is loaded."""
        self._started, self._cpu = time.perf_counter(), _cpu_seconds()

    def stop(self) -> None:
        """Stop the clock; later calls change nothing."""
        if not self.found:
            seconds = time.perf_counter() - self._started
            self.found = {"seconds": seconds, "cpu_seconds": _cpu_seconds() - self._cpu}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


CLOCK = Clock()


def identify_image(image: str, parts: bool = False) -> int:
    """Identify an image, as the step before an upload does; with `parts` for an upload to S3."""
    from vmsnix_ops.disk.survey import identify

    CLOCK.restart()
    identify(Path(image), parts=parts)
    return 0


def direct(image: str, manifest: str = "", identified: bool = False, start: bool = False) -> int:
    """Identify an image and upload it, as a publish does: hash, read, compare, send, write the journal.

    Parameters
    ----------
    image, manifest
        The image, and the manifest of the snapshot from which the upload starts.
    identified
        Whether to identify the image before the clock starts, so that only the upload is measured.
    start
        Whether to start and complete a snapshot, which the sandbox requires.
    """
    import boto3

    from vmsnix_ops.aws.ebs_direct import engine
    from vmsnix_ops.aws.ebs_direct.journal import BlockJournal, JournalHeader
    from vmsnix_ops.aws.ebs_direct.writing import aggregate, snapshot_blocks
    from vmsnix_ops.disk.digests import Digests
    from vmsnix_ops.disk.manifest import Manifest
    from vmsnix_ops.disk.survey import identify

    session = boto3.Session(region_name=REGION)
    ebs = session.client("ebs")
    before = identify(Path(image)) if identified else None
    with tempfile.TemporaryDirectory() as folder:
        CLOCK.restart()
        parent = Manifest.load(Path(manifest).read_bytes()).blocks if manifest else Digests()
        seen = before or identify(Path(image))
        snapshot_id = SNAPSHOT
        if start:
            snapshot_id = ebs.start_snapshot(VolumeSize=-(-seen.disk_bytes // 2**30))["SnapshotId"]
        journal = BlockJournal(Path(folder) / "journal")
        journal.begin(JournalHeader(snapshot_id))
        blocks = snapshot_blocks(seen.blocks, parent)
        changed = Digests((index, found) for index, found in blocks.pairs() if parent.get(index) != found)
        engine.run(
            "put",
            changed.items(),
            session=session,
            region=REGION,
            snapshot_id=snapshot_id,
            path=Path(image),
            on_done=journal.add,
            config=engine.TransferConfig(ceiling=1e6),
        )
        checksum = aggregate(digest for _, digest in changed.pairs())
        if start:
            ebs.complete_snapshot(
                SnapshotId=snapshot_id,
                ChangedBlocksCount=len(changed),
                Checksum=checksum,
                ChecksumAlgorithm="SHA256",
                ChecksumAggregationMethod="LINEAR",
            )
        journal.close()
        CLOCK.stop()
    return len(changed)


def boto3_threads(image: str, threads: int = 64) -> int:
    """Upload every block with one boto3 client and 64 threads, as public tools do."""
    import boto3
    from botocore.config import Config

    ebs = boto3.client("ebs", region_name=REGION, config=Config(max_pool_connections=threads))
    blocks = -(-Path(image).stat().st_size // BLOCK)
    file = os.open(image, os.O_RDONLY)
    CLOCK.restart()

    def put(index: int) -> bytes:
        data = os.pread(file, BLOCK, index * BLOCK).ljust(BLOCK, b"\0")
        found = hashlib.sha256(data).digest()
        ebs.put_snapshot_block(
            SnapshotId=SNAPSHOT,
            BlockIndex=index,
            BlockData=data,
            DataLength=BLOCK,
            Checksum=base64.b64encode(found).decode(),
            ChecksumAlgorithm="SHA256",
        )
        return found

    with ThreadPoolExecutor(threads) as pool:
        hashlib.sha256(b"".join(pool.map(put, range(blocks)))).digest()
    return blocks


def sha256(image: str) -> int:
    """Hash the file on one core. An upload cannot avoid this work, because each block needs its SHA-256."""
    whole = hashlib.sha256()
    with Path(image).open("rb", buffering=0) as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return 0


def loopback(image: str) -> int:
    """Copy the file over one loopback connection; the receiver drops it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drain() -> None:
            buffer = bytearray(2**20)
            with server.accept()[0] as connection:
                while connection.recv_into(buffer):
                    pass

        thread = threading.Thread(target=drain)
        thread.start()
        with socket.create_connection(server.getsockname()) as sender, Path(image).open("rb") as file:
            sender.sendfile(file)
        thread.join()
    return 0


def s3_vmsnix(image: str) -> int:
    """Upload to S3 as a publish via import does; the image is identified before the clock starts."""
    from vmsnix_ops.disk.survey import identify

    seen = identify(Path(image), parts=True)
    CLOCK.restart()
    import boto3

    from vmsnix_ops.aws import buckets
    from vmsnix_ops.aws.session import client

    s3 = client(boto3.Session(region_name=REGION), "s3", REGION, connections=buckets.THREADS + 2)
    buckets.upload_file(s3, Path(image), survey=seen, bucket=BUCKET, key=KEY, tags={})
    return 0


def s3_cli(image: str) -> int:
    """Upload to S3 with the AWS CLI."""
    subprocess.run(["aws", "s3", "cp", "--only-show-errors", image, f"s3://{BUCKET}/{KEY}"], check=True)
    return 0


WORK = {
    function.__name__: function
    for function in (identify_image, direct, boto3_threads, sha256, loopback, s3_vmsnix, s3_cli)
}


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    CLOCK.restart()
    sent = WORK[name](**options)
    CLOCK.stop()
    print(json.dumps(CLOCK.found | {"sent": sent}))


if __name__ == "__main__":
    main()
