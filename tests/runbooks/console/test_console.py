"""The whole console without a browser: select, fill in, confirm, run once, show the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.manifest import make_manifest
from vmsnix_ops.runbooks import catalog, console
from vmsnix_ops.runbooks.console import backends, jobs
from vmsnix_ops.runbooks.console.app import Console
from vmsnix_ops.runbooks.console.jobs import JobReader, JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runbooks.shelf import Shelf

    Wait = Callable[[Callable[[], object]], None]

DELETES = 'image: str = ""  # which image\ndry_run: bool = True  # show the plan\n'


@pytest.fixture
def on_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark the endpoint of the tests, which is on this machine, as that of AWS."""
    monkeypatch.setattr(backends.endpoints, "endpoint_kind", lambda environment: "aws")


@pytest.fixture
def opened(console_shelf: Shelf, wait: Wait, on_aws: None) -> Console:
    console_shelf.put("10-greet.ipynb", "print('hello', name)")
    console_shelf.put("20-fail.ipynb", "1 / 0")
    console_shelf.put("60-retire.ipynb", "dry_run", parameters=DELETES, side_effects="deletes")
    made = Console()
    wait(lambda: made.bar.caller and "unknown" not in made.run.run_button.description)
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], bool]]:
    """Calls of `jobs.start`, which is replaced: every run ends at once."""
    calls: list[tuple[str, dict[str, Any], bool]] = []

    def start(
        runbook: Any, given: dict[str, Any], backend: Any, *, confirmed: bool, **more: object
    ) -> jobs.Job:
        calls.append((runbook.name, given, confirmed))
        return jobs.Job("id", runbook.name, runbook.title, given, Path("/none"), Path("/none"), 0.0)

    over = JobState((), (), 0, 0, 0.1, False, {"status": "done", "runbook": "x", "run_id": "id"})
    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(JobReader, "read", lambda self: over)
    return calls


def shown(widget: Any) -> bool:
    return widget.layout.display != "none"


def test_a_run_is_started_from_its_form_and_its_evidence_is_copied_below_the_open_notebook(
    opened: Console, wait: Wait, tmp_path: Path
) -> None:
    page = opened.run
    page._form.fields["name"]._input.value = "Ada"
    page.run_button.click()
    page.run_button.click()  # like a double click
    assert page.job is not None
    assert shown(page.live.widget)
    assert page.run_button.disabled
    assert opened.bar.switch.disabled
    wait(lambda: page.job is None)
    assert "greet: done" in page.result._summary.value
    links = page.result._links.html
    (copy,) = (tmp_path / "open" / "runs").iterdir()
    assert f'data-file="runs/{copy.name}/notebook.ipynb"' in links
    assert "hello Ada" in (copy / "notebook.ipynb").read_text()
    assert shown(page.result.report_button)
    page.result.report_button.value = True
    assert "hello Ada" in page.result._report.value
    assert 'sandbox="allow-scripts"' in page.result._report.value

    # The history lists the run once, and can show and repeat it.
    tab = opened.tabs["History"]
    tab.refresh(opened.bar.backend, 1)
    assert tab._grid.table.html.count("<tr data-do=") == 1
    page.back_button.click()
    page._form.fill({})
    tab._grid.table.click(f"row:{copy.name}")
    assert "hello Ada" in page.result._report.value
    assert not shown(page.live.widget)
    page.again_button.click()
    assert page._form.values() == {"name": "Ada"}
    wait(lambda: "Ada (used before)" in dict(page._form.fields["name"]._pick.options))


def test_a_failed_run_shows_its_error(opened: Console, wait: Wait) -> None:
    opened.run.open("fail", {})
    opened.run.run_button.click()
    wait(lambda: opened.run.job is None)
    assert "fail: failed" in opened.run.result._summary.value
    assert "ZeroDivisionError" in opened.run.result._summary.value


def test_an_invalid_parameter_is_refused_in_the_form(opened: Console, started: list[Any]) -> None:
    opened.run._form.fields["name"]._input.value = "AKIAIOSFODNN7EXAMPLE"
    assert opened.run.run_button.disabled
    opened.run._start(dry=False)  # without the button
    assert started == []


