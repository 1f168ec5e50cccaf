from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sandbox.ec2.rehearsal import Rehearsal
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def rehearsal() -> Iterator[Rehearsal]:
    with sandbox() as served:
        yield Rehearsal(served)


@pytest.fixture
def aws(rehearsal: Rehearsal) -> Rehearsal:
    rehearsal.reset()
    return rehearsal
