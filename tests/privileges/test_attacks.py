"""No policy gives access to resources of others: AMIs, snapshots, secrets and roles.

Each attack sends vmsnix's tags, to find policies that decide by the tags of the *request*. An attack makes
all calls that may reach its goal, continues after a refused call, and returns whether it reached the goal.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.privileges.account import BUCKET, REGION, Account
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.documents import policy
from vmsnix_ops.cli.policies import JOBS

if TYPE_CHECKING:
    import boto3

    from vmsnix_ops.sandbox import Sandbox

OTHER, ACCOMPLICE = "eu-west-1", "210987654321"
SECRET, BLOCK = "correct horse battery staple", b"payroll!" * 65536
OURS = {tagging.NAME: "altf4llc-ecs-node", tagging.DIGEST: "0" * 64, tagging.IMAGE: "ecs-node"}
OUR_TAGS = tagging.to_list(OURS)
CODES = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthFailure"}


@dataclass(frozen=True)
class Victim:
    """Resources of another user in the account, and one AMI of vmsnix.

    Attributes
    ----------
    snapshot, ami
        A snapshot with data, and an AMI of it.
    copy
        A copy of that snapshot without tags, like the snapshots of VM Import.
    task
        An import of another user.
    instance
        A running instance.
    our_ami
        An AMI that vmsnix published.
    """

    snapshot: str
    ami: str
    copy: str
    task: str
    instance: str
    our_ami: str


@dataclass
class Thief:
    """A user with a policy who attacks the victim."""

    session: boto3.Session
    victim: Victim
    aws: Sandbox
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    def does(self, service: str, operation: str, *, region: str = REGION, **request: Any) -> Any:
        """Return the answer of a call, or None if access is denied; raise all other errors."""
        if (service, region) not in self.clients:
            self.clients[service, region] = self.session.client(service, region_name=region)
        client = self.clients[service, region]
        try:
            return getattr(client, operation)(**request) or {}
        except client.exceptions.ClientError as error:
            code, text = error.response["Error"]["Code"], error.response["Error"]["Message"]
            # The error of an import whose role may not be passed.
            if code in CODES or "does not exist or does not have sufficient permissions" in text:
                return None
            raise

    def shares(self, *, snapshot: str = "", ami: str = "", region: str = REGION) -> bool:
        """Share with another account, and return whether AWS allowed it."""
        if snapshot:
            entries = {"Add": [{"UserId": ACCOMPLICE}]}
            request: dict[str, Any] = {"SnapshotId": snapshot, "CreateVolumePermission": entries}
            request["Attribute"] = "createVolumePermission"
            return self.does("ec2", "modify_snapshot_attribute", region=region, **request) is not None
        request = {"ImageId": ami, "LaunchPermission": {"Add": [{"UserId": ACCOMPLICE}]}}
        return self.does("ec2", "modify_image_attribute", region=region, **request) is not None

    def reads(self, snapshot: str) -> bool:
        """Return whether AWS returns a block of the snapshot."""
        listed = self.does("ebs", "list_snapshot_blocks", SnapshotId=snapshot)
        # An attacker may have a token from another source.
        token = listed["Blocks"][0]["BlockToken"] if listed else self._token(snapshot)
        request = {"SnapshotId": snapshot, "BlockIndex": 0, "BlockToken": token}
        return self.does("ebs", "get_snapshot_block", **request) is not None

    def _token(self, snapshot: str) -> str:
        listed = self.aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot)
        return str(listed["Blocks"][0]["BlockToken"])


Attack = Callable[[Thief], bool]


def tag_then_delete(thief: Thief) -> bool:
    victim = thief.victim
    _tag(thief, victim.ami)
    won = thief.does("ec2", "deregister_image", ImageId=victim.ami) is not None
    thief.aws.clock.advance(600)
    for snapshot in (victim.snapshot, victim.copy) if won else (victim.copy,):
        _tag(thief, snapshot)
        won |= thief.does("ec2", "delete_snapshot", SnapshotId=snapshot) is not None
    return won


def tag_then_disable(thief: Thief) -> bool:
    _tag(thief, thief.victim.ami)
    request = ("disable_image", "enable_image", "enable_image_deregistration_protection")
    return any(thief.does("ec2", name, ImageId=thief.victim.ami) is not None for name in request)


def tag_then_share(thief: Thief) -> bool:
    victim, won = thief.victim, False
    for snapshot in (victim.snapshot, victim.copy):
        _tag(thief, snapshot)
        won |= thief.shares(snapshot=snapshot)
    _tag(thief, victim.ami)
    return won | thief.shares(ami=victim.ami)


def tag_then_read(thief: Thief) -> bool:
    victim, won = thief.victim, False
    for snapshot in (victim.snapshot, victim.copy):
        _tag(thief, snapshot)
        won |= thief.reads(snapshot)
    return won


def tag_then_terminate(thief: Thief) -> bool:
    instance = thief.victim.instance
    tags = tagging.to_list({tagging.SMOKE: thief.victim.our_ami})
    thief.does("ec2", "create_tags", Resources=[instance], Tags=tags)
    return thief.does("ec2", "terminate_instances", InstanceIds=[instance]) is not None


def tag_then_cancel(thief: Thief) -> bool:
    task = thief.victim.task
    _tag(thief, task)
    return thief.does("ec2", "cancel_import_task", ImportTaskId=task) is not None


def copy_then_share(thief: Thief) -> bool:
    won = False
    for region in (REGION, OTHER):
        request: dict[str, Any] = {"Name": "mine", "SourceImageId": thief.victim.ami, "SourceRegion": REGION}
        request["TagSpecifications"] = _at_creation("image", "snapshot")
        if (copied := thief.does("ec2", "copy_image", region=region, **request)) is not None:
            thief.aws.clock.advance(3600)
            won |= thief.shares(ami=copied["ImageId"], region=region)
        request = {"SourceSnapshotId": thief.victim.snapshot, "SourceRegion": REGION}
        request["TagSpecifications"] = _at_creation("snapshot")
        if (copied := thief.does("ec2", "copy_snapshot", region=region, **request)) is not None:
            thief.aws.clock.advance(3600)
            won |= thief.shares(snapshot=copied["SnapshotId"], region=region)
    return won


def register_then_share(thief: Thief) -> bool:
    won = False
    for number, snapshot in enumerate((thief.victim.snapshot, thief.victim.copy)):
        _tag(thief, snapshot)
        won |= _registers_and_uses(thief, f"mine-{number}", snapshot)
    return won


def register_a_bundle_then_share(thief: Thief) -> bool:
    """Register a bundle in S3, with which no snapshot is named, and then share, copy or launch it."""
    location, tags = f"{BUCKET}/payroll/image.manifest.xml", _at_creation("image")
    request: dict[str, Any] = {"Name": "bundle", "ImageLocation": location, "TagSpecifications": tags}
    made = thief.does("ec2", "register_image", VirtualizationType="hvm", **request)
    return made is not None and (thief.shares(ami=made["ImageId"]) or _launches(thief, made["ImageId"]))


def child_then_read(thief: Thief) -> bool:
    child = _child(thief)
    return bool(child) and thief.reads(child)


def child_then_share(thief: Thief) -> bool:
    child = _child(thief)
    return bool(child) and thief.shares(snapshot=child)


def child_then_register_and_share(thief: Thief) -> bool:
    child = _child(thief)
    return bool(child) and _registers_and_uses(thief, "child", child)


def launch_with_user_data(thief: Thief) -> bool:
    _tag(thief, thief.victim.ami)
    return _launches(thief, thief.victim.ami)


def launch_ours_with_a_foreign_disk(thief: Thief) -> bool:
    devices = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": thief.victim.snapshot}}]
    return _launches(thief, thief.victim.our_ami, BlockDeviceMappings=devices)


def pass_role(thief: Thief) -> bool:
    container = {"Format": "RAW", "UserBucket": {"S3Bucket": BUCKET, "S3Key": "vmsnix/x.raw"}}
    tags = _at_creation("import-snapshot-task")
    request: dict[str, Any] = {"DiskContainer": container, "RoleName": "admin", "TagSpecifications": tags}
    return thief.does("ec2", "import_snapshot", **request) is not None


def read_secret(thief: Thief) -> bool:
    won = False
    for name in ("/app/password", "/vmsnix/password"):
        answers = (
            thief.does("ssm", "get_parameter", Name=name, WithDecryption=True),
            thief.does("ssm", "get_parameters", Names=[name], WithDecryption=True),
            thief.does("ssm", "get_parameter_history", Name=name, WithDecryption=True),
            thief.does("ssm", "get_parameters_by_path", Path=name.rpartition("/")[0], WithDecryption=True),
        )
        won |= any(SECRET in str(answer) for answer in answers)
    return won


def give_away_our_tag(thief: Thief) -> bool:
    """Change the tag by which every policy decides, or remove it; with no keys, DeleteTags removes all."""
    ours, ec2 = thief.victim.our_ami, thief.aws.client("ec2")
    (before,) = ec2.describe_images(ImageIds=[ours])["Images"]
    thief.does("ec2", "create_tags", Resources=[ours], Tags=[{"Key": tagging.DIGEST, "Value": "1" * 64}])
    thief.does("ec2", "delete_tags", Resources=[ours], Tags=[{"Key": tagging.DIGEST}])
    thief.does("ec2", "delete_tags", Resources=[ours])
    (after,) = ec2.describe_images(ImageIds=[ours])["Images"]
    return tagging.to_dict(before["Tags"])[tagging.DIGEST] != tagging.to_dict(after.get("Tags")).get(
        tagging.DIGEST
    )


def overwrite_another_object(thief: Thief) -> bool:
    request = {"Bucket": BUCKET, "Key": "payroll/2026.csv"}
    put = thief.does("s3", "put_object", Body=b"mine", **request)
    return put is not None or thief.does("s3", "get_object", **request) is not None


ATTACKS: tuple[Attack, ...] = (
    tag_then_cancel,  # the import ends when time passes, as it does in other attacks
    child_then_read,
    child_then_share,
    child_then_register_and_share,
    copy_then_share,
    tag_then_disable,
    tag_then_share,
    tag_then_read,
    tag_then_terminate,
    register_then_share,
    register_a_bundle_then_share,
    launch_with_user_data,
    launch_ours_with_a_foreign_disk,
    tag_then_delete,
    pass_role,
    read_secret,
    give_away_our_tag,
    overwrite_another_object,
)


def _tag(thief: Thief, resource: str) -> None:
    """Try to add vmsnix's tags: all of them, a single one, and one without the prefix vmsnix:."""
    for tags in (OUR_TAGS, [{"Key": tagging.DIGEST, "Value": "0" * 64}], [{"Key": "Name", "Value": "x"}]):
        thief.does("ec2", "create_tags", Resources=[resource], Tags=tags)


