"""A proof finds every change, and reports nothing else."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.disk.images import qemu_make
from tests.disk.reference_identity import identity_of_raw
from tests.publish.conftest import REGION
from tests.publish.proving import BLOCK, HOME, WEST, Account, block, disk, identity, proof, row
from tests.publish.test_prove import account, keep_manifest, root_of, served
from vmsnix_ops.disk.sample import make_sample_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmsnix_ops import publish
    from vmsnix_ops.publish.prove import ProofResult
    from vmsnix_ops.sandbox import Sandbox

__all__ = ["account", "served"]
GIB = 2**30
DISK_BLOCKS = 1003  # of `disk`, so that later blocks of its volume are beyond it


# Nothing was changed


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sparse raw disk of 1 GiB."""
    output = make_sample_image(tmp_path / "raw", name="disk", format="raw", size=GIB, data_bytes=3 * 2**20)
    return next(output.glob("*.img"))


CONTAINERS = {
    "raw": ("", ""),
    "rounded vhd": ("vpc", ""),
    "vhd": ("vpc", "force_size=on"),
    "fixed vhd": ("vpc", "subformat=fixed,force_size=on"),
    "qcow2": ("qcow2", ""),
    "compressed qcow2": ("compressed", ""),
    "vmdk": ("vmdk", "subformat=streamOptimized"),
    "vhdx": ("vhdx", ""),
}
IMPORTED = ("raw", "rounded vhd", "vhd", "fixed vhd", "vmdk")


@pytest.mark.parametrize(
    ("container", "via"),
    [
        ("rounded vhd", "import"),
        *((name, "direct") for name in CONTAINERS),
        *((name, "import") for name in IMPORTED if name != "rounded vhd"),
    ],
)
@pytest.mark.variants(quick=0, seconds=6)
def test_an_image_of_every_format_and_method_is_proven_and_so_are_its_copies(
    aws: Sandbox,
    plan: Callable[..., publish.PublishPlan],
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    via: str,
) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    driver, options = CONTAINERS[container]
    image = qemu_make(tmp_path / f"disk.{driver}", raw, driver, options) if driver else raw
    published = plan(image=str(image), via=via).apply()
    published.save()
    assert published.digest == identity_of_raw(raw)
    owner = Account(aws)
    plain, encrypted = (owner.copied(published.ami_id, Encrypted=one) for one in (False, True))
    amis = (published.ami_id, plain, encrypted)
    for extent in ("whole", "sample"):
        result = proof(*amis, regions=[REGION, WEST], extent=extent)
        result.raise_for_status()
        found = [(one["verdict"], one["source"], one["notes"]) for one in result.as_dict()["proofs"]]
        assert found == [("proven", "result", [])] * 3


def test_an_incremental_snapshot_is_proven(account: Account) -> None:
    old = account.snapshot({**disk(), 3: block(33), 700: block(70)})
    new = account.snapshot({3: block(3), 700: bytes(BLOCK)}, ParentSnapshotId=old)
    proof(account.ami(new), identity=identity(disk())).raise_for_status()


# Something was changed


def caught(result: ProofResult) -> str:
    """Check that a proof failed; return its verdict."""
    assert result.error is not None
    assert result.as_dict()["status"] != "done"
    return result.verdict


@pytest.fixture
def good(account: Account) -> str:
    """The snapshot of a published image that has a manifest."""
    ami = account.published()
    keep_manifest(disk(), root_of(account, ami))
    return root_of(account, ami)


def changed(account: Account, good: str, blocks: dict[int, bytes]) -> None:
    """Check that an AMI with these blocks is found, whatever its tags are."""
    forged = identity(disk())
    ami = account.ami(account.snapshot(blocks, ParentSnapshotId=good, tag=forged), tag=forged)
    account.record(ami, forged, good)
    for params in ({}, {"identity": forged}, {"extent": "sample"}):
        result = proof(ami, **params)
        assert caught(result) == "differs"
        differing = sorted(index for index, data in blocks.items() if data != disk().get(index, bytes(BLOCK)))
        assert row(result)["first_differing"] == differing[:10]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("index", [1002, 0, 500, DISK_BLOCKS, 7, 8, 2047])
@pytest.mark.parametrize("bit", [0, 8 * BLOCK - 1])
@pytest.mark.variants
def test_one_bit_is_found_anywhere(account: Account, good: str, index: int, bit: int) -> None:
    """In the first, the last, a zero, an absent block, behind the disk, and at the volume's end."""
    changed(account, good, {index: flipped(disk().get(index, bytes(BLOCK)), bit)})


