"""ImportSnapshot and its tasks.

Sources: public transcripts of ``aws ec2 describe-import-snapshot-tasks``; the operations' reference pages;
"Import a disk as a snapshot" and "Troubleshoot VM Import/Export".
"""

from __future__ import annotations

import io
import json
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import BLOCK, GIB, MIB, SandboxClients, refused
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox.ec2 import imports

if TYPE_CHECKING:
    from pathlib import Path

BUCKET, DAY = "vmsnix-images", 24 * 3600
VALIDATION = "ClientError: Disk validation failed"
NO_ROLE = "The service role vmimport provided does not exist or does not have sufficient permissions"


def fixed_vhd(disk: bytes, *, size: int | None = None, damage: bool = False) -> bytes:
    """Return a fixed VHD: the disk, then the footer of "Virtual Hard Disk Image Format Specification"."""
    footer = bytearray(512)
    footer[0:16] = b"conectix" + struct.pack(">II", 2, 0x10000)
    footer[16:24] = b"\xff" * 8
    footer[40:56] = struct.pack(">QQ", size or len(disk), size or len(disk))
    footer[60:64] = struct.pack(">I", 2)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    footer[20] ^= damage
    return disk + bytes(footer)


@pytest.fixture
def ready(aws: SandboxClients) -> SandboxClients:
    aws.prepare(BUCKET)
    return aws


def start(aws: SandboxClients, key: str = "disk.vhd", region: str = "us-east-1", **more: Any) -> str:
    container = {"Format": more.pop("Format", "VHD"), "UserBucket": {"S3Bucket": BUCKET, "S3Key": key}}
    task_id: str = aws.client("ec2", region).import_snapshot(DiskContainer=container, **more)["ImportTaskId"]
    return task_id


def detail(aws: SandboxClients, task_id: str) -> dict[str, Any]:
    answer = aws.ec2.describe_import_snapshot_tasks(ImportTaskIds=[task_id])
    found: dict[str, Any] = answer["ImportSnapshotTasks"][0]["SnapshotTaskDetail"]
    return found


def finished(aws: SandboxClients, task_id: str) -> dict[str, Any]:
    """Return the detail of a task after its completion or failure."""
    aws.pass_time(900)
    detail(aws, task_id)
    aws.pass_time(60)
    return detail(aws, task_id)


def upload(aws: SandboxClients, content: bytes, key: str = "disk.vhd") -> None:
    aws.s3.put_object(Bucket=BUCKET, Key=key, Body=content)


def content_of(aws: SandboxClients, snapshot_id: str, size: int) -> bytes:
    """Return a snapshot's first bytes, read block by block."""
    disk = io.BytesIO(bytes(size))
    for block in aws.ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"]:
        index, token = block["BlockIndex"], block["BlockToken"]
        answer = aws.ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=index, BlockToken=token)
        disk.seek(index * BLOCK)
        disk.write(answer["BlockData"].read())
    return disk.getvalue()[:size]


