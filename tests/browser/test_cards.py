"""Progress, errors, the stop button and the head of a notebook in JupyterLab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.browser.lab import browse, serve
from tests.runbooks.execution.test_cards import CELLS

if TYPE_CHECKING:
    from pathlib import Path

LONG = """
import time
with shown.step("verify"):
    pass
with shown.step("import", total=10) as step:
    step.advance(3)
    time.sleep(600)
"""
NAMES = ("first", "build", "upload", "threads", "error", "name")
AREAS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => ({
    bars: cell.node.querySelectorAll('.widget-hprogress').length,
    outputs: [...cell.node.querySelectorAll('.jp-OutputArea-output')]
        .filter(output => output.offsetHeight > 0).map(output => output.innerText),
    orange: cell.node.querySelectorAll('.progress-bar-warning').length,
}))"""
RAN = "n => window.jupyterapp.shell.currentWidget.content.widgets[n].model.executionCount !== null"


def run_cell(page: Any, number: int, *, ends: bool = True) -> None:
    page.evaluate(
        "n => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = n;"
        " window.jupyterapp.commands.execute('notebook:run-cell') }",
        number,
    )
    if ends:
        page.wait_for_function(RAN, arg=number)


def test_each_cell_shows_its_own_progress_and_its_error_as_a_card(tmp_path: Path) -> None:
    pytest.importorskip("jupyterlab")
    with serve(tmp_path, {}) as lab, browse(width=1440) as browser:
        page = browser.page
        sources = [*(CELLS[name] for name in NAMES), LONG]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, lab.folder / "state" / "notebooks" / "cards.ipynb")
        page.goto(lab.page("cards.ipynb", alone=True))
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )
        for number in range(len(NAMES)):
            run_cell(page, number)
        last = len(sources) - 1
        run_cell(page, last, ends=False)
        page.wait_for_function(f"() => ({AREAS})()[{last}].outputs.join().includes('3 of 10 items')")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:interrupt-kernel') }")
        page.wait_for_function(f"() => ({AREAS})()[{last}].outputs.join().includes('Stopped')")
        page.wait_for_function(RAN, arg=last)

        cells = dict(zip((*NAMES, "stop"), page.evaluate(AREAS), strict=True))
        bars = {"build": 1, "upload": 1, "threads": 3, "stop": 2}
        assert {name: cell["bars"] for name, cell in cells.items() if cell["bars"]} == bars
        (head, run) = cells["first"]["outputs"]
        assert "SANDBOX account " in head
        assert "region eu-west-1, http://127.0.0.1:" in head
        assert run.startswith("Run ")
        # The text of the error in the next output is hidden, and the details are folded.
        (card,) = cells["error"]["outputs"]
        assert card.startswith("Failed")
        assert "<script>alert(1)</script>" in card
        assert "UnauthorizedOperation" not in card
        (traceback,) = cells["name"]["outputs"]
        assert "Traceback" in traceback
        _, stopped = cells["stop"]["outputs"]
        assert "Done: verify. Not finished: import (3 of 10 items)." in stopped
        assert "Run this cell again to continue" in stopped
        assert cells["stop"]["orange"] == 1
        for theme in ("Dark", "Light"):
            browser.set_theme(theme)
            for width in (1440, 1024):
                page.set_viewport_size({"width": width, "height": 1800})
                page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 0)")
                page.screenshot(path=tmp_path / f"cards-{theme}-{width}.png")
        page.locator(".vmsnix-card summary").first.click()
        assert "UnauthorizedOperation" in page.locator(".vmsnix-card").first.inner_text()
        assert browser.external_requests() == []
        assert browser.errors == []
