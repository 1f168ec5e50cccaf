"""Objects: write, read, copy, delete, tags, attributes.

Sources: the operations' pages in the Amazon S3 API Reference; "Checking object integrity" and
"Conditional requests" in the Amazon S3 User Guide; RFC 9110 for ranges; AWS's answers of February 2026 in
LocalStack's ``test_s3.snapshot.json`` and ``test_s3_api.snapshot.json``.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from datetime import timedelta
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.sandbox.clients import ONCE, SandboxClients, refused, sha256
from vmsnix_ops.sandbox.storage import ObjectReader, open_object
from vmsnix_ops.sandbox.wire.checksums import encode_base64, new_checksum

DATA = bytes(range(256)) * 4


@pytest.fixture
def bucket(aws: SandboxClients) -> str:
    return aws.bucket()


def test_an_object_is_read_as_it_was_stored(aws: SandboxClients, bucket: str) -> None:
    answer = aws.s3.put_object(
        Bucket=bucket,
        Key="k",
        Body=DATA,
        ContentType="application/x-disk",
        ContentEncoding="gzip",
        CacheControl="no-store",
        ContentDisposition="attachment",
        Metadata={"digest": "abc"},
        Tagging="a=1&b=two%20words",
    )
    etag = f'"{hashlib.md5(DATA).hexdigest()}"'
    assert (answer["ETag"], answer["ServerSideEncryption"]) == (etag, "AES256")
    for found in (aws.s3.get_object(Bucket=bucket, Key="k"), aws.s3.head_object(Bucket=bucket, Key="k")):
        assert found["ContentLength"] == len(DATA)
        assert found["ETag"] == etag
        assert found["ContentType"] == "application/x-disk"
        assert found["ContentEncoding"] == "gzip"
        assert found["CacheControl"] == "no-store"
        assert found["ContentDisposition"] == "attachment"
        assert found["Metadata"] == {"digest": "abc"}
        assert found["AcceptRanges"] == "bytes"
        assert "StorageClass" not in found
    tags = aws.s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}]


def test_the_default_content_type_is_octets(aws: SandboxClients, bucket: str) -> None:
    aws.send("PUT", f"/{bucket}/k", b"x")
    assert aws.s3.head_object(Bucket=bucket, Key="k")["ContentType"] == "binary/octet-stream"


@pytest.mark.parametrize("length", [0, 1, 262_143, 262_144, 262_145, 1_000_000])
def test_keeps_every_length(aws: SandboxClients, bucket: str, length: int) -> None:
    data = (DATA * 4000)[:length]
    aws.s3.put_object(Bucket=bucket, Key="k", Body=data)
    assert aws.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == data


@pytest.mark.parametrize(
    ("byte_range", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1000-", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=1000-99999", 1000, 1023),
        ("bytes=-99999", 0, 1023),
    ],
)
def test_answers_ranges(aws: SandboxClients, bucket: str, byte_range: str, first: int, last: int) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    found = aws.s3.get_object(Bucket=bucket, Key="k", Range=byte_range)
    assert found["Body"].read() == DATA[first : last + 1]
    assert found["ContentRange"] == f"bytes {first}-{last}/1024"
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 206


@pytest.mark.parametrize("byte_range", ["bytes=1024-", "bytes=-0", "bytes=5000-6000"])
def test_refuses_ranges_after_the_end(aws: SandboxClients, bucket: str, byte_range: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    with refused("InvalidRange"):
        aws.s3.get_object(Bucket=bucket, Key="k", Range=byte_range)


def test_ignores_invalid_ranges(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    found = aws.s3.get_object(Bucket=bucket, Key="k", Range="lines=1-2")
    assert (found["ContentLength"], found["ResponseMetadata"]["HTTPStatusCode"]) == (1024, 200)


def test_a_request_can_override_headers_of_the_answer(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    found = aws.s3.get_object(Bucket=bucket, Key="k", ResponseContentType="text/plain")
    assert found["ContentType"] == "text/plain"


def test_missing_objects(aws: SandboxClients, bucket: str) -> None:
    with refused("NoSuchKey"):
        aws.s3.get_object(Bucket=bucket, Key="nothing")
    with refused("404"):
        aws.s3.head_object(Bucket=bucket, Key="nothing")
    with refused("KeyTooLongError"):
        aws.s3.put_object(Bucket=bucket, Key="k" * 1025, Body=b"")


# Checksums


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def test_the_crc32_of_boto3_is_stored(aws: SandboxClients, bucket: str) -> None:
    answer = aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    assert (answer["ChecksumCRC32"], answer["ChecksumType"]) == (crc32(DATA), "FULL_OBJECT")
    found = aws.s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert found["ChecksumCRC32"] == crc32(DATA)
    assert "ChecksumCRC32" not in aws.s3.head_object(Bucket=bucket, Key="k")


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "crc32", "crc32c", "crc64nvme"])
def test_a_sent_checksum_is_checked_and_stored(aws: SandboxClients, bucket: str, algorithm: str) -> None:
    computed = new_checksum(algorithm)
    computed.update(DATA)
    sent = {f"Checksum{algorithm.upper()}": encode_base64(computed.digest())}
    answer = aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, **sent)
    assert sent.items() <= answer.items()
    with refused("BadDigest"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA + b"!", **sent)
    assert aws.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == DATA


def test_compares_content_md5(aws: SandboxClients, bucket: str) -> None:
    right = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ContentMD5=right)
    with refused("BadDigest", "Content-MD5"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA + b"!", ContentMD5=right)
    with refused("InvalidDigest"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ContentMD5="short")


def crc64nvme(data: bytes) -> str:
    computed = new_checksum("crc64nvme")
    computed.update(data)
    return encode_base64(computed.digest())


def test_an_upload_without_a_checksum_gets_a_crc64nvme(aws: SandboxClients, bucket: str) -> None:
    status, _ = aws.send("PUT", f"/{bucket}/k", DATA)
    assert status == 200
    expected = {"ChecksumCRC64NVME": crc64nvme(DATA), "ChecksumType": "FULL_OBJECT"}
    assert expected.items() <= aws.s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED").items()
    attributes = ["Checksum", "ObjectParts"]
    assert (
        aws.s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=attributes)["Checksum"]
        == expected
    )
    assert aws.s3.list_objects_v2(Bucket=bucket)["Contents"][0]["ChecksumAlgorithm"] == ["CRC64NVME"]
    copied = aws.s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")["CopyObjectResult"]
    assert copied["ChecksumCRC64NVME"] == crc64nvme(DATA)


def test_the_checksum_of_an_upload_without_one_is_in_its_answer(aws: SandboxClients, bucket: str) -> None:
    config = ONCE.merge(Config(request_checksum_calculation="when_required"))
    answer = aws.other_client("s3", config=config).put_object(Bucket=bucket, Key="k", Body=b"123456789")
    assert answer["ChecksumCRC64NVME"] == "rosUhgp5mIg="  # the check value of the CRC catalogue
    assert answer["ChecksumType"] == "FULL_OBJECT"


def test_an_invalid_checksum_is_refused(aws: SandboxClients, bucket: str) -> None:
    with refused("InvalidRequest", "x-amz-checksum-sha256"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ChecksumSHA256="short")


def test_a_refused_upload_leaves_no_file(aws: SandboxClients, bucket: str) -> None:
    objects = aws.sandbox.state.folder / "objects"
    before = set(objects.rglob("*/*"))
    with refused("BadDigest"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ChecksumSHA256=sha256(b""))
    assert set(objects.rglob("*/*")) == before


# Conditions


def test_a_write_can_require_that_the_key_is_new(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=b"first", IfNoneMatch="*")
    with refused("PreconditionFailed"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=b"second", IfNoneMatch="*")
    assert aws.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"first"


def test_a_write_can_require_a_known_etag(aws: SandboxClients, bucket: str) -> None:
    etag = aws.s3.put_object(Bucket=bucket, Key="k", Body=b"first")["ETag"]
    aws.s3.put_object(Bucket=bucket, Key="k", Body=b"second", IfMatch=etag)
    with refused("PreconditionFailed"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=b"third", IfMatch=etag)
    with refused("NoSuchKey"):
        aws.s3.put_object(Bucket=bucket, Key="new", Body=b"x", IfMatch=etag)


@pytest.mark.parametrize(
    ("condition", "header"),
    [
        ({"IfMatch": "*"}, "If-Match"),
        ({"IfNoneMatch": '"etag"'}, "If-None-Match"),
        ({"IfMatch": '"etag"', "IfNoneMatch": "*"}, "If-Match,If-None-Match"),
    ],
)
def test_s3_does_not_implement_other_conditions_of_writes(
    aws: SandboxClients, bucket: str, condition: dict[str, str], header: str
) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    for call in (
        lambda: aws.s3.put_object(Bucket=bucket, Key="k", Body=b"x", **condition),
        lambda: aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/k", **condition),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        error = caught.value.response["Error"]
        assert (error["Code"], error["Header"]) == ("NotImplemented", header)


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ({"IfMatch": "right"}, "ok"),
        ({"IfMatch": '"other"'}, "PreconditionFailed"),
        ({"IfNoneMatch": "right"}, "304"),
        ({"IfNoneMatch": '"other"'}, "ok"),
        ({"IfModifiedSince": timedelta(0)}, "304"),
        ({"IfModifiedSince": timedelta(minutes=1)}, "ok"),  # S3 ignores a time in the future
        ({"IfModifiedSince": timedelta(minutes=-1)}, "ok"),
        ({"IfUnmodifiedSince": timedelta(minutes=-1)}, "PreconditionFailed"),
        ({"IfUnmodifiedSince": timedelta(minutes=1)}, "ok"),
        ({"IfMatch": "right", "IfUnmodifiedSince": timedelta(minutes=-1)}, "ok"),
        ({"IfNoneMatch": '"other"', "IfModifiedSince": timedelta(0)}, "ok"),
    ],
)
def test_reads_have_conditions(
    aws: SandboxClients, bucket: str, condition: dict[str, Any], outcome: str
) -> None:
    etag = aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)["ETag"]
    modified = aws.s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    params = {
        name: modified + value if isinstance(value, timedelta) else value.replace("right", etag)
        for name, value in condition.items()
    }
    if outcome == "ok":
        assert aws.s3.get_object(Bucket=bucket, Key="k", **params)["Body"].read() == DATA
        return
    with refused(outcome):
        aws.s3.get_object(Bucket=bucket, Key="k", **params)


@pytest.mark.parametrize("minutes", [0, 10])
def test_an_object_is_unmodified_since_the_date_of_its_answer(
    aws: SandboxClients, bucket: str, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that got a Date in the future, because its own clock is wrong, agrees with the sandbox."""
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    monkeypatch.setattr(aws.sandbox.clock, "skew", timedelta(minutes=minutes))
    headers = aws.s3.head_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPHeaders"]
    with refused("304"):
        aws.s3.get_object(Bucket=bucket, Key="k", IfModifiedSince=headers["date"])
    with refused("304"):
        aws.s3.get_object(Bucket=bucket, Key="k", IfModifiedSince=headers["last-modified"])


