"""The report of an audit as one static HTML page, without scripts or remote content."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops import templates
from vmsnix_ops.audit import views
from vmsnix_ops.audit.findings import RULES, as_text
from vmsnix_ops.display import missing
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.audit.inventory import Inventory

MAX_ROWS = 100
"""Rows of one rule on the page; the files beside it have all rows."""


def render(inventory: Inventory, findings: pd.DataFrame, changes: Changes) -> str:
    """Return the page."""
    when = f"{inventory.scanned_at:%Y-%m-%d %H:%M} UTC"
    return templates.page(
        "audit/page.html",
        style=(files("vmsnix_ops.audit") / "report.css").read_text(encoding="utf-8"),
        when=when,
        where=_where(inventory, when),
        tiles=_tiles(inventory, findings),
        findings=_findings(findings),
        changes={"text": changes, "rows": _rows(changes.frame.head(MAX_ROWS)), "more": _more(changes.frame)},
        regions=_regions(inventory),
    )


def _where(inventory: Inventory, when: str) -> str:
    accounts = sorted({account for account, _ in inventory.regions})
    regions = sorted({region for _, region in inventory.regions})
    scope = f"{counted(len(accounts), 'account')} ({', '.join(accounts)}), {counted(len(regions), 'region')}"
    return f"{when}: {scope}; run {inventory.run.run_id}"


def _tiles(inventory: Inventory, findings: pd.DataFrame) -> list[tuple[str, str]]:
    total = views.totals(inventory)
    urgent = int(findings["severity"].isin(["critical", "high"]).sum())
    estimated = f", {total['estimated']:,.0f} estimated" if total["estimated"] else ""
    return [
        (f"{total['amis']:,.0f}", "AMIs"),
        (f"{total['amis_referenced']:,.0f}", "of them used"),
        (f"{total['amis_unreferenced']:,.0f}", "unused"),
        (f"{total['amis_unknown']:,.0f}", "usage unknown"),
        (f"{total['snapshots']:,.0f}", f"snapshots, {total['snapshots_unreferenced']:,.0f} of them unused"),
        (f"{total['stored_gib']:,.1f} GiB", f"stored, of {total['size_gib']:,.0f} GiB of volumes"),
        (f"${total['monthly_usd']:,.2f}", f"per month{estimated}"),
        (f"{urgent:,}", "critical and high findings"),
    ]


def _findings(findings: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (severity, rule), rows in findings.groupby(["severity", "rule"], sort=False):
        meaning = RULES[str(rule)].description.removeprefix("Find ").rstrip(".")
        yield {
            "severity": severity,
            "rule": rule,
            "meaning": meaning[:1].upper() + meaning[1:],
            "number": f"{len(rows):,}",
            "rows": _rows(as_text(rows.head(MAX_ROWS))),
            "more": _more(rows),
        }


def _regions(inventory: Inventory) -> Iterator[dict[str, Any]]:
    table = views.summary(inventory)
    most = max([*table.loc[table["kind"] != "ami", "monthly_usd"], 0.01])
    for row in _rows(table):
        names = ("count", "unused", "unknown", "size_gib", "stored_gib", "monthly_usd")
        share = 0.0 if row["kind"] == "ami" else float(row["monthly_usd"]) / most
        yield {**row, "numbers": [_number(row[name]) for name in names], "bar": share * 6}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame; missing values are empty texts."""
    return [
        {str(name): "" if missing(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _more(rows: pd.DataFrame) -> str:
    """Return how many rows the page does not show; empty if none."""
    return f"{len(rows) - MAX_ROWS:,}" if len(rows) > MAX_ROWS else ""


def _number(value: Any) -> str:
    if missing(value):
        return ""
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"
