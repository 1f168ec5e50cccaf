"""Filters and pages of EC2's Describe operations.

Sources: "Using filtering" and "Pagination" of the Amazon EC2 developer guide. A resource must match every
filter, and one of a filter's values. Values are case-sensitive, with the wildcards ``*`` and ``?``; a
backslash escapes them.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, load_json, not_emulated, params_digest
from vmsnix_ops.sandbox.wire.models import format_time, service_model

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

Filters = Mapping[str, "str | Callable[[Any], Iterable[object]] | None"]
"""The filters of an operation by name.

A text is the path of the compared member in the answer, such as ``"Placement.AvailabilityZone"``. A function
returns the compared values of a resource, where the answer does not have them. None matches nothing: no
resource of the sandbox has this attribute.
"""

MAX_FILTERS, MAX_VALUES = 50, 200


def describe(
    context: Context,
    params: Params,
    member: str,
    items: Iterable[Any],
    view: Callable[[Any], dict[str, Any]],
    *,
    filters: Filters,
    key: Callable[[Any], str],
    tags: Callable[[Any], Mapping[str, str]] | None = lambda item: item.tags,
    min_results: int = 1,
    max_results: int = 1000,
    default_results: int | None = None,
    not_with: str = "",
) -> dict[str, Any]:
    """Return the answer of a Describe operation: the resources that match its filters, one page of them.

    Parameters
    ----------
    member
        The member of the answer that lists the resources.
    items, view
        The resources, and the function that returns one as the answer shows it.
    filters
        The filters of the operation, apart from those for tags.
    key
        Returns the ID by which resources are sorted.
    tags
        Returns the tags of a resource, for the filters ``tag:KEY`` and ``tag-key``; None: the operation has
        no such filters.
    min_results, max_results, default_results, not_with
        As for `paginate`.

    Raises
    ------
    AwsError
        A filter is unknown, not emulated or has no values; there are too many filters or values;
        ``MaxResults`` or ``NextToken`` is invalid.
    """
    selected = _matching(context.operation, params, list(items), view, filters, tags)
    shown, token = paginate(
        selected,
        params,
        key,
        min_results=min_results,
        max_results=max_results,
        default_results=default_results,
        not_with=not_with,
    )
    return {member: [view(item) for item in shown]} | ({"NextToken": token} if token else {})


def _matching(
    operation: str,
    params: Params,
    items: list[Any],
    view: Callable[[Any], dict[str, Any]],
    filters: Filters,
    tags: Callable[[Any], Mapping[str, str]] | None,
) -> list[Any]:
    wanted = params.get("Filters") or []
    if len(wanted) > MAX_FILTERS:
        raise AwsError("FilterLimitExceeded", f"The maximum number of filters is {MAX_FILTERS}")
    for entry in wanted:
        name, values = entry.get("Name", ""), entry.get("Values") or []
        read = _filter_reader(operation, name, view, filters, tags)
        if not values:
            raise AwsError("InvalidParameterValue", f"The filter '{name}' must have at least one value")
        if len(values) > MAX_VALUES:
            limit = f"The maximum number of filter values specified on a single call is {MAX_VALUES}"
            raise AwsError("FilterLimitExceeded", limit)
        exact = {value for value in values if not any(c in value for c in "*?\\")}
        patterns = [wildcard_pattern(value) for value in values if value not in exact]

        def matches(value: str, exact: set[str] = exact, patterns: list[re.Pattern[str]] = patterns) -> bool:
            return value in exact or any(pattern.fullmatch(value) for pattern in patterns)

        items = [item for item in items if any(matches(_filter_text(value)) for value in read(item))]
    return items


def _filter_reader(
    operation: str,
    name: str,
    view: Callable[[Any], dict[str, Any]],
    filters: Filters,
    tags: Callable[[Any], Mapping[str, str]] | None,
) -> Callable[[Any], Iterable[object]]:
    """Return the function that reads the compared values of a resource."""
    if tags is not None and name == "tag-key":
        return tags
    if tags is not None and name.startswith("tag:") and name != "tag:":
        key = name.removeprefix("tag:")
        return lambda item: [tags(item)[key]] if key in tags(item) else []
    if name not in filters:
        if name.startswith("tag") or name in documented_filters(operation) | _filters_of_any_operation():
            # AWS accepts more filters than it documents for an operation.
            raise not_emulated(f"the filter {name!r} of ec2:{operation}")
        raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
    reader = filters[name]
    if isinstance(reader, str):
        path = reader.split(".")
        return lambda item: values_at(view(item), path)
    return (lambda _item: ()) if reader is None else reader


def values_at(value: Any, path: list[str]) -> Iterator[object]:
    """Yield the values at a path of member names; a list on the way has a value for each entry."""
    if isinstance(value, list):
        for entry in value:
            yield from values_at(entry, path)
    elif not path:
        if value not in (None, ""):
            yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from values_at(value[path[0]], path[1:])


def _filter_text(value: object) -> str:
    """Return a value as filters compare it: ``true``, digits, ISO 8601."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return format_time(value) if isinstance(value, datetime) else str(value)


