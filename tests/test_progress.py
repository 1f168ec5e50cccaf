"""Progress events and their reporters."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from rich.console import Console

from tests.support import join
from vmsnix_ops import progress
from vmsnix_ops.aws import paging, session
from vmsnix_ops.progress import Event, LogLines, NotebookBars, Progress, TerminalBars, describe

if TYPE_CHECKING:
    from pathlib import Path


def lines(
    monkeypatch: pytest.MonkeyPatch, *, github: bool = False, every: float = 10.0
) -> tuple[LogLines, io.StringIO]:
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if github else "false")
    stream = io.StringIO()
    return LogLines(stream, every=every), stream


def test_a_step_reports_start_progress_and_end() -> None:
    events: list[Event] = []
    with Progress(events.append).step("upload", total=10, unit="bytes") as step:
        step.advance(4)
        step.advance(-4)
        step.update(10, message="verified")
        step.message("done soon")
    assert [event.kind for event in events] == [
        "started",
        "advanced",
        "advanced",
        "advanced",
        "message",
        "finished",
    ]
    assert [event.done for event in events] == [0, 4, 0, 10, 10, 10]
    assert events[3].message == "verified"


def test_a_failed_step_reports_the_error_and_raises_it() -> None:
    events: list[Event] = []
    with pytest.raises(ValueError, match="bad disk"), Progress(events.append).step("import"):
        raise ValueError("bad disk")
    assert (events[-1].kind, events[-1].message) == ("failed", "bad disk")


def test_an_interrupted_step_is_reported_as_stopped() -> None:
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt), Progress(events.append).step("import"):
        raise KeyboardInterrupt
    assert (events[-1].kind, events[-1].message) == ("stopped", "KeyboardInterrupt")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            Event("u", "advanced", done=2**20, total=4 * 2**20, unit="bytes", seconds=1),
            "1.0 MiB of 4.0 MiB, 25 %, 1.0 MiB/s, 3 s left",
        ),
        (
            Event("u", "finished", done=2**20, total=2**20, unit="bytes", seconds=2),
            "1.0 MiB of 1.0 MiB, 100 %, 512.0 KiB/s",
        ),
        (
            Event("i", "advanced", done=32, total=100, unit="percent", seconds=68, message="validated"),
            "32 %, 2 min 24 s left, validated",
        ),
        (Event("p", "finished", done=0, total=100, unit="percent", seconds=5), "100 %"),
        (Event("b", "advanced", done=3, total=None, unit="derivations", seconds=1), "3 derivations"),
        (
            Event("b", "advanced", done=3, total=12, unit="items", seconds=3),
            "3 of 12 items, 25 %, 9 s left",
        ),
        (Event("b", "advanced", done=1, total=1, unit="items", seconds=3), "1 of 1 item, 100 %"),
        (Event("u", "advanced", done=5, unit="bytes", seconds=0), "5 B"),
    ],
)
def test_describe_shows_amount_percentage_rate_and_remaining_time(event: Event, expected: str) -> None:
    # 32 % after 68 s leaves 144.5 s.
    assert describe(event) == expected


def forecast(kind: str = "advanced", seconds: float = 90.0, **more: object) -> Event:
    """An import at 3 % by AWS, and at 75 % by the forecast."""
    known = {"done": 3, "total": 100, "unit": "percent", "remaining": 30.0}
    return Event("import", kind, seconds=seconds, **{**known, **more})  # type: ignore[arg-type]


def test_a_forecast_gives_percentage_and_remaining_time() -> None:
    assert (forecast().fraction, forecast().eta) == (0.75, 30.0)
    assert describe(forecast(message="active")) == "75 %, 30 s left, active"
    assert describe(forecast(remaining=None)) == "3 %, 48 min 30 s left"  # by AWS's percentage


def test_a_step_can_use_a_forecast() -> None:
    events: list[Event] = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        step.update(3)
        step.forecast = lambda elapsed: 30.0 if elapsed < 60 else None
        step.refresh("active")
        step.started -= 60
        step.refresh()
    before, known, slower = (event for event in events if event.kind == "advanced")
    assert (before.remaining, known.remaining, slower.remaining) == (None, 30.0, None)
    assert known.message == "active"
    assert slower.fraction == 0.03, "slower than all before: AWS's own percentage is left"


def test_all_reporters_show_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, stream = lines(monkeypatch)
    reporter(Event("import", "started"))
    reporter(forecast())
    assert stream.getvalue().splitlines()[1] == "import: 75 %, 30 s left"

    widget = NotebookBars()
    widget(Event("import", "started", total=100, unit="percent"))
    widget(forecast())
    _, bar, text = row(widget)
    assert (bar.value, text) == (75, "75 %, 30 s left")  # type: ignore[attr-defined]

    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    terminal = TerminalBars(console)
    terminal(Event("import", "started", total=100, unit="percent"))
    terminal(forecast())
    terminal._bars.refresh()  # type: ignore[attr-defined]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    terminal(forecast("finished", done=100))
    assert "75 %, 30 s left" in shown
    assert "━" * 18 in shown


def test_log_lines_show_start_end_and_some_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, stream = lines(monkeypatch)
    reporter(Event("upload", "started"))
    for second in range(1, 26):
        reporter(Event("upload", "advanced", done=second, total=25, seconds=second))
    reporter(Event("upload", "finished", done=25, total=25, seconds=25))
    assert stream.getvalue().splitlines() == [
        "upload ...",
        "upload: 10 of 25 items, 40 %, 15 s left",
        "upload: 20 of 25 items, 80 %, 5 s left",
        "upload finished in 25 s: 25 of 25 items, 100 %",
    ]


def test_log_lines_group_every_step_in_github_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, stream = lines(monkeypatch, github=True)
    with Progress(reporter).step("build") as step:
        step.message("evaluating")
    written = stream.getvalue().splitlines()
    assert written[:2] == ["::group::build", "build: evaluating"]
    assert written[2].startswith("build finished in ")
    assert written[3] == "::endgroup::"


def test_log_lines_end_the_group_of_a_failed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, stream = lines(monkeypatch, github=True)
    reporter(Event("build", "started"))
    reporter(Event("build", "failed", message="no space", seconds=3))
    assert stream.getvalue().splitlines()[1:] == ["build failed in 3.0 s: no space", "::endgroup::"]


def test_a_message_cannot_contain_a_workflow_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, stream = lines(monkeypatch, github=True)
    reporter(Event("import", "message", message="oh\n::set-env name=PATH::/tmp\r\n::stop-commands::x"))
    assert all(not line.lstrip().startswith("::") for line in stream.getvalue().splitlines())


class Shell:
    """The shell of a kernel."""

    kernel = True


def test_a_program_gets_the_log_instead_of_a_display(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vmsnix_ops")
    with progress.current().step("upload", total=2, unit="bytes") as step:
        step.advance(2)
        step.message("sent\nby ghp_" + "a" * 36)
    with pytest.raises(ValueError, match="bad disk"), progress.current().step("import"):
        raise ValueError("bad disk")
    assert capsys.readouterr() == ("", "")
    assert {record.name for record in caplog.records} == {"vmsnix_ops.progress"}
    shown = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert shown[0] == ("INFO", "upload: started")
    assert shown[1][1].startswith("upload: sent\\nby [secret removed")
    assert shown[2][1].startswith("upload: finished in 0")
    assert shown[4][0] == "WARNING"
    assert shown[4][1].startswith("import: failed in 0")
    assert shown[4][1].endswith(", bad disk")


def test_a_program_without_logging_prints_nothing() -> None:
    program = """
