"""The audit as one static page: no script, nothing remote, readable in light and dark, and on paper."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit import findings as judging
from vmsnix_ops.audit import views
from vmsnix_ops.progress import counted
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.audit.inventory import Inventory

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MOST = 100
"""Rows that the page shows of one rule; the files beside it have all."""


def render(inventory: Inventory, findings: pd.DataFrame, changes: Changes | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    inventory, findings, changes
        What was seen, what is wrong with it, and what changed.
    """
    style = (files("vmsnix_ops.audit") / "report.css").read_text(encoding="utf-8")
    when = f"{inventory.scanned_at:%Y-%m-%d %H:%M} UTC"
    parts = [
        "<!doctype html>\n",
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>Audit of {when}</title>\n<style>\n{style}</style>\n</head>\n<body>\n",
        f"<h1>What these accounts hold</h1>\n{_where(inventory, when)}",
        _tiles(inventory, findings),
        f"<h2>Findings</h2>\n{''.join(_findings(findings))}",
        f"<h2>Changes</h2>\n{_changes(changes)}",
        f"<h2>Accounts and regions</h2>\n{_places(inventory)}",
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def _where(inventory: Inventory, when: str) -> str:
    accounts = sorted({account for account, _ in inventory.places})
    regions = sorted({region for _, region in inventory.places})
    words = f"{when}: {counted(len(accounts), 'account')} ({', '.join(accounts)}), "
    words += f"{counted(len(regions), 'region')}; run {inventory.run.run_id}"
    return f'<p class="soft">{html(words)}</p>\n'


def _tiles(inventory: Inventory, findings: pd.DataFrame) -> str:
    total = views.totals(inventory)
    urgent = int(findings["severity"].isin(["critical", "high"]).sum())
    estimated = f", {total['estimated']:,.0f} estimated" if total["estimated"] else ""
    tiles = [
        (f"{total['amis']:,.0f}", "AMIs"),
        (f"{total['amis_referenced']:,.0f}", "of them used"),
        (f"{total['amis_unreferenced']:,.0f}", "unused"),
        (f"{total['amis_unknown']:,.0f}", "use unknown"),
        (f"{total['snapshots']:,.0f}", f"snapshots, {total['snapshots_unreferenced']:,.0f} held by nothing"),
        (f"{total['stored_gib']:,.1f} GiB", f"stored, of {total['size_gib']:,.0f} GiB of volumes"),
        (f"${total['monthly_usd']:,.2f}", f"a month{estimated}"),
        (f"{urgent:,}", "critical and high findings"),
    ]
    shown = "".join(f'<div class="tile"><b>{number}</b><span>{word}</span></div>' for number, word in tiles)
    return f'<div class="tiles">{shown}</div>\n'


def _findings(findings: pd.DataFrame) -> Iterable[str]:
    if findings.empty:
        yield '<p class="soft">Nothing is wrong by these rules.</p>\n'
    about = judging.about()
    for (severity, rule), rows in findings.groupby(["severity", "rule"], sort=False):
        meaning = about[str(rule)][1].removeprefix("Find ").rstrip(".")
        meaning = meaning[:1].upper() + meaning[1:]
        opened = " open" if severity in ("critical", "high") else ""
        head = f'<span class="severity">{severity}</span><b>{html(meaning)}</b>'
        head += f'<span class="count">{len(rows):,} · {html(str(rule))}</span>'
        yield f'<details class="{severity}"{opened}><summary>{head}</summary>\n'
        yield _table(
            ("where", "what", "why", "fix"),
            [_finding(row) for row in judging.as_text(rows.head(MOST)).to_dict("records")],
            classes={3: "fix"},
        )
        if len(rows) > MOST:
            yield f'<p class="table soft">{len(rows) - MOST:,} more in findings.csv.</p>\n'
        yield "</details>\n"


def _finding(row: dict[Any, Any]) -> tuple[str, str, str, str]:
    where = f'<span class="id">{_safe(row["region"]) or "all regions"}</span>'
    where += f'<span class="name">{_safe(row["account"])}</span>'
    what = (
        f'<code class="id">{_safe(row["resource_id"])}</code><span class="name">{_safe(row["name"])}</span>'
    )
    why = f'{_safe(row["reason"])}<span class="name">{_safe(row["evidence"])}</span>'
    remediation = _safe(row["remediation"])
    return where, what, why, f"<code>{remediation}</code>" if remediation else ""


def _changes(changes: Changes | None) -> str:
    if changes is None:
        return '<p class="soft">This scan was not compared with another.</p>\n'
    rows = [
        (
            _safe(row["change"]),
            _safe(row["region"]),
            _safe(row["kind"]),
            f'<code class="id">{_safe(row["resource_id"])}</code>',
            _safe(row["name"]),
            _safe(row["what"]),
        )
        for row in changes.frame.head(MOST).to_dict("records")
    ]
    text = f"<p>{html(str(changes))}</p>\n"
    if not rows:
        return text
    more = len(changes.frame) - MOST
    text += _table(("change", "region", "kind", "id", "name", "what"), rows)
    return text + (f'<p class="soft">{more:,} more are in changes.csv.</p>\n' if more > 0 else "")


def _places(inventory: Inventory) -> str:
    table = views.summary(inventory)
    most = max([*table.loc[table["kind"] != "ami", "monthly_usd"], 0.01])
    rows = []
    for row in table.to_dict("records"):
        share = 0.0 if row["kind"] == "ami" else float(row["monthly_usd"]) / most
        bar = f'<span class="bar" style="width: {share * 6:.2f}rem"></span>'
        numbers = [row["count"], row["unused"], row["unknown"], row["size_gib"], row["stored_gib"]]
        rows.append(
            (
                _safe(row["account"]),
                _safe(row["region"]),
                _safe(row["kind"]),
                *(_number(number) for number in numbers),
                f"{_number(row['monthly_usd'])} ",
                bar,
            )
        )
    head = ("account", "region", "kind", "count", "unused", "unknown", "GiB", "stored GiB", "USD a month", "")
    note = '<p class="soft">What an AMI costs is what its snapshots cost; it counts once in the total.</p>\n'
    return _table(head, rows, classes=dict.fromkeys(range(3, 9), "number")) + note


def _number(value: Any) -> str:
    if value != value or value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def _safe(value: object) -> str:
    """Return a value as HTML; a hole is nothing."""
    return "" if value is None or value != value else html(str(value))


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, classes: dict[int, str] | None = None
) -> str:
    """Return a table of cells that are HTML already."""
    marks = [f' class="{classes[n]}"' if classes and n in classes else "" for n in range(len(head))]
    top = "".join(f"<th{mark}>{word}</th>" for word, mark in zip(head, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="table"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
