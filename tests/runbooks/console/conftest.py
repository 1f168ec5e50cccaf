"""A console with a folder of small notebooks, and a known account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runbooks.shelf import replace_package
from tests.support import wait_until
from vmsnix_ops.runbooks.console import backends

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

ACCOUNT = "012345678901"


@pytest.fixture
def console_shelf(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A shelf that replaces the package's own notebooks."""
    replace_package(shelf.folder, monkeypatch)
    monkeypatch.setattr(
        backends, "read_caller", lambda backend: backends.BackendCaller(ACCOUNT, "arn", "us-east-1")
    )
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "open" / "console.ipynb"))
    monkeypatch.delenv("VMSNIX_SANDBOX", raising=False)
    return shelf


@pytest.fixture
def wait() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition is true."""

    return wait_until
