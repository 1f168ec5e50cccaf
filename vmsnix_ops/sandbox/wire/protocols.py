"""AWS's protocols: find the operation of a request, parse its parameters, write answers and errors.

Parameters and results are forms, JSON or XML, by the shapes of botocore's models. The keys of a form are
paths, such as ``Filter.1.Value.2``. Sources: botocore.serialize, whose reverse this is; "Query Requests" in
the Amazon EC2 API Reference.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

from botocore.model import ListShape, MapShape, Shape, StructureShape

from vmsnix_ops.sandbox.core import ApiError, load_json, not_emulated, words
from vmsnix_ops.sandbox.wire.checksums import ALGORITHMS, encode_base64, new_checksum
from vmsnix_ops.sandbox.wire.http import Response
from vmsnix_ops.sandbox.wire.models import (
    TRANSPORT_KEYS,
    BadValueError,
    RestRoute,
    Service,
    format_time,
    format_value,
    parse_time,
    parse_value,
    unix_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.model import OperationModel

    from vmsnix_ops.sandbox.wire.http import Request


def missing_parameter(name: str, protocol: str) -> ApiError:
    """Return the error for a missing parameter, with the text of the protocol."""
    if protocol == "ec2":
        return ApiError("MissingParameter", f"The request must contain the parameter {name}")
    text = (
        f"1 validation error detected: Value at '{_lower(name)}' failed to satisfy constraint: "
        "Member must not be null"
    )
    return ApiError(_validation_code(protocol), text)


def _unknown_parameter(name: str, protocol: str) -> ApiError:
    """Return the error for a parameter that the operation does not have."""
    if protocol == "ec2":
        return ApiError("UnknownParameter", f"The parameter {name} is not recognized")
    return ApiError(_validation_code(protocol), f"Unknown parameter {name}")


def bad_value(name: str, text: str, expected: str, protocol: str) -> ApiError:
    """Return the error for a value of the wrong type."""
    if protocol == "ec2":
        problem = f"Value ({text}) for parameter {name} is invalid. Its type is not {expected}."
        return ApiError("InvalidParameterValue", problem)
    problem = f"The type of {name} is not {expected}"
    if protocol == "rest-xml":
        return ApiError("InvalidArgument", problem, ArgumentName=name, ArgumentValue=text)
    return ApiError("MalformedInput" if protocol == "query" else "SerializationException", problem)


def _validation_code(protocol: str) -> str:
    return {"query": "ValidationError", "rest-xml": "InvalidRequest"}.get(protocol, "ValidationException")


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


# Constraints of botocore's models: lengths, ranges, patterns and enumerations

CHECKED_SERVICES = frozenset(words("ebs iam kms rbin service-quotas ssm sts"))
"""The services whose requests are checked here. The others have their own errors for invalid values."""

OWN_ERRORS = frozenset({"pathType"})
"""Shapes for which the service has another error than for a broken constraint."""


def check_constraints(target: RequestTarget, params: dict[str, Any]) -> None:
    """Check parameters by the constraints in the service's model, and report all that are broken.

    Source of the text: public answers of IAM, KMS, STS and Systems Manager.
    """
    service, shape = target.service, target.model.input_shape
    if shape is None or service.name not in CHECKED_SERVICES:
        return
    broken = [
        f"Value {shown} failed to satisfy constraint: Member must {constraint}"
        for shown, constraint in _broken_constraints(shape, params, "")
    ]
    if broken:
        count = f"{len(broken)} validation error{'s' if len(broken) > 1 else ''} detected"
        error = ApiError(_validation_code(service.protocol), f"{count}: {'; '.join(broken)}")
        if service.protocol == "rest-json":
            error.extra["Reason"] = "INVALID_PARAMETER_VALUE"
        raise error


def _broken_constraints(shape: Shape, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield each value that breaks a constraint, as errors show it, and the constraint."""
    if shape.name in OWN_ERRORS:
        return
    rules = shape.metadata
    hidden = rules.get("sensitive") or isinstance(value, bytes)
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
    shown = f"at '{path}'" if hidden else f"'{text}' at '{path}'"
    least, most = rules.get("min"), rules.get("max")
    size: float
    if isinstance(value, int | float):
        size, what = value, "value"
    elif isinstance(value, str | bytes | list | dict):
        size, what = len(value), "length"
    else:
        return
    if rules.get("enum") and value not in rules["enum"]:
        yield shown, f"satisfy enum value set: [{', '.join(rules['enum'])}]"
    pattern = _compiled(rules["pattern"]) if "pattern" in rules else None
    if pattern is not None and not pattern.fullmatch(value):
        yield shown, f"satisfy regular expression pattern: {rules['pattern']}"
    if least is not None and size < least:
        yield shown, f"have {what} greater than or equal to {least}"
    if most is not None and size > most:
        yield shown, f"have {what} less than or equal to {most}"
    if isinstance(shape, StructureShape):
        for name in value:
            yield from _broken_constraints(shape.members[name], value[name], _join(path, _lower(name)))
    elif isinstance(shape, ListShape):
        for number, item in enumerate(value, 1):
            yield from _broken_constraints(shape.member, item, f"{path}.{number}.member")


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern of a model, whose syntax is that of Java; None when Python cannot read it."""
    try:
        return re.compile(pattern.replace(r"\p{L}\p{Z}\p{N}", r"\w\s"))
    except re.error:
        return None


Tree = dict[str, Any]  # text at the leaves
MAX_KEY_PARTS = 30  # names in a key


def read_form(text: str) -> dict[str, str]:
    """Return the pairs of a form. Of a repeated key the last value counts."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100_000))
    except ValueError:
        raise ApiError("MalformedQueryString", "The query string contains too many parameters") from None


