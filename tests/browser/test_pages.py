"""The page of an audit with 10,000 AMIs and 20,000 snapshots, in Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import ROOT, Browser, browse
from tests.hostile import HOSTILE
from tests.large_account import REGIONS, populate
from tests.pages import SCRIPT
from tests.support import unavailable
from vmsnix_ops import audit
from vmsnix_ops.audit.reports import AuditResult, write
from vmsnix_ops.runbooks.evidence import index
from vmsnix_ops.runbooks.evidence.runs import Archive
from vmsnix_ops.sandbox import sandbox

AXE = ROOT / ".cache" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = """() => axe.run().then(found => found.violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => [one.id, ...one.nodes.map(node => node.html)]))"""
WORDS = [word for word in HOSTILE if word != "\ud800"]  # no service takes half a character
COUNT = 2500  # AMIs in each of four regions, and as many snapshots without an AMI
TITLES = ("Findings", "AMIs", "Snapshots")


class Table:
    """A table of the page, by its title."""

    def __init__(self, page: Any, title: str) -> None:
        self.page = page
        self.section = page.locator("section", has=page.locator(f"h2:text-is('{title}')"))
        self.rows = self.section.locator(".rows").first
        self.drawn = self.rows.locator("tbody tr:not(.space)")
        self.status = self.section.locator("[role=status]").first

    def choose(self, label: str, option: str) -> None:
        choice = self.section.locator("label", has_text=label).first.locator("select")
        choice.select_option(label=choice.locator("option", has_text=option).first.inner_text())

    def search(self, words: str, expected: str) -> None:
        self.section.locator("input[type=search]").first.fill(words)
        self.page.wait_for_function(
            "([status, text]) => status.textContent === text", arg=[self.status.element_handle(), expected]
        )

    def column(self, place: int) -> list[str]:
        return self.drawn.locator(f"td:nth-child({place}) .main").all_inner_texts()


pytestmark = pytest.mark.long(seconds=60)
"""Making the account or the page takes a minute of CPU time."""


@pytest.fixture(scope="module")
def large_audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    """An audit of a sandbox account, and its page."""
    folder = tmp_path_factory.mktemp("audit")
    orphans = [*WORDS, *(f"orphan-{number}" for number in range(COUNT - len(WORDS)))]
    with sandbox() as aws, pytest.MonkeyPatch.context() as patch:
        for name, value in {**aws.environment, "VMSNIX_STATE": str(folder)}.items():
            patch.setenv(name, value)
        patch.setenv("VMSNIX_PROGRESS", "silent")
        populate(aws, regions=REGIONS[:4], amis=COUNT, referenced_one_in=12, orphans=orphans)
        result = audit.check(regions=list(REGIONS[:4]))
    files = write(result, folder)
    return result, files["audit.html"]


def opened(browser: Browser, path: Path) -> Any:
    browser.page.goto(path.as_uri())
    browser.page.wait_for_selector(".rows tbody tr:not(.space)")
    return browser.page


def test_all_rows_are_there_and_only_those_in_view_are_drawn(
    large_audit: tuple[AuditResult, Path],
) -> None:
    result, path = large_audit
    with browse() as browser:
        page = opened(browser, path)
        counts = (len(result.findings), 4 * COUNT, 8 * COUNT)
        for title, count in zip(TITLES, counts, strict=True):
            assert Table(page, title).status.inner_text() == f"{count:,} rows"
        amis = Table(page, "AMIs")
        assert page.locator("tr").count() < 400
        amis.rows.evaluate("rows => rows.scrollTo(0, rows.scrollHeight)")
        last = amis.rows.locator(f"tr[aria-rowindex='{4 * COUNT + 1}']")
        last.wait_for()
        assert last.locator(".main").first.inner_text() == result.inventory.amis["resource_id"].iloc[-1]
        assert amis.drawn.count() < 100
        assert browser.external_requests() == [path.as_uri()]
        assert browser.errors == []


def test_rows_are_searched_filtered_and_grouped(large_audit: tuple[AuditResult, Path]) -> None:
    result, path = large_audit
    frame = result.inventory.snapshots
    with browse() as browser:
        page = opened(browser, path)
        snapshots = Table(page, "Snapshots")
        wanted = frame["resource_id"].iloc[12345]
        snapshots.search(wanted.upper(), f"1 of {8 * COUNT:,} rows")
        assert snapshots.column(1) == [wanted]
        both = frame["region"].eq(REGIONS[1]) & frame["name"].str.contains("orphan-7", regex=False)
        snapshots.search(f"orphan-7 {REGIONS[1]}", f"{int(both.sum()):,} of {8 * COUNT:,} rows")
        snapshots.search("", f"{8 * COUNT:,} rows")
        snapshots.choose("region", REGIONS[2])
        snapshots.choose("image", "ecs-node")
        chosen = frame["region"].eq(REGIONS[2]) & frame["image"].eq("ecs-node")
        assert snapshots.status.inner_text() == f"{int(chosen.sum()):,} of {8 * COUNT:,} rows"
        assert set(snapshots.column(2)) == {"ecs-node"}
        snapshots.choose("image", "all")
        snapshots.choose("group by", "image")
        groups = frame[frame["region"] == REGIONS[2]]["image"].fillna("none").value_counts()
        texts = snapshots.drawn.all_inner_texts()
        found = {
            re.split(r"\s", text)[0]: int(re.findall(r"([\d,]+) rows", text)[0].replace(",", ""))
            for text in texts
        }
        assert found == groups.to_dict()

        findings = Table(page, "Findings")
        assert findings.drawn.count() == result.findings["rule"].nunique()
        page.set_viewport_size({"width": 1024, "height": 1000})
        names = findings.drawn.locator("button.group")
        assert names.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
        assert names.evaluate_all("all => new Set(all.map(one => one.offsetWidth)).size") == 1
        first = findings.drawn.first.locator("button.group")
        first.focus()
        page.keyboard.press("Enter")
        assert findings.drawn.nth(1).locator("td").count() == 6  # without that of the groups
        assert page.evaluate("document.activeElement.ariaExpanded") == "true"
        assert browser.errors == []


def test_columns_are_sorted_with_the_keyboard(large_audit: tuple[AuditResult, Path]) -> None:
    result, path = large_audit
    frame = result.inventory.amis
    with browse() as browser:
        page = opened(browser, path)
        amis = Table(page, "AMIs")
        head = amis.rows.locator("th", has_text="USD/month")
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").focus()
        for direction in ("ascending", "descending"):
            page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == direction
            cost = frame["monthly_usd"].min() if direction == "ascending" else frame["monthly_usd"].max()
            assert amis.column(5)[0] == f"{cost:,.2f}"
        assert page.evaluate("document.activeElement.textContent") == "USD/month"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_ids_fixes_and_rows_are_copied(large_audit: tuple[AuditResult, Path]) -> None:
    result, path = large_audit
    with browse() as browser:
        browser.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = opened(browser, path)
        amis = Table(page, "AMIs")
        amis.drawn.first.locator("button.copy").click()
        page.wait_for_selector("[data-copied]")
        oldest = result.inventory.amis.iloc[0]
        assert page.evaluate("navigator.clipboard.readText()") == oldest["resource_id"]
        amis.drawn.first.locator("button.main").press("Enter")
        details = page.locator("dialog")
        assert oldest["name"] in details.inner_text()
        page.keyboard.press("Escape")
        details.wait_for(state="detached")
        snapshots = Table(page, "Snapshots")
        snapshots.search(
            "evil.example", f"{4 * sum('evil.example' in word for word in WORDS):,} of {8 * COUNT:,} rows"
        )
        snapshots.section.locator("button", has_text="copy rows").click()
        page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('evil.example'))")
        head, *lines = page.evaluate("navigator.clipboard.readText()").split("\n")
        assert head.split("\t")[0] == "ID"
        assert {line.count("\t") for line in lines} == {head.count("\t")}
        assert not [cell for line in lines for cell in line.split("\t") if cell.startswith("=")]


def test_hostile_names_are_text(large_audit: tuple[AuditResult, Path]) -> None:
    _, path = large_audit
    with browse() as browser:
        dialogs: list[str] = []
        browser.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page = opened(browser, path)
        snapshots = Table(page, "Snapshots")
        for word in ("<img src=x onerror=alert(1)>", "</td></tr></table><script>alert(1)</script>"):
            (term,) = [part for part in word.lower().split(" ") if "alert" in part]
            snapshots.search("", f"{8 * COUNT:,} rows")
            snapshots.search(term, f"{4 * sum(term in one.lower() for one in WORDS):,} of {8 * COUNT:,} rows")
            assert word in snapshots.drawn.locator(".below").all_inner_texts()
            snapshots.drawn.first.locator("button.main").click()
            assert page.locator("dialog img, dialog script, .rows img, .rows script").count() == 0
            page.keyboard.press("Escape")
        assert dialogs == []
        assert browser.errors == []


def test_the_page_works_without_javascript(large_audit: tuple[AuditResult, Path]) -> None:
    result, path = large_audit
    with browse() as browser:
        page = browser.page.context.browser.new_page(java_script_enabled=False)
        page.goto(path.as_uri())
        plain = page.locator("section", has=page.locator("#findings")).locator("noscript")
        assert f"the first 500 of {len(result.findings):,} rows" in plain.inner_text()
        assert plain.locator("tbody tr").count() == 500
        assert result.findings["resource_id"].iloc[0] in plain.locator("tbody tr").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(large_audit: tuple[AuditResult, Path], scheme: Any) -> None:
    _, path = large_audit
    if not AXE.is_file():
        unavailable("axe", f"{AXE} does not exist; .ci/foreign axe installs it")
    with browse(width=1024) as browser:
        browser.page.emulate_media(color_scheme=scheme)
        page = opened(browser, path)
        page.evaluate(AXE.read_text())
        assert page.evaluate(SERIOUS) == []
        Table(page, "AMIs").drawn.first.locator("button.main").click()
        assert page.evaluate(SERIOUS) == []


def test_the_page_of_all_runs_links_the_reports(tmp_path: Path) -> None:
    rows = [{"runbook": "audit-inventory", "status": status} for status in ("done", "failed", "partial")]
    for number in range(COUNT):
        run_id = f"20261130T{number:06}000Z-audit-inventory-28aa5e"
        (tmp_path / run_id).mkdir()
        report = tmp_path / run_id / "report.html"
        entry = {
            **rows[number % 3],
            "run_id": run_id,
            "started_at": "2026-11-30T10:00",
            "report": str(report),
        }
        (tmp_path / run_id / "result.json").write_text(json.dumps(entry))
    report.write_text("<!doctype html><title>The report</title>")
    page_of_runs = index.rebuild(Archive(str(tmp_path), tmp_path), most=None)
    with browse() as browser:
        page = opened(browser, Path(page_of_runs))
        assert page.locator("[role=status]").first.inner_text() == f"{COUNT:,} rows"
        page.locator("input[type=search]").first.fill(f"{COUNT - 1:06}000Z")
        page.locator("[role=status]", has_text=f"1 of {COUNT:,} rows").wait_for()
        page.locator(".rows a").click()
        page.wait_for_load_state()
        assert page.title() == "The report"
        page.go_back()
        assert browser.errors == []
        if not AXE.is_file():
            unavailable("axe", f"{AXE} does not exist; .ci/foreign axe installs it")
        page.evaluate(AXE.read_text())
        assert page.evaluate(SERIOUS) == []


def test_a_sentence_in_a_table_of_a_report_has_a_readable_width() -> None:
    cells = "".join(f"<td>{'ami-0aef249da1c95443b' * 2}</td>" for _ in range(6))
    row = f"<tr>{cells}<td>{'Its disk is not encrypted. ' * 8}</td></tr>"
    heads = "<th>id</th>" * 6 + "<th>reason</th>"
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{row * 2}</tbody></table>"
    with browse(width=1024) as browser:
        style = (ROOT / "vmsnix_ops" / "page.css").read_text()
        output = f"<div class='output'><div class='table'>{table}</div></div>"
        browser.page.set_content(f"<style>{style}</style>{output}<script>{SCRIPT}</script>")
        width = browser.page.locator("th").last.evaluate("cell => cell.offsetWidth")
        assert width >= 300, width
