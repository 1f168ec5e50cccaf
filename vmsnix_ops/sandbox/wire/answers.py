"""Answers and errors in each protocol's own shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.wire import jsons, models, xml
from vmsnix_ops.sandbox.wire.http import FileRange, Response

if TYPE_CHECKING:
    from botocore.model import OperationModel, StructureShape

    from vmsnix_ops.sandbox.core import AwsError
    from vmsnix_ops.sandbox.wire.models import Service

# The root elements of S3's answers that botocore's model does not know, because its parser ignores them.
# Source: Amazon S3 API Reference, "Response Syntax" of each operation.
S3_ROOTS = {
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLocation": "LocationConstraint",
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


def write(service: Service, operation: OperationModel, result: dict[str, Any], request_id: str) -> Response:
    """Return the answer of an operation that succeeded.

    A handler's result has the model's own names. Beside them it may have ``"__status__"``, an HTTP status,
    and ``"__length__"``, the Content-Length of an answer to HEAD.
    """
    status = int(result.pop("__status__", operation.http.get("responseCode", 200)))
    length = result.pop("__length__", None)
    shape = operation.output_shape
    writer = {"ec2": _write_ec2, "query": _write_query, "json": _write_json}.get(service.protocol)
    if writer is not None:
        return writer(service, operation, result, request_id)
    response = Response(status, _request_id_headers(service, request_id), length=length)
    if shape is not None:
        _write_headers(shape, result, response)
        _write_rest_body(service, operation, shape, result, response)
    return response


def _write_ec2(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    shape = operation.output_shape
    content = xml.element("requestId", request_id)
    content += xml.XmlWriter().members(shape, result) if shape is not None else xml.element("return", "true")
    body = xml.HEADER + xml.element(f"{operation.name}Response", content, f' xmlns="{service.namespace}"')
    headers = _request_id_headers(service, request_id) | {"Content-Type": "text/xml;charset=UTF-8"}
    return Response(200, headers, body.encode())


def _write_query(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    shape = operation.output_shape
    content = ""
    if shape is not None:
        wrapper = shape.serialization.get("resultWrapper", f"{operation.name}Result")
        content = xml.element(wrapper, xml.XmlWriter().members(shape, result))
    content += xml.element("ResponseMetadata", xml.element("RequestId", request_id))
    body = xml.HEADER + xml.element(f"{operation.name}Response", content, f' xmlns="{service.namespace}"')
    headers = _request_id_headers(service, request_id) | {"Content-Type": "text/xml"}
    return Response(200, headers, body.encode())


def _write_json(
    service: Service, operation: OperationModel, result: dict[str, Any], request_id: str
) -> Response:
    shape = operation.output_shape
    headers = _request_id_headers(service, request_id)
    headers["Content-Type"] = f"application/x-amz-json-{service.model.metadata['jsonVersion']}"
    return Response(200, headers, jsons.write(shape, result) if shape is not None else b"{}")


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
            response.headers[key] = models.text_of(member, value, timestamp_format="rfc822")


def _write_rest_body(
    service: Service,
    operation: OperationModel,
    shape: StructureShape,
    result: dict[str, Any],
    response: Response,
) -> None:
    payload = shape.serialization.get("payload")
    if payload is not None and shape.members[payload].type_name in {"blob", "string"}:
        response.body = _raw(result.get(payload, b""))
        return
    if service.protocol == "rest-json":
        response.headers["Content-Type"] = "application/json"
        response.body = jsons.write(shape, result)
        return
    if operation.http.get("method") == "HEAD":
        return
    content = ""
    if payload is not None:
        member = shape.members[payload]
        if result.get(payload) is not None:
            root = str(member.serialization.get("name", payload))
            content = xml.XmlWriter().named(root, member, result[payload])
            content = content.replace(f"<{root}", f'<{root} xmlns="{S3_NAMESPACE}"', 1)
    elif any("location" not in member.serialization for member in shape.members.values()):
        root = S3_ROOTS.get(operation.name, shape.name)
        inner = xml.XmlWriter().members(shape, result)
        if operation.name == "GetBucketLocation":  # the one answer whose root is its only value
            inner = xml.text(result.get("LocationConstraint") or "")
        content = xml.element(root, inner, f' xmlns="{S3_NAMESPACE}"')
    if content:
        response.headers["Content-Type"] = "application/xml"
        response.body = (xml.HEADER + content).encode()


def _raw(value: bytes | str | list[FileRange]) -> bytes | list[FileRange]:
    return value.encode() if isinstance(value, str) else value


def write_error(service: Service, error: AwsError, request_id: str, *, resource: str = "") -> Response:
    """Return an error in the shape of the service's protocol.

    Parameters
    ----------
    service
        Whose protocol to speak.
    error
        What went wrong.
    request_id
        The request's id.
    resource
        The path, which S3's errors repeat.
    """
    headers = _request_id_headers(service, request_id)
    if service.protocol in {"json", "rest-json"}:
        headers["Content-Type"] = f"application/x-amz-json-{service.model.metadata.get('jsonVersion', '1.1')}"
        headers["x-amzn-ErrorType"] = error.code
        key = "Message" if service.protocol == "rest-json" else "message"
        return Response(
            error.status,
            headers,
            json.dumps({"__type": error.code, key: error.message} | error.extra).encode(),
        )
    members = xml.element("Code", xml.text(error.code)) + xml.element("Message", xml.text(error.message))
    extra = "".join(xml.element(name, xml.text(str(value))) for name, value in error.extra.items())
    headers["Content-Type"] = "text/xml;charset=UTF-8" if service.protocol == "ec2" else "text/xml"
    if service.protocol == "ec2":
        body = xml.element(
            "Response",
            xml.element("Errors", xml.element("Error", members + extra))
            + xml.element("RequestID", request_id),
        )
    elif service.protocol == "query":
        fault = "Receiver" if error.status >= 500 else "Sender"
        body = xml.element(
            "ErrorResponse",
            xml.element("Error", xml.element("Type", fault) + members + extra)
            + xml.element("RequestId", request_id),
            f' xmlns="{service.namespace}"',
        )
    else:
        headers["Content-Type"] = "application/xml"
        if "BucketRegion" in error.extra:
            headers["x-amz-bucket-region"] = str(error.extra["BucketRegion"])
        body = xml.element(
            "Error",
            members
            + extra
            + xml.element("Resource", xml.text(resource))
            + xml.element("RequestId", request_id)
            + xml.element("HostId", f"sandbox/{request_id}"),
        )
    return Response(error.status, headers, (xml.HEADER + body).encode())