def _at_creation(*kinds: str) -> list[dict[str, Any]]:
    return [one for kind in kinds for one in tagging.tag_specifications(kind, OURS)]


def _child(thief: Thief) -> str:
    """Return a completed snapshot that starts from the foreign one; empty when that is refused."""
    request = {"VolumeSize": 1, "ParentSnapshotId": thief.victim.snapshot}
    started = thief.does("ebs", "start_snapshot", Tags=OUR_TAGS, **request)
    if started is None:
        return ""
    child = str(started["SnapshotId"])
    assert thief.does("ebs", "complete_snapshot", SnapshotId=child, ChangedBlocksCount=0) is not None
    thief.aws.clock.advance(3600)
    return child


def _registers_and_uses(thief: Thief, name: str, snapshot: str) -> bool:
    """Return whether the thief registers an AMI of a snapshot and then shares or launches it."""
    made = thief.does(
        "ec2",
        "register_image",
        Name=name,
        Architecture="x86_64",
        RootDeviceName="/dev/sda1",
        VirtualizationType="hvm",
        EnaSupport=True,
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
        TagSpecifications=_at_creation("image"),
    )
    if made is None:
        return False
    thief.aws.clock.advance(600)
    return thief.shares(ami=made["ImageId"]) | _launches(thief, made["ImageId"])


