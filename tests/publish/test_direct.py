"""Publish with the direct method: blocks of an image are written to a snapshot."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import qemu_make
from tests.publish.test_publish import bytes_of
from tests.support import require
from vmsnix_ops import errors
from vmsnix_ops.aws.ebs_direct import engine, manifests, reading, writing
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.cli import main
from vmsnix_ops.disk import qemu
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.survey import identify, survey
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox.ec2.snapshots import ARCHIVE_SECONDS
from vmsnix_ops.sandbox.limits import PER_ACCOUNT, Limits
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from pathlib import Path

REGION, BLOCK = "us-east-1", 524_288


@pytest.fixture
def direct(plan):
    """Make plans of the direct method, without bucket and role."""

    def make(**changes):
        return plan(**{"via": "direct", "bucket": "", "role_name": "", **changes})

    return make


@pytest.fixture
def raw(tmp_path):
    """A small raw disk, so that its blocks can be changed at will."""
    output = make_sample_image(tmp_path / "raw", name="sample", format="raw", data_bytes=6 * 2**20)
    path = tmp_path / "disk.img"
    shutil.copy(next(p for p in output.iterdir() if p.is_file()), path)
    return path


@pytest.fixture
def rates(monkeypatch):
    """Collect the rate of the workers of each upload."""
    found, job = [], engine.TransferJob

    def collect(*arguments):
        made = job(*arguments)
        found.append(made.rate)
        return made

    monkeypatch.setattr(engine, "TransferJob", collect)
    return found


def changed(path: Path, *, block: int, fill: int) -> None:
    with path.open("r+b") as file:
        file.seek(block * BLOCK)
        file.write(bytes([fill]) * BLOCK)


def holds(aws, snapshot_id: str, path: Path) -> bool:
    with open_image(path) as disk:
        return bytes_of(aws, snapshot_id, disk.size) == disk.read(0, disk.size)


def puts(aws) -> int:
    return sum(call.operation == "PutSnapshotBlock" and call.outcome == "ok" for call in aws.calls)


def test_an_upload_at_the_limit_of_the_account_is_slower_and_complete(aws, direct, raw, monkeypatch):
    monkeypatch.setattr(aws.state, "limits", Limits())
    aws.state.tables.table(aws.account, REGION, "quotas")[f"ebs/{PER_ACCOUNT['PutSnapshotBlock']}"] = 1
    plan = direct(image=str(raw))
    aws.clock.speed = 200  # one block at a time, 200 in a real second
    result = plan.apply()
    assert holds(aws, result.snapshot_id, raw)
    refused = [call for call in aws.calls if call.outcome == "RequestThrottledException"]
    assert {call.operation for call in refused} == {"PutSnapshotBlock"}


@pytest.mark.parametrize("kind", ["vhd", "raw", "qcow2-compressed", "vhd-fixed", "qcow2", "vhdx", "vmdk"])
@pytest.mark.variants
def test_an_image_of_every_format_becomes_an_ami_with_its_bytes_despite_network_errors(
    aws, direct, raw, tmp_path, left, kind
):
    path, plain = tmp_path / "converted", raw
    if kind != "raw":
        qemu = {"vhd": "vpc", "vhd-fixed": "vpc"}.get(kind, kind.removesuffix("-compressed"))
        options = ["-o", "subformat=fixed"] if kind == "vhd-fixed" else []
        options += ["-c"] if kind == "qcow2-compressed" else []
        command = [require("qemu-img"), "convert", "-f", "raw", "-O", qemu, *options]
        subprocess.run([*command, str(raw), str(path)], check=True, timeout=120)
    else:
        shutil.copy(raw, path)
    fault = {"op": "ebs:PutSnapshotBlock", "probability": 0.1}
    aws.faults.add({**fault, "do": "error", "code": "RequestThrottledException", "http": 400})
    aws.faults.add({**fault, "do": "error", "code": "InternalServerException"})
    aws.faults.add({**fault, "do": "reset", "when": "body", "of": "request", "keep": 100_000})
    result = direct(image=str(path)).apply()
    assert result.via == "direct"
    data = plain.read_bytes()
    assert bytes_of(aws, result.snapshot_id, len(data)) == data
    there = left()
    assert (there.amis, there.snapshots) == ([result.ami_id], [result.snapshot_id])
    assert (there.objects, there.uploads, there.running) == ([], [], [])


@pytest.fixture
def compressed(raw, tmp_path):
    return qemu_make(tmp_path / "disk.qcow2", raw, "compressed")


@pytest.fixture
def conversions(monkeypatch):
    """Collect the raw files that images were converted to."""
    made, convert = [], qemu._convert

    def counted(*words):
        made.append(convert(*words))
        return made[-1]

    monkeypatch.setattr(qemu, "_convert", counted)
    return made


def test_a_compressed_image_is_converted_once_and_the_copy_deleted(direct, compressed, conversions):
    assert direct(image=str(compressed)).apply().outcome == "created"
    (copy,) = conversions
    assert copy.descriptor == -1


def test_an_upload_that_fails_deletes_the_converted_copy(aws, direct, compressed, conversions):
    plan = direct(image=str(compressed))
    built = plan.build()
    assert [copy.descriptor >= 0 for copy in conversions] == [True]
    aws.faults.add({"op": "ebs:StartSnapshot", "do": "error", "code": "AccessDeniedException", "http": 403})
    with pytest.raises(errors.AccessDeniedError):
        plan.upload(built)
    assert [copy.descriptor for copy in conversions] == [-1]
    aws.faults.clear()
    assert plan.upload(built).outcome == "created"  # converted again


def test_neither_bucket_nor_role_are_checked(aws, direct):
    before = len(list(aws.calls))
    direct().apply()
    services = {(call.service, call.operation) for call in list(aws.calls)[before:]}
    assert not [operation for service, operation in services if service in ("s3", "iam")]
    assert ("ec2", "ImportSnapshot") not in services


def test_zero_blocks_are_not_sent(aws, direct, raw):
    direct(image=str(raw)).apply()
    with open_image(raw) as disk:
        assert puts(aws) == len(list(disk.blocks(BLOCK)))
        assert puts(aws) < disk.size // BLOCK


def test_the_upload_does_not_hash_the_image_again(direct, monkeypatch):
    monkeypatch.setattr(writing, "identify", None)
    assert direct().apply().outcome == "created"


def test_an_image_that_changed_since_its_digest_was_taken_is_not_uploaded(direct, raw, left):
    plan = direct(image=str(raw))
    built = plan.build()
    changed(raw, block=1, fill=7)
    with pytest.raises(errors.ImageError, match="changed"):
        plan.upload(built)
    assert left().snapshots == []


def test_the_snapshot_carries_the_tags_of_the_ami(aws, direct):
    result = direct(tags={"team": "ops"}).apply()
    ec2 = aws.client("ec2", REGION)
    ami = ec2.describe_images(ImageIds=[result.ami_id])["Images"][0]
    snapshot = ec2.describe_snapshots(SnapshotIds=[result.snapshot_id])["Snapshots"][0]
    tags = {tag["Key"]: tag["Value"] for tag in snapshot["Tags"]}
    assert tags == {tag["Key"]: tag["Value"] for tag in ami["Tags"]}
    assert (tags["team"], tags["vmsnix:run"]) == ("ops", result.run_id)


def test_running_it_again_returns_the_same_ami_and_changes_nothing(direct, changes):
    first = direct().apply()
    changes()
    second = direct().apply()
    assert (second.ami_id, second.outcome) == (first.ami_id, "reused")
    assert changes() == []


def test_a_dry_run_changes_nothing(direct, changes, left):
    changes()
    wanted = direct(dry_run=True)
    assert wanted.apply().ami_id == ""
    assert changes() == []
    assert left().nothing
    assert "blocks that differ" in str(wanted)
    assert "s3://" not in str(wanted)


def test_result_and_tables_have_the_statistics_of_the_upload(direct):
    wanted = direct()
    result = wanted.apply()
    written = json.loads((wanted.journal.run.folder / "result.json").read_text())
    assert written["via"] == "direct"
    tables = open_tables(load())
    steps = history.steps(tables, run_id=result.run_id)
    assert set(steps["via"]) == {"direct"}
    upload = steps[steps["step"] == "upload"].iloc[0]
    detail = json.loads(upload["detail"])
    assert upload["bytes"] == detail["sent_blocks"] * BLOCK
    assert "no earlier snapshot" in detail["why_full"]
    assert history.amis(tables).iloc[0]["via"] == "direct"
    manifest = manifests.read(tables, result.snapshot_id)
    assert manifest is not None
    assert (manifest.identity, manifest.region) == (result.digest, REGION)
    assert len(manifest.blocks) == detail["sent_blocks"]


def test_the_journal_is_deleted(direct):
    direct().apply()
    left = [path for path in (load().state / "blocks").iterdir() if path.suffix != ".lock"]
    assert left == []  # the empty lock file is kept: without it, two publishers could lock


# Incremental uploads


def test_only_changed_blocks_are_sent_and_removed_ones_become_zero(aws, direct, raw):
    first = direct(image=str(raw)).apply()
    sent = puts(aws)
    changed(raw, block=3, fill=7)
    changed(raw, block=5, fill=0)
    changed(raw, block=40, fill=9)
    second = direct(image=str(raw)).apply()
    assert puts(aws) - sent == 3
    assert second.snapshot_id != first.snapshot_id
    assert holds(aws, second.snapshot_id, raw)
    parent = next(call for call in reversed(list(aws.calls)) if call.operation == "StartSnapshot")
    assert parent.params["ParentSnapshotId"] == first.snapshot_id
    changed(raw, block=41, fill=1)
    third = direct(image=str(raw)).apply()
    assert puts(aws) - sent == 4
    assert holds(aws, third.snapshot_id, raw)


def test_a_larger_snapshot_is_no_parent(aws, direct, raw, tmp_path):
    larger = tmp_path / "larger" / raw.name
    larger.parent.mkdir()
    shutil.copy(raw, larger)
    with larger.open("r+b") as file:
        file.truncate(2**30 + BLOCK)
    first = direct(image=str(larger), boot_mode="legacy-bios").apply()
    changed(raw, block=3, fill=7)
    assert why_full(direct(image=str(raw))) == (
        f"{first.snapshot_id} is larger (2 GiB) than the new image (1 GiB)"
    )


def test_an_archived_snapshot_is_no_parent(aws, direct, raw):
    first = direct(image=str(raw)).apply()
    ec2 = aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    ec2.modify_snapshot_tier(SnapshotId=first.snapshot_id, StorageTier="archive")
    aws.clock.advance(ARCHIVE_SECONDS)
    changed(raw, block=3, fill=7)
    assert why_full(direct(image=str(raw))) == f"{first.snapshot_id} is in the archive tier"


@pytest.mark.long(seconds=2)
def test_the_snapshot_of_a_smaller_image_has_zeros_after_its_end(aws, direct, raw):
    size = raw.stat().st_size
    with raw.open("r+b") as file:  # no partition, which would have to end before the disk does
        file.seek(446)
        file.write(bytes(64))
    changed(raw, block=size // BLOCK - 1, fill=7)
    direct(image=str(raw), boot_mode="legacy-bios").apply()
    with raw.open("r+b") as file:
        file.truncate(size - BLOCK)
    second = direct(image=str(raw), boot_mode="legacy-bios").apply()
    assert bytes_of(aws, second.snapshot_id, size) == raw.read_bytes() + bytes(BLOCK)


def why_full(plan) -> str:
    built = plan.build()
    source = plan.upload(built)
    plan.finish(plan.register(plan.import_snapshot(source)))
    assert source.direct is not None
    return source.direct.why_full


def test_a_full_upload_on_request(direct, raw):
    direct(image=str(raw)).apply()
    changed(raw, block=3, fill=7)
    assert "incremental is off" in why_full(direct(image=str(raw), incremental=False))


def test_a_deleted_parent_means_a_full_upload(aws, direct, raw):
    first = direct(image=str(raw)).apply()
    ec2 = aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    aws.clock.advance(60)  # until the AMI no longer uses its snapshot
    ec2.delete_snapshot(SnapshotId=first.snapshot_id)
    changed(raw, block=3, fill=7)
    assert "no earlier snapshot" in why_full(direct(image=str(raw)))


@pytest.mark.long(seconds=2)
def test_a_parent_without_a_manifest_means_a_full_upload(direct, raw):
    direct(image=str(raw)).apply()
    shutil.rmtree(load().state / "history" / "manifests")
    changed(raw, block=3, fill=7)
    assert "has no manifest" in why_full(direct(image=str(raw)))


def test_a_parent_that_is_deleted_between_choice_and_start_means_a_full_upload(aws, direct, raw, monkeypatch):
    first = direct(image=str(raw)).apply()
    ec2 = aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    choose = manifests.choose_parent

    def chosen(*words, **more):
        parent = choose(*words, **more)
        assert parent.snapshot_id == first.snapshot_id
        ec2.delete_snapshot(SnapshotId=parent.snapshot_id)
        return parent

    monkeypatch.setattr(manifests, "choose_parent", chosen)
    changed(raw, block=3, fill=7)
    wanted = direct(image=str(raw))
    assert why_full(wanted) == f"{first.snapshot_id} was deleted before the upload started"
    assert holds(aws, wanted.apply().snapshot_id, raw)


def test_a_parent_with_another_encryption_is_not_used(aws, direct, raw):
    direct(image=str(raw)).apply()
    aws.client("ec2", REGION).enable_ebs_encryption_by_default()
    changed(raw, block=3, fill=7)
    plan = direct(image=str(raw))
    assert "is not encrypted" in why_full(plan)


@pytest.mark.long(seconds=2)
def test_a_snapshot_in_another_region_is_no_parent(aws, direct, raw):
    direct(image=str(raw)).apply()
    assert "in this region" in why_full(direct(image=str(raw), region="eu-west-1"))


@pytest.mark.long(seconds=2)
def test_a_snapshot_of_another_account_is_no_parent(aws, direct, raw, monkeypatch):
    direct(image=str(raw)).apply()
    for name, value in aws.other_account("111122223333").environment.items():
        monkeypatch.setenv(name, value)
    changed(raw, block=3, fill=7)
    assert "account" in why_full(direct(image=str(raw)))


def with_blocks(snapshot_id, change):
    """Write another manifest of a snapshot, consistent in itself."""
    tables = open_tables(load())
    known = manifests.read(tables, snapshot_id)
    blocks = Digests(change(dict(known.blocks)).items())
    other = replace(known, blocks=blocks, identity=identity_of(blocks.raw()), disk_bytes=2**40)
    manifests.save(tables, other)


@pytest.mark.parametrize("damage", ["another identity", "cut", "another scheme", "another snapshot"])
@pytest.mark.variants(seconds=2)
def test_a_manifest_that_cannot_be_used_means_a_full_upload(direct, raw, damage):
    first = direct(image=str(raw)).apply()
    path = load().state / "history" / "manifests" / first.snapshot_id
    content = path.read_bytes()
    known = Manifest.load(content)
    path.write_bytes(
        {
            "cut": content[:-1],
            "another scheme": content.replace(b"vmsnix-disk-v1", b"vmsnix-disk-v2"),
            "another snapshot": replace(known, snapshot_id="snap-0fedcba9876543210").dump(),
            "another identity": replace(known, identity="d" * 64).dump(),
        }[damage]
    )
    changed(raw, block=3, fill=7)
    plan = direct(image=str(raw))
    assert "has no manifest beside the tables, or it cannot be used" in why_full(plan)


def test_a_manifest_that_contradicts_the_list_of_aws_is_not_used(direct, raw):
    first = direct(image=str(raw)).apply()
    with_blocks(first.snapshot_id, lambda blocks: blocks | {900: blocks[0]})
    changed(raw, block=3, fill=7)
    assert f"{first.snapshot_id} contains other blocks" in why_full(direct(image=str(raw)))


def test_a_manifest_with_other_indices_is_not_used(aws, direct, raw):
    first = direct(image=str(raw)).apply()
    with_blocks(first.snapshot_id, lambda blocks: dict([*list(blocks.items())[:-1], (900, blocks[0])]))
    changed(raw, block=3, fill=7)
    wanted = direct(image=str(raw))
    assert f"{first.snapshot_id} contains other blocks" in why_full(wanted)
    assert holds(aws, wanted.apply().snapshot_id, raw)


def test_a_forged_manifest_with_the_digests_of_the_new_image_is_not_trusted(aws, direct, raw):
    """Otherwise a person who may write the tables could keep old blocks in an AMI of another identity."""
    first = direct(image=str(raw)).apply()
    changed(raw, block=4, fill=7)
    with_blocks(first.snapshot_id, lambda blocks: blocks | {4: identify(raw).blocks[4]})
    wanted = direct(image=str(raw))
    assert f"{first.snapshot_id} has another identity in its tag" in why_full(wanted)
    assert holds(aws, wanted.apply().snapshot_id, raw)


# Rate


def test_the_setting_put_ceiling_is_shared_by_all_workers_of_an_upload(direct, raw, monkeypatch, rates):
    monkeypatch.setenv("VMSNIX_PUT_CEILING", "250")
    direct(image=str(raw)).apply()
    assert [rate * TransferConfig().workers() for rate in rates] == [250]


def test_the_setting_put_ceiling_is_shared_by_all_workers_of_a_download(
    direct, raw, tmp_path, monkeypatch, rates
):
    made = direct(image=str(raw)).apply()
    rates.clear()
    monkeypatch.setenv("VMSNIX_PUT_CEILING", "250")
    assert main(["download", made.snapshot_id, str(tmp_path / "copy.raw"), "--region", REGION]) == 0
    assert [rate * TransferConfig().workers() for rate in rates] == [250]


# Verification


@pytest.mark.parametrize("via", ["direct", "import"])
@pytest.mark.parametrize("verify", ["whole", "sample"])
@pytest.mark.variants(seconds=4)
def test_verify_compares_the_snapshot(aws, plan, raw, via, verify):
    result = plan(image=str(raw), via=via, verify=verify).apply()
    assert "verify" in {step.step for step in result.steps}
    gets = [call for call in aws.calls if call.operation == "GetSnapshotBlock"]
    with open_image(raw) as disk:
        assert len(gets) >= len(list(disk.blocks(BLOCK)))


def gets(aws) -> int:
    return sum(call.operation == "GetSnapshotBlock" and call.outcome == "ok" for call in aws.calls)


@pytest.mark.parametrize(("verify", "compared"), [("none", 0), ("sample", 5), ("whole", None)])
@pytest.mark.variants
def test_a_sample_compares_some_blocks_and_whole_compares_all(
    aws, direct, raw, monkeypatch, verify, compared
):
    monkeypatch.setattr(reading, "SAMPLE", 5)
    direct(image=str(raw), verify=verify).apply()
    assert puts(aws) > 5
    assert gets(aws) == (puts(aws) if compared is None else compared)


def but_identified(source, raw, **change):
    """Return the upload of an image that has another block in its identity than in the snapshot."""
    changed(raw, **change)
    with open_image(raw) as disk:
        return replace(source, built=replace(source.built, survey=survey(disk)))


def test_a_snapshot_with_other_bytes_is_found_and_deleted(aws, direct, raw, left):
    wanted = direct(image=str(raw), verify="whole")
    source = but_identified(wanted.upload(wanted.build()), raw, block=4, fill=3)
    with pytest.raises(errors.SnapshotFailedError, match="Block 4 differs"):
        wanted.import_snapshot(source)
    assert left().nothing


def test_a_missing_block_of_a_snapshot_is_found(direct, raw):
    wanted = direct(image=str(raw), verify="sample")
    source = but_identified(wanted.upload(wanted.build()), raw, block=60, fill=3)
    with pytest.raises(errors.SnapshotFailedError, match="does not contain block 60"):
        wanted.import_snapshot(source)


@pytest.mark.parametrize(("name", "value"), [("verify", "some"), ("via", "driect")])
def test_an_invalid_parameter_is_refused(plan, name, value):
    with pytest.raises(errors.ParameterError):
        plan(**{name: value})
