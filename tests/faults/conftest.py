"""A sandbox and warm publishers for every test of this folder; each test begins with an empty account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.crash_sweep import Sweep, stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with stage(tmp_path_factory.mktemp("publishers")) as ready:
        yield ready


@pytest.fixture
def publishers(shared: Sweep, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Publishers to run and to kill; this process's environment points to the same sandbox and state."""
    state = shared.clean()
    for name, value in shared.job(state, "import").environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(state)
    return shared
