"""Fleets on a real cluster of this machine: what is run, in which order, what is left when parts die."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import socket
import ssl
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.support import finish, join, wait_until
from vmsnix_ops.errors import FleetError, PartialError, ToolMissingError
from vmsnix_ops.runbooks import fleet
from vmsnix_ops.runbooks.fleet.cluster import check_workers, connected
from vmsnix_ops.runbooks.fleet.engine import Runner, Stop
from vmsnix_ops.runbooks.fleet.ledger import Document, open_ledger
from vmsnix_ops.runbooks.fleet.plan_file import Dask
from vmsnix_ops.runbooks.fleet.table import Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runbooks.shelf import Shelf
    from vmsnix_ops.runbooks.fleet.report import FleetResult

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYxx"  # the shape of one; nobody's

TRACE = """\
import os, time
from pathlib import Path
trace = Path(os.environ["TRACE"])
def tell(word):
    with trace.open("a") as file:
        file.write(f"{word} {name}\\n")
tell("begin")
"""
WORK = """\
if must_be and not Path(must_be).exists():
    raise RuntimeError(f"{must_be} is missing")
try:
    time.sleep(seconds)
finally:
    tell("end")
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
        yield client


@dataclass
class Yard:
    """A folder with a plan, a notebook that leaves a trace, and what was shown."""

    folder: Path

    def plan(self, text: str, **options: Any) -> fleet.FleetPlan:
        path = self.folder / "fleet.toml"
        common = (
            f'name = "yard"\nnotebooks = "notebooks"\n[defaults.environment]\nTRACE = "{self.folder}/trace"\n'
        )
        path.write_text(common + text)
        settled = {"dry_run": False, "workers": 2, "lease_seconds": 4.0} | options
        return fleet.plan(path, **settled)

    def trace(self) -> list[str]:
        path = self.folder / "trace"
        return path.read_text().splitlines() if path.exists() else []

    def running(self, planned: fleet.FleetPlan, target: str) -> Document:
        """Wait until a target's notebook has begun, and return its document."""
        key = next(each.key for each in planned.plan.targets if each.name == target)
        name = next(str(each.given["name"]) for each in planned.plan.targets if each.name == target)

        def document() -> Document | None:
            kept = open_ledger(planned.ledger).read(f"targets/{key}.json")
            begun = kept is not None and kept.value["state"] == "running" and f"begin {name}" in self.trace()
            return kept.value if kept is not None and begun else None

        return wait_until(document, f"the start of {target}") or {}


@pytest.fixture
def yard(shelf: Shelf, tmp_path: Path) -> Yard:
    shelf.put("10-work.ipynb", TRACE, WORK, parameters=PARAMETERS)
    return Yard(tmp_path)


