"""The console in JupyterLab: choose a runbook, fill in its form, check the plan, run it, see the result.

>>> from vmsnix_ops import console
>>> console.open_console()  # doctest: +SKIP

A run is a process of its own (`jobs`). It continues when the notebook that started it is closed; the console
follows it through files, and finds it again after the kernel was restarted. A `places.Place` alone decides
what is sent to AWS and what to the sandbox.

Outside of JupyterLab (papermill, a script) the console prints what it is, and does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.text import echo, line

if TYPE_CHECKING:
    from vmsnix_ops.runbooks.console.app import Console

__all__ = ["open_console"]


def __dir__() -> list[str]:
    return __all__


def open_console(*, runbook: str = "", sandbox: bool = False) -> Any:
    """Return the console as a widget; outside of JupyterLab print what it is instead, and return nothing.

    Parameters
    ----------
    runbook
        The runbook that is picked at the start; the first one by default.
    sandbox
        Begin on a local sandbox instead of AWS. Where JupyterLab itself was started on a sandbox, there is
        no other place.

    Raises
    ------
    UnknownRunbookError
        When there is no such runbook.
    """
    from vmsnix_ops import progress
    from vmsnix_ops.runbooks import catalog

    chosen = catalog.find(runbook) if runbook else None
    if not progress.in_jupyter():
        echo(_what_it_is())
        return None
    return _console(chosen.name if chosen else "", sandbox=sandbox).widget


def _console(runbook: str, *, sandbox: bool) -> Console:
    from vmsnix_ops.runbooks.console.app import Console

    return Console(runbook=runbook, sandbox=sandbox)


def _what_it_is() -> str:
    from vmsnix_ops.runbooks import catalog

    books = catalog.runbooks()
    width = max(len(book.slug) for book in books)
    lines = [line(f"  {book.slug:<{width}}  {book.description or book.title}") for book in books]
    return "\n".join(
        [
            "The console needs a browser: `vmsnix lab` opens it in JupyterLab. Nothing was done here.",
            "It runs these runbooks, as `vmsnix NAME` does:",
            *lines,
        ]
    )
