"""What several tests share."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PROGRAMS = {"qemu-system": "qemu-system-x86_64"}


def require(tool: str) -> str:
    """Return the path of a program, or skip the test; with the tool in ``VMSNIX_REQUIRE`` fail instead.

    ``VMSNIX_REQUIRE`` is a comma-separated list of tools that this machine must have (CI sets it), so that
    a missing installation cannot hide behind a skip.
    """
    path = shutil.which(PROGRAMS.get(tool, tool))
    if path is None:
        unavailable(tool, f"{tool} is not on PATH")
    return path


def unavailable(tool: str, why: str) -> NoReturn:
    """Skip the test, or fail it where ``VMSNIX_REQUIRE`` says that this machine has the tool."""
    if tool in os.environ.get("VMSNIX_REQUIRE", "").split(","):
        pytest.fail(f"{tool} is required here (VMSNIX_REQUIRE), but {why}")
    pytest.skip(why)
