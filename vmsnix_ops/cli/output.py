"""Print the results of commands: errors, tables, JSON, and the outcome of a run."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from vmsnix_ops import files
from vmsnix_ops.errors import UsageError
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.text import CommandFree, echo, json, json_text, line, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from rich.console import Console
    from rich.text import Text

    from vmsnix_ops.display import DisplayTable
    from vmsnix_ops.progress import Reporter
    from vmsnix_ops.runbooks.execution.execute import RunOutcome

COLOURS = {"done": "green", "failed": "red", "partial": "yellow", "cancelled": "yellow"}
DRY_RUN = "dry run: nothing was changed"
EVIDENCE = ("notebook", "report", "result", "log")


def console(stream: TextIO | None = None) -> Console:
    """Return a console that honours ``NO_COLOR`` and writes plain, uncut text to files and pipes.

    Brackets in a text are printed, not read as markup.
    """
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    return Console(
        file=CommandFree(stream),  # type: ignore[arg-type]  # rich names the wider type
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else 160,
    )


def show_table(table: DisplayTable, colour: Callable[[str], str] = lambda _: "", *, of: str = "") -> None:
    """Write a table as wide as the terminal to standard output; `colour` colours the column `of`."""
    from rich.text import Text

    column, screen = table.columns.index(of) if of else -1, console()
    for parts in table.parts():
        shown = Text()
        for text, row, place in parts:
            style = "dim" if row == 0 else colour(text.strip()) if place == column else ""
            shown.append(text, style)
        shown.rstrip()
        screen.print(shown, soft_wrap=True)


def cell(value: object, style: str = "") -> Text:
    """Return a value from outside as one line for a table or a console."""
    from rich.text import Text

    return Text(line(value), style=style)


@contextmanager
def open_display(*, as_json: bool) -> Iterator[tuple[TextIO, Reporter | None]]:
    """Yield the stream for the lines of a run, and the reporter of its progress.

    A terminal gets progress bars; otherwise the reporter is ``None``, and the runner writes lines.
    With `as_json`, standard output contains only the JSON.
    """
    if as_json:
        yield sys.stderr, None
        return
    if not sys.stdout.isatty() or console().is_dumb_terminal or os.environ.get("GITHUB_ACTIONS") == "true":
        yield sys.stdout, None
        return
    from vmsnix_ops.progress import TerminalBars

    bars = TerminalBars()
    try:
        yield cast("TextIO", CommandFree()), bars
    finally:
        bars.close()


def is_unattended() -> bool:
    """Return whether no person waits for this command: none of its streams is a terminal."""
    return not any(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def discard_output(number: int = 1) -> None:
    """Discard standard output from now on; otherwise Python would fail again when it flushes at exit.

    `number` is 2 for standard error.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def show_error(what: str, why: str = "", fix: str = "") -> None:
    """Write to standard error what happened, why, and what to do."""
    from rich.text import Text

    screen, indent = console(sys.stderr), " " * 7
    screen.print(Text.assemble(("Error: ", "bold red"), (lines(what, indent=indent), "bold")), soft_wrap=True)
    for part in (why, fix):
        if part:
            screen.print(Text(indent + lines(part, indent=indent)), soft_wrap=True)


def show_json(value: object) -> None:
    """Write one JSON object to standard output."""
    echo(json(value, indent=2))


def show_json_text(text: str) -> None:
    """Write a text that is JSON to standard output."""
    echo(json_text(text))


def show_rows(frame: pd.DataFrame) -> None:
    """Write the rows of a frame to standard output as JSON."""
    show_json_text(frame.to_json(orient="records", date_format="iso", date_unit="ms", indent=2))


def write_file(path: Path, text: str) -> None:
    """Write a text into the file of an option."""
    try:
        files.write(path, text)
    except OSError as error:
        raise UsageError(f"Could not write {path}.", why=f"{error.strerror}.") from error


