"""The runbooks in JupyterLab, in a real browser: ``vmsnix lab --sandbox``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import require
from vmsnix_ops.disk.sample import make_sample_image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# The installed notebooks are copied to where they may be edited; this checkout's own must not be.
PROGRAM = """
import sys
from pathlib import Path
from vmsnix_ops.cli import main
from vmsnix_ops.runbooks import catalog
catalog.default_folder = lambda: Path(sys.argv[1])
options = ["--LabApp.expose_app_in_browser=True", "--ServerApp.allow_root=True"]
sys.exit(main(["lab", "--sandbox", "--no-browser", "--", *options]))
"""
READY = """() => {
    const app = window.jupyterapp;
    const notebook = app && app.shell.currentWidget;
    return Boolean(notebook && notebook.context && notebook.context.isReady && notebook.sessionContext.isReady
        && notebook.sessionContext.session.kernel.status === "idle"
        && app.commands.isEnabled("notebook:run-all-cells"));
}"""
BARS = ".jp-OutputArea .widget-hprogress .progress-bar, .jp-OutputArea .widget-hprogress .progress > div"


@dataclass
class Lab:
    """A JupyterLab that serves."""

    url: str
    token: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Read what it says to the end, or it stops when the pipe is full; find its address there."""
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.said.append(line)
                address = re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)", line)
                if address:
                    self.url, self.token = address.groups()
                    self.ready.set()

    def page(self, notebook: str) -> str:
        return f"{self.url}/lab/tree/{notebook}?token={self.token}"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab")
    image = make_sample_image(tmp_path / "image")
    folder = tmp_path / "_notebooks"
    folder.mkdir()
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        text = source.read_text(encoding="utf-8")
        if source.name == "20-publish-ami.ipynb":
            assert 'image: str = \\"ecs-node\\"' in text
            text = text.replace('image: str = \\"ecs-node\\"', f'image: str = \\"{image}\\"')
        (folder / source.name).write_text(text, encoding="utf-8")
    private = {
        name: str(tmp_path / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "IPYTHONDIR",
            "VMSNIX_STATE",
        )
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=ROOT,
        env={**os.environ, **private, "VMSNIX_STATE": str(tmp_path / "state")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = Lab("", "", process)
    rest = threading.Thread(target=served.listen)
    rest.start()
    try:
        assert served.ready.wait(120), "".join(served.said)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        rest.join()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    chromium = require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def test_publish_ami_runs_cell_by_cell_with_live_bars(lab: Lab, page: Any, tmp_path: Path) -> None:
    elsewhere: list[str] = []
    complaints: list[str] = []
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((lab.url, lab.url.replace("http", "ws"), "data:", "blob:"))
            else elsewhere.append(request.url)
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(lab.page("20-publish-ami.ipynb"))
    page.wait_for_function(READY)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")

    # Bars are there while steps run, and green when they are done.
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
    assert elsewhere == []
    assert complaints == []
    assert any("SANDBOX: these notebooks work against http://127.0.0.1:" in line for line in lab.said)
    assert not any("without encryption" in line for line in lab.said)
