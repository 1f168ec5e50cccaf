"""One AMI for one image: reuse, refusals, and two concurrent publishers."""

from __future__ import annotations

import base64
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import join, wait_until
from vmsnix_ops import errors
from vmsnix_ops.aws import images, imports
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import Progress
from vmsnix_ops.sandbox.ec2.snapshots import ARCHIVE_SECONDS, RESTORE_SECONDS

REGION, EUROPE = "us-east-1", "eu-west-1"


def describe(aws, ami_id):
    return aws.client("ec2", REGION).describe_images(ImageIds=[ami_id], IncludeDisabled=True)["Images"][0]


def set_register_image(image, **wanted):
    """Give the image options for its registration."""
    path = image / "nix-support" / "image-info.json"
    info = json.loads(path.read_text())
    info["registerImage"] = {**info.get("registerImage", {}), **wanted}
    path.write_text(json.dumps(info))


class Messages:
    """The messages of a publish."""

    def __init__(self):
        self.events = []
        self.progress = Progress(self.events.append)

    def __str__(self):
        return "\n".join(event.message or "" for event in self.events)


# Two publishers at once


def to_snapshot(plan, built):
    return plan.import_snapshot(plan.upload(built))


def direct(plan, **changes):
    return plan(via="direct", bucket="", role_name="", **changes)


def wait_for_import(aws):
    def begun() -> bool:
        return any(call.operation == "ImportSnapshot" and call.outcome == "ok" for call in aws.calls)

    wait_until(begun, "the import")


def both_snapshots(aws, first, second):
    """Let an import and a direct upload create a snapshot each, concurrently."""
    aws.clock.speed = 1.0  # the import stays under way
    builts = [first.build(), second.build()]
    found = []
    importing = threading.Thread(target=lambda: found.append(to_snapshot(first, builts[0])), daemon=True)
    importing.start()
    wait_for_import(aws)
    source = second.upload(builts[1])
    aws.clock.speed = 2000.0
    made = second.import_snapshot(source)
    join(importing)
    assert found[0].snapshot_id != made.snapshot_id
    return found[0], made


@pytest.mark.parametrize("winner", ["import", "direct"])
@pytest.mark.variants(seconds=4)
def test_concurrent_import_and_direct_leave_one_snapshot_and_report_it(aws, plan, left, winner):
    plans = {"import": plan(verify="sample"), "direct": direct(plan, verify="sample")}
    snapshots = dict(zip(plans, both_snapshots(aws, *plans.values()), strict=True))
    order = [winner, *({*plans} - {winner})]
    registered = {via: plans[via].register(snapshots[via]) for via in order}
    results = [plans[via].finish(registered[via]) for via in order]

    there = left()
    assert len(there.amis) == len(there.snapshots) == 1
    assert {(one.ami_id, one.snapshot_id) for one in results} == {(there.amis[0], there.snapshots[0])}
    assert there.snapshots[0] == snapshots[winner].snapshot_id
    assert [one.outcome for one in results] == ["created", "reused"]
    assert all(one.snapshot.verified for one in registered.values())  # the second one compared the first's
    assert there.objects == []


def test_the_second_publisher_reports_a_snapshot_that_it_may_not_delete(aws, plan, left):
    messages = Messages()
    plans = plan(), direct(plan, progress=messages.progress)
    first, second = both_snapshots(aws, *plans)
    plans[0].register(first)
    aws.client("ec2", REGION).create_tags(
        Resources=[second.snapshot_id], Tags=[{"Key": "vmsnix:run", "Value": "another-run"}]
    )
    registered = plans[1].register(second)
    assert registered.snapshot.snapshot_id == first.snapshot_id
    assert sorted(left().snapshots) == sorted([first.snapshot_id, second.snapshot_id])
    assert f"aws ec2 delete-snapshot --snapshot-id {second.snapshot_id} --region {REGION}" in str(messages)


