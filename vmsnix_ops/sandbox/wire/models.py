"""botocore's service models, the routes of REST requests, and values as text."""

from __future__ import annotations

import base64
import binascii
import math
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

from vmsnix_ops.sandbox.core import words

if TYPE_CHECKING:
    from botocore.model import Shape

    from vmsnix_ops.sandbox.wire.http import Request


class BadValueError(Exception):
    """A text is not a value of its shape."""

    def __init__(self, text: str, expected: str) -> None:
        super().__init__(f"{text!r} is not of the type {expected}")
        self.text, self.expected = text, expected


def parse_value(shape: Shape, text: str, *, timestamp_format: str = "iso8601") -> Any:
    """Return the value of a text, or raise `BadValueError`."""
    kind = shape.type_name
    try:
        if kind in {"integer", "long"}:
            return int(_matching(r"[+-]?[0-9]{1,19}", text))
        if kind in {"float", "double"}:
            return _parse_finite(text)
        if kind == "boolean":
            return _matching("true|false|[01]", text.lower()) in {"true", "1"}
        if kind == "blob":
            return base64.b64decode(text, validate=True)
        if kind == "timestamp":
            return parse_time(text, shape.serialization.get("timestampFormat", timestamp_format))
    except (ValueError, TypeError, binascii.Error, OverflowError, OSError):
        raise BadValueError(text, kind) from None
    return text


def _matching(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(text)
    return text


def _parse_finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def parse_time(value: str | float, form: str) -> datetime:
    """Return a UTC time from ISO 8601, RFC 822 or Unix seconds."""
    if isinstance(value, int | float) or value.replace(".", "", 1).isdecimal():
        return datetime.fromtimestamp(float(value), UTC)
    time = parsedate_to_datetime(value) if form == "rfc822" else datetime.fromisoformat(value)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def format_value(shape: Shape, value: Any, *, timestamp_format: str = "iso8601") -> str:
    """Return a value as text, for XML, headers and queries."""
    kind = shape.type_name
    if kind == "timestamp":
        return format_time(value, shape.serialization.get("timestampFormat", timestamp_format))
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "blob":
        return base64.b64encode(value).decode("ascii")
    return str(value)


def format_time(value: datetime | str, form: str = "iso8601") -> str:
    """Return a time as text. A text is not changed."""
    if isinstance(value, str):
        return value
    value = value.astimezone(UTC)
    if form == "rfc822":
        return format_datetime(value.replace(microsecond=0), usegmt=True)
    if form == "unixtimestamp":
        return str(unix_time(value))
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"


def unix_time(value: datetime) -> float:
    """Return the seconds since 1970, rounded to milliseconds, as JSON answers have them."""
    return round(value.timestamp(), 3)


SERVICES = words("ec2 s3 ebs iam sts ssm service-quotas autoscaling sns kms rbin resourcegroupstaggingapi")
# In credential scopes, where they are not botocore's names.
SIGNING_NAMES = {"servicequotas": "service-quotas", "tagging": "resourcegroupstaggingapi"}
PROTOCOLS = ("ec2", "query", "json", "rest-json", "rest-xml")

# Query keys that are not parameters.
TRANSPORT_KEYS = frozenset({"x-id"})

# Operations of directory buckets. On AWS they have their own endpoint, and requests like those of others.
DIRECTORY_BUCKET_OPERATIONS = frozenset({"ListDirectoryBuckets"})

_lock = threading.Lock()


@dataclass(frozen=True)
class RestRoute:
    """The form of the requests of one REST operation."""

    operation: str
    method: str
    pattern: re.Pattern[str]
    literals: tuple[tuple[str, str], ...]  # query keys that select the operation, and their values
    needs_query: frozenset[str]
    needs_headers: frozenset[str]
    query_keys: frozenset[str]
    weight: tuple[int, bool]  # more selective routes have more


class Service:
    """One service's model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = ServiceModel(Loader().load_service_model(name, "service-2"), name)
        metadata = self.model.metadata
        offered = metadata.get("protocols") or [metadata["protocol"]]
        # Of several protocols, clients choose one of those that they have. The sandbox has no CBOR.
        self.protocol: str = next(protocol for protocol in PROTOCOLS if protocol in offered)
        self.namespace: str = self.model.metadata.get("xmlNamespace", "")
        self.version: str = self.model.metadata["apiVersion"]
        self._operations: dict[str, OperationModel] = {}

    def __contains__(self, operation: str) -> bool:
        return operation in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.model.operation_names)

    def operation(self, name: str) -> OperationModel:
        """Return the model of one operation."""
        with _lock:
            if name not in self._operations:
                self._operations[name] = self.model.operation_model(name)
            return self._operations[name]

    @cached_property
    def routes(self) -> list[RestRoute]:
        """All routes of a REST service, the most selective first."""
        operations = [self.operation(name) for name in sorted(self._names - DIRECTORY_BUCKET_OPERATIONS)]
        routes = [_route(operation) for operation in operations if not operation.deprecated]
        return sorted(routes, key=lambda route: route.weight, reverse=True)

    def find_route(self, request: Request, path: str) -> tuple[RestRoute, dict[str, str]] | None:
        """Return the route of a request and the labels in its path; None when no operation matches."""
        for route in self.routes:
            if route.method != request.method:
                continue
            match = route.pattern.fullmatch(path)
            if match is None or any(request.query.get(key) != value for key, value in route.literals):
                continue
            if route.needs_query <= request.query.keys() and route.needs_headers <= request.headers.keys():
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
        return None


def _route(operation: OperationModel) -> RestRoute:
    uri = operation.http["requestUri"]
    path, _, query = uri.partition("?")
    literals = tuple(
        (name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)
    )
    shape = operation.input_shape
    members: dict[str, Any] = dict(shape.members) if shape is not None else {}
    required = set(shape.required_members) if shape is not None else set()

    def names(location: str, chosen: set[str]) -> frozenset[str]:
        return frozenset(
            m.serialization.get("name", name)
            for name, m in members.items()
            if m.serialization.get("location") == location and name in chosen
        )

    needs_query = names("querystring", required)
    needs_headers = frozenset({"x-amz-copy-source"} & names("header", required))
    return RestRoute(
        operation=operation.name,
        method=operation.http.get("method", "POST"),
        pattern=_pattern(path),
        literals=literals,
        needs_query=needs_query,
        needs_headers=needs_headers,
        query_keys=names("querystring", set(members)) | {name for name, _ in literals},
        weight=(len(literals) + len(needs_query) + len(needs_headers), "+}" not in path),
    )


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]+\})", path)
    expression = ""
    for part in parts:
        if part.startswith("{") and part.endswith("+}"):
            expression += f"(?P<{part[1:-2]}>.+)"
        elif part.startswith("{"):
            expression += f"(?P<{part[1:-1]}>[^/]+)"
        else:
            expression += re.escape(part)
    return re.compile(expression + ("/?" if expression.endswith("[^/]+)") else ""), re.DOTALL)


@lru_cache
def _load(name: str) -> Service:
    return Service(name)


def service_model(name: str) -> Service:
    """Return the model of a service. Thread-safe."""
    with _lock:
        return _load(name)
