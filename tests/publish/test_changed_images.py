"""An image file that changes after it was identified: other bytes are never published under its digest."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.publish.test_publish import bytes_of
from tests.support import join, require, wait_until
from vmsnix_ops import errors, publish
from vmsnix_ops.aws import buckets, imports
from vmsnix_ops.boot import run
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.survey import identify, survey
from vmsnix_ops.progress import Event, Progress
from vmsnix_ops.publish import pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.publish.conftest import Left
    from vmsnix_ops.sandbox import Sandbox

BUCKET, REGION, BLOCK, MIB = "vmsnix-images", "us-east-1", 524_288, 2**20
TABLE = 1536  # where a dynamic VHD's block allocation table is: after the copy of the footer and the header


@pytest.fixture(params=["import", "direct"])
def via(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk of three parts of an upload."""
    output = make_sample_image(tmp_path / "raw", name="sample", format="raw", data_bytes=20 * MIB)
    return next(path for path in output.iterdir() if path.is_file())


@pytest.fixture
def vhd(image: Path) -> Path:
    """A dynamic VHD of three parts."""
    return next(image.glob("*.vhd"))


def write_quietly(path: Path, offset: int, data: bytes) -> None:
    """Write in place, and set the time of last change back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, offset: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        old = file.read(1)
    write_quietly(path, offset, bytes([old[0] ^ 1]))


def in_place(path: Path) -> None:
    """Change one byte of data (of the last part, so that others were sent before it was found)."""
    flip(path, 17 * MIB + 4321)


def renamed_over(path: Path) -> None:
    """Put another image of the same size and times in its place."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    in_place(other)
    other.rename(path)


def block_table(path: Path) -> None:
    """Change places of two blocks in the table of a dynamic VHD; it stays a bootable image."""
    with path.open("rb") as file:
        file.seek(TABLE + 4)  # block 0 has the partition table
        first, second = struct.unpack(">II", file.read(8))
    assert 0xFFFFFFFF not in (first, second)
    write_quietly(path, TABLE + 4, struct.pack(">II", second, first))


def crc64(data: bytes, state: int = 2**64 - 1) -> int:
    """Return the register of CRC-64/NVME, which S3 uses, after some bytes."""
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x9A6C9329AC4BC9B5 if state & 1 else 0)
    return state


def same_crc64(path: Path) -> None:
    """Change eight bytes, and the eight behind them so that the CRC-64 of the file stays the same."""
    at = 2 * MIB  # the first bytes of the first partition's data
    with path.open("rb") as file:
        file.seek(at)
        old = file.read(4096)
    changed = bytes(byte ^ 0x5A for byte in old[:8])
    # Eight bytes are xored into the whole register, so they can make up for any difference of it.
    difference = crc64(old[:8]) ^ crc64(changed)
    repair = (int.from_bytes(old[8:16], "little") ^ difference).to_bytes(8, "little")
    new = changed + repair + old[16:]
    assert new != old
    assert crc64(new) == crc64(old)
    write_quietly(path, at, new)


CHANGES = [
    ("raw", same_crc64),
    ("vhd", block_table),
    ("vhd", renamed_over),
    ("raw", in_place),
    ("raw", renamed_over),
    ("vhd", in_place),
]


def links(path: Path) -> None:
    """Give the file another name, as an optimisation of the Nix store does."""
    path.with_name("linked").hardlink_to(path)