class FormParser:
    """Parses a form by the input shape of an operation."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._ec2 = protocol == "ec2"

    def parse(self, shape: StructureShape | None, form: dict[str, str]) -> dict[str, Any]:
        """Return the parameters by the names of the model."""
        tree: Tree = {}
        for key, value in form.items():
            self._insert(tree, key, value)
        if shape is None:
            if tree:
                raise _unknown_parameter(next(iter(tree)), self._protocol)
            return {}
        return self._structure(shape, tree, "")

    def _insert(self, tree: Tree, key: str, value: str) -> None:
        *branches, leaf = key.split(".")
        if len(branches) > MAX_KEY_PARTS:
            raise _unknown_parameter(key[:200], self._protocol)
        for branch in branches:
            below = tree.setdefault(branch, {})
            if not isinstance(below, dict):
                raise _unknown_parameter(key, self._protocol)
            tree = below
        if leaf in tree:
            raise _unknown_parameter(key, self._protocol)
        tree[leaf] = value

    def _value(self, shape: Shape, node: Any, path: str) -> Any:
        if isinstance(shape, StructureShape):
            return self._structure(shape, self._branch(node, path), path)
        if isinstance(shape, ListShape):
            return self._list(shape, node, path)
        if isinstance(shape, MapShape):
            return self._map(shape, self._branch(node, path), path)
        if isinstance(node, dict):
            raise _unknown_parameter(f"{path}.{next(iter(node))}", self._protocol)
        try:
            return parse_value(shape, node)
        except BadValueError as error:
            raise bad_value(path, error.text, error.expected, self._protocol) from None

    def _branch(self, node: Any, path: str) -> Tree:
        if node == "":
            return {}
        if not isinstance(node, dict):
            raise _unknown_parameter(path, self._protocol)
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
                raise _unknown_parameter(_join(path, key), self._protocol)
        for name in shape.required_members:
            if name not in result:
                key = self._key(name, shape.members[name])
                raise missing_parameter(_join(path, key), self._protocol)
        return result

    def _key(self, name: str, member: Shape) -> str:
        """Return the key of a member."""
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
                raise _unknown_parameter(_join(path, next(iter(set(tree) - {name}))), self._protocol)
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
                raise _unknown_parameter(_join(path, key), self._protocol)
        return sorted(tree, key=int)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


JSON_NUMBERS = {"integer": int, "long": int, "float": float, "double": float}


def read_json(shape: Shape | None, body: bytes, protocol: str) -> dict[str, Any]:
    """Return the parameters in a JSON body.

    ``SerializationException`` when it is not a JSON object, ``ValidationException`` for unknown or missing
    members.
    """
    try:
        value = load_json(body) if body else {}
        return {} if shape is None else _parse_json(shape, value, "", protocol)
    except (ValueError, RecursionError):
        raise ApiError("SerializationException", "The request body is not JSON") from None


def _parse_json(shape: Shape, value: Any, path: str, protocol: str) -> Any:
    """Return a JSON value by its shape. `path` is its name in errors."""
    if isinstance(shape, StructureShape):
        return _json_structure(shape, _expect_type(value, dict, path, protocol), path, protocol)
    if isinstance(shape, ListShape):
        items = _expect_type(value, list, path, protocol)
        return [_parse_json(shape.member, item, f"{path}[{n}]", protocol) for n, item in enumerate(items)]
    if isinstance(shape, MapShape):
        pairs = _expect_type(value, dict, path, protocol)
        return {key: _parse_json(shape.value, item, f"{path}.{key}", protocol) for key, item in pairs.items()}
    return _json_scalar(shape, value, path, protocol)


def _expect_type(value: Any, kind: type, path: str, protocol: str) -> Any:
    if not isinstance(value, kind):
        raise bad_value(path or "the body", str(value)[:80], kind.__name__, protocol)
    return value


def _json_scalar(shape: Shape, value: Any, path: str, protocol: str) -> Any:
    kind = shape.type_name
    try:
        if kind == "timestamp":
            return parse_time(value, "iso8601")
        if kind == "blob":
            return parse_value(shape, value)
        if kind in JSON_NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            return JSON_NUMBERS[kind](value)
    except (ValueError, TypeError, OverflowError, OSError, BadValueError):  # 1e999 overflows an integer
        raise bad_value(path, str(value)[:80], kind, protocol) from None
    if kind in JSON_NUMBERS:
        raise bad_value(path, str(value)[:80], kind, protocol)
    return _expect_type(value, bool if kind == "boolean" else str, path, protocol)


def _json_structure(shape: StructureShape, value: dict[str, Any], path: str, protocol: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    keys = {member.serialization.get("name", name): name for name, member in shape.members.items()}
    for key, item in value.items():
        if key not in keys:
            raise _unknown_parameter(_join(path, key), protocol)
        if item is not None:
            member = shape.members[keys[key]]
            result[keys[key]] = _parse_json(member, item, _join(path, key), protocol)
    for name in shape.required_members:
        if name not in result and "location" not in shape.members[name].serialization:
            raise missing_parameter(_join(path, name), protocol)
    return result


def write_json(shape: StructureShape, value: dict[str, Any]) -> bytes:
    """Return the body of an answer, without the members that are headers."""
    return json.dumps(_json_value(shape, value)).encode()


def _json_value(shape: Shape, value: Any) -> Any:
    if isinstance(shape, StructureShape):
        return {
            member.serialization.get("name", name): _json_value(member, value[name])
            for name, member in shape.members.items()
            if value.get(name) is not None and "location" not in member.serialization
        }
    if isinstance(shape, ListShape):
        return [_json_value(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {key: _json_value(shape.value, item) for key, item in value.items()}
    if shape.type_name == "blob":
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        iso = shape.serialization.get("timestampFormat") == "iso8601"
        return format_time(value) if iso else unix_time(value)
    return value


XML_HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n'
SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
# XML 1.0 cannot carry these characters, escaped or not.
XML_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
XML_SPECIAL = re.compile("[&<>\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
MAX_TAGS = 300_000  # 10,000 parts of an upload have about 120,000


def xml_text(value: str) -> str:
    """Return a text as content of an element."""
    if XML_SPECIAL.search(value) is None:  # nearly every text of a long list
        return value
    return escape(XML_FORBIDDEN.sub("�", value), {"\r": "&#13;"})


def xml_element(name: str, content: str, attributes: str = "") -> str:
    """Return an element with XML content."""
    return f"<{name}{attributes}>{content}</{name.partition(' ')[0]}>"


def _write_members(shape: StructureShape, value: dict[str, Any]) -> str:
    """Return the elements of a structure, without the members that are headers."""
    return "".join(
        [
            _write_value(element, member, inner)
            for name, element, member in _elements(shape)
            if (inner := value.get(name)) is not None
        ]
    )


def _write_value(name: str, shape: Shape, value: Any) -> str:
    """Return a value as an element with this name; a flattened list as several elements."""
    if isinstance(shape, StructureShape):
        return xml_element(name, _write_members(shape, value), _write_attributes(shape, value))
    if isinstance(shape, ListShape):
        return _write_list(name, shape, value)
    if isinstance(shape, MapShape):
        return _write_map(name, shape, value)
    content = xml_text(value if isinstance(value, str) else format_value(shape, value))
    return f"<{name}>{content}</{name}>"


def _write_list(name: str, shape: ListShape, values: list[Any]) -> str:
    if shape.serialization.get("flattened"):
        name = str(shape.member.serialization.get("name", name))
        return "".join(_write_value(name, shape.member, value) for value in values)
    item = str(shape.member.serialization.get("name", "member"))
    return xml_element(name, "".join(_write_value(item, shape.member, value) for value in values))


def _write_map(name: str, shape: MapShape, values: dict[str, Any]) -> str:
    key_name = str(shape.key.serialization.get("name", "key"))
    value_name = str(shape.value.serialization.get("name", "value"))
    flattened = shape.serialization.get("flattened")
    pairs = "".join(
        xml_element(
            name if flattened else "entry",
            _write_value(key_name, shape.key, key) + _write_value(value_name, shape.value, value),
        )
        for key, value in values.items()
    )
    return pairs if flattened else xml_element(name, pairs)


def _write_attributes(shape: StructureShape, value: dict[str, Any]) -> str:
    result = ""
    for name, member in _attribute_members(shape):
        if name in value:
            content = quoteattr(XML_FORBIDDEN.sub("\ufffd", value[name]))
            result += f' xmlns:xsi="{SCHEMA_INSTANCE}" {member.serialization["name"]}={content}'
    return result


@cache
def _elements(shape: StructureShape) -> tuple[tuple[str, str, Shape], ...]:
    """Return the members of a structure that are elements, with the names of the elements.

    It is kept because an answer can have thousands of values of a shape.
    """
    return tuple(
        (name, str(member.serialization.get("name", name)), member)
        for name, member in shape.members.items()
        if "location" not in member.serialization and not _is_attribute(member)
    )


@cache
def _attribute_members(shape: StructureShape) -> tuple[tuple[str, Shape], ...]:
    """Return the members of a structure that are attributes."""
    return tuple((name, member) for name, member in shape.members.items() if _is_attribute(member))


def _is_attribute(shape: Shape) -> bool:
    return bool(shape.serialization.get("xmlAttribute"))


def malformed_xml() -> ApiError:
    """Return S3's error for a body that does not match its schema."""
    return ApiError(
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
    )


