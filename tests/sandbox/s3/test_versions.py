"""Versions of objects and delete markers.

Sources: "Retaining multiple versions of objects with S3 Versioning" and "Working with delete markers" in the
Amazon S3 User Guide; AWS's answers of February 2026 in LocalStack's ``test_s3_api.snapshot.json`` and
``test_s3_list_operations.snapshot.json``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.sandbox.clients import ONCE, SandboxClients, refused, user_access

NEVER_MADE = "HPniJFCxqTsMuIH9KX8K8wEjNUgmABCD"
K = {"Bucket": "images", "Key": "k"}


def set_versioning(aws: SandboxClients, status: str) -> None:
    aws.s3.put_bucket_versioning(Bucket="images", VersioningConfiguration={"Status": status})


@pytest.fixture
def bucket(aws: SandboxClients) -> str:
    name = aws.bucket()
    set_versioning(aws, "Enabled")
    return name


def put(aws: SandboxClients, body: bytes, key: str = "k", **more: Any) -> str:
    answer = aws.s3.put_object(Bucket="images", Key=key, Body=body, **more)
    return str(answer.get("VersionId", "none"))


def read(aws: SandboxClients, **more: Any) -> bytes:
    content: bytes = aws.s3.get_object(**K, **more)["Body"].read()
    return content


def listed(aws: SandboxClients, **more: Any) -> list[tuple[str, str, bool]]:
    """Return key, version ID and IsLatest of all versions, then of all delete markers."""
    answer = aws.s3.list_object_versions(Bucket="images", **more)
    entries = [*answer.get("Versions", []), *answer.get("DeleteMarkers", [])]
    return [(entry["Key"], entry["VersionId"], entry["IsLatest"]) for entry in entries]


def test_every_write_makes_a_version(aws: SandboxClients, bucket: str) -> None:
    first, second = put(aws, b"1"), put(aws, b"2")
    assert (read(aws), read(aws, VersionId=first)) == (b"2", b"1")
    assert aws.s3.head_object(**K)["VersionId"] == second
    assert listed(aws) == [("k", second, True), ("k", first, False)]
    assert aws.s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


def test_a_deletion_adds_a_marker_and_keeps_the_versions(aws: SandboxClients, bucket: str) -> None:
    version = put(aws, b"1")
    answer = aws.s3.delete_object(**K)
    assert answer["DeleteMarker"] is True
    marker = answer["VersionId"]
    with pytest.raises(ClientError) as caught:
        aws.s3.get_object(**K)
    assert caught.value.response["Error"]["Code"] == "NoSuchKey"
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    with pytest.raises(ClientError) as caught:
        aws.s3.get_object(**K, VersionId=marker)
    error = caught.value.response["Error"]
    assert (error["Code"], error["ResourceType"], error["Method"]) == (
        "MethodNotAllowed",
        "DeleteMarker",
        "GET",
    )
    assert read(aws, VersionId=version) == b"1"
    assert listed(aws) == [("k", version, False), ("k", marker, True)]
    with refused("BucketNotEmpty", "You must delete all versions in the bucket."):
        aws.s3.delete_bucket(Bucket=bucket)
    answer = aws.s3.delete_object(**K, VersionId=marker)
    assert (answer["DeleteMarker"], answer["VersionId"]) == (True, marker)
    assert read(aws) == b"1"
    answer = aws.s3.delete_object(**K, VersionId=version)
    assert ("DeleteMarker" in answer, answer["VersionId"]) == (False, version)
    aws.s3.delete_bucket(Bucket=bucket)


def test_deleting_the_newest_version_restores_the_one_before(aws: SandboxClients, bucket: str) -> None:
    first, second = put(aws, b"1"), put(aws, b"2")
    aws.s3.delete_object(**K, VersionId=second)
    assert read(aws) == b"1"
    assert listed(aws) == [("k", first, True)]
    with refused("NoSuchVersion"):
        aws.s3.get_object(**K, VersionId=second)
    aws.s3.delete_object(**K, VersionId=second)  # again: no error


def test_an_id_that_s3_never_made_is_invalid(aws: SandboxClients, bucket: str) -> None:
    put(aws, b"1")
    for call in (aws.s3.get_object, aws.s3.delete_object, aws.s3.get_object_tagging):
        with refused("InvalidArgument", "Invalid version id specified"):
            call(**K, VersionId=NEVER_MADE)
    wanted = {"Objects": [{"Key": "k", "VersionId": NEVER_MADE}]}
    errors = aws.s3.delete_objects(Bucket=bucket, Delete=wanted)["Errors"]
    assert [(error["Code"], error["VersionId"]) for error in errors] == [("NoSuchVersion", NEVER_MADE)]


def test_deletes_many_versions(aws: SandboxClients, bucket: str) -> None:
    version = put(aws, b"1")
    answer = aws.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}, {"Key": "new"}]})
    markers = [entry["DeleteMarkerVersionId"] for entry in answer["Deleted"]]
    assert [entry["DeleteMarker"] for entry in answer["Deleted"]] == [True, True]
    wanted = [{"Key": "k", "VersionId": markers[0]}, {"Key": "k", "VersionId": version}]
    answer = aws.s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted})
    assert answer["Deleted"] == [
        {**wanted[0], "DeleteMarker": True, "DeleteMarkerVersionId": markers[0]},
        wanted[1],
    ]
    assert listed(aws) == [("new", markers[1], True)]


def test_suspended_versioning_replaces_only_the_null_version(aws: SandboxClients) -> None:
    aws.bucket()
    put(aws, b"before")
    assert "VersionId" not in aws.s3.get_object(**K, VersionId="null")
    set_versioning(aws, "Enabled")
    version = put(aws, b"1")
    assert read(aws, VersionId="null") == b"before"
    set_versioning(aws, "Suspended")
    assert put(aws, b"after") == "none"
    assert aws.s3.get_object(**K)["VersionId"] == "null"
    assert listed(aws) == [("k", "null", True), ("k", version, False)]
    assert aws.s3.delete_object(**K)["VersionId"] == "null"
    assert listed(aws) == [("k", version, False), ("k", "null", True)]
    aws.s3.delete_object(**K, VersionId="null")
    assert read(aws) == b"1"


def test_replaced_files_are_deleted_and_versions_are_kept(aws: SandboxClients, bucket: str) -> None:
    first = put(aws, b"1")
    put(aws, b"2")
    aws.s3.delete_object(**K)
    trash = aws.sandbox.state.tables.table("", "", "trash")
    assert not trash
    aws.s3.delete_object(**K, VersionId=first)
    assert len(trash) == 1


def test_copies_and_uploads_have_versions(aws: SandboxClients, bucket: str) -> None:
    first, second = put(aws, b"1"), put(aws, b"2")
    source = f"{bucket}/k?versionId={first}"
    answer = aws.s3.copy_object(Bucket=bucket, Key="copy", CopySource=source)
    assert answer["CopySourceVersionId"] == first
    assert aws.s3.get_object(Bucket=bucket, Key="copy", VersionId=answer["VersionId"])["Body"].read() == b"1"
    restored = aws.s3.copy_object(**K, CopySource=source)["VersionId"]
    assert [version for _, version, _ in listed(aws, Prefix="k")] == [restored, second, first]
    upload = aws.s3.create_multipart_upload(**K)["UploadId"]
    part = aws.s3.upload_part(**K, UploadId=upload, PartNumber=1, Body=b"3")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    done = aws.s3.complete_multipart_upload(**K, UploadId=upload, MultipartUpload=parts)
    assert read(aws, VersionId=done["VersionId"]) == b"3"


def test_versions_have_their_own_tags(aws: SandboxClients, bucket: str) -> None:
    first, second = put(aws, b"1", Tagging="t=1"), put(aws, b"2", Tagging="t=2")
    found = aws.s3.get_object_tagging(**K, VersionId=first)
    assert (found["VersionId"], found["TagSet"]) == (first, [{"Key": "t", "Value": "1"}])
    new = {"TagSet": [{"Key": "t", "Value": "3"}]}
    assert aws.s3.put_object_tagging(**K, Tagging=new, VersionId=first)["VersionId"] == first
    assert aws.s3.delete_object_tagging(**K)["VersionId"] == second
    assert aws.s3.get_object_tagging(**K, VersionId=first)["TagSet"] == new["TagSet"]
    marker = aws.s3.delete_object(**K)["VersionId"]
    for more in ({}, {"VersionId": marker}):
        with refused("MethodNotAllowed"):
            aws.s3.get_object_tagging(**K, **more)


def test_conditions_are_about_the_newest_version(aws: SandboxClients, bucket: str) -> None:
    put(aws, b"1")
    with refused("PreconditionFailed"):
        put(aws, b"2", IfNoneMatch="*")
    aws.s3.delete_object(**K)
    with refused("NoSuchKey"):
        put(aws, b"2", IfMatch='"other"')
    put(aws, b"2", IfNoneMatch="*")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_list_every_version_once(aws: SandboxClients, bucket: str, size: int) -> None:
    for number in range(3):
        for key in ("a", "b", "c/1"):
            put(aws, b"%d" % number, key)
    aws.s3.delete_object(Bucket=bucket, Key="b")
    pages = aws.s3.get_paginator("list_object_versions").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": size}
    )
    found = [
        entry["VersionId"]
        for page in pages
        for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
    ]
    assert sorted(found) == sorted(version for _, version, _ in listed(aws))
    assert len(found) == 10


def test_a_page_begins_after_its_markers(aws: SandboxClients, bucket: str) -> None:
    versions = [put(aws, b"%d" % number) for number in range(3)]
    put(aws, b"x", "z")
    assert [key for key, _, _ in listed(aws, KeyMarker="k")] == ["z"]
    after = {"KeyMarker": "k", "VersionIdMarker": versions[1]}
    assert [version for _, version, _ in listed(aws, **after, Prefix="k")] == [versions[0]]
    aws.s3.delete_object(**K, VersionId=versions[1])
    assert [version for _, version, _ in listed(aws, **after, Prefix="k")] == [versions[0]]
    with refused("InvalidArgument", "cannot be specified without a key marker"):
        listed(aws, VersionIdMarker=versions[0])


def test_a_delimiter_makes_folders_of_versions(aws: SandboxClients, bucket: str) -> None:
    for key in ("dir/a/1", "dir/a/2", "dir/b", "dir/c"):
        put(aws, b"", key)
    params = {"Bucket": bucket, "Prefix": "dir/", "Delimiter": "/", "MaxKeys": 1}
    first = aws.s3.list_object_versions(**params)
    assert [one["Prefix"] for one in first["CommonPrefixes"]] == ["dir/a/"]
    assert (first["NextKeyMarker"], "NextVersionIdMarker" in first) == ("dir/a/", False)
    for marker in ("dir/a/", "dir/a/1"):
        second = aws.s3.list_object_versions(**params, KeyMarker=marker)
        assert [one["Key"] for one in second["Versions"]] == ["dir/b"]


def test_versions_need_other_permissions(aws: SandboxClients, bucket: str) -> None:
    version = put(aws, b"1")

    def client(name: str, *actions: str) -> Any:
        allowed = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        return user_access(aws.sandbox, allowed, name=name).client("s3", config=ONCE)

    plain = client("plain", "s3:GetObject", "s3:DeleteObject", "s3:ListBucket")
    plain.get_object(**K)
    for call in (
        lambda: plain.get_object(**K, VersionId=version),
        lambda: plain.delete_object(**K, VersionId=version),
        lambda: plain.list_object_versions(Bucket=bucket),
        lambda: plain.copy_object(**K, CopySource=f"{bucket}/k?versionId={version}"),
    ):
        with refused("AccessDenied"):
            call()
    full = client("full", "s3:GetObjectVersion", "s3:DeleteObjectVersion", "s3:ListBucketVersions")
    assert full.get_object(**K, VersionId=version)["Body"].read() == b"1"
    assert full.list_object_versions(Bucket=bucket)["Versions"]
    full.delete_object(**K, VersionId=version)


def test_a_policy_denies_one_version(aws: SandboxClients, bucket: str) -> None:
    first, second = put(aws, b"1"), put(aws, b"2")
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObjectVersion",
        "Resource": "arn:aws:s3:::images/*",
        "Condition": {"StringEquals": {"s3:VersionId": first}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.s3.put_bucket_policy(Bucket=bucket, Policy=policy)
    with refused("AccessDenied"):
        read(aws, VersionId=first)
    assert read(aws, VersionId=second) == b"2"


def test_versioning_is_never_off_again(aws: SandboxClients) -> None:
    aws.bucket()
    with refused("IllegalVersioningConfigurationException"):
        aws.s3.put_bucket_versioning(Bucket="images", VersioningConfiguration={})
    with refused("NotImplemented", "MFADelete"):
        aws.s3.put_bucket_versioning(
            Bucket="images", VersioningConfiguration={"Status": "Enabled", "MFADelete": "Enabled"}
        )
    for status in ("Suspended", "Enabled", "Suspended"):
        set_versioning(aws, status)
        assert aws.s3.get_bucket_versioning(Bucket="images")["Status"] == status
