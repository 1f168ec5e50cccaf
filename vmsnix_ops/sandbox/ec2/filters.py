"""Filters and pages, as all of EC2's Describe operations have them.

Sources: "Using filtering" and "Pagination" of the Amazon EC2 developer guide: filters are ANDed, a filter's
values are ORed and case-sensitive, ``*`` and ``?`` are wildcards, a backslash takes them literally.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vmsnix_ops.sandbox.core import AwsError, Params, load_json, not_emulated
from vmsnix_ops.sandbox.wire.models import service_model

Item = TypeVar("Item")
FilterReader = Callable[[Any], Iterable[object]]

MAX_FILTERS, MAX_VALUES = 50, 200


def _comparable(value: object) -> str:
    """Return a value as a filter compares it: booleans as true and false, numbers in digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def optional_value(value: object) -> list[object]:
    """Return what a filter compares for an attribute that may be absent."""
    return [] if value is None or value == "" else [value]


def wildcard_pattern(wanted: str) -> re.Pattern[str]:
    """Return the expression for one filter value with EC2's wildcards."""
    parts: list[str] = []
    characters = iter(wanted)
    for character in characters:
        if character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        elif character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def apply_filters(
    items: Iterable[Item],
    params: Params,
    readers: Mapping[str, FilterReader],
    *,
    tags: bool = True,
    operation: str = "",
) -> list[Item]:
    """Return the items that every filter of the request lets through.

    Parameters
    ----------
    items
        Resources; with `tags` they have a ``tags`` dictionary.
    params
        The request; its ``Filters`` are read.
    readers
        For each filter that the operation knows, how to read the values to compare from a resource.
    tags
        Whether ``tag:KEY`` and ``tag-key`` are filters of this operation.
    operation
        Given where the sandbox has fewer filters than AWS: those are then refused as not emulated.

    Raises
    ------
    AwsError
        A filter's name is unknown, it has no values, or there are too many.
    """
    kept = list(items)
    wanted = params.get("Filters") or []
    if len(wanted) > MAX_FILTERS:
        raise AwsError("FilterLimitExceeded", f"The maximum number of filters is {MAX_FILTERS}")
    for entry in wanted:
        name, values = entry.get("Name", ""), entry.get("Values") or []
        reader = _filter_reader(name, readers, tags=tags, operation=operation)
        if not values:
            raise AwsError("InvalidParameterValue", f"The filter '{name}' must have at least one value")
        if len(values) > MAX_VALUES:
            limit = f"The maximum number of filter values specified on a single call is {MAX_VALUES}"
            raise AwsError("FilterLimitExceeded", limit)
        kept = _matching(kept, reader, values)
    return kept


def _filter_reader(
    name: str, readers: Mapping[str, FilterReader], *, tags: bool, operation: str
) -> FilterReader:
    if tags and name.startswith("tag:") and len(name) > len("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: [item.tags[key]] if key in item.tags else []
    if tags and name == "tag-key":
        return lambda item: item.tags
    if name in readers:
        return readers[name]
    if operation and name in documented_filters(operation):
        raise not_emulated("ec2", operation, f"the filter {name!r}")
    raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")


def documented_filters(operation: str) -> frozenset[str]:
    """Return the filters that an EC2 operation has according to botocore's documentation of it."""
    shape = service_model("ec2").model.operation_model(operation).input_shape
    members = shape.members if shape else {}
    text = members["Filters"].documentation if "Filters" in members else ""
    found = re.findall(r"<li> ?<p> ?<code>([^<]+)</code>", text)
    return frozenset(name for name in found if not name.startswith("tag"))


def _matching(items: list[Item], reader: FilterReader, values: Sequence[str]) -> list[Item]:
    exact = {v for v in values if not any(c in v for c in "*?\\")}
    patterns = [wildcard_pattern(v) for v in values if v not in exact]

    def matches(item: Item) -> bool:
        for raw in reader(item):
            value = _comparable(raw)
            if value in exact or any(p.fullmatch(value) for p in patterns):
                return True
        return False

    return [item for item in items if matches(item)]


def paginate(
    items: Iterable[Item],
    params: Params,
    key: Callable[[Item], str],
    *,
    smallest: int = 1,
    largest: int = 1000,
    default: int | None = None,
    not_with: str = "",
) -> tuple[list[Item], str | None]:
    """Return one page of items, in the order of their ids, and the token of the next page.

    EC2 promises no order, so the order of ids is as good as any, and it keeps the pages whole while resources
    come and go. A token belongs to the request that it came from.

    Parameters
    ----------
    items, key
        All that matched, and how to read an item's id.
    smallest, largest, default
        Bounds of ``MaxResults``, and the page's size when the request names none (None: everything).
    not_with
        A member, such as ``InstanceIds``, that AWS does not accept together with ``MaxResults``.

    Raises
    ------
    AwsError
        ``MaxResults`` is out of its bounds, or the token is not one of this request.
    """
    asked = params.get("MaxResults")
    if asked is not None:
        _check_size(asked, smallest)
        if not_with and params.get(not_with):
            member = not_with[0].lower() + not_with[1:]
            raise AwsError(
                "InvalidParameterCombination",
                f"The parameter {member} cannot be used with the parameter maxResults",
            )
    size = default if asked is None else min(asked, largest)
    ordered = sorted(items, key=key)
    after = _after(params)
    if after is not None:
        ordered = [item for item in ordered if key(item) > after]
    if size is None or len(ordered) <= size:
        return ordered, None
    shown = ordered[:size]
    return shown, _token(params, key(shown[-1]))


def _check_size(asked: int, smallest: int) -> None:
    if asked < smallest:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ( {asked} ) for parameter maxResults is invalid. "
            f"Expecting a value greater than {smallest}.",
        )


def _fingerprint(params: Params) -> str:
    question = {k: v for k, v in params.items() if k not in ("NextToken", "MaxResults", "DryRun")}
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _token(params: Params, after: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([_fingerprint(params), after]).encode()).decode()


def _after(params: Params) -> str | None:
    token = params.get("NextToken")
    if not token:
        return None
    try:
        fingerprint, after = load_json(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, binascii.Error) as error:
        raise AwsError("InvalidNextToken", f"The token '{token}' is invalid") from error
    if fingerprint != _fingerprint(params):
        raise AwsError("InvalidNextToken", f"The token '{token}' does not belong to this request")
    return str(after)
