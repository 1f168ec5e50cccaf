"""An audit for people: totals, tables with the most important columns, a plot."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from vmsnix_ops.audit.inventory import total_usd
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.records import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def readable(inventory: Inventory, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of an inventory with their age in days, their stored GiB and their use as text."""
    return rows.assign(
        age_days=inventory.age_days(rows).round(1),
        stored_gib=(rows["stored_bytes"].astype("Float64") / GIB).round(2),
        use=rows["referenced"].astype("object").map(lambda used: USES.get(used, "unknown")),
    )


def show(inventory: Inventory, kind: str, *, most: int = 200) -> pd.DataFrame:
    """Return the rows of one kind with the most important columns, oldest first."""
    rows = inventory.frame[inventory.frame["kind"] == kind].head(most)
    columns = SHOWN.get(kind, (*_FIRST, "message"))
    return readable(inventory, rows)[list(columns)].reset_index(drop=True)


def plot(inventory: Inventory, *, ax: Axes | None = None) -> Figure:
    """Plot the cost of snapshots by age, with and without an AMI, by default into a new figure."""
    frame = inventory.frame[inventory.frame["kind"] == "snapshot"]
    if frame.empty:
        return figures.message_figure("No snapshots.", ax)
    age = inventory.age_days(frame)
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
