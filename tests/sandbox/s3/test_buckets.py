"""Buckets and their settings.

Sources: the operations' pages and "Error Responses" in the Amazon S3 API Reference; "Bucket naming rules"
and "Default settings for new S3 buckets FAQ" in the Amazon S3 User Guide; AWS's answers of February 2026 in
LocalStack's ``test_s3.snapshot.json``, ``test_s3_api...`` and ``test_s3_list_operations...``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused


def located(region: str) -> dict[str, Any]:
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def test_a_bucket_is_in_the_region_of_the_request(aws: SandboxClients) -> None:
    aws.bucket("here")
    aws.client("s3", "eu-west-1").create_bucket(Bucket="there", **located("eu-west-1"))
    assert aws.s3.get_bucket_location(Bucket="here")["LocationConstraint"] is None
    assert aws.s3.get_bucket_location(Bucket="there")["LocationConstraint"] == "eu-west-1"
    found = aws.s3.head_bucket(Bucket="here")
    assert (found["BucketRegion"], found["BucketArn"]) == ("us-east-1", "arn:aws:s3:::here")


def test_only_us_east_1_creates_buckets_of_other_regions(aws: SandboxClients) -> None:
    aws.s3.create_bucket(Bucket="far", **located("ap-south-1"))
    assert aws.client("s3", "ap-south-1").head_bucket(Bucket="far")["BucketRegion"] == "ap-south-1"
    with refused("IllegalLocationConstraintException", "eu-west-1 location constraint is incompatible"):
        aws.client("s3", "ap-south-1").create_bucket(Bucket="wrong", **located("eu-west-1"))
    with refused("IllegalLocationConstraintException", "The EU location constraint is incompatible"):
        aws.client("s3", "ap-south-1").create_bucket(Bucket="wrong", **located("EU"))
    with refused("IllegalLocationConstraintException", "unspecified"):
        aws.client("s3", "ap-south-1").create_bucket(Bucket="wrong")
    with refused("InvalidLocationConstraint"):
        aws.s3.create_bucket(Bucket="wrong", **located("moon-1"))


@pytest.mark.parametrize("name", ["ab", "Upper", "under_score", "two..dots", "192.168.0.1", "end-", "a" * 64])
def test_invalid_bucket_names_are_refused(aws: SandboxClients, name: str) -> None:
    status, body = aws.send("PUT", f"/{name}")
    assert (status, b"InvalidBucketName" in body) == (400, True)


def test_creating_a_bucket_twice_succeeds_in_us_east_1_only(aws: SandboxClients) -> None:
    aws.bucket("twice")
    assert aws.s3.create_bucket(Bucket="twice")["BucketArn"] == "arn:aws:s3:::twice"
    with refused("BucketAlreadyOwnedByYou"):
        tags = {"Tags": [{"Key": "a", "Value": "b"}]}
        aws.s3.create_bucket(Bucket="twice", CreateBucketConfiguration=tags)
    west = aws.client("s3", "us-west-2")
    west.create_bucket(Bucket="once", **located("us-west-2"))
    with refused("BucketAlreadyOwnedByYou"):
        west.create_bucket(Bucket="once", **located("us-west-2"))


def test_a_bucket_of_another_region_redirects(aws: SandboxClients) -> None:
    aws.client("s3", "us-west-2").create_bucket(Bucket="west", **located("us-west-2"))
    aws.client("s3", "eu-west-1").put_object(Bucket="west", Key="k", Body=b"x")
    assert [call.outcome for call in aws.sandbox.calls.matching("s3:PutObject")] == [
        "PermanentRedirect",
        "ok",
    ]
    assert [call.region for call in aws.sandbox.calls.matching("s3:PutObject")] == ["eu-west-1", "us-west-2"]


def test_an_unknown_bucket_is_refused(aws: SandboxClients) -> None:
    with refused("404"):
        aws.s3.head_bucket(Bucket="nowhere")
    with refused("NoSuchBucket"):
        aws.s3.list_objects_v2(Bucket="nowhere")


def test_an_unexpected_owner_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    aws.s3.list_objects_v2(Bucket="images", ExpectedBucketOwner=aws.sandbox.account)
    with refused("AccessDenied"):
        aws.s3.list_objects_v2(Bucket="images", ExpectedBucketOwner="999999999999")
    for owner in ("0000", "0000000000020", "abcd", "aa000000000$"):
        for call in (aws.s3.get_bucket_policy, aws.s3.get_bucket_location, aws.s3.list_objects_v2):
            with refused("InvalidBucketOwnerAWSAccountID", f"must be an AWS Account ID... [{owner}]"):
                call(Bucket="images", ExpectedBucketOwner=owner)


def test_lists_buckets_of_all_regions_in_pages(aws: SandboxClients) -> None:
    for number in range(3):
        aws.bucket(f"bucket-{number}")
    aws.client("s3", "eu-west-1").create_bucket(Bucket="bucket-9", **located("eu-west-1"))
    pages = aws.s3.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": 2})
    assert [b["Name"] for page in pages for b in page["Buckets"]] == [
        "bucket-0",
        "bucket-1",
        "bucket-2",
        "bucket-9",
    ]
    found = aws.s3.list_buckets(BucketRegion="eu-west-1")["Buckets"]
    assert [(b["Name"], b["BucketRegion"]) for b in found] == [("bucket-9", "eu-west-1")]
    assert found[0]["BucketArn"] == "arn:aws:s3:::bucket-9"
    with refused("InvalidArgument", "Argument value eu-east-1 is not a valid AWS Region"):
        aws.s3.list_buckets(BucketRegion="eu-east-1")


def test_only_an_empty_bucket_is_deleted(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"")
    with refused("BucketNotEmpty"):
        aws.s3.delete_bucket(Bucket="images")
    aws.s3.delete_object(Bucket="images", Key="k")
    aws.s3.create_multipart_upload(Bucket="images", Key="unfinished")
    aws.s3.delete_bucket(Bucket="images")
    assert aws.s3.list_buckets()["Buckets"] == []


def test_settings_can_be_replaced_and_deleted(aws: SandboxClients) -> None:
    aws.bucket()
    s3, kms = aws.s3, {"SSEAlgorithm": "aws:kms"}
    configuration = {"Rules": [{"ApplyServerSideEncryptionByDefault": kms}]}
    s3.put_bucket_encryption(Bucket="images", ServerSideEncryptionConfiguration=configuration)
    s3.delete_bucket_encryption(Bucket="images")
    (rule,) = s3.get_bucket_encryption(Bucket="images")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    controls = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    s3.put_bucket_ownership_controls(Bucket="images", OwnershipControls=controls)
    assert s3.get_bucket_ownership_controls(Bucket="images")["OwnershipControls"] == controls
    s3.delete_bucket_ownership_controls(Bucket="images")
    with refused("OwnershipControlsNotFoundError"):
        s3.get_bucket_ownership_controls(Bucket="images")
    s3.put_bucket_tagging(Bucket="images", Tagging={"TagSet": [{"Key": "team", "Value": "images"}]})
    s3.delete_bucket_tagging(Bucket="images")
    with refused("NoSuchTagSet"):
        s3.get_bucket_tagging(Bucket="images")


def test_a_new_bucket_is_private_and_encrypted(aws: SandboxClients) -> None:
    aws.bucket()
    block = aws.s3.get_public_access_block(Bucket="images")["PublicAccessBlockConfiguration"]
    assert all(block.values())
    rules = aws.s3.get_bucket_encryption(Bucket="images")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    owner = aws.s3.get_bucket_ownership_controls(Bucket="images")["OwnershipControls"]["Rules"]
    assert owner == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert "Status" not in aws.s3.get_bucket_versioning(Bucket="images")
    grants = aws.s3.get_bucket_acl(Bucket="images")["Grants"]
    assert [(g["Grantee"]["Type"], g["Permission"]) for g in grants] == [("CanonicalUser", "FULL_CONTROL")]


LIFECYCLE = {
    "Rules": [
        {
            "ID": "leftovers",
            "Status": "Enabled",
            "Filter": {"Prefix": "uploads/"},
            "Expiration": {"Days": 7},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
    ]
}
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["arn:aws:s3:::images", "arn:aws:s3:::images/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ],
}


def test_keeps_lifecycle_rules(aws: SandboxClients) -> None:
    aws.bucket()
    with refused("NoSuchLifecycleConfiguration"):
        aws.s3.get_bucket_lifecycle_configuration(Bucket="images")
    aws.s3.put_bucket_lifecycle_configuration(Bucket="images", LifecycleConfiguration=LIFECYCLE)
    assert aws.s3.get_bucket_lifecycle_configuration(Bucket="images")["Rules"] == LIFECYCLE["Rules"]
    size = aws.s3.get_bucket_lifecycle_configuration(Bucket="images")["TransitionDefaultMinimumObjectSize"]
    assert size == "all_storage_classes_128K"
    own = {"LifecycleConfiguration": LIFECYCLE, "Bucket": "images"}
    with refused("InvalidRequest", "Invalid TransitionDefaultMinimumObjectSize found: none"):
        aws.s3.put_bucket_lifecycle_configuration(**own, TransitionDefaultMinimumObjectSize="none")
    chosen = {"TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}
    assert chosen.items() <= aws.s3.put_bucket_lifecycle_configuration(**own, **chosen).items()
    assert chosen.items() <= aws.s3.get_bucket_lifecycle_configuration(Bucket="images").items()
    aws.s3.delete_bucket_lifecycle(Bucket="images")
    with refused("NoSuchLifecycleConfiguration"):
        aws.s3.get_bucket_lifecycle_configuration(Bucket="images")


def test_a_lifecycle_rule_without_an_action_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    rules = {"Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}}]}
    with refused("InvalidRequest", "At least one action"):
        aws.s3.put_bucket_lifecycle_configuration(Bucket="images", LifecycleConfiguration=rules)


def test_keeps_a_policy_and_reports_whether_it_is_public(aws: SandboxClients) -> None:
    aws.bucket()
    with refused("NoSuchBucketPolicy"):
        aws.s3.get_bucket_policy(Bucket="images")
    aws.s3.put_bucket_policy(Bucket="images", Policy=json.dumps(POLICY))
    assert json.loads(aws.s3.get_bucket_policy(Bucket="images")["Policy"]) == POLICY
    assert aws.s3.get_bucket_policy_status(Bucket="images")["PolicyStatus"] == {"IsPublic": False}


def test_block_public_access_refuses_a_public_policy(aws: SandboxClients) -> None:
    aws.bucket()
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::images/*",
    }
    public = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    with refused("AccessDenied", "BlockPublicPolicy"):
        aws.s3.put_bucket_policy(Bucket="images", Policy=public)
    aws.s3.delete_public_access_block(Bucket="images")
    aws.s3.put_bucket_policy(Bucket="images", Policy=public)
    assert aws.s3.get_bucket_policy_status(Bucket="images")["PolicyStatus"] == {"IsPublic": True}


@pytest.mark.parametrize(
    "policy", ["{", "[]", '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow"}]}']
)
def test_an_invalid_policy_is_refused(aws: SandboxClients, policy: str) -> None:
    aws.bucket()
    with refused("MalformedPolicy"):
        aws.s3.put_bucket_policy(Bucket="images", Policy=policy)


def test_keeps_tags(aws: SandboxClients) -> None:
    aws.bucket()
    with refused("NoSuchTagSet"):
        aws.s3.get_bucket_tagging(Bucket="images")
    tags = [{"Key": "vmsnix:bucket", "Value": "yes"}]
    aws.s3.put_bucket_tagging(Bucket="images", Tagging={"TagSet": tags})
    assert aws.s3.get_bucket_tagging(Bucket="images")["TagSet"] == tags
    aws.s3.put_bucket_tagging(Bucket="images", Tagging={"TagSet": []})
    with refused("NoSuchTagSet"):
        aws.s3.get_bucket_tagging(Bucket="images")
    with refused("InvalidTag", "System tags cannot be added/updated by requester"):
        aws.s3.put_bucket_tagging(Bucket="images", Tagging={"TagSet": [{"Key": "aws:a", "Value": ""}]})
    twice = [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]
    with refused("InvalidTag", "multiple Tags with the same key"):
        aws.s3.put_bucket_tagging(Bucket="images", Tagging={"TagSet": twice})


def test_a_damaged_document_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    body = b"<Tagging><TagSet></TagSet></Tagging>"
    headers = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    status, answer = aws.send("PUT", "/images?tagging", body, headers=headers)
    assert (status, b"BadDigest" in answer) == (400, True)


@pytest.mark.parametrize("path", ["/nowhere", "/images/nothing", "/images?policy", "/images?colour=red"])
def test_errors_have_no_resource(aws: SandboxClients, path: str) -> None:
    aws.bucket()
    status, body = aws.send("GET", path)
    assert (status >= 400, b"<Code>" in body, b"Resource" in body) == (True, True, False)
    assert b"<RequestId>" in body
    assert b"<HostId>" in body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("versioning", "<VersioningConfiguration><Status>enabled</Status></VersioningConfiguration>"),
        ("requestPayment", "<RequestPaymentConfiguration><Payer>Me</Payer></RequestPaymentConfiguration>"),
        (
            "ownershipControls",
            "<OwnershipControls><Rule><ObjectOwnership>Nobody</ObjectOwnership></Rule></OwnershipControls>",
        ),
        ("encryption", "<ServerSideEncryptionConfiguration></ServerSideEncryptionConfiguration>"),
    ],
)
def test_a_document_with_an_unknown_word_is_malformed(aws: SandboxClients, path: str, body: str) -> None:
    aws.bucket()
    status, answer = aws.send("PUT", f"/images?{path}", body.encode())
    assert (status, b"<Code>MalformedXML</Code>" in answer) == (400, True)


def test_a_requester_pays_only_with_the_parameter(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    assert aws.s3.get_bucket_request_payment(Bucket="images")["Payer"] == "BucketOwner"
    requester = {"Payer": "Requester"}
    aws.s3.put_bucket_request_payment(Bucket="images", RequestPaymentConfiguration=requester)
    assert aws.s3.get_bucket_request_payment(Bucket="images")["Payer"] == "Requester"
    other = aws.sandbox.other_account("111122223333").client("s3")
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": "111122223333"},
        "Action": "s3:*",
        "Resource": ["arn:aws:s3:::images", "arn:aws:s3:::images/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.s3.put_bucket_policy(Bucket="images", Policy=policy)
    for call in (
        lambda **more: other.get_object(Bucket="images", Key="k", **more),
        lambda **more: other.list_objects_v2(Bucket="images", **more),
    ):
        with refused("AccessDenied"):
            call()
        assert call(RequestPayer="requester")["RequestCharged"] == "requester"
    assert "RequestCharged" not in aws.s3.get_object(Bucket="images", Key="k", RequestPayer="requester")


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("get_bucket_cors", "NoSuchCORSConfiguration"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("get_bucket_accelerate_configuration", {}),
        ("get_bucket_logging", {}),
        ("get_bucket_notification_configuration", {}),
        ("list_bucket_analytics_configurations", {"IsTruncated": False}),
        ("list_bucket_intelligent_tiering_configurations", {"IsTruncated": False}),
        ("list_bucket_inventory_configurations", {"IsTruncated": False}),
        ("list_bucket_metrics_configurations", {"IsTruncated": False}),
    ],
)
def test_a_new_bucket_has_no_other_documents(
    aws: SandboxClients, operation: str, answer: str | dict[str, bool]
) -> None:
    aws.bucket()
    if isinstance(answer, str):
        with refused(answer):
            getattr(aws.s3, operation)(Bucket="images")
    else:
        found = getattr(aws.s3, operation)(Bucket="images")
        assert found.pop("ResponseMetadata")
        assert found == answer
