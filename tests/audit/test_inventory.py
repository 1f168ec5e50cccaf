"""What a scan lists, and what it does if something cannot be read."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.account import DIGEST, FOREIGN_ACCOUNT, OTHER_ACCOUNT, REGION, Owner
from tests.support import join, wait_until
from vmsnix_ops import errors, publish
from vmsnix_ops.audit import inventory, policies, rules, views
from vmsnix_ops.aws import images, snapshots
from vmsnix_ops.aws.iam.policies import PolicyScope, policy_document
from vmsnix_ops.records import schemas

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTHER_REGION = "eu-west-1"
BLOCK_BYTES = 512 * 1024


def row(found: inventory.Inventory, resource_id: str) -> dict[str, Any]:
    (one,) = found.frame[found.frame["resource_id"] == resource_id].to_dict("records")
    return one


def written_snapshot(own: Owner, blocks: int) -> str:
    """Return a completed snapshot that stores this number of blocks."""
    ebs, data = own.client("ebs"), bytes(BLOCK_BYTES)
    made: str = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    sent = {"DataLength": BLOCK_BYTES, "Checksum": checksum, "ChecksumAlgorithm": "SHA256"}
    for index in range(blocks):
        ebs.put_snapshot_block(SnapshotId=made, BlockIndex=index, BlockData=data, **sent)
    ebs.complete_snapshot(SnapshotId=made, ChangedBlocksCount=blocks)
    own.aws.clock.advance(60)
    return made


def test_an_empty_account_gives_an_empty_frame_with_all_columns(own: Owner) -> None:
    found = own.scan(regions=[REGION])
    assert tuple(found.frame.columns) == schemas.INVENTORY.names
    assert (len(found.frame), found.unread, dict(found.regions)) == (0, (), {(own.account, REGION): 0})
    assert len(found.summary()) == 0


def test_a_scan_without_findings_names_the_function_that_has_them(own: Owner) -> None:
    with pytest.raises(AttributeError, match=r"Use audit\.check\(\.\.\.\)\.findings"):
        _ = own.scan().findings


def test_amis_and_snapshots_have_size_state_and_references(own: Owner) -> None:
    ami = own.ami(tags=DIGEST)
    orphan = own.snapshot()
    instance = own.launch(ami)
    found = own.scan(regions=[REGION])
    one = row(found, ami)
    assert (one["kind"], one["state"], one["image"], one["size_gib"]) == ("ami", "available", "web", 3)
    assert (one["public"], one["encrypted"], one["imds_support"]) == (False, False, "v2.0")
    assert (one["referenced"], json.loads(one["references"])[0]) == (
        True,
        {"kind": "instance", "id": instance, "type": "pending"},
    )
    snapshot = json.loads(one["snapshots"])[0]
    assert (row(found, snapshot)["referenced"], json.loads(row(found, snapshot)["references"])) == (
        True,
        [{"kind": "ami", "id": ami}],
    )
    assert (row(found, orphan)["referenced"], row(found, orphan)["created_at"].tzinfo is not None) == (
        False,
        True,
    )


def test_a_sum_without_the_amis_counts_each_stored_byte_once(own: Owner) -> None:
    shared, alone = written_snapshot(own, 3), written_snapshot(own, 5)
    disks = [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": shared}}]
    second = {"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": alone}}
    one, both = own.ami(BlockDeviceMappings=disks), own.ami(BlockDeviceMappings=[*disks, second])
    written_snapshot(own, 1)
    ec2 = own.client("ec2")
    stored = sum(
        one["FullSnapshotSizeInBytes"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    )
    frame = own.scan(regions=[REGION]).frame
    assert stored == 9 * BLOCK_BYTES
    assert frame["stored_bytes"].sum() > stored  # with the AMIs, shared snapshots count several times
    counted = frame[frame["cost_basis"] != "snapshots"]
    assert counted["stored_bytes"].sum() == stored
    assert set(frame[frame["cost_basis"] == "snapshots"]["resource_id"]) == {one, both}


def test_an_ami_is_used_unused_or_unknown(own: Owner) -> None:
    named, shared, unused = own.ami(), own.ami(), own.ami()
    own.template(named)
    own.share(shared, OTHER_ACCOUNT)
    found = own.scan(regions=[REGION])
    assert row(found, named)["referenced"] is True
    assert row(found, unused)["referenced"] is False
    assert row(found, shared)["referenced"] not in (True, False)
    total = views.totals(found)
    counted = [total[f"amis_{use}"] for use in ("referenced", "unreferenced", "unknown")]
    assert (counted, total["amis"]) == ([1, 1, 1], 3)


def test_several_regions_are_scanned_together(own: Owner) -> None:
    here, there = own.ami(), own.ami(OTHER_REGION)
    found = own.scan(regions=["all"])
    assert {row(found, here)["region"], row(found, there)["region"]} == {REGION, OTHER_REGION}
    assert len(found.regions) == 17


def test_lists_of_several_pages_are_read_completely(own: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    amis = {own.ami() for _ in range(12)}
    monkeypatch.setattr(images, "PAGE", 5)
    own.aws.calls.clear()
    found = own.scan(regions=[REGION])
    assert set(found.amis["resource_id"]) == amis
    assert own.aws.calls.count("ec2:DescribeImages") == 3


def test_an_unknown_region_is_refused_with_the_nearest(own: Owner) -> None:
    with pytest.raises(errors.RegionError, match="eu-west-1"):
        own.scan(regions=["eu-wset-1"])


def test_imports_uploads_and_objects_are_listed(own: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    own.aws.prepare(bucket="vmsnix-images")
    s3, ebs, ec2 = own.client("s3"), own.client("ebs"), own.client("ec2")
    s3.put_object(Bucket="vmsnix-images", Key="vmsnix/a.raw", Body=b"12345")
    s3.put_object(Bucket="vmsnix-images", Key="elsewhere/b", Body=b"1")
    upload = s3.create_multipart_upload(Bucket="vmsnix-images", Key="vmsnix/c.raw")["UploadId"]
    s3.upload_part(Bucket="vmsnix-images", Key="vmsnix/c.raw", UploadId=upload, PartNumber=1, Body=b"123")
    direct = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    container = {
        "Format": "RAW",
        "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "vmsnix/a.raw"},
    }
    task = ec2.import_snapshot(DiskContainer=container)["ImportTaskId"]
    monkeypatch.setenv("VMSNIX_BUCKET", "vmsnix-images")
    found = own.scan(regions=[REGION])
    kinds = dict(zip(found.frame["resource_id"], found.frame["kind"], strict=True))
    assert kinds == {
        "vmsnix/a.raw": "object",
        upload: "multipart-upload",
        direct: "direct-upload",
        task: "import-task",
    }
    assert (row(found, upload)["stored_bytes"], row(found, upload)["name"]) == (3, "vmsnix/c.raw")
    assert row(found, task)["source"] == "s3://vmsnix-images/vmsnix/a.raw"


def test_a_region_that_cannot_be_read_is_listed_as_unread(own: Owner) -> None:
    ami = own.ami()
    own.fail("ec2:Describe*", "AuthFailure", 401, where={"region": OTHER_REGION})
    found = own.scan(regions=[REGION, OTHER_REGION])
    assert row(found, ami)["referenced"] is False
    assert [(one.region, one.source) for one in found.unread] == [(OTHER_REGION, "region")]
    assert set(found.regions) == {(own.account, REGION)}


def test_a_region_that_is_not_enabled_is_reported_once_with_a_fix(own: Owner) -> None:
    found = own.scan(regions=[REGION, "me-south-1"])
    (one,) = found.unread
    assert "AuthFailure" in one.error.why
    assert "aws account enable-region --region-name me-south-1" in one.error.fix
    assert set(found.regions) == {(own.account, REGION)}
    shown = rules.evaluate(found, rules=["unread"])
    assert list(shown["region"]) == ["me-south-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one_by_one": "maybe"}, "auto, yes, no"),
        ({"deadline_minutes": 0}, "0.001 and 10080 minutes"),
    ],
)
def test_invalid_parameters_are_refused_before_anything_is_read(
    own: Owner, options: dict[str, Any], message: str
) -> None:
    own.aws.calls.clear()
    with pytest.raises(errors.ParameterError, match=message):
        own.scan(regions=[REGION], **options)
    assert own.aws.calls.count("*") == 0


def test_a_price_of_an_unknown_region_is_refused_with_the_nearest(own: Owner, tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_text('[snapshot_prices]\n"us-eest-1" = [0.1, 0.1]\n')
    with pytest.raises(errors.SettingsError, match=r"us-eest-1.*Did you mean"):
        own.scan(regions=[REGION])


def test_a_scan_stops_at_its_deadline(own: Owner) -> None:
    own.ami()
    own.fail("ec2:DescribeSnapshots", "Throttling", 400)
    found = own.scan(regions=[REGION, OTHER_REGION], deadline_minutes=1 / 60)
    assert {(one.region, one.source) for one in found.unread} == {
        (REGION, "region"),
        (OTHER_REGION, "region"),
    }
    assert all("deadline_minutes" in one.error.fix for one in found.unread)


def test_an_interrupted_scan_stops_at_once(own: Owner) -> None:
    # Throttling does not end, so only the interrupt can end the scan soon.
    throttled = {"op": "ec2:DescribeSnapshots", "do": "error", "code": "Throttling", "http": 400}
    rule = own.aws.faults.add(throttled)
    main = threading.main_thread().ident
    assert main is not None

    ended = threading.Event()

    def interrupt() -> None:
        """Press Ctrl-C several times, because Python loses one that arrives in a finalizer."""
        wait_until(lambda: rule.applied, "the throttled call")
        for _ in range(20):
            signal.pthread_kill(main, signal.SIGINT)
            if ended.wait(5):
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(errors.InterruptedRunError, match="starts from the beginning"):
        own.scan(regions=["all"])
    ended.set()
    join(thread)


def test_throttled_and_dropped_requests_are_retried(own: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    monkeypatch.setattr("vmsnix_ops.aws.paging.TimeLimit.wait", lambda _self, _seconds: None)
    for operation in ("sts:GetCallerIdentity", "ec2:DescribeRegions", "ssm:DescribeParameters"):
        storm = {"op": operation, "nth": list(range(1, 15)), "do": "error", "code": "Throttling"}
        own.aws.faults.add({**storm, "http": 400})
    own.aws.faults.add({"op": "ec2:DescribeLaunchTemplates", "nth": [1, 2, 3, 4], "do": "drop"})
    assert own.scan(regions=["all"]).unread == ()


def test_a_missing_permission_makes_usage_in_that_region_unknown(own: Owner) -> None:
    here, there = own.ami(), own.ami(OTHER_REGION)
    own.fail("autoscaling:*", "AccessDenied", where={"region": OTHER_REGION})
    found = own.scan(regions=[REGION, OTHER_REGION])
    assert row(found, here)["referenced"] is False
    assert row(found, there)["referenced"] not in (True, False)
    (one,) = found.unread
    assert (one.region, one.source) == (OTHER_REGION, "Auto Scaling groups")
    assert one.error.fix


def test_an_ami_with_missing_fields_is_listed_without_them(own: Owner) -> None:
    ami = own.ami()
    own.aws.faults.add(
        {
            "op": "ec2:DescribeImages",
            "do": "blank",
            "when": "after",
            "fields": ["CreationDate", "Name", "BlockDeviceMappings"],
        }
    )
    one = row(own.scan(regions=[REGION]), ami)
    assert (one["size_gib"], one["snapshots"]) == (0, "[]")


def test_long_throttling_does_not_end_a_scan(own: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    ami = own.ami()
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    for operation in ("ec2:DescribeImages", "ec2:DescribeSnapshots"):
        rule = {"op": operation, "nth": list(range(1, 8)), "do": "error", "http": 503}
        own.aws.faults.add(rule | {"code": "RequestLimitExceeded"})
    found = own.scan(regions=[REGION])
    assert (found.unread, set(found.amis["resource_id"])) == ((), {ami})


def test_amis_are_read_one_by_one_only_in_small_regions(own: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    own.ami(), own.ami()
    monkeypatch.setattr(inventory, "MAX_ONE_BY_ONE", 1)
    own.aws.calls.clear()
    found = own.scan(regions=[REGION])
    assert found.not_read_one_by_one == ((own.account, REGION),)
    assert own.aws.calls.count("ec2:DescribeImageAttribute") == 0
    assert own.scan(regions=[REGION], one_by_one="yes").not_read_one_by_one == ()
    assert own.aws.calls.count("ec2:DescribeImageAttribute") == 2


def test_an_ami_that_was_not_read_one_by_one_is_not_unused(own: Owner) -> None:
    named, shared, silent = own.ami(), own.ami(), own.ami()
    own.template(named)
    own.share(shared, FOREIGN_ACCOUNT)
    found = own.scan(regions=[REGION], one_by_one="no")
    assert row(found, named)["referenced"] is True
    assert row(found, shared)["referenced"] not in (True, False)
    assert row(found, silent)["referenced"] not in (True, False)
    assert row(own.scan(regions=[REGION], one_by_one="yes"), silent)["referenced"] is False


def test_an_ami_registered_during_the_scan_has_its_snapshot(
    own: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[str] = []

    def owned(ec2: Any) -> tuple[images.Ami, ...]:
        late.append(own.ami())
        return read(ec2)

    read = images.list_amis
    monkeypatch.setattr(images, "list_amis", owned)
    found = own.scan(regions=[REGION])
    (snapshot,) = json.loads(row(found, late[0])["snapshots"])
    assert (row(found, snapshot)["kind"], row(found, snapshot)["referenced"]) == ("snapshot", True)


def test_each_reference_is_listed_once(own: Owner) -> None:
    ami = own.ami()
    instance, template = own.launch(ami), own.template(ami)
    own.client("ssm").put_parameter(Name="/app", Type="String", DataType="aws:ec2:image", Value=ami)
    own.aws.clock.advance(60)
    proof = json.loads(row(own.scan(regions=[REGION]), ami)["references"])
    named = [(one["kind"], one["id"]) for one in proof if one["kind"] != "launched"]
    assert named == [("instance", instance), ("launch-template", template), ("parameter", "/app")]


def test_a_public_ami_is_never_unused(own: Owner) -> None:
    ami = own.ami()
    own.share(ami, "all")
    for choice in ("yes", "no"):
        one = row(own.scan(regions=[REGION], one_by_one=choice), ami)
        assert one["referenced"] not in (True, False)
        assert json.loads(one["references"]) == [{"kind": "shared-with", "id": "all", "type": "everybody"}]


# Other accounts


@pytest.fixture
def member(own: Owner) -> Owner:
    """Another account, which ours may read."""
    other = Owner(own.aws, own.aws.other_account(OTHER_ACCOUNT))
    iam, place = other.client("iam"), PolicyScope(account=own.account)
    trust = json.dumps(policies.member_trust(place))
    iam.create_role(RoleName="vmsnix-auditor", AssumeRolePolicyDocument=trust)
    document = json.dumps(policy_document(policies.member_actions(), PolicyScope(account=OTHER_ACCOUNT)))
    iam.put_role_policy(RoleName="vmsnix-auditor", PolicyName="read", PolicyDocument=document)
    return other


def test_other_accounts_are_read_through_a_role(own: Owner, member: Owner) -> None:
    ours, theirs = own.ami(), member.ami()
    found = own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT])
    assert (row(found, ours)["account"], row(found, theirs)["account"]) == (own.account, OTHER_ACCOUNT)
    assert found.unread == ()
    by_arn = own.scan(regions=[REGION], accounts=[f"arn:aws:iam::{OTHER_ACCOUNT}:role/vmsnix-auditor"])
    assert list(by_arn.amis["resource_id"]) == [theirs]


def test_an_instance_in_another_account_is_a_reference(own: Owner, member: Owner) -> None:
    ami = own.ami()
    own.share(ami, OTHER_ACCOUNT)
    instance = member.launch(ami)
    found = own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT])
    assert row(found, ami)["referenced"] is True
    (proof,) = [one for one in json.loads(row(found, ami)["references"]) if one["kind"] == "instance"]
    assert (proof["id"], proof["account"]) == (instance, OTHER_ACCOUNT)
    assert found.foreign_references == ()


def test_the_usage_of_an_ami_shared_only_with_scanned_accounts_is_known(own: Owner, member: Owner) -> None:
    only, also, named = own.ami(), own.ami(), own.ami()
    own.share(only, OTHER_ACCOUNT)
    own.share(also, OTHER_ACCOUNT, FOREIGN_ACCOUNT)
    own.share(named, OTHER_ACCOUNT)
    member.template(named)
    both: dict[str, Any] = {"regions": [REGION], "accounts": [own.account, OTHER_ACCOUNT]}
    found = own.scan(**both)
    uses = [row(found, ami)["referenced"] for ami in (only, also, named)]
    assert (uses[0], uses[1] in (True, False), uses[2]) == (False, False, True)
    shared = {"kind": "shared-with", "id": OTHER_ACCOUNT, "type": "account"}
    assert shared in json.loads(row(found, only)["references"])
    own.fail("ec2:DescribeInstances", where={"principal": f"*{OTHER_ACCOUNT}*"})
    assert row(own.scan(**both), only)["referenced"] not in (True, False)


def test_an_audited_account_allows_reading_public_parameters(own: Owner, member: Owner) -> None:
    ami = member.ami()
    member.template(ami)
    member.template(
        "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64", "aws"
    )
    found = own.scan(regions=[REGION], accounts=[OTHER_ACCOUNT])
    assert (found.unread, row(found, ami)["referenced"]) == ((), True)


def test_an_account_that_refuses_is_listed_as_unread(own: Owner) -> None:
    ami = own.ami()
    found = own.scan(regions=[REGION], accounts=[own.account, FOREIGN_ACCOUNT])
    assert list(found.amis["resource_id"]) == [ami]
    (one,) = found.unread
    assert (one.account, one.source) == (FOREIGN_ACCOUNT, "account")
    assert "sts:AssumeRole" in f"{one.error}"


def test_an_invalid_account_is_refused(own: Owner) -> None:
    with pytest.raises(errors.ParameterError, match="12 digits"):
        own.scan(regions=[REGION], accounts=["12345"])


# References to AMIs of others


def test_references_to_foreign_and_missing_amis_are_listed(own: Owner) -> None:
    other = Owner(own.aws, own.aws.other_account(FOREIGN_ACCOUNT))
    theirs, deregistered = other.ami(), own.ami()
    other.share(theirs, own.account)
    own.template(theirs, "theirs")
    own.template(deregistered, "gone")
    own.client("ec2").deregister_image(ImageId=deregistered)
    references = {one.ami_id: one for one in own.scan(regions=[REGION]).foreign_references}
    assert {ami: one.owner for ami, one in references.items()} == {theirs: FOREIGN_ACCOUNT, deregistered: ""}
    assert references[deregistered].reference.kind == "launch-template"


def test_a_reference_to_an_unshared_ami_is_listed_with_its_owner(own: Owner, member: Owner) -> None:
    ours = own.ami()
    own.launch(ours)
    template = member.template(ours)
    (one,) = own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT]).foreign_references
    assert (one.account, one.ami_id, one.reference.id) == (OTHER_ACCOUNT, ours, template)
    assert (one.owner, one.unshared) == ("", own.account)
    own.share(ours, OTHER_ACCOUNT)
    assert own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT]).foreign_references == ()


def test_a_missing_ami_is_listed_although_another_account_cannot_be_read(own: Owner, member: Owner) -> None:
    deregistered = own.ami()
    own.template(deregistered), member.template(deregistered)
    own.client("ec2").deregister_image(ImageId=deregistered)
    own.fail("ec2:DescribeImages", where={"principal": f"*{OTHER_ACCOUNT}*"})
    found = own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT])
    assert [(one.account, one.ami_id) for one in found.foreign_references] == [(own.account, deregistered)]


# Compared with boto3


def test_the_scan_lists_the_same_as_boto3(own: Owner) -> None:
    for _ in range(3):
        own.ami()
    own.snapshot()
    ec2 = own.client("ec2")
    found = own.scan(regions=[REGION])
    images = {one["ImageId"] for one in ec2.describe_images(Owners=["self"])["Images"]}
    snapshots = {one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert set(found.amis["resource_id"]) == images
    assert set(found.frame["resource_id"]) == images | snapshots


def test_a_published_ami_has_its_image_and_digest(aws: Any, plan: Callable[..., publish.PublishPlan]) -> None:
    result = plan().apply()
    found = inventory.scan(regions=[REGION], session=aws.session())
    one = row(found, result.ami_id)
    assert (one["name"], one["image"], one["digest"]) == (result.image_name, "sample", result.digest)
    assert row(found, result.snapshot_id)["digest"] == result.digest


def test_the_plot_has_units_on_its_axes(own: Owner) -> None:
    own.snapshot()
    axes = views.plot(own.scan(regions=[REGION])).axes[0]
    assert "USD" in axes.get_ylabel()
    assert "age" in axes.get_xlabel()


def test_public_snapshots_take_one_call_per_region(own: Owner) -> None:
    public, private = own.snapshot(), own.snapshot()
    own.client("ec2").modify_snapshot_attribute(
        SnapshotId=public, Attribute="createVolumePermission", OperationType="add", GroupNames=["all"]
    )
    found = own.scan(regions=[REGION])
    assert (row(found, public)["public"], row(found, private)["public"]) == (True, False)


def test_a_missing_bucket_is_reported_with_a_fix(own: Owner) -> None:
    (gap,) = own.scan(regions=[REGION], buckets=["no-such-bucket"]).unread
    assert (gap.source, gap.error.what) == (
        "bucket no-such-bucket",
        "The bucket no-such-bucket does not exist.",
    )
    assert "aws s3 mb s3://no-such-bucket" in gap.error.fix


def test_an_unshared_ami_of_a_scanned_account_is_missing_in_the_other(own: Owner, member: Owner) -> None:
    ami = own.ami()
    own.template(ami)
    theirs = member.template(ami)
    found = own.scan(regions=[REGION], accounts=[own.account, OTHER_ACCOUNT])
    (lost,) = found.foreign_references
    assert (lost.account, lost.reference.id, lost.owner) == (OTHER_ACCOUNT, theirs, "")


def test_a_snapshot_of_unknown_usage_is_not_plotted_as_unused(own: Owner) -> None:
    own.snapshot()
    own.fail("ec2:DescribeImages")
    found = own.scan(regions=[REGION])
    axes = views.plot(replace(found, frame=found.frame.assign(monthly_usd=1.0))).axes[0]
    heights = {bars.get_label(): sum(bar.get_height() for bar in bars) for bars in axes.containers}
    assert heights["unused"] == 0
    assert heights["unknown: a source could not be read"] > 0


def test_an_unmarked_copy_is_not_an_unfinished_upload() -> None:
    columns = inventory.InventoryColumns("run", datetime.now(UTC), "012345678901", REGION)
    now = datetime.now(UTC)
    pending = {"State": "pending", "VolumeId": "vol-ffffffff", "VolumeSize": 1, "StartTime": now}
    texts = ("Copied for DestinationAmi ami-1 from SourceAmi ami-2", "[Copied snap-1 from us-east-1]", "")
    rows = [{**pending, "SnapshotId": f"snap-{n}", "Description": text} for n, text in enumerate(texts)]
    inventory.add_snapshots(columns, map(snapshots.parse_snapshot, rows))
    kinds = columns.arrow().column("kind").to_pylist()
    assert kinds == ["snapshot", "snapshot", "direct-upload"]
