"""One sandbox for the tests of all services, reset for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.clients import SandboxClients
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def fast_sandbox() -> Iterator[SandboxClients]:
    with sandbox(speed=1000) as started:
        yield SandboxClients(started)


@pytest.fixture
def aws(fast_sandbox: SandboxClients) -> Iterator[SandboxClients]:
    fast_sandbox.sandbox.reset()
    yield fast_sandbox
    fast_sandbox.close()