def test_the_second_publisher_keeps_the_snapshot_of_another_ami(aws, plan, left):
    messages = Messages()
    plans = plan(), direct(plan, progress=messages.progress)
    first, second = both_snapshots(aws, *plans)
    aws.client("ec2", REGION).register_image(
        Name="theirs",
        RootDeviceName="/dev/sda1",
        VirtualizationType="hvm",
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": second.snapshot_id}}],
    )
    plans[0].register(first)
    assert plans[1].register(second).snapshot.snapshot_id == first.snapshot_id
    assert sorted(left().snapshots) == sorted([first.snapshot_id, second.snapshot_id])
    assert "delete-snapshot" not in str(messages)  # it is used


def test_two_publishers_with_other_prefixes_share_one_import(aws, plan, left):
    plans = [plan(), plan(prefix="other")]
    aws.clock.speed = 1.0
    builts = [one.build() for one in plans]
    found = {}

    def work(number):
        found[number] = to_snapshot(plans[number], builts[number])

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    wait_for_import(aws)
    aws.clock.speed = 2000.0
    join(*threads)
    results = [one.finish(one.register(found[number])) for number, one in enumerate(plans)]
    assert len({one.snapshot_id for one in results}) == len(left().snapshots) == 1
    assert len({one.ami_id for one in results}) == 2


