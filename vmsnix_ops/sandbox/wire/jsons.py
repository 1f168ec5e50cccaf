"""JSON both ways, by the shapes of the protocols ``json`` and ``rest-json``."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from vmsnix_ops.sandbox.core import AwsError, load_json
from vmsnix_ops.sandbox.wire import errors, models

NUMBERS = {"integer": int, "long": int, "float": float, "double": float}


def read(shape: Shape | None, body: bytes, protocol: str) -> dict[str, Any]:
    """Return the parameters in a JSON body.

    Raises
    ------
    AwsError
        ``SerializationException`` for what is no JSON object, ``ValidationException`` for unknown or missing
        members.
    """
    try:
        value = load_json(body) if body else {}
        return {} if shape is None else parse(shape, value, "", protocol)
    except (ValueError, RecursionError):
        raise AwsError("SerializationException", "The request body is no JSON") from None


def parse(shape: Shape, value: Any, path: str, protocol: str) -> Any:
    """Return a JSON value by its shape; `path` names it in errors."""
    if isinstance(shape, StructureShape):
        return _structure(shape, _expect(value, dict, path, protocol), path, protocol)
    if isinstance(shape, ListShape):
        items = _expect(value, list, path, protocol)
        return [parse(shape.member, item, f"{path}[{n}]", protocol) for n, item in enumerate(items)]
    if isinstance(shape, MapShape):
        pairs = _expect(value, dict, path, protocol)
        return {key: parse(shape.value, item, f"{path}.{key}", protocol) for key, item in pairs.items()}
    return _scalar(shape, value, path, protocol)


def _expect(value: Any, kind: type, path: str, protocol: str) -> Any:
    if not isinstance(value, kind):
        raise errors.bad_value(path or "the body", str(value)[:80], kind.__name__, protocol)
    return value


def _scalar(shape: Shape, value: Any, path: str, protocol: str) -> Any:
    kind = shape.type_name
    try:
        if kind == "timestamp":
            return models.parse_time(value, "iso8601")
        if kind == "blob":
            return models.parse(shape, value)
    except (ValueError, TypeError, OverflowError, OSError, models.BadValueError):
        raise errors.bad_value(path, str(value)[:80], kind, protocol) from None
    if kind in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise errors.bad_value(path, str(value)[:80], kind, protocol)
        try:
            return NUMBERS[kind](value)
        except OverflowError:  # 1e999 is infinite
            raise errors.bad_value(path, str(value)[:80], kind, protocol) from None
    return _expect(value, bool if kind == "boolean" else str, path, protocol)


def _structure(shape: StructureShape, value: dict[str, Any], path: str, protocol: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    keys = {member.serialization.get("name", name): name for name, member in shape.members.items()}
    for key, item in value.items():
        if key not in keys:
            raise errors.unknown_parameter(f"{path}.{key}".lstrip("."), protocol)
        if item is not None:
            result[keys[key]] = parse(shape.members[keys[key]], item, f"{path}.{key}".lstrip("."), protocol)
    for name in shape.required_members:
        if name not in result and "location" not in shape.members[name].serialization:
            raise errors.missing_parameter(f"{path}.{name}".lstrip("."), protocol)
    return result


def write(shape: StructureShape, value: dict[str, Any]) -> bytes:
    """Return an answer's body; members that HTTP carries elsewhere are left out."""
    return json.dumps(_plain(shape, value)).encode()


def _plain(shape: Shape, value: Any) -> Any:
    if isinstance(shape, StructureShape):
        return {
            member.serialization.get("name", name): _plain(member, value[name])
            for name, member in shape.members.items()
            if value.get(name) is not None and "location" not in member.serialization
        }
    if isinstance(shape, ListShape):
        return [_plain(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {key: _plain(shape.value, item) for key, item in value.items()}
    if shape.type_name == "blob":
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        if shape.serialization.get("timestampFormat") == "iso8601":
            return models.time_text(value, "iso8601")
        return models.unix_time(value)
    return value