@pytest.mark.parametrize("change", [in_place, renamed_over, links])
def test_a_file_that_changes_while_it_is_identified_is_refused_whatever_its_times(
    plan: Callable[..., publish.PublishPlan],
    raw: Path,
    via: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    read: list[int] = []

    def during(disk: Any, *, parts: bool, on_progress: Callable[[int], None]) -> Any:
        def progress(count: int) -> None:
            on_progress(count)
            read.append(count)
            if sum(read) == disk.size:  # the last bytes were read
                change(raw)

        return survey(disk, parts=parts, on_progress=progress)

    monkeypatch.setattr(pipeline, "survey", during)
    wanted = plan(image=str(raw), via=via, dry_run=True)
    if change is links:  # it contains the same bytes
        assert wanted.build().digest == identify(raw).identity
    else:
        with pytest.raises(errors.ImageChangedError):
            wanted.build()
    assert sum(read) >= raw.stat().st_size


@pytest.mark.parametrize(("kind", "change"), CHANGES)
@pytest.mark.variants
def test_bytes_that_changed_before_the_upload_are_refused_and_nothing_is_left(
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    request: pytest.FixtureRequest,
    via: str,
    kind: str,
    change: Callable[[Path], None],
) -> None:
    path: Path = request.getfixturevalue(kind)
    wanted = plan(image=str(path), via=via)
    built = wanted.build()
    change(path)
    with pytest.raises(errors.ImageChangedError) as caught:
        wanted.upload(built)
    assert str(path) in str(caught.value)
    assert caught.value.offset is not None
    assert f"ytes {caught.value.offset} to" in str(caught.value)
    assert "run the same command again" in caught.value.fix
    assert left().nothing
    again = plan(image=str(path), via=via).apply()
    assert again.digest != built.digest


@pytest.mark.parametrize("change", [in_place, same_crc64])
def test_one_changed_byte_of_a_sent_block_is_found(
    plan: Callable[..., publish.PublishPlan], raw: Path, change: Callable[[Path], None]
) -> None:
    wanted = plan(image=str(raw), via="direct")
    built = wanted.build()
    change(raw)
    with pytest.raises(errors.ImageChangedError) as caught:
        wanted.upload(built)
    assert caught.value.offset == (17 * MIB if change is in_place else 2 * MIB)


def test_a_change_between_two_parts_deletes_the_upload(
    aws: Sandbox,
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "THREADS", 1)
    aws.faults.add({"op": "s3:UploadPart", "do": "delay", "nth": 1, "seconds": 8.0})
    wanted = plan(image=str(raw))
    built = wanted.build()

    def change() -> None:
        wait_until(lambda: left().uploads, "the upload")
        flip(raw, 40 * MIB)

    thread = threading.Thread(target=change)
    thread.start()
    with pytest.raises(errors.ImageChangedError, match="changed"):
        wanted.upload(built)
    join(thread)
    assert "CompleteMultipartUpload" not in {call.operation for call in aws.calls}
    assert left().nothing


def test_a_file_of_another_size_is_refused_before_the_upload(
    plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path
) -> None:
    wanted = plan(image=str(raw))
    built = wanted.build()
    size = raw.stat().st_size
    for other in (size - 512, size + 512):
        os.truncate(raw, other)
        with pytest.raises(errors.ImageChangedError) as caught:
            wanted.upload(built)
        assert caught.value.offset == min(size, other)
    assert left().nothing


@pytest.mark.parametrize("name", ["raw", "vhd"])
@pytest.mark.variants(seconds=2)
def test_a_change_of_the_file_after_the_upload_has_no_effect(
    aws: Sandbox,
    plan: Callable[..., publish.PublishPlan],
    request: pytest.FixtureRequest,
    via: str,
    name: str,
) -> None:
    """Also when the notebook was open for hours between the two cells."""
    path: Path = request.getfixturevalue(name)
    with open_image(path) as disk:
        content = disk.read(0, disk.size)
    wanted = plan(image=str(path), via=via, verify="whole")
    source = wanted.upload(wanted.build())
    aws.clock.advance(20 * 60)
    in_place(path)
    snapshot = wanted.import_snapshot(source)
    assert bytes_of(aws, snapshot.snapshot_id, len(content)) == content
    assert f"{path.name} changed after it was identified" in snapshot.verified
    assert wanted.register(snapshot).ami_id


@pytest.mark.variants
def test_verify_does_not_read_the_file(plan: Callable[..., publish.PublishPlan], raw: Path, via: str) -> None:
    wanted = plan(image=str(raw), via=via, verify="sample")
    source = wanted.upload(wanted.build())
    raw.unlink()
    assert "changed after it was identified" in wanted.import_snapshot(source).verified


def test_verify_does_not_report_a_file_with_only_a_new_time(
    plan: Callable[..., publish.PublishPlan], raw: Path
) -> None:
    wanted = plan(image=str(raw), verify="sample")
    source = wanted.upload(wanted.build())
    os.utime(raw)
    raw.chmod(0o400)
    assert "changed" not in wanted.import_snapshot(source).verified


def foreign_snapshot(aws: Sandbox, digest: str, blocks: dict[int, bytes], size_gib: int = 1) -> str:
    """Create a completed snapshot with the tag of this digest."""
    import base64
    import hashlib

    ebs = aws.client("ebs", REGION)
    tags = [{"Key": "vmsnix:digest", "Value": digest}]
    snapshot_id = ebs.start_snapshot(VolumeSize=size_gib, Tags=tags)["SnapshotId"]
    for index, data in blocks.items():
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        ebs.put_snapshot_block(
            SnapshotId=snapshot_id,
            BlockIndex=index,
            BlockData=data,
            DataLength=BLOCK,
            Checksum=checksum,
            ChecksumAlgorithm="SHA256",
        )
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=len(blocks))
    ec2 = aws.client("ec2", REGION)

    def state() -> str:
        return str(ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"])

    wait_until(lambda: state() == "completed", "the snapshot's completion")
    return str(snapshot_id)


@pytest.mark.variants
def test_a_snapshot_is_compared_with_the_identified_bytes_and_not_with_the_file(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], raw: Path, via: str
) -> None:
    """The snapshot contains the current bytes of the file, but the digest is that of others."""
    wanted = plan(image=str(raw), via=via, verify="whole")
    built = wanted.build()
    in_place(raw)
    with open_image(raw) as disk:
        foreign_snapshot(aws, built.digest, {block.index: block.data for block in disk.blocks(BLOCK)})
    source = wanted.upload(built)
    assert source.outcome == "reused"
    with pytest.raises(errors.SnapshotFailedError, match="Block 34 differs"):
        wanted.import_snapshot(source)


