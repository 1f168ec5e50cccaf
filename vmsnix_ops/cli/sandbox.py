"""``vmsnix sandbox``, and the sandbox that ``--sandbox`` of another command starts for one run.

A run on a sandbox cannot reach the real AWS, and has its own history and archive.
``python -m vmsnix_ops.cli.sandbox`` serves a sandbox for another process, such as the console: it prints the
environment variables as one line of JSON, and ends when that process closes its standard input or ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from vmsnix_ops.errors import RunError, VmsnixError
from vmsnix_ops.settings import Settings, load
from vmsnix_ops.text import echo, json, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.sandbox import Sandbox
    from vmsnix_ops.sandbox.access import Access

BUCKET = "vmsnix-images"
NOTHING_GIVEN = (None, None, None, None)


@click.command("sandbox")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="TCP port on 127.0.0.1 of a separate sandbox; 0 chooses a free one.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Sandbox seconds per real second of a separate sandbox.  [default: 1]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder that keeps the sandbox's state across restarts.",
)
@click.option(
    "--limits",
    type=click.Choice(["aws"]),
    help="Limit requests and slow down copies as AWS does, in sandbox time. Default: no limits.",
)
@click.option(
    "--seed",
    type=click.Choice(["demo"]),
    help="Fill an empty account, and the tables, with two years of published images. Default: empty.",
)
@click.option(
    "--reset", is_flag=True, help="Empty the account of --sandbox; the old one is kept in a folder."
)
def sandbox_command(
    port: int | None,
    speed: float | None,
    state: Path | None,
    limits: Literal["aws"] | None,
    seed: Literal["demo"] | None,
    reset: bool,
) -> None:
    """Run a local AWS in the foreground, and print the export lines for a shell.

    boto3, the AWS CLI and other tools can use it. Stop it with Ctrl-C. `vmsnix demo` and
    `--sandbox` use the same account, which is kept. With --port, --speed, --state or --limits, this starts a
    separate sandbox.
    """
    from vmsnix_ops.sandbox.serve import serve

    if reset:
        reset_account()
        return
    if (port, speed, state, limits) == NOTHING_GIVEN:
        if seed is not None:
            _seed_shared()
        _serve_shared()
        return
    port, speed = port or 0, speed or 1.0

    def more(aws: Sandbox) -> dict[str, str]:
        folder = (load().state / "seeded" if state is None else state / "records").absolute()
        return write_records(aws, folder)

    try:
        if seed is None:
            serve(port, speed, state, limits=limits)
        else:
            serve(port, speed, state, limits=limits, seed=seed, prepare=BUCKET, more=more)
    except OSError as error:
        raise RunError("The sandbox could not start.", why=f"{error}") from error


@dataclass(frozen=True, slots=True)
class RunSandbox:
    """A running sandbox, with the variables and the folder for its runs."""

    url: str
    # Variables to add to those of this process, whose own AWS_* variables are removed during the block.
    environment: dict[str, str]
    state: Path  # folder of the history and the archive of its runs
    aws: Access


def record_folders(folder: Path) -> dict[str, str]:
    """Return the variables that put the state, history and archive of a run into one folder."""
    return {
        "VMSNIX_STATE": str(folder),
        "VMSNIX_HISTORY": str(folder / "history"),
        "VMSNIX_ARCHIVE": str(folder / "archive"),
    }


def load_settings(*, sandbox: bool) -> Settings:
    """Return the settings; with `sandbox`, those of runs with ``--sandbox``."""
    folders = record_folders(load().state / "sandbox") if sandbox else {}
    return load(environment={**os.environ, **folders})


def sandbox_defaults() -> dict[str, str]:
    """Return the variables with the region and the bucket of every run with ``--sandbox``."""
    region = load().region or "us-east-1"
    return {
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "VMSNIX_REGION": region,
        "VMSNIX_BUCKET": BUCKET,
    }


def write_records(aws: Sandbox, folder: Path) -> dict[str, str]:
    """Write the rows about a seeded account to the tables in a folder, and return its variables.

    Rows of an earlier account are deleted, since its AMIs no longer exist.
    """
    if aws.records:
        shutil.rmtree(folder / "history", ignore_errors=True)
        _append(aws.records, folder)
    return record_folders(folder) | {"VMSNIX_BUCKET": BUCKET}


def _append(records: Mapping[str, list[dict[str, Any]]], folder: Path) -> None:
    from vmsnix_ops.records.tables import open_tables

    tables = open_tables(load(environment={**os.environ, **record_folders(folder)}))
    for table, rows in records.items():
        tables.append(table, rows)


def _seed_shared() -> None:
    """Fill the account and the tables of the shared sandbox, unless this was done before."""
    from vmsnix_ops.cli.shared_sandbox import FOLDER, seed

    state = load().state
    _append(seed(state, sandbox_defaults()["VMSNIX_REGION"]), state / FOLDER)


@contextmanager
def _without_aws_variables() -> Iterator[None]:
    """Remove the caller's AWS variables: a profile or an endpoint among them would override the sandbox."""
    removed = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    try:
        yield
    finally:
        os.environ.update(removed)


@contextmanager
def run_sandbox() -> Iterator[RunSandbox]:
    """Join the sandbox that all commands of the user share, until the block ends; start it if necessary."""
    from vmsnix_ops.cli.shared_sandbox import FOLDER, shared

    settings = load()
    folder = settings.state / FOLDER
    defaults = sandbox_defaults()
    with _without_aws_variables(), shared(settings.state) as aws:
        aws.prepare(bucket=BUCKET, region=defaults["VMSNIX_REGION"], role=settings.role_name)
        yield RunSandbox(
            url=aws.url,
            environment=aws.environment
            | record_folders(folder)
            | defaults
            | {"VMSNIX_SANDBOX": aws.url, "VMSNIX_ALLOWED_ACCOUNTS": aws.account},
            state=folder,
            aws=aws,
        )


def reset_account() -> None:
    """Let the shared sandbox start with an empty account, and print where the old one is kept."""
    from vmsnix_ops.cli.shared_sandbox import start_anew

    kept = start_anew(load().state)
    text = f"The account is empty now. The old one is kept in {kept}." if kept else "The account is empty."
    echo(text, err=True)


def _serve_shared() -> None:
    """Print the export lines of the shared sandbox, and wait for Ctrl-C."""
    from vmsnix_ops.sandbox.serve import stop_signal

    with stop_signal() as finished, run_sandbox() as served:
        print_exports(served, sys.stdout)
        finished.wait()


def print_exports(served: RunSandbox, stream: TextIO) -> None:
    """Write the lines with which another shell uses the shared sandbox, its history and its archive."""
    from vmsnix_ops.sandbox.serve import export_lines

    # With another state folder, --sandbox in that shell would be another account.
    own = ("VMSNIX_STATE", "VMSNIX_SANDBOX")
    variables = {name: value for name, value in served.environment.items() if name not in own}
    write(stream, export_lines(served.aws, served.state, variables))
    stream.flush()


def main() -> int:
    """Serve a sandbox until standard input is closed, and return the exit code."""
    from vmsnix_ops.cli.shared_sandbox import exit_on

    exit_on(signal.SIGTERM, signal.SIGHUP)
    try:
        with run_sandbox() as served:
            _print({"environment": served.environment})
            sys.stdin.read()
    except VmsnixError as error:
        _print({"error": str(error)})
        return error.exit_code
    return 0


def _print(facts: dict[str, object]) -> None:
    write(sys.stdout, json(facts) + "\n")


if __name__ == "__main__":
    sys.exit(main())
