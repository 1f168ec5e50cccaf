"""``vmsnix history``: query the tables of runs, steps, AMIs, proofs and retirements."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any, get_args

import click

from vmsnix_ops.cli.options import archive_option, json_option, region_option
from vmsnix_ops.outcomes import StepOutcome
from vmsnix_ops.text import echo, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

COLUMNS = {
    "runs": ("started_at", "runbook", "status", "dry_run", "seconds", "image_name", "ami_id", "run_id"),
    "steps": ("started_at", "step", "status", "seconds", "bytes", "image", "region", "run_id"),
    "amis": ("created_at", "ami_id", "name", "region", "state", "size_gib", "public"),
    "proofs": ("proved_at", "verdict", "reason", "ami_id", "name", "region", "extent", "run_id"),
    "retirements": ("done_at", "action", "resource_id", "name", "region", "retained_until", "run_id"),
}
"""Columns that a terminal shows. ``--json`` and ``--csv`` print all columns."""

NOUNS = {"amis": "AMIs"}

FILTERS: dict[str, tuple[tuple[str, str], ...]] = {
    "runs": (
        ("runbook", "Show only runs of this runbook."),
        ("status", "Show only runs with this status: done, failed, partial, cancelled."),
        ("image", "Show only runs for this image."),
        ("region", "Show only runs in this region."),
        ("run-id", "Show only this run."),
    ),
    "steps": (
        ("step", "Show only this step."),
        ("status", f"Show only steps with this status: {', '.join(get_args(StepOutcome))}."),
        ("image", "Show only steps for this image."),
        ("region", "Show only steps in this region."),
        ("via", "Show only steps of this method: import or direct."),
        ("run-id", "Show only steps of this run."),
    ),
    "amis": (
        ("ami-id", "Show only this AMI."),
        ("name", "Show only AMIs with this name."),
        ("image", "Show only AMIs of this image."),
        ("region", "Show only AMIs in this region."),
        ("digest", "Show only AMIs with this image digest."),
        ("run-id", "Show only AMIs of this run."),
    ),
    "proofs": (
        ("ami-id", "Show only this AMI."),
        ("verdict", "Show only this verdict: proven, 'matches its tag', differs, 'not provable'."),
        ("region", "Show only AMIs in this region."),
        ("run-id", "Show only proofs of this run."),
    ),
    "retirements": (
        ("resource-id", "Show only this AMI or snapshot."),
        ("action", "Show only this change: retired, restored, deleted."),
        ("kind", "Show only this kind: ami, snapshot."),
        ("image", "Show only resources of this image."),
        ("region", "Show only resources in this region."),
        ("run-id", "Show only changes by this run."),
    ),
}


@click.group()
def history() -> None:
    """Query the tables of runs, steps, AMIs, proofs and retirements.

    The tables contain one row for each, of everyone who shares the history. To open or repeat a run, use
    `vmsnix runs`, which lists the archive.
    """


def _table_command(table: str, text: str) -> None:
    filters = [click.Option([f"--{name}"], help=about) for name, about in FILTERS[table]]
    output = [
        click.Option(
            ["--last"], type=click.IntRange(min=1), metavar="N", help="Show only the newest N rows."
        ),
        click.Option(["--sandbox"], is_flag=True, help="Use the history of runs with --sandbox."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON with all columns."),
        click.Option(["--csv", "as_csv"], is_flag=True, help="Print CSV with all columns."),
    ]
    history.add_command(click.Command(table, callback=_reader(table), params=[*filters, *output], help=text))


def _reader(table: str) -> Callable[..., None]:
    def read(sandbox: bool, as_json: bool, as_csv: bool, **wanted: Any) -> None:
        if as_json and as_csv:
            raise click.UsageError("Use either --json or --csv, not both.")
        from vmsnix_ops.cli.output import show_json_text

        if wanted.get("runbook"):
            from vmsnix_ops.runbooks import catalog

            wanted["runbook"] = catalog.full_name(wanted["runbook"])
        frame = _read(table, wanted, sandbox=sandbox)
        if as_json:
            rows = frame.to_json(orient="records", date_format="iso", date_unit="ms", indent=2)
            show_json_text(rows)
        elif as_csv:
            write_csv(frame, sys.stdout, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
        elif frame.empty:
            noun = NOUNS.get(table, table)
            echo(f"No matching {noun}." if any(wanted.values()) else f"No {noun} yet.")
        else:
            _show(frame[[column for column in COLUMNS[table] if column in frame]])

    return read


_table_command("runs", "List runs of runbooks, newest first.")
_table_command("steps", "List steps of runs, newest first.")
_table_command("amis", "List AMIs that were published or found, newest first.")
_table_command("proofs", "List the verdicts of vmsnix prove, newest first.")
_table_command("retirements", "List AMIs and snapshots that were retired, restored or deleted, newest first.")


@history.command()
@region_option("Region to scan; can be repeated.")
@json_option
def sync(regions: tuple[str, ...], as_json: bool) -> None:
    """Rebuild the table of AMIs from the tags in AWS."""
    from dataclasses import asdict

    from vmsnix_ops.audit.sync import sync as sync_amis
    from vmsnix_ops.cli.output import show_json
    from vmsnix_ops.progress import counted

    result = sync_amis(regions=regions)
    if as_json:
        show_json(asdict(result))
        return
    places = ", ".join(result.regions)
    echo(
        f"{counted(result.found, 'AMI')} in {places}: {result.added} added, {result.changed} changed, "
        f"{result.deregistered} deregistered."
    )


@history.command()
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@region_option("Region whose AMIs to read; can be repeated.")
@archive_option
@click.option("--sandbox", is_flag=True, help="Rebuild the history of runs with --sandbox.")
def rebuild(tables: tuple[str, ...], regions: tuple[str, ...], archive: str, sandbox: bool) -> None:
    """Rebuild damaged tables from their own files, the archive of runs, and AWS.

    Without TABLE: runs, steps, amis, promotions, proofs and retirements. Readable rows are kept. Lost rows
    come from the runs in the archive and, for amis, from the tags in AWS. The old table is kept beside the
    new one. On S3, make sure that no run writes in the meantime.
    """
    from vmsnix_ops.audit.sync import sync as sync_amis
    from vmsnix_ops.cli.runs import open_archive
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.records import rebuild as records
    from vmsnix_ops.records.schemas import schema
    from vmsnix_ops.records.tables import open_tables

    chosen = [schema(name).name for name in tables] or list(records.KEYS)
    store, found = open_tables(load_settings(sandbox=sandbox)), defaultdict(list)
    for table, row in open_archive(archive, sandbox=sandbox).rows():
        found[table].append(row)
    for table in chosen:
        done = records.rebuild(store, table, records.valid_rows(table, found[table]))
        kept = f" The old table was renamed to {done.kept_as}." if done.kept_as else ""
        lost = f" {done.unreadable} of its files could not be read." if done.unreadable else ""
        echo(f"{table}: {done.read} rows kept, {done.added} restored from runs.{lost}{kept}")
    if "amis" in chosen and not sandbox:
        result = sync_amis(regions=regions, tables=store)
        echo(f"amis: {result.added} added from AWS in {', '.join(result.regions)}.")


def _read(table: str, wanted: dict[str, Any], *, sandbox: bool) -> pd.DataFrame:
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.records import history as records
    from vmsnix_ops.records.tables import open_tables

    frame: pd.DataFrame = getattr(records, table)(open_tables(load_settings(sandbox=sandbox)), **wanted)
    return frame


def _show(frame: pd.DataFrame) -> None:
    from vmsnix_ops.cli.output import cell, console, new_table

    table = new_table(
        *frame.columns,
        right=("seconds", "bytes", "size_gib"),
        unbroken=[column for column in frame.columns if column.endswith("_id")],
    )
    for row in frame.itertuples(index=False):
        table.add_row(*(cell(_text(value)) for value in row))
    console().print(table)


def _text(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if pd.api.types.is_bool(value):
        return "yes" if value else ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)