@pytest.mark.long(seconds=2)
def test_publishes_in_two_regions_do_not_affect_each_other(aws, plan):
    plans = [direct(plan), direct(plan, region=EUROPE)]
    results = []
    working = threading.Thread(target=lambda: results.append(finished(plans[0])), daemon=True)
    working.start()
    results.append(finished(plans[1]))
    join(working)
    assert {one.region for one in results} == {REGION, EUROPE}
    for one in results:
        ami = aws.client("ec2", one.region).describe_images(ImageIds=[one.ami_id])["Images"][0]
        assert ami["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] == one.snapshot_id


def finished(plan):
    return plan.finish(plan.register(to_snapshot(plan, plan.build())))


def test_an_interrupted_run_does_not_cancel_the_import_of_another(aws, plan, left):
    aws.clock.speed = 1.0

    def interrupt(event):
        if event.step == "import" and "active" in event.message:
            raise KeyboardInterrupt

    first, second = plan(), plan(progress=Progress(interrupt))
    builts = first.build(), second.build()
    found = []
    working = threading.Thread(target=lambda: found.append(to_snapshot(first, builts[0])), daemon=True)
    working.start()
    wait_for_import(aws)
    with pytest.raises(errors.InterruptedRunError):
        to_snapshot(second, builts[1])
    assert len(left().running) == 1
    aws.clock.speed = 2000.0
    join(working)
    assert found[0].outcome == "created"


# Unusable resources are not found


def test_a_failed_copy_of_our_name_does_not_stop_a_publish(aws, plan):
    source = direct(plan).apply()
    ec2 = aws.client("ec2", EUROPE)
    failed = ec2.copy_image(
        Name=source.image_name,
        SourceImageId=source.ami_id,
        SourceRegion=REGION,
        CopyImageTags=True,
        Encrypted=True,
        KmsKeyId="arn:aws:kms:us-east-1:012345678901:key/12345678-1234-1234-1234-123456789012",
    )["ImageId"]
    wait_until(
        lambda: ec2.describe_images(ImageIds=[failed])["Images"][0]["State"] == "failed", "the failed copy"
    )
    messages = Messages()
    result = direct(plan, region=EUROPE, progress=messages.progress).apply()
    assert result.outcome == "created"
    assert result.ami_id != failed
    assert ec2.describe_images(ImageIds=[result.ami_id])["Images"][0]["State"] == "available"
    assert f"aws ec2 deregister-image --image-id {failed} --region {EUROPE}" in str(messages)


def test_a_name_that_aws_keeps_for_an_unusable_ami_is_freed_by_the_command(aws, plan, monkeypatch):
    monkeypatch.setattr(images, "NAME_SECONDS", 0.5)
    plan().apply()
    for state in ("failed", "error", "invalid", "deregistered"):
        aws.faults.clear()
        aws.faults.add({"op": "ec2:DescribeImages", "do": "set", "when": "after", "values": {"State": state}})
        with pytest.raises(errors.RegistrationError, match=r"aws ec2 deregister-image --image-id ami-"):
            plan().apply()


def test_an_ami_that_is_pending_for_days_is_refused_before_the_upload(aws, plan, changes):
    plan().apply()
    changes()
    old = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    values = {"State": "pending", "CreationDate": old}
    aws.faults.add({"op": "ec2:DescribeImages", "do": "set", "when": "after", "values": values})
    with pytest.raises(errors.RegistrationError, match=r"never became available.*deregister-image"):
        plan().apply()
    assert changes() == []


@pytest.mark.parametrize("shown", [[], [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeType": "gp3"}}]])
@pytest.mark.parametrize("via", ["import", "direct"])
@pytest.mark.variants
def test_a_pending_ami_is_waited_for_and_compared_when_it_is_available(aws, plan, left, changes, via, shown):
    """A promotion copies it into this region. AWS reports neither its snapshot nor, at first, its disks."""
    made = direct(plan).apply()
    ec2 = aws.client("ec2", EUROPE)
    aws.prepare(bucket="vmsnix-images-europe", region=EUROPE)
    tags = describe(aws, made.ami_id)["Tags"]
    aws.clock.speed = 1.0
    copy = ec2.copy_image(
        Name=made.image_name,
        SourceImageId=made.ami_id,
        SourceRegion=REGION,
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")],
    )["ImageId"]
    values = {"BlockDeviceMappings": shown}
    aws.faults.add({"op": "ec2:DescribeImages", "do": "set", "when": "after", "values": values})
    asked = (
        plan(region=EUROPE, bucket="vmsnix-images-europe") if via == "import" else direct(plan, region=EUROPE)
    )
    built = asked.build()
    assert built.ami_id == copy
    changes()
    source = asked.upload(built)
    aws.faults.clear()
    aws.clock.speed = 2000.0
    result = asked.finish(asked.register(asked.import_snapshot(source)))
    assert (result.outcome, result.ami_id) == ("reused", copy)
    snapshot_id = ec2.describe_images(ImageIds=[copy])["Images"][0]["BlockDeviceMappings"][0]["Ebs"][
        "SnapshotId"
    ]
    assert result.snapshot_id == snapshot_id
    assert not {"ImportSnapshot", "StartSnapshot", "RegisterImage"} & set(changes())


def test_a_pending_ami_with_other_disks_is_refused_when_it_is_available(aws, plan, image, changes):
    set_register_image(image, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeType": "gp2"}}])
    plan().apply()
    set_register_image(image, BlockDeviceMappings=[])
    pending = {"State": "pending", "BlockDeviceMappings": []}
    changes()
    aws.faults.add(
        {"op": "ec2:DescribeImages", "do": "set", "when": "after", "nth": [1, 2], "values": pending}
    )
    with pytest.raises(errors.NameTakenError, match="gp2"):
        plan().apply()
    assert changes() == []


def test_a_disabled_ami_is_refused_before_the_upload(aws, plan, changes):
    made = plan().apply()
    aws.client("ec2", REGION).disable_image(ImageId=made.ami_id)
    changes()
    for dry_run in (True, False):
        with pytest.raises(errors.RegistrationError, match="--action restore"):
            plan(dry_run=dry_run).apply()
    assert changes() == []


@pytest.mark.parametrize("via", ["import", "direct"])
@pytest.mark.parametrize("days", [None, 3])
@pytest.mark.variants(seconds=4)
def test_an_archived_snapshot_of_our_bytes_is_not_registered(aws, plan, via, days):
    asked = {} if via == "import" else {"via": "direct", "bucket": "", "role_name": ""}
    first = plan(**asked).apply()
    ec2 = aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    ec2.modify_snapshot_tier(SnapshotId=first.snapshot_id, StorageTier="archive")
    aws.clock.advance(ARCHIVE_SECONDS)
    if days:
        ec2.restore_snapshot_tier(SnapshotId=first.snapshot_id, TemporaryRestoreDays=days)
        aws.clock.advance(RESTORE_SECONDS)
    second = plan(**asked).apply()
    assert second.outcome == "created"
    assert second.snapshot_id != first.snapshot_id
    ec2.deregister_image(ImageId=second.ami_id)
    aws.clock.advance(60)  # until the AMI no longer uses its snapshot
    ec2.delete_snapshot(SnapshotId=second.snapshot_id)
    if days:
        with pytest.raises(ec2.exceptions.ClientError, match="is archived"):
            ec2.modify_snapshot_tier(SnapshotId=first.snapshot_id)
    ec2.restore_snapshot_tier(SnapshotId=first.snapshot_id, PermanentRestore=True)
    aws.clock.advance(RESTORE_SECONDS)
    assert plan(**asked).apply().snapshot_id == first.snapshot_id


def test_a_snapshot_that_is_not_completed_is_not_found(aws, plan):
    digest = plan().apply().digest
    ec2 = aws.client("ec2", REGION)
    assert imports.find_snapshot(ec2, digest)
    for state in ("pending", "error", "recoverable", "recovering"):
        aws.faults.clear()
        aws.faults.add(
            {"op": "ec2:DescribeSnapshots", "do": "set", "when": "after", "values": {"State": state}}
        )
        assert imports.find_snapshot(ec2, digest) is None
        assert imports.find_usable_task(ec2, digest)[1] == (0 if state == "pending" else 1)


def test_an_ami_whose_snapshot_is_archived_is_not_reused(aws, plan):
    made = plan().apply()
    ec2 = aws.client("ec2", REGION)
    ec2.disable_image(ImageId=made.ami_id)
    ec2.modify_snapshot_tier(SnapshotId=made.snapshot_id, StorageTier="archive")
    aws.clock.advance(ARCHIVE_SECONDS)
    ec2.enable_image(ImageId=made.ami_id)
    with pytest.raises(
        errors.RegistrationError, match=f"restore-snapshot-tier --snapshot-id {made.snapshot_id}"
    ):
        plan().apply()


# The same bytes, registered otherwise


OTHERWISE = [
    ("ENA support", {"EnaSupport": False}),
    (
        "disk /dev/sda1",
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeType": "gp2"}}]},
    ),
    ("disk /dev/sda1", {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 20}}]}),
    (
        "disk /dev/sda1",
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}]},
    ),
    (
        "disk /dev/sdb",
        {
            "RootDeviceName": "/dev/sda1",
            "BlockDeviceMappings": [{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 8}}],
        },
    ),
    ("root device", {"RootDeviceName": "/dev/xvda"}),
    ("boot mode", {"BootMode": "uefi"}),
    ("boot mode", {"BootMode": "uefi-preferred"}),
    ("TPM support", {"BootMode": "uefi", "TpmSupport": "v2.0"}),
    ("UEFI data", {"BootMode": "uefi", "UefiData": base64.b64encode(b"variables").decode()}),
]


