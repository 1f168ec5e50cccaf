"""What several tests share."""

from __future__ import annotations

import os
import shutil

import pytest

PROGRAMS = {"qemu-system": "qemu-system-x86_64"}


def require(tool: str) -> str:
    """Return the path of a program, or skip the test; with the tool in ``VMSNIX_REQUIRE`` fail instead.

    ``VMSNIX_REQUIRE`` is a comma-separated list of tools that this machine must have (CI sets it), so that
    a missing installation cannot hide behind a skip.
    """
    path = shutil.which(PROGRAMS.get(tool, tool))
    if path is None:
        if tool in os.environ.get("VMSNIX_REQUIRE", "").split(","):
            pytest.fail(f"{tool} is required here (VMSNIX_REQUIRE) but is not on PATH")
        pytest.skip(f"{tool} is not on this machine")
    return path
