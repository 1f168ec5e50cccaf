"""Parts of a file, and their signed checksums."""

from __future__ import annotations

import base64
import hashlib
import io

import boto3
from botocore.awsrequest import AWSResponse
from hypothesis import given
from hypothesis import strategies as st
from urllib3 import HTTPResponse

from vmsnix_ops.aws import buckets
from vmsnix_ops.aws.session import client
from vmsnix_ops.disk.survey import MOST_PARTS


@given(st.integers(min_value=0, max_value=5 * 2**40))
def test_parts_cover_the_file_and_stay_within_what_s3_allows(size):
    if size > 10 * 2**30:
        size -= size % 2**20  # keep the list of parts short
    parts = buckets.split_parts(size)
    assert len(parts) <= MOST_PARTS
    assert parts[0].offset == 0
    assert sum(part.bytes for part in parts) == size
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all(part.bytes >= 5 * 2**20 for part in parts[:-1])


def test_the_same_size_always_gives_the_same_parts():
    assert buckets.split_parts(3 * 2**30 + 1) == buckets.split_parts(3 * 2**30 + 1)


def test_a_part_is_hashed_once_and_its_checksum_is_signed(monkeypatch):
    """With a checksum given, botocore would hash the part again for its signature, over TLS too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    s3, seen = client(boto3.Session(region_name="us-east-1"), "s3"), {}

    def answer(request, **_more):
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return AWSResponse(request.url, 200, {"etag": '"0"'}, HTTPResponse(io.BytesIO()))

    s3.meta.events.register("before-send.s3.UploadPart", answer)
    checksum = base64.b64encode(hashlib.sha256(b"part").digest()).decode()
    where = {"Bucket": "some-images", "Key": "k", "UploadId": "1", "PartNumber": 1}
    s3.upload_part(**where, Body=b"part", ChecksumSHA256=checksum)
    text = {name: value.decode() if isinstance(value, bytes) else value for name, value in seen.items()}
    assert text["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert text["x-amz-checksum-sha256"] == checksum
    assert "x-amz-checksum-sha256" in text["authorization"].partition("SignedHeaders=")[2]
