"""Run the targets of a plan with Dask, on workers of this machine or of a scheduler.

Anyone who can connect to a Dask cluster can run code on it. So a cluster of this machine listens on 127.0.0.1
only, has no dashboard, and uses TLS with a temporary key. A connection to another machine must use TLS too.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmsnix_ops import files
from vmsnix_ops.errors import FleetError, PlanError, ToolMissingError, nearest
from vmsnix_ops.progress import Step
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.execution._interrupts import Interrupter, signals
from vmsnix_ops.runbooks.fleet import worker
from vmsnix_ops.runbooks.fleet.ledger import Ledger
from vmsnix_ops.runbooks.fleet.report import counted_states
from vmsnix_ops.text import line, lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmsnix_ops.progress import Progress
    from vmsnix_ops.runbooks.fleet.ledger import Document
    from vmsnix_ops.runbooks.fleet.plan_file import Dask, PlanFile
    from vmsnix_ops.runbooks.fleet.worker import FleetTarget

LOGGER = logging.getLogger(__name__)
CONNECT_SECONDS = 30
WORKERS_SECONDS = 60
STOP_SECONDS = 45.0  # a run has 30 s for its cleanup
STOP_NOW_SECONDS = 10.0
OPEN = ("running", "waiting", "retrying")  # the states of a target that is not finished
LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")
CONFIG = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # Otherwise workers would write to the terminal. This also replaces Dask's own variables, which limit the
    # threads of the libraries that the runs use.
    "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
}
CHANGED_VARIABLES = ("DASK_LOGGING__DISTRIBUTED", "PYTHONHASHSEED")  # Dask sets them in this process too


def need_dask() -> None:
    """Raise `ToolMissingError` if Dask is not installed."""
    try:
        import cryptography  # noqa: F401 - Dask needs it for the certificate of a local cluster
        import distributed  # noqa: F401
    except ImportError as error:
        raise ToolMissingError(
            "Dask is not installed.",
            why=f"A fleet uses Dask, which is an extra of this package ({error}).",
            fix="Run pip install vmsnix-ops[fleet]",
        ) from error


def check_address(dask: Dask) -> None:
    """Raise `PlanError` if the scheduler's address is invalid, or is on another machine without TLS."""
    if not dask.scheduler:
        return
    parts = urlsplit(dask.scheduler)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise PlanError(
            f"{dask.scheduler!r} is not a scheduler address.",
            why=nearest(parts.scheme, ["tcp", "tls"]),
            fix="Use tls://HOST:PORT; on this machine, tcp://127.0.0.1:PORT also works.",
        )
    local = parts.hostname == "localhost"
    with suppress(ValueError):
        local = local or ipaddress.ip_address(parts.hostname).is_loopback
    if parts.scheme == "tcp" and not local:
        raise PlanError(
            f"The connection to the scheduler {dask.scheduler} has no TLS.",
            why="Anyone who can reach it can run programs on all its workers, and anyone on the network can "
            "read the runs.",
            fix="Start it with --tls-ca-file, --tls-cert and --tls-key and use tls://, or use a tunnel.",
        )


