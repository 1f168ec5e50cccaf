"""What every emulated operation is given, and how it joins the sandbox.

An operation is a plain function ``(context, params) -> dict``. Requests were parsed, checked against
botocore's model and authenticated before it runs; what it returns is written back in the service's own
protocol. It raises `AwsError` with AWS's own code and text.

A streaming parameter (the body of S3's PutObject, of EBS's PutSnapshotBlock) is a `wire.body.Body`:
``body.read()`` gives its bytes, ``body.save(path, digests)`` writes them to disk. A streaming answer is
bytes, or a list of `wire.http.FileRange`, which go to the socket without passing through this process.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.regions import partition_of

if TYPE_CHECKING:
    import threading
    from pathlib import Path


Params = dict[str, Any]
Handler = Callable[["Context", Params], dict[str, Any]]


class AwsError(Exception):
    """An error answer, as AWS would send it.

    Parameters
    ----------
    code, message
        AWS's code and text.
    status
        HTTP status; EC2 answers 400 for nearly everything.
    extra
        Further members of the error shape, such as ``Reason`` of an EBS ``ValidationException``.
    """

    def __init__(self, code: str, message: str, *, status: int = 400, **extra: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.extra = code, message, status, extra


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def load_json(text: bytes | str) -> Any:
    """Return the value of a JSON text that a client sent.

    Raises
    ------
    ValueError
        The text is not JSON as RFC 8259 defines it, is nested too deeply, or has text that is not Unicode.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text and _SURROGATE.search(  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False)
        ):
            raise ValueError("half a surrogate pair is not Unicode")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


class Clock:
    """Real timestamps, scaled ages.

    Timestamps that the sandbox shows are real ones. How far along an import or a snapshot is depends on its
    scaled age, so that tests can live through minutes in milliseconds.

    Parameters
    ----------
    speed
        How many sandbox seconds pass in one real second.

    Raises
    ------
    ValueError
        A speed or a step is not a number of seconds from 0 to `MOST_SECONDS`.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.skew = timedelta(0)  # how far the sandbox believes to be ahead, for rehearsing clock skew
        self._steps: list[tuple[datetime, float]] = []  # when `advance` was called, and by how many seconds

    @property
    def speed(self) -> float:
        """How many sandbox seconds pass in one real second."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = _check_seconds("speed", speed)

    def now(self) -> datetime:
        """Return the real time, in UTC."""
        return datetime.now(UTC)

    def age(self, since: datetime) -> float:
        """Return how many sandbox seconds ago `since` was."""
        return (self.now() - since).total_seconds() * self.speed + self._advanced(since)

    def advance(self, seconds: float) -> None:
        """Let everything that there is become older by this many sandbox seconds."""
        self._steps.append((self.now(), _check_seconds("advance", seconds)))

    def forget(self) -> None:
        """Take back every `advance`: what they aged is gone.

        A presigned URL tells its time in whole seconds, and would count one that came a moment before it.
        """
        self._steps.clear()

    def passed(self, moment: datetime, *, since: datetime | None = None) -> bool:
        """Return whether a moment that an answer showed, such as an expiry, has come.

        Such moments pass in real time, because clients compare them with their own clocks; `advance` brings
        them nearer.

        Parameters
        ----------
        moment
            What the answer showed.
        since
            When it was given: what `advance` did before does not count. None counts all of it.
        """
        return self.now() + timedelta(seconds=self._advanced(since)) >= moment

    def _advanced(self, since: datetime | None) -> float:
        return sum(seconds for at, seconds in self._steps if since is None or at >= since)


MAX_SECONDS = 100 * 365 * 86400.0


def _check_seconds(name: str, seconds: float) -> float:
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ValueError(f"{name} must be a number from 0 to {MAX_SECONDS:.0f}, not {seconds}")
    return seconds


