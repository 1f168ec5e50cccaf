"""The types that every emulated operation uses: errors, the clock, the tables, the call, the registry.

An operation is a function ``(context, params) -> dict``. Before it runs, the request was parsed, checked
against botocore's model, authenticated and authorized. Its result is written in the service's own protocol.
It raises `ApiError` with AWS's code and text.

A streaming parameter (the body of S3's PutObject, of EBS's PutSnapshotBlock) is a `wire.http.Body`:
``body.read()`` returns its bytes, ``body.save(path, digests)`` writes them to disk. A streaming result is
bytes, or a list of `wire.http.FileRange`, which the server sends without copying them into this process.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.regions import partition_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Params = dict[str, Any]
Handler = Callable[["Context", Params], dict[str, Any]]


class ApiError(Exception):
    """An error answer, as AWS sends it.

    Parameters
    ----------
    code, message
        AWS's code and text.
    status
        HTTP status. EC2 answers 400 to nearly every error.
    headers
        HTTP headers of the answer.
    extra
        Further members of the error, such as ``Reason`` of an EBS ``ValidationException``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 400,
        headers: Mapping[str, str] = MappingProxyType({}),
        **extra: Any,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.extra = code, message, status, extra
        self.headers = dict(headers)


NOT_EMULATED = "NotImplemented"


def not_emulated(what: str) -> ApiError:
    """Return the error for a request that AWS accepts and the sandbox does not emulate."""
    return ApiError(NOT_EMULATED, f"The sandbox does not emulate {what}.", status=501)


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, for long lists of names."""
    return tuple(text.split())


def load_json(text: bytes | str) -> Any:
    """Return the value of a JSON text from a client.

    A `ValueError` for a text that is not JSON (RFC 8259), is nested too deeply, or is not Unicode.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # an error for half a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def page_token(start: int) -> str:
    """Return the token of a page that begins with the item of this number."""
    return base64.b64encode(f"after {start}".encode()).decode()


def page_start(token: str) -> int:
    """Return the number in a token of `page_token`, or raise ValueError."""
    return int(base64.b64decode(token, validate=True).decode().removeprefix("after "))


@dataclass(frozen=True)
class Paging:
    """How a service divides its lists into pages."""

    size: str  # the parameter with the size of a page
    most: int  # its largest value
    default: int  # the size of a page without it
    bad_token: Callable[[], ApiError]  # returns the error for an invalid token
    bad_size: Callable[[int], ApiError] | None = None  # for one that is not 1 to `most`; None: accepted
    # The parameter with the token of a page, and the member of the answer with that of the next one.
    token: str = "NextToken"  # noqa: S105
    next_token: str = "NextToken"  # noqa: S105
    truncated: str = ""  # the member of the answer that is true when there is another page; "": none

    def page(self, items: Sequence[Any], params: Params, member: str) -> dict[str, Any]:
        """Return the answer with one page of items."""
        size = params.get(self.size, self.default)
        if self.bad_size is not None and not 1 <= size <= self.most:
            raise self.bad_size(size)
        try:
            start = page_start(params[self.token]) if params.get(self.token) else 0
        except ValueError:
            raise self.bad_token() from None
        more = start + size < len(items)
        answer: dict[str, Any] = {member: list(items[start : start + size])}
        answer |= {self.truncated: more} if self.truncated else {}
        return answer | ({self.next_token: page_token(start + size)} if more else {})


def params_digest(params: Params, *without: str) -> str:
    """Return the hexadecimal SHA-256 of the parameters of a request, apart from some."""
    content = {name: value for name, value in params.items() if name not in without}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as most services list them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def given(**members: Any) -> dict[str, Any]:
    """Return the members that have a value, for an answer that lacks the others."""
    return {name: value for name, value in members.items() if value}


