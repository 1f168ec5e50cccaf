"""Which key encrypts an upload, its snapshot and its AMI."""

from __future__ import annotations

import json

import pytest

from tests.publish.test_direct import BLOCK, changed, raw  # noqa: F401 (a fixture)
from vmsnix_ops import errors
from vmsnix_ops.publish import preflight

REGION, BUCKET = "us-east-1", "vmsnix-images"
KEY = "arn:aws:kms:us-east-1:012345678901:key/12345678-1234-1234-1234-123456789012"
OTHER = "arn:aws:kms:us-east-1:012345678901:key/99999999-1234-1234-1234-123456789012"


@pytest.fixture
def allowed(aws):
    """Let the role of VM Import use the keys."""
    statement = {"Effect": "Allow", "Action": ["kms:*"], "Resource": [KEY, OTHER]}
    aws.client("iam", REGION).put_role_policy(
        RoleName="vmimport",
        PolicyName="keys",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
    )


def direct(plan, **changes):
    return plan(via="direct", bucket="", role_name="", **changes)


def key_of(aws, snapshot_id):
    answer = aws.client("ec2", REGION).describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]
    return answer.get("KmsKeyId", "")


def created(aws):
    return [call for call in aws.calls if call.operation == "CreateMultipartUpload"]


def test_an_upload_leaves_encryption_to_the_bucket(aws, plan):
    s3 = aws.client("s3", REGION)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "aws/s3"}}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    one = plan()
    source = one.upload(one.build())
    head = s3.head_object(Bucket=BUCKET, Key=source.url.removeprefix(f"s3://{BUCKET}/"))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "aws/s3")
    assert one.finish(one.register(one.import_snapshot(source))).outcome == "created"


@pytest.mark.parametrize("given", [KEY, KEY.rpartition("/")[2]])
@pytest.mark.variants
def test_a_key_encrypts_object_snapshot_and_ami(aws, plan, allowed, given):
    one = plan(kms_key=given)
    source = one.upload(one.build())
    head = aws.client("s3", REGION).head_object(Bucket=BUCKET, Key=source.url.removeprefix(f"s3://{BUCKET}/"))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", KEY)
    result = one.finish(one.register(one.import_snapshot(source)))
    assert key_of(aws, result.snapshot_id) == KEY
    ami = aws.client("ec2", REGION).describe_images(ImageIds=[result.ami_id])["Images"][0]
    assert ami["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    assert plan(kms_key=KEY).apply().ami_id == result.ami_id


@pytest.mark.parametrize("via", ["import", "direct"])
@pytest.mark.variants
def test_a_snapshot_with_another_key_is_neither_reused_nor_registered(aws, plan, allowed, via):
    make = direct if via == "direct" else lambda plan, **changes: plan(**changes)
    plain = make(plan).apply()
    for key in (KEY, OTHER):
        with pytest.raises(errors.NameTakenError, match="another encryption key"):
            make(plan, kms_key=key).apply()
    first = make(plan, kms_key=KEY, prefix="first").apply()
    second = make(plan, kms_key=OTHER, prefix="second").apply()
    assert [key_of(aws, one.snapshot_id) for one in (plain, first, second)] == ["", KEY, OTHER]


def test_the_key_of_the_settings_is_used(aws, plan, monkeypatch):
    monkeypatch.setenv("VMSNIX_KMS_KEY", KEY)
    assert key_of(aws, direct(plan).apply().snapshot_id) == KEY


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("alias/mine", "describe-key --key-id alias/mine"),
        ("arn:aws:kms:us-east-1:012345678901:alias/mine", "describe-key --key-id alias/mine"),
        (KEY.replace("us-east-1", "eu-west-1"), "is in eu-west-1"),
        ("my-key", "not a KMS key ARN"),
    ],
)
def test_an_unusable_key_is_refused(plan, left, given, text):
    with pytest.raises(errors.ParameterError, match=text):
        direct(plan, kms_key=given)
    assert left().nothing


def test_a_public_ami_has_no_key(aws, plan):
    with pytest.raises(errors.ParameterError, match="public and kms_key"):
        plan(kms_key=KEY, public=True, confirm_public=aws.account)


def test_a_role_that_may_not_use_the_key_is_found_before_the_upload(aws, plan, changes):
    changes()
    with pytest.raises(errors.RoleError, match=r"kms:CreateGrant.*--kms-key"):
        plan(kms_key=KEY)
    checks = preflight.check(region=REGION, bucket=BUCKET, kms_key=KEY)
    assert [check.outcome for check in checks.checks if check.name == "vmimport role's key"] == ["fail"]
    assert changes() == []


def test_preflight_checks_the_role_with_the_buckets_key(aws, plan):
    s3 = aws.client("s3", REGION)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    checks = preflight.check(region=REGION, bucket=BUCKET)
    assert [check.outcome for check in checks.checks if check.name == "bucket's key"] == ["fail"]
    with pytest.raises(errors.ImportFailedError, match="403"):
        plan().apply()


# Parents of incremental uploads


def why_full(plan):
    built = plan.build()
    source = plan.upload(built)
    made = plan.finish(plan.register(plan.import_snapshot(source)))
    return source.direct.why_full, made.snapshot_id


def test_a_parent_has_the_requested_key(aws, plan, raw):  # noqa: F811
    direct(plan, image=str(raw)).apply()
    changed(raw, block=3, fill=7)
    why, snapshot = why_full(direct(plan, image=str(raw), kms_key=KEY))
    assert "is not encrypted, but the new snapshot will be" in why
    assert key_of(aws, snapshot) == KEY
    changed(raw, block=3, fill=8)
    assert why_full(direct(plan, image=str(raw), kms_key=KEY))[0] == ""
    changed(raw, block=3, fill=9)
    why, snapshot = why_full(direct(plan, image=str(raw), kms_key=OTHER))
    assert "another key" in why
    assert key_of(aws, snapshot) == OTHER


@pytest.mark.long(seconds=3)
def test_a_snapshot_with_a_customer_key_is_no_parent_if_the_default_is_an_alias(aws, plan, raw):  # noqa: F811
    ec2 = aws.client("ec2", REGION)
    ec2.enable_ebs_encryption_by_default()
    direct(plan, image=str(raw), kms_key=KEY).apply()
    changed(raw, block=3, fill=7)
    why, snapshot = why_full(direct(plan, image=str(raw)))
    assert "which may differ from alias/aws/ebs" in why
    assert key_of(aws, snapshot) not in ("", KEY)
    changed(raw, block=3, fill=8)
    why, child = why_full(direct(plan, image=str(raw)))
    assert why == ""
    assert key_of(aws, child) == key_of(aws, snapshot)