def read_xml(shape: Shape, body: bytes) -> Any:
    """Return the value in an XML body; ``MalformedXML`` if there is none."""
    try:
        document = body.decode("utf-8")  # so that a declared encoding has no effect
        # Without these limits, entities or elements could use up all memory.
        if "<!DOCTYPE" in document or "<!ENTITY" in document or document.count("<") > MAX_TAGS:
            raise malformed_xml()
        root = ET.fromstring(document)  # noqa: S314 - entities were refused above
        return _xml_value(shape, root)
    except (ET.ParseError, ValueError, RecursionError, BadValueError):
        raise malformed_xml() from None


def _xml_value(shape: Shape, node: ET.Element) -> Any:
    if isinstance(shape, StructureShape):
        return _xml_structure(shape, node)
    if isinstance(shape, ListShape):
        return [_xml_value(shape.member, child) for child in node]
    text = node.text or ""
    if shape.type_name != "string":
        return parse_value(shape, text.strip())
    # S3 checks enumerations with its schema. It checks the region of a bucket later, with another error.
    if getattr(shape, "enum", None) and text not in shape.enum and shape.name != "BucketLocationConstraint":  # type: ignore[attr-defined]
        raise malformed_xml()
    return text


def _xml_structure(shape: StructureShape, node: ET.Element) -> dict[str, Any]:
    children: dict[str, list[ET.Element]] = {}
    for child in node:
        children.setdefault(child.tag.rpartition("}")[2], []).append(child)  # without its namespace
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
                result[name] = [_xml_value(member.member, child) for child in children.pop(key)]
        elif key in children:
            result[name] = _xml_value(member, children.pop(key)[0])
    if children or any(name not in result for name in shape.required_members):
        raise malformed_xml()
    return result


