"""``vmsnix findings``: list the findings of audits, acknowledge and export them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmsnix_ops.cli.options import json_option
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.records.tables import Tables

SHOWN: tuple[str, ...] = ("finding_id", "severity", "rule", "region", "resource_id", "name")
ACKNOWLEDGED = ("finding_id", "severity", "rule", "resource_id", "until", "expired", "user", "reason")
run_option = click.option(
    "--run", "run_id", default="", metavar="ID", help="Run of the audit.  [default: the newest audit]"
)
sandbox_option = click.option("--sandbox", is_flag=True, help="Use the tables of runs with --sandbox.")


@click.group()
def findings() -> None:
    """List the findings of an audit, acknowledge them with a reason, and export them.

    An acknowledged finding is listed separately and does not fail an audit until the acknowledgement expires
    or is withdrawn. To compare the findings of several audits, use `vmsnix history findings`.
    """


@findings.command("list")
@run_option
@click.option("--severity", type=click.Choice(SEVERITIES), multiple=True, help="Show only this severity.")
@click.option("--rule", multiple=True, help="Show only findings of this rule.")
@click.option("--acknowledged", is_flag=True, help="List the acknowledgements instead, also expired ones.")
@json_option
@sandbox_option
def list_findings(
    run_id: str,
    severity: tuple[str, ...],
    rule: tuple[str, ...],
    acknowledged: bool,
    as_json: bool,
    sandbox: bool,
) -> None:
    """List the findings of an audit that are not acknowledged, or the acknowledgements."""
    from vmsnix_ops import audit
    from vmsnix_ops.audit.acknowledgements import SHOW, split
    from vmsnix_ops.audit.findings import RULES
    from vmsnix_ops.cli.output import show_json_text
    from vmsnix_ops.display import frame_table
    from vmsnix_ops.progress import counted
    from vmsnix_ops.records.filters import refuse_typos

    tables, columns, apart = open_tables(sandbox=sandbox), SHOWN, 0
    if acknowledged:
        frame, columns = audit.list_acknowledgements(tables), ACKNOWLEDGED
    else:
        frame = audit.read_findings(run_id, tables=tables)
    refuse_typos("rule", set(rule) - RULES.keys(), frame["rule"], RULES)
    for name, wanted in (("severity", severity), ("rule", rule)):
        frame = frame[frame[name].isin(wanted)] if wanted else frame
    if not acknowledged:
        frame, folded = split(frame)
        apart = len(folded)
    if as_json:
        show_json_text(audit.export(frame, "json"))
        return
    noun = "acknowledged findings" if acknowledged else "findings"
    echo(
        frame_table(
            frame[list(columns)], nothing=f"No matching {noun}." if severity or rule else f"No {noun}."
        )
    )
    if apart:
        echo(f"{counted(apart, 'acknowledged finding')} not listed: {SHOW}{' --sandbox' if sandbox else ''}")


@findings.command()
@click.argument("finding_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Why the finding is acceptable.")
@click.option(
    "--until",
    required=True,
    metavar="WHEN",
    help="When the finding counts again: a duration from now such as 90D, or a date such as 2027-06-30.",
)
@sandbox_option
def ack(finding_ids: tuple[str, ...], reason: str, until: str, sandbox: bool) -> None:
    """Acknowledge findings until a time; `vmsnix findings list` shows their IDs.

    The acknowledgement covers the finding of this resource only, and no higher severity than now.
    """
    from vmsnix_ops import audit

    rows = audit.acknowledge(finding_ids, reason=reason, until=until, tables=open_tables(sandbox=sandbox))
    _show_recorded(rows, f"acknowledged until {rows['until'].iloc[0]:%Y-%m-%d %H:%M} UTC")


@findings.command()
@click.argument("finding_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", default="withdrawn", show_default=True, help="Why the finding counts again.")
@sandbox_option
def withdraw(finding_ids: tuple[str, ...], reason: str, sandbox: bool) -> None:
    """Withdraw acknowledgements: the findings count again."""
    from vmsnix_ops import audit

    rows = audit.withdraw(finding_ids, reason=reason, tables=open_tables(sandbox=sandbox))
    _show_recorded(rows, "no longer acknowledged")


@findings.command()
@run_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "json", "sarif"]),
    required=True,
    help="Format; sarif is SARIF 2.1.0, as code scanning services read it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write.  [default: standard output]",
)
@sandbox_option
def export(run_id: str, kind: str, output: Path | None, sandbox: bool) -> None:
    """Export all findings of an audit with their acknowledgements as CSV, JSON or SARIF."""
    from vmsnix_ops import audit
    from vmsnix_ops.cli.output import write_file

    text = audit.export(audit.read_findings(run_id, tables=open_tables(sandbox=sandbox)), kind)  # type: ignore[arg-type]
    if output is None:
        echo(text.removesuffix("\n"))
    else:
        write_file(output, text)


def open_tables(*, sandbox: bool) -> Tables:
    """Return the tables of the settings, or those of runs with ``--sandbox``."""
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.records.tables import Tables

    settings = load_settings(sandbox=sandbox)
    # Any loopback address selects the rows of sandboxes; these tables are in a local folder.
    local = {"VMSNIX_SANDBOX": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1"} if sandbox else {}
    return Tables(settings.history, region=settings.region, storage_options={**os.environ, **local})


def _show_recorded(rows: pd.DataFrame, what: str) -> None:
    from vmsnix_ops.text import line

    for row in rows.to_dict("records"):
        echo(line(f"{row['finding_id']}  {row['rule']} {row['resource_id']}: {what}"))