def wildcard_pattern(wanted: str) -> re.Pattern[str]:
    """Return the regular expression of a filter value."""
    parts: list[str] = []
    characters = iter(wanted)
    for character in characters:
        if character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        else:
            parts.append({"*": ".*", "?": "."}.get(character) or re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def documented_filters(operation: str) -> frozenset[str]:
    """Return the filters of an EC2 operation in botocore's documentation of it."""
    shape = service_model("ec2").model.operation_model(operation).input_shape
    members = shape.members if shape else {}
    text = members["Filters"].documentation if "Filters" in members else ""
    found = re.findall(r"<li> ?<p> ?<code>([^<]+)</code>", text)
    return frozenset(name for name in found if not name.startswith("tag"))


@lru_cache
def _filters_of_any_operation() -> frozenset[str]:
    """Return the filters of all EC2 operations in botocore's documentation of them."""
    names = service_model("ec2").model.operation_names
    return frozenset().union(*(documented_filters(name) for name in names if name.startswith("Describe")))


def paginate(
    items: Iterable[Any],
    params: Params,
    key: Callable[[Any], str],
    *,
    min_results: int = 1,
    max_results: int = 1000,
    default_results: int | None = None,
    not_with: str = "",
) -> tuple[list[Any], str | None]:
    """Return one page of items, sorted by ID, and the token of the next page.

    EC2 promises no order. Sorted by ID, the pages stay complete while resources are created and deleted. A
    token is valid for its own request only.

    Parameters
    ----------
    items, key
        All matching items, and the function that returns an item's ID.
    min_results, max_results, default_results
        Bounds of ``MaxResults``, and the page size without it (None: everything).
    not_with
        A member, such as ``InstanceIds``, that AWS refuses together with ``MaxResults``.

    Raises
    ------
    AwsError
        ``MaxResults`` is out of bounds, or the token is not of this request.
    """
    size = params.get("MaxResults")
    if size is not None and size < min_results:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ( {size} ) for parameter maxResults is invalid. "
            f"Expecting a value greater than {min_results}.",
        )
    if size is not None and not_with and params.get(not_with):
        name = not_with[0].lower() + not_with[1:]
        text = f"The parameter {name} cannot be used with the parameter maxResults"
        raise AwsError("InvalidParameterCombination", text)
    limit = default_results if size is None else min(size, max_results)
    ordered = sorted(items, key=key)
    token = params.get("NextToken")
    if token:
        after = _read_token(params, token)
        ordered = [item for item in ordered if key(item) > after]
    if limit is None or len(ordered) <= limit:
        return ordered, None
    shown = ordered[:limit]
    content = json.dumps([_request_digest(params), key(shown[-1])])
    return shown, base64.urlsafe_b64encode(content.encode()).decode()


def _read_token(params: Params, token: str) -> str:
    """Return the ID after which the page begins."""
    try:
        digest, after = load_json(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, binascii.Error) as error:
        raise AwsError("InvalidNextToken", f"The token '{token}' is invalid") from error
    if digest != _request_digest(params):
        raise AwsError("InvalidNextToken", f"The token '{token}' does not belong to this request")
    return str(after)


def _request_digest(params: Params) -> str:
    return params_digest(params, "NextToken", "MaxResults")[:16]
