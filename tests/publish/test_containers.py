"""One disk in several formats is one image: its AMI is found by every method and size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.disk.images import qemu_make
from vmsnix_ops import errors
from vmsnix_ops.aws import imports
from vmsnix_ops.aws.ebs_direct import manifests
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.survey import identify
from vmsnix_ops.progress import Progress
from vmsnix_ops.publish import pipeline
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.publish.conftest import Left
    from vmsnix_ops import publish
    from vmsnix_ops.sandbox import Sandbox

GIB = 2**30
BLOCK = 524_288
BUCKET, REGION = "vmsnix-images", "us-east-1"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sparse raw disk of exactly 4 GiB."""
    output = make_sample_image(tmp_path / "raw", name="disk", format="raw", size=4 * GIB, data_bytes=2**23)
    return next(output.glob("*.img"))


@pytest.fixture
def rounded(raw: Path, tmp_path: Path) -> Path:
    """A VHD of the same disk whose size ``qemu-img`` rounded up, to more than 4 GiB."""
    (tmp_path / "vhd").mkdir()
    return qemu_make(tmp_path / "vhd" / "disk.vhd", raw, "vpc")


@pytest.mark.parametrize("first", ["raw", "rounded"])
@pytest.mark.variants
def test_a_format_that_rounds_the_size_up_finds_the_same_ami_and_reports_both_sizes(
    plan: Callable[..., publish.PublishPlan], raw: Path, rounded: Path, left: Callable[[], Left], first: str
) -> None:
    messages: list[str] = []
    order = [(raw, "direct", 4), (rounded, "import", 5)]
    (one, via, gib), (other, others_via, others_gib) = order if first == "raw" else order[::-1]
    made = plan(image=str(one), via=via).apply()
    assert made.size_gib == gib
    again = plan(
        image=str(other), via=others_via, progress=Progress(lambda e: messages.append(e.message))
    ).apply()
    assert (again.ami_id, again.outcome, again.size_gib) == (made.ami_id, "reused", gib)
    assert {-(-size // BLOCK) for size in (made.disk_bytes, again.disk_bytes)} == {8192, 8193}
    (message,) = [text for text in messages if "rounds the size up" in text]
    assert f"has {gib} GiB" in message
    assert f"has {others_gib} GiB" in message
    assert left().snapshots == [made.snapshot_id]
    assert left().objects == []


def test_other_formats_of_the_same_disk_find_its_ami(
    plan: Callable[..., publish.PublishPlan], raw: Path, rounded: Path, tmp_path: Path
) -> None:
    made = plan(image=str(rounded)).apply()
    assert made.size_gib == 5
    vmdk = qemu_make(tmp_path / "disk.vmdk", raw, "vmdk", "subformat=streamOptimized")
    for image, via in ((qemu_make(tmp_path / "disk.qcow2", raw, "qcow2"), "direct"), (vmdk, "import")):
        built = plan(image=str(image), via=via, dry_run=True).build()
        assert (built.ami_id, built.logical_bytes) == (made.ami_id, 4 * GIB)


def test_a_snapshot_of_another_size_is_registered_after_its_ami_was_deregistered(
    aws: Sandbox, plan: Callable[..., publish.PublishPlan], raw: Path, rounded: Path
) -> None:
    first = plan(image=str(rounded), via="direct").apply()
    aws.client("ec2", REGION).deregister_image(ImageId=first.ami_id)
    again = plan(image=str(raw), via="direct").apply()
    assert (again.snapshot_id, again.outcome, again.size_gib) == (first.snapshot_id, "created", 5)


def test_an_import_writes_the_manifest_of_its_snapshot(
    plan: Callable[..., publish.PublishPlan], rounded: Path
) -> None:
    result = plan(image=str(rounded)).apply()
    manifest = manifests.read(open_tables(load()), result.snapshot_id)
    assert manifest is not None
    assert manifest.identity == result.digest == identity_of(manifest.blocks.raw())


def test_a_second_publish_of_an_image_in_the_nix_store_reads_nothing(
    plan: Callable[..., publish.PublishPlan], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = raw.parents[1] / "nix" / "store" / f"{'0' * 32}-image"
    store.mkdir(parents=True)
    image = raw.rename(store / "disk.img")
    monkeypatch.setattr(pipeline, "nar_hash", lambda path: f"sha256:{len(path)}")
    first = plan(image=str(image), via="direct").apply()

    def never(*_words: Any, **_more: Any) -> Any:
        raise AssertionError("the image was read")

    monkeypatch.setattr(pipeline, "survey", never)
    again = plan(image=str(image), via="direct").apply()
    assert (again.ami_id, again.outcome) == (first.ami_id, "reused")
    assert {step.step: (step.status, step.bytes) for step in again.steps}["digest"] == ("reused", 0)


def test_an_image_that_an_output_links_to_is_remembered_by_its_own_store_path(
    plan: Callable[..., publish.PublishPlan], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NAR hash of the output covers the link, not the bytes behind it."""
    store = raw.parents[1] / "nix" / "store"
    image, output = store / f"{'1' * 32}-disk" / "disk.img", store / f"{'0' * 32}-linked"
    image.parent.mkdir(parents=True)
    output.mkdir()
    raw.rename(image)
    (output / "disk.img").symlink_to(image)
    hashes = {str(image.parent): "sha256:one", str(output): "sha256:link"}
    monkeypatch.setattr(pipeline, "nar_hash", hashes.__getitem__)
    first = plan(image=str(output), via="direct", dry_run=True).build().digest
    with image.open("r+b") as file:
        file.seek(4 * 2**20)
        file.write(b"another build")
    assert plan(image=str(output), via="direct", dry_run=True).build().digest == first
    hashes[str(image.parent)] = "sha256:other"
    assert plan(image=str(output), via="direct", dry_run=True).build().digest != first


def test_an_identity_that_was_remembered_wrongly_is_forgotten(
    plan: Callable[..., publish.PublishPlan], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the file in the store had been damaged when it was read, and then repaired."""
    store = raw.parents[1] / "nix" / "store" / f"{'0' * 32}-image"
    store.mkdir(parents=True)
    image = raw.rename(store / "disk.img")
    monkeypatch.setattr(pipeline, "nar_hash", lambda _path: "sha256:one")
    plan(image=str(image), via="direct", dry_run=True).build()
    with image.open("r+b") as file:
        file.seek(4 * 2**20)
        file.write(b"repaired")
    with pytest.raises(errors.ImageChangedError):
        plan(image=str(image), via="direct").apply()
    assert plan(image=str(image), via="direct").apply().digest == identify(image).identity


def test_a_wrong_cached_identity_publishes_nothing(
    plan: Callable[..., publish.PublishPlan],
    raw: Path,
    left: Callable[[], Left],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the file had changed within the resolution of its file system's clock."""
    wanted = plan(image=str(raw), via="direct")
    seen = wanted.build().survey
    with raw.open("r+b") as file:
        file.seek(4 * 2**20)
        file.write(b"other")
    monkeypatch.setattr(pipeline.IdentityCache, "find", lambda *_words, **_more: seen)
    with pytest.raises(errors.ImageChangedError):
        plan(image=str(raw), via="direct").apply()
    assert left().nothing


@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "of another tool"])
def test_an_object_that_a_running_import_may_read_is_not_replaced(
    tagged: bool,
    aws: Sandbox,
    plan: Callable[..., publish.PublishPlan],
    left: Callable[[], Left],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = plan()
    built = wanted.build()
    url = pipeline.identity.url(wanted, built)
    key = url.partition(f"s3://{BUCKET}/")[2]
    s3 = aws.client("s3", REGION)
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"x" * built.file_bytes)
    container: Any = {"Format": "VHD", "UserBucket": {"S3Bucket": BUCKET, "S3Key": key}}
    tags: Any = [
        {
            "ResourceType": "import-snapshot-task",
            "Tags": [{"Key": "vmsnix:digest", "Value": built.digest}],
        }
    ]
    aws.clock.speed = 0.001
    aws.client("ec2", REGION).import_snapshot(
        DiskContainer=container,
        RoleName="vmimport",
        TagSpecifications=tags if tagged else [],
        Encrypted=False,
    )
    monkeypatch.setattr(pipeline, "_is_in_aws", lambda *_words: False)
    with pytest.raises(errors.UploadError, match="A running import may be reading it"):
        wanted.upload(built)
    assert left().objects == [key]
    assert s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == built.file_bytes
    pipeline.delete_upload(wanted, built)
    assert left().objects == [key]


def test_another_encryption_of_the_same_file_is_another_object(
    plan: Callable[..., publish.PublishPlan],
) -> None:
    plain = plan()
    encrypted = replace(plain, kms_key=f"arn:aws:kms:{REGION}:012345678901:key/{'1' * 8}")
    built = plain.build()
    assert pipeline.identity.key(plain, built) != pipeline.identity.key(encrypted, built)


def test_the_token_of_an_import_depends_on_everything_that_must_be_equal() -> None:
    source = imports.Source("bucket", "key", "vhd", "vmimport")
    others = {"bucket": "other", "key": "other", "format": "raw", "role_name": "other", "kms_key": "other"}
    sources = [source, *(replace(source, **{name: value}) for name, value in others.items())]
    tokens = [one.token("0" * 64, 0) for one in sources]
    tokens += [source.token("1" * 64, 0), source.token("0" * 64, 1)]
    assert len(set(tokens)) == len(tokens) == 8
    assert replace(source, role_wait_seconds=9.0).token("0" * 64, 0) == tokens[0]


def test_two_files_with_the_same_disk_are_two_objects(
    plan: Callable[..., publish.PublishPlan], raw: Path, tmp_path: Path
) -> None:
    """They have the same format and the same identity, but other bytes."""
    dynamic = qemu_make(tmp_path / "dynamic.vhd", raw, "vpc", "force_size=on")
    rounded = qemu_make(tmp_path / "rounded.vhd", raw, "vpc")
    plans = [plan(image=str(image), dry_run=True) for image in (dynamic, rounded)]
    built = [one.build() for one in plans]
    assert len({one.digest for one in built}) == 1
    assert len({pipeline.identity.key(*one) for one in zip(plans, built, strict=True)}) == 2