MAX_DOCUMENT_BYTES = 2**20  # its Python objects are many times larger
SIGNATURE_KEYS = frozenset(
    words(
        "X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature "
        "X-Amz-Security-Token X-Amz-Content-Sha256"
    )
)


@dataclass(frozen=True)
class RequestTarget:
    """The operation of a request, before its parameters are parsed."""

    service: Service
    operation: str
    form: dict[str, str] | None = None  # of ec2 and query
    route: RestRoute | None = None  # of the REST protocols
    labels: dict[str, str] | None = None

    @property
    def model(self) -> OperationModel:
        """The operation's model."""
        return self.service.operation(self.operation)


def identify_operation(request: Request, service: Service, path: str) -> RequestTarget:
    """Return the operation of a request."""
    if service.protocol in {"ec2", "query"}:
        return _identify_form(request, service)
    if service.protocol == "json":
        prefix, _, operation = request.headers.get("x-amz-target", "").rpartition(".")
        if operation not in service or prefix != service.model.metadata["targetPrefix"]:
            raise ApiError("UnknownOperationException", f"There is no operation {operation!r}.")
        return RequestTarget(service, operation)
    found = service.find_route(request, path)
    if found is None:
        if service.protocol == "rest-xml":
            raise ApiError(
                "MethodNotAllowed", "The specified method is not allowed against this resource.", status=405
            )
        raise ApiError("UnknownOperationException", f"There is no {request.method} {path}.", status=404)
    route, labels = found
    return RequestTarget(service, route.operation, route=route, labels=labels)


