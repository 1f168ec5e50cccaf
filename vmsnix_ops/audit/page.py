"""The page of an audit: all findings, AMIs and snapshots in one file, to search, sort, filter and group."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from vmsnix_ops import templates
from vmsnix_ops.audit import views
from vmsnix_ops.audit.acknowledgements import split
from vmsnix_ops.audit.findings import RULES
from vmsnix_ops.aws.references import references_from_json
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.pages import PLAIN_ROWS, Lane, Lanes, PageColumn, PageTable, Segment, Trend
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.audit.inventory import Inventory
    from vmsnix_ops.records.tables import Tables

ACCOUNT = PageColumn("account", hidden=True, filter=True, group=True)
REGION = PageColumn("region", width=7.6, below="account", filter=True, group=True)
IMAGE = PageColumn("image", width=7.6, below="state", filter=True, group=True)
RESOURCE = PageColumn("resource_id", "ID", kind="id", width=12.8, below="name")
NAME = PageColumn("name", hidden=True)
CREATED = PageColumn("created_at", "created (UTC)", kind="time", hidden=True)
COST = PageColumn("monthly_usd", "USD/month", kind="number", width=6.4, digits=2)
STATE = PageColumn("state", hidden=True, filter=True)
AGE = PageColumn("age_days", "age (days)", kind="number", width=6.5, digits=1)
SIZE = PageColumn("size_gib", "size (GiB)", hidden=True)
STORED = PageColumn(
    *("stored_gib", "stored, size (GiB)"), kind="number", width=8.7, digits=2, below="size_gib"
)
USE = PageColumn("use", below="users", filter=True, group=True, tones={"unused": "mixed", "unknown": "soft"})
MORE = [
    PageColumn(name, hidden=True)
    for name in ("users", "public", "encrypted", "deprecated_at", "cost_basis", "snapshots", "tags")
]

FINDINGS = [
    PageColumn(
        "severity",
        width=6,
        filter=True,
        order=SEVERITIES,
        tones=dict(zip(SEVERITIES, SEVERITIES, strict=True)),
    ),
    PageColumn("rule", width=9, filter=True, group=True, lead="severity"),
    REGION,
    RESOURCE,
    PageColumn("reason", kind="prose"),
    PageColumn("remediation", "fix", kind="command"),
    COST,
    *(
        PageColumn("finding_id", "finding", hidden=True),
        PageColumn("evidence", hidden=True),
        NAME,
        ACCOUNT,
        PageColumn("kind", hidden=True, filter=True),
    ),
    PageColumn("image", hidden=True, filter=True, group=True),
]
ACKNOWLEDGED = [
    *FINDINGS[:4],
    PageColumn("acknowledged_reason", "acceptable because", kind="prose"),
    PageColumn("acknowledged_until", "until (UTC)", kind="time", width=9.5),
    PageColumn("acknowledged_by", "by", width=5.8),
    *(PageColumn(one.name, one.title, hidden=True) for one in FINDINGS[4:7]),
    *FINDINGS[7:],
]
AMIS = [
    *(RESOURCE, IMAGE, REGION, AGE, COST, USE),
    PageColumn("last_launched_at", "launched, proven", kind="time", width=9, below="proven_at"),
    PageColumn("proven_at", "proven (UTC)", kind="time", hidden=True),
    *(ACCOUNT, NAME, STATE, SIZE, CREATED, *MORE),
]
SNAPSHOTS = [
    *(RESOURCE, IMAGE, REGION, AGE, STORED, COST, USE),
    *(ACCOUNT, NAME, STATE, SIZE, PageColumn("tier", hidden=True, filter=True), CREATED, *MORE),
]
OTHERS = [
    PageColumn("kind", width=8.2, below="state", filter=True, group=True),
    *(RESOURCE, REGION, AGE, replace(STORED, label="stored (GiB)", width=6.5, below=""), COST),
    *(PageColumn("message", kind="prose"), replace(IMAGE, hidden=True), ACCOUNT, NAME, STATE, CREATED),
]
CHANGES = [
    PageColumn("change", width=7, filter=True, group=True),
    *(PageColumn("kind", width=8, filter=True, group=True), REGION, RESOURCE),
    *(PageColumn("what", kind="prose"), COST, ACCOUNT, NAME),
]
REGIONS = [
    *(REGION, ACCOUNT, PageColumn("kind", width=8.2, filter=True, group=True)),
    *(PageColumn(name, kind="number", width=5.6) for name in ("count", "unused", "unknown")),
    *(STORED, SIZE, COST, PageColumn("oldest_days", "oldest (days)", kind="number", width=7)),
]


AGES = ((7, "1 week"), (30, "1 month"), (90, "3 months"), (365, "1 year"), (math.inf, "more"))
MAX_IMAGES = 15
"""Images of the picture; those with the highest cost."""
MAX_AUDITS = 50
"""Audits of the trend; the newest ones."""


def page(inventory: Inventory, findings: pd.DataFrame, changes: Changes, past: pd.DataFrame) -> str:
    """Return the report of an audit as one HTML page that loads nothing.

    `findings` are texts, from `vmsnix_ops.audit.findings.as_text`. Acknowledged ones are folded, and counted
    apart. `past` is the result of `past_audits`.
    """
    when = f"{inventory.scanned_at:%Y-%m-%d %H:%M} UTC"
    found, acknowledged = split(findings)
    columns = [replace(one, notes=_meanings(found)) if one.name == "rule" else one for one in FINDINGS]
    return templates.page(
        "audit/page.html",
        when=when,
        where=_where(inventory, when),
        tiles=_tiles(inventory, found, acknowledged),
        changes=str(changes),
        images=_cost_by_image(inventory),
        trends=_trends(inventory, found, past),
        findings=PageTable(
            *("findings", "Findings", columns, found),
            sort="severity",
            group="rule",
            sum="monthly_usd",
            nothing="No findings.",
        ),
        acknowledged=PageTable(
            "acknowledged", "Acknowledged findings", ACKNOWLEDGED, acknowledged, "severity"
        ),
        tables=list(_tables(inventory, changes)),
        plain_rows=PLAIN_ROWS,
    )


def _meanings(findings: pd.DataFrame) -> dict[str, str]:
    """Return what each rule of the findings finds."""
    texts = {
        name: RULES[name].description.removeprefix("Find ").rstrip(".") for name in set(findings["rule"])
    }
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def _tables(inventory: Inventory, changes: Changes) -> Iterator[PageTable]:
    frame = views.readable(inventory, inventory.frame)
    frame["users"] = [_users(texts) for texts in frame["references"]]
    kinds = frame["kind"]
    more = {"sort": "-age_days", "sum": "monthly_usd"}
    yield PageTable("amis", "AMIs", AMIS, frame[kinds == "ami"], **more, nothing="No AMIs.")
    snapshots = frame[kinds == "snapshot"]
    yield PageTable("snapshots", "Snapshots", SNAPSHOTS, snapshots, **more, nothing="No snapshots.")
    if len(others := frame[~kinds.isin(["ami", "snapshot"])]):
        yield PageTable("others", "Imports, uploads and objects", OTHERS, others, **more)
    yield PageTable("changes", "Changes", CHANGES, changes.frame, "change", nothing=str(changes))
    yield PageTable("regions", "Accounts and regions", REGIONS, inventory.summary(), "-monthly_usd")


def _users(texts: str) -> str:
    return "; ".join(str(one) for one in references_from_json(texts) if one.kind != "launched")


def _where(inventory: Inventory, when: str) -> str:
    accounts = sorted({account for account, _ in inventory.regions})
    regions = sorted({region for _, region in inventory.regions})
    scope = f"{counted(len(accounts), 'account')} ({', '.join(accounts)}), {counted(len(regions), 'region')}"
    return f"{when}: {scope}; run {inventory.run.run_id}"


def _tiles(
    inventory: Inventory, findings: pd.DataFrame, acknowledged: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    total = views.totals(inventory)
    urgent = int(findings["severity"].isin(["critical", "high"]).sum())
    estimated = f", {total['estimated']:,.0f} estimated" if total["estimated"] else ""
    apart = f", {len(acknowledged):,} acknowledged" if len(acknowledged) else ""
    yield f"{urgent:,}", f"critical and high of {counted(len(findings), 'finding')}{apart}"
    yield f"{total['amis']:,.0f}", f"AMIs, {total['amis_referenced']:,.0f} of them used"
    yield f"{total['amis_unreferenced']:,.0f}", f"AMIs unused; usage of {total['amis_unknown']:,.0f} unknown"
    yield f"{total['snapshots']:,.0f}", f"snapshots, {total['snapshots_unreferenced']:,.0f} of them unused"
    yield f"{total['stored_gib']:,.1f} GiB", f"stored, of {total['size_gib']:,.0f} GiB of volumes"
    yield f"${total['monthly_usd']:,.2f}", f"per month{estimated}"


def past_audits(inventory: Inventory, tables: Tables) -> pd.DataFrame:
    """Return numbers and costs of earlier audits of the same accounts and regions, oldest first.

    The columns are ``scanned_at``, ``amis``, ``snapshots``, ``monthly_usd`` and ``urgent``: the number of
    critical and high findings that are not acknowledged.
    """
    import pandas as pd

    earlier = [("scanned_at", "<", inventory.scanned_at), ("run_id", "!=", inventory.run.run_id)]
    places = tables.read(
        "inventory",
        columns=["scanned_at", "account", "region", "state"],
        where=[("kind", "==", "region"), *earlier],
    )
    # An audit that could not read everything has other numbers.
    places["place"] = list(zip(places["account"], places["region"], places["state"], strict=True))
    wanted = {(*place, "read") for place in inventory.regions}
    known = places.groupby("scanned_at")["place"].agg(lambda found: set(found) == wanted)
    times = sorted(known.index[known.astype("bool")])[-MAX_AUDITS:]
    if not times:
        return pd.DataFrame(columns=["scanned_at", "amis", "snapshots", "monthly_usd", "urgent"])
    where = [("scanned_at", "in", times)]
    rows = tables.read(
        "inventory",
        columns=["scanned_at", "kind", "monthly_usd"],
        where=[*where, ("kind", "not in", ["region", "bucket"])],
    )
    found = tables.read("findings", columns=["scanned_at", "severity", "acknowledged"], where=where)
    urgent = found["severity"].isin(["critical", "high"]) & ~found["acknowledged"].eq(other=True)
    amis = rows["kind"] == "ami"
    columns = {
        "amis": rows[amis].groupby("scanned_at").size(),
        "snapshots": rows[rows["kind"] == "snapshot"].groupby("scanned_at").size(),
        "monthly_usd": rows[~amis].groupby("scanned_at")["monthly_usd"].sum(),  # an AMI costs its snapshots
        "urgent": found[urgent].groupby("scanned_at").size(),
    }
    frame = pd.DataFrame(columns, index=pd.Index(times, name="scanned_at"))
    return frame.fillna(0).reset_index()


def _trends(inventory: Inventory, findings: pd.DataFrame, past: pd.DataFrame) -> list[Trend]:
    """Return the trend of each number from the past audits to this one; none without a past audit."""
    if past.empty:
        return []
    total = views.totals(inventory)
    urgent = int(findings["severity"].isin(["critical", "high"]).sum())
    times = [*past["scanned_at"], inventory.scanned_at]
    now = {
        "urgent": ("critical and high findings", urgent),
        "amis": ("AMIs", total["amis"]),
        "snapshots": ("snapshots", total["snapshots"]),
        "monthly_usd": ("USD per month", total["monthly_usd"]),
    }
    return [
        Trend(title, times, [_rounded(each) for each in (*past[name], value)])
        for name, (title, value) in now.items()
    ]


def _rounded(value: float) -> float:
    return int(value) if float(value).is_integer() else round(float(value), 2)


def _cost_by_image(inventory: Inventory) -> Lanes | None:
    """Return the cost of the snapshots of each image, by age; ``None`` without costs."""
    frame = inventory.frame[inventory.frame["kind"] == "snapshot"]
    age = inventory.age_days(frame)
    rows = frame.assign(
        image=frame["image"].fillna("without the tag vmsnix:image"),
        days=age,
        part=[next((n for n, (most, _) in enumerate(AGES, 1) if days < most), len(AGES)) for days in age],
    )
    costs = rows.groupby("image")["monthly_usd"].sum().sort_values(ascending=False)
    if not costs.max() > 0:
        return None
    others = set(costs.index[MAX_IMAGES:])
    largest, rest = max(costs.max(), costs[MAX_IMAGES:].sum()), f"{len(others)} other images"
    rows["image"] = rows["image"].where(~rows["image"].isin(others), rest)
    lanes = []
    for image in [*costs.index[:MAX_IMAGES], *([rest] if others else [])]:
        some, begin, segments = rows[rows["image"] == image], 0.0, []
        for part, cost in some.groupby("part")["monthly_usd"].sum().items():
            share = float(cost) / largest
            label = f"{AGES[int(str(part)) - 1][1]}: {cost:,.2f} USD per month"
            segments.append(Segment(begin, share, str(part), label))
            begin += share
        gib = float(some["stored_bytes"].sum()) / GIB
        days = some["days"].median()
        text = f"${some['monthly_usd'].sum():,.2f}, {gib:,.1f} GiB, median {counted(int(days), 'day')}"
        lanes.append(Lane(image, segments, text))
    legend = {str(number): f"up to {label}" for number, (_, label) in enumerate(AGES, 1)}
    legend[str(len(AGES))] = f"more than {AGES[-2][1]}"
    return Lanes("Cost of the snapshots of each image by age", lanes, legend)