@dataclass
class Tables:
    """All metadata: a dictionary for each account, region and kind of resource."""

    _tables: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    def table(self, account: str, region: str, kind: str) -> dict[str, Any]:
        """Return the dictionary of one kind of resource, made when first asked for."""
        return self._tables.setdefault((account, region, kind), {})

    def regions_with(self, account: str, kind: str) -> dict[str, dict[str, Any]]:
        """Return the dictionaries of one kind over all regions, keyed by region."""
        return {r: t for (a, r, k), t in list(self._tables.items()) if a == account and k == kind}

    def all(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Return all dictionaries by account, region and kind."""
        return self._tables

    def clear(self) -> None:
        """Forget everything."""
        self._tables.clear()

    def replace(self, tables: Tables) -> None:
        """Forget everything and take over other tables."""
        self._tables.clear()
        self._tables.update(tables._tables)

    def kinds(self) -> list[str]:
        """Return the kinds of resources that there are tables of, sorted."""
        return sorted({kind for _, _, kind in list(self._tables)})

    def everywhere(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the dictionaries of one kind over all accounts and regions, keyed by (account, region)."""
        return {(a, r): t for (a, r, k), t in list(self._tables.items()) if k == kind}


@dataclass(frozen=True)
class Context:
    """One call: who asks, where, and the world that it may look at and change."""

    service: str  # botocore's service name: "ec2", "s3", "ebs", "iam", "sts", "ssm"
    operation: str
    region: str
    account: str
    principal: str  # ARN of the caller
    access_key: str
    request_id: str
    clock: Clock
    tables: Tables
    blocks: Any  # blocks.BlockStore
    folder: Path  # where large things lie
    lock: threading.RLock
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = (
        None  # wire.body.Body of a streaming request; also the value of the streaming parameter itself
    )
    outcome: Mapping[str, Any] = field(
        default_factory=dict
    )  # what a fault rule wants the started work to come to

    @property
    def partition(self) -> str:
        """The partition of the region: ``aws``, ``aws-cn``, ..."""
        return partition_of(self.region)

    def table(self, kind: str, *, region: str | None = None) -> dict[str, Any]:
        """Return this account's resources of one kind in this (or the given) region.

        ``region=""`` is global.
        """
        return self.tables.table(self.account, self.region if region is None else region, kind)


@dataclass(frozen=True)
class Operation:
    """An emulated operation and the parameters that it honours; any other parameter is refused loudly."""

    service: str
    name: str
    handler: Handler
    honours: frozenset[str]
    locks: bool  # False: the handler takes the lock itself, for as short as it can


OPERATIONS: dict[tuple[str, str], Operation] = {}


def operation(
    service: str, name: str, *, honours: Iterable[str] = (), locks: bool = True
) -> Callable[[Handler], Handler]:
    """Register a handler for one operation of one service.

    Parameters
    ----------
    service, name
        botocore's service name and the operation's name, such as ``"ec2"`` and ``"RegisterImage"``.
    honours
        Top-level request members that the handler acts upon. ``DryRun`` is honoured for all of EC2 by the
        server.
    locks
        Whether the server holds the state lock around the handler.
    """

    def register(handler: Handler) -> Handler:
        OPERATIONS[service, name] = Operation(service, name, handler, frozenset(honours), locks)
        return handler

    return register


SERVICE_MODULES = ("autoscaling", "ebs", "ec2", "iam", "quotas", "s3", "sns", "ssm", "sts")


def load_operations() -> None:
    """Register the operations of all services; doing it twice changes nothing."""
    for service in SERVICE_MODULES:
        importlib.import_module(f"{__package__}.{service}")


NOT_EMULATED = "NotImplemented"


def not_emulated(service: str, operation: str, what: str) -> AwsError:
    """Return the loud refusal of something that AWS has and the sandbox does not.

    Parameters
    ----------
    service, operation
        Which operation was called.
    what
        What about it is not emulated, such as ``"the parameter 'Foo'"``; empty for all of it.
    """
    subject = f"{what} of {service}:{operation}" if what else f"{service}:{operation}"
    return AwsError(NOT_EMULATED, f"The sandbox does not emulate {subject}.", status=501)
