"""The runbooks in JupyterLab, in a real browser: ``vmsnix lab --sandbox``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.lab import ROOT, Browser, Lab, browse, serve, started
from tests.installation import Installed, installed
from tests.support import wait_until
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.runbooks.evidence import cells, chain

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["installed"]
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
    assert_run_is_recorded(lab.folder)
    assert browser.external_requests() == []
    assert browser.errors == []
    assert any("SANDBOX: these notebooks use http://127.0.0.1:" in line for line in lab.output)
    assert not any("without encryption" in line for line in lab.output)


def assert_run_is_recorded(folder: Path) -> None:
    """Check that the cells are a finished run with a consistent journal, which has the IDs of the cells."""

    def finished() -> Path | None:
        found = [path.parent for path in folder.rglob("*-publish-ami-*/result.json")]
        return next((one for one in found if json.loads((one / "result.json").read_text())["files"]), None)

    run = wait_until(finished, "the end of the run")
    values = json.loads((run / "result.json").read_text())
    assert (values["status"], values["interactive"], values["modified"]) == ("done", True, False)
    assert values["problems"] == []
    entries = chain.read(run)
    assert chain.first_defect(entries) is None
    assert [one.note for one in cells.executions(entries) if one.note] == []
    assert [entry["id"] for entry in entries if entry["kind"] == "cell"][-1] == "history"


WITH_OUTPUT = (
    "() => { const notebook = window.jupyterapp.shell.currentWidget;"
    "return notebook.sessionContext.session.kernel.status === 'idle'"
    " && notebook.content.model.toJSON().cells.some(cell => cell.outputs && cell.outputs.length) }"
)
NAMES = ("console.ipynb", "35-verify-amis.ipynb")


def run_and_save(lab: Lab, browser: Browser, name: str) -> None:
    browser.page.goto(lab.page(name, alone=True))
    browser.run_all_cells()
    browser.page.wait_for_function(WITH_OUTPUT)
    browser.save()


def test_the_console_and_edited_copies_do_not_change_the_notebooks_of_the_package(
    lab: Lab, browser: Browser
) -> None:
    package, copies = lab.folder / "_notebooks", lab.folder / "state" / "notebooks"
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    for name in NAMES:
        run_and_save(lab, browser, name)
        cells = json.loads((copies / name).read_text())["cells"]
        assert any(cell.get("outputs") for cell in cells)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


def test_shared_notebooks_have_a_banner_and_are_saved_without_outputs(
    tmp_path: Path,
) -> None:
    pytest.importorskip("jupyterlab")
    with serve(tmp_path, {}, command=("lab", "--edit")) as lab, browse() as browser:
        page = browser.page
        shared = tmp_path / "notebooks"
        before = {name: (shared / name).read_text(encoding="utf-8") for name in NAMES}
        for name in NAMES:
            run_and_save(lab, browser, name)
            assert (shared / name).read_text(encoding="utf-8") == before[name]
        page.wait_for_function(WITH_OUTPUT)  # the open notebook keeps them
        banner = page.evaluate("() => getComputedStyle(document.body, '::after').content")
        assert banner == '"Shared originals in git, saved without outputs"'
        for width in (1440, 1024):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=tmp_path / f"shared-{width}.png")
        page.evaluate(
            "() => { window.jupyterapp.shell.currentWidget.content.model.sharedModel.getCell(0)"
            ".setSource('# Changed') }"
        )
        browser.save()
        notebook = json.loads((shared / NAMES[-1]).read_text())
        assert notebook["cells"][0]["source"] == ["# Changed"]
    assert any("SHARED ORIGINALS" in line for line in lab.output)
    assert browser.errors == []


@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_plain_jupyterlab_runs_the_notebooks_and_the_first_call_checks_the_types(
    installed: Installed, tmp_path: Path, how: str
) -> None:
    pytest.importorskip("jupyterlab")
    python = installed.python if how == "wheel" else Path(sys.executable)
    (source,) = (installed.python.parent.parent if how == "wheel" else ROOT).rglob("50-import-timings.ipynb")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    shutil.copy(source, notebooks)
    options = [
        "--no-browser",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        "--ServerApp.allow_root=True",
    ]
    options += ["--LabApp.expose_app_in_browser=True", str(notebooks)]
    environment = {**installed.environment, "HOME": str(tmp_path), "VMSNIX_STATE": str(tmp_path / "state")}
    with (
        started([str(python), "-m", "jupyterlab", *options], tmp_path, environment) as lab,
        browse() as browser,
    ):
        page = browser.page
        page.goto(lab.page(source.name, alone=True))
        browser.run_all_cells()
        page.wait_for_function(WITH_OUTPUT)
        cells = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells")
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert [output for output in outputs if output["output_type"] == "error"] == []
        page.evaluate(
            "() => { const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;"
            "const cell = cells.find(one => one.source.includes('region: str'));"
            """cell.setSource(cell.source.replace('region: str = ""', 'region: str = 5')) }"""
        )
        browser.run_all_cells()
        page.locator(".jp-OutputArea", has_text="region: 5 is not text").first.wait_for()
