"""Start kernels with the interpreter of this process.

An installed kernel spec ``python3`` can belong to any environment, or be missing. A runbook must run with the
packages with which it was tested.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Variables that make a kernel run the user's code before the first cell. A sitecustomize, and IPython's
# configuration in /etc, belong to the installation and still run.
STARTUP = frozenset({"PYTHONSTARTUP", "IPYTHON_STARTUP"})
# ipykernel 7 warns about unencrypted TCP in every run, unless the manager encrypts and the spec allows it.
METADATA: dict[str, object] = {"supported_encryption": ["curve"]}


def argv(*more: str) -> list[str]:
    """Return the command that starts a kernel, with additional arguments."""
    launcher = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return [sys.executable, *launcher, "--ext=vmsnix_ops.runbooks.execution._kernel", *more]


def python_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a kernel finds this package; none if the package is installed."""
    package = Path(__file__).resolve().parents[3]
    if package in {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}:
        return {}
    others = environment.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(part for part in (str(package), others) if part)}
