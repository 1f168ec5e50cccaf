"""The views of the progress and of the outcome of a run."""

from __future__ import annotations

from typing import Any

import pytest

from vmsnix_ops.progress import Event
from vmsnix_ops.runbooks.console import runner
from vmsnix_ops.runbooks.console.jobs import JobState, StepState
from vmsnix_ops.runbooks.console.runner import (
    Evidence,
    LiveView,
    ResultView,
    links_html,
    log_html,
    report_html,
    steps_html,
    summary_html,
)

HALF = Event("upload", "advanced", 5 * 2**20, 10 * 2**20, "bytes", "", 2.0)


def state(event: Event, *notes: str) -> StepState:
    return StepState(event, list(notes), updated_at=9e9)  # in the future, so that no time is added


def job_state(*steps: StepState, cancelled: bool = False, cells: int = 4) -> JobState:
    return JobState(steps, ("a line",), 1, cells, 3.0, cancelled, None)


def test_a_step_has_share_amount_rate_and_remaining_time() -> None:
    shown = steps_html((state(HALF),))
    assert 'aria-valuenow="50"' in shown
    assert "5.0 MiB of 10.0 MiB" in shown
    assert "2.5 MiB/s" in shown
    assert shown.count("2.0 s") == 2  # time and remaining time


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event("import", "started"), "vmsnix-unknown"),
        (Event("import", "advanced", 30, 100, "percent", "", 1.0), "30 %"),
        (Event("import", "finished", 1, None, "items", "", 1.0), 'aria-valuenow="100"'),
        (Event("import", "failed", 0, None, "items", "bad disk", 1.0), "vmsnix-bad"),
        (Event("<b>", "started"), "&lt;b&gt;"),
    ],
)
def test_every_kind_of_step_is_shown(event: Event, words: str) -> None:
    assert words in steps_html((state(event),))


def test_the_last_message_of_a_step_is_shown_until_it_has_finished() -> None:
    assert "active converting" in steps_html((state(HALF, "pending", "active converting"),))
    done = Event("upload", "finished", 1, 1, "bytes", "", 1.0)
    assert "converting" not in steps_html((state(done, "converting"),))
    assert "converting" not in steps_html((state(HALF, "converting"),), notes=False)


def test_the_log_is_text() -> None:
    assert "&lt;script&gt;" in log_html(("<script>",))


def test_a_double_click_on_cancel_does_not_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[bool] = []
    view = LiveView(cancelled.append)
    view.start("Publish", "on the sandbox")
    view.show(job_state())
    view.cancel_button.click()
    view.cancel_button.click()
    view.show(job_state(cancelled=True))
    assert cancelled == [False]
    assert view.cancel_button.disabled
    assert view.kill_button.layout.display == "none"
    monkeypatch.setattr(runner, "KILL_DELAY_SECONDS", -1.0)
    view.show(job_state(cancelled=True))
    assert view.kill_button.layout.display == ""
    view.kill_button.click()
    assert cancelled == [False, True]


def test_the_view_shows_the_cells_and_can_be_reset() -> None:
    view = LiveView(lambda kill: None)
    view.start("Publish")
    view.show(job_state(state(HALF)))
    assert "cell 2 of 4" in view._head.value
    assert "25%" in view._head.value
    view.start("Another")
    assert "upload" not in view._steps.value
    assert not view.cancel_button.disabled


ERROR = {"type": "ImportFailedError", "what": "It failed.", "why": "A <bad> disk.", "fix": "Mend it."}


@pytest.mark.parametrize(
    ("values", "words", "not_there"),
    [
        ({"status": "done", "seconds": 75.0}, ["done in 1 min 15 s"], []),
        ({"status": "failed", "failure": ERROR}, ["It failed.", "A &lt;bad&gt; disk.", "Mend it."], []),
        (
            {"status": "cancelled", "error": ERROR, "undone": ["upload s3://b/k"]},
            ["cancelled", "It failed.", "upload s3://b/k", "vmsnix deleted what the run had created"],
            ["Mend it."],
        ),
        ({"status": "cancelled", "undone": []}, ["nothing to undo"], []),
        ({"status": "cancelled", "undo_problem": "No rights."}, ["could not be undone: No rights."], []),
        ({"status": "done", "parameters": {"dry_run": True}}, ["nothing was changed"], []),
        ({"status": "done", "ami_id": "ami-1", "problems": ["No history."]}, ["ami-1", "No history."], []),
    ],
)
def test_the_summary_shows_the_error_and_the_results(
    values: dict[str, Any], words: list[str], not_there: list[str]
) -> None:
    shown = summary_html({"runbook": "publish-ami", "run_id": "id", **values})
    assert [word for word in words if word not in shown] == []
    assert [word for word in not_there if word in shown] == []


