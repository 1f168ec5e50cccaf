"""The console of ``vmsnix console``, in a real browser, on a sandbox.

All tests use one JupyterLab and one page, because a start takes as long as three tests. Fixtures do once what
several tests check, so each test also runs alone and in any order.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest

from tests.browser.lab import SPEED, Opened, browse, open_console, serve
from tests.faults.account import Account, read_account
from tests.runbooks.shelf import notebook
from tests.support import wait_until
from vmsnix_ops.cli.lab import CONSOLE_PAGE
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN_NOTEBOOK = """() => {
    const path = window.jupyterapp?.shell.currentWidget?.context?.path || '';
    return path.startsWith('runs/') && path.endsWith('/notebook.ipynb');
}"""
CHROME = (
    "#jp-top-panel, #jp-menu-panel, .jp-SideBar, #jp-bottom-panel, .jp-NotebookPanel-toolbar, .jp-InputArea"
)
AMI = re.compile(r"ami-[0-9a-f]{17}")
COUNT = """\
import time
for number in range(lines):
    print(f"line {number}", flush=True)
    time.sleep(0.1)
"""
AS_ON_AWS = """
import os
del os.environ['VMSNIX_SANDBOX']
from vmsnix_ops import endpoints
endpoints.endpoint_kind = lambda *_: "aws"
"""


class NoRedirect(HTTPRedirectHandler):
    """Answers a redirection with its status."""

    def redirect_request(self, *_arguments: object) -> None:
        return None


def serve_with(patch: pytest.MonkeyPatch, own: Path, folder: Path) -> Any:
    """Serve the notebooks, and a folder of own runbooks."""
    patch.setenv("VMSNIX_RUNBOOKS", str(own))
    return serve(folder, {}, speed=SPEED, command=["console"])


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    pytest.importorskip("jupyterlab")
    own = tmp_path_factory.mktemp("own")
    (own / "80-count.ipynb").write_text(json.dumps(notebook(COUNT, parameters="lines: int = 150")))
    with (
        pytest.MonkeyPatch.context() as patch,
        serve_with(patch, own, tmp_path_factory.mktemp("lab")) as lab,
        browse(height=800) as browser,
    ):
        yield open_console(lab, browser)


@pytest.fixture(autouse=True)
def no_external_requests_and_no_errors(console: Opened) -> Iterator[None]:
    yield
    assert len(console.browser.requests) > 50
    assert console.browser.external_requests() == []
    assert console.browser.errors == []


class Published(NamedTuple):
    """A published AMI, and account, history and archive right afterwards."""

    ami: str
    account: Account
    amis: list[str]
    archived: int


@pytest.fixture(scope="module")
def published(console: Opened) -> Published:
    """Publish a sample image with a double click, and read the AMI from the page."""
    console.pick("publish-ami")
    console.page.wait_for_selector(".vmsnix-field-image .vmsnix-pick select", state="visible")
    console.page.select_option(".vmsnix-field-image .vmsnix-pick select", index=1)
    console.shoot("form")
    console.button("Run on the sandbox").dblclick()
    console.page.wait_for_selector(".vmsnix-steps [role=progressbar] >> visible=true")
    console.shoot("running")
    console.wait_for_text("publish-ami: done")
    console.shoot("result")
    found = AMI.search(console.page.locator(".vmsnix-status").inner_text())
    assert found is not None
    archived = len(list(console.archive.glob("*/")))
    return Published(found[0], read_account(console.lab.aws), list(console.runs()["ami_id"]), archived)


class Cancelled(NamedTuple):
    """The account before, during and after a run that was cancelled."""

    before: Account
    during: Account
    after: Account


@pytest.fixture(scope="module")
def cancelled(console: Opened, published: Published, tmp_path_factory: pytest.TempPathFactory) -> Cancelled:
    """Start to publish another image, and cancel it."""
    other = make_sample_image(tmp_path_factory.mktemp("other"), name="other", seed="other")
    before = read_account(console.lab.aws)
    # A slow clock: the import is still running when the button is pressed.
    console.lab.send("clock", "POST", {"speed": 1})
    console.pick("publish-ami")
    console.type_in("image", str(other))
    console.wait_for_text(str(other))
    console.button("Run on the sandbox").click()
    console.page.wait_for_selector(".vmsnix-step-running th:has-text('import')")
    wait_until(lambda: read_account(console.lab.aws).running)  # the step starts before its call is sent
    during = read_account(console.lab.aws)
    console.button("Cancel").dblclick()
    console.lab.send("clock", "POST", {"speed": SPEED})
    console.wait_for_text("publish-ami: cancelled")
    console.shoot("cancelled")
    return Cancelled(before, during, read_account(console.lab.aws))


@pytest.fixture(scope="module")
def audited(console: Opened, published: Published) -> None:
    """Run an audit with the keyboard only."""
    console.tab("Inventory")
    console.wait_for_text("No audits yet.")
    console.button("Audit now").focus()
    console.page.keyboard.press("Enter")
    console.wait_for_text("Audit the inventory")
    keyboard = console.page.keyboard
    console.page.locator(".vmsnix-pick-runbook select").focus()
    keyboard.press("Tab")  # the first field: the regions, with the value "all"
    keyboard.press("Control+A")
    keyboard.type("us-east-1")
    console.page.locator(".vmsnix-plan code", has_text="us-east-1").wait_for()
    for _ in range(60):
        keyboard.press("Tab")
        if console.page.evaluate("document.activeElement.textContent.startsWith('Run ')"):
            break
    keyboard.press("Enter")
    console.wait_for_text("audit-inventory: done")
    console.page.locator(".vmsnix-files a:has-text('Audit page')").wait_for()
    console.page.locator("button:has-text('Next: retire (dry run)')").wait_for()
    assert re.search(r"findings\s+(none|\w+: \d+)", console.page.locator(".vmsnix-status").inner_text())
    console.shoot_wide("audited")


@pytest.fixture
def production(console: Opened) -> Iterator[Opened]:
    """The console as in production: it has credentials and no sandbox, but its calls reach the sandbox."""
    source = console.lab.folder / "state" / "notebooks" / "console.ipynb"
    notebook = json.loads(source.read_text())
    notebook["cells"][-1]["source"] = AS_ON_AWS + "".join(notebook["cells"][-1]["source"])
    source.with_name("production.ipynb").write_text(json.dumps(notebook))
    browser = console.browser.another()
    opened = Opened(console.lab, browser)
    opened.open("production.ipynb", alone=True)
    yield opened
    assert browser.external_requests() == []
    assert browser.errors == []
    browser.page.close()


def test_the_console_opens_by_itself_without_the_rest_of_jupyterlab(console: Opened) -> None:
    assert console.page.title() == "vmsnix console"
    assert console.page.locator(".vmsnix-opening").count() == 0
    assert console.page.locator(f":is({CHROME}) >> visible=true").count() == 0
    console.page.locator(".vmsnix-tabs button").first.focus()
    for key in "xddab":  # shortcuts of JupyterLab that would change the notebook
        console.page.keyboard.press(key)
    assert console.page.locator(".vmsnix-console").is_visible()
    assert not console.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.dirty")


@pytest.mark.parametrize(
    ("token", "host", "expected"),
    [(True, "", 200), (False, "", 302), (True, "example.org", 403), (True, "127.0.0.1.example.org:80", 403)],
)
def test_the_page_needs_the_token_and_a_local_host_name(
    console: Opened, token: bool, host: str, expected: int
) -> None:
    for address in (CONSOLE_PAGE, "/files/console.ipynb", "/api/sessions"):
        headers = {"Authorization": f"token {console.lab.token}"} if token else {}
        sent = Request(console.lab.url + address, headers=headers | ({"Host": host} if host else {}))
        try:
            with build_opener(NoRedirect).open(sent, timeout=60) as answer:
                status = answer.status
        except HTTPError as error:
            status = error.code
        without_login = 403 if expected == 302 and address.startswith("/api/") else expected  # 302: the login
        assert status == without_login, address


def test_only_this_machine_can_connect(console: Opened) -> None:
    port = f":{int(console.lab.url.rpartition(':')[2]):04X}"
    tables = (Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table]
    listening = {fields[1] for fields in sockets if fields[3] == "0A" and fields[1].endswith(port)}
    assert listening == {f"0100007F{port}"}


def test_a_double_click_publishes_once_to_the_ami_id(published: Published) -> None:
    assert list(published.account.amis) == [published.ami]
    assert list(published.account.problems()) == []
    assert published.amis == [published.ami]
    assert published.archived == 1


def test_an_invalid_parameter_is_refused_in_the_form(console: Opened, published: Published) -> None:
    console.pick("publish-ami")
    before = len(list(console.archive.glob("*/")))
    console.type_in("prefix", "AKIAIOSFODNN7EXAMPLE")
    console.wait_for_text("contains a secret")
    console.type_in("region", "us-esat-1")
    console.wait_for_text("is not an AWS region")
    console.page.wait_for_selector("button:disabled:has-text('Run on the sandbox')")
    console.page.locator(".vmsnix-field-prefix").scroll_into_view_if_needed()
    console.shoot("refused")
    console.button("Run on the sandbox").click(force=True)
    console.button("Defaults").click()
    console.page.wait_for_selector("button:enabled:has-text('Run on the sandbox')")
    assert len(list(console.archive.glob("*/"))) == before


def test_cancel_leaves_nothing_behind(console: Opened, published: Published, cancelled: Cancelled) -> None:
    before, during, after = cancelled
    assert during.objects
    assert during.running
    assert after.running == []
    assert (after.amis, after.snapshots, after.objects, after.uploads) == (
        before.amis,
        before.snapshots,
        (),
        (),
    )
    runs = console.runs()
    assert list(runs["status"]).count("cancelled") == 1
    tables = Tables(console.lab.environment["VMSNIX_HISTORY"])
    assert list(tables.read("amis")["ami_id"]) == [published.ami]


def test_an_audit_shows_inventory_and_findings(console: Opened, published: Published, audited: None) -> None:
    console.tab("Inventory")
    console.wait_for_text(published.ami)
    console.shoot("inventory")
    console.tab("Findings")
    console.page.wait_for_selector(".vmsnix-table .vmsnix-is-badge >> visible=true")
    console.shoot("findings")


def test_the_history_can_be_searched_and_a_run_repeated(
    console: Opened, published: Published, cancelled: Cancelled
) -> None:
    console.tab("History")
    console.wait_for_text(published.ami)
    search = console.page.locator(".vmsnix-tab-history .vmsnix-search input")
    search.fill("cancelled")
    console.wait_for_text(f"1 of {len(console.runs())}")
    console.shoot("history")
    search.fill(published.ami)
    console.page.wait_for_selector(f".vmsnix-tab-history td:has-text('{published.ami}')")
    console.page.locator(f".vmsnix-tab-history td:has-text('{published.ami}')").first.click()
    console.wait_for_text("publish-ami: done")
    console.button("Fill in its form").click()
    console.wait_for_text("Publish an AMI")
    assert console.field("image").input_value().endswith("sample-image")


def test_a_promotion_leads_to_the_channels_whose_rows_open_forms(
    console: Opened, published: Published
) -> None:
    console.pick("promote-ami")
    console.type_in("ami", published.ami)
    console.type_in("channel", "candidate")
    console.page.locator(".vmsnix-field-dry_run input").uncheck()
    console.button("Run on the sandbox").click()
    console.wait_for_text("promote-ami: done")
    console.wait_for_text("AMI in us-east-1")
    assert "AWS console" not in console.page.locator(".vmsnix-status").inner_text()
    console.page.locator("button:has-text('Next: verify')").wait_for()
    console.shoot_wide("promoted")
    console.button("Next: promote").click()
    console.page.wait_for_selector(".vmsnix-plan >> text=stable")
    assert console.field("ami").input_value() == published.ami

    ssm = console.lab.aws.client("ssm")
    value = {"Value": published.ami, "Type": "String", "DataType": "aws:ec2:image"}
    ssm.put_parameter(Name="/vmsnix/other-image/stable", **value)
    row = {"run_id": "r", "how": "promote", "ami_id": published.ami, "region": "eu-west-1", "image": "other"}
    more = {
        "promoted_at": datetime.now(UTC),
        "channel": "stable",
        "channel_parameter": "/vmsnix/other/stable",
    }
    endpoint = {"endpoint": "sandbox"}
    Tables(console.lab.environment["VMSNIX_HISTORY"]).append("promotions", [row | more | endpoint])
    denied = {"op": "ssm:GetParametersByPath", "do": "error", "code": "AccessDeniedException", "http": 403}
    console.lab.send("faults", "POST", {**denied, "where": {"region": "eu-west-1"}})
    console.tab("Channels")
    rows = console.page.locator(".vmsnix-channel:visible")
    rows.filter(has_text="unknown").filter(has_text="eu-west-1").wait_for()
    candidate = rows.filter(has_text="candidate")
    assert published.ami in candidate.inner_text()
    assert "drift: none" in candidate.inner_text()
    assert rows.count() == 3
    assert rows.first.locator("button").count() == 4
    console.shoot_wide("channels")
    candidate.locator("button", has_text="smoke-test").focus()
    console.page.keyboard.press("Enter")
    console.wait_for_text("Smoke-test an AMI")
    assert (console.field("ami").input_value(), console.field("region").input_value()) == (
        published.ami,
        "us-east-1",
    )
    console.tab("Channels")
    console.page.locator(".vmsnix-tab-channels .vmsnix-search input").fill("other-image")
    rows.filter(has_text="candidate").wait_for(state="detached")
    console.button("roll back").click()
    console.page.wait_for_selector(".vmsnix-plan >> text=other-image")
    assert console.field("image").input_value() == "other-image"
    console.lab.send("faults", "DELETE")
    for name in ("sample/candidate", "other-image/stable"):  # so that the AMI can be retired
        ssm.delete_parameter(Name=f"/vmsnix/{name}")


def test_the_timings_show_pictures_and_tables(console: Opened, published: Published) -> None:
    console.tab("Timings")
    console.wait_for_text("Time per step")
    assert console.page.locator(".vmsnix-part svg").count() == 2
    console.wait_for_text("Usual durations")
    console.shoot("timings")


def test_the_log_shows_its_end_unless_the_user_scrolled_up(console: Opened) -> None:
    console.pick("count")
    console.button("Run on the sandbox").click()
    newest = "() => document.querySelector('.vmsnix-log')?.textContent.includes('line {}')"
    console.page.wait_for_function(newest.format(20))
    console.page.locator(".vmsnix-log").focus()
    seen = console.log()
    assert seen["above"] > 0  # there is more text than the box shows
    console.page.wait_for_function(newest.format(30))
    later = console.log()
    assert later["last"] > seen["last"]
    assert (later["below"] <= 0, later["focused"]) == (True, True)
    console.shoot_wide("log")
    console.page.locator(".vmsnix-log").focus()
    console.page.locator(".vmsnix-log").evaluate("box => box.scrollBy(0, -100)")
    before = console.log()
    assert before["below"] > 50
    console.page.wait_for_function(newest.format(before["last"] + 8))
    after = console.log()
    assert (after["below"] > 50, after["focused"]) == (True, True)
    console.wait_for_text("count: done")


def test_the_plan_of_a_dry_run_is_applied_exactly_or_refused(console: Opened, published: Published) -> None:
    name = "/vmsnix/sample/stable"
    ssm, ec2 = console.lab.aws.client("ssm"), console.lab.aws.client("ec2")
    earlier = list(console.runs()["runbook"]).count("promote-ami")

    def plan() -> None:
        console.pick("promote-ami")
        console.type_in("ami", published.ami)
        console.type_in("channel", "stable")
        console.wait_for_text("shows the plan and changes nothing")
        console.button("Dry run on the sandbox").click()
        console.wait_for_text("dry run: nothing was changed")
        console.page.wait_for_selector(".vmsnix-result .vmsnix-table td:has-text('set channel')")

    plan()
    console.shoot_wide("plan")
    access = {"LaunchPermission": {"Add": [{"UserId": "109876543210"}]}}
    ec2.modify_image_attribute(ImageId=published.ami, **access)
    console.button("Apply exactly this plan on the sandbox").click()
    console.wait_for_text("promote-ami: failed")
    console.wait_for_text("other accounts with access: nothing before, 109876543210 now")
    console.shoot_wide("plan-refused")
    ec2.reset_image_attribute(ImageId=published.ami, Attribute="launchPermission")
    plan()
    console.button("Apply exactly this plan on the sandbox").dblclick()
    console.wait_for_text("promote-ami: done")
    console.page.wait_for_selector(".vmsnix-chip", state="detached")
    assert ssm.get_parameter(Name=name)["Parameter"]["Value"] == published.ami
    assert list(console.runs()["runbook"]).count("promote-ami") == earlier + 4
    console.tab("History")
    console.page.locator(".vmsnix-tab-history .vmsnix-search input").fill("")
    console.page.locator(
        ".vmsnix-tab-history tr:has-text('promote-ami') td:has-text('dry run')"
    ).first.wait_for()
    console.shoot_wide("history-dry")
    ssm.delete_parameter(Name=name)  # so that the AMI can be retired


def test_the_evidence_opens_in_jupyterlab(console: Opened, published: Published) -> None:
    console.tab("History")
    console.page.locator(".vmsnix-tab-history .vmsnix-search input").fill("")
    number = len(console.runs())
    console.wait_for_text(f"{number} of {number}")  # the click is not on a row that is about to be replaced
    row = f".vmsnix-tab-history tr:has-text('publish-ami'):has-text('{published.ami}')"
    console.page.locator(f"{row} button").first.click()
    console.page.locator(".vmsnix-report").wait_for()
    with console.page.expect_popup() as opened:
        console.page.click(".vmsnix-files a:has-text('Executed notebook')")
    opened.value.wait_for_function(OPEN_NOTEBOOK)
    opened.value.close()
    with console.page.expect_popup() as opened:
        console.page.click(".vmsnix-files a:has-text('HTML report')")
    opened.value.wait_for_selector("text=publish-ami")
    assert "/files/runs/" in opened.value.url
    opened.value.close()


def test_a_deleting_runbook_in_production_requires_its_name_and_the_account(
    production: Opened, published: Published
) -> None:
    account = production.lab.environment["VMSNIX_ALLOWED_ACCOUNTS"]
    production.wait_for_text("PRODUCTION AWS")
    production.wait_for_text("Runs here change real resources and cost money.")
    production.wait_for_text(account)
    production.pick("retire-amis")
    production.page.click(".vmsnix-field-amis button:has-text('Add')")
    for name, value in {"amis": published.ami, "keep_last": "0", "min_age_days": "0"}.items():
        production.type_in(name, value)
    assert not production.page.locator(
        ".vmsnix-foot .vmsnix-confirm [type=text]"
    ).is_visible()  # in a dry run
    production.button("Dry run in AWS account").click()
    production.wait_for_text("dry run: nothing was changed")
    apply = production.button(f"Apply exactly this plan in AWS account {account}")
    apply.wait_for()
    assert apply.is_disabled()
    production.page.locator(".vmsnix-apply .vmsnix-confirm input").fill(f"retire-amis {account}")
    production.page.wait_for_selector("button:enabled:has-text('Apply exactly this plan')")
    production.shoot_wide("plan-deletes")
    production.button("Back to the form").click()
    production.page.locator(".vmsnix-field-dry_run input").uncheck()
    production.wait_for_text(f"This deletes or disables resources in AWS account {account}.")
    run = production.button(f"Run in AWS account {account}")
    confirm = production.page.locator(".vmsnix-foot .vmsnix-confirm [type=text]")
    for words in ("", "retire-amis", f"retire-amis {account[:-1]}", f"retire-ami {account}"):
        confirm.fill(words)
        assert run.is_disabled(), words
    confirm.fill(f"retire-amis {account}")
    production.page.wait_for_selector(f"button:enabled:has-text('Run in AWS account {account}')")
    production.type_in("keep_last", "1")  # a change ends the confirmation
    production.page.wait_for_selector(f"button:disabled:has-text('Run in AWS account {account}')")
    production.type_in("keep_last", "0")
    confirm.fill(f"retire-amis {account}")
    production.shoot("confirm")
    run.click()
    production.wait_for_text("retire-amis: done")
    production.shoot("retired")
    assert not production.page.locator(".vmsnix-apply").is_visible()
    ec2 = production.lab.aws.client("ec2")
    (image,) = ec2.describe_images(ImageIds=[published.ami], IncludeDisabled=True)["Images"]
    assert image["State"] == "disabled"
