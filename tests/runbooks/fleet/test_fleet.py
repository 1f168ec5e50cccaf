"""Fleets on a real cluster of this machine: what runs, in which order, and what remains when parts die."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.forks import fork_programs
from tests.support import DEADLINE, finish, join, wait_until
from vmsnix_ops.errors import FleetError, PartialError, ToolMissingError
from vmsnix_ops.progress import Event, LogLines, Progress, silent
from vmsnix_ops.runbooks import fleet
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.fleet.engine import Runner, check_workers, connected
from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger
from vmsnix_ops.runbooks.fleet.plan_file import Dask
from vmsnix_ops.runbooks.fleet.worker import FleetSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.runbooks.shelf import Shelf
    from vmsnix_ops.runbooks.fleet.report import FleetResult

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYxx"  # has the form of a secret key
TOOK = r"(\d+ min )?[\d.]+ s"  # a duration in a line of progress

TRACE = """\
import os, time
from pathlib import Path
def trace(word):
    with Path(os.environ["TRACE"]).open("a") as file:
        file.write(f"{word} {name}\\n")
"""
WORK = """\
try:
    trace("begin")
    if must_be and not Path(must_be).exists():
        raise RuntimeError(f"{must_be} is missing")
    time.sleep(seconds)
finally:
    trace("end")
"""
PARAMETERS = """\
name: str = "x"  # who
must_be: str = ""  # a file without which it fails
seconds: float = 0.0  # how long it takes
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster as a fleet makes it for itself, kept for several fleets because its start takes a while."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {"VMSNIX_STATE": str(folder), "AWS_SECRET_ACCESS_KEY": SECRET}
    with connected(
        Dask(workers=2, resources={"kvm": 1}), log=folder / "log.txt", environment=environment
    ) as client:
        client.wait_for_workers(2)
        client.run(fork_programs)
        yield client


@dataclass
class Workspace:
    """A folder with a plan, a notebook that leaves a trace, and what was shown."""

    folder: Path

    def plan(self, text: str, **options: Any) -> fleet.FleetPlan:
        path = self.folder / "fleet.toml"
        common = (
            f'name = "try"\nnotebooks = "notebooks"\n[defaults.environment]\nTRACE = "{self.folder}/trace"\n'
        )
        path.write_text(common + text)
        settled = {"dry_run": False, "workers": 2, "lease_seconds": 4.0} | options
        return fleet.plan(path, **settled)

    def trace(self) -> list[str]:
        path = self.folder / "trace"
        return path.read_text().splitlines() if path.exists() else []

    def running(self, planned: fleet.FleetPlan, target: str) -> Document:
        """Wait until a target's notebook has begun, and return its claim."""
        wanted = next(each for each in planned.file.targets if each.name == target)

        def document() -> Document | None:
            claim, _ = Ledger(planned.ledger).read(wanted.claim)
            begun = f"begin {wanted.given['name']}" in self.trace()
            return claim if begun and claim and claim["state"] == "running" else None

        return wait_until(document, f"the start of {target}") or {}


@pytest.fixture
def workspace(shelf: Shelf, tmp_path: Path) -> Workspace:
    shelf.put("10-work.ipynb", TRACE, WORK, parameters=PARAMETERS)
    return Workspace(tmp_path)


