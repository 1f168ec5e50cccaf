"""Keep tables with the run of a notebook.

>>> from vmsnix_ops import run
>>> run.keep(frame, "management")  # doctest: +SKIP

A kept table is in the folder of the run as ``management.csv``, in the notebook and the report as a table, in
the summary of a CI job, and in ``result.json`` below ``tables``. Programs that read notebooks find its rows
as the scrap ``management``, in the format of nteract scrapbook.
"""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, files
from vmsnix_ops.errors import ParameterError
from vmsnix_ops.progress import counted
from vmsnix_ops.records import result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.secrets import frame_without_secrets
from vmsnix_ops.text import echo, write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.records.run_context import RunContext

__all__ = ["keep"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCRAP = "application/scrapbook.scrap.json+json"
SCRAP_VERSION = 1
"""Media type and version of a scrap. Source: the chapter "Models" of scrapbook's documentation."""

_own_run: RunContext | None = None
"""The run of this process, if nothing else has started one."""


def __dir__() -> list[str]:
    return __all__


def keep(
    table: pd.DataFrame | pd.Series[Any] | display.Displayed | Iterable[Mapping[str, object]],
    name: str,
    *,
    title: str = "",
) -> None:
    """Keep a table with the run, and show it. Safe to run twice: the same name replaces the table.

    Secrets are removed. In the CSV file, a text that starts like a formula gets an apostrophe before it.

    Parameters
    ----------
    table
        A frame, a series, a result or a table that it shows, or a list of dictionaries. A named index
        becomes columns.
    name
        Name of the file without ``.csv``, and of the scrap: letters, digits, dots, dashes and underscores.
    title
        Title above the table; by default the name.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The name is invalid, or the run has another file of this name.
    vmsnix_ops.errors.UnsavedError
        The file or ``result.json`` cannot be written.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParameterError(
            f"Invalid name of a table {name!r}.",
            why="It is the name of a file in the folder of the run.",
            fix='Use up to 100 letters, digits, dots, dashes and underscores, such as "management".',
        )
    frame = frame_without_secrets(_as_frame(table))
    run = _run()
    path, title = run.folder / f"{name}.csv", title or name
    _check_free(run, name, path)
    content = io.StringIO()
    write_csv(frame, content, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    with result.saving(path):
        files.make_folder(run.folder)
        files.write(path, content.getvalue())
    first = display.frame_table(frame.head(result.MOST_ROWS))
    rows = [list(row) for row in first.rows]
    if len(frame) > len(rows):
        title = f"{title}: the first {len(rows):,} of {counted(len(frame), 'row')}"
    entry = {"title": title, "columns": list(first.columns), "rows": rows, "name": name, "file": path.name}
    result.keep_table(run, entry)
    _show(name, frame, replace(first, title=title), path)


def _as_frame(table: Any) -> pd.DataFrame:
    """Return a table as a frame whose columns are unique texts."""
    import pandas as pd

    if isinstance(table, display.Displayed) and hasattr(table, "frame"):
        table = table.frame() if callable(table.frame) else table.frame
    if isinstance(table, pd.Series):
        table = table.to_frame(name=table.name if table.name is not None else "value")
    elif not isinstance(table, pd.DataFrame):
        try:
            table = pd.DataFrame(list(table))
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"Cannot keep {type(table).__name__} as a table.",
                why=f"{error}.",
                fix="Give a DataFrame, a Series, a table of a result, or a list of dictionaries.",
            ) from error
    if any(level is not None for level in table.index.names):
        table = table.reset_index()
    names = [
        " ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
        for name in table.columns
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ParameterError(
            f"Cannot keep a table with two columns {min(repeated)!r}.",
            why="A column of the CSV file would hide the other.",
            fix="Rename one: frame.rename(columns=...).",
        )
    frame: pd.DataFrame = table.set_axis(names, axis="columns")
    return frame


def _run() -> RunContext:
    """Return the run of the runner or the kernel; else one run for this process."""
    global _own_run
    run = current_run(make_folder=False)
    if run.managed:
        return run
    _own_run = _own_run or run
    return _own_run


def _check_free(run: RunContext, name: str, path: Path) -> None:
    if path.exists() and name not in result.kept_tables(run):
        raise ParameterError(
            f"The run has another file {path.name}.",
            why=f"{path} is part of its result.",
            fix=f"Choose another name, such as {name}-2.",
        )


def _show(name: str, frame: pd.DataFrame, table: display.DisplayTable, path: Path) -> None:
    """Show a table in a notebook, with a scrap of its rows; in a program, print it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        echo(f"{table}\nKept in {path}.")
        return
    from IPython.display import display as show

    data = json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us"))
    scrap = {"name": name, "data": data, "encoder": "json", "version": SCRAP_VERSION}
    # One output: of two outputs with a name, scrapbook would read only the last.
    output = {SCRAP: scrap, "text/plain": str(table), "text/html": table._repr_html_()}
    metadata = {"scrapbook": {"name": name, "data": True, "display": True}}
    show(output, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
