"""Lifecycle rules show when objects expire, and delete them then.

Sources: "Lifecycle configuration elements" and "Expiring objects" in the Amazon S3 User Guide; AWS's answers
of February 2026 in LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.aws.bootstrap import LEFTOVER_DAYS, VERSION_DAYS

if TYPE_CHECKING:
    from tests.sandbox.clients import SandboxClients

DAY = 86_400
K = {"Bucket": "images", "Key": "vmsnix/k"}


def set_rules(aws: SandboxClients, *rules: dict[str, Any]) -> None:
    complete = [{"Status": "Enabled", "Filter": {"Prefix": "vmsnix/"}, **rule} for rule in rules]
    aws.s3.put_bucket_lifecycle_configuration(Bucket="images", LifecycleConfiguration={"Rules": complete})


@pytest.fixture
def bucket(aws: SandboxClients) -> str:
    return aws.bucket()


def test_answers_show_when_an_object_expires(aws: SandboxClients, bucket: str) -> None:
    set_rules(aws, {"ID": "a week", "Expiration": {"Days": 7}}, {"ID": "later", "Expiration": {"Days": 30}})
    shown = aws.s3.put_object(**K, Body=b"x")["Expiration"]
    found = aws.s3.head_object(**K)
    assert found["Expiration"] == aws.s3.get_object(**K)["Expiration"] == shown
    assert aws.s3.copy_object(**K, CopySource=f"{bucket}/vmsnix/k", MetadataDirective="REPLACE")["Expiration"]
    date, rule = shown.removeprefix('expiry-date="').removesuffix('"').split('", rule-id="')
    moment = parsedate_to_datetime(date)
    assert (moment.hour, moment.minute, moment.second, rule) == (0, 0, 0, "a%20week")
    after = moment - found["LastModified"]
    assert timedelta(days=7) <= after < timedelta(days=8)
    assert "Expiration" not in aws.s3.put_object(Bucket=bucket, Key="other", Body=b"x")
    assert "Expiration" not in aws.s3.head_object(Bucket=bucket, Key="other")


@pytest.mark.parametrize(
    ("chosen", "expires"),
    [
        ({"Filter": {}}, True),
        ({"Filter": {"Tag": {"Key": "a", "Value": "1"}}}, True),
        ({"Filter": {"Tag": {"Key": "a", "Value": "2"}}}, False),
        ({"Filter": {"ObjectSizeGreaterThan": 1}}, False),
        ({"Filter": {"ObjectSizeLessThan": 2}}, True),
        ({"Filter": {"And": {"Prefix": "vmsnix/", "Tags": [{"Key": "a", "Value": "1"}]}}}, True),
        ({"Filter": {"And": {"Prefix": "other/", "Tags": [{"Key": "a", "Value": "1"}]}}}, False),
        ({"Status": "Disabled"}, False),
    ],
)
def test_rules_choose_objects(
    aws: SandboxClients, bucket: str, chosen: dict[str, Any], *, expires: bool
) -> None:
    set_rules(aws, {"Expiration": {"Days": 1}} | chosen)
    assert ("Expiration" in aws.s3.put_object(**K, Body=b"x", Tagging="a=1")) is expires


def test_expired_objects_and_uploads_are_deleted(aws: SandboxClients, bucket: str) -> None:
    set_rules(aws, {"Expiration": {"Days": 7}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}})
    aws.s3.put_object(**K, Body=b"x")
    aws.s3.put_object(Bucket=bucket, Key="other", Body=b"x")
    aws.s3.create_multipart_upload(**K)
    aws.pass_time(2 * DAY)
    assert aws.s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    aws.pass_time(2 * DAY)
    assert "Uploads" not in aws.s3.list_multipart_uploads(Bucket=bucket)
    assert aws.s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    aws.pass_time(4 * DAY)
    assert [one["Key"] for one in aws.s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["other"]


def test_an_object_of_today_is_as_old_as_it_is(aws: SandboxClients, bucket: str) -> None:
    set_rules(aws, {"Expiration": {"Days": 1}})
    aws.pass_time(9 * DAY)
    aws.s3.put_object(**K, Body=b"x")
    assert aws.s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


def test_the_rules_of_bootstrap_empty_a_versioned_bucket(aws: SandboxClients, bucket: str) -> None:
    """The objects expire to delete markers, then the old versions are deleted, then the markers."""
    aws.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    set_rules(
        aws,
        {
            "ID": "vmsnix-leftovers",
            "Expiration": {"Days": LEFTOVER_DAYS},
            "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
        },
        {"ID": "vmsnix-delete-markers", "Expiration": {"ExpiredObjectDeleteMarker": True}},
    )
    for body in (b"1", b"2"):
        version = aws.s3.put_object(**K, Body=body)["VersionId"]
    assert "Expiration" in aws.s3.head_object(**K)
    assert "Expiration" not in aws.s3.head_object(**K, VersionId=version)
    aws.pass_time((LEFTOVER_DAYS + 1) * DAY)
    found = aws.s3.list_object_versions(Bucket=bucket)
    assert [one["IsLatest"] for one in found["DeleteMarkers"]] == [True]
    assert all(not one["IsLatest"] for one in found.get("Versions", []))
    aws.pass_time((VERSION_DAYS + 1) * DAY)
    found = aws.s3.list_object_versions(Bucket=bucket)
    assert "Versions" not in found
    assert "DeleteMarkers" not in found
    aws.s3.delete_bucket(Bucket=bucket)


def test_some_newer_versions_are_kept(aws: SandboxClients, bucket: str) -> None:
    aws.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    set_rules(aws, {"NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 2}})
    versions = [aws.s3.put_object(**K, Body=b"%d" % number)["VersionId"] for number in range(5)]
    aws.pass_time(3 * DAY)
    found = [one["VersionId"] for one in aws.s3.list_object_versions(Bucket=bucket)["Versions"]]
    assert found == versions[:1:-1]
