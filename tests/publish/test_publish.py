"""Publish an image: the created resources, and a second run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vmsnix_ops import errors
from vmsnix_ops.channels import promote, verify
from vmsnix_ops.channels.steps import check_audiences
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.publish.parameters import check_public
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

REGION = "us-east-1"


def bytes_of(aws, snapshot_id: str, size: int) -> bytes:
    """Rebuild a disk from the blocks of a snapshot, through the EBS direct APIs."""
    ebs, disk = aws.client("ebs", REGION), bytearray(size)
    for page in (
        ebs.get_paginator("list_snapshot_blocks").paginate(SnapshotId=snapshot_id)
        if (ebs.can_paginate("list_snapshot_blocks"))
        else [ebs.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=10_000)]
    ):
        for block in page["Blocks"]:
            answer = ebs.get_snapshot_block(
                SnapshotId=snapshot_id, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"]
            )
            start = block["BlockIndex"] * 524_288
            disk[start : start + 524_288] = answer["BlockData"].read()
    return bytes(disk[:size])


@pytest.mark.parametrize("kind", ["vhd", "raw"])
@pytest.mark.variants(seconds=4)
def test_an_image_becomes_an_ami_with_its_bytes(aws, plan, tmp_path, left, kind):
    output = make_sample_image(tmp_path / kind, name="sample", format=kind, data_bytes=9 * 2**20)
    result = plan(image=str(output), tags={"team": "ops"}).apply()

    ami = aws.client("ec2", REGION).describe_images(ImageIds=[result.ami_id])["Images"][0]
    device = ami["BlockDeviceMappings"][0]
    assert ami["Name"] == result.image_name
    assert result.image_name.startswith("altf4llc-sample-")
    assert result.image_name.endswith(f"-x86_64-linux-{result.digest[:8]}")
    assert (ami["Architecture"], ami["BootMode"]) == ("x86_64", "legacy-bios")
    assert (ami["EnaSupport"], ami["ImdsSupport"], ami["Public"]) == (True, "v2.0", False)
    assert (ami["RootDeviceName"], device["DeviceName"]) == ("/dev/sda1", "/dev/sda1")
    assert device["Ebs"]["SnapshotId"] == result.snapshot_id
    assert (device["Ebs"]["VolumeType"], device["Ebs"]["DeleteOnTermination"]) == ("gp3", True)
    tags = {tag["Key"]: tag["Value"] for tag in ami["Tags"]}
    assert tags["vmsnix:digest"] == result.digest
    assert tags["vmsnix:run"] == result.run_id
    assert tags["team"] == "ops"
    snapshot = aws.client("ec2", REGION).describe_snapshots(SnapshotIds=[result.snapshot_id])["Snapshots"][0]
    assert {tag["Key"]: tag["Value"] for tag in snapshot["Tags"]} == tags

    file = next(output.glob("*.vhd" if kind == "vhd" else "*.img"), None) or next(output.glob("*.raw"))
    with open_image(file) as disk:
        assert bytes_of(aws, result.snapshot_id, disk.size) == disk.read(0, disk.size)
    there = left()
    assert (there.objects, there.uploads, there.running) == ([], [], [])


def test_running_it_again_returns_the_same_ami_and_changes_nothing(plan, changes):
    first = plan().apply()
    changes()
    second = plan().apply()
    assert (second.ami_id, second.snapshot_id) == (first.ami_id, first.snapshot_id)
    assert second.outcome == "reused"
    assert [step for step in changes() if step != "DeleteObject"] == []
    assert len(history.amis(open_tables(load()), all_rows=True)) == 1


def test_a_dry_run_shows_the_plan_and_changes_nothing(plan, changes, left):
    changes()
    wanted = plan(dry_run=True)
    result = wanted.apply()
    assert changes() == []
    assert left().nothing
    assert result.dry_run
    assert result.ami_id == ""
    assert result.image_name.startswith("altf4llc-sample-")
    assert "nothing will be changed" in str(wanted)
    assert "register altf4llc-IMAGE-VERSION-SYSTEM-DIGEST" in str(wanted)  # a folder has no image name
    assert len(history.steps(open_tables(load()))) == 0


def test_a_dry_run_of_a_published_image_shows_its_ami(plan, changes):
    first = plan().apply()
    changes()
    assert plan(dry_run=True).apply().ami_id == first.ami_id
    assert changes() == []


def test_every_step_is_journaled_and_in_the_tables(plan):
    wanted = plan()
    result = wanted.apply()
    journal = [
        json.loads(line) for line in (wanted.journal.run.folder / "journal.jsonl").read_text().splitlines()
    ]
    assert [(line["step"], line["status"]) for line in journal if line["step"] == "upload"] == [
        ("upload", "started"),
        ("upload", "created"),
    ]
    tables = open_tables(load())
    steps = history.steps(tables, run_id=result.run_id)
    assert set(steps["step"]) == {"build", "digest", "upload", "import", "register", "finish"}
    assert (steps["seconds"] >= 0).all()
    ami = history.amis(tables).iloc[0]
    assert (ami["ami_id"], ami["source"], ami["via"]) == (result.ami_id, "publish", "import")
    run = history.runs(tables).iloc[0]
    assert (run["status"], run["ami_id"], run["image"]) == ("done", result.ami_id, "sample")
    for frame in (
        history.runs(tables),
        steps,
        history.amis(tables),
    ):  # in a sandbox
        assert set(frame["endpoint"]) == {"sandbox"}
        assert set(frame["account"]) == {wanted.account}
    assert history.amis(tables, endpoint="aws").empty
    assert written_endpoint(wanted) == "sandbox"


def written_endpoint(wanted):
    return json.loads((wanted.journal.run.folder / "result.json").read_text())["endpoint"]


def test_the_result_is_written_as_json(plan):
    wanted = plan()
    result = wanted.apply()
    written = json.loads((wanted.journal.run.folder / "result.json").read_text())
    for key in ("ami_id", "snapshot_id", "image_name", "region", "digest", "run_id"):
        assert written[key] == getattr(result, key)
    assert written["status"] == "done"
    assert [step["step"] for step in written["steps"]][-1] == "finish"


def test_a_public_ami_can_be_launched_by_everybody(aws, plan):
    result = plan(public=True, confirm_public=aws.account).apply()
    assert aws.client("ec2", REGION).describe_images(ImageIds=[result.ami_id])["Images"][0]["Public"]


def test_additions_of_a_second_publish_are_recorded_without_drift(aws, plan):
    plan().apply()
    assert verify.check().drift.empty
    params = {"public": True, "confirm_public": aws.account, "tags": {"team": "images"}}
    for _ in range(2):
        plan(**params).apply()
        assert verify.check().drift.empty
    assert len(history.amis(open_tables(load()), all_rows=True)) == 2


def test_changes_by_others_are_not_recorded_by_a_second_publish(aws, plan):
    made = plan().apply()
    aws.client("ec2", REGION).modify_image_attribute(
        ImageId=made.ami_id, LaunchPermission={"Add": [{"Group": "all"}]}
    )
    plan().apply()
    assert list(verify.check().drift["field"]) == ["public"]


def test_row_15_a_public_ami_is_refused_when_the_account_blocks_it(aws, plan):
    aws.client("ec2", REGION).enable_image_block_public_access(
        ImageBlockPublicAccessState="block-new-sharing"
    )
    with pytest.raises(errors.AwsError, match="Block public access for AMIs is on"):
        plan(public=True, confirm_public=aws.account)


def test_a_public_ami_is_refused_where_snapshots_are_encrypted_by_default(aws, plan):
    aws.client("ec2", REGION).enable_ebs_encryption_by_default()
    with pytest.raises(errors.AwsError, match="Snapshots are encrypted by default"):
        plan(public=True, confirm_public=aws.account)


@pytest.mark.parametrize(
    ("public", "confirmed", "why"),
    [
        (True, "", "confirm_public is not"),
        (False, "012345678901", "public is not"),
        (True, "999999999999", "these are the credentials of 012345678901"),
        (True, "yes", "these are the credentials of 012345678901"),
    ],
)
def test_a_public_ami_needs_two_parameters_that_agree(aws, plan, left, public, confirmed, why):
    with pytest.raises(errors.ParameterError, match=why):
        plan(public=public, confirm_public=confirmed)
    assert left().nothing


@pytest.mark.parametrize("keys", ["", "SHA256:ZkAslGj alice"])
def test_a_fix_names_the_confirmation_that_the_check_accepts(keys: str) -> None:
    account, fixes = "012345678901", []
    with pytest.raises(errors.ParameterError) as refused:
        check_public(public=True, confirmed="")
    fixes.append(refused.value.fix)
    with pytest.raises(errors.ParameterError) as refused:
        check_audiences(["public"], [], public=False)
    fixes.append(refused.value.fix)
    if keys:
        with pytest.raises(errors.ParameterError) as refused:
            check_public(True, account, account, keys)
        fixes.append(refused.value.fix)
    for fix in fixes:
        named = re.search(r"--confirm-public (\S+).*?(?:\((\S+) if [^)]*SSH keys\)|$)", fix)
        assert named is not None, fix
        value = (named[2] or named[1]) if keys else named[1]
        check_public(True, value.replace("ACCOUNT", account), account, keys)


def test_baked_in_keys_are_shown_and_a_public_ami_with_them_needs_its_own_confirmation(aws, plan, tmp_path):
    output = make_sample_image(tmp_path / "keys", name="keys", data_bytes=2**20)
    info = output / "nix-support/image-info.json"
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"vmsnix": {"admin": {"keys": [key]}}}))
    shown = "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA alice (ssh-ed25519)"
    with pytest.raises(errors.ParameterError, match="alice") as refused:
        plan(image=str(output), public=True, confirm_public=aws.account)
    assert f"--confirm-public {aws.account}+keys" in refused.value.fix
    made = plan(image=str(output))
    assert ("may log in", shown) in made.facts()
    # AWS refuses to make the AMI public: the error has the whole command for a user who may.
    aws.faults.add(
        {
            "op": "ec2:ModifyImageAttribute",
            "nth": 1,
            "do": "error",
            "code": "UnauthorizedOperation",
            "http": 403,
        }
    )
    with pytest.raises(errors.AccessDeniedError) as denied:
        plan(image=str(output), public=True, confirm_public=f"{aws.account}+keys").apply()
    result = made.apply()
    command = re.search(r"vmsnix promote --ami (ami-\w+) .*--confirm-public (\S+) ", denied.value.fix)
    assert command is not None
    assert command[1] == result.ami_id
    promote.plan(ami=result.ami_id, public=True, confirm_public=command[2])

    parameters = {"ami": result.ami_id, "public": True, "dry_run": False}
    with pytest.raises(errors.ParameterError, match="needs a second confirmation"):
        promote.plan(**parameters, confirm_public=aws.account)
    promote.plan(**parameters, confirm_public=f"{aws.account}+keys").apply()
    assert aws.client("ec2", REGION).describe_images(ImageIds=[result.ami_id])["Images"][0]["Public"]
    assert (
        plan(image=str(output), public=True, confirm_public=f"{aws.account}+keys").apply().ami_id
        == result.ami_id
    )


def test_an_ami_with_another_root_device_is_refused_and_not_reused(plan):
    plan().apply()
    with pytest.raises(errors.NameTakenError, match="/dev/xvda"):
        plan(root_device="/dev/xvda").apply()
    result = plan(root_device="/dev/xvda", prefix="other").apply()
    assert result.image_name.startswith("other-")


def test_an_image_file_without_a_description_is_published_too(aws, plan, image):
    file = next(Path(image).glob("*.vhd"))
    result = plan(image=str(file)).apply()
    assert result.image == "sample"
    assert result.system == "x86_64-linux"