def test_a_runbook_that_deletes_must_be_confirmed_with_its_name_and_the_account(
    opened: Console, started: list[Any], wait: Wait
) -> None:
    page = opened.run
    page.open("retire", {})
    assert not shown(page._confirmation)
    assert not page.run_button.disabled
    page._form.fields["dry_run"]._input.value = False
    assert shown(page._confirmation)
    assert "in AWS account 012345678901. Type <code>retire 012345678901</code>" in page._confirm_text.value
    assert page.run_button.button_style == "danger"
    for words in ("", "retire", "retire 999999999999"):
        page.confirm.value = words
        assert page.run_button.disabled
        page._start(dry=False)
    page.confirm.value = "retire 012345678901"
    assert not page.run_button.disabled
    page._form.fields["image"]._input.value = "another"  # this changes the confirmed plan
    assert page.run_button.disabled
    assert started == []
    page.confirm.value = "retire 012345678901"
    page.run_button.click()
    wait(lambda: page.job is None)
    assert started == [("retire", {"image": "another", "dry_run": False}, True)]


def test_a_modified_notebook_must_be_confirmed_unless_it_only_reads(
    console_shelf: Shelf, monkeypatch: pytest.MonkeyPatch, wait: Wait
) -> None:
    console_shelf.put("10-greet.ipynb", "1", parameters=DELETES, side_effects="creates")
    console_shelf.put("20-look.ipynb", "1")
    frozen = make_manifest(console_shelf.folder)
    monkeypatch.setattr(catalog, "load_manifest", lambda: frozen)
    path = console_shelf.put("10-greet.ipynb", "2", parameters=DELETES, side_effects="creates")
    path.with_name("20-look.ipynb").unlink()
    page = Console().run
    wait(lambda: "unknown" not in page.run_button.description)
    assert "10-greet.ipynb was modified: its cells differ" in page._modified_text.value
    assert not page.run_button.disabled  # a dry run
    assert not shown(page.modified)
    page._form.fields["dry_run"]._input.value = False
    assert shown(page.modified)
    assert page.run_button.disabled
    assert not page.dry_button.disabled
    page._start(dry=False)  # without the button
    assert "10-greet.ipynb was modified" in page._message.value
    page.modified.value = True
    assert not page.run_button.disabled
    page.run_button.click()
    wait(lambda: page.job is None)
    assert "greet: done" in page.result._summary.value
    page.open("look", {})
    assert "It could not be read" in page._modified_text.value
    assert page.run_button.disabled
    assert page.modified.value is False


def test_a_dry_run_needs_no_confirmation_and_is_marked(
    opened: Console, started: list[Any], wait: Wait
) -> None:
    opened.run.open("retire", {"dry_run": False})
    opened.run.dry_button.click()
    wait(lambda: opened.run.job is None)
    assert started == [("retire", {"dry_run": True}, False)]


PLANNED = 'image: str = ""\ndry_run: bool = True\nexpect_plan: str = ""\nconfirm: str = ""\n'
FINGERPRINT = "8f1d0c52a6b7e943"
TABLE = {"title": "Retire <2>", "columns": ["action", "AMI"], "rows": [["retire", "ami-1 <b>"]]}


@pytest.fixture
def planned(console_shelf: Shelf, wait: Wait, tmp_path: Path, on_aws: None) -> tuple[Console, dict[str, Any]]:
    """A console with two runbooks that have a plan, and the result of a dry run."""
    console_shelf.put("60-retire.ipynb", "dry_run", parameters=PLANNED, side_effects="deletes")
    console_shelf.put("70-promote.ipynb", "dry_run", parameters=PLANNED, side_effects="creates")
    made = Console()
    wait(lambda: made.bar.caller and "unknown" not in made.run.run_button.description)
    given = {"image": "a", "dry_run": True, "expect_plan": "", "confirm": ""}
    values = {"run_id": "id", "status": "done", "dry_run": True, "plan_fingerprint": FINGERPRINT}
    return made, {**values, "parameters": given, "tables": [TABLE], "cwd": str(tmp_path)}


