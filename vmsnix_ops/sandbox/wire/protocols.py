"""AWS's protocols: find the operation of a request, parse its parameters, write answers and errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.model import ListShape

from vmsnix_ops.sandbox.core import ApiError, not_emulated
from vmsnix_ops.sandbox.wire.checksums import ALGORITHMS, encode_base64, new_checksum
from vmsnix_ops.sandbox.wire.codecs import (
    XML_HEADER,
    FormParser,
    XmlWriter,
    bad_value,
    missing_parameter,
    read_form,
    read_json,
    read_xml,
    unknown_action,
    write_json,
    xml_element,
    xml_text,
)
from vmsnix_ops.sandbox.wire.http import Response
from vmsnix_ops.sandbox.wire.models import (
    TRANSPORT_KEYS,
    BadValueError,
    RestRoute,
    Service,
    format_value,
    parse_value,
)

if TYPE_CHECKING:
    from botocore.model import OperationModel, StructureShape

    from vmsnix_ops.sandbox.wire.http import Request


MAX_DOCUMENT_BYTES = 2**20  # its Python objects are many times larger
SIGNATURE_KEYS = frozenset(
    {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "X-Amz-Content-Sha256",
    }
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
    """Return the operation of a request.

    Parameters
    ----------
    request
        The request.
    service
        The service that the request is signed for.
    path
        Its path, percent-encoded; for S3 it begins with the bucket, also when the host contains that.

    Raises
    ------
    ApiError
        The service has no such operation.
    """
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
        raise unknown_action(action)
    if version != service.version:
        raise ApiError("NoSuchVersion", f"The sandbox has version {service.version}, not {version!r}.")
    return RequestTarget(service, action, form=form)


def parse_params(request: Request, target: RequestTarget) -> dict[str, Any]:
    """Return the parameters of a request by the names of the model.

    The value of a streaming member is the body of the request, which the operation reads.

    Raises
    ------
    ApiError
        A part of the request is not a parameter, or has another type.
    """
    shape = target.model.input_shape
    protocol = target.service.protocol
    if target.form is not None:
        return FormParser(protocol).parse(shape, target.form)
    if target.route is None:
        return read_json(shape, request.body.read(MAX_DOCUMENT_BYTES), protocol)
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
        source = {
            "uri": target.labels or {},
            "querystring": request.query,
            "header": request.headers,
        }.get(location or "", {})
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
    writer = {"ec2": _write_xml, "query": _write_xml, "json": _write_json}.get(service.protocol)
    if writer is not None:
        return writer(service, operation, result, request_id)
    response = Response(status, _request_id_headers(service, request_id))
    if shape is not None:
        _write_headers(shape, result, response)
        _write_rest_body(service, operation, shape, result, response)
    return response


def _write_xml(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    """Return an answer of the protocols ``ec2`` and ``query``."""
    shape = operation.output_shape
    members = XmlWriter().members(shape, result) if shape is not None else ""
    if service.protocol == "ec2":
        content = xml_element("requestId", request_id)
        content += members if shape is not None else xml_element("return", "true")
        content_type = "text/xml;charset=UTF-8"
    else:
        content = ""
        if shape is not None:
            wrapper = shape.serialization.get("resultWrapper", f"{operation.name}Result")
            content = xml_element(wrapper, members)
        content += xml_element("ResponseMetadata", xml_element("RequestId", request_id))
        content_type = "text/xml"
    body = XML_HEADER + xml_element(f"{operation.name}Response", content, f' xmlns="{service.namespace}"')
    headers = _request_id_headers(service, request_id) | {"Content-Type": content_type}
    return Response(200, headers, body.encode())


def _write_json(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    shape = operation.output_shape
    headers = _request_id_headers(service, request_id)
    headers["Content-Type"] = f"application/x-amz-json-{service.model.metadata['jsonVersion']}"
    return Response(200, headers, write_json(shape, result) if shape is not None else b"{}")


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
            content = XmlWriter().named(root, member, result[payload])
            content = content.replace(f"<{root}", f'<{root} xmlns="{S3_NAMESPACE}"', 1)
    elif any("location" not in member.serialization for member in shape.members.values()):
        root = S3_ROOTS.get(operation.name, shape.name)
        inner = XmlWriter().members(shape, result)
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

    Parameters
    ----------
    service
        The service, which defines the protocol.
    error
        The error.
    request_id
        The request's id.
    """
    headers = _request_id_headers(service, request_id) | error.headers
    if service.protocol in {"json", "rest-json"}:
        headers["Content-Type"] = f"application/x-amz-json-{service.model.metadata.get('jsonVersion', '1.1')}"
        headers["x-amzn-ErrorType"] = error.code
        key = "Message" if service.protocol == "rest-json" else "message"
        return Response(
            error.status,
            headers,
            json.dumps({"__type": error.code, key: error.message} | error.extra).encode(),
        )
    members = xml_element("Code", xml_text(error.code)) + xml_element("Message", xml_text(error.message))
    extra = "".join(xml_element(name, xml_text(str(value))) for name, value in error.extra.items())
    headers["Content-Type"] = "text/xml;charset=UTF-8" if service.protocol == "ec2" else "text/xml"
    if service.protocol == "ec2":
        body = xml_element(
            "Response",
            xml_element("Errors", xml_element("Error", members + extra))
            + xml_element("RequestID", request_id),
        )
    elif service.protocol == "query":
        fault = "Receiver" if error.status >= 500 else "Sender"
        body = xml_element(
            "ErrorResponse",
            xml_element("Error", xml_element("Type", fault) + members + extra)
            + xml_element("RequestId", request_id),
            f' xmlns="{service.namespace}"',
        )
    else:
        headers["Content-Type"] = "application/xml"
        if "BucketRegion" in error.extra:
            headers["x-amz-bucket-region"] = str(error.extra["BucketRegion"])
        body = xml_element(
            "Error",
            members
            + extra
            + xml_element("RequestId", request_id)
            + xml_element("HostId", f"sandbox/{request_id}"),
        )
    return Response(error.status, headers, (XML_HEADER + body).encode())