def _identify_form(request: Request, service: Service) -> RequestTarget:
    form = {key: value for key, value in request.query.items() if key not in SIGNATURE_KEYS | TRANSPORT_KEYS}
    if request.method == "POST":
        form |= read_form(request.body.read(MAX_DOCUMENT_BYTES).decode("utf-8", "replace"))
    action, version = form.pop("Action", ""), form.pop("Version", "")
    if not action:
        raise ApiError("MissingAction", "The request is missing an action or a required parameter")
    if action not in service:
        raise ApiError("InvalidAction", f"The action {action} is not valid for this web service.")
    if version != service.version:
        raise ApiError("NoSuchVersion", f"The sandbox has version {service.version}, not {version!r}.")
    return RequestTarget(service, action, form=form)


def parse_params(request: Request, target: RequestTarget) -> dict[str, Any]:
    """Return the parameters of a request by the names of the model; refuse parts that are none.

    The value of a streaming member is the body of the request, which the operation reads.
    """
    shape = target.model.input_shape
    protocol = target.service.protocol
    if target.form is not None:
        params = FormParser(protocol).parse(shape, target.form)
    elif target.route is None:
        params = read_json(shape, request.body.read(MAX_DOCUMENT_BYTES), protocol)
    else:
        params = _parse_rest(request, target, shape, protocol) if shape is not None else {}
        known = target.route.query_keys | SIGNATURE_KEYS | TRANSPORT_KEYS
        for key in request.query:
            if key not in known:
                raise not_emulated(f"the query key {key!r} of {target.service.name}:{target.operation}")
    return params


def _parse_rest(
    request: Request, target: RequestTarget, shape: StructureShape, protocol: str
) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, member in shape.members.items():
        location = member.serialization.get("location")
        key = str(member.serialization.get("name", name))
        if location == "headers":
            prefix = key.lower()
            found = {h[len(prefix) :]: v for h, v in request.headers.items() if h.startswith(prefix)}
            if found:
                params[name] = found
            continue
        sources = {"uri": target.labels or {}, "querystring": request.query, "header": request.headers}
        source: Mapping[str, str] = sources.get(location or "", {})
        raw = source.get(key.lower() if location == "header" else key)
        if raw is None:
            continue
        form = "rfc822" if location == "header" else "iso8601"
        try:
            if isinstance(member, ListShape):
                query = location == "querystring"
                parts = request.query_values(key) if query else [part.strip() for part in raw.split(",")]
                params[name] = [parse_value(member.member, part) for part in parts]
            else:
                params[name] = parse_value(member, raw, timestamp_format=form)
        except BadValueError as error:
            raise bad_value(key, error.text, error.expected, protocol) from None
    params |= _parse_payload(request, shape, protocol)
    for name in shape.required_members:
        if name not in params:
            raise missing_parameter(name, protocol)
    return params


