"""Progress, errors, interrupts and the endpoint in a kernel that a person uses, as JupyterLab starts it."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import DEADLINE, wait_until
from vmsnix_ops.runbooks.evidence.report import render
from vmsnix_ops.runbooks.execution import cards
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"
FIRST = """
from vmsnix_ops import history
region = "eu-west-1"
history.check_parameters("import-timings", globals())
"""
STEP = 'with shown.step("upload", total=4, unit="items") as step:\n    step.advance(4)'
CELLS = {
    "first": FIRST,
    "build": """
from vmsnix_ops import progress
shown = progress.current()
with shown.step("build"):
    pass
""",
    "upload": STEP,
    "upload again": STEP,
    "threads": """
import threading
def copy(name):
    with shown.step(name):
        pass
threads = [threading.Thread(target=copy, args=(f"copy-{n}",)) for n in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
    "second run": 'with progress.current().step("scan"):\n    pass',
    "error": """
from vmsnix_ops.errors import AwsError
details = {"code": "UnauthorizedOperation", "operation": "CopyImage", "request_id": "req-1<i>"}
raise AwsError("No <b>copy</b>\\x1b[2J.", why="<script>alert(1)</script>", fix="Allow it.", **details)
""",
    "name": "unknown_name",
    "interrupt": """
import os, signal, time
with shown.step("verify"):
    pass
with shown.step("import", total=10) as step:
    step.advance(3)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
""",
    "left behind": """
left = shown.step("wait")
left.__enter__()
raise AwsError("No.")
""",
    "texts": """
for place in (shown.reporter.__closure__[0].cell_contents, shown.reporter.__closure__[1].cell_contents):
    if hasattr(place, "_rows"):
        print({name: (bar.bar_style, text.value) for name, (bar, text) in place._rows.items()})
""",
}


def execute(cells: dict[str, str], state: Path, **environment: str) -> dict[str, list[Any]]:
    """Execute cells as JupyterLab does; return their outputs by name."""
    state.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells.values()])
    client = NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=DEADLINE)
    given = {**os.environ, "VMSNIX_STATE": str(state), "JPY_SESSION_NAME": "notebook.ipynb", **environment}
    client.execute(env=given, cwd=str(state))
    return {name: cell.outputs for name, cell in zip(cells, notebook.cells, strict=True)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    with sandbox() as aws:
        yield execute(CELLS, tmp_path_factory.mktemp("lab") / "state", **aws.environment)


def bars(outputs: list[Any]) -> int:
    return sum(WIDGET in output.get("data", {}) for output in outputs)


def card_of(outputs: list[Any]) -> Any:
    (found,) = [output.data for output in outputs if cards.ERROR in output.get("data", {})]
    return found


def error_of(outputs: list[Any]) -> Any:
    (found,) = [output for output in outputs if output.output_type == "error"]
    return found


def test_each_cell_has_the_bars_of_its_own_steps(outputs: dict[str, list[Any]]) -> None:
    shown = {name: bars(found) for name, found in outputs.items()}
    once = ("build", "upload", "upload again", "threads", "second run", "interrupt", "left behind")
    assert shown == {name: int(name in once) for name in CELLS}


def test_bars_end_in_the_state_of_their_steps(outputs: dict[str, list[Any]]) -> None:
    (printed,) = outputs["texts"]
    rows: dict[str, tuple[str, str]] = eval(printed.text)
    assert rows["upload"][0] == rows["copy-2"][0] == "success"
    assert rows["import"][0] == rows["wait"][0] == "warning"
    assert rows["import"][1].startswith("stopped after ")
    assert "3 of 10 items" in rows["import"][1]


def test_an_error_is_a_card_with_folded_details(outputs: dict[str, list[Any]]) -> None:
    card, error = card_of(outputs["error"]), error_of(outputs["error"])
    page = card["text/html"]
    above, _, details = page.partition("<details>")
    assert "No &lt;b&gt;copy&lt;/b&gt;\\x1b[2J." in above
    assert "&lt;script&gt;" in above
    assert "Allow it." in above
    for part in ("UnauthorizedOperation", "CopyImage", "req-1&lt;i&gt;", "Traceback"):
        assert part in details
        assert part not in above
    assert "import-timings" in card[cards.ERROR]["detail"]["run"]
    assert (error.ename, len(error.traceback)) == ("AwsError", 3)
    assert "\x1b[2J" not in "".join(error.traceback)
    assert "Traceback" not in "".join(error.traceback)


def test_other_errors_keep_the_traceback_of_ipython(outputs: dict[str, list[Any]]) -> None:
    (error,) = outputs["name"]
    assert error.ename == "NameError"
    assert "Traceback" in "".join(error.traceback)


def test_an_interrupt_reports_what_is_done_and_how_to_continue(outputs: dict[str, list[Any]]) -> None:
    card, error = card_of(outputs["interrupt"]), error_of(outputs["interrupt"])
    assert card[cards.ERROR]["what"] == "The cell was interrupted."
    assert card[cards.ERROR]["why"] == "Done: verify. Not finished: import (3 of 10 items)."
    assert card[cards.ERROR]["fix"].startswith("Run this cell again to continue")
    assert ">Stopped</b>" in card["text/html"]
    assert error.ename == "KeyboardInterrupt"


def test_the_report_shows_the_card_once(outputs: dict[str, list[Any]]) -> None:
    cell = nbformat.v4.new_code_cell("1", outputs=outputs["error"], execution_count=1)
    page = render(nbformat.v4.new_notebook(cells=[cell]), {"runbook": "x", "status": "failed"})
    assert page.count("Why:</b> &lt;script&gt;alert(1)&lt;/script&gt;") == 1
    assert 'class="traceback"' not in page
    assert "<summary>Details</summary>" in page
    assert "display: none" not in page


def test_the_head_names_sandbox_account_region_and_endpoint(outputs: dict[str, list[Any]]) -> None:
    (head,) = [output.data for output in outputs["first"] if cards.HEAD in output.get("data", {})]
    text = head["text/plain"]
    assert text.startswith("SANDBOX: account 012345678901, region eu-west-1. http://127.0.0.1:")
    assert "No request reaches AWS." in text
    assert "SANDBOX" in head["text/html"]


def test_the_head_does_not_wait_long_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        where = cards.read_where({"regions": ["eu-west-1", "eu-north-1"]}, seconds=0.01)
    assert (where.kind, where.account, where.region) == ("sandbox", "", "eu-west-1, eu-north-1")
    assert "did not answer in 0.01 seconds" in str(where)
    wait_until(lambda: "AWS account" not in {thread.name for thread in threading.enumerate()}, "the request")


def test_the_head_shows_that_there_are_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    where = cards.read_where({}, seconds=DEADLINE)
    assert str(where).startswith("AWS: account unknown, region ")
    assert "Unable to locate credentials." in where.problem
