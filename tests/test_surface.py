"""The public API: what ``from vmsnix_ops import NAME`` offers, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import vmsnix_ops

NAMES = vmsnix_ops.__all__


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_a_module_in_a_fresh_process(name: str) -> None:
    program = f"from vmsnix_ops import {name}; import vmsnix_ops; print(vmsnix_ops.{name}.__name__)"
    assert isinstance(getattr(vmsnix_ops, name), ModuleType)
    assert run(program).strip() == getattr(vmsnix_ops, name).__name__


def test_tab_completion_shows_only_the_public_api() -> None:
    import_module("vmsnix_ops.boot.run")  # a private module that is loaded does not show up
    assert dir(vmsnix_ops) == sorted(NAMES) == NAMES


def test_importing_the_package_imports_none_of_its_modules() -> None:
    program = "import json, sys, vmsnix_ops; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run(program))
    assert [name for name in loaded if name.startswith("vmsnix_ops.")] == []
    heavy = {"boto3", "botocore", "pandas", "pydantic", "pyarrow", "deltalake", "papermill", "matplotlib"}
    assert heavy.isdisjoint(loaded)


@pytest.mark.parametrize("name", ["prefligth", "boot", "text", "_private"])
def test_what_is_not_public_is_not_an_attribute(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'vmsnix_ops' has no attribute '{name}'"):
        vmsnix_ops.__getattr__(name)
