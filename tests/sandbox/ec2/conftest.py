"""One sandbox for the tests of EC2, cleared for each test. Its clock moves only when a test advances it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.clients import SandboxClients
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def still_sandbox() -> Iterator[SandboxClients]:
    with sandbox() as started:
        yield SandboxClients(started)


@pytest.fixture
def aws(still_sandbox: SandboxClients) -> SandboxClients:
    still_sandbox.clear()
    return still_sandbox
