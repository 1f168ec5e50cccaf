"""The digests of a snapshot's blocks, and the journal by which reading them continues."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.aws.ebs_direct.test_resume import BLOCK, REGION, Upload, aws, image
from vmsnix_ops import errors
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import DigestJournal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["aws", "image"]
GET = "ebs:GetSnapshotBlock"
SNAPSHOT = "snap-0123456789abcdef0"


@pytest.fixture
def snapshot(aws, image, tmp_path):
    return Upload(image, tmp_path / "records").run().snapshot_id


def fetched(aws) -> int:
    return sum(call.operation == "GetSnapshotBlock" and call.outcome == "ok" for call in aws.calls)


def digests(snapshot, **more):
    session = boto3.Session(region_name=REGION)
    config = TransferConfig(2, 8, read_seconds=2, budget_seconds=1)
    return reading.digests(session, region=REGION, snapshot_id=snapshot, config=config, **more)


def expected(image: Path) -> list[tuple[int, bytes]]:
    data = image.read_bytes()
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return [
        (index, hashlib.sha256(block).digest()) for index, block in enumerate(blocks) if block.strip(b"\0")
    ]


def test_every_block_is_read_in_order(snapshot, image):
    assert list(digests(snapshot)) == expected(image)


def test_a_large_snapshot_is_listed_some_blocks_at_a_time(aws, snapshot, image, monkeypatch):
    monkeypatch.setattr(reading, "BATCH_BLOCKS", 7)
    monkeypatch.setattr(reading.manifests, "PAGE", 100)
    assert list(digests(snapshot)) == expected(image)


def test_only_some_blocks_are_read(aws, snapshot, image):
    assert list(digests(snapshot, only={3, 4, 999})) == [one for one in expected(image) if one[0] in (3, 4)]


def test_interrupted_reading_continues(aws, snapshot, image, tmp_path):
    journal = DigestJournal(tmp_path / "proof", snapshot_id=snapshot, region=REGION)
    aws.faults.add({"op": GET, "do": "error", "code": "InternalServerException", "nth": list(range(21, 999))})
    with pytest.raises(errors.AwsError):
        list(digests(snapshot, journal=journal))
    aws.faults.clear()
    before = fetched(aws)
    assert list(digests(snapshot, journal=journal)) == expected(image)
    assert 0 < fetched(aws) - before < len(expected(image))
    assert list(digests(snapshot, journal=journal)) == expected(image)


BLOCKS = {7: "ab" * 32, 3: "cd" * 32, 900_000: "ef" * 32}


def journal(path: Path, snapshot_id: str = SNAPSHOT, region: str = REGION, **sample: Any) -> DigestJournal:
    return DigestJournal(path, snapshot_id=snapshot_id, region=region, **sample)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    one = journal(tmp_path / "folder" / "proof")
    assert dict(one.open()) == {}
    one.add(list(BLOCKS.items()))
    one.close()
    return one.path


def known(path: Path, **other: Any) -> dict[int, str]:
    one = journal(path, **other)
    try:
        return dict(one.open())
    finally:
        one.close()


def test_a_journal_contains_the_blocks_that_were_read(written):
    assert known(written) == BLOCKS


@pytest.mark.parametrize("other", [{"snapshot_id": "snap-0fedcba9876543210"}, {"region": "eu-west-1"}])
def test_a_journal_of_another_snapshot_is_not_used(written, other):
    assert known(written, **other) == {}
    assert known(written) == {}  # it was begun anew


def test_the_entry_of_another_snapshot_is_not_used(written, tmp_path):
    other = journal(tmp_path / "other", snapshot_id="snap-0fedcba9876543210")
    other.open()
    other.add([(5, "12" * 32)])
    other.close()
    with written.open("ab") as file:
        file.write(other.path.read_bytes()[-40:])
    assert known(written) == BLOCKS


OLD = {"identity": "1" * 64, "seed": bytes(range(32))}
NEW = {"identity": "1" * 64, "seed": bytes(32)}


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """The journal of a sample with the seed `OLD`."""
    one = journal(tmp_path / "sample", **OLD)
    one.open()
    one.add(list(BLOCKS.items()))
    one.close()
    return one.path


def test_the_seed_of_a_sample_is_written_before_the_first_block(tmp_path):
    journal(tmp_path / "sample", **OLD).open()
    again = journal(tmp_path / "sample", **NEW)
    assert (dict(again.read()), again.seed) == ({}, OLD["seed"])


def test_a_sample_continues_with_the_seed_of_its_journal(sampled):
    one = journal(sampled, **NEW)
    assert (dict(one.open()), one.seed) == (BLOCKS, OLD["seed"])


def head_changed(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"000102", b"000103"),
        (b"000102", b"zz0102"),
        (b"000102", b"0102"),
        (b'"seed"', b'"salt"'),
        (SNAPSHOT.encode(), b"snap-0fedcba9876543210"),
        (b"1111", b"1112"),
        (b"{", b"["),
    ],
)
def test_the_journal_of_a_sample_with_another_first_line_is_not_used(sampled, old, new):
    head_changed(sampled, old, new)
    one = journal(sampled, **NEW)
    assert (dict(one.read()), one.seed) == ({}, NEW["seed"])


def test_the_journals_of_a_sample_and_of_a_whole_snapshot_are_not_confused(sampled, written):
    assert known(sampled) == {}
    assert known(written, **NEW) == {}


@pytest.mark.parametrize("lost", range(1, 41))
def test_the_block_of_an_incomplete_entry_is_read_again(written, lost):
    written.write_bytes(written.read_bytes()[:-lost])
    assert known(written) == {3: BLOCKS[3], 7: BLOCKS[7]}
    one = journal(written)
    one.open()
    one.add([(5, "12" * 32)])
    one.close()
    assert known(written) == {3: BLOCKS[3], 5: "12" * 32, 7: BLOCKS[7]}


@pytest.mark.parametrize("at", [-80, -60, -41])
def test_entries_after_a_damaged_one_are_ignored(written, at):
    data = bytearray(written.read_bytes())
    data[at] ^= 1
    written.write_bytes(data)
    assert known(written) == {7: BLOCKS[7]}


def test_zeros_after_a_power_cut_are_ignored(written):
    with written.open("ab") as file:
        file.write(bytes(400))
    assert known(written) == BLOCKS


def test_reading_continues_without_a_journal(tmp_path):
    (tmp_path / "file").write_text("")
    one = journal(tmp_path / "file" / "proof")
    assert dict(one.open()) == {}
    one.add(list(BLOCKS.items()))
    one.remove()
