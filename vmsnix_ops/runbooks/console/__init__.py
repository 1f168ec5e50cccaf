"""The console: select a runbook, fill in its form, check the plan, run it, open the result.

>>> from vmsnix_ops import console
>>> console.open_console()  # doctest: +SKIP

Each run is a process of its own (`jobs`), which continues when the notebook is closed. The console reads its
progress from files, and finds it again after the kernel was restarted. A `backends.Backend` decides whether
requests go to AWS or to a sandbox.

Outside of JupyterLab (papermill, a script), the console prints a description and does nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from vmsnix_ops.errors import ToolMissingError
from vmsnix_ops.text import echo, line

__all__ = ["open_console"]


def __dir__() -> list[str]:
    return __all__


def open_console(*, runbook: str = "", sandbox: bool = False) -> Any:
    """Return the console as a widget. Outside of JupyterLab, print a description and return ``None``.

    Parameters
    ----------
    runbook
        Selected runbook; by default the first one.
    sandbox
        Start with a local sandbox instead of AWS. If JupyterLab was started with ``--sandbox``, the console
        always uses that sandbox.

    Raises
    ------
    UnknownRunbookError
        There is no such runbook.
    ToolMissingError
        A package of the extra ``lab`` is not installed.
    """
    from vmsnix_ops import progress
    from vmsnix_ops.runbooks import catalog

    chosen = catalog.find(runbook) if runbook else None
    if not progress.in_jupyter():
        echo(_description())
        return None
    if find_spec("anywidget") is None:
        raise ToolMissingError(
            "The console needs the package anywidget, which is not installed.",
            why="Installations for servers and CI do not include it.",
            fix="Run pip install 'vmsnix-ops[lab]'",
        )
    from vmsnix_ops.runbooks.console.app import Console

    return Console(runbook=chosen.name if chosen else "", sandbox=sandbox).widget


def _description() -> str:
    from vmsnix_ops.runbooks import catalog

    books = catalog.runbooks()
    width = max(len(book.slug) for book in books)
    lines = [line(f"  {book.slug:<{width}}  {book.description or book.title}") for book in books]
    return "\n".join(
        [
            "The console needs a browser: `vmsnix console` opens it. Nothing was done here.",
            "It runs these runbooks, as `vmsnix NAME` does:",
            *lines,
        ]
    )
