"""Read long lists completely, even while AWS throttles requests.

Botocore's paginators raise after a few throttled attempts, and the pages that were read are lost. An audit of
a busy account can be throttled for minutes. So these functions retry a page for up to `THROTTLING_SECONDS`.
All reads of one job share a `TimeLimit`, which ends all waiting at once.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from vmsnix_ops import errors
from vmsnix_ops.aws.error_codes import RETRYABLE
from vmsnix_ops.aws.session import LOGGER, code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from botocore.client import BaseClient

Answer = TypeVar("Answer")
AnyClient = TypeVar("AnyClient", bound="BaseClient")
Page = TypeVar("Page", bound="Mapping[str, object]")
Request = ParamSpec("Request")

THROTTLING_SECONDS = 600.0
"""How long throttled requests are retried since the last answer."""

CONNECTION_SECONDS = 30.0
"""How long failed connections are retried since the last answer."""


class TimeLimit:
    """A time at which reading ends; `stop` ends it earlier. Threads may share it.

    `until` is in seconds since 1970, so that other machines can use the same limit; `fix` is how the operator
    can allow more time.
    """

    def __init__(self, until: float = float("inf"), *, fix: str = "") -> None:
        self.until, self.fix = until, fix
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all reading that shares this limit."""
        self._stopped.set()

    def check(self) -> None:
        """Raise an InterruptedRunError after `stop`, or a DeadlineError if the time is over."""
        if self._stopped.is_set():
            raise errors.InterruptedRunError("Reading was stopped.")
        if time.time() >= self.until:
            raise errors.DeadlineError("The time limit was reached before this was read.", fix=self.fix)

    def wait(self, seconds: float) -> None:
        """Wait this many seconds, or until the limit is reached."""
        self._stopped.wait(min(seconds, max(0.0, self.until - time.time())))


@dataclass(eq=False, slots=True)
class RetryState:
    """Since when a service has not answered; shared by all reads of a client.

    A region that does not answer costs ten minutes once, not for each of its lists. Later reads are tried
    only once until an answer arrives.
    """

    limit: TimeLimit = field(default_factory=TimeLimit)  # when all retries end
    # Time of the first failure after the last answer; `None` after an answer.
    failing_since: float | None = None


_RETRY_STATES: WeakKeyDictionary[Any, RetryState] = WeakKeyDictionary()


def with_time_limit(client: AnyClient, limit: TimeLimit) -> AnyClient:
    """Return the client; its calls through `call_with_retries` end with this limit, in any thread."""
    _RETRY_STATES[client] = RetryState(limit)
    return client


def retry_read(call: Callable[[], Answer], state: RetryState | None = None) -> Answer:
    """Return the answer of a reading call; retry while AWS throttles or the connection fails.

    The call must be safe to repeat, and raises botocore's errors or ours. Calls to the same service share
    `state`.
    """
    state = state or RetryState()
    pause = 0.2
    while True:
        state.limit.check()
        try:
            answer = call()
        except Exception as error:
            now = time.monotonic()
            state.failing_since = state.failing_since or now
            if now - state.failing_since >= _retry_seconds(error):
                raise
            LOGGER.warning("AWS answered %s: trying again.", code_of(error) or type(error).__name__)
            state.limit.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the threads' retries
            pause = min(2 * pause, 5.0)
        else:
            state.failing_since = None
            return answer


def _retry_seconds(error: Exception) -> float:
    """Return for how many seconds calls that fail like this are retried."""
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    if code_of(error) in RETRYABLE:
        return THROTTLING_SECONDS
    cause = error.__cause__ if isinstance(error, errors.AwsError) else error
    return CONNECTION_SECONDS if isinstance(cause, HTTPClientError | ResponseParserError) else 0.0


def call_with_retries(
    operation: Callable[Request, Answer], *args: Request.args, **request: Request.kwargs
) -> Answer:
    """Call a reading operation of a client as `retry_read` does, with the client's time limit.

    The operation is a method of a client, such as ``ec2.describe_images``, and must be safe to repeat. The
    client itself should make few attempts, because they add to these.
    """
    client = getattr(operation, "__self__", operation)
    return retry_read(lambda: operation(*args, **request), _RETRY_STATES.get(client))


def batches(values: Iterable[str], size: int = 200) -> Iterator[list[str]]:
    """Yield the values in lists for one call each; by default as many as AWS accepts in a filter.

    >>> list(batches("abc", 2))
    [['a', 'b'], ['c']]
    """
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def read_pages(
    operation: Callable[Request, Page], *args: Request.args, **request: Request.kwargs
) -> Iterator[Page]:
    """Yield the pages of an operation that continues with ``NextToken``."""
    while True:
        answer = call_with_retries(operation, *args, **request)
        yield answer
        token = answer.get("NextToken")
        if not token:
            return
        request["NextToken"] = token


def read_listing(
    operation: Callable[Request, Page],
    markers: tuple[str, ...],
    *args: Request.args,
    **request: Request.kwargs,
) -> Iterator[Page]:
    """Yield the pages of an S3 listing, whose next page starts at the markers ``Next...`` of the last one."""
    while True:
        answer = call_with_retries(operation, *args, **request)
        yield answer
        if not answer.get("IsTruncated"):
            return
        for name in markers:
            request[name] = answer[f"Next{name}"]


def use_fast_time_parser(client: AnyClient) -> AnyClient:
    """Return the client; it parses ISO 8601 times with the standard library, and others with botocore.

    Botocore spends a quarter of the time for a page of snapshots on detecting the format of times, and EC2
    uses ISO 8601 only. Both return a datetime with a time zone. Other clients of the session are unchanged.
    """
    from botocore.parsers import ResponseParserFactory

    factory = ResponseParserFactory()
    factory.set_parser_defaults(timestamp_parser=parse_time)
    endpoint: Any = vars(client)["_endpoint"]  # botocore has no public name for it
    endpoint._response_parser_factory = factory
    return client


def parse_time(value: Any) -> datetime:
    """Return a time from AWS, in any format that AWS uses."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)
    return moment
