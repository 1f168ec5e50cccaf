"""``vmsnix history``: query the tables."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from vmsnix_ops.cli.options import archive_option, json_option, region_option
from vmsnix_ops.endpoints import ENDPOINT_KINDS
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.records import schemas
from vmsnix_ops.text import echo, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

COLUMNS = {
    "runs": ("started_at", "runbook", "status", "dry_run", "seconds", "image_name", "ami_id", "run_id"),
    "steps": ("started_at", "step", "status", "seconds", "bytes", "image", "region", "run_id"),
    "amis": ("created_at", "ami_id", "name", "region", "state", "size_gib", "public"),
    "promotions": ("promoted_at", "how", "channel", "ami_id", "name", "region", "run_id"),
    "inventory": ("scanned_at", "kind", "resource_id", "name", "region", "monthly_usd", "cost_basis"),
    "findings": ("scanned_at", "severity", "rule", "resource_id", "name", "region", "run_id"),
    "packages": ("recorded_at", "image", "image_version", "name", "version", "bytes"),
    "proofs": ("proved_at", "verdict", "reason", "ami_id", "name", "region", "extent", "run_id"),
    "retirements": ("done_at", "action", "resource_id", "name", "region", "retained_until", "run_id"),
}
"""Columns that a terminal shows. ``--json`` and ``--csv`` print all columns."""

NOUNS = {"amis": "AMIs", "inventory": "resources"}

HELP = {
    "account": "rows of this account",
    "action": "this change: retired, restored, deleted",
    "ami_id": "rows of this AMI",
    "channel": "changes of this channel",
    "cost_basis": "costs of this basis: stored, volume, snapshots",
    "digest": "rows with this image digest",
    "dry_run": "dry runs, or no dry runs",
    "how": "this kind of change: promote, 'roll back'",
    "image": "rows of this image",
    "kind": "this kind of resource, such as ami or snapshot",
    "name": "rows with this name",
    "public": "resources that are public, or are not",
    "referenced": "resources that are referenced, or are not",
    "region": "rows of this region",
    "resource_id": "rows of this resource",
    "rule": "findings of this rule",
    "run_id": "rows of this run",
    "runbook": "runs of this runbook",
    "severity": f"this severity: {', '.join(SEVERITIES)}",
    "state": "resources in this state, such as available",
    "status": "rows with this status, such as done or failed; of steps: created, reused, failed",
    "step": "this step",
    "system": "packages for this system, such as x86_64-linux",
    "verdict": "this verdict: proven, 'matches its tag', differs, 'not provable'",
    "version": "packages of this version",
    "via": "steps of this method: import or direct",
}
"""What each filter shows."""

TIMES = {
    "since": "Show only rows of this time or later: 30D, 12h, 2W, or a date.",
    "until": "Show only rows of this time or earlier.",
    "older_than": "Show only rows from before this time.",
}


@click.group()
def history() -> None:
    """Query the tables of runs, steps, AMIs, promotions, audits, packages, proofs and retirements.

    The tables contain one row for each of these, from everyone who shares the history. Every filter can be
    repeated. To open or repeat a run, use `vmsnix runs`, which lists the archive.
    """


def _table_command(table: str, text: str) -> None:
    options: list[click.Parameter] = [_filter_option(table, name) for name in schemas.FILTERS[table]]
    options += [
        click.Option([f"--{name.replace('_', '-')}"], metavar="TIME", help=about)
        for name, about in TIMES.items()
    ]
    if table == "amis":
        options.append(
            click.Option(
                ["--all-rows"], is_flag=True, default=None, help="Show earlier records of each AMI too."
            )
        )
    options += [
        click.Option(
            ["--last"], type=click.IntRange(min=1), metavar="N", help="Show only the newest N rows."
        ),
        click.Option(
            ["--endpoint"],
            type=click.Choice([*ENDPOINT_KINDS, "all"]),
            help="Show rows of AWS, of sandboxes, of other endpoints, or all.  "
            "[default: aws, unless AWS_ENDPOINT_URL selects another]",
        ),
        click.Option(["--sandbox"], is_flag=True, help="Short for --endpoint sandbox."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON with all columns."),
        click.Option(["--csv", "as_csv"], is_flag=True, help="Print CSV with all columns."),
    ]
    history.add_command(click.Command(table, callback=_reader(table), params=options, help=text))


def _filter_option(table: str, name: str) -> click.Option:
    option, about = name.replace("_", "-"), f"Show only {HELP[name]}."
    if schemas.schema(table).column(name).kind == "flag":
        return click.Option([f"--{option}/--no-{option}"], default=None, help=about)
    return click.Option([f"--{option}"], multiple=True, help=about)


def _reader(table: str) -> Callable[..., None]:
    def read(
        sandbox: bool, endpoint: str | None, last: int | None, as_json: bool, as_csv: bool, **given: Any
    ) -> None:
        if as_json and as_csv:
            raise click.UsageError("Use either --json or --csv, not both.")
        if sandbox and endpoint:
            raise click.UsageError("Use either --sandbox or --endpoint, not both.")
        from vmsnix_ops.cli.output import show_rows

        wanted = {name: value for name, value in given.items() if value not in (None, ())}
        endpoint = "sandbox" if sandbox else endpoint
        frame = _read(table, **wanted, last=last, endpoint=endpoint)
        if as_json:
            show_rows(frame)
        elif as_csv:
            write_csv(frame, sys.stdout, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
        elif frame.empty:
            noun = NOUNS.get(table, table)
            of = f" of {', '.join(wanted['image'])}" if wanted.keys() == {"image"} else ""
            echo(f"No matching {noun}." if wanted and not of else f"No {noun}{of} yet.")
            if not endpoint and len(others := _read(table, **wanted, endpoint="all")):
                kinds = sorted(set(others["endpoint"].fillna("aws"))) if "endpoint" in others else []
                echo(f"{len(others)} elsewhere: add --endpoint {kinds[0] if len(kinds) == 1 else 'all'}.")
        else:
            _show(frame[[column for column in COLUMNS[table] if column in frame]])

    return read


def _read(table: str, **wanted: Any) -> pd.DataFrame:
    from vmsnix_ops.runbooks import history as records

    frame: pd.DataFrame = getattr(records, table)(**wanted)
    return frame


_table_command("runs", "List runs of runbooks, newest first.")
_table_command("steps", "List steps of runs, newest first.")
_table_command("amis", "List AMIs that were published or found, newest first.")
_table_command("promotions", "List promotions and rollbacks, newest first.")
_table_command("inventory", "List the resources that audits found, newest scan first.")
_table_command("findings", "List the findings of audits, newest scan first.")
_table_command("packages", "List the packages of published images, newest first.")
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
    come from the runs in the archive and, for amis, from the tags in AWS. Rows of older versions get the
    endpoint of their run: AWS or a sandbox. The old table is kept beside the new one. On S3, make sure that
    no run writes in the meantime.
    """
    from vmsnix_ops.audit.sync import sync as sync_amis
    from vmsnix_ops.cli.runs import open_archive
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.records import rebuild as records
    from vmsnix_ops.records.tables import open_tables

    chosen = [schemas.schema(name).name for name in tables] or list(records.KEYS)
    store, found = open_tables(load_settings(sandbox=sandbox)), defaultdict(list)
    for table, row in open_archive(archive, sandbox=sandbox).rows():
        found[table].append(row)
    for table in chosen:
        rows = records.valid_rows(table, found[table])
        where = "sandbox" if sandbox else ""
        done = records.rebuild(store, table, rows, runs=found["runs"], endpoint=where)
        kept = f" The old table was renamed to {done.kept_as}." if done.kept_as else ""
        lost = f" {done.unreadable} of its files could not be read." if done.unreadable else ""
        filled = (
            f" {done.filled} rows of older versions got the endpoint of their run." if done.filled else ""
        )
        echo(f"{table}: {done.read} rows kept, {done.added} restored from runs.{filled}{lost}{kept}")
    if "amis" in chosen and not sandbox:
        result = sync_amis(regions=regions, tables=store)
        echo(f"amis: {result.added} added from AWS in {', '.join(result.regions)}.")


def _show(frame: pd.DataFrame) -> None:
    from vmsnix_ops.cli.output import show_table
    from vmsnix_ops.display import make_table

    right = ("seconds", "bytes", "size_gib", "monthly_usd")
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    show_table(make_table(list(frame.columns), rows, right=right))


def _text(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if pd.api.types.is_bool(value):
        return "yes" if value else ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)
