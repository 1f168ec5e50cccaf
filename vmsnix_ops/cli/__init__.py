"""``vmsnix``: the runbooks from a shell.

A command reads its arguments, calls the package and prints. Every runbook is a command, whose options are the
parameters of its notebook. Exit codes: 0 done, 1 failed, 2 usage error, 3 partial.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmsnix_ops import __version__
from vmsnix_ops.errors import VmsnixError, nearest
from vmsnix_ops.interrupts import handling
from vmsnix_ops.text import echo, lines, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType, TracebackType

    from click.shell_completion import CompletionItem

COMPLETING = "_VMSNIX_COMPLETE"  # set by the completion script of click
COMMANDS: dict[str, tuple[str, str]] = {
    "help": ("vmsnix_ops.cli.about:show_help", "Show the help of a runbook or a command."),
    "list": ("vmsnix_ops.cli.runbooks:list_runbooks", "List the runbooks with purpose and effect."),
    "runbooks": ("vmsnix_ops.cli.runbooks:runbooks", "Create your own runbooks; compare or reset copies."),
    "run": ("vmsnix_ops.cli.run:run", "Run a runbook; `vmsnix run NAME` is the same as `vmsnix NAME`."),
    "demo": ("vmsnix_ops.cli.demo:demo", "Publish a small image to a local sandbox."),
    "fleet": ("vmsnix_ops.cli.fleet:fleet", "Run many runbooks from a plan file."),
    "undo": ("vmsnix_ops.cli.images:undo", "Undo an unfinished publish."),
    "runs": ("vmsnix_ops.cli.runs:runs", "List past runs and show their evidence."),
    "rerun": ("vmsnix_ops.cli.runs:rerun", "Run a runbook again with the parameters of a past run."),
    "history": ("vmsnix_ops.cli.history:history", "Query the tables of runs, steps and AMIs."),
    "findings": ("vmsnix_ops.cli.findings:findings", "Acknowledge and export the findings of audits."),
    "channels": ("vmsnix_ops.cli.images:channels", "Show which AMI each channel serves."),
    "diff": ("vmsnix_ops.cli.images:diff", "Show which packages differ between two AMIs."),
    "download": ("vmsnix_ops.cli.images:download", "Write a snapshot into a sparse raw file."),
    "attestation-policy": (
        "vmsnix_ops.cli.policies:attestation_policy",
        "Print the KMS key policy for attested AMIs.",
    ),
    "iam-policy": ("vmsnix_ops.cli.policies:iam_policy", "Print the smallest IAM policy of a job."),
    "console": ("vmsnix_ops.cli.lab:console", "Open the console in a browser: a form for every runbook."),
    "lab": ("vmsnix_ops.cli.lab:lab", "Open the runbooks in JupyterLab on this machine."),
    "sandbox": ("vmsnix_ops.cli.sandbox:sandbox_command", "Start a local AWS on 127.0.0.1."),
    "completion": ("vmsnix_ops.cli.completion:completion", "Print the completion script of a shell."),
    "version": ("vmsnix_ops.cli.about:version", "Print the versions of vmsnix, Python, boto3 and Nix."),
}
"""Name of each command, ``module:function``, and help. A module is imported when its command is called."""

UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing to a closed pipe, a full disk or a terminal that has gone."""


