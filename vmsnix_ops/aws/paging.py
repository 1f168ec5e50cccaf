"""Long lists whole, whatever AWS throttles: every page is asked for until it comes.

botocore's paginators end with the first page that stays throttled after its few attempts, and what was read
is lost. An audit of a busy account meets such storms for minutes. So a page is asked for again for as long as
`Waits` allow, and everybody who reads for the same job shares a `Limit`, which ends all waiting at once.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from vmsnix_ops import errors
from vmsnix_ops.aws.error_codes import RETRYABLE
from vmsnix_ops.aws.session import code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from botocore.client import BaseClient

Answer = TypeVar("Answer")
AnyClient = TypeVar("AnyClient", bound="BaseClient")
Page = TypeVar("Page", bound="Mapping[str, object]")
Request = ParamSpec("Request")

PATIENCE_SECONDS = 600.0
"""How long AWS may throttle without a single answer in between."""

LINE_SECONDS = 30.0
"""How long connections may fail: longer, and it is no hiccup but no way."""


class Limit:
    """When all waiting ends: at a time, or when somebody says so. Threads may share it.

    Parameters
    ----------
    until
        Seconds since 1970, which other machines understand, too; never by default.
    fix
        How to have more time.
    """

    def __init__(self, until: float = float("inf"), *, fix: str = "") -> None:
        self.until, self.fix = until, fix
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all waiting: nobody wants the answers any more."""
        self._stopped.set()

    def check(self) -> None:
        """Raise when it is over.

        Raises
        ------
        vmsnix_ops.errors.InterruptedRunError
            Somebody stopped it.
        vmsnix_ops.errors.DeadlineError
            The time is up.
        """
        if self._stopped.is_set():
            raise errors.InterruptedRunError("Reading was stopped.")
        if time.time() >= self.until:
            raise errors.DeadlineError("The time limit was reached before this was read.", fix=self.fix)

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than until it is over."""
        self._stopped.wait(min(seconds, max(0.0, self.until - time.time())))


@dataclass(eq=False, slots=True)
class Waits:
    """How long something has given no answer; what gave none for too long is asked only once each time.

    So a region whose AWS is silent costs ten minutes, and not ten for each of its lists.

    Attributes
    ----------
    limit
        When waiting ends altogether.
    silent_since
        Time of the first failure since the last answer, if there is one.
    """

    limit: Limit = field(default_factory=Limit)
    silent_since: float | None = None


_WAITS: WeakKeyDictionary[Any, Waits] = WeakKeyDictionary()


def limited(client: AnyClient, limit: Limit) -> AnyClient:
    """Return a client whose calls through `patiently` end with this limit, in whatever thread."""
    _WAITS[client] = Waits(limit)
    return client


def insist(call: Callable[[], Answer], waits: Waits | None = None) -> Answer:
    """Return what a reading call answers; throttling and broken connections are waited out.

    Parameters
    ----------
    call
        What to ask; it must be safe to ask twice. It raises botocore's errors or ours.
    waits
        Shared by calls that fail together; a fresh one by default.
    """
    waits = waits or Waits()
    pause = 0.2
    while True:
        waits.limit.check()
        try:
            answer = call()
        except Exception as error:
            now = time.monotonic()
            waits.silent_since = waits.silent_since or now
            if now - waits.silent_since >= _patience(error):
                raise
            waits.limit.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that threads do not march in step
            pause = min(2 * pause, 5.0)
        else:
            waits.silent_since = None
            return answer


def _patience(error: Exception) -> float:
    """Return how many seconds such an error is waited out."""
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    if code_of(error) in RETRYABLE:
        return PATIENCE_SECONDS
    cause = error.__cause__ if isinstance(error, errors.AwsError) else error
    return LINE_SECONDS if isinstance(cause, HTTPClientError | ResponseParserError) else 0.0


def patiently(operation: Callable[Request, Answer], *args: Request.args, **request: Request.kwargs) -> Answer:
    """Return the answer to one reading call; throttling is waited out for ten minutes.

    Parameters
    ----------
    operation
        Method of a client, such as ``ec2.describe_images``; it must be safe to call twice. The client's own
        attempts are few, so that they do not add up.
    args, request
        Its parameters.
    """
    client = getattr(operation, "__self__", operation)
    return insist(lambda: operation(*args, **request), _WAITS.get(client))


def pages(
    operation: Callable[Request, Page], *args: Request.args, **request: Request.kwargs
) -> Iterator[Page]:
    """Yield the pages of an operation that goes on with ``NextToken``."""
    while True:
        answer = patiently(operation, *args, **request)
        yield answer
        token = answer.get("NextToken")
        if not token:
            return
        request["NextToken"] = token


def quick_times(client: AnyClient) -> AnyClient:
    """Let a client read times as Python itself does, and as botocore does what is left.

    A quarter of the time in which botocore reads a page of snapshots goes into guessing how a time is
    spelled; EC2 spells all in ISO 8601. What comes out is the same: a datetime with a time zone. Other
    clients of the session read as they always did.
    """
    from botocore.parsers import ResponseParserFactory

    factory = ResponseParserFactory()
    factory.set_parser_defaults(timestamp_parser=parse_time)
    endpoint: Any = vars(client)["_endpoint"]  # boto3 has no door to it
    endpoint._response_parser_factory = factory
    return client


def parse_time(value: Any) -> datetime:
    """Return a time that AWS sent, of whatever spelling."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)
    return moment
