"""Versioned buckets, archives beside images, other partitions, and formats that VM Import supports."""

from __future__ import annotations

import json
import resource
import subprocess

import pytest

from tests.disk.images import qemu_create
from tests.support import require
from vmsnix_ops import errors
from vmsnix_ops.aws import identity, regions
from vmsnix_ops.aws.session import session
from vmsnix_ops.cli import main
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.publish import bootstrap, preflight

REGION, BUCKET = "us-east-1", "vmsnix-images"


def outcome(name, **params):
    checks = preflight.check(region=REGION, bucket=BUCKET, **params).checks
    return next(check for check in checks if check.name == name)


def rules_of(aws, region=REGION, bucket=BUCKET):
    return aws.client("s3", region).get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]


def versioned(aws, state="Enabled"):
    aws.client("s3", REGION).put_bucket_versioning(
        Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}
    )
    aws.faults.add(
        {"op": "s3:GetBucketVersioning", "do": "set", "when": "after", "values": {"Status": state}}
    )


@pytest.mark.parametrize("state", ["Enabled", "Suspended"])
def test_a_versioned_bucket_without_expiry_of_old_versions_is_reported(aws, state):
    assert outcome("bucket versions").outcome == "pass"
    versioned(aws, state)
    check = outcome("bucket versions")
    assert (check.outcome, "vmsnix bootstrap" in check.fix) == ("warn", True)
    bootstrap.plan(region=REGION, bucket=BUCKET, dry_run=False).apply()
    assert outcome("bucket versions").outcome == "pass"


def test_bootstrap_expires_versions_and_markers_of_images_only(aws):
    s3 = aws.client("s3", REGION)
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}}
    old = {
        "ID": "vmsnix-leftovers",
        "Status": "Enabled",
        "Filter": {"Prefix": "vmsnix/"},
        "Expiration": {"Days": 7},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [theirs, old]})
    for _ in range(2):
        bootstrap.plan(region=REGION, bucket=BUCKET, dry_run=False).apply()
        rules = rules_of(aws)
        assert theirs in rules
        ours = [rule for rule in rules if rule != theirs]
        assert {rule["Filter"]["Prefix"] for rule in ours} == {"vmsnix/"}
        assert any("NoncurrentVersionExpiration" in rule for rule in ours)
        assert any(rule.get("Expiration", {}).get("ExpiredObjectDeleteMarker") for rule in ours)
        assert len(ours) == 2
    assert "lifecycle" not in [part.name for part in bootstrap.plan(region=REGION, bucket=BUCKET).todo]


@pytest.mark.parametrize(
    ("setting", "place", "refused"),
    [
        ("ARCHIVE", f"s3://{BUCKET}/vmsnix/archive", True),
        ("ARCHIVE", f"s3://{BUCKET}", True),
        ("ARCHIVE", f"s3://{BUCKET}/vmsnix", True),
        ("HISTORY", f"s3://{BUCKET}/vmsnix/history", True),
        ("ARCHIVE", f"s3://{BUCKET}/vmsnix-archive", False),
        ("ARCHIVE", "s3://another-bucket/vmsnix/archive", False),
    ],
)
def test_an_archive_among_the_images_is_refused(aws, monkeypatch, setting, place, refused):
    monkeypatch.setenv(f"VMSNIX_{setting}", place)
    assert outcome("bucket prefixes").outcome == ("fail" if refused else "pass")
    if refused:
        with pytest.raises(errors.BucketError, match="A lifecycle rule would delete"):
            bootstrap.plan(region=REGION, bucket=BUCKET)


