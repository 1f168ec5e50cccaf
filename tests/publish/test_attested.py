"""Attested images: their measurements are recorded, and a false description is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.boot.attested_image import make_disk, write_output
from tests.boot.attested_linux import workshop
from vmsnix_ops import build_image, errors, prove
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.boot import measurements
from vmsnix_ops.channels import attestation
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.nix.image import read_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records import history

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.publish import PublishPlan
    from vmsnix_ops.sandbox import Sandbox

REGION = "us-east-1"


def measured(image: Path) -> Measurements:
    with open_image(image / "attested.img") as disk:
        found = measurements.measure(disk)
    assert found is not None
    return found


def test_a_publish_records_the_measurements(
    aws: Sandbox, plan: Callable[..., PublishPlan], tmp_path: Path
) -> None:
    image = write_output(tmp_path / "attested", make_disk())
    expected = measured(image)
    made = plan(image=str(image))
    result = made.apply()
    (ami,) = aws.client("ec2", REGION).describe_images(ImageIds=[result.ami_id])["Images"]
    tags = {tag["Key"]: tag["Value"] for tag in ami["Tags"]}
    assert ami["TpmSupport"] == "v2.0"
    assert tags["vmsnix:root-hash"] == expected.root_hash
    assert tags["vmsnix:uki"] == expected.uki_sha384
    assert tags["vmsnix:pcr4"] == expected.pcr4_sha384
    assert tags["vmsnix:pcr12"] == "0" * 96
    row = history.amis(made.journal.tables).iloc[0]
    assert row["root_hash"] == expected.root_hash
    assert row["uki_sha384"] == expected.uki_sha384
    assert (row["pcr4_sha384"], row["pcr12_sha384"]) == (expected.pcr4_sha384, "0" * 96)
    saved = json.loads((result.run.folder / "result.json").read_text())
    assert saved["measurements"] == expected.as_dict()
    assert ("PCR 4", expected.pcr4_sha384) in result.facts()


def test_a_build_shows_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = read_image(write_output(tmp_path / "attested", make_disk()))
    monkeypatch.setattr(build_image.BuildPlan, "build", lambda _plan, **_options: image)
    result = build_image.BuildPlan(image.name, "flake", None, None).apply()  # type: ignore[arg-type]
    assert result.as_dict()["measurements"] == measured(image.path.parent).as_dict()
    assert ("root hash", measured(image.path.parent).root_hash) in result.facts()


@pytest.mark.parametrize(
    ("disk", "declared", "problem"),
    [
        ({}, {"root_hash": "0" * 64}, r"has '0{64}', but the bytes have '[0-9a-f]{64}'"),
        ({}, {"pcr4_sha384": "0" * 96}, r"pcr4_sha384.*has '0{96}', but the bytes have '[0-9a-f]{96}'"),
        ({}, {"uki_sha384": "0" * 96}, r"uki_sha384.*has '0{96}', but the bytes have '[0-9a-f]{96}'"),
        ({}, {"uki": "nixos.efi"}, r"uki.*has 'nixos\.efi', but the bytes have 'EFI/BOOT/BOOTX64\.EFI'"),
        ({}, {"pcr9_sha384": "0" * 96}, r"pcr9_sha384.*has '0{96}', but the bytes have None"),
        ({"words": "vmsnix.interactive=1"}, {"interactive": False}, "interactive.*has False, .* have True"),
        ({"words": "vmsnix.cluster=blue"}, {"cluster": "green"}, "has 'green', but the bytes have 'blue'"),
        ({"sections": {".cmdline": b"quiet"}}, {"interactive": False}, "without such a UKI"),
        ({"sections": {".sdmagic": b""}}, {"interactive": False}, "another stub"),
    ],
)
def test_the_bytes_are_compared_with_the_description(
    plan: Callable[..., PublishPlan],
    tmp_path: Path,
    disk: dict[str, Any],
    declared: dict[str, object],
    problem: str,
) -> None:
    image = write_output(tmp_path / "attested", make_disk(**disk), attested=declared)
    with pytest.raises(errors.ImageFormatError, match=problem):
        plan(image=str(image), dry_run=True).build()


def test_a_changed_store_is_refused_before_the_upload(
    aws: Sandbox, plan: Callable[..., PublishPlan], tmp_path: Path
) -> None:
    disk = bytearray(make_disk())
    disk[disk.index(b"a store") + 9] ^= 1
    image = write_output(tmp_path / "attested", bytes(disk))
    with pytest.raises(errors.ImageFormatError, match="does not match its root hash"):
        plan(image=str(image)).apply()
    assert not any(call.operation in ("PutObject", "CreateMultipartUpload") for call in aws.calls)


def test_an_attested_image_needs_a_tpm(plan: Callable[..., PublishPlan], tmp_path: Path) -> None:
    image = write_output(tmp_path / "attested", make_disk())
    path = image / "nix-support/image-info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"registerImage": {}}))
    with pytest.raises(errors.ImageFormatError, match="nothing can attest an image without a TPM"):
        plan(image=str(image)).apply()


def test_an_image_that_declares_nothing_is_published_without_measurements(
    plan: Callable[..., PublishPlan], tmp_path: Path
) -> None:
    disk = make_disk(sections={".sdmagic": b"another stub"})
    image = write_output(tmp_path / "attested", disk, attested={})
    assert plan(image=str(image), dry_run=True).build().measurements is None


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A real attested image: see `tests.boot.attested_linux`."""
    with workshop() as made:
        image = write_output(tmp_path / "debian", b"", attested={})
        made.make(image / "attested.img", words="vmsnix.cluster=blue")
    with open_image(image / "attested.img") as disk:
        found = measurements.measure(disk)
        size = disk.size
    assert found is not None
    path = image / "nix-support/image-info.json"
    info = json.loads(path.read_text()) | {"logical_bytes": str(size)}
    info["attested"] = {"root_hash": found.root_hash, "interactive": False, "cluster": "blue"}
    path.write_text(json.dumps(info))
    return image


@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("via", ["direct", "import"])
def test_a_real_attested_image_is_the_same_after_publish_and_download(
    plan: Callable[..., PublishPlan], debian: Path, tmp_path: Path, via: str, aws: Sandbox
) -> None:
    expected = measured(debian)
    result = plan(image=str(debian), via=via).apply()
    assert result.measurements == expected
    proof = prove.plan(amis=[result.ami_id], regions=[REGION], progress=silent()).apply()
    assert proof.verdict == "proven"
    assert proof.proofs[0].measurements == expected
    copy = tmp_path / "copy.raw"
    session = boto3.Session(region_name=REGION)
    reading.download(session, region=REGION, snapshot_id=result.snapshot_id, path=copy)
    with (debian / "attested.img").open("rb") as image, copy.open("rb") as downloaded:
        while piece := image.read(2**20):
            assert downloaded.read(len(piece)) == piece
        assert not downloaded.read().strip(b"\0")  # the volume is a whole number of GiB
    assert attestation.read(amis=[result.ami_id], region=REGION).measurements == (expected,)
