"""When the runner's heavy libraries are imported: each as late as possible, and not in the way.

Measured by ``python -m benchmarks.overhead``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

GRAMMAR = "rfc3987_syntax"
AFTERWARDS = ("nbconvert.exporters.html", "pygments.formatters")
HISTORY = ("pandas", "pyarrow.dataset", "deltalake")


def warm_up(*, record: bool) -> None:
    """Import what a run needs after its last cell while its kernel starts, which is mostly waiting.

    Parameters
    ----------
    record
        Whether the run gets a row in the history.
    """
    names = AFTERWARDS + (HISTORY if record else ())

    def load() -> None:
        for name in names:
            with suppress(Exception):  # who needs it imports it again, and says what is wrong
                importlib.import_module(name)

    if any(name not in sys.modules for name in names):
        threading.Thread(target=load, name="vmsnix-imports", daemon=True).start()


@contextmanager
def without_grammar() -> Iterator[None]:
    """Let jsonschema be imported in this block without its check of internationalized addresses.

    JupyterLab brings a library for that, which compiles a grammar of its own at import: a second and more
    at the start of every run, for a check that no notebook asks for.
    """
    if "jsonschema" in sys.modules or GRAMMAR in sys.modules:
        yield
        return
    finder = _Absent(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(importlib.abc.MetaPathFinder):
    """Makes a library look as if it were not installed, for one thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002 - importlib's signature
    ) -> ModuleSpec | None:
        if fullname == GRAMMAR and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{GRAMMAR} is left out", name=GRAMMAR)
        return None
