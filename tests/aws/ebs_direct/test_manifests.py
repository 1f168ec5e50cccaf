"""What a snapshot's manifest is in the tables: the same blocks, whatever their number."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.aws.ebs_direct import manifests
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = Digests((index * 3, hashlib.sha256(bytes([index])).hexdigest()) for index in range(50))
SNAPSHOT: dict[str, Any] = {
    "snapshot_id": "snap-0123456789abcdef0",
    "region": "eu-central-1",
    "digest": "d" * 64,
    "image": "ecs-node",
}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr(manifests, "PART", 8)
    return Tables(tmp_path)


def test_a_manifest_of_many_parts_comes_back_whole(tables: Tables) -> None:
    manifests.save(tables, **SNAPSHOT, blocks=BLOCKS)
    manifests.save(tables, **SNAPSHOT | {"snapshot_id": "snap-0fedcba9876543210"}, blocks=Digests())
    assert len(tables.read("manifests")) == 50
    tables.compact("manifests")
    found = manifests.load(tables, SNAPSHOT["snapshot_id"])
    assert found == BLOCKS
    assert list(found) == list(BLOCKS)
    assert manifests.load(tables, "snap-0fedcba9876543210") == {}


def test_a_save_that_was_cut_off_is_finished_by_the_next(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, parts = Tables.append, []

    def cut_off(self: Tables, table: str, rows: Any, **more: Any) -> None:
        parts.append(more["once"])
        if len(parts) == 4:
            raise KeyboardInterrupt
        append(self, table, rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "append", cut_off)
        with pytest.raises(KeyboardInterrupt):
            manifests.save(tables, **SNAPSHOT, blocks=BLOCKS)
    assert len(manifests.load(tables, SNAPSHOT["snapshot_id"])) == 24
    manifests.save(tables, **SNAPSHOT, blocks=BLOCKS)
    assert manifests.load(tables, SNAPSHOT["snapshot_id"]) == BLOCKS
    assert len(tables.read("manifests")) == 50
