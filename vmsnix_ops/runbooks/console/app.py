"""The console: the bar, the page of runs, and the tabs."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.runbooks.console.backends import BackendBar
from vmsnix_ops.runbooks.console.runner import RunPage
from vmsnix_ops.runbooks.console.tabs import ChannelsTab, FindingsTab, HistoryTab, InventoryTab, TimingsTab
from vmsnix_ops.runbooks.console.widgets import stack, styled
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.console.tabs import Tab

RUN = "Run"


class Console:
    """The console in JupyterLab; `open_console` describes the arguments."""

    def __init__(self, *, runbook: str = "", sandbox: bool = False) -> None:
        self._runs_ended = 0
        self.bar = BackendBar(self._on_backend)
        self.run = RunPage(self.bar, self._on_run_ended)
        classes = (ChannelsTab, HistoryTab, TimingsTab, InventoryTab, FindingsTab)
        self.tabs: dict[str, Tab] = {each.title: each(self._open_runbook, self._show_run) for each in classes}
        self.strip = styled(ipywidgets.ToggleButtons(options=[RUN, *self.tabs]), "vmsnix-tabs")
        self.strip.observe(self._on_tab, "value")
        self._panes = {RUN: self.run.widget} | {title: tab.widget for title, tab in self.tabs.items()}
        # The style sheet uses JupyterLab's variables, so that the console follows its theme.
        css = (files("vmsnix_ops.runbooks.console") / "console.css").read_text(encoding="utf-8")
        style = ipywidgets.HTML(fill("<style>{{ style | safe }}</style>", style=css))
        self.widget = stack("vmsnix-console", style, self.bar.widget, self.strip, *self._panes.values())
        if runbook:
            self.run.open(runbook, {})
        self._on_tab()
        self.bar.start(sandbox=sandbox)

    def _on_backend(self) -> None:
        names = {"aws": "vmsnix-on-production", "sandbox": "vmsnix-on-sandbox", "custom": "vmsnix-on-custom"}
        for name in names.values():
            self.widget.remove_class(name)
        self.widget.add_class(names[self.bar.backend.kind])
        if self.bar.caller is None:
            self.run.backend_changed()
            self._refresh_tab()
        else:  # the same backend; its account is known now
            self.run.account_changed()

    def _on_run_ended(self) -> None:
        self._runs_ended += 1
        self._refresh_tab()

    def _on_tab(self, _change: object = None) -> None:
        for title, pane in self._panes.items():
            pane.layout.display = "" if title == self.strip.value else "none"
        self._refresh_tab()

    def _refresh_tab(self) -> None:
        """Read the tables of the open tab, in a thread."""
        tab = self.tabs.get(self.strip.value)
        if tab is not None:
            arguments = (self.bar.backend, self._runs_ended)
            name = f"read {tab.title}"
            threading.Thread(target=tab.refresh, args=arguments, name=name, daemon=True).start()

    def _open_runbook(self, runbook: str, values: Mapping[str, object]) -> None:
        self.run.open(runbook, values)
        self.strip.value = RUN

    def _show_run(self, row: Mapping[str, Any]) -> None:
        self.run.show_run(row)
        self.strip.value = RUN
