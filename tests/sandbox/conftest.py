"""One server for all tests of the sandbox, emptied for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.asking import Asker
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def asker() -> Iterator[Asker]:
    with sandbox(speed=1000) as served:
        yield Asker(served)


@pytest.fixture
def aws(asker: Asker) -> Iterator[Asker]:
    asker.served.reset()
    yield asker
    asker.close()
