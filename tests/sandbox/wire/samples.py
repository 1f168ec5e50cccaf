"""Sample values for any shape of botocore's models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

MAX_DEPTH = 9  # that of CreateAutoScalingGroup: a form cannot contain an empty structure
MOMENT = datetime(2026, 11, 22, 21, 20, 19, tzinfo=UTC)
TEXT = "a <b> & \"c\" 'd' ü 100% x=y;z"


def sample(shape: Shape, depth: int = 0, *, plain: bool = False) -> Any:
    """Return a value of a shape with all members, down to a depth of `MAX_DEPTH`.

    Parameters
    ----------
    shape
        The shape.
    depth
        Its depth, which ends recursive structures.
    plain
        Whether texts must be valid in headers and paths.
    """
    if isinstance(shape, StructureShape):
        if depth > MAX_DEPTH:
            return {}
        members = dict(shape.members)
        if shape.is_tagged_union:
            members = dict(list(members.items())[:1])
        return {
            name: sample(member, depth + 1, plain=plain or _outside(member))
            for name, member in members.items()
        }
    if isinstance(shape, ListShape):
        return [sample(shape.member, depth + 1, plain=plain)] * 2 if depth <= MAX_DEPTH else []
    if isinstance(shape, MapShape):
        return {
            "one": sample(shape.value, depth + 1, plain=plain),
            "two": sample(shape.value, depth + 1, plain=plain),
        }
    return _scalar(shape, plain=plain)


def _outside(member: Shape) -> bool:
    return "location" in member.serialization


def _scalar(shape: Shape, *, plain: bool) -> Any:
    kind = shape.type_name
    if kind in {"integer", "long"}:
        return 42
    if kind in {"float", "double"}:
        return 1.5
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return MOMENT
    if kind == "blob":
        return b"\x00bytes\xff"
    return next(iter(getattr(shape, "enum", ())), "plain-text" if plain else TEXT)