def _parse_payload(request: Request, shape: StructureShape, protocol: str) -> dict[str, Any]:
    payload = shape.serialization.get("payload")
    if payload is not None:
        member = shape.members[payload]
        if member.type_name in {"blob", "string"}:
            if member.serialization.get("streaming"):
                return {payload: request.body}
            content = request.body.read()
            _check_document_digests(request, shape, content)
            return {payload: content if member.type_name == "blob" else content.decode("utf-8", "replace")}
        content = request.body.read(4 * MAX_DOCUMENT_BYTES if protocol == "rest-xml" else MAX_DOCUMENT_BYTES)
        if protocol == "rest-xml":
            _check_document_digests(request, shape, content)
        if not content:
            return {}
        value = read_xml(member, content) if protocol == "rest-xml" else read_json(member, content, protocol)
        return {payload: value}
    if protocol == "rest-json":
        body_members = [m for m in shape.members.values() if "location" not in m.serialization]
        return read_json(shape, request.body.read(MAX_DOCUMENT_BYTES), protocol) if body_members else {}
    request.body.read()
    return {}


def _check_document_digests(request: Request, shape: StructureShape, content: bytes) -> None:
    """Check the checksums of a document in its headers.

    A checksum that is a parameter is that of an object; the operation checks it.
    """
    own = {member.serialization.get("name") for member in shape.members.values()}
    for name in ALGORITHMS:
        header = "content-md5" if name == "md5" else f"x-amz-checksum-{name}"
        expected = request.headers.get(header)
        if expected is None or header in own:
            continue
        computed = new_checksum(name)
        computed.update(content)
        if encode_base64(computed.digest()) != expected:
            what = "Content-MD5" if name == "md5" else name.upper()
            raise ApiError("BadDigest", f"The {what} you specified did not match the calculated checksum.")