def _launches(thief: Thief, ami: str, **more: Any) -> bool:
    tags = {**OURS, tagging.SMOKE: ami}
    given = [one for kind in ("instance", "volume") for one in tagging.tag_specifications(kind, tags)]
    request = {"ImageId": ami, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1}
    request |= {"UserData": "#!/bin/sh\ncat /dev/xvda", "TagSpecifications": given}
    return thief.does("ec2", "run_instances", **(request | more)) is not None


@pytest.fixture
def victim(account: Account) -> Victim:
    """Resources of another user in the account."""
    aws = account.aws
    ec2, ebs, iam = aws.client("ec2"), aws.client("ebs"), aws.client("iam")
    ssm, s3 = aws.client("ssm"), aws.client("s3")
    checksum = b64encode(hashlib.sha256(BLOCK).digest()).decode()
    snapshot = ebs.start_snapshot(VolumeSize=1, Tags=[{"Key": "Name", "Value": "payroll"}])["SnapshotId"]
    ebs.put_snapshot_block(
        SnapshotId=snapshot,
        BlockIndex=0,
        BlockData=BLOCK,
        DataLength=len(BLOCK),
        Checksum=checksum,
        ChecksumAlgorithm="SHA256",
    )
    ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=1)
    aws.clock.advance(3600)
    copy = ec2.copy_snapshot(SourceSnapshotId=snapshot, SourceRegion=REGION)["SnapshotId"]
    aws.clock.advance(3600)
    ami = ec2.register_image(
        Name="payroll",
        RootDeviceName="/dev/sda1",
        VirtualizationType="hvm",
        Architecture="x86_64",
        EnaSupport=True,
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
    )["ImageId"]
    run = ec2.run_instances(ImageId=ami, InstanceType="t3.small", MinCount=1, MaxCount=1)
    s3.put_object(Bucket=BUCKET, Key="payroll/disk.raw", Body=b"\0" * 2**20)
    s3.put_object(Bucket=BUCKET, Key="payroll/2026.csv", Body=b"salaries")
    s3.put_object(Bucket=BUCKET, Key="payroll/image.manifest.xml", Body=b"<manifest/>")
    s3.put_object(Bucket=BUCKET, Key="vmsnix/x.raw", Body=b"\0" * 2**20)
    for name in ("/app/password", "/vmsnix/password"):
        ssm.put_parameter(Name=name, Value=SECRET, Type="SecureString")
    services = {"Service": ["ec2.amazonaws.com", "vmie.amazonaws.com"]}
    trust = {"Effect": "Allow", "Principal": services, "Action": "sts:AssumeRole"}
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.create_role(RoleName="admin", AssumeRolePolicyDocument=_policy(trust))
    iam.put_role_policy(RoleName="admin", PolicyName="all", PolicyDocument=_policy(everything))
    instance, ours = run["Instances"][0]["InstanceId"], make_ami(aws)
    aws.clock.speed = 1.0
    source = {"S3Bucket": BUCKET, "S3Key": "payroll/disk.raw"}
    task = ec2.import_snapshot(DiskContainer={"Format": "RAW", "UserBucket": source})["ImportTaskId"]
    return Victim(snapshot, ami, copy, task, instance, ours)


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps(policy(statement))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.variants(quick=3)
def test_no_attack_succeeds_with_the_policy_of_a_job(account: Account, victim: Victim, job: str) -> None:
    thief = Thief(account.session(JOBS[job].actions(), regions=(REGION, OTHER)), victim, account.aws)
    assert [attack.__name__ for attack in ATTACKS if attack(thief)] == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_each_attack_succeeds_with_all_permissions(account: Account, victim: Victim, attack: Attack) -> None:
    """So an attack fails because of the policy, not because of a mistake in the attack."""
    assert attack(Thief(account.aws.session(), victim, account.aws))
