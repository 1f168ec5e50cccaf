"""The tabs of audits: what the newest one saw, and what it found wrong."""

from __future__ import annotations

import io
from datetime import datetime
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.runbooks.console.grid import Column, Grid
from vmsnix_ops.runbooks.console.tabs import Tab

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from vmsnix_ops.runbooks.console.places import Place
    from vmsnix_ops.runbooks.evidence.runs import Entry

AUDIT = "audit-inventory"
NO_AUDIT = "No audit has been recorded here yet."
LOOKED_THROUGH = 5
"""Audits in which a table is looked for."""


class AuditTab(Tab):
    """A file of the newest audit, as a table."""

    columns: tuple[Column, ...] = ()
    file = ""
    narrow = ""
    sort = ""
    clean = "The audit saw nothing."

    def __init__(
        self,
        open_runbook: Callable[[str, Mapping[str, object]], None],
        look_at: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._look_at = look_at
        self._run_id = ""
        super().__init__(open_runbook)

    def _parts(self) -> list[Any]:
        self._head = ipywidgets.HTML("")
        self._grid = Grid(self.columns, narrow=self.narrow, sort=self.sort, empty=NO_AUDIT)
        audit = ipywidgets.Button(description="Audit now")
        audit.on_click(lambda _button: self._open_runbook(AUDIT, {}))
        self._look = ipywidgets.Button(description="Look at that audit")
        self._look.on_click(lambda _button: self._look_at({"run_id": self._run_id}))
        buttons = ipywidgets.HBox([audit, self._look])
        buttons.add_class("vmsnix-actions")
        return [self._head, self._grid.widget, buttons]

    def _read(self, place: Place) -> None:
        frame, entry = last_audit(place, self.file)
        self._run_id = entry.run_id if entry else ""
        self._look.layout.display = "" if entry else "none"
        self._head.value = _seen(entry)
        self._grid.empty = self.clean if entry else NO_AUDIT
        self._grid.show(frame)


class InventoryTab(AuditTab):
    """What the newest audit saw in the account."""

    title = "Inventory"
    file = "inventory"
    narrow = "kind"
    sort = "-created_at"
    columns = (
        Column("kind"),
        Column("resource_id", "resource", "code"),
        Column("name"),
        Column("region"),
        Column("state", "", "badge"),
        Column("created_at", "created (UTC)", "time"),
        Column("size_gib", "GiB", "number"),
        Column("monthly_usd", "USD a month", "usd"),
        Column("referenced", "in use"),
        Column("public"),
        Column("image"),
    )


class FindingsTab(AuditTab):
    """What the newest audit found wrong, the worst first."""

    title = "Findings"
    file = "findings"
    narrow = "severity"
    clean = "The audit found nothing wrong."
    columns = (
        Column("severity", "", "badge"),
        Column("rule"),
        Column("resource_id", "resource", "code"),
        Column("region"),
        Column("reason", "", "long"),
        Column("cure", "", "command"),
    )


def last_audit(place: Place, name: str) -> tuple[pd.DataFrame, Entry | None]:
    """Return a table of the newest audit that has it, and that run; an empty one when there is none.

    Parameters
    ----------
    place
        Whose archive.
    name
        Of the file, without its ending.

    Raises
    ------
    ArchiveError
        The archive cannot be read, or the file is not what was kept.
    """
    import pandas as pd

    from vmsnix_ops.runbooks.evidence.runs import open_archive

    archive = open_archive(place.settings(), environment=place.environment)
    file = f"{name}.csv"
    for entry in archive.entries(runbook=AUDIT, last=LOOKED_THROUGH):  # one with fail_on may end as failed
        if file in entry.values.get("files", {}):
            content = io.BytesIO(archive.fetch(entry, file))
            frame = pd.read_csv(content, dtype={"account": "str"}, keep_default_na=True)
            if "created_at" in frame:
                frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True, format="ISO8601")
            return frame, entry
    return pd.DataFrame(), None


def _seen(entry: Entry | None) -> str:
    if entry is None:
        return ""
    when = f"{datetime.fromisoformat(str(entry.values['started_at'])):%Y-%m-%d %H:%M} UTC"
    return f'<p class="vmsnix-quiet">As the audit of {when} saw it.</p>'