@pytest.mark.long(seconds=60)
def test_one_bit_is_found_at_a_hundred_random_places(account: Account, good: str) -> None:
    chance = random.Random()
    for _ in range(100):
        index = chance.choice([*disk(), chance.randrange(2048)])
        bit = chance.randrange(8 * BLOCK)
        changed(account, good, {index: flipped(disk().get(index, bytes(BLOCK)), bit)})


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param({7: bytes(BLOCK), 9: block(7)}, id="moved"),
        pytest.param({3: bytes(BLOCK)}, id="zeroed"),
        pytest.param({DISK_BLOCKS + 1: block(0)}, id="beyond the disk"),
        pytest.param({2: block(5), 5: block(2)}, id="swapped"),
        pytest.param({600: block(3)}, id="doubled"),
        pytest.param({index: block(index + 50) for index in range(30)}, id="many"),
    ],
)
@pytest.mark.variants
def test_blocks_that_were_moved_removed_or_added_are_found(
    account: Account, good: str, blocks: dict[int, bytes]
) -> None:
    changed(account, good, blocks)


def test_another_snapshot_with_the_same_name_tag_and_record_is_found(account: Account) -> None:
    """An AMI that was deregistered and registered again with other bytes."""
    mine = identity(disk())
    ami = account.published()
    account.client("ec2").deregister_image(ImageId=ami)
    other = account.snapshot({0: block(66)}, tag=mine)
    account.names = 0
    again = account.ami(other, tag=mine)
    assert caught(proof(ami)) == "not provable"  # it is gone
    result = proof("image-1")
    assert (row(result)["ami_id"], caught(result)) == (again, "differs")
    assert caught(proof(again, identity=mine)) == "differs"


def test_an_ami_whose_tag_and_records_are_all_forged_is_never_proven(account: Account) -> None:
    """A person who may write tags and tables, and not the archive."""
    evil = {0: block(66)}
    account.published()
    snapshot = account.snapshot(evil, tag=identity(evil))
    ami = account.ami(snapshot, tag=identity(evil))
    account.record(ami, identity(evil), snapshot, ami_id="ami-0123456789abcdef0")
    keep_manifest(evil, snapshot)
    assert caught(proof(ami)) == "matches its tag"
    assert caught(proof(ami, extent="sample")) == "matches its tag"
    assert caught(proof(ami, identity=identity(disk()))) == "differs"
    assert caught(proof(ami, identity=identity(disk()), extent="sample")) == "not provable"


def test_the_archived_result_of_another_job_does_not_help_a_forger(account: Account) -> None:
    """A smoke test archives the AMI with the digest in its tag; the forged row calls it a publish."""
    evil = {0: block(66)}
    ami = account.ami(account.snapshot(evil), tag=identity(evil))
    account.record(ami, identity(evil), runbook="smoke-test", via=None, dry_run=False)
    assert caught(proof(ami)) == "matches its tag"


def test_a_forged_tag_is_reported_on_a_proven_ami(account: Account) -> None:
    ami = account.published()
    forged = [{"Key": "vmsnix:digest", "Value": "e" * 64}]
    account.client("ec2").create_tags(Resources=[ami], Tags=forged)
    assert caught(proof(ami)) == "proven"


@pytest.mark.parametrize("extent", ["whole", "sample"])
def test_another_root_device_or_disk_is_found(account: Account, good: str, extent: str) -> None:
    evil, mine = account.snapshot({0: block(66)}), identity(disk())
    for ami in (
        account.ami(evil, tag=mine, others={"/dev/sdb": good}),
        account.ami(good, tag=mine, others={"/dev/sdb": evil}),
        account.ami(evil, tag=mine, root="/dev/sda1", others={"/dev/xvda": good}),
    ):
        account.record(ami, mine, good)
        result = proof(ami, extent=extent)
        assert (caught(result), row(result)["reason"]) == ("differs", "another disk")


def test_a_copy_of_other_bytes_is_found(account: Account) -> None:
    mine = identity(disk())
    good = account.published()
    evil = account.ami(account.snapshot({0: block(66)}, tag=mine), tag=mine)
    for more in ({}, {"Encrypted": True}):
        copy: Any = account.copied(evil, **more)
        assert caught(proof(copy, regions=[WEST], identity=mine)) == "differs"
        assert caught(proof(good, copy, regions=[HOME, WEST], identity=mine)) == "differs"
