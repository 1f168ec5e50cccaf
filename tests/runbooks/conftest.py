"""Fixtures of the runner's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runbooks.shelf import Shelf, make_shelf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return make_shelf(tmp_path, tmp_path / "archive", monkeypatch)
