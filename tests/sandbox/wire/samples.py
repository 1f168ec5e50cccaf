"""Sample values for any shape of botocore's models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

DEEPEST = 9  # a form has no word for an empty structure, and CreateAutoScalingGroup goes that deep
MOMENT = datetime(2026, 11, 22, 21, 20, 19, tzinfo=UTC)
TEXT = "a <b> & \"c\" 'd' ü 100% x=y;z"


def sample(shape: Shape, depth: int = 0, *, plain: bool = False) -> Any:
    """Return a value of a shape with every member filled, as deep as it makes sense.

    Parameters
    ----------
    shape
        The shape.
    depth
        How deep it lies; structures that contain themselves end somewhere.
    plain
        Texts that fit into headers and paths.
    """
    if isinstance(shape, StructureShape):
        if depth > DEEPEST:
            return {}
        members = dict(shape.members)
        if shape.is_tagged_union:
            members = dict(list(members.items())[:1])
        return {
            name: sample(member, depth + 1, plain=plain or _outside(member))
            for name, member in members.items()
        }
    if isinstance(shape, ListShape):
        return [sample(shape.member, depth + 1, plain=plain)] * 2 if depth <= DEEPEST else []
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
    return "plain-text" if plain else TEXT
