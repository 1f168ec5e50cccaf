"""Fixtures: an empty account to audit, and those of publishing for tests that publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit.account import Owner
from tests.audit.retirement.fleet import fleet, fleet_sandbox
from tests.publish.conftest import aws, image, plan
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["aws", "fleet", "fleet_sandbox", "image", "plan"]


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with sandbox(speed=0.001) as aws:
        yield aws


@pytest.fixture
def own(served: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Owner:
    """An empty account, selected by the AWS environment of this process."""
    served.reset()
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VMSNIX_PROGRESS", "silent")
    monkeypatch.chdir(tmp_path)
    return Owner(served)
