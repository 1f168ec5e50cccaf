"""Condition keys of the actions of this package: sources, tags, parents.

Sources: "Actions, resources, and condition keys" for Amazon EC2 and Amazon EBS in the Service Authorization
Reference; "Example policies to control access the Amazon EC2 API".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.aws.account import make_ami
from tests.sandbox.clients import ONCE, user_access

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

REGION, DIGEST = "us-east-1", "vmsnix:digest"
IMAGES, SNAPSHOTS = "arn:aws:ec2:*::image/*", "arn:aws:ec2:*::snapshot/*"
NEW_IMAGE, NEW_SNAPSHOT = "arn:aws:ec2:*::image/${*}", "arn:aws:ec2:*::snapshot/${*}"
OURS = {"StringLike": {f"aws:ResourceTag/{DIGEST}": "?*"}}
REFUSALS = {"UnauthorizedOperation", "AccessDeniedException", "AccessDenied"}
OUR_TAG = {"Key": DIGEST, "Value": "ab"}


@pytest.fixture
def aws(enforcing_sandbox: Sandbox) -> Sandbox:
    return enforcing_sandbox


def allow(*actions: str, resource: Any = "*", **condition: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def may(client: Any, operation: str, **params: Any) -> bool:
    """Return whether policies allow a call. Any other error fails the test."""
    try:
        getattr(client, operation)(**params)
    except ClientError as error:
        if error.response["Error"]["Code"] not in REFUSALS:
            raise
        return False
    return True


def snapshot(aws: Sandbox, *tags: dict[str, str], parent: str = "") -> str:
    """Create a completed snapshot through the EBS direct APIs, as the administrator."""
    ebs = aws.client("ebs")
    more: dict[str, Any] = ({"Tags": list(tags)} if tags else {}) | (
        {"ParentSnapshotId": parent} if parent else {}
    )
    made: str = ebs.start_snapshot(VolumeSize=1, **more)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=made, ChangedBlocksCount=0)
    aws.clock.advance(3600)
    return made


def image(aws: Sandbox, root: str, name: str, *tags: dict[str, str]) -> str:
    """Register an AMI of a snapshot, as the administrator."""
    params = registration(root, name)
    made: str = aws.client("ec2").register_image(**params, **specification("image", *tags))["ImageId"]
    return made


def registration(root: str, name: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Architecture": "x86_64",
        "RootDeviceName": "/dev/sda1",
        "VirtualizationType": "hvm",
        "EnaSupport": True,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": root}}],
    }


def specification(kind: str, *tags: dict[str, str]) -> dict[str, Any]:
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": list(tags)}]} if tags else {}


# Sources of creating actions


def test_a_snapshot_is_registered_only_when_its_tags_allow_it(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    ec2 = user_access(
        aws,
        allow("ec2:RegisterImage", resource=IMAGES),
        allow("ec2:RegisterImage", resource=SNAPSHOTS, **OURS),
    ).client("ec2", config=ONCE)
    assert may(ec2, "register_image", **registration(ours, "ours"))
    assert not may(ec2, "register_image", **registration(foreign, "foreign"))
    both = registration(ours, "both")
    both["BlockDeviceMappings"].append({"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": foreign}})
    assert not may(ec2, "register_image", **both)


@pytest.mark.parametrize("region", [REGION, "eu-west-1"])
def test_an_image_is_copied_only_when_the_tags_of_its_source_allow_it(aws: Sandbox, region: str) -> None:
    ours = image(aws, snapshot(aws, OUR_TAG), "ours", OUR_TAG)
    foreign = image(aws, snapshot(aws), "foreign")
    ec2 = user_access(
        aws,
        allow("ec2:CopyImage", resource=[NEW_IMAGE, SNAPSHOTS]),
        allow("ec2:CopyImage", resource=IMAGES, **OURS),
        allow("ec2:CreateTags", StringEquals={"ec2:CreateAction": "CopyImage"}),
    ).client("ec2", region, config=ONCE)
    for number, (source, allowed) in enumerate(((ours, True), (foreign, False))):
        params = {"Name": f"copy-{number}", "SourceImageId": source, "SourceRegion": REGION}
        assert may(ec2, "copy_image", **params, **specification("image", OUR_TAG)) is allowed


def test_tags_of_the_request_are_no_condition_on_the_source(aws: Sandbox) -> None:
    """A condition on the tags of the request only allows the copy of any source."""
    foreign = snapshot(aws)
    requested = {"StringLike": {f"aws:RequestTag/{DIGEST}": "?*"}}
    ec2 = user_access(
        aws, allow("ec2:CopySnapshot", resource=SNAPSHOTS, **requested), allow("ec2:CreateTags")
    ).client("ec2", config=ONCE)
    params = {"SourceSnapshotId": foreign, "SourceRegion": REGION, **specification("snapshot", OUR_TAG)}
    assert may(ec2, "copy_snapshot", **params)


def test_a_new_snapshot_and_its_source_have_statements_of_their_own(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    new = allow("ec2:CopySnapshot", resource=NEW_SNAPSHOT)
    source = allow("ec2:CopySnapshot", resource="arn:aws:ec2:*::snapshot/snap-*", **OURS)
    ec2 = user_access(aws, new, source).client("ec2", config=ONCE)
    assert may(ec2, "copy_snapshot", SourceSnapshotId=ours, SourceRegion=REGION)
    assert not may(ec2, "copy_snapshot", SourceSnapshotId=foreign, SourceRegion=REGION)
    for alone in (new, source):
        ec2 = user_access(aws, alone).client("ec2", config=ONCE)
        assert not may(ec2, "copy_snapshot", SourceSnapshotId=ours, SourceRegion=REGION)


def test_a_volume_is_made_only_when_the_tags_of_its_snapshot_allow_it(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    ec2 = user_access(
        aws,
        allow("ec2:CreateVolume", resource="arn:aws:ec2:*:*:volume/*"),
        allow("ec2:CreateVolume", resource=SNAPSHOTS, **OURS),
    ).client("ec2", config=ONCE)
    params = {"AvailabilityZone": f"{REGION}a", "Size": 1}
    assert may(ec2, "create_volume", **params)
    assert may(ec2, "create_volume", **params, SnapshotId=ours)
    assert not may(ec2, "create_volume", **params, SnapshotId=foreign)


def test_an_instance_is_launched_only_of_images_and_snapshots_whose_tags_allow_it(aws: Sandbox) -> None:
    ours, foreign = make_ami(aws), image(aws, snapshot(aws), "foreign")
    others = [
        f"arn:aws:ec2:*:*:{kind}/*"
        for kind in ("instance", "network-interface", "security-group", "subnet", "volume", "launch-template")
    ]
    launch = [
        allow("ec2:RunInstances", resource=others),
        allow("ec2:RunInstances", resource=[IMAGES, SNAPSHOTS], **OURS),
    ]
    ec2 = user_access(aws, *launch).client("ec2", config=ONCE)
    params = {"ImageId": ours, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1}
    assert may(ec2, "run_instances", **params)
    assert not may(ec2, "run_instances", **params | {"ImageId": foreign, "UserData": "#!/bin/sh"})
    disk = {"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": snapshot(aws)}}
    assert not may(ec2, "run_instances", **params, BlockDeviceMappings=[disk])
    template = {"LaunchTemplateName": "foreign"}
    aws.client("ec2").create_launch_template(**template, LaunchTemplateData={"ImageId": foreign})
    by_template = {"LaunchTemplate": template, "MinCount": 1, "MaxCount": 1}
    assert not may(ec2, "run_instances", **by_template)
    for kind in others[:5]:
        without = [allow("ec2:RunInstances", resource=[one for one in others if one != kind]), launch[1]]
        assert not may(user_access(aws, *without).client("ec2", config=ONCE), "run_instances", **params), kind


def test_an_instance_with_a_profile_needs_permission_to_pass_its_role(aws: Sandbox) -> None:
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    aws.client("iam").create_role(RoleName="admin", AssumeRolePolicyDocument=document)
    params = {
        "ImageId": make_ami(aws),
        "InstanceType": "t3.small",
        "MinCount": 1,
        "MaxCount": 1,
        "IamInstanceProfile": {"Name": "admin"},
    }
    assert not may(user_access(aws, allow("ec2:*")).client("ec2", config=ONCE), "run_instances", **params)
    to_ec2 = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    passing = allow("iam:PassRole", resource="arn:aws:iam::*:role/admin", **to_ec2)
    ec2 = user_access(aws, allow("ec2:*"), passing).client("ec2", config=ONCE)
    (instance,) = ec2.run_instances(**params)["Instances"]
    assert instance["IamInstanceProfile"]["Arn"].endswith(":instance-profile/admin")


def test_an_import_needs_permission_for_task_and_snapshot(aws: Sandbox) -> None:
    aws.client("s3").put_object(Bucket="vmsnix-images", Key="vmsnix/k", Body=b"x")
    task, passing = "arn:aws:ec2:*:*:import-snapshot-task/*", allow("iam:PassRole")
    params = {
        "DiskContainer": {"Format": "RAW", "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "vmsnix/k"}}
    }
    for resources, allowed in (([task], False), ([SNAPSHOTS], False), ([task, SNAPSHOTS], True)):
        ec2 = user_access(aws, passing, allow("ec2:ImportSnapshot", resource=resources)).client(
            "ec2", config=ONCE
        )
        assert may(ec2, "import_snapshot", **params) is allowed


def test_a_snapshot_of_a_volume_needs_permission_for_both(aws: Sandbox) -> None:
    volume = aws.client("ec2").create_volume(AvailabilityZone=f"{REGION}a", Size=1)["VolumeId"]
    only = {"ArnLike": {"ec2:ParentVolume": f"arn:aws:ec2:*:*:volume/{volume}"}}
    new = allow("ec2:CreateSnapshot", resource=SNAPSHOTS, **only)
    assert not may(user_access(aws, new).client("ec2", config=ONCE), "create_snapshot", VolumeId=volume)
    both = [new, allow("ec2:CreateSnapshot", resource="arn:aws:ec2:*:*:volume/*")]
    assert may(user_access(aws, *both).client("ec2", config=ONCE), "create_snapshot", VolumeId=volume)


def test_deregistering_reports_the_snapshots_that_the_caller_may_not_delete(aws: Sandbox) -> None:
    """Source: DeleteSnapshotReturnCode in the Amazon EC2 API Reference."""
    root, ours = snapshot(aws), snapshot(aws, OUR_TAG)
    ec2 = user_access(
        aws, allow("ec2:DeregisterImage"), allow("ec2:DeleteSnapshot", resource=SNAPSHOTS, **OURS)
    ).client("ec2", config=ONCE)
    for owned, code in ((root, "missing-permissions"), (ours, "success")):
        made = image(aws, owned, owned)
        answer = ec2.deregister_image(ImageId=made, DeleteAssociatedSnapshots=True)
        assert answer["DeleteSnapshotResults"] == [{"SnapshotId": owned, "ReturnCode": code}]
        assert aws.client("ec2").describe_images(Owners=["self"])["Images"] == []
    (kept,) = aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert kept["SnapshotId"] == root


# The parent of a snapshot


def test_the_arn_of_a_parent_is_a_condition(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    alone = {"Null": {"ebs:ParentSnapshot": "true"}}
    ebs = user_access(aws, allow("ebs:StartSnapshot", resource=SNAPSHOTS, **alone)).client("ebs", config=ONCE)
    assert may(ebs, "start_snapshot", VolumeSize=1)
    assert not may(ebs, "start_snapshot", VolumeSize=1, ParentSnapshotId=ours)
    one = {"ArnLike": {"ebs:ParentSnapshot": f"arn:aws:ec2:*::snapshot/{ours}"}}
    ebs = user_access(aws, allow("ebs:StartSnapshot", **one)).client("ebs", config=ONCE)
    assert may(ebs, "start_snapshot", VolumeSize=1, ParentSnapshotId=ours)
    assert not may(ebs, "start_snapshot", VolumeSize=1, ParentSnapshotId=foreign)
    assert not may(ebs, "start_snapshot", VolumeSize=1)


def test_the_tags_of_a_parent_are_no_condition(aws: Sandbox) -> None:
    ours = snapshot(aws, OUR_TAG)
    ebs = user_access(aws, allow("ebs:StartSnapshot", **OURS)).client("ebs", config=ONCE)
    assert not may(ebs, "start_snapshot", VolumeSize=1, ParentSnapshotId=ours)


def test_size_and_description_of_a_snapshot_are_conditions(aws: Sandbox) -> None:
    small = {"NumericLessThanEquals": {"ebs:VolumeSize": "8"}, "StringLike": {"ebs:Description": "vmsnix *"}}
    ebs = user_access(aws, allow("ebs:StartSnapshot", **small)).client("ebs", config=ONCE)
    assert may(ebs, "start_snapshot", VolumeSize=8, Description="vmsnix disk")
    assert not may(ebs, "start_snapshot", VolumeSize=9, Description="vmsnix disk")
    assert not may(ebs, "start_snapshot", VolumeSize=8)


def test_blocks_are_read_only_when_the_tags_of_the_snapshot_allow_it(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    ebs = user_access(aws, allow("ebs:*", resource=SNAPSHOTS, **OURS)).client("ebs", config=ONCE)
    assert may(ebs, "list_snapshot_blocks", SnapshotId=ours)
    assert not may(ebs, "list_snapshot_blocks", SnapshotId=foreign)
    assert not may(ebs, "list_changed_blocks", FirstSnapshotId=ours, SecondSnapshotId=foreign)
    assert not may(ebs, "get_snapshot_block", SnapshotId=foreign, BlockIndex=0, BlockToken="x" * 8)


@pytest.mark.parametrize("made", ["imported", "copied", "uploaded"])
def test_snapshots_without_a_volume_have_the_arbitrary_parent_volume(aws: Sandbox, made: str) -> None:
    arbitrary = {"ArnLike": {"ec2:ParentVolume": "arn:aws:ec2:*:*:volume/vol-ffffffff"}}
    ec2 = aws.client("ec2")
    found = snapshot(aws)
    if made == "copied":
        found = ec2.copy_snapshot(SourceSnapshotId=found, SourceRegion=REGION)["SnapshotId"]
    if made == "imported":
        aws.client("s3").put_object(Bucket="vmsnix-images", Key="vmsnix/k", Body=b"x")
        source = {"Format": "RAW", "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "vmsnix/k"}}
        task = ec2.import_snapshot(DiskContainer=source)["ImportTaskId"]
        aws.clock.advance(3600)
        (shown,) = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"]
        found = shown["SnapshotTaskDetail"]["SnapshotId"]
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1)["VolumeId"]
    of_volume = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    user = user_access(aws, allow("ec2:CreateTags", resource=SNAPSHOTS, **arbitrary)).client(
        "ec2", config=ONCE
    )
    assert may(user, "create_tags", Resources=[found], Tags=[OUR_TAG])
    assert not may(user, "create_tags", Resources=[of_volume], Tags=[OUR_TAG])


# Tags


def test_only_tags_at_creation_have_a_create_action(aws: Sandbox) -> None:
    found = snapshot(aws)
    at_creation = {"Null": {"ec2:CreateAction": "false"}}
    carol = user_access(
        aws, allow("ebs:StartSnapshot", "ec2:CopySnapshot"), allow("ec2:CreateTags", **at_creation)
    )
    assert may(carol.client("ebs", config=ONCE), "start_snapshot", VolumeSize=1, Tags=[OUR_TAG])
    ec2 = carol.client("ec2", config=ONCE)
    copy = {"SourceSnapshotId": found, "SourceRegion": REGION}
    assert may(ec2, "copy_snapshot", **copy, **specification("snapshot", OUR_TAG))
    assert not may(ec2, "create_tags", Resources=[found], Tags=[OUR_TAG])
    other = {"StringEquals": {"ec2:CreateAction": "RegisterImage"}}
    ec2 = user_access(aws, allow("ec2:CopySnapshot"), allow("ec2:CreateTags", **other)).client(
        "ec2", config=ONCE
    )
    assert not may(ec2, "copy_snapshot", **copy, **specification("snapshot", OUR_TAG))


def test_tags_at_creation_are_those_of_their_own_kind(aws: Sandbox) -> None:
    source = image(aws, snapshot(aws, OUR_TAG), "source", OUR_TAG)
    tagged = {"StringEquals": {f"aws:RequestTag/{DIGEST}": "ab"}}
    ec2 = user_access(
        aws,
        allow("ec2:CopyImage", resource=IMAGES),
        allow("ec2:CopyImage", resource=SNAPSHOTS, **tagged),
        allow("ec2:CreateTags"),
    ).client("ec2", config=ONCE)
    params = {"Name": "copy", "SourceImageId": source, "SourceRegion": REGION}
    assert not may(ec2, "copy_image", **params, **specification("image", OUR_TAG))
    assert may(ec2, "copy_image", **params, **specification("snapshot", OUR_TAG))


def test_a_tagged_resource_may_get_tags_but_keeps_its_own(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    ec2 = user_access(
        aws,
        allow("ec2:CreateTags", "ec2:DeleteTags", resource=SNAPSHOTS, **OURS),
        {
            "Effect": "Deny",
            "Action": ["ec2:CreateTags", "ec2:DeleteTags"],
            "Resource": "*",
            "Condition": {"ForAnyValue:StringEquals": {"aws:TagKeys": DIGEST}},
        },
    ).client("ec2", config=ONCE)
    note = {"Key": "note", "Value": "x"}
    assert may(ec2, "create_tags", Resources=[ours], Tags=[note])
    assert not may(ec2, "create_tags", Resources=[ours], Tags=[note, OUR_TAG])
    assert not may(ec2, "delete_tags", Resources=[ours], Tags=[{"Key": DIGEST}])
    assert not may(ec2, "create_tags", Resources=[foreign], Tags=[note])
    assert not may(ec2, "create_tags", Resources=[ours, foreign], Tags=[note])


def test_the_tags_of_a_resource_have_two_condition_keys(aws: Sandbox) -> None:
    ours, foreign = snapshot(aws, OUR_TAG), snapshot(aws)
    older = {"StringEquals": {f"ec2:ResourceTag/{DIGEST}": "ab"}}
    ec2 = user_access(aws, allow("ec2:DeleteSnapshot", **older)).client("ec2", config=ONCE)
    assert may(ec2, "delete_snapshot", SnapshotId=ours)
    assert not may(ec2, "delete_snapshot", SnapshotId=foreign)


def test_tags_of_another_account_are_no_condition(aws: Sandbox) -> None:
    other = aws.other_account("111122223333")
    ebs, ec2 = other.client("ebs"), other.client("ec2")
    theirs = ebs.start_snapshot(VolumeSize=1, Tags=[OUR_TAG])["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=theirs, ChangedBlocksCount=0)
    aws.clock.advance(3600)
    shared = {"Attribute": "createVolumePermission", "OperationType": "add", "UserIds": [aws.account]}
    ec2.modify_snapshot_attribute(SnapshotId=theirs, **shared)
    user = user_access(
        aws, allow("ec2:RegisterImage", resource=IMAGES), allow("ec2:*", resource=SNAPSHOTS, **OURS)
    )
    assert not may(user.client("ec2", config=ONCE), "register_image", **registration(theirs, "theirs"))
    owner = {"StringEquals": {"ec2:Owner": "111122223333"}}
    user = user_access(
        aws, allow("ec2:RegisterImage", resource=IMAGES), allow("ec2:*", resource=SNAPSHOTS, **owner)
    )
    assert may(user.client("ec2", config=ONCE), "register_image", **registration(theirs, "theirs"))


def test_the_grantee_of_a_snapshot_is_a_condition(aws: Sandbox) -> None:
    found = snapshot(aws)
    nobody_else = {"StringEquals": {"ec2:Add/userId": "111122223333"}}
    ec2 = user_access(aws, allow("ec2:ModifySnapshotAttribute", **nobody_else)).client("ec2", config=ONCE)
    params = {"SnapshotId": found, "Attribute": "createVolumePermission", "OperationType": "add"}
    assert may(ec2, "modify_snapshot_attribute", **params, UserIds=["111122223333"])
    assert not may(ec2, "modify_snapshot_attribute", **params, UserIds=["210987654321"])
    assert not may(ec2, "modify_snapshot_attribute", **params, GroupNames=["all"])


def test_a_template_may_name_an_image_that_its_author_may_not_launch(aws: Sandbox) -> None:
    foreign = image(aws, snapshot(aws), "foreign")
    templates = "arn:aws:ec2:*:*:launch-template/*"
    ec2 = user_access(aws, allow("ec2:CreateLaunchTemplate", resource=templates)).client("ec2", config=ONCE)
    assert may(
        ec2, "create_launch_template", LaunchTemplateName="web", LaunchTemplateData={"ImageId": foreign}
    )