# Delete, copy, tags, attributes


def test_deleting_an_unknown_key_succeeds(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    aws.s3.delete_object(Bucket=bucket, Key="k")
    aws.s3.delete_object(Bucket=bucket, Key="k")
    assert aws.s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_conditional_delete_needs_the_object(aws: SandboxClients, bucket: str) -> None:
    for condition in ("*", '"d41d8cd98f00b204e9800998ecf8427e"'):
        with refused("NoSuchKey"):
            aws.s3.delete_object(Bucket=bucket, Key="none", IfMatch=condition)
    wanted = {"Objects": [{"Key": "none", "ETag": '"other"'}]}
    assert aws.s3.delete_objects(Bucket=bucket, Delete=wanted)["Errors"][0]["Code"] == "NoSuchKey"
    etag = aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)["ETag"]
    with refused("PreconditionFailed"):
        aws.s3.delete_object(Bucket=bucket, Key="k", IfMatch='"other"')
    aws.s3.delete_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert aws.s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_deletes_many(aws: SandboxClients, bucket: str) -> None:
    for number in range(3):
        aws.s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"")
    etag = aws.s3.head_object(Bucket=bucket, Key="k0")["ETag"]
    wanted = [{"Key": "k0", "ETag": etag}, {"Key": "k1", "ETag": '"other"'}, {"Key": "none"}]
    answer = aws.s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted})
    assert [entry["Key"] for entry in answer["Deleted"]] == ["k0", "none"]
    assert [(entry["Key"], entry["Code"]) for entry in answer["Errors"]] == [("k1", "PreconditionFailed")]
    assert "Deleted" not in aws.s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": "k2"}], "Quiet": True}
    )
    assert [e["Key"] for e in aws.s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k1"]


def test_a_copy_is_independent_of_its_source(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="from", Body=DATA, Metadata={"a": "1"}, Tagging="t=1")
    answer = aws.s3.copy_object(Bucket=bucket, Key="to", CopySource={"Bucket": bucket, "Key": "from"})
    assert answer["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    aws.s3.delete_object(Bucket=bucket, Key="from")
    found = aws.s3.get_object(Bucket=bucket, Key="to")
    assert (found["Body"].read(), found["Metadata"], found["TagCount"]) == (DATA, {"a": "1"}, 1)


def test_a_copy_can_replace_metadata(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, Metadata={"a": "1"})
    source = {"Bucket": bucket, "Key": "k"}
    with refused("InvalidRequest", "copy an object to itself"):
        aws.s3.copy_object(Bucket=bucket, Key="k", CopySource=source)
    aws.s3.copy_object(
        Bucket=bucket, Key="k", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"}
    )
    found = aws.s3.get_object(Bucket=bucket, Key="k")
    assert (found["Body"].read(), found["Metadata"]) == (DATA, {"b": "2"})


@pytest.mark.parametrize("directive", ["COPY", "REPLACE"])
def test_a_copy_has_redirect_class_and_encryption_of_its_request(
    aws: SandboxClients, bucket: str, directive: str
) -> None:
    own = {
        "WebsiteRedirectLocation": "/old",
        "StorageClass": "STANDARD_IA",
        "ServerSideEncryption": "aws:kms",
    }
    aws.s3.put_object(Bucket=bucket, Key="from", Body=DATA, CacheControl="no-store", **own)
    params = {"Bucket": bucket, "CopySource": f"{bucket}/from", "MetadataDirective": directive}
    aws.s3.copy_object(**params, Key="plain")
    found = aws.s3.head_object(Bucket=bucket, Key="plain")
    assert {"WebsiteRedirectLocation", "StorageClass"}.isdisjoint(found)
    assert found["ServerSideEncryption"] == "AES256"
    assert found.get("CacheControl") == ("no-store" if directive == "COPY" else None)
    aws.s3.copy_object(**params, Key="other", **own | {"WebsiteRedirectLocation": "/new"})
    found = aws.s3.head_object(Bucket=bucket, Key="other")
    assert (found["WebsiteRedirectLocation"], found["StorageClass"]) == ("/new", "STANDARD_IA")
    assert found["ServerSideEncryption"] == "aws:kms"


def test_a_copy_to_itself_may_change_only_the_encryption(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ServerSideEncryption="aws:kms")
    itself = {"Bucket": bucket, "Key": "k", "CopySource": f"{bucket}/k"}
    assert aws.s3.copy_object(**itself)["ServerSideEncryption"] == "AES256"
    with refused("InvalidRequest", "copy an object to itself"):
        aws.s3.copy_object(**itself)
    aws.s3.copy_object(**itself, ServerSideEncryption="AES256")
    default = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    aws.s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=default)
    aws.s3.copy_object(**itself)


@pytest.mark.parametrize(
    ("condition", "failed"),
    [
        ({"CopySourceIfUnmodifiedSince": timedelta(minutes=-1)}, "If-Unmodified-Since"),
        ({"CopySourceIfModifiedSince": timedelta(0)}, "If-Modified-Since"),
        ({"CopySourceIfModifiedSince": timedelta(minutes=1)}, ""),
        ({"CopySourceIfUnmodifiedSince": timedelta(0)}, ""),
    ],
)
def test_a_copy_has_conditions_on_the_time_of_its_source(
    aws: SandboxClients, bucket: str, condition: dict[str, timedelta], failed: str
) -> None:
    aws.s3.put_object(Bucket=bucket, Key="from", Body=DATA)
    modified = aws.s3.head_object(Bucket=bucket, Key="from")["LastModified"]
    params = {name: modified + step for name, step in condition.items()}
    if not failed:
        aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/from", **params)
        return
    with pytest.raises(ClientError) as caught:
        aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/from", **params)
    assert caught.value.response["Error"]["Condition"] == f"x-amz-copy-source-{failed}"


def test_a_copy_checks_the_owner_of_its_source(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="from", Body=DATA)
    params = {"Bucket": bucket, "Key": "to", "CopySource": f"{bucket}/from"}
    aws.s3.copy_object(**params, ExpectedSourceBucketOwner=aws.account)
    with refused("AccessDenied"):
        aws.s3.copy_object(**params, ExpectedSourceBucketOwner="999999999999")


def test_a_copy_checks_its_source(aws: SandboxClients, bucket: str) -> None:
    with refused("NoSuchKey"):
        aws.s3.copy_object(Bucket=bucket, Key="to", CopySource={"Bucket": bucket, "Key": "from"})
    aws.s3.put_object(Bucket=bucket, Key="from", Body=DATA)
    with refused("PreconditionFailed"):
        aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/from", CopySourceIfMatch='"other"')


def test_tags_of_objects(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    tags = [{"Key": "a", "Value": "1"}]
    aws.s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tags})
    assert aws.s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags
    aws.s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert aws.s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    many = [{"Key": str(n), "Value": ""} for n in range(11)]
    with refused("BadRequest", "cannot be greater than 10"):
        aws.s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": many})


