"""Where a fleet's runs go: worker processes of this machine, or a Dask scheduler somewhere else.

Dask trusts whoever reaches its ports with everything, so a cluster of this machine listens on 127.0.0.1
alone, has no dashboard, and uses TLS with a temporary certificate that no other user of the machine has. A
connection to a scheduler elsewhere uses TLS, too.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmsnix_ops import files
from vmsnix_ops.errors import FleetError, PlanError, ToolMissingError, nearest
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.text import lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmsnix_ops.runbooks.fleet.plan_file import Dask
    from vmsnix_ops.runbooks.fleet.targets import Target

CONNECT_SECONDS = 30
WORKERS_SECONDS = 60
LOGGERS = ("distributed", "tornado.application", "asyncio")
CONFIG = {
    # Lost workers are counted in the ledger, per target.
    "distributed.scheduler.allowed-failures": 1000,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # A run's own libraries are not Dask's to tune.
    "distributed.nanny.pre-spawn-environ": {},
}
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}  # for worker processes, which would write to our terminal


def need_dask() -> None:
    """Raise `ToolMissingError` when Dask is not installed."""
    try:
        import cryptography  # noqa: F401 - Dask makes the certificate of a local cluster with it
        import distributed  # noqa: F401
    except ImportError as error:
        raise ToolMissingError(
            "Dask is not installed.",
            why=f"A fleet uses Dask, which is an extra of this package ({error}).",
            fix="Run pip install vmsnix-ops[fleet]",
        ) from error


def check_address(dask: Dask) -> None:
    """Refuse an address of a scheduler that Dask does not know, or that is neither near nor encrypted.

    Raises
    ------
    PlanError
        Says what to write instead.
    """
    if not dask.scheduler:
        return
    parts = urlsplit(dask.scheduler)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise PlanError(
            f"{dask.scheduler!r} is not a scheduler address.",
            why=nearest(parts.scheme, ["tcp", "tls"]),
            fix="Use tls://HOST:PORT; on this machine, tcp://127.0.0.1:PORT also works.",
        )
    if parts.scheme == "tcp" and not _is_near(parts.hostname):
        raise PlanError(
            f"The connection to the scheduler {dask.scheduler} has no TLS.",
            why="Anyone who can reach it can run programs on all its workers, and anyone on the network can "
            "read the runs.",
            fix="Start it with --tls-ca-file, --tls-cert and --tls-key and use tls://, or use a tunnel.",
        )


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def connected(dask: Dask, *, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Connect to the scheduler of a plan, or to a cluster of this machine that ends with the block.

    Parameters
    ----------
    dask
        Where to.
    log
        File for what Dask says; only its errors are of interest, and what matters of them is raised.
    environment
        Variables of the workers of a cluster of this machine, on top of this process's.

    Yields
    ------
    distributed.Client

    Raises
    ------
    FleetError
        When the scheduler does not answer, or no worker comes.
    """
    need_dask()
    check_address(dask)
    with _log_to(log):
        import dask as dask_module
        from distributed import Client

        with dask_module.config.set(CONFIG), _scheduler(dask, environment) as (address, security):
            try:
                client = Client(address, security=security, timeout=CONNECT_SECONDS, name="vmsnix-fleet")  # type: ignore[no-untyped-call]
            except (OSError, ValueError) as error:
                raise FleetError(
                    f"The scheduler {dask.scheduler} is not reachable.",
                    why=f"{error}.",
                    fix="Start it, or correct its address or the TLS files.",
                ) from error
            try:
                yield client
            finally:
                client.close(timeout=5)  # type: ignore[no-untyped-call]


def check_workers(client: Any, targets: Sequence[Target]) -> int:
    """Wait for the first worker, and return how many there are.

    Raises
    ------
    FleetError
        When none comes, or when none offers what a target needs: such a target would wait for ever.
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
            offered = sorted({name for worker in workers for name in worker["resources"]})
            words = " ".join(f"{name}={count:g}" for name, count in needed.items())
            raise FleetError(
                f"No worker has the resources of {target.name}: {words}.",
                why=f"The workers have {', '.join(offered) or 'no resources'}.",
                fix=f'Start a worker with --resources "{words}", or set it in [dask] for this machine.',
            )
    return len(workers)


@contextmanager
def _scheduler(dask: Dask, environment: Mapping[str, str] | None) -> Iterator[tuple[Any, Any]]:
    """Yield what a client connects to, and its security."""
    from distributed import LocalCluster
    from distributed.security import Security

    if dask.scheduler:
        files = {"tls_ca_file": dask.ca_file, "tls_client_cert": dask.cert, "tls_client_key": dask.key}
        given = {name: path for name, path in files.items() if path}
        security = Security(require_encryption=True, **given)  # type: ignore[no-untyped-call]
        yield dask.scheduler, security if dask.scheduler.startswith("tls://") else None
        return
    options: dict[str, Any] = {
        "n_workers": dask.workers or os.cpu_count() or 1,
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "protocol": "tls://",
        "security": Security.temporary(),  # type: ignore[no-untyped-call]
        # Without a dashboard a server of pages stays; CONFIG leaves it without pages.
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        "silence_logs": False,
        "memory_limit": 0,
        "resources": dict(dask.resources) or _own_resources(),
        "env": dict(environment or {}),
    }
    with _variables(QUIET), LocalCluster(**options) as cluster:  # type: ignore[no-untyped-call]
        yield cluster, options["security"]


@contextmanager
def _variables(added: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which worker processes find when they start, for a while."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _own_resources() -> dict[str, float]:
    """Return what this machine offers: one KVM a worker where it may be used."""
    return {"kvm": 1.0} if os.access("/dev/kvm", os.R_OK | os.W_OK) else {}


class _Safe(logging.Formatter):
    """Keeps text from outside inside its own record, and secrets out of it."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(Redactor(secret_values()).text(super().format(record)), indent="  | ")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what Dask logs to a file, and leave its loggers as they were."""
    import distributed  # noqa: F401 - sets its loggers up when it is first imported, which must be before

    files.make_folder(path.parent)
    handler = logging.StreamHandler(files.open_text(path, append=True))
    handler.setFormatter(_Safe("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
        handler.close()
        handler.stream.close()