def test_an_ami_of_the_same_bytes_with_other_parameters_is_refused(plan, image, changes):
    plan().apply()
    plain = (image / "nix-support" / "image-info.json").read_text()
    changes()
    for field, wanted in OTHERWISE:
        (image / "nix-support" / "image-info.json").write_text(plain)
        set_register_image(image, **wanted)
        with pytest.raises(errors.NameTakenError, match=field):
            plan().apply()
    assert changes() == []
    assert plan(prefix="other").apply().outcome == "created"
    assert plan(prefix="other").apply().outcome == "reused"


def test_only_a_requested_size_that_is_larger_makes_another_ami(plan, image):
    def size(gib):
        set_register_image(
            image, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": gib}}]
        )

    size(20)
    first = plan().apply()
    set_register_image(image, BlockDeviceMappings=[])
    assert plan().apply().ami_id == first.ami_id
    size(19)
    assert plan().apply().ami_id == first.ami_id
    size(21)
    with pytest.raises(errors.NameTakenError, match=r"is gp3, 20 GiB.* and gp3, 21 GiB.* is requested"):
        plan().apply()


def test_delete_on_termination_is_always_set_for_additional_disks(aws, plan, image):
    """The default of AWS may change, and the next publish compares the value."""
    set_register_image(
        image,
        RootDeviceName="/dev/sda1",
        BlockDeviceMappings=[{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 8}}],
    )
    plan().apply()
    (call,) = (call for call in aws.calls if call.operation == "RegisterImage")
    on_termination = [mapping["Ebs"]["DeleteOnTermination"] for mapping in call.params["BlockDeviceMappings"]]
    assert on_termination == [True, True]
    assert plan().apply().outcome == "reused"


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.variants(seconds=2)
def test_an_additional_disk_with_another_encryption_is_refused(plan, image, encrypted):
    def mappings(**more):
        return [{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 8, **more}}]

    first, second = mappings(Encrypted=not encrypted), mappings(Encrypted=encrypted)
    set_register_image(image, RootDeviceName="/dev/sda1", BlockDeviceMappings=first)
    plan().apply()
    set_register_image(image, BlockDeviceMappings=second)
    with pytest.raises(errors.NameTakenError, match="encryption of disk /dev/sdb"):
        plan().apply()
    set_register_image(image, BlockDeviceMappings=first if encrypted else mappings(Encrypted=True))
    assert plan().apply().outcome == "reused"


