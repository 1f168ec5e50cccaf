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

from vmsnix_ops.sandbox.core import ApiError, Params, load_json, not_emulated, params_digest
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


View = Callable[["Context", Any], dict[str, Any]]
Key = str | Callable[[Any], str]
"""Where the ID by which resources are sorted is: an attribute, a member of a dictionary, or a function."""

PAGE_SIZES = {
    "DescribeInstanceStatus": (5, 1000),
    "DescribeInstances": (5, 1000),
    "DescribeLaunchTemplateVersions": (1, 200),
    "DescribeSnapshotTierStatus": (1, 1000),
    "DescribeSnapshots": (5, 1000),
    "DescribeTags": (5, 1000),
    "DescribeVolumes": (5, 1000),
}
"""The smallest and largest ``MaxResults`` of operations for which botocore's model has none."""

NOT_PAGED = {
    "DescribeInstanceImageMetadata": "InstanceIds",
    "DescribeInstanceStatus": "InstanceIds",
    "DescribeInstanceTypes": "InstanceTypes",
    "DescribeInstances": "InstanceIds",
    "DescribeSnapshots": "SnapshotIds",
    "DescribeVolumes": "VolumeIds",
}
"""The parameter that AWS refuses together with ``MaxResults``."""


def by_name(names: str) -> dict[str, str]:
    """Return filters that compare the members of their own names: ``image-id`` compares ``ImageId``."""
    return {
        name: ".".join("".join(w[:1].upper() + w[1:] for w in part.split("-")) for part in name.split("."))
        for name in names.split()
    }


def absent(names: str) -> dict[str, None]:
    """Return filters that no resource of the sandbox matches."""
    return dict.fromkeys(names.split())


def describe(
    context: Context,
    params: Params,
    items: Iterable[Any],
    view: View = lambda _context, item: item,
    *,
    filters: Filters,
    key: Key,
) -> dict[str, Any]:
    """Return the answer of a Describe operation: the resources that match its filters, one page of them.

    `view` returns a resource as the answer shows it. `filters` are those of the operation, apart from
    ``tag:KEY`` and ``tag-key``, which follow from botocore's documentation of the operation.
    """
    selected = _matching(context, params, list(items), view, filters)
    shown, more = paginate(context, params, selected, key)
    answer: Any = service_model("ec2").operation(context.operation).output_shape
    member = next(name for name, shape in answer.members.items() if shape.type_name == "list")
    return {member: [view(context, item) for item in shown], **more}


def _matching(context: Context, params: Params, items: list[Any], view: View, filters: Filters) -> list[Any]:
    wanted = params.get("Filters") or []
    if len(wanted) > MAX_FILTERS:
        raise ApiError("FilterLimitExceeded", f"The maximum number of filters is {MAX_FILTERS}")
    for entry in wanted:
        name, values = entry.get("Name", ""), entry.get("Values") or []
        read = _filter_reader(context, name, view, filters)
        if not values:
            raise ApiError("InvalidParameterValue", f"The filter '{name}' must have at least one value")
        if len(values) > MAX_VALUES:
            limit = f"The maximum number of filter values specified on a single call is {MAX_VALUES}"
            raise ApiError("FilterLimitExceeded", limit)
        exact = {value for value in values if not any(c in value for c in "*?\\")}
        patterns = [wildcard_pattern(value) for value in values if value not in exact]

        def matches(value: str, exact: set[str] = exact, patterns: list[re.Pattern[str]] = patterns) -> bool:
            return value in exact or any(pattern.fullmatch(value) for pattern in patterns)

        items = [item for item in items if any(matches(_filter_text(value)) for value in read(item))]
    return items


def _filter_reader(
    context: Context, name: str, view: View, filters: Filters
) -> Callable[[Any], Iterable[object]]:
    """Return the function that reads the compared values of a resource."""
    operation = context.operation
    if name == "tag-key" and _has_tag_filters(operation):
        return _tags_of
    if name.startswith("tag:") and name != "tag:" and _has_tag_filters(operation):
        key = name.removeprefix("tag:")
        return lambda item: [_tags_of(item)[key]] if key in _tags_of(item) else []
    if name not in filters:
        if name.startswith("tag") or name in documented_filters(operation) | _filters_of_any_operation():
            # AWS accepts more filters than it documents for an operation.
            raise not_emulated(f"the filter {name!r} of ec2:{operation}")
        raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
    reader = filters[name]
    if isinstance(reader, str):
        path = reader.split(".")
        return lambda item: values_at(view(context, item), path)
    return (lambda _item: ()) if reader is None else reader