class Commands(click.Group):
    """The commands of `COMMANDS`, and every runbook by its full and its short name."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text, safe for a terminal: it contains descriptions from notebooks."""
        return lines(super().get_help(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names that ``--help`` lists: runbooks by their short names, then commands.

        ``run`` is not listed, because ``vmsnix run NAME`` is the same as ``vmsnix NAME``.
        """
        from vmsnix_ops.runbooks import catalog

        short = catalog.short_names()
        books = [short.get(name, name) for name in catalog.names()]
        return list(dict.fromkeys([*books, *(name for name in COMMANDS if name != "run")]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return a command; ``None`` if there is no command of this name."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            return command if isinstance(command, click.Command) else None
        from vmsnix_ops.runbooks import catalog

        if catalog.full_name(cmd_name) not in catalog.names():
            return None
        from vmsnix_ops.cli.run import command_of

        return command_of(cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the runbooks and commands that start with `incomplete`, without importing any."""
        from click.shell_completion import CompletionItem

        from vmsnix_ops.runbooks import catalog

        texts = dict.fromkeys(catalog.own_names(), "own runbook")
        texts |= {name: text for name, (_, text) in COMMANDS.items()}
        found = [
            CompletionItem(name, help=texts.get(name, "runbook"))
            for name in [*self.list_commands(ctx), "run"]
            if name.startswith(incomplete)
        ]
        if not found:  # the word can be the start of a full name
            full = catalog.names() if incomplete else ()
            found = [CompletionItem(name, help="runbook") for name in full if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)  # options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a name; the error for an unknown name suggests the nearest one."""
        name = args[0]
        missing = not ctx.resilient_parsing and self.get_command(ctx, name) is None
        if missing and not name.startswith("-"):
            from vmsnix_ops.runbooks import catalog

            hint = nearest(name, [*self.list_commands(ctx), "run", *catalog.names()])
            raise click.UsageError(f"Unknown command {name!r}. {hint or 'Run vmsnix help to list all.'}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the lists of runbooks and commands without importing a command."""
        from vmsnix_ops.runbooks import catalog

        books, unusable = catalog.read_all()
        with formatter.section("Runbooks"):
            formatter.write_dl(
                [(", ".join(dict.fromkeys([book.short_name, book.name])), book.purpose) for book in books]
            )
        listed = {book.name for book in books} | {"run"}
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items() if name not in listed])
        if unusable:
            with formatter.section("Unusable notebooks"):
                formatter.write_dl([(error.what, f"{error.why} {error.fix}") for error in unusable])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmsnix")
def cli() -> None:
    """Operations runbooks for NixOS machine images on AWS.

    `vmsnix demo` publishes a small image to a local sandbox, without an AWS account. `vmsnix help NAME` shows
    the options of a runbook or a command. `vmsnix run NAME` is the same as `vmsnix NAME`.
    """


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `KeyboardInterrupt`, so that every command's ``finally`` runs.

    A signal that is ignored (SIGHUP under ``nohup``) or already has a handler is not changed.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    with handling(dict.fromkeys(numbers if main_thread else (), interrupt)):
        yield


def _open_missing_streams() -> None:
    """Open standard streams that the caller has closed, as a shell's ``>&-`` does.

    Otherwise the next opened file would get the number of a standard stream, and programs would write to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(opened, "r" if number == 0 else "w", encoding="utf-8"))


def _ensure_home() -> None:
    """Set HOME to a private temporary folder if it is not writable, as in many containers.

    The state folder, Jupyter and Nix need one.
    """
    try:
        home = Path.home()
    except (KeyError, RuntimeError):  # HOME is not set, and the user is not in /etc/passwd
        home = None
    if home is not None and os.access(home, os.W_OK):
        return
    import stat
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"vmsnix-home-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return  # programs that need a home folder report their own errors
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return  # another user created it, and could read or change its content
    os.environ["HOME"] = str(folder)
    if COMPLETING not in os.environ:
        echo(f"No writable home folder: using {folder}. Set HOME or VMSNIX_STATE.", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default ``sys.argv``, and return its exit code. Errors go to standard error."""
    if arguments is None:
        sys.excepthook = _write_traceback
    _open_missing_streams()
    _ensure_home()
    try:
        with _interrupted_by_signals():
            result = cli.main(
                args=list(arguments) if arguments is not None else None,
                prog_name="vmsnix",
                standalone_mode=False,
            )
    except VmsnixError as error:
        if COMPLETING in os.environ:  # an unfinished word is not an error
            return 1
        from vmsnix_ops.cli.output import show_error

        show_error(error.what, error.why, error.fix)
        return error.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)  # it can contain arguments and file names: `write` makes them safe
        write(sys.stderr, shown.getvalue())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        echo("\nInterrupted.", err=True)
        return 1
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        from vmsnix_ops.cli.output import discard_output, show_error, unwritten

        discard_output()
        if error.errno != errno.EPIPE:  # `| head` has read what it wanted
            with suppress(OSError):
                show_error(unwritten(error))
        return 1
    return result if isinstance(result, int) else 0


def _write_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an unexpected error; `write` makes its message safe for a terminal."""
    write(sys.stderr, "".join(traceback.format_exception(kind, error, trace)))
