"""The call log: every request, its outcome, and whether its operation ran."""

from __future__ import annotations

import fnmatch
import threading
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


MAX_CALLS = 50_000
MAX_TEXT = 200
SECRET_PARAMETERS = frozenset({"SSECustomerKey", "CopySourceSSECustomerKey", "WebIdentityToken"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Parameters
    ----------
    number
        Number since the start of the sandbox, from 1.
    at
        Time of its arrival, UTC.
    service, operation, region, principal
        The operation, the region and the ARN of the caller; empty if unknown.
    params
        Its parameters, with shortened texts and without streams.
    outcome
        ``"ok"`` or the error's code.
    status
        HTTP status; 0 when the connection was dropped.
    ran
        Whether the operation completed, even if a fault rule then dropped the answer. False: it was refused
        or it failed.
    fault
        What the fault rule did, or empty.
    seconds
        Real seconds until the answer was ready.
    request_id
        The request ID in the answer.
    """

    number: int
    at: datetime
    service: str
    operation: str
    region: str
    principal: str
    params: dict[str, Any]
    outcome: str
    status: int
    ran: bool
    fault: str
    seconds: float
    request_id: str

    @property
    def name(self) -> str:
        """Service and operation, such as ``"ec2:RegisterImage"``."""
        return f"{self.service}:{self.operation}"

    def as_json(self) -> dict[str, Any]:
        """Return the call as a JSON object."""
        return asdict(self) | {"at": self.at.isoformat()}


class CallLog:
    """The last 50,000 calls, oldest first."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)
        self._lock = threading.Lock()
        self._last = 0

    def __iter__(self) -> Iterator[Call]:
        with self._lock:
            return iter(list(self._calls))

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, **fields: Any) -> Call:
        """Add a call with the next number."""
        with self._lock:
            self._last += 1
            call = Call(number=self._last, **fields)
            self._calls.append(call)
        return call

    def matching(self, pattern: str = "*", *, ran: bool | None = None) -> list[Call]:
        """Return the calls with a name such as ``"ec2:Describe*"``; with `ran`, those that ran or not."""
        return [c for c in self if fnmatch.fnmatchcase(c.name, pattern) and (ran is None or c.ran is ran)]

    def count(self, pattern: str = "*", *, ran: bool | None = None) -> int:
        """Return the number of matching calls; see `matching`."""
        return len(self.matching(pattern, ran=ran))

    def names(self) -> list[str]:
        """Return the names of all calls, oldest first."""
        return [call.name for call in self]

    def clear(self) -> None:
        """Delete all calls. The numbers continue."""
        with self._lock:
            self._calls.clear()


def summarize_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters for the log: texts are shortened, bytes and streams replaced by their type."""
    return {name: "…" if name in SECRET_PARAMETERS else _shorten(value) for name, value in params.items()}


def _shorten(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(name): _shorten(inner) for name, inner in list(value.items())[:50]}
    if isinstance(value, list):
        return [_shorten(inner) for inner in value[:50]]
    return f"<{type(value).__name__}>"