def show_end(outcome: RunOutcome, *, as_json: Mapping[str, Any] | None = None, following: str = "") -> int:
    """Write the end of a run to standard output, as JSON if `as_json` is given, and return the exit code.

    `following` is the command that usually comes next; JSON does not contain it.

    If standard output cannot be written (a closed pipe, a full disk), standard error gets the outcome.
    """
    from vmsnix_ops.runbooks.execution.status import PARTIAL

    try:
        if as_json is None:
            show_outcome(outcome, following=following)
        else:
            show_json(as_json)
            show_failure(outcome)
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich exits when a pipe was closed
        discard_output()
        try:
            show_outcome(outcome, sys.stderr)
            show_error(unwritten(error))
        except (OSError, SystemExit):
            discard_output(2)
        return outcome.exit_code or PARTIAL
    return outcome.exit_code


def echo_or_discard(value: object, *, err: bool = False) -> bool:
    """Write a value as `echo`, and return whether that worked.

    If it did not, standard output is discarded from now on, so that the work that follows is not stopped.
    """
    try:
        echo(value, err=err)
    except OSError as error:
        discard_output()
        with suppress(OSError):
            show_error(unwritten(error))
        return False
    return True


def unwritten(error: BaseException) -> str:
    """Return the sentence for an error of writing the output."""
    why = error.strerror if isinstance(error, OSError) else os.strerror(errno.EPIPE)
    return f"The output could not be written completely: {why}."


def show_outcome(outcome: RunOutcome, stream: TextIO | None = None, *, following: str = "") -> None:
    """Write the outcome of a run: its AMI, the time of its steps, and the location of its evidence."""
    from rich.text import Text

    from vmsnix_ops.display import steps_table
    from vmsnix_ops.records.result import is_dry_run, marked

    screen = console(stream)
    values = marked(outcome.values)
    dry_run = is_dry_run(values)
    if values.get("ami_id"):
        name = values.get("image_name") or ""
        style = "" if dry_run else "bold green"  # a dry run has only found it
        screen.print(Text.assemble((line(values["ami_id"]), style), f"  {line(name)}"))
    steps = values.get("steps")
    if isinstance(steps, list) and steps:
        screen.print(str(steps_table(steps)), soft_wrap=True)
    show_slow(values, stream)
    took = f" in {human_seconds(outcome.seconds)}"
    status = (outcome.status, COLOURS[outcome.status])
    after = (f" ({DRY_RUN})", "yellow") if dry_run else ""
    screen.print(Text.assemble(outcome.runbook, " ", status, took, after))
    for name in EVIDENCE:
        if getattr(outcome, name):
            screen.print(cell(f"{name:<9} {getattr(outcome, name)}"), soft_wrap=True)
    if values.get("page"):  # of an audit
        screen.print(cell(f"{'page':<9} {values['page']}"), soft_wrap=True)
    screen.file.flush()
    show_failure(outcome)
    if following:
        screen.print(cell(f"{'next':<9} {following}"), soft_wrap=True)
        screen.file.flush()


def show_slow(values: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Write the steps of a run that took longer than usual."""
    from rich.text import Text

    for step in values.get("slow") or ():
        console(stream).print(Text.assemble(("slow      ", "yellow"), line(step["text"])), soft_wrap=True)


def show_failure(outcome: RunOutcome) -> None:
    """Write the error and the problems of a run to standard error."""
    from vmsnix_ops.cli.next_steps import with_sandbox
    from vmsnix_ops.endpoints import endpoint_kind

    if outcome.error is not None:
        fix, context = outcome.error.fix, click.get_current_context(silent=True)
        # In a shell that uses a sandbox, a command needs no option.
        if context is not None and outcome.values.get("sandbox") and endpoint_kind() != "sandbox":
            fix = with_sandbox(fix, context.find_root().command)
        show_error(outcome.error.what, outcome.error.why, fix)
        request = outcome.error.detail.get("request_id")
        if request:
            console(sys.stderr).print(cell(f"       AWS request ID: {request}"), soft_wrap=True)
    for problem in outcome.problems:
        show_error(problem)
