"""The runner imports slow libraries late, or not at all."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support import join
from vmsnix_ops.runbooks.execution.execute import RFC3987_LIBRARY, without_rfc3987

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf


def test_the_slow_library_is_hidden_in_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in (RFC3987_LIBRARY, "jsonschema"):
            monkeypatch.delitem(sys.modules, name)
    found: list[object] = []
    with without_rfc3987():
        with pytest.raises(ModuleNotFoundError, match="left out"):
            importlib.import_module(RFC3987_LIBRARY)
        other = threading.Thread(target=lambda: found.append(importlib.util.find_spec(RFC3987_LIBRARY)))
        other.start()
        join(other)
    assert found != []  # the other thread imports it, or gets the usual error
    assert importlib.util.find_spec(RFC3987_LIBRARY) == found[0]


def test_a_library_that_is_already_imported_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", object())
    before = list(sys.meta_path)
    with without_rfc3987():
        assert sys.meta_path == before


def test_a_run_imports_neither_the_slow_library_nor_matplotlib(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", "1")
    program = f"""
import sys
from pathlib import Path
from vmsnix_ops.runbooks.execution.execute import run
early = [name for name in ("papermill", "nbformat", "boto3", "pandas", "jinja2") if name in sys.modules]
outcome = run("try-this", folder=Path({str(shelf.folder)!r}), archive={str(shelf.archive)!r}, record=False)
late = [name for name in ({RFC3987_LIBRARY!r}, "deltalake", "matplotlib") if name in sys.modules]
print(outcome.status, early, late)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "done [] []\n"
