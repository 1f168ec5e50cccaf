"""XML both ways: bodies of S3's requests; answers of ``ec2``, ``query`` and ``rest-xml``."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

from botocore.model import ListShape, MapShape, Shape, StructureShape

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.wire import models

HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n'
SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
# XML 1.0 cannot carry these characters, escaped or not.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
MOST_TAGS = 300_000  # 10,000 parts of an upload have about 120,000


def text(value: str) -> str:
    """Return a text as element content."""
    return escape(FORBIDDEN.sub("�", value), {"\r": "&#13;"})


def element(name: str, content: str, attributes: str = "") -> str:
    """Return one element around content that is XML already."""
    return f"<{name}{attributes}>{content}</{name.partition(' ')[0]}>"


class XmlWriter:
    """Writes values by their shapes.

    Parameters
    ----------
    timestamp_format
        How times look where the model does not say.
    """

    def __init__(self, timestamp_format: str = "iso8601") -> None:
        self._timestamp_format = timestamp_format

    def members(self, shape: StructureShape, value: dict[str, Any]) -> str:
        """Return the elements inside a structure; members that HTTP carries elsewhere are left out."""
        parts = []
        for name, member in shape.members.items():
            if value.get(name) is None or "location" in member.serialization or _is_attribute(member):
                continue
            parts.append(self.named(str(member.serialization.get("name", name)), member, value[name]))
        return "".join(parts)

    def named(self, name: str, shape: Shape, value: Any) -> str:
        """Return a value as an element of this name; flattened lists are several of them."""
        if isinstance(shape, StructureShape):
            return element(name, self.members(shape, value), self._attributes(shape, value))
        if isinstance(shape, ListShape):
            return self._list(name, shape, value)
        if isinstance(shape, MapShape):
            return self._map(name, shape, value)
        return element(name, text(models.text_of(shape, value, timestamp_format=self._timestamp_format)))

    def _list(self, name: str, shape: ListShape, values: list[Any]) -> str:
        if shape.serialization.get("flattened"):
            name = str(shape.member.serialization.get("name", name))
            return "".join(self.named(name, shape.member, value) for value in values)
        item = str(shape.member.serialization.get("name", "member"))
        return element(name, "".join(self.named(item, shape.member, value) for value in values))

    def _map(self, name: str, shape: MapShape, values: dict[str, Any]) -> str:
        key_name = str(shape.key.serialization.get("name", "key"))
        value_name = str(shape.value.serialization.get("name", "value"))
        flattened = shape.serialization.get("flattened")
        pairs = "".join(
            element(
                name if flattened else "entry",
                self.named(key_name, shape.key, key) + self.named(value_name, shape.value, value),
            )
            for key, value in values.items()
        )
        return pairs if flattened else element(name, pairs)

    @staticmethod
    def _attributes(shape: StructureShape, value: dict[str, Any]) -> str:
        result = ""
        for name, member in shape.members.items():
            if _is_attribute(member) and name in value:
                key, content = member.serialization["name"], quoteattr(FORBIDDEN.sub("\ufffd", value[name]))
                result += f' xmlns:xsi="{SCHEMA_INSTANCE}" {key}={content}'
        return result


def _is_attribute(shape: Shape) -> bool:
    return bool(shape.serialization.get("xmlAttribute"))


def malformed() -> AwsError:
    """Return S3's refusal of a body that does not follow its schema."""
    return AwsError(
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
    )


def read(shape: Shape, body: bytes) -> Any:
    """Return the value in an XML body.

    Raises
    ------
    AwsError
        ``MalformedXML``.
    """
    try:
        document = body.decode("utf-8")  # a text, so that no encoding which it declares can hide anything
        # Entities could be made to grow without end, and so could the elements' number.
        if "<!DOCTYPE" in document or "<!ENTITY" in document or document.count("<") > MOST_TAGS:
            raise malformed()
        root = ET.fromstring(document)  # noqa: S314 - entities were refused above
        return _value(shape, root)
    except (ET.ParseError, ValueError, RecursionError, models.BadValueError):
        raise malformed() from None


def _tag(node: ET.Element) -> str:
    return node.tag.rpartition("}")[2]


def _value(shape: Shape, node: ET.Element) -> Any:
    if isinstance(shape, StructureShape):
        return _structure(shape, node)
    if isinstance(shape, ListShape):
        return [_value(shape.member, child) for child in node]
    return models.parse(shape, (node.text or "").strip() if shape.type_name != "string" else node.text or "")


def _structure(shape: StructureShape, node: ET.Element) -> dict[str, Any]:
    children: dict[str, list[ET.Element]] = {}
    for child in node:
        children.setdefault(_tag(child), []).append(child)
    result: dict[str, Any] = {}
    for name, member in shape.members.items():
        key = str(member.serialization.get("name", name))
        if _is_attribute(member):
            attribute = node.get(f"{{{SCHEMA_INSTANCE}}}{key.rpartition(':')[2]}")
            if attribute is not None:
                result[name] = attribute
            continue
        if isinstance(member, ListShape) and member.serialization.get("flattened"):
            key = str(member.member.serialization.get("name", key))
            if key in children:
                result[name] = [_value(member.member, child) for child in children.pop(key)]
        elif key in children:
            result[name] = _value(member, children.pop(key)[0])
    if children or any(name not in result for name in shape.required_members):
        raise malformed()
    return result
