"""A console on a shelf of small notebooks, whose account is known without asking."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console import places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

ACCOUNT = "012345678901"


@pytest.fixture
def console_shelf(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A shelf that the console takes for the package's own notebooks."""
    monkeypatch.setattr(catalog, "default_folder", lambda: shelf.folder)
    monkeypatch.setattr(places, "who", lambda place: places.Who(ACCOUNT, "arn", "us-east-1"))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "open" / "console.ipynb"))
    monkeypatch.delenv("VMSNIX_SANDBOX", raising=False)
    return shelf


@pytest.fixture
def wait() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds."""

    def until(holds: Callable[[], object]) -> None:
        last = time.monotonic() + 90
        while not holds():
            assert time.monotonic() < last, "it never came to hold"
            time.sleep(0.05)

    return until
