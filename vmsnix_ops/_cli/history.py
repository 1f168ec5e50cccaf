"""``vmsnix history``: what is remembered of runs, steps and AMIs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

TABLES = ("runs", "steps", "amis")
SHOWN = {
    "runs": ("started_at", "runbook", "status", "seconds", "image_name", "ami_id", "run_id"),
    "steps": ("started_at", "step", "status", "seconds", "bytes", "image", "region", "run_id"),
    "amis": ("created_at", "ami_id", "name", "region", "state", "size_gib", "public"),
}
"""Columns that a terminal shows; ``--json`` and ``--csv`` give all."""


@click.group()
def history() -> None:
    """Show past runs, their steps and their AMIs."""


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N."),
        click.option("--region", help="Only this region."),
        click.option("--image", help="Only this image."),
        click.option("--status", help="Only this status (runs and steps) or state (AMIs)."),
        click.option("--run", "run_id", metavar="RUN_ID", help="Only this run."),
        click.option("--sandbox", is_flag=True, help="The history of rehearsals (`--sandbox` runs)."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, all columns."),
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all columns."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _table_command(table: str, text: str) -> None:
    @history.command(name=table, help=text)
    @_filters
    def show(
        last: int | None,
        region: str | None,
        image: str | None,
        status: str | None,
        run_id: str | None,
        sandbox: bool,
        as_json: bool,
        as_csv: bool,
    ) -> None:
        wanted = {
            "region": region,
            "image": image,
            "state" if table == "amis" else "status": status,
            "run_id": run_id,
        }
        frame = _read(table, sandbox=sandbox)
        for column, value in wanted.items():
            if value is not None:
                frame = frame[frame[column] == value]
        _show(table, frame.head(last) if last else frame, as_json=as_json, as_csv=as_csv)


_table_command("runs", "Runs of runbooks, newest first.")
_table_command("steps", "Steps of runs, newest first.")
_table_command("amis", "AMIs that were published or found, newest first.")


@history.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--region", "regions", multiple=True, help="A region to look at, again for more.")
def sync(as_json: bool, regions: tuple[str, ...]) -> None:
    """Rebuild the table of AMIs from the tags in AWS."""
    from dataclasses import asdict

    from vmsnix_ops._cli.output import show_json
    from vmsnix_ops.audit.sync import sync as sync_amis

    result = sync_amis(regions=regions)
    if as_json:
        show_json(asdict(result))
    else:
        click.echo(str(result))


def _read(table: str, *, sandbox: bool) -> pd.DataFrame:
    from vmsnix_ops.records import history as records
    from vmsnix_ops.records.tables import open_tables
    from vmsnix_ops.settings import load

    environment = dict(os.environ)
    if sandbox:
        from vmsnix_ops._cli.rehearsal import places

        environment |= places(load().state / "sandbox")
    tables = open_tables(load(environment=environment))
    frame: pd.DataFrame = getattr(records, table)(tables)
    return frame


def _show(table: str, frame: pd.DataFrame, *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        rows = frame.to_json(orient="records", date_format="iso", date_unit="ms", indent=2)
        sys.stdout.write(f"{rows}\n")
    elif as_csv:
        frame.to_csv(sys.stdout, index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    elif frame.empty:
        click.echo(f"There are no {table} yet." if table != "amis" else "There are no AMIs yet.")
    else:
        _show_table(frame[[column for column in SHOWN[table] if column in frame]])


def _show_table(frame: pd.DataFrame) -> None:
    from rich.table import Table

    from vmsnix_ops._cli.output import console

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in frame.columns:
        numbers = column in ("seconds", "bytes", "size_gib")
        table.add_column(str(column), justify="right" if numbers else "left", no_wrap=column.endswith("_id"))
    for row in frame.itertuples(index=False):
        table.add_row(*(_text(value) for value in row))
    console().print(table)


def _text(value: Any) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
