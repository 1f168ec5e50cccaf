"""Long lists whole, whatever AWS throttles: every page is asked for until it comes.

botocore's paginators end with the first page that stays throttled after its few attempts, and what was read
is lost. An audit of a busy account meets such storms for minutes.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws.session import retrying

if TYPE_CHECKING:
    from collections.abc import Iterator

    import boto3

    from vmsnix_ops.aws.session import Client

THROTTLED = (
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "Client.RequestLimitExceeded",
    "Unavailable",
    "ServiceUnavailable",
    "InternalError",
    "InternalFailure",
)
"""Codes after which the same page is asked for again (EC2, Systems Manager, Auto Scaling, S3)."""


def quick_times(session: boto3.Session) -> None:
    """Let this session's future clients read times as Python itself does, and as botocore does what is left.

    A quarter of the time in which botocore reads a page of snapshots goes into guessing how a time is
    spelled; EC2 spells all in ISO 8601. What comes out is the same: a datetime with a time zone.
    """
    # boto3 has no door to the session beneath; the parsers' defaults are botocore's own.
    factory = session._session.get_component("response_parser_factory")
    factory.set_parser_defaults(timestamp_parser=parse_time)


def parse_time(value: Any) -> datetime:
    """Return a time that AWS sent, of whatever spelling."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)  # type: ignore[no-any-return]
    return moment


PATIENCE_SECONDS = 600.0
MOST_ATTEMPTS = 200


def patiently(client: Client, operation: str, **request: Any) -> dict[str, Any]:
    """Return the answer to one reading call; throttling is waited out for ten minutes.

    Parameters
    ----------
    client
        A client whose own attempts are few, so that they do not add up.
    operation
        Method of the client, such as ``"describe_images"``; it must be safe to call twice.
    request
        Its parameters.
    """
    call = getattr(client, operation)
    answer: dict[str, Any] = retrying(
        lambda: call(**request), *THROTTLED, seconds=PATIENCE_SECONDS, attempts=MOST_ATTEMPTS
    )
    return answer


def pages(client: Client, operation: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Yield the pages of an operation that goes on with ``NextToken``."""
    while True:
        answer = patiently(client, operation, **request)
        yield answer
        token = answer.get("NextToken")
        if not token:
            return
        request = {**request, "NextToken": token}


def items(client: Client, operation: str, member: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Yield what all pages list as `member`."""
    for page in pages(client, operation, **request):
        yield from page.get(member) or ()
