"""Compare the CPU time of one PutSnapshotBlock over four kinds of connection.

::

    python -m benchmarks.connection                  # 4,000 blocks each, about a minute

One thread sends the same hashed blocks to `benchmarks.sink`, without and with TLS. Only the CPU time of the
client counts, because the CPU limits an upload: while one thread waits, others work. The kinds take turns for
three rounds, and the best round of each counts. ``awscrt`` is measured if it is installed; the package does
not need it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import platform
import ssl
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import boto3
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from benchmarks.sink import Sink, null_sink
from vmsnix_ops.aws.ebs_direct.wire import BlockWire, Keys, Target
from vmsnix_ops.disk.image import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

REGION, SNAPSHOT = "us-east-1", "snap-0123456789abcdef0"
ACCESS, SECRET = "AKIABENCHMARK", "none"
ROUNDS = 3


def path(index: int) -> str:
    return f"/snapshots/{SNAPSHOT}/blocks/{index}"


def headers(digest: bytes) -> dict[str, str]:
    """Return the headers of PutSnapshotBlock."""
    return {
        "content-type": "application/octet-stream",
        "x-amz-checksum": base64.b64encode(digest).decode(),
        "x-amz-checksum-algorithm": "SHA256",
        "x-amz-data-length": str(BLOCK_BYTES),
    }


def own(sink: Sink) -> Callable[[int, bytes, bytes], int]:
    """Send with `vmsnix_ops.aws.ebs_direct.wire`."""
    wire = BlockWire(Target(sink.url, REGION, certificates=str(sink.certificate or "")), Keys(ACCESS, SECRET))
    return lambda index, block, digest: wire.put(SNAPSHOT, index, block, digest).status


def with_urllib3(sink: Sink) -> Callable[[int, bytes, bytes], int]:
    """Send with urllib3, signed by botocore."""
    pool = urllib3.PoolManager(ca_certs=str(sink.certificate) if sink.certificate else None)
    signer = SigV4Auth(Credentials(ACCESS, SECRET), "ebs", REGION)  # type: ignore[no-untyped-call]

    def put(index: int, block: bytes, digest: bytes) -> int:
        request = AWSRequest("PUT", sink.url + path(index), headers(digest), b"")  # type: ignore[no-untyped-call]
        request.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
        signer.add_auth(request)  # type: ignore[no-untyped-call]
        return pool.request("PUT", request.url, body=block, headers=dict(request.headers.items())).status

    return put


def with_boto3(sink: Sink) -> Callable[[int, bytes, bytes], int]:
    """Send with boto3's client."""
    client = boto3.client(
        "ebs",
        region_name=REGION,
        endpoint_url=sink.url,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        verify=str(sink.certificate) if sink.certificate else None,
        config=Config(retries={"total_max_attempts": 1}),
    )

    def put(index: int, block: bytes, digest: bytes) -> int:
        answer = client.put_snapshot_block(
            SnapshotId=SNAPSHOT,
            BlockIndex=index,
            BlockData=block,
            DataLength=BLOCK_BYTES,
            Checksum=base64.b64encode(digest).decode(),
            ChecksumAlgorithm="SHA256",
        )
        return answer["ResponseMetadata"]["HTTPStatusCode"]

    return put


def with_awscrt(sink: Sink) -> Callable[[int, bytes, bytes], int]:
    """Send and sign with the AWS Common Runtime."""
    from awscrt import auth, http, io  # type: ignore[import-not-found]

    url = urllib3.util.parse_url(sink.url)
    tls = None
    if sink.certificate:
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, str(sink.certificate))
        tls = io.ClientTlsContext(options).new_connection_options()
        tls.set_server_name(url.host)
    connection = http.HttpClientConnection.new(url.host, url.port, tls_connection_options=tls).result()
    config: Any = {
        "algorithm": auth.AwsSigningAlgorithm.V4,
        "signature_type": auth.AwsSignatureType.HTTP_REQUEST_HEADERS,
        "credentials_provider": auth.AwsCredentialsProvider.new_static(ACCESS, SECRET),
        "region": REGION,
        "service": "ebs",
        "signed_body_value": "UNSIGNED-PAYLOAD",
        "signed_body_header_type": auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
    }

    def put(index: int, block: bytes, digest: bytes) -> int:
        from io import BytesIO

        fields = http.HttpHeaders([("host", f"{url.host}:{url.port}"), *headers(digest).items()])
        fields.add("content-length", str(len(block)))
        request = http.HttpRequest("PUT", path(index), fields, BytesIO(block))
        auth.aws_sign_request(request, auth.AwsSigningConfig(**config)).result()
        stream = connection.request(request)
        stream.activate()
        return int(stream.completion_future.result())

    return put


KINDS = {"own": own, "urllib3": with_urllib3, "boto3": with_boto3, "awscrt": with_awscrt}


def main() -> None:
    """Measure every connection and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=4000, help="blocks of each round")
    count = parser.parse_args().blocks
    block = os.urandom(BLOCK_BYTES)
    digest = hashlib.sha256(block).digest()
    kinds = {name: kind for name, kind in KINDS.items() if name != "awscrt" or find_spec("awscrt")}
    print(f"{platform.python_version()}, {ssl.OPENSSL_VERSION}, {os.cpu_count()} cores, {count} blocks")
    print(f"{'connection':<12}{'TLS':<5}{'CPU ms/block':>15}{'x own':>8}{'blocks/s':>17}")
    for tls in (False, True):
        with null_sink(tls=tls) as sink:
            senders = {name: kind(sink) for name, kind in kinds.items()}
            best = dict.fromkeys(senders, (float("inf"), float("inf")))
            for _ in range(ROUNDS):
                for name, send in senders.items():
                    began, cpu = time.perf_counter(), time.process_time()
                    for index in range(count):
                        if send(index, block, digest) != 201:
                            raise SystemExit(f"{name}: the sink refused a block.")
                    found = time.process_time() - cpu, time.perf_counter() - began
                    best[name] = min(best[name], found)
        for name, (cpu, seconds) in best.items():
            ratio = cpu / best["own"][0]
            figures = f"{cpu / count * 1e3:>15.2f}{ratio:>8.2f}{count / seconds:>17.0f}"
            print(f"{name:<12}{'yes' if tls else 'no':<5}{figures}")


if __name__ == "__main__":
    main()
