"""One sandbox for the tests of EC2, cleared for each test. Its clock moves only when a test advances it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.clients import SandboxClients, allow_public_images
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
    # A new account blocks public AMIs. Many tests share some.
    allow_public_images(still_sandbox.sandbox, "us-east-1")
    return still_sandbox
