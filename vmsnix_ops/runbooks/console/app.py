"""The console itself: the bar, the runs, and the tabs beside them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.runbooks.console import bar
from vmsnix_ops.runbooks.console.bar import PlaceBar
from vmsnix_ops.runbooks.console.runner import RunPage
from vmsnix_ops.runbooks.console.tabs import FindingsTab, HistoryTab, InventoryTab, TimingsTab

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.console.tabs import Tab

RUN = "Run"


class Console:
    """The operator's home.

    Parameters
    ----------
    runbook
        Name of the runbook that is picked at the start; the first one when empty.
    sandbox
        Begin on a sandbox.

    Attributes
    ----------
    widget
        The console as it is shown.
    """

    def __init__(self, *, runbook: str = "", sandbox: bool = False) -> None:
        self._ended = 0
        self.bar = PlaceBar(self._on_place)
        self.run = RunPage(self.bar, self._on_end)
        self.tabs: dict[str, Tab] = {
            tab.title: tab
            for tab in (
                HistoryTab(self._open_runbook, self._look_at),
                TimingsTab(self._open_runbook),
                InventoryTab(self._open_runbook, self._look_at),
                FindingsTab(self._open_runbook, self._look_at),
            )
        }
        self.strip = ipywidgets.ToggleButtons(options=[RUN, *self.tabs])
        self.strip.add_class("vmsnix-tabs")
        self.strip.observe(self._on_tab, "value")
        panes = {RUN: self.run.widget} | {title: tab.widget for title, tab in self.tabs.items()}
        self._panes = panes
        self.widget: Any = ipywidgets.VBox(
            [ipywidgets.HTML(bar.style()), self.bar.widget, self.strip, *panes.values()]
        )
        self.widget.add_class("vmsnix-console")
        if runbook:
            self.run.open(runbook, {})
        self._on_tab()
        self.bar.begin(sandbox=sandbox)

    def _on_place(self) -> None:
        kind = "sandbox" if self.bar.place.sandbox else "production"
        self.widget.remove_class("vmsnix-on-production").remove_class("vmsnix-on-sandbox")
        self.widget.add_class(f"vmsnix-on-{kind}")
        if self.bar.who is None:
            self.run.place_changed()
            self._read()
        else:  # the place is the same; whose account it is, is known now
            self.run.account_known()

    def _on_end(self) -> None:
        self._ended += 1
        self._read()

    def _on_tab(self, _change: object = None) -> None:
        for title, pane in self._panes.items():
            pane.layout.display = "" if title == self.strip.value else "none"
        self._read()

    def _read(self) -> None:
        """Let the tab that is open read its tables, beside everything else."""
        tab = self.tabs.get(self.strip.value)
        if tab is not None:
            arguments = (self.bar.place, self._ended)
            threading.Thread(
                target=tab.refresh, args=arguments, name=f"read {tab.title}", daemon=True
            ).start()

    def _open_runbook(self, runbook: str, values: Mapping[str, object]) -> None:
        self.run.open(runbook, values)
        self.strip.value = RUN

    def _look_at(self, row: Mapping[str, Any]) -> None:
        self.run.look_at(row)
        self.strip.value = RUN
