"""Multipart uploads.

Sources: the operations' pages in the Amazon S3 API Reference; "Checking object integrity" and "Amazon S3
multipart upload limits" in the Amazon S3 User Guide; AWS's answers of February 2026 in LocalStack's
``test_s3.snapshot.json`` and ``test_s3_list_operations.snapshot.json``.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.sandbox.clients import SandboxClients, refused, sha256
from vmsnix_ops.sandbox.wire.checksums import encode_base64, new_checksum

MIB = 2**20
FIRST, LAST = b"\xa5" * (5 * MIB), b"\x5a" * 12_345


@pytest.fixture
def bucket(aws: SandboxClients) -> str:
    return aws.bucket()


def begin(aws: SandboxClients, key: str = "k", **more: Any) -> str:
    upload: str = aws.s3.create_multipart_upload(Bucket="images", Key=key, **more)["UploadId"]
    return upload


def send(
    aws: SandboxClients, upload: str, number: int, data: bytes, key: str = "k", **more: Any
) -> dict[str, Any]:
    answer = aws.s3.upload_part(
        Bucket="images", Key=key, UploadId=upload, PartNumber=number, Body=data, **more
    )
    # S3 refuses checksums of parts when the upload has no algorithm; boto3 always sends one.
    chosen = any(name.startswith("Checksum") for name in more)
    shown = {name: value for name, value in answer.items() if chosen and name.startswith("Checksum")}
    return {"PartNumber": number, "ETag": answer["ETag"]} | shown


def complete(
    aws: SandboxClients, upload: str, parts: list[dict[str, Any]], key: str = "k", **more: Any
) -> dict[str, Any]:
    listed = {"Parts": parts}
    answer: dict[str, Any] = aws.s3.complete_multipart_upload(
        Bucket="images", Key=key, UploadId=upload, MultipartUpload=listed, **more
    )
    return answer


def test_parts_become_one_object(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws, ChecksumAlgorithm="SHA256", Metadata={"a": "1"}, ContentType="application/x-disk")
    parts = [send(aws, upload, n, data, ChecksumAlgorithm="SHA256") for n, data in ((1, FIRST), (2, LAST))]
    answer = complete(aws, upload, parts)
    md5s = b"".join(hashlib.md5(data).digest() for data in (FIRST, LAST))
    shas = b"".join(hashlib.sha256(data).digest() for data in (FIRST, LAST))
    assert answer["ETag"] == f'"{hashlib.md5(md5s).hexdigest()}-2"'
    assert (answer["ChecksumSHA256"], answer["ChecksumType"]) == (f"{sha256(shas)}-2", "COMPOSITE")
    found = aws.s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == FIRST + LAST
    assert (found["Metadata"], found["ContentType"]) == ({"a": "1"}, "application/x-disk")
    assert found["ChecksumSHA256"] == f"{sha256(shas)}-2"
    across = aws.s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={5 * MIB - 2}-{5 * MIB + 1}")
    assert across["Body"].read() == FIRST[-2:] + LAST[:2]
    second = aws.s3.get_object(Bucket=bucket, Key="k", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (LAST, 2)
    shown = aws.s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectParts"])
    assert shown["Checksum"]["ChecksumSHA256"] == sha256(shas)
    assert [part["Size"] for part in shown["ObjectParts"]["Parts"]] == [len(FIRST), len(LAST)]


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C"])
def test_a_crc_can_cover_the_full_object(aws: SandboxClients, bucket: str, algorithm: str) -> None:
    member, name = f"Checksum{algorithm}", algorithm.lower()
    small = b"only part"
    upload = begin(aws, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT")
    whole = new_checksum(name)
    whole.update(small)
    right = encode_base64(whole.digest())
    parts = [send(aws, upload, 1, small, **{member: right})]
    with refused("BadDigest"):
        complete(aws, upload, parts, **{member: "AAAAAA=="})
    answer = complete(aws, upload, parts, **{member: right}, MpuObjectSize=len(small))
    assert (answer[member], answer["ChecksumType"]) == (right, "FULL_OBJECT")


def test_an_upload_without_an_algorithm_gets_a_crc64nvme(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    parts = [send(aws, upload, n, data) for n, data in ((1, FIRST), (2, LAST))]
    listed = aws.s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    assert "ChecksumAlgorithm" not in listed
    assert not any(name.startswith("Checksum") for part in listed["Parts"] for name in part)
    wrong = aws.s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=2, Body=LAST)
    with refused("InvalidPart"):
        complete(aws, upload, [parts[0], parts[1] | {"ChecksumCRC32": wrong["ChecksumCRC32"]}])
    for kind in ("FULL_OBJECT", "COMPOSITE"):
        with refused("InvalidRequest", "created using the null checksum mode"):
            complete(aws, upload, parts, ChecksumType=kind)
    whole = new_checksum("crc64nvme")
    whole.update(FIRST + LAST)
    expected = {"ChecksumCRC64NVME": encode_base64(whole.digest()), "ChecksumType": "FULL_OBJECT"}
    assert expected.items() <= complete(aws, upload, parts).items()
    assert expected.items() <= aws.s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED").items()
    attributes = ["Checksum", "ObjectParts"]
    found = aws.s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=attributes)
    assert (found["Checksum"], found["ObjectParts"]) == (expected, {"TotalPartsCount": 2})


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_checksum_of_a_part_has_its_type(aws: SandboxClients, bucket: str, kind: str, count: int) -> None:
    upload = begin(aws, ChecksumAlgorithm="CRC32", ChecksumType=kind)
    data = [FIRST, LAST][-count:]
    parts = [send(aws, upload, n, one, ChecksumAlgorithm="CRC32") for n, one in enumerate(data, 1)]
    complete(aws, upload, parts)
    found = aws.s3.get_object(Bucket=bucket, Key="k", PartNumber=count, ChecksumMode="ENABLED")
    if kind == "COMPOSITE" or count == 1:
        assert (found["ChecksumCRC32"], found["ChecksumType"]) == (parts[-1]["ChecksumCRC32"], kind)
    else:  # S3 has no checksums of the parts of a full object
        assert {"ChecksumCRC32", "ChecksumType"}.isdisjoint(found)


def test_only_parts_with_checksums_are_attributes(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    complete(aws, upload, [send(aws, upload, 1, LAST, ChecksumAlgorithm="CRC32")])
    found = aws.s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts"])
    assert found["ObjectParts"] == {"TotalPartsCount": 1}


def test_the_crc_of_all_parts_is_that_of_all_bytes(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    parts = [send(aws, upload, n, data) for n, data in ((1, FIRST), (2, LAST))]
    whole = new_checksum("crc32")
    whole.update(FIRST + LAST)
    assert complete(aws, upload, parts)["ChecksumCRC32"] == encode_base64(whole.digest())


def test_boto3_transfers_large_files(aws: SandboxClients, bucket: str, tmp_path: Any) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(FIRST + FIRST + LAST)
    settings = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    aws.s3.upload_file(str(source), bucket, "k", Config=settings)
    aws.s3.download_file(bucket, "k", str(target), Config=settings)
    assert target.read_bytes() == source.read_bytes()
    assert aws.s3.head_object(Bucket=bucket, Key="k")["ETag"].endswith('-3"')


def test_completing_again_after_a_lost_answer_succeeds(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    parts = [send(aws, upload, 1, LAST)]
    assert complete(aws, upload, parts)["ETag"] == complete(aws, upload, parts)["ETag"]
    aws.s3.put_object(Bucket=bucket, Key="k", Body=b"another object")
    with refused("NoSuchUpload"):
        complete(aws, upload, parts)


def test_wrong_parts_are_refused(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    part = send(aws, upload, 1, LAST)
    with refused("InvalidPart"):
        complete(aws, upload, [part | {"ETag": '"' + "0" * 32 + '"'}])
    with refused("InvalidPart"):
        complete(aws, upload, [part, {"PartNumber": 2, "ETag": part["ETag"]}])
    with refused("MalformedXML"):
        aws.s3.complete_multipart_upload(
            Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": []}
        )
    with refused("InvalidRequest", "You must specify at least one part"):
        aws.s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    complete(aws, upload, [part])


def test_wrong_checksums_are_refused(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws, ChecksumAlgorithm="SHA256")
    with refused("BadDigest"):
        send(aws, upload, 1, LAST, ChecksumSHA256=sha256(FIRST))
    with refused("InvalidRequest", "expected checksum Type: sha256, actual checksum Type: crc32"):
        send(aws, upload, 1, LAST, ChecksumAlgorithm="CRC32")
    part = send(aws, upload, 1, LAST, ChecksumAlgorithm="SHA256")
    with refused("InvalidPart"):
        complete(aws, upload, [part | {"ChecksumSHA256": sha256(FIRST)}])
    with refused("InvalidRequest", "must include the checksum for each part"):
        complete(aws, upload, [{"PartNumber": 1, "ETag": part["ETag"]}])


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("SHA256", "FULL_OBJECT"), ("SHA1", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")]
)
def test_invalid_checksum_types_are_refused(
    aws: SandboxClients, bucket: str, algorithm: str, kind: str
) -> None:
    with refused("InvalidRequest"):
        begin(aws, ChecksumAlgorithm=algorithm, ChecksumType=kind)


@pytest.mark.parametrize("name", ["XXHASH64", "SHA512", "MD5"])
def test_other_algorithms_of_s3_are_not_emulated(aws: SandboxClients, bucket: str, name: str) -> None:
    with refused("NotImplemented", f"the checksum algorithm {name}"):
        begin(aws, ChecksumAlgorithm=name)


def test_an_unknown_algorithm_is_refused(aws: SandboxClients, bucket: str) -> None:
    with refused("InvalidRequest", "Checksum algorithm provided is unsupported"):
        begin(aws, ChecksumAlgorithm="TEST")
    aws.s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for name, code in (("TEST", "InvalidRequest"), ("XXHASH3", "NotImplemented")):
        with refused(code):
            aws.s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/k", ChecksumAlgorithm=name)


def test_order_and_size_of_parts(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    small = [send(aws, upload, n, LAST) for n in (1, 2)]
    with refused("InvalidPartOrder"):
        complete(aws, upload, small[::-1])
    with refused("EntityTooSmall"):
        complete(aws, upload, small)
    complete(aws, upload, small[1:])


@pytest.mark.parametrize("number", [0, 10_001])
def test_part_numbers(aws: SandboxClients, bucket: str, number: int) -> None:
    upload = begin(aws)
    with refused("InvalidArgument", "between 1 and 10000"):
        send(aws, upload, number, LAST)


def test_a_part_sent_again_replaces_the_first(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    send(aws, upload, 1, b"first try")
    complete(aws, upload, [send(aws, upload, 1, b"second try")])
    assert aws.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"second try"


def test_abort_deletes_all_parts(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    send(aws, upload, 1, LAST)
    aws.s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    assert "Uploads" not in aws.s3.list_multipart_uploads(Bucket=bucket)
    for call in (aws.s3.list_parts, aws.s3.abort_multipart_upload):
        with refused("NoSuchUpload"):
            call(Bucket=bucket, Key="k", UploadId=upload)
    with refused("NoSuchUpload"):
        send(aws, upload, 2, LAST)


def test_completing_can_require_that_the_key_is_new(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="k", Body=b"there")
    upload = begin(aws)
    part = send(aws, upload, 1, LAST)
    with refused("PreconditionFailed"):
        complete(aws, upload, [part], IfNoneMatch="*")
    assert aws.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"there"


def test_lists_parts_and_uploads_in_pages(aws: SandboxClients, bucket: str) -> None:
    uploads = {key: begin(aws, key) for key in ("a/1", "a/2", "b/1")}
    for number in (1, 2, 3):
        send(aws, uploads["a/1"], number, LAST, "a/1")
    parts = aws.s3.get_paginator("list_parts").paginate(
        Bucket=bucket, Key="a/1", UploadId=uploads["a/1"], PaginationConfig={"PageSize": 2}
    )
    assert [[part["PartNumber"] for part in page["Parts"]] for page in parts] == [[1, 2], [3]]
    pages = aws.s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 2}
    )
    assert [[one["Key"] for one in page["Uploads"]] for page in pages] == [["a/1", "a/2"], ["b/1"]]
    grouped = aws.s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [one["Prefix"] for one in grouped["CommonPrefixes"]] == ["a/", "b/"]
    assert (grouped["NextKeyMarker"], grouped["NextUploadIdMarker"]) == ("", "")
    everything = aws.s3.list_multipart_uploads(Bucket=bucket)
    assert (everything["NextKeyMarker"], everything["NextUploadIdMarker"]) == ("b/1", uploads["b/1"])
    with refused("InvalidArgument", "Invalid uploadId marker"):
        aws.s3.list_multipart_uploads(Bucket=bucket, KeyMarker="a/1", UploadIdMarker=uploads["b/1"])
    below = aws.s3.list_multipart_uploads(Bucket=bucket, Prefix="a/")["Uploads"]
    assert [one["UploadId"] for one in below] == [uploads["a/1"], uploads["a/2"]]


def test_parts_copied_from_another_object(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_object(Bucket=bucket, Key="source", Body=FIRST + LAST)
    upload = begin(aws, "copy")
    where = {"Bucket": bucket, "Key": "copy", "UploadId": upload, "CopySource": f"{bucket}/source"}
    ranges = [f"bytes=0-{5 * MIB - 1}", f"bytes={5 * MIB}-{5 * MIB + len(LAST) - 1}"]
    parts = []
    for number, one in enumerate(ranges, 1):
        answer = aws.s3.upload_part_copy(**where, PartNumber=number, CopySourceRange=one)
        parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    for copy_range, code, text in (
        ("bytes=0-99999999", "InvalidArgument", "Range specified is not valid"),
        ("bytes=99999998-99999999", "InvalidRequest", "The specified copy range is invalid"),
        ("bytes=2-1", "InvalidArgument", "must be of the form bytes=first-last"),
        ("bytes=1-", "InvalidArgument", "must be of the form bytes=first-last"),
    ):
        with refused(code, text):
            aws.s3.upload_part_copy(**where, PartNumber=3, CopySourceRange=copy_range)
    complete(aws, upload, parts, "copy")
    assert aws.s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == FIRST + LAST


def test_a_copy_of_a_multipart_object_has_one_part(aws: SandboxClients, bucket: str) -> None:
    upload = begin(aws)
    complete(aws, upload, [send(aws, upload, n, data) for n, data in ((1, FIRST), (2, LAST))])
    aws.s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    whole = hashlib.md5(FIRST + LAST).hexdigest()
    assert aws.s3.head_object(Bucket=bucket, Key="copy")["ETag"] == f'"{whole}"'
