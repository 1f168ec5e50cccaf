"""Fixtures of the runner's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runbooks.shelf import Shelf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    for variable in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return Shelf(folder, tmp_path / "archive")