# The root elements of S3's answers. botocore's model lacks them, because its parser ignores them.
# Source: Amazon S3 API Reference, "Response Syntax" of each operation.
S3_ROOTS = {
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketAccelerateConfiguration": "AccelerateConfiguration",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketLocation": "LocationConstraint",
    "GetBucketRequestPayment": "RequestPaymentConfiguration",
    "GetBucketTagging": "Tagging",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectAttributes": "GetObjectAttributesResponse",
    "GetObjectTagging": "Tagging",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListParts": "ListPartsResult",
}
S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def write_answer(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    """Return the answer of a successful operation.

    A result has the names of the model. It can also have ``"__status__"``, an HTTP status.
    """
    status = int(result.pop("__status__", operation.http.get("responseCode", 200)))
    shape = operation.output_shape
    response = Response(status, _request_id_headers(service, request_id))
    if service.protocol in XML_TYPES:
        response.headers["Content-Type"] = XML_TYPES[service.protocol]
        response.body = _xml_answer(service, operation, result, request_id)
    elif service.protocol == "json":
        response.headers["Content-Type"] = _json_type(service)
        response.body = write_json(shape, result) if shape is not None else b"{}"
    elif shape is not None:
        _write_headers(shape, result, response)
        _write_rest_body(service, operation, shape, result, response)
    return response


XML_TYPES = {"ec2": "text/xml;charset=UTF-8", "query": "text/xml"}


def _json_type(service: Service) -> str:
    return f"application/x-amz-json-{service.model.metadata.get('jsonVersion', '1.1')}"


def _xml_answer(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> bytes:
    """Return the body of an answer of the protocols ``ec2`` and ``query``."""
    shape = operation.output_shape
    members = _write_members(shape, result) if shape is not None else ""
    if service.protocol == "ec2":
        content = xml_element("requestId", request_id)
        content += members if shape is not None else xml_element("return", "true")
    else:
        content = ""
        if shape is not None:
            wrapper = shape.serialization.get("resultWrapper", f"{operation.name}Result")
            content = xml_element(wrapper, members)
        content += xml_element("ResponseMetadata", xml_element("RequestId", request_id))
    answer = xml_element(f"{operation.name}Response", content, f' xmlns="{service.namespace}"')
    return (XML_HEADER + answer).encode()


def _request_id_headers(service: Service, request_id: str) -> dict[str, str]:
    if service.name == "s3":
        return {"x-amz-request-id": request_id, "x-amz-id-2": f"sandbox/{request_id}", "Server": "AmazonS3"}
    return {"x-amzn-RequestId": request_id}


def _write_headers(shape: StructureShape, result: dict[str, Any], response: Response) -> None:
    for name, member in shape.members.items():
        value, location = result.get(name), member.serialization.get("location")
        if value is None or location is None:
            continue
        key = str(member.serialization.get("name", name))
        if location == "headers":
            response.headers |= {f"{key}{suffix}": text for suffix, text in value.items()}
        elif location == "statusCode":
            response.status = int(value)
        elif name == "ContentLength":
            response.length = int(value)
        elif member.type_name == "list":
            response.headers[key] = ",".join(str(part) for part in value)
        else:
            response.headers[key] = format_value(member, value, timestamp_format="rfc822")


def _write_rest_body(
    service: Service,
    operation: OperationModel,
    shape: StructureShape,
    result: dict[str, Any],
    response: Response,
) -> None:
    payload = shape.serialization.get("payload")
    if payload is not None and shape.members[payload].type_name in {"blob", "string"}:
        content = result.get(payload, b"")
        response.body = content.encode() if isinstance(content, str) else content
        return
    if service.protocol == "rest-json":
        response.headers["Content-Type"] = "application/json"
        response.body = write_json(shape, result)
        return
    if operation.http.get("method") == "HEAD":
        return
    content = ""
    if payload is not None:
        member = shape.members[payload]
        if result.get(payload) is not None:
            root = str(member.serialization.get("name", payload))
            content = _write_value(root, member, result[payload])
            content = content.replace(f"<{root}", f'<{root} xmlns="{S3_NAMESPACE}"', 1)
    elif any("location" not in member.serialization for member in shape.members.values()):
        root = S3_ROOTS.get(operation.name, shape.name)
        inner = _write_members(shape, result)
        if operation.name == "GetBucketLocation":  # the one answer whose root is its only value
            inner = xml_text(result.get("LocationConstraint") or "")
        content = xml_element(root, inner, f' xmlns="{S3_NAMESPACE}"')
    if content:
        response.headers["Content-Type"] = "application/xml"
        response.body = (XML_HEADER + content).encode()


def write_error(service: Service, error: ApiError, request_id: str) -> Response:
    """Return an error in the protocol of the service.

    Errors of S3 have no ``Resource``, although the examples of the S3 API Reference do: AWS's answers of
    2024 to 2026 in LocalStack's ``test_s3.snapshot.json`` have none.
    """
    headers = _request_id_headers(service, request_id) | error.headers
    if service.protocol in {"json", "rest-json"}:
        headers |= {"Content-Type": _json_type(service), "x-amzn-ErrorType": error.code}
        key = "Message" if service.protocol == "rest-json" else "message"
        content = json.dumps({"__type": error.code, key: error.message} | error.extra)
        return Response(error.status, headers, content.encode())
    headers["Content-Type"] = XML_TYPES.get(service.protocol, "application/xml")
    texts = {"Code": error.code, "Message": error.message, **error.extra}
    members = "".join(xml_element(name, xml_text(str(value))) for name, value in texts.items())
    request = xml_element("RequestId", request_id)
    if service.protocol == "ec2":
        errors = xml_element("Errors", xml_element("Error", members))
        body = xml_element("Response", errors + xml_element("RequestID", request_id))
    elif service.protocol == "query":
        fault = xml_element("Type", "Receiver" if error.status >= 500 else "Sender")
        content = xml_element("Error", fault + members) + request
        body = xml_element("ErrorResponse", content, f' xmlns="{service.namespace}"')
    else:
        if "BucketRegion" in error.extra:
            headers["x-amz-bucket-region"] = str(error.extra["BucketRegion"])
        body = xml_element("Error", members + request + xml_element("HostId", f"sandbox/{request_id}"))
    return Response(error.status, headers, (XML_HEADER + body).encode())