# Partitions


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("cn-north-1", "aws-cn"),
        ("us-gov-east-1", "aws-us-gov"),
        ("eusc-de-east-1", "aws-eusc"),
        ("us-iso-east-1", "aws-iso"),
        ("eu-west-1", "aws"),
    ],
)
@pytest.mark.parametrize("kind", ["publisher", "vmimport-role", "promoter"])
def test_a_policy_has_the_partition_of_its_region(capsys, region, partition, kind):
    arguments = ["iam-policy", kind, "--region", region, "--bucket", "images-x", "--account", "012345678901"]
    assert main(arguments) == 0
    arns = [
        arn
        for statement in json.loads(capsys.readouterr().out)["Statement"]
        for arn in (
            [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        )
        if arn.startswith("arn:")
    ]
    assert arns
    assert {arn.split(":")[1] for arn in arns} == {partition}


def test_a_policy_for_regions_of_two_partitions_is_refused(capsys):
    arguments = ["iam-policy", "vmimport-role", "--bucket", "images-x", "--region", "cn-north-1"]
    for more in (["--region", "eu-west-1"], ["--partition", "aws"]):
        assert main([*arguments, *more]) == 2
        assert "one partition" in capsys.readouterr().err


@pytest.mark.parametrize("region", ["cn-north-1", "us-gov-east-1", "eusc-de-east-1"])
@pytest.mark.variants(seconds=2)
def test_an_import_works_in_every_partition_after_a_bootstrap(aws, plan, region):
    aws.reset()  # the role of another partition is another role
    bootstrap.plan(region=region, bucket="bucket-there", dry_run=False).apply()
    assert plan(region=region, bucket="bucket-there").apply().outcome == "created"


@pytest.mark.parametrize("region", ["cn-north-1", "us-gov-east-1", "eusc-de-east-1"])
def test_a_region_of_another_partition_is_not_called_disabled(aws, plan, region):
    refused = {"do": "error", "code": "InvalidClientTokenId", "http": 403, "where": {"region": region}}
    aws.faults.add({"op": "ec2:*", **refused, "code": "AuthFailure"})
    with pytest.raises(errors.AwsError) as caught:
        plan(region=region, bucket="bucket-there")
    assert "enable-region" not in str(caught.value)
    assert "partition" in str(caught.value)
    aws.faults.add({"op": "sts:*", **refused})
    with pytest.raises(errors.AwsError) as caught:
        identity.read_caller(session(), region)
    assert "enable-region" not in str(caught.value)


def test_regions_of_two_partitions_are_refused():
    with pytest.raises(errors.RegionError, match="different partitions"):
        regions.check_regions(["eu-west-1", "cn-north-1"])


# Formats


def converted(raw, kind, path, *options):
    command = [require("qemu-img"), "convert", "-f", "raw", "-O", kind, *options, str(raw), str(path)]
    subprocess.run(command, check=True, timeout=120)
    return path


@pytest.fixture
def raw(tmp_path):
    folder = make_sample_image(tmp_path / "raw", name="sample", format="raw", data_bytes=2**20)
    return next(folder.glob("*.img"))


def test_a_stream_optimized_vmdk_is_imported(aws, plan, raw, tmp_path):
    path = converted(raw, "vmdk", tmp_path / "sample.vmdk", "-o", "subformat=streamOptimized")
    assert plan(image=str(path), verify="whole").apply().outcome == "created"


def test_an_unsupported_format_is_refused_with_a_working_conversion(plan, raw, tmp_path, monkeypatch):
    for kind in ("vmdk", "qcow2", "vhdx"):
        path = converted(raw, kind, tmp_path / f"sample.{kind}")
        with pytest.raises(errors.ImageFormatError, match="VM Import does not support") as caught:
            plan(image=str(path))
        command = str(caught.value).partition("convert it: ")[2].split()
        monkeypatch.chdir(tmp_path)
        subprocess.run(command, check=True, timeout=120)
        assert plan(image=command[-1]).apply().outcome in ("created", "reused")


def test_a_disk_larger_than_a_vhd_is_converted_to_raw(plan, tmp_path):
    path = qemu_create(tmp_path / "large.qcow2", "qcow2", "2041G")
    with pytest.raises(errors.ImageFormatError) as caught:
        plan(image=str(path), system="x86_64-linux", boot_mode="uefi")
    assert "-O vpc" not in str(caught.value)
    assert "-O raw" in str(caught.value)


def test_a_disk_larger_than_the_largest_file_is_refused(tmp_path):
    path = qemu_create(tmp_path / "large.vhdx", "vhdx", "17T")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on ext4; other file systems have room for larger files.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 2**40, hard))
    try:
        with open_image(path) as disk, pytest.raises(errors.ImageError) as caught:
            disk.read(0, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "larger than the largest file" in message
    assert "does not accept another copy" not in message