from botocore.exceptions import ClientError
from vmsnix_ops.aws import session
from vmsnix_ops.progress import current
answers = [ClientError({"Error": {"Code": "InvalidAMIID.NotFound"}}, "DescribeImages"), None]
def call():
    if (answer := answers.pop(0)) is not None:
        raise answer
session.retry(call, "InvalidAMIID.NotFound")
with current().step("upload"):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_retries_are_logged_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    refused = ClientError({"Error": {"Code": "InvalidAMIID.NotFound"}}, "DescribeImages")
    throttled = ClientError({"Error": {"Code": "RequestLimitExceeded"}}, "DescribeImages")
    answers: list[object] = [refused, "found", throttled, "read"]

    def call() -> object:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert (session.retry(call, "InvalidAMIID.NotFound"), paging.retry_read(call)) == ("found", "read")
    logged = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert [one for one in logged if one[0].startswith("vmsnix_ops")] == [
        ("vmsnix_ops.aws.session", "WARNING", "AWS answered InvalidAMIID.NotFound: attempt 2."),
        ("vmsnix_ops.aws.session", "WARNING", "AWS answered RequestLimitExceeded: trying again."),
    ]


def test_progress_can_be_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VMSNIX_PROGRESS", "silent")
    monkeypatch.setattr(progress, "_shell", Shell)
    with progress.current().step("upload"):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kernel", [True, False])