def test_an_ami_without_session_tokens_is_not_reused(aws, plan):
    plan().apply()
    aws.faults.add({"op": "ec2:DescribeImages", "do": "blank", "when": "after", "fields": ["ImdsSupport"]})
    with pytest.raises(errors.NameTakenError, match=r"IMDS support is v1 and v2 and v2\.0 is requested"):
        plan().apply()


def test_another_architecture_is_refused(aws, plan):
    plan().apply()
    aws.faults.add(
        {"op": "ec2:DescribeImages", "do": "set", "when": "after", "values": {"Architecture": "arm64"}}
    )
    with pytest.raises(errors.NameTakenError, match="architecture is arm64 and x86_64 is requested"):
        plan().apply()


def test_a_deprecated_ami_that_is_reused_is_reported_as_deprecated(aws, plan):
    made = plan().apply()
    aws.client("ec2", REGION).enable_image_deprecation(
        ImageId=made.ami_id, DeprecateAt=datetime.now(UTC) + timedelta(minutes=1)
    )
    aws.faults.add(
        {
            "op": "ec2:DescribeImages",
            "do": "set",
            "when": "after",
            "values": {"DeprecationTime": "2026-01-02T03:04:00.000Z"},
        }
    )
    messages = Messages()
    result = plan(progress=messages.progress).apply()
    assert (result.outcome, result.ami_id) == ("reused", made.ami_id)
    assert result.deprecated_at == "2026-01-02T03:04:00Z"
    assert f"aws ec2 disable-image-deprecation --image-id {made.ami_id}" in str(messages)
    assert ("deprecated_at", "2026-01-02T03:04:00Z") in result.facts()


# Registration options of an image


