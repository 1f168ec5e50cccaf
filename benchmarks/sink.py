"""The receiver of the benchmarks: nginx on 127.0.0.1, fast enough that the client is the bottleneck.

It reads every PutSnapshotBlock, checks its length and stores nothing. It accepts multipart uploads to the
bucket `BUCKET`, too: the bucket is always empty and has one unfinished upload.

nginx discards an unused body 4 KiB at a time, with 128 system calls for each block. With `mirror` it reads
the body in large pieces, which takes half the CPU time. It would write a body that is larger than its buffer
to a file, and the disk would limit the speed, so the buffer for S3 is larger than a part.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET, KEY = "benchmark", "image"
MAKE_CERTIFICATE = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2
-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1
"""
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  map "$request_method $content_length" $wrong_length {{ default 0; '~^PUT (?!524288$)' 1; }}
  map "$request_method $args" $s3_answer {{
    default '';
    '~^POST .*uploads' '<InitiateMultipartUploadResult>{id}</InitiateMultipartUploadResult>';
    '~^POST' '<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>';
    '~^GET .*uploads' '<ListMultipartUploadsResult><Upload><Key>{key}</Key>{id}
      <Initiated>2026-01-01T00:00:00Z</Initiated><ChecksumAlgorithm>SHA256</ChecksumAlgorithm>
      </Upload></ListMultipartUploadsResult>';
    '~^GET' '<ListPartsResult></ListPartsResult>';
  }}
  server {{
    listen 127.0.0.1:{port}{tls};
    {certificate}
    location /snapshots/ {{ mirror /nothing; try_files /nothing @taken; }}
    location @taken {{
      if ($wrong_length) {{ return 400 '{{}}'; }}
      default_type application/json;
      return 201 '{{}}';
    }}
    location = /nothing {{ internal; return 204; }}
    location = /{bucket} {{ default_type application/xml; return 200 $s3_answer; }}
    location /{bucket}/ {{ client_body_buffer_size 16m; mirror /nothing; try_files /nothing @s3; }}
    location @s3 {{
      if ($request_method = HEAD) {{ return 404; }}
      default_type application/xml;
      add_header ETag '"00000000000000000000000000000000"';
      if ($request_method = POST) {{ return 201 $s3_answer; }}  # nginx answers 304 to If-None-Match
      return 200 $s3_answer;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Sink:
    """A running sink."""

    url: str
    certificate: Path | None


@contextmanager
def null_sink(*, tls: bool = False) -> Iterator[Sink]:
    """Serve until the block ends.

    Parameters
    ----------
    tls
        Whether to encrypt, as AWS does, with a temporary certificate.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SystemExit("The benchmark needs nginx (Debian: nginx-light).")
    folder = Path(tempfile.mkdtemp(prefix="vmsnix-sink-"))
    port, certificate = _free_port(), None
    lines = ""
    if tls:
        certificate = folder / "certificate.pem"
        lines = f"ssl_certificate {certificate}; ssl_certificate_key {folder}/key.pem;"
        subprocess.run(
            [*MAKE_CERTIFICATE.split(), "-keyout", str(folder / "key.pem"), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder,
            port=port,
            tls=" ssl" if tls else "",
            certificate=lines,
            bucket=BUCKET,
            key=KEY,
            id="<UploadId>1</UploadId>",
        )
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(configuration), "-e", "stderr"])
    try:
        _wait(port, process)
        yield Sink(f"http{'s' if tls else ''}://127.0.0.1:{port}", certificate)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if process.poll() is not None:
            raise SystemExit("nginx did not start.")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("nginx does not answer.")
