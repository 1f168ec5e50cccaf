"""The runbooks in JupyterLab, in a real browser: ``vmsnix lab --sandbox``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.lab import Browser, Lab, browse, serve
from vmsnix_ops.disk.sample import make_sample_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BARS = ".jp-OutputArea .widget-hprogress .progress-bar, .jp-OutputArea .widget-hprogress .progress > div"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab")
    image = make_sample_image(tmp_path / "image")
    old, new = 'image: str = \\"ecs-node\\"', f'image: str = \\"{image}\\"'
    with serve(tmp_path, {"20-publish-ami.ipynb": {old: new}}) as served:
        yield served


@pytest.fixture
def browser() -> Iterator[Browser]:
    with browse() as opened:
        yield opened


def test_publish_ami_runs_cell_by_cell_with_live_bars(lab: Lab, browser: Browser, tmp_path: Path) -> None:
    page = browser.page
    page.goto(lab.page("20-publish-ami.ipynb"))
    browser.run_all_cells()

    # Bars are shown while steps run.
    page.wait_for_selector(BARS, state="attached")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-OutputArea')]"
        ".some(area => /ami-[0-9a-f]{17}/.test(area.innerText))"
    )
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.content.widgets"
        ".filter(cell => cell.model.type === 'code').every(cell => cell.model.executionCount !== null)"
    )
    page.screenshot(path=tmp_path / "publish-ami.png", full_page=True)
    shown = page.evaluate(
        "() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.toJSON())"
    )
    cells = json.loads(shown)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    text = json.dumps(outputs)
    assert re.search(r"ami-[0-9a-f]{17}", text)
    assert "application/vnd.jupyter.widget-view+json" in text
    assert browser.external_requests() == []
    assert browser.errors == []
    assert any("SANDBOX: these notebooks use http://127.0.0.1:" in line for line in lab.output)
    assert not any("without encryption" in line for line in lab.output)