def test_the_options_of_an_image_are_registered(aws, plan, image):
    set_register_image(
        image,
        Architecture="x86_64",
        BootMode="uefi",
        TpmSupport="v2.0",
        UefiData=base64.b64encode(b"variables").decode(),
        RootDeviceName="/dev/xvda",
        Description="An image of ours",
        EnaSupport=True,
        SriovNetSupport="simple",
        VirtualizationType="hvm",
        BlockDeviceMappings=[
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {"VolumeType": "gp3", "VolumeSize": 12, "Iops": 4000, "DeleteOnTermination": False},
            },
            {"DeviceName": "/dev/sdb", "Ebs": {"VolumeType": "st1", "VolumeSize": 125, "Encrypted": True}},
            {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
        ],
    )
    result = plan().apply()
    ami = describe(aws, result.ami_id)
    assert (ami["BootMode"], ami["TpmSupport"], ami["RootDeviceName"]) == ("uefi", "v2.0", "/dev/xvda")
    assert ami["Description"] == "An image of ours"
    root, data, local = ami["BlockDeviceMappings"]
    assert root["Ebs"]["SnapshotId"] == result.snapshot_id
    assert {key: root["Ebs"][key] for key in ("VolumeSize", "Iops", "DeleteOnTermination")} == {
        "VolumeSize": 12,
        "Iops": 4000,
        "DeleteOnTermination": False,
    }
    assert (data["Ebs"]["VolumeType"], data["Ebs"]["VolumeSize"]) == ("st1", 125)
    assert local["VirtualName"] == "ephemeral0"
    uefi = aws.client("ec2", REGION).describe_image_attribute(ImageId=result.ami_id, Attribute="uefiData")
    assert base64.b64decode(uefi["UefiData"]["Value"]) == b"variables"
    assert plan().apply().outcome == "reused"


def test_a_given_parameter_takes_precedence(aws, plan, image):
    set_register_image(
        image,
        RootDeviceName="/dev/xvda",
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeType": "gp2"}}],
    )
    ami = describe(aws, plan().apply().ami_id)
    assert ami["RootDeviceName"] == ami["BlockDeviceMappings"][0]["DeviceName"] == "/dev/xvda"
    ami = describe(aws, plan(root_device="/dev/sda1", boot_mode="uefi", prefix="b").apply().ami_id)
    assert ami["RootDeviceName"] == ami["BlockDeviceMappings"][0]["DeviceName"] == "/dev/sda1"
    assert ami["BlockDeviceMappings"][0]["Ebs"]["VolumeType"] == "gp2"
    assert ami["BootMode"] == "uefi"


