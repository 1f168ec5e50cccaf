"""A fleet whose parts are killed or stopped, on real workers: nothing is lost, and nothing is done twice.

The first test kills parts at random. The others do one thing each while a smoke test, a promotion and a
rollback run, and count the calls that had an effect.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed.security import Security

from tests.aws.account import make_ami
from tests.faults.account import BUCKET, REGION, read_account
from tests.support import DEADLINE, kill, wait_until
from vmsnix_ops.channels import promote
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PARTS = ("client", "worker", "scheduler")
PLAN = f"""
name = "killed"

[dask]
ca_file = "node.pem"
cert = "node.pem"
key = "node.key"

[defaults]
retries = 1
retry_wait = 0

[[entry]]
name = "publish"
runbook = "publish-ami"
images = ["./first", "./second"]
regions = ["{REGION}"]

[[entry.override]]
where = {{ image = "./second" }}
parameters = {{ via = "direct" }}
"""
AUDIT = f"""
[[entry]]
name = "audit"
runbook = "audit-inventory"
regions = ["{REGION}"]
after = ["publish"]
"""


@dataclass
class Processes:
    """A fleet in processes of its own: scheduler, workers, and clients that are started again."""

    folder: Path
    environment: dict[str, str]
    ledger: str
    port: int
    certificate: str
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: int = 0

    def start(self, name: str, *options: str) -> None:
        """Start a part, unless it runs; a client without options uses the scheduler."""
        process = self.parts.get(name)
        if process is not None and process.poll() is None:
            return
        self.starts += 1
        address = f"tls://127.0.0.1:{self.port}"
        here = ["--host", "127.0.0.1", "--tls-ca-file", self.certificate, "--tls-cert", self.certificate]
        here += ["--tls-key", self.certificate.replace(".pem", ".key")]
        scheduler = [*here, "--port", str(self.port), "--dashboard-address", "127.0.0.1:0", "--no-show"]
        worker = [address, *here, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "30"]
        client = [str(self.folder / "plan.toml"), "--no-dry-run", *(options or ["--scheduler", address])]
        words = {
            "scheduler": ["distributed.cli.dask_scheduler", *scheduler],
            "worker": ["distributed.cli.dask_worker", *worker],
            "client": ["vmsnix_ops", "fleet", *client, "--ledger", self.ledger],
        }
        with (self.folder / f"{name}-{self.starts}.log").open("wb") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-m", *words[name.partition("-")[0]]],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, part: str, rng: random.Random) -> None:
        """Kill a part with SIGKILL."""
        name = rng.choice(["worker-0", "worker-1"]) if part == "worker" else part
        kill(self.parts[name])

    def start_all(self, workers: int = 2, clients: tuple[str, ...] = ("client",)) -> None:
        for name in ("scheduler", *(f"worker-{number}" for number in range(workers)), *clients):
            self.start(name)

    def wait_for_a_run(self, seconds: float = 90) -> bool:
        """Wait until a target runs; False when the client ended before."""

        def runs() -> bool:
            return bool(self.owners())

        def ended() -> bool:
            return self.parts["client"].poll() is not None

        wait_until(lambda: ended() or runs(), "the start of a run", deadline=seconds, pause=0.1)
        return not ended()

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in Path(self.ledger).glob("targets/*.json")]

    def owners(self) -> list[int]:
        """Return the IDs of the processes that run targets."""
        running = [document for document in self.documents() if document["state"] == "running"]
        return [document["owner"]["pid"] for document in running]

    def end_of(self, client: str) -> int:
        return self.parts[client].wait(timeout=240)

    def logs(self) -> str:
        return "\n".join(path.name + "\n" + path.read_text()[-6000:] for path in self.folder.glob("*.log"))

    def finish(self) -> None:
        """Start the parts that ended, again and again, until a client is done."""
        for _ in range(6):
            self.start_all()
            if self.end_of("client") == 0:
                return
        pytest.fail(f"the fleet was never done: {self.logs()}")

    def end(self) -> None:
        for process in self.parts.values():
            process.kill()
            process.wait(DEADLINE)
        for owner in self.owners():  # targets outlive their workers
            os.kill(owner, signal.SIGKILL)


@pytest.fixture
def aws() -> Iterator[Sandbox]:
    with sandbox(speed=1000) as started:
        started.prepare(bucket=BUCKET, region=REGION)
        yield started


@pytest.fixture
def processes(tmp_path: Path, aws: Sandbox) -> Iterator[Processes]:
    for name in ("first", "second"):
        make_sample_image(tmp_path / name, name=name, seed=name)
    (tmp_path / "plan.toml").write_text(PLAN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {
        "VMSNIX_STATE": str(tmp_path / "state"),
        "VMSNIX_BUCKET": BUCKET,
        "VMSNIX_REGION": REGION,
        "PYTHONPATH": str(ROOT),
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",
    }
    security = Security.temporary()  # type: ignore[no-untyped-call]
    (tmp_path / "node.pem").write_text(security.tls_ca_file)
    (tmp_path / "node.key").write_text(security.tls_client_key)
    environment, ledger = {**aws.environment, **ours}, str(tmp_path / "ledger")
    made = Processes(tmp_path, environment, ledger, port, str(tmp_path / "node.pem"))
    yield made
    made.end()


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        pytest.param(0, 3, marks=pytest.mark.long(seconds=60)),
        *(pytest.param(seed, 12, marks=pytest.mark.long(seconds=300)) for seed in (1, 2)),
    ],
)
def test_a_fleet_whose_parts_are_killed_is_finished_by_the_next_start(
    processes: Processes, aws: Sandbox, seed: int, kills: int
) -> None:
    whole = kills > 3
    if whole:
        (processes.folder / "plan.toml").write_text(PLAN + AUDIT)
    rng = random.Random(seed)
    victims = [part for _ in range(kills // len(PARTS)) for part in rng.sample(PARTS, len(PARTS))]
    killed = 0
    for part in victims:
        processes.start_all()
        if not processes.wait_for_a_run():
            continue
        time.sleep(rng.uniform(0, 3))
        processes.kill(part, rng)
        killed += 1
        if part == "scheduler":
            # The client reports that, and what was done until then.
            assert processes.end_of("client") in (0, 1, 3)
    processes.finish()

    assert killed >= 2
    assert list(read_account(aws).problems(amis=2)) == []
    documents = processes.documents()
    names = ["publish/first/us-east-1", "publish/second/us-east-1", *(["audit/us-east-1"] if whole else [])]
    assert {document["target"]: document["state"] for document in documents} == dict.fromkeys(names, "done")
    for document in documents:
        statuses = [attempt["status"] for attempt in document["attempts"]]
        assert statuses.count("done") == 1, statuses
    tables = Tables(processes.folder / "state" / "history")
    amis, steps, runs = (tables.read(name) for name in ("amis", "steps", "runs"))
    assert sorted(amis["ami_id"]) == sorted(read_account(aws).amis)
    assert runs["run_id"].is_unique
    assert not steps.duplicated(["run_id", "step"]).any()
    # A process may die after the end of a run and before its result: the run is done twice, its work once.
    done = set(runs["run_id"][runs["status"] == "done"])
    last = {attempt["run_id"] for document in documents for attempt in document["attempts"][-1:]}
    assert last <= done

    # Everything again: each runbook finds its results.
    if whole:
        processes.start("client", "--fresh", "--workers", "2")
        assert processes.end_of("client") == 0, processes.logs()
        assert list(read_account(aws).problems(amis=2)) == []


# No effect twice

EFFECTS = ("RunInstances", "TerminateInstances", "PutParameter")
SLOW_SECONDS = 15.0  # longer than Dask waits for a worker that does not answer


@pytest.fixture
def acts(processes: Processes, aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """A fleet with a smoke test, a promotion and a rollback, whose calls with an effect take a while."""
    for name, value in processes.environment.items():
        monkeypatch.setenv(name, value)
    old, new = (make_ami(aws, version=version) for version in ("26.11", "26.12"))
    for ami in (old, new):
        promote.plan(ami=ami, channel="candidate", dry_run=False, progress=silent()).apply()
    head = PLAN.partition("[defaults]")[0]
    entries = (
        ("smoke-test", {"ami": new}),
        ("promote-ami", {"ami": new, "channel": "stable", "dry_run": False}),
        ("rollback", {"image": "ecs-node", "channel": "candidate", "dry_run": False}),
    )
    for runbook, parameters in entries:
        given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in parameters.items())
        head += f'[[entry]]\nrunbook = "{runbook}"\nparameters = {{ {given} }}\n'
    (processes.folder / "plan.toml").write_text(head)
    console = {"console": "<<< Welcome to NixOS >>>\r\n"}
    aws.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": console})
    for operation in ("ec2:RunInstances", "ssm:PutParameter"):
        aws.faults.add({"op": operation, "do": "delay", "seconds": SLOW_SECONDS})
    aws.calls.clear()
    return processes


def check_effects(processes: Processes, aws: Sandbox) -> None:
    """Check that each runbook ran once and had its effect once."""
    documents = processes.documents()
    assert {document["target"]: document["state"] for document in documents} == {
        "smoke-test": "done",
        "promote-ami": "done",
        "rollback": "done",
    }, processes.logs()
    assert [len(document["attempts"]) for document in documents] == [1, 1, 1]
    calls = [call for call in aws.calls if call.operation in EFFECTS and call.ran]
    effects = Counter(call.operation for call in calls)
    assert effects == {"RunInstances": 1, "TerminateInstances": 1, "PutParameter": 2}, calls


def wait_for_all(processes: Processes) -> list[int]:
    """Wait until all targets run, and return the IDs of their processes."""
    wait_until(lambda: len(processes.owners()) == 3, "three runs", pause=0.1)
    return processes.owners()


@pytest.mark.long(seconds=60)
def test_the_next_client_waits_for_the_runs_of_a_client_that_was_killed(
    acts: Processes, aws: Sandbox
) -> None:
    acts.start("client", "--workers", "3")
    owners = wait_for_all(acts)
    kill(acts.parts["client"])
    acts.start("client", "--workers", "3")
    assert acts.end_of("client") == 0, acts.logs()
    assert acts.logs().count("is waiting: It runs on") == 3
    check_effects(acts, aws)
    assert sorted(document["owner"]["pid"] for document in acts.documents()) == sorted(owners)


@pytest.mark.long(seconds=90)
def test_another_worker_waits_for_the_run_of_a_worker_that_is_stopped(acts: Processes, aws: Sandbox) -> None:
    acts.start_all(workers=6)
    stopped = [parent_of(owner) for owner in wait_for_all(acts)]
    for worker in stopped:
        os.kill(worker, signal.SIGSTOP)
    try:
        waiting = "is waiting: It runs on"
        wait_until(lambda: acts.logs().count(waiting) == 3, "other workers that wait", pause=0.5)
        assert acts.logs().count("Worker failed to heartbeat") == 3
    finally:
        for worker in stopped:
            os.kill(worker, signal.SIGCONT)
    assert acts.end_of("client") == 0, acts.logs()
    check_effects(acts, aws)


@pytest.mark.long(seconds=60)
def test_two_clients_with_one_plan_share_its_runs(acts: Processes, aws: Sandbox) -> None:
    acts.start_all(workers=6, clients=("client", "client-2"))
    for client in ("client", "client-2"):
        assert acts.end_of(client) == 0, acts.logs()
    check_effects(acts, aws)


def parent_of(pid: int) -> int:
    """Return the ID of the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
