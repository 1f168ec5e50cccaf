"""The state file of ``--state``: the sandbox's tables as JSON. Reading a file never runs code from it.

A file that is incomplete, of another version or of another program is refused and not changed.

Plain values are written as they are. Any other value is an object with one key that begins with ``$``, such
as ``{"$type": ["ec2.resources.Image", {...}]}`` for a dataclass of the sandbox. Fields with their default
value are left out. Maps from block index to digest are packed, because a disk has many blocks.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import load_operations

if TYPE_CHECKING:
    from collections.abc import Callable


FORMAT = "vmsnix-sandbox-state"
VERSION = 2
PLAIN = (str, int, float, type(None))  # bool is an int
DIGEST_BYTES = 32

Tables = dict[tuple[str, str, str], dict[str, Any]]


class StateError(ValueError):
    """The bytes are not a state file of this version."""


Steps = list[tuple[str, float]]
"""The calls of `Clock.advance`: time and seconds."""


def dump_tables(tables: Tables, steps: Steps | None = None) -> bytes:
    """Return the bytes of a state file with these tables and calls of `Clock.advance`.

    Raises
    ------
    TypeError
        A value is of a type that a state file cannot contain.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tables": [[*key, _encode(table)] for key, table in tables.items()],
        "steps": steps or [],
    }
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def load_tables(content: bytes) -> Tables:
    """Return the tables of a state file; see `load_steps` for its other content.

    Raises
    ------
    StateError
        The bytes are not a complete state file of this version.
    """
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StateError(f"it is not complete JSON ({error})") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise StateError("it was not written by the sandbox")
    if read.get("version") != VERSION:
        raise StateError(f"it has version {read.get('version')!r}, this program reads version {VERSION}")
    load_operations()  # which defines every dataclass of a state file
    try:
        return {
            (str(account), str(region), str(kind)): _decode(table)
            for account, region, kind, table in read["tables"]
        }
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise StateError(f"its content is not as expected ({type(error).__name__}: {error})") from error


def load_steps(content: bytes) -> Steps:
    """Return the calls of `Clock.advance` in a state file that `load_tables` has read.

    Raises
    ------
    StateError
        They are not as expected.
    """
    try:
        found = [
            (datetime.fromisoformat(at), float(seconds))
            for at, seconds in json.loads(content).get("steps", [])
        ]
    except (TypeError, ValueError) as error:
        raise StateError(f"its steps are not as expected ({error})") from error
    return [(at.isoformat(), seconds) for at, seconds in found]


def _encode(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        if _is_block_map(value):
            indices = struct.pack(f">{len(value)}Q", *value)
            return {"$blocks": base64.b64encode(indices + b"".join(value.values())).decode("ascii")}
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"$dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {f"${type(value).__name__}": [_encode(item) for item in sorted(value)]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$seconds": value.total_seconds()}
    name = _name_of(type(value))
    if name is None:
        message = f"a state cannot contain a {type(value).__name__}"
        raise TypeError(message)
    changed = {
        field.name: _encode(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if not _is_default(field, getattr(value, field.name))
    }
    return {"$type": [name, changed]}


def _is_block_map(value: dict[Any, Any]) -> bool:
    return bool(value) and all(
        type(key) is int and key >= 0 and type(item) is bytes and len(item) == DIGEST_BYTES
        for key, item in value.items()
    )


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(value == default)


def _name_of(kind: type) -> str | None:
    """Return the name of a dataclass of the sandbox (``ec2.resources.Image``), None for any other class."""
    module, package = kind.__module__, f"{__package__}."
    if not dataclasses.is_dataclass(kind) or not module.startswith(package) or "." in kind.__qualname__:
        return None
    return f"{module.removeprefix(package)}.{kind.__qualname__}"


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, content),) = value.items()
        if key.startswith("$"):
            if key not in DECODERS:
                raise StateError(f"it contains {key!r}, which this version does not have")
            return DECODERS[key](content)
    return {key: _decode(item) for key, item in value.items()}


def _decode_blocks(content: str) -> dict[int, bytes]:
    raw = base64.b64decode(content, validate=True)
    count, rest = divmod(len(raw), 8 + DIGEST_BYTES)
    if rest:
        raise StateError("a map of blocks is cut off")
    digests = raw[8 * count :]
    indices = struct.unpack(f">{count}Q", raw[: 8 * count])
    return {
        index: digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        for number, index in enumerate(indices)
    }


def _decode_type(content: list[Any]) -> Any:
    name, values = content
    module, _, word = str(name).rpartition(".")
    # Only dataclasses of the sandbox are created, and no module is imported because a file names it.
    kind = getattr(sys.modules.get(f"{__package__}.{module}"), word, None)
    if not isinstance(kind, type) or _name_of(kind) != name:
        raise StateError(f"it contains {name!r}, which this version does not have")
    unknown = set(values) - {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown:
        raise StateError(f"{name} has no {', '.join(sorted(unknown))} in this version")
    return kind(**{key: _decode(item) for key, item in values.items()})


DECODERS: dict[str, Callable[[Any], Any]] = {
    "$blocks": _decode_blocks,
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$dict": lambda content: {_decode(key): _decode(item) for key, item in content},
    "$frozenset": lambda content: frozenset(map(_decode, content)),
    "$seconds": lambda content: timedelta(seconds=content),
    "$set": lambda content: set(map(_decode, content)),
    "$time": datetime.fromisoformat,
    "$tuple": lambda content: tuple(map(_decode, content)),
    "$type": _decode_type,
}
