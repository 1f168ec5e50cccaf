"""The console in a real browser, on a sandbox. One JupyterLab, one page; the tests follow each other."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.lab import ROOT, Browser, Lab, browse, serve
from tests.faults.account import look
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEED = 600.0
SHOTS = Path(os.environ.get("VMSNIX_SCREENSHOTS") or ROOT / ".cache" / "screenshots")
OPEN_NOTEBOOK = """() => {
    const path = window.jupyterapp.shell.currentWidget?.context?.path || '';
    return path.startsWith('runs/') && path.endsWith('/notebook.ipynb');
}"""
FITS = """() => {
    const notebook = document.querySelector('.jp-WindowedPanel-outer');
    return notebook.scrollWidth <= notebook.clientWidth;
}"""
AMI = re.compile(r"ami-[0-9a-f]{17}")


@dataclass
class Opened:
    """The console, open in a browser."""

    lab: Lab
    browser: Browser

    @property
    def page(self) -> Any:
        return self.browser.page

    @property
    def archive(self) -> Path:
        return Path(self.lab.stage["VMSNIX_ARCHIVE"])

    def runs(self) -> Any:
        return Tables(self.lab.stage["VMSNIX_HISTORY"]).read("runs")

    def pick(self, runbook: str) -> None:
        self.tab("Run")
        self.browser.pick(runbook)
        if self.button("Back to the form").is_visible():
            self.button("Back to the form").click()
        self.page.wait_for_selector(".vmsnix-form")

    def field(self, name: str) -> Any:
        return self.page.locator(f".vmsnix-field-{name} input").first

    def type_in(self, name: str, text: str) -> None:
        self.field(name).fill(text)

    def button(self, text: str) -> Any:
        return self.page.locator(f".vmsnix-console button:visible:has-text('{text}')").first

    def tab(self, name: str) -> None:
        self.page.click(f".vmsnix-tabs button:has-text('{name}')")
        pane = ".vmsnix-run" if name == "Run" else f".vmsnix-tab-{name.lower()}"
        self.page.wait_for_selector(f"{pane} >> visible=true")

    def says(self, text: str) -> None:
        self.page.locator(".vmsnix-console").get_by_text(text).locator("visible=true").first.wait_for()

    def shoot(self, name: str) -> None:
        """Keep a picture of the console as it is now, in both themes."""
        for theme in ("Dark", "Light"):
            self.browser.set_theme(theme)
            self.page.evaluate("() => document.querySelector('.vmsnix-console').scrollIntoView()")
            assert self.page.evaluate(FITS)
            self.page.screenshot(path=SHOTS / f"console-{name}-{theme.lower()}.png")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    pytest.importorskip("jupyterlab")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with serve(tmp_path_factory.mktemp("lab"), {}, speed=SPEED) as lab, browse(height=800) as browser:
        browser.page.goto(lab.page("console.ipynb"))
        browser.run_all_cells()
        opened = Opened(lab, browser)
        opened.says("A rehearsal on this machine")
        browser.page.add_style_tag(content="#jupyterlab-splash { display: none }")  # when the theme changes
        yield opened


@pytest.fixture(scope="module")
def published(console: Opened) -> str:
    """Publish a sample image by a double click, and return the AMI that the page shows."""
    console.pick("publish-ami")
    console.page.wait_for_selector(".vmsnix-field-image .vmsnix-pick select", state="visible")
    console.page.select_option(".vmsnix-field-image .vmsnix-pick select", index=1)
    console.shoot("form")
    console.button("Run on the sandbox").dblclick()
    console.page.wait_for_selector(".vmsnix-steps [role=progressbar] >> visible=true")
    console.shoot("running")
    console.says("publish-ami: done")
    console.shoot("result")
    found = AMI.search(console.page.locator(".vmsnix-verdict").inner_text())
    assert found is not None
    return found[0]


def test_a_double_click_publishes_once_to_the_ami_id(console: Opened, published: str) -> None:
    account = look(console.lab.aws)
    assert list(account.amis) == [published]
    assert list(account.leftovers()) == []
    runs = console.runs()
    assert list(runs["ami_id"]) == [published]
    assert len(list(console.archive.iterdir())) == 1


def test_a_wrong_parameter_is_refused_in_the_form(console: Opened, published: str) -> None:
    console.pick("publish-ami")
    before = len(list(console.archive.iterdir()))
    console.type_in("prefix", "AKIAIOSFODNN7EXAMPLE")
    console.says("was given a secret")
    console.type_in("region", "us-esat-1")
    console.says("is not a region that is enabled here")
    console.page.wait_for_selector("button:disabled:has-text('Run on the sandbox')")
    console.page.locator(".vmsnix-field-prefix").scroll_into_view_if_needed()
    console.shoot("refused")
    console.button("Run on the sandbox").click(force=True)
    console.button("Defaults").click()
    console.page.wait_for_selector("button:enabled:has-text('Run on the sandbox')")
    assert len(list(console.archive.iterdir())) == before


def test_cancel_leaves_nothing_behind(console: Opened, published: str, tmp_path: Path) -> None:
    other = make_sample_image(tmp_path / "image", name="other", seed="other")
    before = look(console.lab.aws)
    # The import is under way in the account, and its bytes are in the bucket, when the button is pressed.
    console.lab.ask("clock", "POST", {"speed": 1})
    console.pick("publish-ami")
    console.type_in("image", str(other))
    console.says(str(other))
    console.button("Run on the sandbox").click()
    console.page.wait_for_selector(".vmsnix-step-running th:has-text('import')")
    during = look(console.lab.aws)
    assert during.objects
    assert during.running
    console.button("Cancel").dblclick()
    console.lab.ask("clock", "POST", {"speed": SPEED})
    console.says("publish-ami: interrupted")
    console.shoot("cancelled")
    after = look(console.lab.aws)
    assert after.running == []
    assert list(after.leftovers()) == []
    assert (after.amis, after.snapshots) == (before.amis, before.snapshots)
    runs = console.runs().sort_values("started_at")
    assert list(runs["status"]) == ["done", "interrupted"]
    tables = Tables(console.lab.stage["VMSNIX_HISTORY"])
    assert list(tables.read("amis")["ami_id"]) == [published]


def test_an_audit_runs_by_keyboard_alone(console: Opened, published: str) -> None:
    console.tab("Inventory")
    console.says("No audit has been recorded here yet.")
    console.button("Audit now").focus()
    console.page.keyboard.press("Enter")
    console.says("Audit the inventory")
    keyboard = console.page.keyboard
    console.page.locator(".vmsnix-pick-runbook select").focus()
    keyboard.press("Tab")  # the first field: the regions, where "all" stands
    keyboard.press("Control+A")
    keyboard.type("us-east-1")
    console.page.locator(".vmsnix-plan code", has_text="us-east-1").wait_for()
    for _ in range(60):
        keyboard.press("Tab")
        if console.page.evaluate("document.activeElement.textContent.startsWith('Run ')"):
            break
    keyboard.press("Enter")
    console.says("audit-inventory: done")
    console.tab("Inventory")
    console.says(published)
    console.shoot("inventory")
    console.tab("Findings")
    console.page.wait_for_selector(".vmsnix-table .vmsnix-is-badge >> visible=true")
    console.shoot("findings")


def test_the_history_is_searched_and_repeated(console: Opened, published: str) -> None:
    console.tab("History")
    console.says(published)
    search = console.page.locator(".vmsnix-tab-history .vmsnix-search input")
    search.fill("interrupted")
    console.says("1 of 3")
    console.shoot("history")
    search.fill(published)
    console.page.wait_for_selector(f".vmsnix-tab-history td:has-text('{published}')")
    console.button("Fill in its form").click()
    console.says("Publish an AMI")
    assert console.field("image").input_value().endswith("sample-image")


def test_the_timings_show_pictures_and_tables(console: Opened, published: str) -> None:
    console.tab("Timings")
    console.says("Where the time goes")
    assert console.page.locator(".vmsnix-part svg").count() == 2
    console.says("What is usual")
    console.shoot("timings")


def test_the_evidence_opens_in_jupyterlab(console: Opened, published: str) -> None:
    console.tab("History")
    console.button("Look at it").click()
    console.page.locator(".vmsnix-report").wait_for()
    console.page.click(".vmsnix-files a:has-text('Executed notebook')")
    console.page.wait_for_function(OPEN_NOTEBOOK)


def test_nothing_was_asked_of_anybody_else_and_nothing_went_wrong(console: Opened, published: str) -> None:
    assert len(console.browser.requests) > 50
    assert console.browser.elsewhere() == []
    assert console.browser.complaints == []
