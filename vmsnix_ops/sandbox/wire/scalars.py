"""Single values between text and Python: numbers, booleans, times, blobs."""

from __future__ import annotations

import base64
import binascii
import math
import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.model import Shape


class BadValueError(Exception):
    """A text that is no value of its shape.

    Parameters
    ----------
    text
        What was sent.
    expected
        What it should have been, such as ``"integer"``.
    """

    def __init__(self, text: str, expected: str) -> None:
        super().__init__(f"{text!r} is no {expected}")
        self.text, self.expected = text, expected


def parse(shape: Shape, text: str, *, timestamp_format: str = "iso8601") -> Any:
    """Return the value that a text stands for.

    Raises
    ------
    BadValueError
        When it stands for none.
    """
    kind = shape.type_name
    try:
        if kind in {"integer", "long"}:
            return _integer(text)
        if kind in {"float", "double"}:
            return _finite(text)
        if kind == "boolean":
            return _boolean(text)
        if kind == "blob":
            return base64.b64decode(text, validate=True)
        if kind == "timestamp":
            return parse_time(text, shape.serialization.get("timestampFormat", timestamp_format))
    except (ValueError, TypeError, binascii.Error, OverflowError, OSError):
        raise BadValueError(text, kind) from None
    return text


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _boolean(text: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


def parse_time(value: str | float, form: str) -> datetime:
    """Return a UTC time from ISO 8601, RFC 822 or Unix seconds."""
    if isinstance(value, int | float) or value.replace(".", "", 1).isdecimal():
        return datetime.fromtimestamp(float(value), UTC)
    time = parsedate_to_datetime(value) if form == "rfc822" else datetime.fromisoformat(value)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def text_of(shape: Shape, value: Any, *, timestamp_format: str = "iso8601") -> str:
    """Return a value as XML, headers and queries carry it."""
    kind = shape.type_name
    if kind == "timestamp":
        return time_text(value, shape.serialization.get("timestampFormat", timestamp_format))
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "blob":
        return base64.b64encode(value).decode("ascii")
    return str(value)


def time_text(value: datetime | str, form: str) -> str:
    """Return a time as text; texts pass through."""
    if isinstance(value, str):
        return value
    value = value.astimezone(UTC)
    if form == "rfc822":
        return format_datetime(value.replace(microsecond=0), usegmt=True)
    if form == "unixtimestamp":
        return str(unix_time(value))
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"


def unix_time(value: datetime) -> float:
    """Return seconds since 1970, in milliseconds' precision, as JSON answers carry them."""
    return round(value.timestamp(), 3)