@pytest.fixture
def on_the_cluster(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.engine.connected", lambda *_, **__: nullcontext(cluster))


def states(outcome: FleetResult) -> dict[str, str]:
    return {document["target"]: document["state"] for document in outcome.documents}


def test_a_fleet_runs_what_it_can_and_goes_on_with_the_rest(
    yard: Yard, on_the_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(yard.folder / "outputs"))
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
    outcome = yard.plan(text).apply(board=Lines(screen))

    assert states(outcome) == {"first": "done", "flaky": "failed", "last": "skipped"}
    assert (outcome.status, outcome.exit_code) == ("partial", 3)
    with pytest.raises(PartialError, match="2 of 3 targets") as caught:
        finish(outcome)
    assert "fix is missing" in str(caught.value)
    assert [len(document["attempts"]) for document in outcome.documents] == [1, 2, 0]
    assert yard.trace().index("begin f") > yard.trace().index("end a")
    assert "✓ first: done after" in screen.getvalue()
    assert screen.getvalue().splitlines()[-1].startswith("yard: 1 done, 1 skipped, 1 failed;")

    # What is left of it
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
    assert (yard.folder / "outputs").read_text().count("run_id=") == 1
    for path in yard.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path

    # Once more, with what was missing: the rest and nothing else
    (yard.folder / "fix").write_text("")
    before = len(yard.trace())
    planned = yard.plan(text)
    assert planned.round == outcome.round
    assert list(planned.frame()["state"]) == ["done", "failed", "skipped"]
    whole = planned.apply(board=Lines(screen))
    assert set(states(whole).values()) == {"done"}
    assert yard.trace()[before:] == ["begin f", "end f", "begin z", "end z"]
    assert whole.round == outcome.round

    # And that was all: the next start is a new round
    assert yard.plan(text).round == ""


@pytest.mark.long(seconds=12)
def test_a_worker_that_is_killed_loses_nothing(yard: Yard, on_the_cluster: None) -> None:
    text = """
        [[entry]]
        runbook = "work"
        parameters = { seconds = 4.0 }
        matrix = { name = ["a", "b"] }
    """
    planned = yard.plan(text)
    killed: list[int] = []

    def kill() -> None:
        killed.append(yard.running(planned, "work/name=a")["owner"]["pid"])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = planned.apply(board=Lines(io.StringIO()))
    join(thread)
    assert outcome.status == "done"
    attempts = {d["target"]: [a["verdict"] for a in d["attempts"]] for d in outcome.documents}
    assert attempts["work/name=a"] == ["lost", "done"]
    assert killed
    assert all(verdicts[-1] == "done" for verdicts in attempts.values())
    trace = yard.trace()
    assert {word: trace.count(f"end {word}") for word in "ab"} == {"a": 1, "b": 1}
    assert trace.count("begin b") == 1


def test_a_fleet_that_is_asked_to_stop_lets_its_runs_clean_up(yard: Yard, on_the_cluster: None) -> None:
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
    planned, stop = yard.plan(text), Stop()

    def ask() -> None:
        yard.running(planned, "work")
        stop.interrupt()

    thread = threading.Thread(target=ask)
    thread.start()
    outcome = planned.apply(board=Lines(io.StringIO()), stop=stop)
    join(thread)
    assert outcome.status == "cancelled"
    assert yard.trace() == ["begin a", "end a"]


def test_a_worker_that_does_not_see_the_ledger_is_heard(yard: Yard, on_the_cluster: None) -> None:
    planned = yard.plan('[[entry]]\nrunbook = "work"')
    ledger = Runner._job

    def elsewhere(self: Runner, target: Any) -> Any:
        return replace(ledger(self, target), ledger=str(yard.folder / "elsewhere"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_job", elsewhere)
        outcome = planned.apply(board=Lines(io.StringIO()))
    assert outcome.status == "failed"
    assert "cannot see the ledger" in str(outcome.error)
    assert yard.trace() == []


# The cluster


def test_a_cluster_of_this_machine_is_for_nobody_else(cluster: Any) -> None:
    info = cluster.scheduler_info()
    workers = info["workers"].values()
    for address in [info["address"], *info["workers"], *(worker["nanny"] for worker in workers)]:
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            say_without_our_certificate(urlsplit(address).port or 0)
    for port in [each["services"]["dashboard"] for each in (info, *workers)]:
        for page in ("", "info/main/workers.html", "metrics", "json/counts.json"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5)


def say_without_our_certificate(port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 30) as plain, context.wrap_socket(plain) as wrapped:
        wrapped.sendall(b"x")
        if not wrapped.recv(1):
            raise ConnectionError


def test_what_no_worker_has_is_named_before_anything_runs(yard: Yard, cluster: Any) -> None:
    targets = yard.plan('[[entry]]\nrunbook = "work"\nresources = { gpu = 1 }').plan.targets
    with pytest.raises(
        FleetError, match=r"No worker has the resources of work: gpu=1\. The workers have kvm"
    ):
        check_workers(cluster, targets)


def test_no_secret_is_in_what_is_sent(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    planned = yard.plan('[[entry]]\nrunbook = "work"', environment={"AWS_SESSION_TOKEN": SECRET})
    runner = Runner(
        plan=planned.plan,
        ledger=open_ledger(planned.ledger),
        ledger_place=planned.ledger,
        archive=planned.archive,
        round="round",
        session="session",
        stop=Stop(),
        lease_seconds=planned.lease_seconds,
        environment=planned.environment,
    )
    assert SECRET.encode() not in pickle.dumps(runner._job(planned.plan.targets[0]))
    assert SECRET not in repr(planned)


def test_without_dask_the_fix_is_one_line(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ToolMissingError, match=r"pip install vmsnix-ops\[fleet\]"):
        yard.plan('[[entry]]\nrunbook = "work"').apply()


def test_a_scheduler_that_does_not_answer_is_named(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.cluster.CONNECT_SECONDS", 1)
    planned = yard.plan('[[entry]]\nrunbook = "work"', scheduler="tcp://127.0.0.1:9")
    with pytest.raises(FleetError, match=r"The scheduler tcp://127.0.0.1:9 is not reachable"):
        planned.apply()
