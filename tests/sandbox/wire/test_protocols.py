"""Protocols: for every emulated operation, the sandbox and botocore read each other's bytes.

Source: botocore's serializers and parsers, which are what clients have.
"""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore import parsers, serialize
from botocore.awsrequest import HeadersDict

from tests.sandbox.wire.samples import sample
from vmsnix_ops.sandbox.core import OPERATIONS, ApiError, load_operations
from vmsnix_ops.sandbox.wire.http import Body, HttpBody, Request
from vmsnix_ops.sandbox.wire.models import SERVICES, service_model
from vmsnix_ops.sandbox.wire.protocols import identify_operation, parse_params, write_answer, write_error

load_operations()
EVERY_OPERATION = pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: f"{key[0]}-{key[1]}")

DIGESTS = {"ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"}

# Handlers of botocore set these members; its parsers do not.
SPECIAL_ANSWERS = {("s3", "GetBucketLocation")}


def as_request(written: dict[str, Any]) -> Request:
    """Return the request of botocore's serializer, as the server reads it."""
    query = written.get("query_string") or {}
    pairs = [(k, v) for k, v in query.items() if not isinstance(v, list)]
    pairs += [(k, one) for k, v in query.items() if isinstance(v, list) for one in v]
    body = written["body"]
    if isinstance(body, dict):
        body = urlencode(body)
    content = body.encode() if isinstance(body, str) else bytes(body)
    path = written["url_path"]
    target = path + ("&" if "?" in path else "?") * bool(pairs) + urlencode(pairs)
    headers = {name.lower(): str(value) for name, value in written["headers"].items()}
    source = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
    inner = HttpBody(source, len(content), chunked=False, before_read=lambda: None)
    return Request(written["method"], target, headers, Body(inner))


def without_streams(shape: Any, params: dict[str, Any]) -> dict[str, Any]:
    payload = shape.serialization.get("payload") if shape is not None else None
    streams = {payload} if payload and shape.members[payload].serialization.get("streaming") else set()
    return {name: value for name, value in params.items() if name not in streams}


def without_digests(params: dict[str, Any]) -> dict[str, Any]:
    """Remove checksums, which do not match the sample's document."""
    digests = {name for name in params if name in DIGESTS | {"ContentMD5"}}
    return {name: value for name, value in params.items() if name not in digests}


@EVERY_OPERATION
def test_reads_what_botocore_writes(key: tuple[str, str]) -> None:
    service = service_model(key[0])
    model = service.operation(key[1])
    shape = model.input_shape
    params = without_digests(sample(shape)) if shape is not None else {}
    written = serialize.create_serializer(service.protocol, include_validation=False).serialize_to_request(
        params, model
    )
    request = as_request(written)
    target = identify_operation(request, service, request.raw_path)
    assert target.operation == key[1]
    assert without_streams(shape, parse_params(request, target)) == without_streams(shape, params)


@pytest.mark.parametrize(
    "key", sorted(set(OPERATIONS) - SPECIAL_ANSWERS), ids=lambda key: f"{key[0]}-{key[1]}"
)
def test_botocore_reads_what_it_writes(key: tuple[str, str]) -> None:
    service = service_model(key[0])
    model = service.operation(key[1])
    shape = model.output_shape
    result = sample(shape) if shape is not None else {}
    result = without_streams(shape, result)
    response = write_answer(service, model, dict(result), "the-request-id")
    raw = {
        "status_code": response.status,
        "headers": HeadersDict(response.headers),
        "body": _content(response.body),
    }
    if shape is not None and shape.serialization.get("payload") and not without_payload_is_document(shape):
        raw["body"] = b""
    parsed = parsers.create_parser(service.protocol).parse(raw, shape)
    metadata = parsed.pop("ResponseMetadata")
    assert metadata["RequestId"] == "the-request-id"
    payload = shape.serialization.get("payload") if shape is not None else None
    if payload and shape.members[payload].serialization.get("streaming"):
        parsed.pop(payload, None)
    result.pop("ContentLength", None)  # the server counts
    parsed.pop("ContentLength", None)
    assert parsed == result


def without_payload_is_document(shape: Any) -> bool:
    payload = shape.members[shape.serialization["payload"]]
    return not payload.serialization.get("streaming")


def _content(body: Any) -> bytes:
    assert isinstance(body, bytes)
    return body


@pytest.mark.parametrize("name", SERVICES)
def test_botocore_reads_its_errors(name: str) -> None:
    service = service_model(name)
    error = ApiError("SomethingWrong", 'A <text> & more "than" that.', status=409)
    response = write_error(service, error, "the-request-id")
    raw = {"status_code": response.status, "headers": HeadersDict(response.headers), "body": response.body}
    parsed = parsers.create_parser(service.protocol).parse(raw, None)
    assert parsed["Error"]["Code"] == "SomethingWrong"
    assert parsed["Error"]["Message"] == 'A <text> & more "than" that.'
    assert parsed["ResponseMetadata"]["RequestId"] == "the-request-id"
    assert parsed["ResponseMetadata"]["HTTPStatusCode"] == 409


def test_extra_members_of_an_error_reach_the_client() -> None:
    error = ApiError("InvalidRange", "No such range.", status=416, ActualObjectSize=12)
    response = write_error(service_model("s3"), error, "id")
    raw = {"status_code": 416, "headers": HeadersDict(response.headers), "body": response.body}
    parsed = parsers.create_parser("rest-xml").parse(raw, None)
    assert parsed["Error"]["ActualObjectSize"] == "12"
    error = ApiError("ValidationException", "Too long.", Reason="INVALID_PARAMETER_VALUE")
    service = service_model("ebs")
    response = write_error(service, error, "id")
    raw = {"status_code": 400, "headers": HeadersDict(response.headers), "body": response.body}
    parsed = parsers.create_parser("rest-json").parse(raw, service.model.shape_for("ValidationException"))
    assert parsed == {"Message": "Too long.", "Reason": "INVALID_PARAMETER_VALUE"}
