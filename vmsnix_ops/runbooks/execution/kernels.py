"""How a kernel for our notebooks is started: always the interpreter that runs this process.

An installed kernel spec called ``python3`` may belong to any environment, and may be missing; what runs a
runbook must be what was tested with it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LAUNCH = (
    "-m",
    "ipykernel_launcher",
    "-f",
    "{connection_file}",
    "--ext=vmsnix_ops.runbooks.execution._kernel",
)
# What would run in a kernel before its first cell, beside the user's own IPython. A sitecustomize, and the
# configuration of IPython in /etc, belong to the installation and run all the same.
STARTUP = frozenset({"PYTHONSTARTUP", "IPYTHON_STARTUP"})
# ipykernel 7 warns about unencrypted TCP in every run unless the manager encrypts, which the spec must allow.
METADATA: dict[str, object] = {"supported_encryption": ["curve"]}


def argv(*more: str) -> list[str]:
    """Return the command of a kernel, with further arguments."""
    return [sys.executable, *LAUNCH, *more]


def python_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a kernel finds this package; none when it is installed.

    Parameters
    ----------
    environment
        Of the kernel, as far as it is known.
    """
    package = Path(__file__).resolve().parents[3]
    if package in {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}:
        return {}
    others = environment.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(part for part in (str(package), others) if part)}
