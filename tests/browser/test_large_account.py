"""The console of an account with 520 AMIs: by keyboard alone, checked by axe, in an account that changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.lab import ROOT, SPEED, Opened, browse, open_console, serve
from tests.support import unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AMIS = 520
AXE = ROOT / ".cache" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
NOTICES = """
window.shownNotices = [];
window.Notification = class {
    static permission = "default";
    static async requestPermission() { return (Notification.permission = "granted"); }
    constructor(title, { body }) { window.shownNotices.push(`${title}: ${body}`); }
};
"""
"""A browser without a window has no notices; this records them."""


FOCUSED = """() => {
    const { type, tagName, textContent } = document.activeElement;
    return tagName === "BUTTON" ? `button: ${textContent.trim()}` : type || "";
}"""

pytestmark = pytest.mark.long(seconds=40)
"""Making the account or the page takes a minute of CPU time."""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    with (
        serve(folder, {}, speed=SPEED, command=["console"], amis=AMIS) as lab,
        browse(width=1440) as browser,
    ):
        browser.page.add_init_script(NOTICES)
        yield open_console(lab, browser)


@pytest.fixture(autouse=True)
def no_external_requests_and_no_errors(console: Opened) -> Iterator[None]:
    yield
    assert console.browser.external_requests() == []
    assert console.browser.errors == []


def newest(console: Opened, image: str) -> dict[str, Any]:
    """Return the newest AMI of an image in us-east-1."""
    tag = {"Name": "tag:vmsnix:image", "Values": [image]}
    found = console.lab.aws.client("ec2").describe_images(Owners=["self"], Filters=[tag])["Images"]
    return max(found, key=lambda ami: str(ami["CreationDate"]))


@pytest.fixture(scope="module")
def applied(console: Opened) -> str:
    """Promote an AMI by keyboard alone: choose, fill in, dry run, apply; return the AMI."""
    ami, keyboard, page = newest(console, "web")["ImageId"], console.page.keyboard, console.page

    def tab_to(words: str) -> None:
        for _ in range(80):
            keyboard.press("Tab")
            if page.evaluate(FOCUSED).startswith(words):
                return
        pytest.fail(f"The tab key does not reach {words!r}.")

    page.evaluate("() => document.activeElement.blur()")
    tab_to("select")
    keyboard.type("30")
    page.wait_for_selector(".vmsnix-plan b:has-text('promote-ami')")
    for text in (ami, "", "stable"):  # ami, image, channel; a list of suggestions may follow a field
        tab_to("text")
        keyboard.type(text)
    page.wait_for_selector(".vmsnix-plan code:has-text('stable')")
    console.shoot_wide("large-form")
    tab_to("button: Dry run on the sandbox")
    keyboard.press("Enter")
    page.wait_for_selector(".vmsnix-live >> visible=true")
    if page.locator("[data-notices]").is_visible():
        tab_to("button: Notify me")
        keyboard.press("Enter")
    console.wait_for_text("dry run: nothing was changed")
    console.shoot_wide("large-plan")
    tab_to("button: Apply exactly this plan")
    keyboard.press("Enter")
    page.wait_for_selector(".vmsnix-chip", state="detached")
    console.wait_for_text("promote-ami: done")
    console.shoot_wide("large-result")
    return str(ami)


@pytest.fixture(scope="module")
def audited(console: Opened, applied: str) -> None:
    """Audit the account."""
    console.pick("audit-inventory")
    console.button("Run on the sandbox").click()
    console.wait_for_text("audit-inventory: done")


def test_the_main_way_needs_only_the_keyboard(console: Opened, applied: str) -> None:
    ssm = console.lab.aws.client("ssm")
    assert ssm.get_parameter(Name="/vmsnix/web/stable")["Parameter"]["Value"] == applied


def test_the_browser_notifies_the_user_of_the_end_of_a_run(console: Opened, applied: str) -> None:
    notices = console.page.evaluate("() => window.shownNotices")
    assert any(text.startswith("vmsnix: promote-ami: done after ") for text in notices), notices


def test_a_field_shows_the_value_in_use_and_offers_those_used_before(console: Opened, applied: str) -> None:
    console.pick("promote-ami")
    placeholder = console.field("region").get_attribute("placeholder")
    assert placeholder == "us-east-1, from VMSNIX_REGION"
    options = console.page.locator(".vmsnix-form:visible .vmsnix-field-ami option")
    options.filter(has_text=f"{applied} (used before)").wait_for(state="attached")


def test_column_heads_sort_and_a_click_on_a_row_picks_a_run(console: Opened, audited: None) -> None:
    console.tab("Inventory")
    head = console.page.locator(".vmsnix-tab-inventory th", has_text="GiB")
    head.locator("button").click()
    console.page.wait_for_selector(".vmsnix-tab-inventory th[aria-sort=descending]:has-text('GiB')")
    head.locator("button").press("Enter")
    console.page.wait_for_selector(".vmsnix-tab-inventory th[aria-sort=ascending]:has-text('GiB')")
    console.shoot_wide("large-inventory")
    console.tab("Findings")
    colours = set()
    for word in ("medium", "low"):
        console.page.select_option(".vmsnix-tab-findings .vmsnix-grid-bar select", label=word)
        badge = console.page.locator(f".vmsnix-tab-findings .vmsnix-badge:text-is('{word}')").first
        colours.add(badge.evaluate("badge => getComputedStyle(badge).color"))
        console.shoot_wide(f"large-findings-{word}")
    assert len(colours) == 2
    console.tab("History")
    console.page.locator(".vmsnix-tab-history td", has_text="audit-inventory").first.wait_for()
    console.shoot_wide("large-history")
    console.page.locator(".vmsnix-tab-history tr", has_text="audit-inventory").locator("td").nth(4).click()
    console.wait_for_text("audit-inventory: done")
    console.page.locator(".vmsnix-report").wait_for()


def test_a_plan_to_retire_is_refused_when_an_ami_was_used_meanwhile(console: Opened, audited: None) -> None:
    ec2, ssm = console.lab.aws.client("ec2"), console.lab.aws.client("ssm")
    before = {ami["ImageId"] for ami in ec2.describe_images(Owners=["self"])["Images"]}
    console.pick("retire-amis")
    console.page.click(".vmsnix-form:visible .vmsnix-field-images button:has-text('Add')")
    console.type_in("images", "gc-fwd")
    console.button("Dry run on the sandbox").click()
    console.wait_for_text("dry run: nothing was changed")
    text = console.page.locator(".vmsnix-planned").inner_text()
    chosen = next(ami for ami in sorted(before) if f"{ami}" in text)
    console.shoot_wide("large-retire")
    ssm.put_parameter(Name="/web/launch-this", Value=chosen, Type="String")
    account = console.lab.environment["VMSNIX_ALLOWED_ACCOUNTS"]
    console.page.locator(".vmsnix-apply .vmsnix-confirm input").fill(f"retire-amis {account}")
    console.page.locator("button:enabled:has-text('Apply exactly this plan')").click()
    console.wait_for_text("retire-amis: failed")
    status = console.page.locator(".vmsnix-status").inner_text()
    console.shoot_wide("large-retire-refused")
    assert chosen in status
    assert {ami["ImageId"] for ami in ec2.describe_images(Owners=["self"])["Images"]} == before
    ssm.delete_parameter(Name="/web/launch-this")


FLEET = """
name = "nightly"
[[entry]]
name = "verify"
runbook = "verify-amis"
regions = ["us-east-1"]
"""


def test_a_fleet_is_refused_when_its_plan_was_changed_meanwhile(console: Opened, tmp_path: Path) -> None:
    plan = tmp_path / "fleet.toml"
    plan.write_text(FLEET)
    console.pick("fleet")
    console.type_in("plan", str(plan))
    console.button("Dry run on the sandbox").click()
    console.wait_for_text("dry run: nothing was changed")
    plan.write_text(FLEET.replace("us-east-1", "eu-central-1"))
    account = console.lab.environment["VMSNIX_ALLOWED_ACCOUNTS"]
    console.page.locator(".vmsnix-apply .vmsnix-confirm input").fill(f"fleet {account}")
    console.page.locator("button:enabled:has-text('Apply exactly this plan')").click()
    console.wait_for_text("fleet: failed")
    status = console.page.locator(".vmsnix-status").inner_text()
    console.shoot_wide("large-fleet-refused")
    assert "verify/eu-central-1" in status
    assert "verify-amis" not in list(console.runs()["runbook"])


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_no_serious_fault(console: Opened, audited: None, theme: str) -> None:
    if not AXE.is_file():
        unavailable("axe", f"{AXE} is missing; .ci/foreign axe installs it")
    page = console.page
    console.browser.set_theme(theme)
    page.evaluate(AXE.read_text())
    found: dict[str, list[str]] = {}
    for name in ("Run", "Channels", "History", "Timings", "Inventory", "Findings", "form", "result"):
        if name == "form":
            console.pick("publish-ami")
            for fold in page.locator(".vmsnix-form:visible .vmsnix-fold").all():
                fold.click()
        elif name == "result":
            console.tab("History")
            page.locator(".vmsnix-tab-history tbody button").first.click()
            page.locator(".vmsnix-status").wait_for()
        else:
            console.tab(name)
            page.wait_for_selector(".vmsnix-console [role=status]:text('Reading')", state="detached")
        violations = page.evaluate("async () => (await axe.run(document, { iframes: false })).violations")
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        found[name] = [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in serious
            for node in one["nodes"]
        ]
    assert {name: faults for name, faults in found.items() if faults} == {}, json.dumps(found, indent=1)
