"""The lease of a run that is part of a fleet: without it, the kernel changes nothing in AWS."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support import join
from vmsnix_ops.errors import FleetError
from vmsnix_ops.runbooks.execution import lease
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf


def test_a_lease_allows_changes_until_its_time(tmp_path: Path) -> None:
    file = tmp_path / "until"
    lease.extend(file, lease.now() + 60)
    lease.check(file)
    lease.extend(file, 0.0)
    with pytest.raises(FleetError, match="lost its claim"):
        lease.check(file)
    file.unlink()
    with pytest.raises(FleetError, match="lost its claim"):
        lease.check(file)


def test_a_lease_that_ran_out_may_be_extended_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "until"
    lease.extend(file, lease.now() - 1)  # such as after a suspend of the machine
    extension = threading.Timer(0.3, lease.extend, [file, lease.now() + 60])
    extension.start()
    lease.check(file)
    join(extension)
    lease.extend(file, lease.now() - 1)
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.0)
    with pytest.raises(FleetError, match="lost its claim"):
        lease.check(file)


def test_a_run_that_loses_its_lease_makes_no_more_changes(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "until"
    lease.extend(file, lease.now() + 600)
    shelf.put(
        "10-try-this.ipynb",
        "import boto3\ns3 = boto3.client('s3')\ns3.create_bucket(Bucket='before')",
        f"open({str(file)!r}, 'w').write('0.0')\nlen(s3.list_buckets()['Buckets'])",
        "s3.create_bucket(Bucket='after')",
        side_effects="creates",
    )
    with sandbox() as aws:
        outcome = run(
            "try-this",
            folder=shelf.folder,
            archive=shelf.archive,
            environment={**aws.environment, lease.VARIABLE: str(file)},
            record=False,
        )
        buckets = [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]]
    assert outcome.status == "failed"
    assert "lost its claim" in str(outcome.error)
    assert buckets == ["before"]
