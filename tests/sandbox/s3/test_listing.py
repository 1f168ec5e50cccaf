"""Listing objects.

Source: ListObjectsV2 and ListObjects in the Amazon S3 API Reference.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.s3.objects import list_keys

KEYS = ["a", "a/1", "a/2", "a/b/1", "b", "c/1", "ü x+y%"]


@pytest.fixture
def bucket(aws: SandboxClients) -> str:
    name = aws.bucket()
    for key in KEYS:
        aws.s3.put_object(Bucket=name, Key=key, Body=key.encode())
    return name


def test_all_keys_in_order(aws: SandboxClients, bucket: str) -> None:
    answer = aws.s3.list_objects_v2(Bucket=bucket)
    assert [entry["Key"] for entry in answer["Contents"]] == KEYS
    assert (answer["KeyCount"], answer["IsTruncated"]) == (len(KEYS), False)
    entry = answer["Contents"][0]
    assert (entry["Size"], entry["StorageClass"], entry["ChecksumAlgorithm"]) == (1, "STANDARD", ["CRC32"])
    assert "Owner" not in entry
    assert "Owner" in aws.s3.list_objects_v2(Bucket=bucket, FetchOwner=True)["Contents"][0]


def test_a_delimiter_makes_folders(aws: SandboxClients, bucket: str) -> None:
    answer = aws.s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [entry["Key"] for entry in answer["Contents"]] == ["a", "b", "ü x+y%"]
    assert [entry["Prefix"] for entry in answer["CommonPrefixes"]] == ["a/", "c/"]
    answer = aws.s3.list_objects_v2(Bucket=bucket, Delimiter="/", Prefix="a/")
    assert [entry["Key"] for entry in answer["Contents"]] == ["a/1", "a/2"]
    assert [entry["Prefix"] for entry in answer["CommonPrefixes"]] == ["a/b/"]


def test_starts_after_a_key(aws: SandboxClients, bucket: str) -> None:
    answer = aws.s3.list_objects_v2(Bucket=bucket, StartAfter="a/2")
    assert [entry["Key"] for entry in answer["Contents"]] == KEYS[3:]
    assert answer["StartAfter"] == "a/2"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_pages_together_list_everything(
    aws: SandboxClients, bucket: str, size: int, operation: str, delimiter: str
) -> None:
    params = {"Bucket": bucket} | ({"Delimiter": delimiter} if delimiter else {})
    pages = list(aws.s3.get_paginator(operation).paginate(**params, PaginationConfig={"PageSize": size}))
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
    assert keys == (["a", "b", "ü x+y%"] if delimiter else KEYS)
    assert prefixes == (["a/", "c/"] if delimiter else [])
    assert all(len(page.get("Contents", [])) + len(page.get("CommonPrefixes", [])) <= size for page in pages)


def test_an_invalid_token_is_refused(aws: SandboxClients, bucket: str) -> None:
    with refused("InvalidArgument", "continuation token"):
        aws.s3.list_objects_v2(Bucket=bucket, ContinuationToken="§")


def test_no_keys_at_all(aws: SandboxClients) -> None:
    answer = aws.s3.list_objects_v2(Bucket=aws.bucket("empty"))
    assert (answer["KeyCount"], answer["IsTruncated"], "Contents" in answer) == (0, False, False)
    assert aws.s3.list_objects_v2(Bucket="empty", MaxKeys=0)["IsTruncated"] is False


@given(
    keys=st.sets(st.text(alphabet="ab/é\U0001f600", min_size=1, max_size=6), max_size=12),
    prefix=st.sampled_from(["", "a", "a/", "é"]),
    delimiter=st.sampled_from(["", "/", "b"]),
    limit=st.integers(1, 4),
)
def test_pages_show_every_key_once(keys: set[str], prefix: str, delimiter: str, limit: int) -> None:
    shown: list[str] = []
    after = ""
    for _ in range(len(keys) + 1):  # each page shows at least one key
        page = list_keys(keys, prefix, delimiter, after, limit)
        shown += page.items + page.prefixes
        if not page.truncated:
            break
        after = page.last
    assert not page.truncated
    expected = set()
    for key in keys:
        if key.startswith(prefix):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            expected.add(key if cut < 0 else key[: cut + len(delimiter)])
    assert sorted(shown) == sorted(expected)