def tags_member(tags: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return the ``Tags`` of an answer that lacks this member when there are no tags."""
    return {"Tags": tag_list(tags)} if tags else {}


class Clock:
    """Real timestamps and scaled ages.

    The sandbox shows real timestamps. The progress of an import or a snapshot depends on its scaled age, so
    that a test can simulate minutes in milliseconds.

    Parameters
    ----------
    speed
        Sandbox seconds per real second.

    Raises
    ------
    ValueError
        A speed or a step is not a number of seconds from 0 to `MAX_SECONDS`.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.skew = timedelta(0)  # added to the time in answers; simulates clients whose clock is wrong
        self.changed: Callable[[], None] = lambda: None  # called after each `advance`
        self._steps: list[tuple[datetime, float]] = []  # time of each call of `advance`, and its seconds

    @property
    def speed(self) -> float:
        """Sandbox seconds per real second."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = _check_seconds("speed", speed)

    def now(self) -> datetime:
        """Return the real time, in UTC."""
        return datetime.now(UTC)

    def shown(self) -> datetime:
        """Return the time that answers show in the Date header, which includes the skew."""
        return self.now() + self.skew

    def age(self, since: datetime) -> float:
        """Return the sandbox seconds since a time."""
        return (self.now() - since).total_seconds() * self.speed + self._advanced(since)

    def elapsed(self, since: datetime) -> float:
        """Return the real seconds since a time, plus the seconds of `advance`."""
        return (self.now() - since).total_seconds() + self._advanced(since)

    def real_seconds(self, seconds: float) -> float:
        """Return the real seconds in which sandbox seconds pass without `advance`, at most `MAX_SECONDS`."""
        return min(seconds / self.speed, MAX_SECONDS) if self.speed else MAX_SECONDS

    def reached(self, since: datetime, seconds: float) -> datetime:
        """Return the real time at which something reached an age in sandbox seconds.

        If a call of `advance` made it reach the age, this is the time of that call. The result is constant
        until `speed` changes.
        """
        left = seconds
        for at, step in self._steps:
            if at < since:
                continue
            if self._passed(since, left) <= at:
                break
            left -= step
            if self._passed(since, left) <= at:
                return at
        return self._passed(since, left)

    def _passed(self, since: datetime, seconds: float) -> datetime:
        return since + timedelta(seconds=self.real_seconds(max(seconds, 0.0)))

    def is_listed(self, ended: datetime, seconds: float) -> bool:
        """Return whether AWS still lists something that has ended, such as a terminated instance.

        It is listed for `seconds` of sandbox time, and for at least as many seconds of real time, up to
        `LISTED_REAL_SECONDS`, so that a client that polls every minute reads the last state. `advance`
        counts for both.
        """
        return self.age(ended) <= seconds or self.elapsed(ended) <= min(seconds, LISTED_REAL_SECONDS)

    def advance(self, seconds: float) -> None:
        """Make all resources older by this many sandbox seconds."""
        self._steps.append((self.now(), _check_seconds("advance", seconds)))
        self.changed()

    def saved_steps(self) -> list[tuple[str, float]]:
        """Return the calls of `advance`, for `restore_steps`."""
        return [(at.isoformat(), seconds) for at, seconds in self._steps]

    def restore_steps(self, saved: Iterable[tuple[str, float]]) -> None:
        """Replace the calls of `advance` by saved ones."""
        self._steps = [(datetime.fromisoformat(at), float(seconds)) for at, seconds in saved]

    @property
    def steps(self) -> int:
        """The number of calls of `advance`."""
        return len(self._steps)

    def forget_steps(self) -> None:
        """Undo every `advance`.

        A reset needs this: the time in a presigned URL has whole seconds, so an `advance` in the same second
        would also age a URL that was made after it.
        """
        self._steps.clear()

    def is_past(self, moment: datetime, *, since: datetime | None = None) -> bool:
        """Return whether a time in an answer, such as an expiry, has passed.

        Such times pass in real time, because clients compare them with their own clocks; `advance` moves
        the present towards them.

        Parameters
        ----------
        moment
            The time in the answer.
        since
            The time of the answer; earlier calls of `advance` do not count. None: all calls count.
        """
        return later(self.now(), seconds=self._advanced(since)) >= moment

    def _advanced(self, since: datetime | None) -> float:
        return sum(seconds for at, seconds in self._steps if since is None or at >= since)


LISTED_REAL_SECONDS = 600.0
MAX_SECONDS = 100 * 365 * 86400.0


def later(moment: datetime, **duration: float) -> datetime:
    """Return the time after a duration (keywords of `timedelta`); the last one of the calendar if it ends."""
    try:
        return moment + timedelta(**duration)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _check_seconds(name: str, seconds: float) -> float:
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ValueError(f"{name} must be a number from 0 to {MAX_SECONDS:.0f}, not {seconds}")
    return seconds


class SandboxTables(dict[tuple[str, str, str], dict[str, Any]]):
    """All metadata: a dictionary for each account, region and kind of resource."""

    def table(self, account: str, region: str, kind: str) -> dict[str, Any]:
        """Return the resources of one kind by name or ID; creates an empty table when there is none."""
        return self.setdefault((account, region, kind), {})

    def of_kind(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the tables of one kind by account and region."""
        return {(a, r): table for (a, r, k), table in list(self.items()) if k == kind}

    def in_region(self, kind: str, region: str) -> Iterator[Any]:
        """Yield the resources of one kind in a region, of all accounts."""
        for (_, r), table in self.of_kind(kind).items():
            if r == region:
                yield from list(table.values())

    def find(self, kind: str, region: str, name: str) -> Any | None:
        """Return a resource by name or ID, whichever account owns it."""
        tables = (table for (_, r), table in self.of_kind(kind).items() if r == region)
        return next((table[name] for table in tables if name in table), None)


@dataclass(frozen=True)
class Context:
    """One call: its caller, its region, and the state of the sandbox."""

    service: str  # botocore's service name, such as "ec2"
    operation: str
    region: str
    account: str
    principal: str  # ARN of the caller
    access_key: str
    request_id: str
    clock: Clock
    tables: SandboxTables
    blocks: Any  # storage.BlockStore
    folder: Path  # of the files of objects
    lock: threading.RLock
    headers: Mapping[str, str] = field(default_factory=dict)
    signature_keys: Mapping[str, list[str]] = field(default_factory=dict)  # S3's condition keys
    body: Any = None  # wire.http.Body; also the value of a streaming parameter
    outcome: Mapping[str, Any] = field(default_factory=dict)  # of a fault rule: how the started work will end
    limits: Any = None  # limits.Limits; None: requests are not limited
    authorizer: Any = None  # authorization.Authorizer

    @property
    def partition(self) -> str:
        """The partition of the region: ``aws``, ``aws-cn``, ..."""
        return partition_of(self.region)

    def table(self, kind: str, *, region: str | None = None) -> dict[str, Any]:
        """Return this account's resources of one kind, by default in the region of the call.

        IAM and S3 keep their resources in the region ``""``.
        """
        return self.tables.table(self.account, self.region if region is None else region, kind)

    def arn(self, service: str, resource: str, *, region: str | None = None) -> str:
        """Return the ARN of a resource of this account, by default in the region of the call."""
        where = self.region if region is None else region
        return f"arn:{self.partition}:{service}:{where}:{self.account}:{resource}"


@dataclass(frozen=True)
class Operation:
    """An emulated operation. A request with a parameter that is not listed here is refused."""

    service: str
    name: str
    handler: Handler
    parameters: frozenset[str]
    locks: bool  # False: the handler takes the lock itself, for a shorter time


OPERATIONS: dict[tuple[str, str], Operation] = {}


def operation(service: str, name: str, *parameters: str, locks: bool = True) -> Callable[[Handler], Handler]:
    """Register a handler for one operation of one service, both with their names in botocore.

    `parameters` are the names of those that the handler uses, separated by spaces. The server handles
    ``DryRun`` of all EC2 operations, and with `locks` it locks the state while the handler runs.
    """

    def register(handler: Handler) -> Handler:
        names = frozenset(" ".join(parameters).split())
        OPERATIONS[service, name] = Operation(service, name, handler, names, locks)
        return handler

    return register


def register_tags(
    service: str,
    find: Callable[[Context, Params], Any],
    named: str,
    names: tuple[str, str, str],
    *,
    check: Callable[[dict[str, str], list[dict[str, str]]], object] | None = None,
    member: str = "Tags",
    prefix: str = "",
) -> None:
    """Register the operations that add, remove and list the tags of a resource; "" in `names` for none.

    `find` returns the resource that a request names by the parameters `named`. `check` gets the tags that it
    would have, and those in the request. `member` of the answer lists the tags, and the names of the members
    of a tag begin with `prefix`: ``TagKey``, ``TagValue``.
    """
    key, value = f"{prefix}Key", f"{prefix}Value"

    @wraps(find)
    def add(context: Context, params: Params) -> dict[str, Any]:
        resource = find(context, params)
        tags = resource.tags | {tag[key]: tag[value] for tag in params["Tags"]}
        if check is not None:
            check(tags, params["Tags"])
        resource.tags = tags
        return {}

    @wraps(find)
    def remove(context: Context, params: Params) -> dict[str, Any]:
        resource = find(context, params)
        resource.tags = {name: text for name, text in resource.tags.items() if name not in params["TagKeys"]}
        return {}

    @wraps(find)
    def list_all(context: Context, params: Params) -> dict[str, Any]:
        return {member: [{key: name, value: text} for name, text in find(context, params).tags.items()]}

    operation(service, names[0], named, "Tags")(add)
    operation(service, names[1], named, "TagKeys")(remove)
    if names[2]:
        operation(service, names[2], named)(list_all)


OPERATION_MODULES = words(
    "autoscaling ebs ec2.image_usage ec2.images ec2.imports ec2.instance_types ec2.instances ec2.networks "
    "ec2.snapshots ec2.templates iam kms limits rbin s3.buckets s3.multipart s3.objects sns ssm sts tagging"
)


def load_operations() -> None:
    """Register the operations of all services. Safe to call again."""
    for module in OPERATION_MODULES:
        importlib.import_module(f"{__package__}.{module}")
