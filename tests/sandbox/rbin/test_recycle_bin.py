"""Retention rules, and the deleted images and snapshots that they keep.

Sources: the operations in the Recycle Bin API Reference; "Considerations for Recycle Bin" in the Amazon EBS
User Guide.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.sandbox.clients import ONCE, SandboxClients, refused, user_access

DAY = 86400
IN_BIN = {"Key": "aws:recycle-bin:resource-in-bin", "Value": "true"}


def days(number: int) -> dict[str, Any]:
    return {"RetentionPeriodValue": number, "RetentionPeriodUnit": "DAYS"}


def pair(key: str, value: str) -> dict[str, str]:
    return {"ResourceTagKey": key, "ResourceTagValue": value}


DELAY = {"UnlockDelayValue": 7, "UnlockDelayUnit": "DAYS"}


def rule(aws: SandboxClients, number: int = 7, kind: str = "EBS_SNAPSHOT", **more: Any) -> str:
    """Create a rule, and return its ID when it is active."""
    made = aws.rbin.create_rule(RetentionPeriod=days(number), ResourceType=kind, **more)
    assert made["Status"] == "pending"
    aws.pass_time(3)
    return str(made["Identifier"])


def tagged(aws: SandboxClients, **tags: str) -> str:
    """Return a snapshot with tags."""
    snapshot_id = aws.snapshot()
    aws.ec2.create_tags(Resources=[snapshot_id], Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
    return snapshot_id


def in_bin(aws: SandboxClients) -> list[str]:
    found = aws.ec2.list_snapshots_in_recycle_bin()["Snapshots"]
    return [one["SnapshotId"] for one in found]


# What the bin keeps


def test_a_deleted_snapshot_is_kept_and_restored(aws: SandboxClients) -> None:
    rule(aws, 3)
    snapshot_id = aws.snapshot(Description="nightly")
    aws.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot_id,
        OperationType="add",
        UserIds=["111122223333"],
        Attribute="createVolumePermission",
    )
    shown = aws.describe_snapshot(snapshot_id)
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    with refused("InvalidSnapshot.NotFound"):
        aws.describe_snapshot(snapshot_id)
    with refused("InvalidSnapshot.NotFound"):
        aws.ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone="us-east-1a")
    (listed,) = aws.ec2.list_snapshots_in_recycle_bin()["Snapshots"]
    assert (listed["SnapshotId"], listed["Description"]) == (snapshot_id, "nightly")
    assert listed["VolumeId"] == shown["VolumeId"]
    assert listed["RecycleBinExitTime"] - listed["RecycleBinEnterTime"] == timedelta(days=3)
    aws.ec2.create_tags(Resources=[snapshot_id], Tags=[{"Key": "a", "Value": "b"}])
    described = aws.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [snapshot_id]}])["Tags"]
    assert {tag["Key"] for tag in described} == {"a", IN_BIN["Key"]}
    with refused("InvalidParameterValue", "reserved for internal use"):
        aws.ec2.delete_tags(Resources=[snapshot_id], Tags=[{"Key": IN_BIN["Key"]}])
    restored = aws.ec2.restore_snapshot_from_recycle_bin(SnapshotId=snapshot_id)
    assert (restored["State"], restored["OwnerId"]) == ("recovering", aws.account)
    assert in_bin(aws) == []
    again = aws.describe_snapshot(snapshot_id)
    assert again == shown | {"Tags": [{"Key": "a", "Value": "b"}]}
    shared = aws.ec2.describe_snapshot_attribute(SnapshotId=snapshot_id, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == [{"UserId": "111122223333"}]


def test_resources_are_deleted_after_the_retention_period(aws: SandboxClients) -> None:
    rule(aws, 3)
    snapshot_id = aws.snapshot()
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    aws.pass_time(3 * DAY - 600)
    assert in_bin(aws) == [snapshot_id]
    aws.pass_time(600)
    assert in_bin(aws) == []
    with refused("InvalidSnapshot.NotFound"):
        aws.ec2.restore_snapshot_from_recycle_bin(SnapshotId=snapshot_id)


def test_a_fast_clock_keeps_recycled_resources_for_minutes(aws: SandboxClients) -> None:
    rule(aws, 1)
    aws.sandbox.clock.speed = 10_000_000
    snapshot_id = aws.snapshot()
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    try:
        assert in_bin(aws) == [snapshot_id]
        assert aws.sandbox.clock.age(aws.sandbox.clock.now() - timedelta(seconds=1)) > DAY
    finally:
        aws.sandbox.clock.speed = 1000


def test_an_image_is_restored_after_its_snapshots(aws: SandboxClients) -> None:
    rule(aws, 2, "EC2_IMAGE")
    rule(aws, 5)
    image_id = aws.image(Description="web")
    aws.ec2.modify_image_attribute(ImageId=image_id, LaunchPermission={"Add": [{"UserId": "111122223333"}]})
    shown = aws.describe(image_id)
    snapshot_id = shown["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    aws.ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    assert in_bin(aws) == [snapshot_id]
    (listed,) = aws.ec2.list_images_in_recycle_bin(ImageIds=[image_id])["Images"]
    assert (listed["Name"], listed["Description"]) == (shown["Name"], "web")
    assert listed["RecycleBinExitTime"] - listed["RecycleBinEnterTime"] == timedelta(days=2)
    with refused("InvalidAMIID.NotFound"):
        aws.describe(image_id)
    with refused("InvalidSnapshot.NotFound", snapshot_id):
        aws.ec2.restore_image_from_recycle_bin(ImageId=image_id)
    aws.ec2.restore_snapshot_from_recycle_bin(SnapshotId=snapshot_id)
    assert aws.ec2.restore_image_from_recycle_bin(ImageId=image_id)["Return"] is True
    assert aws.describe(image_id) == shown
    grants = aws.ec2.describe_image_attribute(ImageId=image_id, Attribute="launchPermission")
    assert grants["LaunchPermissions"] == [{"UserId": "111122223333"}]
    with refused("InvalidAMIID.NotFound"):
        aws.ec2.restore_image_from_recycle_bin(ImageId=image_id)


def test_a_kept_image_does_not_use_its_snapshot(aws: SandboxClients) -> None:
    rule(aws, 2, "EC2_IMAGE")
    image_id = aws.image()
    snapshot_id = aws.describe(image_id)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    aws.ec2.deregister_image(ImageId=image_id)
    aws.pass_time(2)
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert in_bin(aws) == []  # the rule is for images
    with refused("InvalidSnapshot.NotFound"):
        aws.ec2.restore_image_from_recycle_bin(ImageId=image_id)


def test_the_longest_matching_rule_counts(aws: SandboxClients) -> None:
    rule(aws, 2)
    rule(aws, 30, ResourceTags=[pair("kind", "image"), pair("kind", "data")])
    lengths = []
    for kind in ("image", "other"):
        snapshot_id = tagged(aws, kind=kind)
        aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
        (one,) = aws.ec2.list_snapshots_in_recycle_bin(SnapshotIds=[snapshot_id])["Snapshots"]
        lengths.append((one["RecycleBinExitTime"] - one["RecycleBinEnterTime"]).days)
    assert lengths == [30, 2]


def test_exclusion_tags_of_a_region_level_rule(aws: SandboxClients) -> None:
    rule(aws, ExcludeResourceTags=[pair("keep", "no")])
    kept, deleted = tagged(aws, keep="yes"), tagged(aws, keep="no")
    for snapshot_id in (kept, deleted):
        aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert in_bin(aws) == [kept]


def test_a_tag_level_rule_keeps_nothing_else(aws: SandboxClients) -> None:
    rule(aws, ResourceTags=[pair("keep", "yes")])
    snapshot_id = tagged(aws, keep="no", other="yes")
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert in_bin(aws) == []


def test_a_new_rule_keeps_nothing_before_it_is_available(aws: SandboxClients) -> None:
    aws.clear()  # which stops the clock
    snapshot_id = aws.snapshot()
    made = aws.rbin.create_rule(RetentionPeriod=days(1), ResourceType="EBS_SNAPSHOT")
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert in_bin(aws) == []
    aws.pass_time(3)
    assert aws.rbin.get_rule(Identifier=made["Identifier"])["Status"] == "available"


def test_a_rule_is_for_its_region(aws: SandboxClients) -> None:
    aws.client("rbin", "eu-west-1").create_rule(RetentionPeriod=days(1), ResourceType="EBS_SNAPSHOT")
    aws.pass_time(3)
    aws.ec2.delete_snapshot(SnapshotId=aws.snapshot())
    assert in_bin(aws) == []


def test_a_deleted_rule_does_not_empty_the_bin(aws: SandboxClients) -> None:
    rule_id = rule(aws)
    snapshot_id = aws.snapshot()
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    aws.rbin.delete_rule(Identifier=rule_id)
    assert in_bin(aws) == [snapshot_id]


def test_the_bin_is_listed_in_pages(aws: SandboxClients) -> None:
    rule(aws)
    made = {aws.snapshot() for _ in range(6)}
    for snapshot_id in made:
        aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    pages = aws.ec2.get_paginator("list_snapshots_in_recycle_bin").paginate(PaginationConfig={"PageSize": 5})
    found = [[one["SnapshotId"] for one in page["Snapshots"]] for page in pages]
    assert [len(page) for page in found] == [5, 1]
    assert {*found[0], *found[1]} == made
    saved = aws.sandbox.save_tables()
    aws.sandbox.restore_tables(saved)
    assert set(in_bin(aws)) == made


# Rules


def test_a_rule_is_described_updated_and_deleted(aws: SandboxClients) -> None:
    made = aws.rbin.create_rule(
        RetentionPeriod=days(7),
        ResourceType="EC2_IMAGE",
        Description="Golden images",
        ResourceTags=[pair("kind", "golden")],
        Tags=[{"Key": "team", "Value": "os"}],
    )
    rule_id = made["Identifier"]
    assert made["RuleArn"] == f"arn:aws:rbin:us-east-1:{aws.account}:rule/{rule_id}"
    assert made["Tags"] == [{"Key": "team", "Value": "os"}]
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    aws.rbin.update_rule(Identifier=rule_id, RetentionPeriod=days(9), ResourceTags=[pair("kind", "")])
    shown = aws.rbin.get_rule(Identifier=rule_id)
    assert shown["RetentionPeriod"] == days(9)
    assert (shown["Description"], shown["ResourceTags"]) == ("Golden images", [pair("kind", "")])
    with refused("ValidationException"):
        aws.rbin.update_rule(Identifier=rule_id, ResourceType="EBS_SNAPSHOT")
    arn = made["RuleArn"]
    more = [{"Key": "a", "Value": "b"}, {"Key": "other one", "Value": ""}]
    aws.rbin.tag_resource(ResourceArn=arn, Tags=more)
    aws.rbin.untag_resource(ResourceArn=arn, TagKeys=["team", "other one"])
    assert aws.rbin.list_tags_for_resource(ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "b"}]
    aws.rbin.delete_rule(Identifier=rule_id)
    for call in (aws.rbin.get_rule, aws.rbin.delete_rule):
        with refused("ResourceNotFoundException"):
            call(Identifier=rule_id)


def test_rules_are_listed_by_type_and_tags(aws: SandboxClients) -> None:
    tag_level = rule(aws, ResourceTags=[pair("a", "b")])
    excluding = rule(aws, ExcludeResourceTags=[pair("c", "d")])
    other = rule(aws)
    rule(aws, kind="EC2_IMAGE")

    def listed(**more: Any) -> set[str]:
        pages = aws.rbin.get_paginator("list_rules").paginate(
            ResourceType="EBS_SNAPSHOT", PaginationConfig={"PageSize": 2}, **more
        )
        return {one["Identifier"] for page in pages for one in page["Rules"]}

    assert listed() == {tag_level, excluding, other}
    assert listed(ResourceTags=[pair("a", "b")]) == {tag_level}
    assert listed(ExcludeResourceTags=[pair("c", "d")]) == {excluding}
    with refused("ValidationException"):
        aws.rbin.list_rules(ResourceType="EBS_SNAPSHOT", NextToken="=")


@pytest.mark.parametrize(
    "wrong",
    [
        {"RetentionPeriod": days(366)},
        {"ResourceTags": [pair("a", "b")], "ExcludeResourceTags": [pair("c", "d")]},
        {"Description": "two\nlines"},
        {"ExcludeResourceTags": [pair("a", str(number)) for number in range(6)]},
    ],
    ids=lambda wrong: "+".join(wrong),
)
def test_invalid_rules_are_refused(aws: SandboxClients, wrong: dict[str, Any]) -> None:
    params = {"RetentionPeriod": days(7), "ResourceType": "EBS_SNAPSHOT"} | wrong
    with refused("ValidationException"):
        aws.rbin.create_rule(**params)
    assert aws.rbin.list_rules(ResourceType="EBS_SNAPSHOT")["Rules"] == []


@pytest.mark.parametrize(
    "more", [{"ResourceType": "EBS_VOLUME"}, {"LockConfiguration": {"UnlockDelay": DELAY}}], ids=str
)
def test_rules_for_volumes_and_locks_are_not_emulated(aws: SandboxClients, more: dict[str, Any]) -> None:
    with refused("NotImplemented"):
        aws.rbin.create_rule(**{"RetentionPeriod": days(7), "ResourceType": "EBS_SNAPSHOT"} | more)


# Permissions


def test_permissions_have_the_resource_type_and_the_tags_of_rules(aws: SandboxClients) -> None:
    own, other = rule(aws, Tags=[{"Key": "team", "Value": "os"}]), rule(aws, kind="EC2_IMAGE")
    kind = {"StringEquals": {"rbin:Request/ResourceType": "EBS_SNAPSHOT"}}
    statements = [
        {
            "Effect": "Allow",
            "Action": ["rbin:CreateRule", "rbin:ListRules"],
            "Resource": "*",
            "Condition": kind,
        },
        {
            "Effect": "Allow",
            "Action": "rbin:GetRule",
            "Resource": f"arn:aws:rbin:us-east-1:{aws.account}:rule/*",
            "Condition": {"StringEquals": {"rbin:Attribute/ResourceType": "EBS_SNAPSHOT"}},
        },
        {
            "Effect": "Allow",
            "Action": "rbin:DeleteRule",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:ResourceTag/team": "os"}},
        },
    ]
    rbin = user_access(aws.sandbox, *statements).client("rbin", config=ONCE)
    new = rbin.create_rule(RetentionPeriod=days(1), ResourceType="EBS_SNAPSHOT")["Identifier"]
    assert len(rbin.list_rules(ResourceType="EBS_SNAPSHOT")["Rules"]) == 2
    rbin.get_rule(Identifier=new)
    for call, params in (
        (rbin.create_rule, {"RetentionPeriod": days(1), "ResourceType": "EC2_IMAGE"}),
        (rbin.list_rules, {"ResourceType": "EC2_IMAGE"}),
        (rbin.get_rule, {"Identifier": other}),
        (rbin.delete_rule, {"Identifier": other}),
    ):
        with refused("AccessDeniedException", "is not authorized to perform: rbin:"):
            call(**params)
    rbin.delete_rule(Identifier=own)


def test_tags_in_the_bin_are_conditions_of_a_restore(aws: SandboxClients) -> None:
    rule(aws)
    own, other = tagged(aws, team="os"), tagged(aws, team="web")
    for snapshot_id in (own, other):
        aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    condition = {"StringEquals": {"aws:ResourceTag/team": "os"}}
    action = "ec2:RestoreSnapshotFromRecycleBin"
    allowed = {"Effect": "Allow", "Action": action, "Resource": "*", "Condition": condition}
    ec2 = user_access(aws.sandbox, allowed).client("ec2", config=ONCE)
    with refused("UnauthorizedOperation"):
        ec2.restore_snapshot_from_recycle_bin(SnapshotId=other)
    ec2.restore_snapshot_from_recycle_bin(SnapshotId=own)