def test_the_plan_of_a_dry_run_is_shown_and_applied_once_with_its_fingerprint(
    planned: tuple[Console, dict[str, Any]], started: list[Any], wait: Wait
) -> None:
    opened, values = planned
    page, result = opened.run, opened.run.result
    page.show_run({**values, "runbook": "promote"})
    assert "Plan: Retire &lt;2&gt;" in result._summary.value
    assert '<td class="vmsnix-whole">ami-1 &lt;b&gt;</td>' in result._summary.value  # IDs are not wrapped
    assert FINGERPRINT in result._summary.value
    assert not shown(result._confirmation)  # it does not delete
    assert result.apply_button.description == "Apply exactly this plan in AWS account 012345678901"
    result.apply_button.click()
    result.apply_button.click()  # like a double click
    wait(lambda: page.job is None)
    given = {"image": "a", "dry_run": False, "expect_plan": FINGERPRINT, "confirm": ""}
    assert started == [("promote", given, False)]
    assert not shown(result._apply_box)  # the result of that run is no plan


def test_a_plan_that_deletes_is_confirmed_by_the_typed_words(
    planned: tuple[Console, dict[str, Any]], started: list[Any], wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, values = planned
    page, result = opened.run, opened.run.result
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(result.apply_button, "send_state", lambda key=None: sent.append(state(result, key)))
    page.show_run({**values, "runbook": "retire"})
    assert "Type <code>retire 012345678901</code>" in result._confirm_text.value
    for words in ("", "retire", "promote 012345678901"):
        result.confirm.value = words
        assert result.apply_button.disabled
        page._apply_plan()  # without the button
    assert not any(message.get("disabled") is False for message in sent)
    result.confirm.value = "retire 012345678901"
    assert not result.apply_button.disabled
    page.show_run({**values, "runbook": "retire"})  # another plan: the words must be typed again
    assert result.apply_button.disabled
    assert started == []
    result.confirm.value = "retire 012345678901"
    result.apply_button.click()
    wait(lambda: page.job is None)
    assert started == [("retire", {**started[0][1], "expect_plan": FINGERPRINT, "dry_run": False}, True)]


def state(result: Any, key: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.apply_button.get_state(key)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"dry_run": False},
        {"plan_fingerprint": None},
        {"status": "failed"},
        {"runbook": "unknown"},
        {"parameters": {"dry_run": True}},
    ],
)
def test_only_the_plan_of_a_dry_run_that_is_done_can_be_applied(
    planned: tuple[Console, dict[str, Any]], changes: dict[str, Any]
) -> None:
    opened, values = planned
    opened.run.show_run({**values, "runbook": "promote", **changes})
    assert opened.run.result.planned is None
    assert not shown(opened.run.result._apply_box)


def test_a_plan_of_the_other_backend_cannot_be_applied(planned: tuple[Console, dict[str, Any]]) -> None:
    opened, values = planned
    opened.run.show_run({**values, "runbook": "promote"})
    assert shown(opened.run.result._apply_box)
    opened.bar.switch.value = "Sandbox"
    assert not shown(opened.run.result._apply_box)


def test_a_plan_whose_parameters_have_changed_cannot_be_applied(
    planned: tuple[Console, dict[str, Any]],
) -> None:
    opened, values = planned
    given = {**values["parameters"], "removed": 1}
    opened.run.show_run({**values, "runbook": "promote", "parameters": given})
    result = opened.run.result
    assert "removed since then: removed" in result._message.value.lower()
    assert not shown(result.apply_button)


def test_the_typed_words_confirm_the_runbook_too(
    planned: tuple[Console, dict[str, Any]], started: list[Any], wait: Wait
) -> None:
    page = planned[0].run
    page.open("retire", {"dry_run": False, "image": "a", "confirm": "1", "expect_plan": FINGERPRINT})
    assert {"confirm", "expect_plan"} & set(page._form.fields) == set()
    assert "--no-dry-run --confirm=012345678901 --yes" in page._plan.value
    page.confirm.value = "retire 012345678901"
    page.run_button.click()
    wait(lambda: page.job is None)
    assert started == [("retire", {"image": "a", "dry_run": False, "confirm": "012345678901"}, True)]


