"""Manifests beside the tables, in a folder and on S3."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.aws.ebs_direct import manifests
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.errors import RecordsError
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = Digests((index * 3, hashlib.sha256(bytes([index])).hexdigest()) for index in range(50))
SNAPSHOT = "snap-0123456789abcdef0"
MANIFEST = Manifest(identity_of(BLOCKS.raw()), 2**30, SNAPSHOT, "eu-central-1", BLOCKS)


def test_a_manifest_is_a_file_beside_the_tables(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    assert manifests.read(tables, SNAPSHOT) is None
    assert manifests.load(tables, SNAPSHOT) == {}
    manifests.save(tables, MANIFEST)
    manifests.save(tables, MANIFEST)
    assert manifests.read(tables, SNAPSHOT) == MANIFEST
    assert manifests.load(tables, SNAPSHOT) == BLOCKS
    (file,) = (tmp_path / "manifests").iterdir()
    assert file.name == SNAPSHOT
    assert file.stat().st_mode & 0o077 == 0


def test_a_manifest_on_s3_takes_one_request_to_read_and_one_to_write() -> None:
    with sandbox() as aws:
        aws.client("s3").create_bucket(Bucket="team")
        tables = Tables("s3://team/history", storage_options=aws.environment)
        before = len(list(aws.calls))
        assert manifests.read(tables, SNAPSHOT) is None
        manifests.save(tables, MANIFEST)
        assert manifests.read(tables, SNAPSHOT) == MANIFEST
        operations = [call.operation for call in list(aws.calls)[before:]]
        assert operations == ["GetObject", "PutObject", "GetObject"]


def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    manifests.save(tables, replace(MANIFEST, identity="d" * 64))
    with pytest.raises(RecordsError, match="Its blocks have the identity"):
        manifests.read(tables, SNAPSHOT)
    (tmp_path / "manifests" / SNAPSHOT).write_bytes(MANIFEST.dump()[:-7])
    with pytest.raises(RecordsError, match="is damaged or incomplete"):
        manifests.read(tables, SNAPSHOT)
    assert manifests.load(tables, SNAPSHOT) == {}


def test_a_manifest_that_cannot_be_written_or_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tables = Tables(tmp_path / "file")
    with pytest.raises(RecordsError, match=f"manifests/{SNAPSHOT} beside the tables .* cannot be written"):
        manifests.save(tables, MANIFEST)
