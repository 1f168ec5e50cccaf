"""A fleet on a real scheduler and real workers, parts of which are killed at random: nothing lost or doubled.

Three kills, one of each part; the long tests make it 24.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed.security import Security

from tests.faults.account import BUCKET, REGION, look
from tests.support import DEADLINE, kill, wait_until
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PARTS = ("client", "worker", "scheduler")
PLAN = f"""
name = "storm"

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
LOOK = f"""
[[entry]]
name = "look"
runbook = "audit-inventory"
regions = ["{REGION}"]
after = ["publish"]
"""


@dataclass
class Storm:
    """A fleet in processes of its own: scheduler, two workers, and a client that is started again."""

    folder: Path
    environment: dict[str, str]
    ledger: str
    port: int
    certificate: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: int = 0

    def start(self, name: str) -> None:
        """Start a part, unless it runs."""
        process = self.processes.get(name)
        if process is not None and process.poll() is None:
            return
        self.starts += 1
        address = f"tls://127.0.0.1:{self.port}"
        here = ["--host", "127.0.0.1", "--tls-ca-file", self.certificate, "--tls-cert", self.certificate]
        here += ["--tls-key", self.certificate.replace(".pem", ".key")]
        scheduler = [*here, "--port", str(self.port), "--dashboard-address", "127.0.0.1:0", "--no-show"]
        worker = [address, *here, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "30"]
        client = [str(self.folder / "plan.toml"), "--no-dry-run", "--scheduler", address]
        words = {
            "scheduler": ["distributed.cli.dask_scheduler", *scheduler],
            "worker": ["distributed.cli.dask_worker", *worker],
            "client": ["vmsnix_ops", "fleet", *client, "--ledger", self.ledger],
        }
        with (self.folder / f"{name}-{self.starts}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *words[name.partition("-")[0]]],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, part: str, rng: random.Random) -> None:
        """Kill a part with a signal that nobody can answer."""
        name = rng.choice(["worker-0", "worker-1"]) if part == "worker" else part
        kill(self.processes[name])

    def start_all(self) -> None:
        for name in ("scheduler", "worker-0", "worker-1", "client"):
            self.start(name)

    def wait_for_a_run(self, seconds: float = 90) -> bool:
        """Wait until a target is run; False when the client ended before."""

        def runs() -> bool:
            return any(document["state"] == "running" for document in self.documents())

        def ended() -> bool:
            return self.processes["client"].poll() is not None

        wait_until(lambda: ended() or runs(), "the start of a run", deadline=seconds, pause=0.1)
        return not ended()

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in Path(self.ledger).glob("targets/*.json")]

    def logs(self) -> str:
        return "\n".join(path.name + "\n" + path.read_text()[-1500:] for path in self.folder.glob("*.log"))

    def finish(self) -> None:
        """Start what is dead, again and again, until a client says that all is done."""
        for _ in range(6):
            self.start_all()
            if self.processes["client"].wait(timeout=240) == 0:
                return
        pytest.fail(f"the fleet did not come to its end: {self.logs()}")

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(DEADLINE)


@pytest.fixture
def aws() -> Iterator[Sandbox]:
    with sandbox(speed=1000) as started:
        started.prepare(bucket=BUCKET, region=REGION)
        yield started


@pytest.fixture
def storm(tmp_path: Path, aws: Sandbox) -> Iterator[Storm]:
    for name in ("first", "second"):
        make_sample_image(tmp_path / name, name=name, seed=name)
    (tmp_path / "plan.toml").write_text(PLAN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {"VMSNIX_STATE": str(tmp_path / "state"), "VMSNIX_BUCKET": BUCKET, "PYTHONPATH": str(ROOT)}
    security = Security.temporary()  # type: ignore[no-untyped-call]
    (tmp_path / "node.pem").write_text(security.tls_ca_file)
    (tmp_path / "node.key").write_text(security.tls_client_key)
    environment, ledger = {**aws.environment, **ours}, str(tmp_path / "ledger")
    made = Storm(tmp_path, environment, ledger, port, str(tmp_path / "node.pem"))
    yield made
    made.end()


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        pytest.param(0, 3, marks=pytest.mark.long(seconds=60)),
        *(pytest.param(seed, 12, marks=pytest.mark.long(seconds=300)) for seed in (1, 2)),
    ],
)
def test_whatever_is_killed_starting_again_finishes_the_rest_and_doubles_nothing(
    storm: Storm, aws: Sandbox, seed: int, kills: int
) -> None:
    whole = kills > 3
    if whole:
        (storm.folder / "plan.toml").write_text(PLAN + LOOK)
    rng = random.Random(seed)
    victims = [part for _ in range(kills // len(PARTS)) for part in rng.sample(PARTS, len(PARTS))]
    killed = 0
    for part in victims:
        storm.start_all()
        if not storm.wait_for_a_run():
            continue
        time.sleep(rng.uniform(0, 3))
        storm.kill(part, rng)
        killed += 1
        if part == "scheduler":
            # The client says so, with what was done until then.
            assert storm.processes["client"].wait(timeout=120) in (0, 1, 3)
    storm.finish()

    assert killed >= 2
    assert list(look(aws).leftovers(amis=2)) == []
    documents = storm.documents()
    names = ["publish/first/us-east-1", "publish/second/us-east-1", *(["look/us-east-1"] if whole else [])]
    assert {document["target"]: document["state"] for document in documents} == dict.fromkeys(names, "done")
    for document in documents:
        verdicts = [attempt["verdict"] for attempt in document["attempts"]]
        assert verdicts.count("done") == 1, verdicts
    tables = Tables(storm.folder / "state" / "history")
    amis, steps, runs = (tables.read(name) for name in ("amis", "steps", "runs"))
    assert sorted(amis["ami_id"]) == sorted(look(aws).amis)
    assert runs["run_id"].is_unique
    assert not steps.duplicated(["run_id", "step"]).any()
    # A worker may die between the end of a run and the word of it: then the run is done twice, its work once.
    done = set(runs["run_id"][runs["status"] == "done"])
    last = {attempt["run_id"] for document in documents for attempt in document["attempts"][-1:]}
    assert last <= done

    # And once more: a new round, which finds everything there.
    if whole:
        storm.finish()
        assert list(look(aws).leftovers(amis=2)) == []
