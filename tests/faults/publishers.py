"""Publishers as processes that can be killed and that start without importing the package each time.

`Publishers` starts one process that imports everything and then forks a publisher for each job. The test's
own process cannot do that, because the threads of the sandbox run in it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ROOT = Path(__file__).parents[2]
MOMENTS = ("before", "sent", "after")
"""Before the request, between request and response, after the response."""


@dataclass(frozen=True)
class Kill:
    """When a publisher is killed: at the `nth` call (from 1) of an operation, such as ``s3:UploadPart``."""

    call: str
    nth: int
    moment: str

    def __str__(self) -> str:
        return f"{self.call}#{self.nth} {self.moment}"


@dataclass(frozen=True)
class Job:
    """One publish: parameters of `publish.plan`, environment, and when to be killed.

    With `does="promote"` it is a promotion with parameters of `promote.plan`.
    """

    plan: Mapping[str, Any]
    environment: Mapping[str, str]
    kill: Kill | None = None
    does: str = "publish"


@dataclass(frozen=True)
class Ended:
    """The end of a publisher.

    `status` is the exit code, negative for a signal; `result` the result of the job; `error` and `text` are
    class and text of the exception; `calls` lists every AWS call and every commit to a table, in order.
    """

    status: int
    result: dict[str, Any]
    error: str
    text: str
    calls: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Publishers:
    """The process that forks publishers; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def __enter__(self) -> Publishers:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, *jobs: Job, during: Callable[[list[int]], None] | None = None) -> list[Ended]:
        """Run publishers in parallel and wait for all; `during` is called with their process IDs."""
        from tests.support import read_line  # the program below needs no pytest

        assert self._process.stdin
        answers = []
        for _ in jobs:
            self._count += 1
            answers.append(self.folder / f"publisher-{self._count}")
        requests = [asdict(job) | {"answer": str(answer)} for job, answer in zip(jobs, answers, strict=True)]
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        processes = json.loads(read_line(self._process))
        if during is not None:
            during(processes)
        statuses = json.loads(read_line(self._process, deadline=200))
        return [_read(answer, status) for answer, status in zip(answers, statuses, strict=True)]


def _read(answer: Path, status: int) -> Ended:
    found = json.loads(answer.read_text()) if answer.exists() else {}
    log = answer.with_suffix(".calls")
    calls = tuple(log.read_text().splitlines()) if log.exists() else ()
    return Ended(status, found.get("result", {}), found.get("error", ""), found.get("text", ""), calls)


def kills_of(calls: Iterable[str]) -> list[Kill]:
    """Return a kill for every moment of the calls of a run."""
    seen: Counter[str] = Counter()
    kills = []
    for call in calls:
        seen[call] += 1
        moments = ("before", "after") if call.startswith("table:") else MOMENTS
        kills += [Kill(call, seen[call], moment) for moment in moments]
    return kills


# The rest runs in the forking process and in the publishers.


class Watch:
    """Count and log the calls of this process, and kill it at the chosen moment."""

    def __init__(self, kill: Kill | None, log: Path) -> None:
        self.kill, self.log = kill, log
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.armed = threading.local()

    def enter(self, name: str) -> int:
        """Count and log a call, and return its number."""
        with self.lock:
            self.seen[name] += 1
            with self.log.open("a") as file:
                file.write(f"{name}\n")
            return self.seen[name]

    def at(self, name: str, number: int, moment: str) -> None:
        """Kill this process if this is the chosen moment."""
        if self.kill == Kill(name, number, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, session: Any) -> None:
        """Watch a botocore session, its connections, and the tables."""
        import urllib3.connection

        from vmsnix_ops.records.tables import Tables

        def before_send(request: Any, event_name: str, **_more: Any) -> None:
            name = ":".join(event_name.split(".")[1:])
            number = self.enter(name)
            self.armed.call = (name, number)
            self.at(name, number, "before")

        def after_call(event_name: str, **_more: Any) -> None:
            if getattr(self.armed, "call", None):
                self.at(*self.armed.call, "after")

        get_response = urllib3.connection.HTTPConnection.getresponse

        def sent(connection: Any, *arguments: Any, **named: Any) -> Any:
            if getattr(self.armed, "call", None):
                self.at(*self.armed.call, "sent")
            return get_response(connection, *arguments, **named)

        append = Tables.append

        def committed(tables: Tables, table: str, *arguments: Any, **named: Any) -> None:
            number = self.enter(f"table:{table}")
            self.at(f"table:{table}", number, "before")
            append(tables, table, *arguments, **named)
            self.at(f"table:{table}", number, "after")

        session.register("before-send", before_send)
        session.register("after-call", after_call)
        urllib3.connection.HTTPConnection.getresponse = sent  # type: ignore[method-assign]
        Tables.append = committed  # type: ignore[method-assign]