@pytest.mark.parametrize("tagging", ["a&b", "a&&b", "&a=&b="])
def test_a_tag_in_a_header_needs_no_value(aws: SandboxClients, bucket: str, tagging: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, Tagging=tagging)
    tags = aws.s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": ""}, {"Key": "b", "Value": ""}]


@pytest.mark.parametrize("tagging", ["a=1&a=2", "a=1,b=2"])
def test_tags_in_another_form_are_refused(aws: SandboxClients, bucket: str, tagging: str) -> None:
    with refused("InvalidArgument", "without tag name duplicates"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, Tagging=tagging)


def test_public_acls_are_refused(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ACL="bucket-owner-full-control")
    with refused("AccessControlListNotSupported"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ACL="public-read")


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_not_read(aws: SandboxClients, bucket: str, storage_class: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, StorageClass=storage_class)
    assert aws.s3.head_object(Bucket=bucket, Key="k")["StorageClass"] == storage_class
    for call in (
        lambda: aws.s3.get_object(Bucket=bucket, Key="k"),
        lambda: aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/k"),
    ):
        with refused("InvalidObjectState", "not valid for the object's storage class"):
            call()


def test_an_unknown_storage_class_is_refused(aws: SandboxClients, bucket: str) -> None:
    with refused("InvalidStorageClass", "The storage class you specified is not valid"):
        aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, StorageClass="FakeClass")