def test_production_is_marked_with_its_account(opened: Console) -> None:
    banner = opened.bar._banner.value
    assert "PRODUCTION AWS" in banner
    assert "012345678901" in banner
    assert "us-east-1" in banner
    assert "vmsnix-on-production" in opened.widget._dom_classes
    assert opened.run.run_button.description == "Run in AWS account 012345678901"


def test_the_sandbox_is_marked_and_cannot_be_switched_to_production(
    console_shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    console_shelf.put("10-greet.ipynb", "1")
    monkeypatch.setenv("VMSNIX_SANDBOX", "http://127.0.0.1:9")
    made = Console()
    assert "SANDBOX" in made.bar._banner.value
    assert "PRODUCTION" not in made.bar._banner.value
    assert "vmsnix-on-sandbox" in made.widget._dom_classes
    assert made.run.run_button.description == "Run on the sandbox"
    assert not shown(made.bar.switch)


@pytest.mark.parametrize(
    ("variable", "url", "title", "words"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "SANDBOX", "Run on the sandbox"),
        ("AWS_ENDPOINT_URL_EC2", "http://localhost:9", "SANDBOX", "Run on the sandbox"),
        ("AWS_ENDPOINT_URL_EC2", "https://x.invalid", "CUSTOM ENDPOINT", "Run at the custom endpoint, acc"),
    ],
)
def test_an_endpoint_of_this_machine_is_never_called_production(
    console_shelf: Shelf, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, title: str, words: str
) -> None:
    console_shelf.put("10-greet.ipynb", "1")
    monkeypatch.setenv(variable, url)
    made = Console()
    assert title in made.bar._banner.value
    assert "PRODUCTION" not in made.bar._banner.value
    assert "vmsnix-on-production" not in made.widget._dom_classes
    assert made.run.run_button.description.startswith(words)


def test_the_backend_can_be_switched_to_a_sandbox_and_back(opened: Console, wait: Wait) -> None:
    opened.bar.switch.value = "Sandbox"
    backend = opened.bar.backend
    assert backend.url.startswith("http://127.0.0.1:")
    buckets = backend.session().client("s3").list_buckets()["Buckets"]
    assert [bucket["Name"] for bucket in buckets] == ["vmsnix-images"]
    assert backend.settings().state != backends.Backend().settings().state
    assert backend.environment["AWS_ENDPOINT_URL"] == backend.url
    opened.bar.switch.value = "AWS"
    assert opened.bar.backend == backends.Backend()
    host = backends.sandbox_process()
    opened.bar.switch.value = "Sandbox"
    assert opened.bar.backend is host.backend  # not a second one
    host.stop()
    assert host.process.returncode == 0


def test_a_sandbox_that_cannot_start_leaves_the_switch_on_aws(opened: Console, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "sandbox").write_text("a file where the folder should be")
    opened.bar.switch.value = "Sandbox"
    assert opened.bar.switch.value == "AWS"
    assert not opened.bar.backend.sandbox
    assert "could not start" in opened.bar._note.value


def test_tabs_without_tables_show_a_text(opened: Console) -> None:
    for title, words in (
        ("History", "No runs yet."),
        ("Timings", "No timings yet"),
        ("Inventory", "No audits yet"),
        ("Findings", "No audits yet"),
    ):
        opened.tabs[title].refresh(opened.bar.backend, 0)
        assert words in json.dumps([text_of(part) for part in all_html(opened.tabs[title].widget)])


def text_of(part: Any) -> str:
    return str(getattr(part, "html", "") or getattr(part, "value", ""))


def all_html(widget: Any) -> list[Any]:
    children = getattr(widget, "children", ())
    own = [widget] if type(widget).__name__ in ("HTML", "ActiveHTML") else []
    return own + [part for child in children for part in all_html(child)]


def test_the_console_loads_nothing_from_other_hosts(opened: Console) -> None:
    for part in all_html(opened.widget):
        for words in ("http://", "https://", "<script"):
            assert words not in text_of(part)


def test_outside_of_jupyterlab_the_console_prints_a_description(
    console_shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console_shelf.put("10-greet.ipynb", "1")
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert console.open_console() is None
    printed = capsys.readouterr().out
    assert "`vmsnix console` opens it" in printed
    assert "10-greet  What it is for." in printed