def test_a_command_and_a_kernel_without_a_person_write_lines(
    kernel: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("VMSNIX_PROGRESS", "JPY_SESSION_NAME", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_shell", Shell)
    with (progress.current() if kernel else progress.on_screen()).step("upload"):
        pass
    assert capsys.readouterr().out.startswith("upload ...\nupload finished in ")


def test_widgets_are_shown_in_jupyterlab_but_not_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMSNIX_PROGRESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/20-publish-ami.ipynb")
    monkeypatch.delenv("VMSNIX_RUN_ID", raising=False)
    monkeypatch.setattr(progress, "_shell", Shell)
    assert isinstance(progress._default_reporter(), NotebookBars)
    monkeypatch.setenv("VMSNIX_RUN_ID", "r1")
    assert isinstance(progress._default_reporter(), LogLines)


def row(reporter: object, number: int = 0) -> tuple[str, object, str]:
    name, bar, text = reporter.box.children[number].children  # type: ignore[attr-defined]
    return name.value, bar, text.value


def test_notebook_bars_have_one_bar_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = NotebookBars()
    for name in ("upload", "import"):
        with Progress(reporter).step(name, total=8, unit="bytes") as step:
            step.advance(8)
    assert [row(reporter, number)[0] for number in (0, 1)] == ["<b>upload</b>", "<b>import</b>"]
    name, bar, text = row(reporter)
    assert (bar.value, bar.max, bar.bar_style) == (8, 8, "success")
    assert text.startswith("finished in ")
    assert "8 B of 8 B" in text
    assert capsys.readouterr().out.count("VBox") == 1  # displayed once


def test_a_failed_bar_is_red_and_shows_the_error_as_text() -> None:
    reporter = NotebookBars()
    reporter(Event("import", "started", total=100, unit="percent"))
    reporter(Event("import", "failed", done=32, total=100, unit="percent", message="<script>$x$</script>"))
    _, bar, text = row(reporter)
    assert (bar.value, bar.bar_style) == (32, "danger")
    assert "&lt;script&gt;" in text


def test_a_bar_never_exceeds_its_range() -> None:
    reporter = NotebookBars()
    reporter(Event("upload", "started", total=10))
    reporter(Event("upload", "advanced", done=15, total=10, seconds=1))
    assert row(reporter)[1].value == 10  # type: ignore[attr-defined]
    reporter(Event("upload", "failed", done=-3, total=10, seconds=1))
    assert 0 < row(reporter)[1].value <= 10  # type: ignore[attr-defined]


def test_a_repeated_step_gets_its_own_bar() -> None:
    reporter = NotebookBars()
    for _ in range(2):
        with Progress(reporter).step("upload"):
            pass
    assert len(reporter.box.children) == 2


def test_notebook_bars_accept_many_threads() -> None:
    reporter = NotebookBars()
    with Progress(reporter).step("upload", total=400) as step:
        threads = [threading.Thread(target=lambda: [step.advance(1) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        join(*threads)
    assert row(reporter)[1].value == 400  # type: ignore[attr-defined]


def terminal(**options: object) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, **options)  # type: ignore[arg-type]
    return Progress(TerminalBars(console)), stream


def test_terminal_bars_keep_the_outcome_of_each_step() -> None:
    shown, stream = terminal()
    with shown.step("upload", total=8, unit="bytes") as step:
        step.advance(8)
        step.message("checking [bold]not markup[/bold]")
    with pytest.raises(ValueError, match="no"), shown.step("import"):
        raise ValueError("no")
    written = stream.getvalue()
    assert "✓ upload" in written
    assert "upload: checking [bold]not markup[/bold]" in written
    assert "✗ import" in written
    assert written.rstrip(" \x1b[?25h").endswith("\n") or written.endswith("\n")


def test_terminal_bars_show_simultaneous_steps_and_stop_after_the_last() -> None:
    shown, _ = terminal()
    reporter = shown.reporter
    with shown.step("eu-west-1"):
        with shown.step("eu-north-1"):
            pass
        assert reporter._bars is not None  # type: ignore[attr-defined]
        assert reporter._running == {"eu-west-1"}  # type: ignore[attr-defined]
    assert reporter._bars is None  # type: ignore[attr-defined]


def test_terminal_bars_have_no_colours_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown, stream = terminal()
    with shown.step("upload", total=1) as step:
        step.advance(1)
    assert "\x1b[32m" not in stream.getvalue()
    assert "\x1b[3" not in stream.getvalue()


def test_the_terminal_is_usable_after_a_step_without_an_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter, before = TerminalBars(console), set(threading.enumerate())
    reporter(Event("upload", "started", total=10))
    (drawing,) = set(threading.enumerate()) - before
    reporter.close()
    join(drawing)
    reporter.close()
    assert "upload" in console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_bars_never_hide_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = TerminalBars()
    stream = io.StringIO()
    reporter._console.file = stream
    reporter._console._force_terminal = True
    with Progress(reporter).step("upload"):
        pass
    assert "✓ upload" in stream.getvalue()
    assert "\x1b[?25l" not in stream.getvalue()


def test_another_process_can_read_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("VMSNIX_EVENTS", str(path))
    with progress.current().step("upload", total=1000, unit="bytes") as step:
        for _ in range(1000):
            step.advance(1)
        step.update(1000, message="verified")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = [line.pop("at") for line in lines]
    assert times == sorted(times)
    events = [Event(**line) for line in lines]
    assert (events[0].kind, events[-1].kind, events[-1].done) == ("started", "finished", 1000)
    assert "verified" in [event.message for event in events]
    # A thousand quick updates are one line.
    assert len(events) < 100