@contextmanager
def connected(dask: Dask, *, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Yield a client of the plan's scheduler, or of a cluster of this machine that exists during the block.

    Dask's own log is written to `log`. The workers of this machine get the variables of this process and
    those of `environment`. A `FleetError` if the scheduler does not answer.
    """
    import dask as dask_module
    from distributed import Client, LocalCluster
    from distributed.security import Security

    with _logging_to(log), dask_module.config.set(CONFIG), _restored(*CHANGED_VARIABLES):
        if not dask.scheduler:
            security = Security.temporary()  # type: ignore[no-untyped-call]
            kvm = {"kvm": 1.0} if os.access("/dev/kvm", os.R_OK | os.W_OK) else {}
            cluster = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=dask.workers or os.cpu_count() or 1,
                threads_per_worker=1,
                host="127.0.0.1",
                protocol="tls://",
                security=security,
                # Without a dashboard, the scheduler still has an HTTP server; CONFIG removes its pages.
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                silence_logs=False,
                memory_limit=0,
                resources=dict(dask.resources) or kvm,
                env=dict(environment or {}),
                preload=[worker.__name__],
            )
            with cluster, Client(cluster, security=security) as client:  # type: ignore[no-untyped-call]
                yield client
            return
        given = {"tls_ca_file": dask.ca_file, "tls_client_cert": dask.cert, "tls_client_key": dask.key}
        tls = dask.scheduler.startswith("tls://")
        security = Security(  # type: ignore[no-untyped-call]
            require_encryption=tls, **{name: path for name, path in given.items() if path}
        )
        try:
            client = Client(dask.scheduler, security=security, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise FleetError(
                f"The scheduler {dask.scheduler} is not reachable.",
                why=f"{error}.",
                fix="Start it, or correct its address or the TLS files.",
            ) from error
        with client:
            yield client


@contextmanager
def _restored(*names: str) -> Iterator[None]:
    """Give environment variables their values again after the block."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def check_workers(client: Any, targets: Sequence[FleetTarget]) -> None:
    """Wait for the first worker, and check that the workers have the resources that the targets need.

    A `FleetError` if none connects, or none has the resources of a target, which would then never run.
    """
    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
    except TimeoutError as error:
        raise FleetError(
            "The scheduler has no workers.",
            why=f"No worker connected within {WORKERS_SECONDS} s.",
            fix="Start workers: dask worker ADDRESS --nthreads 1",
        ) from error
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    for target in targets:
        needed = target.resources
        if not any(all(w["resources"].get(k, 0) >= v for k, v in needed.items()) for w in workers):
            offered = sorted({name for one in workers for name in one["resources"]})
            words = " ".join(f"{name}={count:g}" for name, count in needed.items())
            raise FleetError(
                f"No worker has the resources of {target.name}: {words}.",
                why=f"The workers have {', '.join(offered) or 'no resources'}.",
                fix=f'Start a worker with --resources "{words}", or set it in [dask] for this machine.',
            )


class Runner:
    """Submits the targets of a plan to Dask, and collects their documents."""

    def __init__(
        self,
        plan: PlanFile,
        session: worker.FleetSession,
        environment: Mapping[str, str],  # for the workers of this machine
        progress: Progress,
        interrupter: Interrupter,  # the first interrupt lets the runs clean up, the second kills the kernels
    ) -> None:
        self.plan, self.session, self.environment = plan, session, environment
        self.progress, self.interrupter = progress, interrupter
        self.documents: list[Document] = []
        self._fleet = Step(f"fleet {plan.name}", progress.report, len(plan.targets))
        self._running: dict[str, Step] = {}
        self._states: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(self, log: Path) -> FleetError | None:
        """Run the targets that are not done. Return the error of the fleet itself, not of a target."""
        targets, ledger = self.plan.targets, Ledger(self.session.ledger)
        results: dict[str, Document] = {}
        self._fleet.emit("started")
        try:
            results |= {
                one.name: found for one in targets if one.is_done(found := worker.state_of(one, ledger))
            }
            if len(results) == len(targets):
                return None
            with (
                signals(self.interrupter),
                connected(self.plan.dask, log=log, environment=self.environment) as client,
            ):
                check_workers(client, [one for one in targets if one.name not in results])
                return self._run(client, results)
        finally:
            self.documents = [results.get(one.name) or worker.state_of(one, ledger) for one in targets]
            counts = Counter(document["state"] for document in self.documents)
            self._fleet.emit("finished" if set(counts) == {"done"} else "failed", counted_states(counts))

    def _run(self, client: Any, results: dict[str, Document]) -> FleetError | None:
        from distributed import wait

        targets = self.plan.targets
        futures: dict[str, Any] = {}
        topic = worker.topic(self.session.id)
        client.subscribe_topic(topic, lambda event: self._on_state(*event[1]["report"]))
        for number, target in enumerate(targets):
            if target.name in results:
                self._on_state(target.name, "done")
                continue
            futures[target.name] = client.submit(
                worker.run_target,
                self.session,
                target,
                *(results.get(name) or futures[name] for name in target.after),
                key=f"{target.name}-{self.session.id}",
                resources=dict(target.resources) or None,
                priority=-number,
                pure=False,
            )
        names = {future: name for name, future in futures.items()}
        interrupts, deadline, trouble = 0, float("inf"), None
        while names and time.monotonic() < deadline:
            if self.interrupter.times > interrupts:
                interrupts = self.interrupter.times
                deadline = time.monotonic() + (STOP_SECONDS if interrupts == 1 else STOP_NOW_SECONDS)
                client.run(worker.stop, self.session.id, on_error="ignore")
            with suppress(TimeoutError):
                done = wait(list(names), timeout=0.2, return_when="FIRST_COMPLETED").done  # type: ignore[no-untyped-call]
                for future in done:
                    name = names.pop(future)
                    if future.status == "cancelled":
                        return FleetError(
                            f"Lost the scheduler {self.plan.dask.scheduler or 'of this machine'}.",
                            why="The connection closed.",
                            fix="Start it and the fleet again: the fleet runs the targets that are not done.",
                        )
                    if future.status == "error":
                        trouble = trouble or FleetError(
                            f"The outcome of {name} is unknown.",
                            why=f"{type(future.exception()).__name__}: {future.exception()}",
                            fix="Check the log of the workers, then start the fleet again.",
                        )
                        continue
                    results[name] = document = future.result()
                    self._on_state(name, document["state"], document["error"])
        client.unsubscribe_topic(topic)
        return trouble

    def _on_state(self, target: str, state: str, error: str | None = None) -> None:
        """Show the new state of a target once: a worker reports it, and the result contains it again."""
        with self._lock:  # workers report in a thread of Dask
            if self._states.get(target) == state or self._states.get(target, OPEN[0]) not in OPEN:
                return
            self._states[target] = state
            if state == "retrying":
                LOGGER.warning("%s failed: trying again.", line(target))
            if state == "running":
                self._running[target] = Step(target, self.progress.report)
                self._running[target].emit("started")
            elif state in OPEN or target not in self._running:
                self._fleet.message(f"{target} is {state}" + (f": {error}" if error else ""))
            else:
                self._running[target].emit("finished" if state == "done" else "failed", error or "")
            if state not in OPEN:
                self._fleet.advance(1)


class _SafeFormatter(logging.Formatter):
    """Removes secrets from a record, and indents the later lines of its text."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(Redactor(secret_values()).text(super().format(record)), indent="  | ")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write Dask's log to a file during the block."""
    import distributed  # noqa: F401 - its first import sets up the loggers

    files.make_folder(path.parent)
    with files.open_text(path, append=True) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_SafeFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(logger.handlers[:], logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers[:], logger.propagate = [handler], False
        try:
            yield
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers[:], logger.propagate = handlers, propagate