def test_a_new_task_is_pending_without_details(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    shown = detail(ready, start(ready))
    assert shown == {
        "Status": "active",
        "StatusMessage": "pending",
        "Progress": "0",
        "DiskImageSize": 0.0,
        "UserBucket": {"S3Bucket": BUCKET, "S3Key": "disk.vhd"},
    }


def test_a_task_changes_its_state_with_time(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(25)
    validated = detail(ready, task)
    ready.pass_time(25)
    converting = detail(ready, task)
    assert (validated["StatusMessage"], validated["Progress"]) == ("validated", "32")
    assert validated["DiskImageSize"] == MIB + 512
    assert converting["StatusMessage"] == "downloading/converting"
    assert 32 < int(converting["Progress"]) < 100
    assert "SnapshotId" not in converting


def test_a_completed_task_has_its_snapshot_and_no_message(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    shown = finished(ready, start(ready))
    snapshot = ready.describe_snapshot(shown["SnapshotId"])
    assert sorted(shown) == ["DiskImageSize", "Format", "SnapshotId", "Status", "UserBucket"]
    assert shown["Status"] == "completed"
    assert (snapshot["State"], snapshot["VolumeSize"], snapshot["VolumeId"]) == (
        "completed",
        1,
        "vol-ffffffff",
    )


def test_the_waiter_of_boto3_succeeds(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(900)
    waiter = ready.ec2.get_waiter("snapshot_imported")
    waiter.wait(ImportTaskIds=[task], WaiterConfig={"Delay": 0, "MaxAttempts": 2})


def test_the_imported_bytes_are_those_of_the_disk(ready: SandboxClients) -> None:
    disk = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB + 4096)
    upload(ready, fixed_vhd(disk))
    snapshot = finished(ready, start(ready))["SnapshotId"]
    assert content_of(ready, snapshot, len(disk)) == disk
    assert ready.describe_snapshot(snapshot)["FullSnapshotSizeInBytes"] == 5 * BLOCK


def test_an_image_of_an_imported_snapshot_launches_with_it(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    snapshot = finished(ready, start(ready))["SnapshotId"]
    device = ready.describe(ready.image(snapshot))["BlockDeviceMappings"][0]["Ebs"]
    assert (device["SnapshotId"], device["VolumeSize"]) == (snapshot, 1)


def test_a_large_disk_is_read_in_several_calls(
    ready: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "READ_SECONDS", 0.0)
    disk = os.urandom(BLOCK) + bytes(BLOCK) + os.urandom(2 * BLOCK)
    for image_format, content in (("VHD", fixed_vhd(disk)), ("RAW", disk)):
        upload(ready, content)
        task = start(ready, Format=image_format)
        ready.pass_time(900)
        progress = [detail(ready, task)["Status"] for _ in range(6)]
        assert progress[0] == "active"
        assert progress[-1] == "completed"
        assert content_of(ready, detail(ready, task)["SnapshotId"], len(disk)) == disk


def test_a_source_that_changes_during_the_import_fails_the_task(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(25)
    assert detail(ready, task)["StatusMessage"] == "validated"
    upload(ready, fixed_vhd(b"\2" * MIB))
    assert finished(ready, task)["Status"] == "deleted"


def test_an_object_of_several_parts_is_one_disk(ready: SandboxClients) -> None:
    disk = os.urandom(6 * MIB)
    upload_id = ready.s3.create_multipart_upload(Bucket=BUCKET, Key="disk.vhd")["UploadId"]
    whole, parts = fixed_vhd(disk), []
    for number, begin in enumerate((0, 5 * MIB), start=1):
        body = whole[begin : begin + 5 * MIB]
        answer = ready.s3.upload_part(
            Bucket=BUCKET, Key="disk.vhd", UploadId=upload_id, PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    ready.s3.complete_multipart_upload(
        Bucket=BUCKET, Key="disk.vhd", UploadId=upload_id, MultipartUpload={"Parts": parts}
    )
    assert content_of(ready, finished(ready, start(ready))["SnapshotId"], len(disk)) == disk


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * MIB,
        fixed_vhd(b"\1" * MIB, damage=True),
        fixed_vhd(b"\1" * MIB, size=2 * MIB),
        fixed_vhd(b"\1" * MIB)[:-100],
        b"#!/bin/sh\necho no disk\n",
        b"",
    ],
    ids=["zeros", "wrong checksum", "wrong size", "incomplete", "text", "empty"],
)
def test_a_file_that_is_not_a_vhd_fails_its_validation(ready: SandboxClients, content: bytes) -> None:
    upload(ready, content)
    shown = finished(ready, start(ready))
    assert shown["Status"] == "deleted"
    assert shown["StatusMessage"] == f"{VALIDATION} [Unsupported specified file format]"
    assert shown["DiskImageSize"] == 0.0
    assert "SnapshotId" not in shown


def test_a_failing_task_is_deleting_before_it_is_deleted(ready: SandboxClients) -> None:
    upload(ready, b"\0" * MIB)
    task = start(ready)
    ready.pass_time(25)
    first = detail(ready, task)
    ready.pass_time(25)
    assert [first["Status"], detail(ready, task)["Status"]] == ["deleting", "deleted"]


def test_a_file_that_is_not_a_vmdk_has_another_text(ready: SandboxClients) -> None:
    upload(ready, b"\0" * MIB)
    shown = finished(ready, start(ready, Format="VMDK"))
    assert shown["StatusMessage"] == f"{VALIDATION} [Unsupported VMDK File Format]"


def test_a_vhd_called_raw_is_imported_byte_for_byte(ready: SandboxClients) -> None:
    """Such an import succeeds, but its AMI never boots, because the disk has the bytes of the file."""
    content = fixed_vhd(b"\1" * MIB)
    upload(ready, content)
    snapshot = finished(ready, start(ready, Format="RAW"))["SnapshotId"]
    assert content_of(ready, snapshot, len(content)) == content


def test_the_format_may_be_lower_case(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    assert finished(ready, start(ready, Format="vhd"))["Format"] == "VHD"


def test_an_unknown_format_is_refused_at_once(ready: SandboxClients) -> None:
    with refused("InvalidParameter"):
        start(ready, Format="ISO")


def test_a_missing_object_fails_the_task_later(ready: SandboxClients) -> None:
    shown = finished(ready, start(ready, "no-such-key"))
    reason = "We do not have access to the given resource. Reason 404 Not Found"
    assert (shown["Status"], shown["StatusMessage"]) == ("deleted", f"{VALIDATION} [{reason}]")


def test_an_object_that_the_role_may_not_read_fails_the_task_later(ready: SandboxClients) -> None:
    allow(ready, ["s3:GetObject"], f"arn:aws:s3:::{BUCKET}/images/*", ["s3:GetBucketLocation"])
    upload(ready, fixed_vhd(b"\1" * MIB))
    shown = finished(ready, start(ready))
    reason = "We do not have access to the given resource. Reason 403 Forbidden"
    assert (shown["Status"], shown["StatusMessage"]) == ("deleted", f"{VALIDATION} [{reason}]")


def test_a_source_deleted_before_completion_fails_the_task(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(60)
    assert detail(ready, task)["StatusMessage"] == "downloading/converting"
    ready.s3.delete_object(Bucket=BUCKET, Key="disk.vhd")
    assert finished(ready, task)["Status"] == "deleted"


def test_a_source_may_be_deleted_after_completion(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    snapshot = finished(ready, task)["SnapshotId"]
    ready.s3.delete_object(Bucket=BUCKET, Key="disk.vhd")
    assert detail(ready, task)["Status"] == "completed"
    assert content_of(ready, snapshot, MIB) == b"\1" * MIB


def allow(
    aws: SandboxClients, actions: list[str], resource: str, bucket_actions: list[str] | None = None
) -> None:
    statements = [{"Effect": "Allow", "Action": actions, "Resource": resource}]
    if bucket_actions:
        statements.append({"Effect": "Allow", "Action": bucket_actions, "Resource": f"arn:aws:s3:::{BUCKET}"})
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    aws.client("iam").put_role_policy(RoleName="vmimport", PolicyName="vmimport", PolicyDocument=document)


def test_an_unknown_role_is_refused_at_once(aws: SandboxClients) -> None:
    with refused("InvalidParameter", NO_ROLE):
        start(aws)


def test_a_role_for_another_bucket_has_the_same_text(ready: SandboxClients) -> None:
    allow(ready, ["s3:GetObject"], "arn:aws:s3:::another-bucket/*")
    with refused("InvalidParameter", NO_ROLE):
        start(ready)


@pytest.mark.parametrize(
    "statement",
    [
        {"Principal": {"Service": "ec2.amazonaws.com"}},
        {"Condition": {"StringEquals": {"sts:Externalid": "another"}}},
        {"Effect": "Deny"},
    ],
    ids=["another service", "another external id", "denied"],
)
def test_a_role_that_does_not_trust_vm_import_has_the_same_text(
    ready: SandboxClients, statement: dict[str, Any]
) -> None:
    usual = {"Effect": "Allow", "Principal": {"Service": "vmie.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [usual | statement]})
    ready.client("iam").update_assume_role_policy(RoleName="vmimport", PolicyDocument=document)
    with refused("InvalidParameter", NO_ROLE):
        start(ready)


def test_a_role_of_another_name_can_be_given(ready: SandboxClients) -> None:
    with refused("InvalidParameter", "The service role importer provided does not exist"):
        start(ready, RoleName="importer")
    ready.prepare(BUCKET, role="importer")
    upload(ready, fixed_vhd(b"\1" * MIB))
    assert finished(ready, start(ready, RoleName="importer"))["Status"] == "completed"


def test_a_bucket_of_another_region_is_refused_at_once(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    with refused("InvalidParameter", "The given S3 object is not local to the region"):
        start(ready, region="eu-west-1")


def test_the_object_may_be_given_as_a_url(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    container = {"Format": "VHD", "Url": f"s3://{BUCKET}/disk.vhd"}
    shown = finished(ready, ready.ec2.import_snapshot(DiskContainer=container)["ImportTaskId"])
    assert (shown["Status"], shown["Url"]) == ("completed", f"s3://{BUCKET}/disk.vhd")


def test_tags_are_set_on_the_task_and_not_on_the_snapshot(ready: SandboxClients) -> None:
    tags = [{"Key": "Name", "Value": "node"}]
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready, TagSpecifications=[{"ResourceType": "import-snapshot-task", "Tags": tags}])
    snapshot = finished(ready, task)["SnapshotId"]
    shown = ready.ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"][0]
    assert shown["Tags"] == tags
    assert "Tags" not in ready.describe_snapshot(snapshot)
    assert ready.describe_snapshot(snapshot)["Description"].endswith(task)


def test_the_same_token_makes_one_task(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    assert start(ready, ClientToken="once") == start(ready, ClientToken="once")
    with refused("IdempotentParameterMismatch"):
        start(ready, ClientToken="once", Description="another")


def test_a_client_token_returns_its_failed_task(ready: SandboxClients) -> None:
    upload(ready, b"\0" * MIB)
    task = start(ready, ClientToken="first")
    finished(ready, task)
    upload(ready, fixed_vhd(b"\1" * MIB))
    assert start(ready, ClientToken="first") == task
    assert finished(ready, start(ready, ClientToken="second"))["Status"] == "completed"


def test_a_task_can_be_cancelled_while_it_runs(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(60)
    answer = ready.ec2.cancel_import_task(ImportTaskId=task, CancelReason="enough")
    assert (answer["PreviousState"], answer["State"]) == ("active", "deleting")
    assert finished(ready, task)["Status"] == "deleted"
    assert ready.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_a_finished_task_cannot_be_cancelled(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    finished(ready, task)
    with refused("IncorrectState"):
        ready.ec2.cancel_import_task(ImportTaskId=task)


def test_unknown_tasks_are_refused(ready: SandboxClients) -> None:
    with refused("InvalidConversionTaskId"):
        ready.ec2.cancel_import_task(ImportTaskId="import-snap-0123456789abcdef0")
    with refused("InvalidConversionTaskId.Malformed"):
        ready.ec2.describe_import_snapshot_tasks(ImportTaskIds=["task"])


def test_finished_tasks_are_listed_for_seven_days(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    snapshot = finished(ready, task)["SnapshotId"]
    ready.pass_time(6 * DAY)
    assert detail(ready, task)["Status"] == "completed"
    ready.pass_time(2 * DAY)
    with refused("InvalidConversionTaskId"):
        detail(ready, task)
    assert ready.describe_snapshot(snapshot)["State"] == "completed"


def test_a_snapshot_appears_without_a_call_for_its_task(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    task = start(ready)
    ready.pass_time(900)
    snapshots = ready.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert [s["Description"] for s in snapshots] == [f"Created by AWS-VMImport service for {task}"]


def test_the_volume_is_as_large_as_the_disk_and_a_whole_number_of_gib(
    ready: SandboxClients, tmp_path: Path
) -> None:
    """A small dynamic VHD can contain a large disk. The volume has the size of the disk."""

    make_sample_image(tmp_path, size=5 * GIB + MIB, name="large")
    vhd = next(tmp_path.rglob("*.vhd"))
    upload(ready, vhd.read_bytes(), "large.vhd")
    shown = finished(ready, start(ready, "large.vhd"))
    assert shown["DiskImageSize"] == vhd.stat().st_size < 100 * MIB
    assert ready.describe_snapshot(shown["SnapshotId"])["VolumeSize"] == 6


def test_twenty_tasks_run_at_once(ready: SandboxClients) -> None:
    """Source: quota "Number of import snapshot tasks"."""
    upload(ready, fixed_vhd(b"\1" * MIB))
    for _ in range(20):
        start(ready)
    with refused("ResourceCountLimitExceeded"):
        start(ready)


def test_a_fault_rule_can_cancel_an_import_as_aws_sometimes_does(ready: SandboxClients) -> None:
    """Public reports: about one import in a hundred fails so, and succeeds when it is repeated."""
    text = "SERVER_ERROR : conversion : AWS initiated task cancellation"
    rule = {"op": "ec2:ImportSnapshot", "nth": 1, "do": "outcome", "outcome": {"status_message": text}}
    ready.sandbox.faults.add(rule)
    upload(ready, fixed_vhd(b"\1" * MIB))
    first, second = finished(ready, start(ready)), finished(ready, start(ready))
    assert (first["Status"], first["StatusMessage"]) == ("deleted", text)
    assert second["Status"] == "completed"


def test_an_encrypted_import_makes_an_encrypted_snapshot(ready: SandboxClients) -> None:
    upload(ready, fixed_vhd(b"\1" * MIB))
    shown = finished(ready, start(ready, Encrypted=True))
    snapshot = ready.describe_snapshot(shown["SnapshotId"])
    assert snapshot["Encrypted"] is True
    assert snapshot["KmsKeyId"] == shown["KmsKeyId"]


def test_tasks_are_filtered_by_state_and_tags(ready: SandboxClients) -> None:
    """The filters of DescribeImportImageTasks and those for tags, which public tools use."""
    upload(ready, fixed_vhd(bytes(MIB)))
    tags = [{"ResourceType": "import-snapshot-task", "Tags": [{"Key": "a", "Value": "1"}]}]
    tagged, other = start(ready, TagSpecifications=tags), start(ready)

    def found(name: str, value: str) -> list[str]:
        answer = ready.ec2.describe_import_snapshot_tasks(Filters=[{"Name": name, "Values": [value]}])
        return [task["ImportTaskId"] for task in answer["ImportSnapshotTasks"]]

    assert (found("tag:a", "1"), found("tag-key", "a")) == ([tagged], [tagged])
    assert (found("task-state", "active"), found("task-state", "completed")) == (sorted([tagged, other]), [])
