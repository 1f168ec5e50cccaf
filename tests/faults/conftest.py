"""A shared sandbox with publishers; each test starts with an empty account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.crash_sweep import Sweep, open_sweep

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with open_sweep(tmp_path_factory.mktemp("publishers")) as ready:
        yield ready


@pytest.fixture
def sweep(shared: Sweep, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Publishers to run and to kill; this process uses the same sandbox and state folder."""
    state = shared.clean()
    for name, value in shared.job(state, "import").environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(state)
    return shared
