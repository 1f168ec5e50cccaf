"""One measured piece of work, in a process of its own: ``python -m benchmarks.work NAME JSON``.

Prints a JSON object with ``seconds`` and ``sent`` (blocks). What is compared is written here in the open:
ours as `vmsnix_ops.aws.blocks` does it, and the same work through plain boto3.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 524_288
SNAPSHOT = "snap-0123456789abcdef0"
REGION = "us-east-1"


def direct(image: str, manifest: str = "", digest: bool = False, ceiling: float = 1e6) -> int:
    """Upload as publish does: open, choose, read, hash, send, write the journal, sum up."""
    import boto3

    from vmsnix_ops.aws import block_engine
    from vmsnix_ops.aws.block_journal import Beginning, BlockJournal
    from vmsnix_ops.aws.blocks import aggregate
    from vmsnix_ops.disk.formats import open_image

    known = {int(i): d for i, d in json.loads(Path(manifest).read_text()).items()} if manifest else {}
    done: dict[int, tuple[str, bool]] = {}
    with tempfile.TemporaryDirectory() as folder, open_image(image) as disk:
        if digest:
            disk.digest()
        journal = BlockJournal(Path(folder) / "journal")
        journal.begin(Beginning(SNAPSHOT))

        def acknowledge(batch: Any) -> None:
            journal.add(batch)
            done.update((index, (found, sent)) for index, found, sent in batch)

        indices = sorted({*disk.allocated(BLOCK), *known})
        block_engine.run(
            "put",
            [(index, known.get(index)) for index in indices],
            session=boto3.Session(region_name=REGION),
            region=REGION,
            snapshot_id=SNAPSHOT,
            path=Path(image),
            on_done=acknowledge,
            pushing=block_engine.Pushing(ceiling=ceiling),
        )
        sent = {index: found for index, (found, was_sent) in sorted(done.items()) if was_sent}
        aggregate(sent.values())
        journal.close()
    return len(sent)


def boto3_threads(image: str, threads: int = 64) -> int:
    """Upload as the public tools do: every block, one client, 64 threads."""
    import boto3
    from botocore.config import Config

    ebs = boto3.client("ebs", region_name=REGION, config=Config(max_pool_connections=threads))
    blocks = -(-Path(image).stat().st_size // BLOCK)
    file = os.open(image, os.O_RDONLY)

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
    """Hash the file on one core, which is the least that an upload has to do on one: each block needs it."""
    whole = hashlib.sha256()
    with Path(image).open("rb", buffering=0) as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return 0


def loopback(image: str) -> int:
    """Copy the file over one loopback connection, unread by anybody."""
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


def s3_ours(image: str, bucket: str) -> int:
    """Upload to S3 as publish via import does."""
    import boto3

    from vmsnix_ops.aws import buckets
    from vmsnix_ops.aws.session import client

    s3 = client(boto3.Session(region_name=REGION), "s3", REGION, connections=buckets.THREADS + 2)
    buckets.upload(s3, Path(image), bucket=bucket, key="ours", tags={})
    return 0


def s3_cli(image: str, bucket: str) -> int:
    """Upload to S3 with the AWS CLI."""
    command = ["aws", "s3", "cp", "--only-show-errors", image, f"s3://{bucket}/cli"]
    subprocess.run(command, check=True)
    return 0


WORK = {
    function.__name__: function for function in (direct, boto3_threads, sha256, loopback, s3_ours, s3_cli)
}


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    started = time.perf_counter()
    sent = WORK[name](**options)
    print(json.dumps({"seconds": time.perf_counter() - started, "sent": sent}))


if __name__ == "__main__":
    main()
