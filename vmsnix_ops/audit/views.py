"""An audit for people: totals, tables with the most important columns, a plot, a page."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from vmsnix_ops import templates
from vmsnix_ops.audit.acknowledgements import split
from vmsnix_ops.audit.findings import RULES, as_text
from vmsnix_ops.audit.inventory import total_usd
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.display import missing
from vmsnix_ops.progress import counted
from vmsnix_ops.records import figures

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.audit.inventory import Inventory

_FIRST = ("resource_id", "name", "region", "account", "state", "age_days")
SHOWN = {
    "ami": (*_FIRST, "size_gib", "monthly_usd", "use", "proven_at"),
    "snapshot": (*_FIRST, "stored_gib", "monthly_usd", "use"),
}
USES = {True: "used", False: "unused"}
AGES = ((0, 1, "1 day"), (1, 7, "1 week"), (7, 30, "1 month"), (30, 90, "3 months"), (90, 365, "1 year"))


def totals(inventory: Inventory) -> dict[str, float]:
    """Return numbers and costs of the whole inventory."""
    frame = inventory.frame
    amis, snapshots = frame["kind"] == "ami", frame["kind"] == "snapshot"
    used = frame["referenced"]
    stored = frame.loc[snapshots, "stored_bytes"].sum()
    return {
        "accounts": len({account for account, _ in inventory.regions}),
        "regions": len({region for _, region in inventory.regions}),
        "amis": int(amis.sum()),
        "amis_referenced": int((amis & used.fillna(value=False)).sum()),
        "amis_unreferenced": int((amis & ~used.fillna(value=True)).sum()),
        "amis_unknown": int((amis & used.isna()).sum()),
        "snapshots": int(snapshots.sum()),
        "snapshots_unreferenced": int((snapshots & ~used.fillna(value=True)).sum()),
        "size_gib": int(frame.loc[snapshots, "size_gib"].sum()),
        "stored_gib": round(float(stored) / GIB, 1),
        "estimated": int((snapshots & frame["estimated"].fillna(value=False)).sum()),
        "monthly_usd": round(total_usd(frame), 2),
        "unread": len(inventory.unread),
    }


def show(inventory: Inventory, kind: str, *, most: int = 200) -> pd.DataFrame:
    """Return the rows of one kind with the most important columns, oldest first."""
    frame = inventory.frame[inventory.frame["kind"] == kind].head(most)
    age = (inventory.scanned_at - frame["created_at"]).dt.total_seconds() / 86400
    shown = frame.assign(
        age_days=age.round(1),
        stored_gib=(frame["stored_bytes"].astype("Float64") / GIB).round(2),
        use=frame["referenced"].astype("object").map(lambda used: USES.get(used, "unknown")),
    )
    columns = SHOWN.get(kind, (*_FIRST, "message"))
    return shown[list(columns)].reset_index(drop=True)


def plot(inventory: Inventory, *, ax: Axes | None = None) -> Figure:
    """Plot the cost of snapshots by age, with and without an AMI, by default into a new figure."""
    frame = inventory.frame[inventory.frame["kind"] == "snapshot"]
    if frame.empty:
        return figures.message_figure("No snapshots.", ax)
    age = (inventory.scanned_at - frame["created_at"]).dt.total_seconds() / 86400
    labels = [label for _, _, label in AGES] + ["older"]
    edges = [low for low, _, _ in AGES] + [AGES[-1][1], float("inf")]
    figure, ((axes,),), _ = figures.panels(ax, options={"figsize": (7, 3), "layout": "constrained"})
    bottom = [0.0] * len(labels)
    used = frame["referenced"]
    parts = [
        (used.fillna(value=False), "used", figures.METHOD_COLOURS["import"]),
        (~used.fillna(value=True), "unused", figures.ALARM),
    ]
    if used.isna().any():
        parts.append((used.isna(), "unknown: a source could not be read", figures.SOFT))
    for chosen, label, colour in parts:
        heights = [
            float(frame.loc[chosen & (age >= low) & (age < high), "monthly_usd"].sum())
            for low, high in itertools.pairwise(edges)
        ]
        axes.bar(labels, heights, bottom=bottom, label=label, color=colour, width=0.65)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    figures.style_axes(axes, grid="y")
    axes.set_xlabel("age of the snapshot, up to")
    axes.set_ylabel("cost (USD per month)")
    axes.legend(frameon=False, fontsize=9)
    return figure


# The page.

MAX_ROWS = 100
"""Rows of one rule on the page; the files beside it have all rows."""


def page(inventory: Inventory, findings: pd.DataFrame, changes: Changes) -> str:
    """Return the report of an audit as one static HTML page, without scripts or remote content."""
    when = f"{inventory.scanned_at:%Y-%m-%d %H:%M} UTC"
    return templates.page(
        "audit/page.html",
        when=when,
        where=_where(inventory, when),
        tiles=_tiles(inventory, findings),
        findings=_findings(split(findings)[0]),
        acknowledged=_rows(as_text(split(findings)[1])),
        changes={"text": changes, "rows": _rows(changes.frame.head(MAX_ROWS)), "more": _more(changes.frame)},
        regions=_regions(inventory),
    )


def _where(inventory: Inventory, when: str) -> str:
    accounts = sorted({account for account, _ in inventory.regions})
    regions = sorted({region for _, region in inventory.regions})
    scope = f"{counted(len(accounts), 'account')} ({', '.join(accounts)}), {counted(len(regions), 'region')}"
    return f"{when}: {scope}; run {inventory.run.run_id}"


def _tiles(inventory: Inventory, findings: pd.DataFrame) -> list[tuple[str, str]]:
    total = totals(inventory)
    counting, acknowledged = split(findings)
    urgent = int(counting["severity"].isin(["critical", "high"]).sum())
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
        (f"{len(acknowledged):,}", "acknowledged findings"),
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
    table = inventory.summary()
    most = max([*table.loc[table["kind"] != "ami", "monthly_usd"], 0.01])
    for row in _rows(table):
        names = ("count", "unused", "unknown", "size_gib", "stored_gib", "monthly_usd")
        share = 0.0 if row["kind"] == "ami" else float(row["monthly_usd"]) / most
        yield {**row, "numbers": [_number(row[name]) for name in names], "bar": share * 6}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
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
