"""boto3 with awscrt: its checksums, its own client for S3, and its signatures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.foreign.conftest import BUCKET, REGION, program

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

SCRIPT = Path(__file__).with_name("boto3_crt.py")


def test_boto3_with_awscrt_uses_s3(aws: Sandbox, tmp_path: Path) -> None:
    python = program("boto3", "python", aws, tmp_path)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(12 * 2**20))
    found = json.loads(python.run(str(SCRIPT), BUCKET, str(disk), AWS_REGION=REGION))
    whole, parts = {"ChecksumType": "FULL_OBJECT"}, {"ChecksumType": "COMPOSITE"}
    text, small, large = found["CRC64NVME"]
    assert (text, small) == ("123456", {"ChecksumCRC64NVME": "CVmbZh4IWzA=", **whole})
    assert large.keys() == small.keys()
    assert large["ChecksumType"] == "FULL_OBJECT"
    text, small, large = found["CRC32C"]
    assert (text, small) == ("123456", {"ChecksumCRC32C": "QTVxhg==", **whole})
    assert large == {"ChecksumCRC32C": large["ChecksumCRC32C"], **parts}
    assert found["crt"] == {"ChecksumCRC32": found["crt"]["ChecksumCRC32"], **parts}
    assert found["crt"]["ChecksumCRC32"].endswith("-3")  # three parts
    assert found["v4a"]["Code"] == "NotImplemented"
    assert "Signature Version 4A" in found["v4a"]["Message"]
    for name in ("CRC64NVME", "CRC32C", "crt"):
        assert disk.with_name(f"disk.raw.{name}").read_bytes() == disk.read_bytes()
