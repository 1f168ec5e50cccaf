"""Parameters of ``ec2`` and ``query``: a form whose keys are paths, such as ``Filter.1.Value.2``.

Source: botocore.serialize, read backwards; "Query Requests" in the Amazon EC2 API Reference.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from botocore.model import ListShape, MapShape, Shape, StructureShape

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.wire import errors, models

Tree = dict[str, Any]  # text at the leaves
MOST_BRANCHES = 30  # names in a key


def read_form(text: str) -> dict[str, str]:
    """Return the pairs of a form; a key that is there twice keeps its last value."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100_000))
    except ValueError:
        raise AwsError("MalformedQueryString", "The query string contains too many parameters") from None


class FormParser:
    """Reads a form with the help of an operation's input shape.

    Parameters
    ----------
    protocol
        ``"ec2"`` or ``"query"``: they number list members and name things differently.
    """

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._ec2 = protocol == "ec2"

    def parse(self, shape: StructureShape | None, form: dict[str, str]) -> dict[str, Any]:
        """Return the parameters by the model's own names.

        Raises
        ------
        AwsError
            When a key belongs to no parameter or a value is of another type.
        """
        tree: Tree = {}
        for key, value in form.items():
            self._plant(tree, key, value)
        if shape is None:
            if tree:
                raise errors.unknown_parameter(next(iter(tree)), self._protocol)
            return {}
        return self._structure(shape, tree, "")

    def _plant(self, tree: Tree, key: str, value: str) -> None:
        *branches, leaf = key.split(".")
        if len(branches) > MOST_BRANCHES:
            raise errors.unknown_parameter(key[:200], self._protocol)
        for branch in branches:
            below = tree.setdefault(branch, {})
            if not isinstance(below, dict):
                raise errors.unknown_parameter(key, self._protocol)
            tree = below
        if leaf in tree:
            raise errors.unknown_parameter(key, self._protocol)
        tree[leaf] = value

    def _value(self, shape: Shape, node: Any, path: str) -> Any:
        if isinstance(shape, StructureShape):
            return self._structure(shape, self._branch(node, path), path)
        if isinstance(shape, ListShape):
            return self._list(shape, node, path)
        if isinstance(shape, MapShape):
            return self._map(shape, self._branch(node, path), path)
        if isinstance(node, dict):
            raise errors.unknown_parameter(f"{path}.{next(iter(node))}", self._protocol)
        try:
            return models.parse(shape, node)
        except models.BadValueError as error:
            raise errors.bad_value(path, error.text, error.expected, self._protocol) from None

    def _branch(self, node: Any, path: str) -> Tree:
        if node == "":
            return {}
        if not isinstance(node, dict):
            raise errors.unknown_parameter(path, self._protocol)
        return node

    def _structure(self, shape: StructureShape, tree: Tree, path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        known: set[str] = set()
        for name, member in shape.members.items():
            key = self._key(name, member)
            known.add(key)
            if key in tree:
                result[name] = self._value(member, tree[key], _join(path, key))
        for key in tree:
            if key not in known:
                raise errors.unknown_parameter(_join(path, key), self._protocol)
        for name in shape.required_members:
            if name not in result:
                key = self._key(name, shape.members[name])
                raise errors.missing_parameter(_join(path, key), self._protocol)
        return result

    def _key(self, name: str, member: Shape) -> str:
        """Return how a structure's member is written."""
        serialization = member.serialization
        if self._ec2:
            if "queryName" in serialization:
                return str(serialization["queryName"])
            key = str(serialization.get("name", name))
            return key[:1].upper() + key[1:] if "name" in serialization else key
        if isinstance(member, ListShape) and serialization.get("flattened"):
            return str(member.member.serialization.get("name") or serialization.get("name", name))
        return str(serialization.get("name", name))

    def _list(self, shape: ListShape, node: Any, path: str) -> list[Any]:
        tree = self._branch(node, path)
        if not self._ec2 and not shape.serialization.get("flattened"):
            name = shape.member.serialization.get("name", "member")
            if set(tree) - {name}:
                raise errors.unknown_parameter(_join(path, next(iter(set(tree) - {name}))), self._protocol)
            path = _join(path, name)
            tree = self._branch(tree.get(name, ""), path)
        return [self._value(shape.member, tree[key], _join(path, key)) for key in self._numbers(tree, path)]

    def _map(self, shape: MapShape, tree: Tree, path: str) -> dict[str, Any]:
        if not shape.serialization.get("flattened"):
            path = _join(path, "entry")
            tree = self._branch(tree.get("entry", ""), path)
        key_name = shape.key.serialization.get("name", "key")
        value_name = shape.value.serialization.get("name", "value")
        result = {}
        for number in self._numbers(tree, path):
            pair = self._branch(tree[number], _join(path, number))
            key = self._value(shape.key, pair.get(key_name, ""), _join(path, key_name))
            result[key] = self._value(shape.value, pair.get(value_name, ""), _join(path, value_name))
        return result

    def _numbers(self, tree: Tree, path: str) -> list[str]:
        for key in tree:
            if not re.fullmatch("[0-9]{1,9}", key):
                raise errors.unknown_parameter(_join(path, key), self._protocol)
        return sorted(tree, key=int)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