REFUSED = [
    ("Name", {"Name": "mine"}),
    ("TagSpecifications", {"TagSpecifications": []}),
    ("KernelId", {"KernelId": "aki-1"}),
    ("BillingProducts", {"BillingProducts": ["bp-1"]}),
    ("Colour", {"Colour": "red"}),
    ("Architecture", {"Architecture": "arm64"}),
    ("VirtualizationType", {"VirtualizationType": "paravirtual"}),
    ("EnaSupport", {"EnaSupport": "true"}),
    ("ImdsSupport", {"ImdsSupport": "v1.0"}),
    ("RootDeviceName", {"RootDeviceName": "sda"}),
    ("TpmSupport", {"TpmSupport": "v2.0"}),
    ("TpmSupport", {"TpmSupport": "v2.0", "BootMode": "uefi-preferred"}),
    ("UefiData", {"UefiData": "dmFyaWFibGVz"}),
    ("UefiData", {"UefiData": "not base64!", "BootMode": "uefi"}),
    ("UefiData", {"UefiData": "\u00e4\u00f6", "BootMode": "uefi"}),
    ("BlockDeviceMappings", {"BlockDeviceMappings": {"DeviceName": "/dev/sda1"}}),
    ("BlockDeviceMappings", {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1"}]}),
    (
        "RootDeviceName",
        {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8}}]},
    ),
    *(
        ("BlockDeviceMappings", {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": ebs}]})
        for ebs in (
            {"SnapshotId": "snap-0123456789abcdef0"},
            {"Encrypted": True},
            {"KmsKeyId": "alias/mine"},
            {"VolumeSize": "8"},
            {"VolumeType": "gp9"},
            {"VolumeType": "st1", "VolumeSize": 125},
            {"VolumeType": "io2"},
            {"VolumeType": "gp2", "Throughput": 200},
            {"Iops": True},
            {"Iops": 2_999},
            {"Iops": 80_001},
            {"Throughput": 124},
            {"Throughput": 2_001},
            {"VolumeSize": 65_537},
            {"VolumeType": "gp2", "VolumeSize": 16_385},
            {"VolumeType": "standard", "VolumeSize": 1_025},
            {"VolumeType": "io1", "Iops": 99, "VolumeSize": 8},
            {"VolumeType": "io2", "Iops": 100},
        )
    ),
    *(
        (
            "BlockDeviceMappings",
            {"RootDeviceName": "/dev/sda1", "BlockDeviceMappings": [{"DeviceName": "/dev/sdb", **disk}]},
        )
        for disk in (
            {"Ebs": {"SnapshotId": "snap-0123456789abcdef0", "VolumeSize": 8}},
            {"Ebs": {"VolumeType": "gp3"}},
            {"Ebs": {"VolumeSize": 8}, "VirtualName": "ephemeral0"},
            {"Ebs": {"VolumeSize": 124, "VolumeType": "st1"}},
            {"VirtualName": "ephemeral24"},
            {"VirtualName": "disk"},
            {"NoDevice": "yes"},
        )
    ),
]


def test_unsupported_options_are_refused_by_name_before_the_upload(plan, image, changes):
    plain = (image / "nix-support" / "image-info.json").read_text()
    changes()
    for field, wanted in REFUSED:
        (image / "nix-support" / "image-info.json").write_text(plain)
        set_register_image(image, **wanted)
        with pytest.raises(
            errors.ImageFormatError, match=f"{field} in its registerImage is invalid"
        ) as caught:
            plan()
        assert caught.value.field == field
    assert changes() == []


def test_an_image_for_arm64_with_legacy_bios_is_refused_before_the_upload(plan, image, changes):
    set_register_image(image, BootMode="legacy-bios")
    path = image / "nix-support" / "image-info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"system": "aarch64-linux"}))
    changes()
    with pytest.raises(errors.ImageError, match="cannot boot with legacy-bios"):
        plan()
    assert changes() == []


def test_a_root_volume_smaller_than_the_disk_is_refused(plan, image, tmp_path):
    large = make_sample_image(tmp_path / "large", name="sample", size=3 * 2**30, data_bytes=2**20)
    set_register_image(large, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 2}}])
    with pytest.raises(errors.ImageFormatError, match=r"has 2 GiB, but the disk needs [34] GiB"):
        plan(image=str(large))


# Tags


@pytest.mark.parametrize("via", ["import", "direct"])
@pytest.mark.variants(seconds=2)
def test_an_empty_tag_and_the_longest_ones_are_set_once_for_all(aws, plan, via):
    asked = {"tags": {"team": "", "k" * 127: "v" * 255}}
    asked |= {} if via == "import" else {"via": "direct", "bucket": "", "role_name": ""}
    made = plan(**asked).apply()
    ec2 = aws.client("ec2", REGION)
    snapshot = ec2.describe_snapshots(SnapshotIds=[made.snapshot_id])["Snapshots"][0]
    for one in (describe(aws, made.ami_id), snapshot):
        tags = {tag["Key"]: tag["Value"] for tag in one["Tags"]}
        assert asked["tags"].items() <= tags.items()
    again = plan(**asked).apply()
    assert (again.ami_id, again.outcome) == (made.ami_id, "reused")
    assert plan(**{**asked, "tags": {"late": ""}}).apply().ami_id == made.ami_id
    assert {"Key": "late", "Value": ""} in describe(aws, made.ami_id)["Tags"]


@pytest.mark.parametrize("tags", [{"k" * 128: ""}, {"k": "v" * 256}, {"vmsnix:digest": "x"}, {"": "x"}])
def test_invalid_tags_are_refused_before_any_call_of_aws(aws, plan, tags):
    before = len(list(aws.calls))
    with pytest.raises(errors.ParameterError):
        plan(tags=tags)
    assert len(list(aws.calls)) == before


def test_a_file_name_that_is_invalid_in_tags_of_s3_is_published(plan, image):
    file = next(image.glob("*.vhd"))
    odd = file.rename(file.with_name("nixos~1, (copy) & more.vhd"))
    assert plan(image=str(odd)).apply().outcome == "created"