def test_objects_have_the_acl_of_their_owner(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    grants = aws.s3.get_object_acl(Bucket=bucket, Key="k")["Grants"]
    assert [grant["Permission"] for grant in grants] == ["FULL_CONTROL"]
    with refused("NoSuchKey"):
        aws.s3.get_object_acl(Bucket=bucket, Key="none")


def test_attributes(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA, ChecksumSHA256=sha256(DATA))
    attributes = ["ETag", "Checksum", "ObjectSize", "StorageClass", "ObjectParts"]
    found = aws.s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=attributes)
    assert found["ETag"] == hashlib.md5(DATA).hexdigest()
    assert found["Checksum"] == {"ChecksumSHA256": sha256(DATA), "ChecksumType": "FULL_OBJECT"}
    assert (found["ObjectSize"], found["StorageClass"]) == (1024, "STANDARD")
    assert "ObjectParts" not in found


# Objects as files


def test_other_services_read_an_object_as_one_file(aws: SandboxClients, bucket: str) -> None:
    state = aws.sandbox.state
    aws.s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    with open_object(state.tables, state.folder, bucket, "k") as reader:
        assert (reader.size, reader.read()) == (1024, DATA)
    with pytest.raises(FileNotFoundError, match="s3://images/none"):
        open_object(state.tables, state.folder, bucket, "none")


def test_a_reader_reads_across_parts(tmp_path: Any) -> None:
    pieces = [b"abc", b"", b"defg", b"h"]
    parts = []
    for number, piece in enumerate(pieces):
        path = tmp_path / str(number)
        path.write_bytes(piece)
        parts.append((path, len(piece)))
    whole = b"".join(pieces)
    with ObjectReader(parts) as reader:
        for start in range(len(whole) + 2):
            for length in range(len(whole) + 2):
                reader.seek(start)
                assert reader.read(length) == whole[start : start + length]
        assert reader.seek(-2, 2) == 6
        assert reader.seek(1, 1) == 7
        assert reader.tell() == 7
        with pytest.raises(ValueError, match="negative seek position"):
            reader.seek(-1)