def test_a_wrong_snapshot_that_cannot_be_deleted_is_reported_as_wrong(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    wanted = plan(
        image=str(raw), via="direct", verify="whole", progress=Progress(lambda e: messages.append(e.message))
    )

    def differs(*_: Any, **__: Any) -> str:
        raise errors.SnapshotFailedError("The snapshot does not hold the image.")

    monkeypatch.setattr("vmsnix_ops.aws.ebs_direct.reading.verify", differs)
    refused = {"code": "SnapshotLocked", "http": 400, "message": "The snapshot is locked."}
    aws.faults.add({"op": "ec2:DeleteSnapshot", "do": "error", **refused})
    with pytest.raises(errors.SnapshotFailedError):
        wanted.import_snapshot(wanted.upload(wanted.build()))
    (message,) = [text for text in messages if "it was not deleted" in text]
    assert "does not contain the image" in message
    assert "same bytes" not in message


def test_an_existing_object_is_reused_without_reading_the_file(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], raw: Path
) -> None:
    content = raw.read_bytes()
    wanted = plan(image=str(raw))
    built = wanted.build()
    assert wanted.upload(built).outcome == "created"
    in_place(raw)
    source = wanted.upload(built)
    assert (source.outcome, source.sent_bytes) == ("reused", 0)
    snapshot = wanted.import_snapshot(source)
    assert bytes_of(aws, snapshot.snapshot_id, len(content)) == content


def test_an_object_that_was_replaced_between_upload_and_import_is_not_imported(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path
) -> None:
    wanted = plan(image=str(raw))
    source = wanted.upload(wanted.build())
    (key,) = left().objects
    in_place(raw)
    aws.client("s3", REGION).put_object(Bucket=BUCKET, Key=key, Body=raw.read_bytes())
    with pytest.raises(errors.UploadError, match="replaced after it was uploaded"):
        wanted.import_snapshot(source)
    assert "ImportSnapshot" not in {call.operation for call in aws.calls}
    assert left().snapshots == []


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.variants(seconds=2)
def test_an_import_that_aws_cancelled_is_not_started_again_with_a_replaced_object(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path, attempts: int
) -> None:
    cancelled: dict[str, Any] = {"status_message": imports.CANCELLED_BY_AWS}
    nth = list(range(1, attempts))
    aws.faults.add({"op": "ec2:ImportSnapshot", "do": "outcome", "nth": nth, "outcome": cancelled})
    begun = 0

    def replace(event: Event) -> None:
        nonlocal begun
        if imports.CANCELLED_BY_AWS in event.message and "starting again" in event.message:
            begun += 1
            if begun == attempts - 1:
                (key,) = left().objects
                in_place(raw)
                aws.client("s3", REGION).put_object(Bucket=BUCKET, Key=key, Body=raw.read_bytes())

    with pytest.raises(errors.UploadError, match="replaced after it was uploaded"):
        plan(image=str(raw), progress=Progress(replace)).apply()
    assert begun == attempts - 1
    assert (left().snapshots, left().amis) == ([], [])


def test_an_object_replaced_during_its_import_becomes_no_ami(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path
) -> None:
    content = raw.read_bytes()
    replaced = False

    def replace(event: Event) -> None:
        nonlocal replaced
        if event.step == "import" and event.message and not replaced:
            replaced = True
            (key,) = left().objects
            aws.client("s3", REGION).put_object(Bucket=BUCKET, Key=key, Body=b"\1" * len(content))
            aws.clock.speed = 2000

    aws.clock.speed = 1  # AWS opens the object 20 s after the start, when it was replaced
    with pytest.raises(errors.UploadError, match="replaced after it was uploaded") as caught:
        plan(image=str(raw), progress=Progress(replace)).apply()
    assert replaced
    (snapshot,) = left().snapshots
    assert f"aws ec2 delete-snapshot --snapshot-id {snapshot} --region {REGION}" in caught.value.fix
    assert left().amis == []
    aws.client("ec2", REGION).delete_snapshot(SnapshotId=snapshot)
    again = plan(image=str(raw), verify="whole").apply()
    assert bytes_of(aws, again.snapshot_id, len(content)) == content