@pytest.fixture
def on_the_cluster(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.engine.connected", lambda *_, **__: nullcontext(cluster))


def states(outcome: FleetResult) -> dict[str, str]:
    return {document["target"]: document["state"] for document in outcome.documents}


def test_a_fleet_runs_all_possible_targets_and_the_next_start_runs_the_others(
    workspace: Workspace, on_the_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(workspace.folder / "outputs"))
    text = """
        [[entry]]
        name = "first"
        runbook = "work"
        parameters = { name = "a" }
        [[entry]]
        name = "flaky"
        runbook = "work"
        parameters = { name = "f", must_be = "fix" }
        after = ["first"]
        retries = 1
        retry_wait = 0
        [[entry]]
        name = "last"
        runbook = "work"
        parameters = { name = "z" }
        resources = { kvm = 1 }
        after = ["flaky"]
    """
    screen = io.StringIO()
    outcome = workspace.plan(text).apply(progress=Progress(LogLines(screen)))

    assert states(outcome) == {"first": "done", "flaky": "failed", "last": "skipped"}
    assert (outcome.status, outcome.exit_code) == ("partial", 3)
    with pytest.raises(PartialError, match="2 of 3 targets") as caught:
        finish(outcome)
    assert "fix is missing" in str(caught.value)
    assert [len(document["attempts"]) for document in outcome.documents] == [1, 2, 0]
    assert workspace.trace().index("begin f") > workspace.trace().index("end a")
    shown = screen.getvalue().splitlines()
    assert shown[0] == "fleet try ..."
    assert any(re.fullmatch(rf"first finished in {TOOK}", line) for line in shown)
    assert any(re.match("fleet try: flaky is retrying: .*fix is missing", line) for line in shown), shown
    assert "fleet try: last is skipped: Not run, because these are not done: flaky." in shown
    assert re.fullmatch(rf"fleet try failed in {TOOK}: 1 done, 1 failed, 1 skipped", shown[-1])

    # The evidence
    report = Path(outcome.values["report"])
    page = report.read_text()
    assert 'class="failed">failed' in page
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 2
    assert all((report.parent / link).is_file() for link in links)
    result = json.loads(Path(outcome.values["result"]).read_text())
    assert (result["status"], result["exit_code"]) == ("partial", 3)
    assert result["targets"] == {"done": 1, "failed": 1, "skipped": 1}
    kept = json.loads((report.parent / "fleet.json").read_text())["targets"]
    assert [target["state"] for target in kept] == ["done", "failed", "skipped"]
    assert (workspace.folder / "outputs").read_text().count("run_id=") == 1
    for path in workspace.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path

    # Started again, with the missing file, it runs the rest and nothing else
    (workspace.folder / "fix").write_text("")
    before = len(workspace.trace())
    planned = workspace.plan(text)
    assert "1 target done already: skipped. --fresh runs all targets again." in str(planned)
    assert list(planned.frame()["state"]) == ["done", "failed", "skipped"]
    whole = planned.apply(progress=Progress(LogLines(screen)))
    assert set(states(whole).values()) == {"done"}
    assert workspace.trace()[before:] == ["begin f", "end f", "begin z", "end z"]
    assert whole.fleet_run != outcome.fleet_run

    # A start of a fleet that is done runs nothing, and needs no cluster
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.engine.connected", None)
    before = len(workspace.trace())
    idle = workspace.plan(text).apply(progress=silent())
    assert (idle.status, idle.counts, len(workspace.trace())) == ("done", {"done": 3}, before)


@pytest.mark.long(seconds=25)
def test_a_fresh_fleet_runs_all_targets_again_and_a_changed_target_runs_with_its_dependents(
    workspace: Workspace, on_the_cluster: None
) -> None:
    text = """
        [[entry]]
        name = "one"
        runbook = "work"
        parameters = { name = "a" }
        [[entry]]
        name = "two"
        runbook = "work"
        parameters = { name = "b" }
        after = ["one"]
        [[entry]]
        name = "other"
        runbook = "work"
        parameters = { name = "c" }
    """
    workspace.plan(text).apply(progress=silent())
    changed = workspace.plan(text.replace('"a"', '"x"'))
    assert changed.states == {"one": "planned", "two": "planned", "other": "done"}
    fresh = workspace.plan(text, fresh=True)
    assert set(fresh.states.values()) == {"planned"}
    assert fresh.apply(progress=silent()).status == "done"
    assert Counter(workspace.trace()) == {f"{word} {name}": 2 for word in ("begin", "end") for name in "abc"}


TWO = """
    [[entry]]
    runbook = "work"
    parameters = { seconds = 4.0 }
    matrix = { name = ["a", "b"] }
"""


def kill_while_running(workspace: Workspace, find: Callable[[int], int]) -> FleetResult:
    """Run a fleet, and kill a process that is found by the ID of the process that runs its first target."""
    planned = workspace.plan(TWO)
    killed: list[int] = []

    def kill() -> None:
        killed.append(find(workspace.running(planned, "work/name=a")["owner"]["pid"]))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = planned.apply(progress=silent())
    join(thread)
    assert killed
    assert outcome.status == "done"
    return outcome


@pytest.mark.long(seconds=20)
def test_a_target_whose_process_is_killed_runs_again(workspace: Workspace, on_the_cluster: None) -> None:
    outcome = kill_while_running(workspace, lambda owner: owner)
    attempts = {d["target"]: [a["status"] for a in d["attempts"]] for d in outcome.documents}
    assert attempts == {"work/name=a": ["lost", "done"], "work/name=b": ["done"]}
    trace = workspace.trace()
    assert {word: trace.count(f"end {word}") for word in "ab"} == {"a": 1, "b": 1}  # its kernel ended, too


@pytest.mark.long(seconds=20)
def test_a_target_outlives_its_worker_and_runs_once(workspace: Workspace, on_the_cluster: None) -> None:
    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    outcome = kill_while_running(workspace, parent)
    assert [[a["status"] for a in d["attempts"]] for d in outcome.documents] == [["done"], ["done"]]
    assert Counter(workspace.trace()) == {f"{word} {name}": 1 for word in ("begin", "end") for name in "ab"}


def test_a_stopped_fleet_lets_its_runs_clean_up(workspace: Workspace, on_the_cluster: None) -> None:
    text = """
        [[entry]]
        runbook = "work"
        parameters = { seconds = 10000.0, name = "a" }
        [[entry]]
        name = "after"
        runbook = "work"
        parameters = { name = "b" }
        after = ["work"]
    """
    planned, stop = workspace.plan(text), Interrupter()

    def interrupt() -> None:
        workspace.running(planned, "work")
        stop.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = planned.apply(progress=silent(), stop=stop)
    join(thread)
    assert outcome.status == "cancelled"
    assert workspace.trace() == ["begin a", "end a"]


@pytest.mark.long(seconds=20)
def test_ctrl_c_in_a_terminal_lets_the_runs_clean_up(workspace: Workspace) -> None:
    planned = workspace.plan('[[entry]]\nrunbook = "work"\nparameters = { seconds = 10000.0, name = "a" }')
    command = ["fleet", str(workspace.folder / "fleet.toml"), "--no-dry-run", "--workers", "1"]
    with subprocess.Popen([sys.executable, "-m", "vmsnix_ops", *command], start_new_session=True) as client:
        workspace.running(planned, "work")
        os.killpg(client.pid, signal.SIGINT)  # as a terminal does
        assert client.wait(DEADLINE) == 1
    assert workspace.trace() == ["begin a", "end a"]
    document, _ = Ledger(planned.ledger).read(planned.file.targets[0].claim)
    assert document is not None
    assert document["state"] == "cancelled"


def test_the_fleet_reports_a_worker_without_access_to_the_ledger(
    workspace: Workspace, on_the_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fleet, "FleetSession", lambda **facts: FleetSession(**facts | {"ledger": str(workspace.folder / "x")})
    )
    outcome = workspace.plan('[[entry]]\nrunbook = "work"').apply(progress=silent())
    assert outcome.status == "failed"
    assert "has no access to the ledger" in str(outcome.error)
    assert workspace.trace() == []


def test_the_display_shows_each_state_of_a_target_once(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    session = FleetSession("session", "ledger", "id", "archive", "folder", "", {}, 60.0)
    runner = Runner(workspace.plan(TWO).file, session, {}, Progress(events.append), Interrupter())
    for state in ("running", "retrying", "running", "done", "done", "running"):  # reports may be late
        runner._on_state("work/name=a", state, "It broke." if state == "retrying" else None)
    runner._on_state("work/name=b", "waiting", "It runs on elsewhere as process 7.")
    runner._on_state("work/name=b", "skipped", "Not run.")
    assert [(event.step, event.kind, event.message) for event in events] == [
        ("work/name=a", "started", ""),
        ("fleet try", "message", "work/name=a is retrying: It broke."),
        ("work/name=a", "started", ""),
        ("work/name=a", "finished", ""),
        ("fleet try", "advanced", ""),
        ("fleet try", "message", "work/name=b is waiting: It runs on elsewhere as process 7."),
        ("fleet try", "message", "work/name=b is skipped: Not run."),
        ("fleet try", "advanced", ""),
    ]
    assert (events[-1].done, events[-1].total) == (2, 2)
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warnings == ["work/name=a failed: trying again."]


# The cluster


def test_only_the_fleet_can_use_the_cluster_of_this_machine(cluster: Any) -> None:
    info = cluster.scheduler_info()
    workers = info["workers"].values()
    for address in [info["address"], *info["workers"], *(worker["nanny"] for worker in workers)]:
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect_without_certificate(urlsplit(address).port or 0)
    for port in [each["services"]["dashboard"] for each in (info, *workers)]:
        for page in ("", "info/main/workers.html", "metrics", "json/counts.json"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5)


def connect_without_certificate(port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 30) as plain, context.wrap_socket(plain) as wrapped:
        wrapped.sendall(b"x")
        if not wrapped.recv(1):
            raise ConnectionError


def test_missing_resources_are_reported_before_anything_runs(workspace: Workspace, cluster: Any) -> None:
    targets = workspace.plan('[[entry]]\nrunbook = "work"\nresources = { gpu = 1 }').file.targets
    with pytest.raises(
        FleetError, match=r"No worker has the resources of work: gpu=1\. The workers have kvm"
    ):
        check_workers(cluster, targets)


def test_the_messages_to_workers_contain_no_secret(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    planned = workspace.plan('[[entry]]\nrunbook = "work"', environment={"AWS_SESSION_TOKEN": SECRET})
    sent: list[bytes] = []

    def keep(self: Runner, _log: Path) -> None:
        sent.append(pickle.dumps((self.session, self.plan.targets)))

    monkeypatch.setattr(Runner, "run", keep)
    planned.apply(progress=silent())
    assert SECRET.encode() not in sent[0]
    assert SECRET not in repr(planned)


def test_the_error_of_missing_dask_has_the_command_to_install_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ToolMissingError, match=r"pip install vmsnix-ops\[fleet\]"):
        workspace.plan('[[entry]]\nrunbook = "work"').apply()


def test_an_unreachable_scheduler_is_an_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.engine.CONNECT_SECONDS", 1)
    planned = workspace.plan('[[entry]]\nrunbook = "work"', scheduler="tcp://127.0.0.1:9")
    with pytest.raises(FleetError, match=r"The scheduler tcp://127.0.0.1:9 is not reachable"):
        planned.apply()