def _tags_of(item: Any) -> Mapping[str, str]:
    """Return the tags of a resource; of an entry of DescribeTags its one tag."""
    return {item["Key"]: item["Value"]} if isinstance(item, dict) else item.tags


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
    """Return the filters of an EC2 operation in botocore's documentation of it, apart from those for tags."""
    return frozenset(name for name in _documented(operation) if not name.startswith("tag"))


def _documented(operation: str) -> list[str]:
    shape = service_model("ec2").operation(operation).input_shape
    known = shape.members if shape else {}
    text = known["Filters"].documentation if "Filters" in known else ""
    return re.findall(r"<li> ?<p> ?<code>([^<]+)</code>", text)


@lru_cache
def _has_tag_filters(operation: str) -> bool:
    # botocore documents no filter of DescribeImportSnapshotTasks; public tools send tag:KEY.
    return operation == "DescribeImportSnapshotTasks" or any(
        name.startswith("tag") for name in _documented(operation)
    )


@lru_cache
def _filters_of_any_operation() -> frozenset[str]:
    """Return the filters of all EC2 operations in botocore's documentation of them."""
    names = service_model("ec2").model.operation_names
    return frozenset().union(*(documented_filters(name) for name in names if name.startswith("Describe")))


def paginate(context: Context, params: Params, items: Iterable[Any], key: Key) -> tuple[list[Any], Params]:
    """Return one page of items, sorted by ID, and the member ``NextToken`` if there is another page.

    EC2 promises no order. Sorted by ID, the pages stay complete while resources are created and deleted. A
    token is valid for its own request only.
    """
    read = _key_reader(key)
    least, most = _page_sizes(context.operation)
    size, named = params.get("MaxResults"), NOT_PAGED.get(context.operation, "")
    if size is not None and size < least:
        text = f"Value ( {size} ) for parameter maxResults is invalid."
        raise ApiError("InvalidParameterValue", f"{text} Expecting a value greater than {least}.")
    if size is not None and params.get(named):
        text = f"The parameter {named[0].lower()}{named[1:]} cannot be used with the parameter maxResults"
        raise ApiError("InvalidParameterCombination", text)
    if size is None and context.operation == "DescribeInstanceTypes":  # the only one with a default
        size = most
    ordered, token = sorted(items, key=read), params.get("NextToken")
    if token:
        after = _read_token(params, token)
        ordered = [item for item in ordered if read(item) > after]
    if size is None or len(ordered) <= min(size, most):
        return ordered, {}
    shown = ordered[: min(size, most)]
    content = json.dumps([_request_digest(params), read(shown[-1])])
    return shown, {"NextToken": base64.urlsafe_b64encode(content.encode()).decode()}


def _key_reader(key: Key) -> Callable[[Any], str]:
    if not isinstance(key, str):
        return key
    return lambda item: item[key] if isinstance(item, dict) else getattr(item, key)


@lru_cache
def _page_sizes(operation: str) -> tuple[int, int]:
    shape = service_model("ec2").operation(operation).input_shape
    found = shape.members["MaxResults"].metadata if shape and "MaxResults" in shape.members else {}
    least, most = PAGE_SIZES.get(operation, (1, 1000))
    return found.get("min", least), found.get("max", most)


def _read_token(params: Params, token: str) -> str:
    """Return the ID after which the page begins."""
    try:
        digest, after = load_json(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, binascii.Error) as error:
        raise ApiError("InvalidNextToken", f"The token '{token}' is invalid") from error
    if digest != _request_digest(params):
        raise ApiError("InvalidNextToken", f"The token '{token}' does not belong to this request")
    return str(after)


def _request_digest(params: Params) -> str:
    return params_digest(params, "NextToken", "MaxResults")[:16]