def publisher(job: dict[str, Any]) -> int:
    """Do one job, and return the exit code."""
    import boto3
    import botocore.session

    os.environ.update(job["environment"])
    # Handle SIGINT as a program does that a shell started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["environment"]["VMSNIX_STATE"])
    answer = Path(job["answer"])
    core = botocore.session.Session()
    kill = Kill(**job["kill"]) if job["kill"] else None
    Watch(kill, answer.with_suffix(".calls")).install(core)

    from vmsnix_ops import publish
    from vmsnix_ops.channels import promote
    from vmsnix_ops.progress import silent

    result: dict[str, Any]
    try:
        session = boto3.Session(botocore_session=core, region_name="us-east-1")
        if job["does"] == "promote":
            done = promote.plan(**job["plan"], progress=silent(), session=session).apply()
            result = {"status": done.status, "outcomes": [done.plain(row) for row in done.rows]}
        else:
            plan = publish.plan(**job["plan"], progress=silent(), session=session)
            made = plan.apply()
            result = {"run_id": made.run_id, **made.as_dict()}
    except BaseException as error:  # noqa: BLE001 (report an interrupt too)
        answer.write_text(json.dumps({"error": type(error).__name__, "text": str(error)}))
        return getattr(error, "exit_code", 1)
    answer.write_text(json.dumps({"result": result}, default=str))
    return 0


def warm() -> None:
    """Import everything that a publisher needs, and load botocore's models."""
    import importlib

    import botocore.session
    import pytest

    from tests import quick

    names = (
        "boto3",
        "pandas",
        "pyarrow.dataset",
        "pyarrow.compute",
        "deltalake",
        "stamina",
        "vmsnix_ops.channels.promote",
    )
    for name in names:
        importlib.import_module(name)
    patch = pytest.MonkeyPatch()  # for as long as this process lives
    quick.share_models(patch)
    quick.pause_briefly(patch)
    core = botocore.session.Session()
    for service in ("ec2", "s3", "sts", "iam", "ebs", "service-quotas", "sns", "ssm"):
        core.create_client(
            service, region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
        )
        core.get_component("data_loader").load_service_model(service, "paginators-1")


def serve() -> None:
    """Fork publishers for the jobs on standard input, until it is closed."""
    warm()
    gc.freeze()  # keep the memory shared with the forks
    for line in sys.stdin:
        processes = []
        for job in json.loads(line):
            process = os.fork()
            if process == 0:
                code = 70
                try:
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                    os.dup2(2, 1)
                    code = publisher(job)
                except BaseException:  # noqa: BLE001 (a fork must not return into the loop)
                    import traceback

                    traceback.print_exc()
                finally:
                    os._exit(code)
            processes.append(process)
        sys.stdout.write(json.dumps(processes) + "\n")
        sys.stdout.flush()
        statuses = []
        for process in processes:
            status = os.waitpid(process, 0)[1]  # ends: `Publishers.run` kills this program after its deadline
            statuses.append(os.waitstatus_to_exitcode(status))
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()


def environment(aws: Any, state: Path) -> dict[str, str]:
    """Return a publisher's environment: the sandbox, and its own state folder."""
    state.mkdir(parents=True, exist_ok=True)
    return {**aws.environment, "VMSNIX_STATE": str(state), "VMSNIX_HISTORY": str(state / "history")}


if __name__ == "__main__":
    serve()