def test_a_continued_upload_sends_only_identified_bytes(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path, via: str
) -> None:
    operation = "s3:UploadPart" if via == "import" else "ebs:PutSnapshotBlock"
    fault: dict[str, Any] = {"op": operation, "do": "error", "code": "ExpiredToken", "http": 400}
    aws.faults.add({**fault, "nth": list(range(2, 500))})
    wanted = plan(image=str(raw), via=via)
    built = wanted.build()
    with pytest.raises(errors.CredentialsError):
        wanted.upload(built)
    assert not left().nothing
    aws.faults.clear()
    for at in range(0, raw.stat().st_size, 8 * MIB):
        flip(raw, at + 3 * MIB)  # in every part, so that it does not matter which of them arrived
    with pytest.raises(errors.ImageChangedError):
        wanted.upload(built)
    assert left().nothing


@pytest.mark.parametrize("changed", [3 * BLOCK, 17 * MIB], ids=["a block that is sent", "one that is not"])
@pytest.mark.variants(seconds=2)
def test_an_incremental_upload_of_a_file_that_changed_is_refused(
    plan: Callable[..., publish.PublishPlan], left: Callable[[], Left], raw: Path, changed: int
) -> None:
    first = plan(image=str(raw), via="direct").apply()
    flip(raw, 3 * BLOCK + 1)
    wanted = plan(image=str(raw), via="direct")
    built = wanted.build()
    flip(raw, changed)
    with pytest.raises(errors.ImageChangedError):
        wanted.upload(built)
    assert left().snapshots == [first.snapshot_id]


@pytest.mark.long(seconds=2)
def test_an_incremental_upload_compares_bytes_and_not_times(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], raw: Path
) -> None:
    plan(image=str(raw), via="direct").apply()
    flip(raw, 3 * BLOCK)
    content = raw.read_bytes()
    wanted = plan(image=str(raw), via="direct")
    built = wanted.build()
    shutil.copy(raw, raw.with_name("other"))
    raw.with_name("other").rename(raw)
    source = wanted.upload(built)
    assert source.direct is not None
    assert (source.direct.parent_id != "", source.direct.sent) == (True, 1)
    snapshot = wanted.import_snapshot(source)
    assert bytes_of(aws, snapshot.snapshot_id, len(content)) == content


@pytest.mark.parametrize("options", [["-O", "qcow2"], ["-c", "-O", "qcow2"], ["-O", "vhdx"]])
@pytest.mark.parametrize("change", ["in place", "renamed over"])
@pytest.mark.variants
def test_an_image_that_qemu_img_must_read_is_converted_from_identified_bytes(
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    raw: Path,
    tmp_path: Path,
    options: list[str],
    change: str,
) -> None:
    path, other = tmp_path / "packed", tmp_path / "other"
    command = [require("qemu-img"), "convert", "-f", "raw", *options]
    subprocess.run([*command, str(raw), str(path)], check=True, timeout=120)
    flip(raw, 5 * MIB)
    subprocess.run([*command, str(raw), str(other)], check=True, timeout=120)
    wanted = plan(image=str(path), via="direct")
    built = wanted.build()
    if change == "renamed over":
        other.rename(path)
    else:
        flip(path, path.stat().st_size // 2)
    with pytest.raises(errors.ImageChangedError):
        wanted.upload(built)
    assert left().nothing


@pytest.mark.parametrize("writes", [in_place, renamed_over], ids=["in place", "renamed over"])
def test_a_boot_test_of_other_bytes_is_refused_even_if_the_image_is_restored(
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: Callable[[Path], None],
) -> None:
    def boot_another(path: Path, *, console: Path, **_more: object) -> run.SuccessfulBoot:
        writes(path)
        booted = run.SuccessfulBoot("up", 1.0, "tcg", "", console, ())
        writes(path)  # flips the same bit again
        return booted

    monkeypatch.setattr(run, "boot", boot_another)
    with pytest.raises(errors.ImageChangedError, match="changed"):
        plan(image=str(raw), boot_test=True).apply()
    assert left().nothing


def test_an_image_that_changed_before_its_boot_test_is_not_booted(
    plan: Callable[..., publish.PublishPlan], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_words: object, **_more: object) -> None:
        raise AssertionError("it was booted")

    monkeypatch.setattr(run, "boot", never)
    wanted = plan(image=str(raw), boot_test=True)
    built = wanted.build()
    in_place(raw)
    with pytest.raises(errors.ImageChangedError):
        wanted.boot(built)


def test_a_boot_test_that_writes_into_the_image_is_found(
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    raw: Path,
    via: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, *, console: Path, **_more: object) -> run.SuccessfulBoot:
        in_place(path)
        return run.SuccessfulBoot("up", 1.0, "tcg", "", console, ())

    monkeypatch.setattr(run, "boot", write)
    with pytest.raises(errors.ImageChangedError, match="changed"):
        plan(image=str(raw), via=via, boot_test=True).apply()
    assert left().nothing