def test_values_in_links_and_reports_are_escaped() -> None:
    links = links_html(Evidence("s3://b/<id>", {"log.txt": "runs/id/log.txt"}, problem="No <notebook>."))
    assert '<a data-file="runs/id/log.txt">Log</a>' in links
    assert "s3://b/&lt;id&gt;" in links
    assert "No &lt;notebook&gt;." in links
    frame = report_html('<p onclick="x">"quoted"</p>')
    assert 'sandbox="allow-scripts"' in frame
    assert "<p" not in frame


def test_the_view_shows_nothing_of_an_earlier_run() -> None:
    view = ResultView(lambda: None, lambda: ("on the sandbox", ""), lambda name, values: None)
    view.show(
        {"status": "done", "runbook": "a"},
        Evidence(report="<p>one</p>"),
        job_state(state(HALF)),
        open_report=True,
    )
    assert "one" in view._report.value
    assert "upload" in view._steps.value
    view.show({"status": "done", "runbook": "b"}, Evidence())
    assert view._report.value == ""
    assert view._steps.value == ""
    assert view.report_button.layout.display == "none"


def test_the_summary_contains_a_slow_step() -> None:
    slow = {"step": "import", "text": "import took 41 min 0 s; usual is <10 min>, by the 12 before it"}
    values = {"runbook": "publish-ami", "run_id": "id", "status": "done"}
    assert "<p>Slow: import took 41 min 0 s; usual is &lt;10 min&gt;" in summary_html(
        {**values, "slow": [slow]}
    )
    assert "Slow" not in summary_html({**values, "slow": None})


PROMOTED = {
    "runbook": "promote-ami",
    "status": "done",
    "endpoint": "aws",
    "region": "us-gov-west-1",
    "channel": "candidate",
    "image": "web",
    "ami_id": "ami-0123456789abcdef0",
    "amis": {"us-gov-west-1": "ami-0123456789abcdef0", "us-gov-east-1": "ami-0123456789abcdef1"},
    "parameters": {"channel": "candidate", "dry_run": False},
}


def test_the_summary_links_each_ami_to_the_console_of_its_partition() -> None:
    shown = summary_html(PROMOTED)
    assert "AMI in us-gov-east-1" in shown
    address = "https://us-gov-east-1.console.amazonaws-us-gov.com/ec2/home?region=us-gov-east-1#ImageDetails:"
    assert f'href="{address}imageId=ami-0123456789abcdef1"' in shown
    assert 'rel="noopener noreferrer"' in shown
    for endpoint in ("sandbox", "custom", None):
        assert "href" not in summary_html({**PROMOTED, "endpoint": endpoint})
    strange = {
        **PROMOTED,
        "amis": {'x" onclick="y': "ami-0123456789abcdef1", "us-iso-east-1": "ami-01234567"},
    }
    assert "href" not in summary_html(strange)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"runbook": "audit-inventory", "amis": 1520, "findings_critical": 2, "findings_low": 0},
            ["AMIs: 1,520", ">critical: 2<"],
        ),
        ({"runbook": "audit-inventory", "amis": 0, "findings_critical": 0}, [">none<"]),
        (
            {"runbook": "audit-inventory", "findings_low": 2, "findings_acknowledged": 3},
            ["low: 2, acknowledged: 3"],
        ),
        (
            {"runbook": "verify-amis", "amis": 4, "drifted": 3, "unread": 1},
            ["AMIs: 4, drifted: 3, unread: 1"],
        ),
        (
            {"runbook": "retire-amis", "planned": 2, "kept": 5, "changed": 2},
            ["planned: 2, kept: 5, changed: 2"],
        ),
        ({"runbook": "promote-ami", "channel": "stable", "amis": {}}, ["stable"]),
    ],
)
def test_the_summary_has_the_numbers_that_a_run_found(values: dict[str, Any], words: list[str]) -> None:
    shown = summary_html({"status": "done", **values})
    assert [word for word in words if word not in shown] == []


def test_the_result_offers_the_next_runbook_with_its_values() -> None:
    opened: list[tuple[str, dict[str, object]]] = []
    view = ResultView(
        lambda: None, lambda: ("on AWS", ""), lambda name, values: opened.append((name, dict(values)))
    )
    view.show(PROMOTED, Evidence(), channels=("candidate", "stable"))
    assert [button.description for button in view.next.children] == [
        "Next: verify web",
        "Next: promote ami-0123456789abcdef0 stable",
    ]
    for button in view.next.children:
        button.click()
    assert opened == [
        ("verify-amis", {"image": "web"}),
        (
            "promote-ami",
            {"ami": "ami-0123456789abcdef0", "region": "us-gov-west-1", "channel": "stable"},
        ),
    ]
    for other in ({"status": "failed"}, {"dry_run": True}, {"failure": {"what": "x"}}):
        view.show({**PROMOTED, **other}, Evidence(), channels=("candidate", "stable"))
        assert view.next.children == ()
        assert view.next.layout.display == "none"
