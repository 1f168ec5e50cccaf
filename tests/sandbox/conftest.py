"""One sandbox for the tests of all services, reset for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.clients import SandboxClients
from vmsnix_ops.sandbox import Sandbox, sandbox

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


@pytest.fixture(scope="module")
def enforcing() -> Iterator[tuple[Sandbox, bytes]]:
    with sandbox(speed=5000, enforce_iam=True) as started:
        started.prepare()
        started.client("s3").put_object(Bucket="vmsnix-images", Key="vmsnix/a", Body=b"a")
        yield started, started.save_tables()


@pytest.fixture
def enforcing_sandbox(enforcing: tuple[Sandbox, bytes]) -> Sandbox:
    """A sandbox that refuses users without policies, with a bucket, an object and the role ``vmimport``."""
    started, saved = enforcing
    started.restore_tables(saved)
    return started
