"""Uploads with an HTML form (POST Object): the form, and its policy.

A form becomes a PutObject request whose headers are the fields of the form.

Sources: "Browser-based uploads using POST (AWS signature version 4)" and "POST Object" in the Amazon S3 API
Reference; errors: AWS's answers of February 2026 in LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from vmsnix_ops.sandbox.core import ApiError, load_json
from vmsnix_ops.sandbox.s3.common import invalid_argument, s3_error
from vmsnix_ops.sandbox.wire.http import Request, Response, save_pieces
from vmsnix_ops.sandbox.wire.models import service_model
from vmsnix_ops.sandbox.wire.protocols import XML_HEADER, malformed_xml, read_xml, xml_element, xml_text
from vmsnix_ops.sandbox.wire.signature import missing_field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.sandbox.core import Clock
    from vmsnix_ops.sandbox.wire.checksums import Checksums
    from vmsnix_ops.sandbox.wire.http import Body
    from vmsnix_ops.sandbox.wire.signature import Authorization


MAX_FIELD_BYTES = 20 * 1024  # of all fields before the file ("POST Object")
NO_HEADERS = frozenset({"key", "policy", "signature", "x-amz-content-sha256"})
UNCHECKED = frozenset({"awsaccesskeyid", "policy", "signature", "x-amz-signature"})
"""The fields that need no condition in the policy."""


def is_form_upload(request: Request, path: str) -> bool:
    """Return whether a request is a POST to a bucket."""
    return request.method == "POST" and re.fullmatch("/[^/]+/?", path) is not None and not request.raw_query


@dataclass
class FormUpload:
    """A form, read until its file begins."""

    bucket: str
    fields: dict[str, str]
    file: FormFile

    def check_policy(self, authorization: Authorization, clock: Clock) -> None:
        """Check the fields by the signed policy, and prepare the check of the file's size.

        Errors: ``AccessDenied``, ``InvalidPolicyDocument``.
        """
        try:
            policy = load_json(base64.b64decode(authorization.policy or "", validate=True))
            expiration = datetime.fromisoformat(policy["expiration"])
            conditions = list(policy["conditions"])
        except (binascii.Error, ValueError, TypeError, KeyError):
            raise _invalid_policy("Invalid JSON.") from None
        if expiration.tzinfo is None:
            raise _invalid_policy(f"Invalid 'expiration' value: '{policy['expiration']}'")  # text from memory
        since = authorization.timestamp if authorization.version == 4 else clock.now()
        if clock.is_past(expiration, since=since):
            raise _violation("Policy expired.")
        values = {**self.fields, "bucket": self.bucket}
        covered = {self._check_condition(condition, values) for condition in conditions}
        extra = sorted(set(self.fields) - covered - UNCHECKED)
        extra = [name for name in extra if not name.startswith("x-ignore-")]
        if extra:
            raise _violation(f"Extra input fields: {', '.join(extra)}")

    def _check_condition(self, condition: Any, values: dict[str, str]) -> str:
        """Check one condition, and return the name of its field."""
        if isinstance(condition, dict):
            if len(condition) != 1:
                raise _invalid_policy(
                    "Invalid Simple-Condition: Simple-Conditions must have exactly one property specified."
                )
            ((name, wanted),) = condition.items()
            condition = ["eq", f"${name}", wanted]
        if not isinstance(condition, list) or len(condition) != 3:
            raise _invalid_policy("Invalid Condition.")  # no source has the text
        operator, name, wanted = condition
        failed = _violation(f"Policy Condition failed: {json.dumps(condition)}")
        if str(operator).lower() == "content-length-range":
            if not all(re.fullmatch("[0-9]{1,15}", str(bound)) for bound in condition[1:]):
                raise failed
            self.file.sizes = (int(name), int(wanted))
            return ""
        field = str(name).lower().removeprefix("$")
        actual = values.get(field, "")
        results = {"eq": actual == wanted, "starts-with": actual.startswith(str(wanted))}
        right = results.get(str(operator).lower(), False)
        if not str(name).startswith("$") or not right:
            raise failed
        return field

    def as_put_request(self) -> Request:
        """Return the PutObject request of the form."""
        if "key" not in self.fields:
            raise missing_field("key")
        headers = {
            {"acl": "x-amz-acl", "tagging": "x-amz-tagging"}.get(name, name): value
            for name, value in self.fields.items()
            if name not in NO_HEADERS
        }
        if "tagging" in self.fields:
            headers["x-amz-tagging"] = _read_tagging(self.fields["tagging"])
        target = f"/{self.bucket}/{quote(self.key, safe='/-_.~')}"
        return Request("PUT", target, headers, self.file)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """The key of the new object."""
        key = self.fields["key"]
        return key.replace("${filename}", self.file.name) if self.file.name else key

    def answer(self, stored: Response, host: str) -> Response:
        """Return the answer to the form from that to PutObject."""
        location = f"http://{host}/{self.bucket}/{quote(self.key, safe='/-_.~')}"
        etag = stored.headers["ETag"]
        redirect = self.fields.get("success_action_redirect", "")
        if urlsplit(redirect).netloc:
            query = urlencode({"bucket": self.bucket, "key": self.key, "etag": etag})
            separator = "&" if urlsplit(redirect).query else "?"
            return Response(303, {**stored.headers, "Location": f"{redirect}{separator}{query}"})
        stored.headers["Location"] = location
        status = self.fields.get("success_action_status", "")
        stored.status = int(status) if status in {"200", "201"} else 204
        if status == "201":
            values = {"Location": location, "Bucket": self.bucket, "Key": self.key, "ETag": etag}
            content = "".join(xml_element(name, xml_text(value)) for name, value in values.items())
            stored.headers["Content-Type"] = "application/xml"
            stored.body = (XML_HEADER + xml_element("PostResponse", content)).encode()
        return stored


def _read_tagging(document: str) -> str:
    """Return the tags of a form, which are XML, in the form of a header. Another document has no tags."""
    shape = service_model("s3").model.shape_for("Tagging")
    try:
        tags = read_xml(shape, document.encode())["TagSet"]
    except ApiError:
        if not document.lstrip().startswith("<"):
            raise malformed_xml() from None
        return ""
    return urlencode({tag["Key"]: tag["Value"] for tag in tags})


def _violation(text: str) -> ApiError:
    return ApiError("AccessDenied", f"Invalid according to Policy: {text}", status=403)


def _invalid_policy(text: str) -> ApiError:
    return ApiError("InvalidPolicyDocument", f"Invalid Policy: {text}")


# The form


def read_form_upload(request: Request, path: str) -> FormUpload:
    """Read the fields of a form, until its file begins.

    Errors: ``PreconditionFailed`` for another content type, ``MalformedPOSTRequest``, ``InvalidArgument``
    without a file, ``MaxPostPreDataLengthExceeded``.
    """
    kind = re.fullmatch(
        r'multipart/form-data;.*boundary="?([^";]+)"?.*', request.headers.get("content-type", "")
    )
    if kind is None:
        condition = "Bucket POST must be of the enclosure-type multipart/form-data"
        raise s3_error("PreconditionFailed", Condition=condition)
    reader = _FormReader(request.body, kind[1].encode())
    fields: dict[str, str] = {}
    while reader.next_part():
        if reader.name == "file":
            return FormUpload(path.strip("/"), fields, FormFile(reader, request.body))
        fields[reader.name] = b"".join(reader.content()).decode("utf-8", "replace")
        if sum(len(name) + len(value) for name, value in fields.items()) > MAX_FIELD_BYTES:
            text = "Your POST request fields preceding the upload file were too large."
            raise ApiError("MaxPostPreDataLengthExceeded", text)
    text = "POST requires exactly one file upload per request."
    raise invalid_argument(text, "file", "0")


class _FormReader:
    """Reads the parts of a form (RFC 7578) without keeping their content."""

    def __init__(self, body: Body, boundary: bytes) -> None:
        self._pieces = body.chunks()
        self._buffer = b"\r\n"  # so that the first boundary is like the others
        self._boundary = b"\r\n--" + boundary
        self.name = ""
        self.file_name = ""

    def _fill(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise s3_error("MalformedPOSTRequest")
        self._buffer += bytes(piece)

    def _read_until(self, marker: bytes) -> bytes:
        while marker not in self._buffer:
            if len(self._buffer) > MAX_FIELD_BYTES:
                raise ApiError("MaxPostPreDataLengthExceeded", "Your POST request fields were too large.")
            self._fill()
        found, _, self._buffer = self._buffer.partition(marker)
        return found

    def next_part(self) -> bool:
        """Move to the next part, and return whether there is one."""
        self._read_until(self._boundary)
        while len(self._buffer) < 2:
            self._fill()
        if self._buffer.startswith(b"--"):
            return False
        head = self._read_until(b"\r\n\r\n").decode("utf-8", "replace")
        disposition = re.search(r'(?im)^content-disposition:.*?\bname="([^"]*)"', head)
        file_name = re.search(r'(?im)^content-disposition:.*?\bfilename="([^"]*)"', head)
        self.name = disposition[1].lower() if disposition else ""
        self.file_name = re.split(r"[/\\]", file_name[1])[-1] if file_name else ""
        return True

    def content(self) -> Iterator[bytes]:
        """Yield the content of the part, and leave its boundary to `next_part`."""
        while True:
            end = self._buffer.find(self._boundary)
            if end >= 0:
                yield self._buffer[:end]
                self._buffer = self._buffer[end:]
                return
            safe = max(len(self._buffer) - len(self._boundary), 0)  # the rest may begin a boundary
            if safe:
                yield self._buffer[:safe]
                self._buffer = self._buffer[safe:]
            self._fill()


class FormFile:
    """The file of a form, with the part of the interface of `wire.http.Body` that PutObject uses."""

    def __init__(self, reader: _FormReader, body: Body) -> None:
        self._reader = reader
        self.http = body.http
        self.name = reader.file_name
        self.sizes: tuple[int, int] | None = None  # the smallest and largest allowed, in bytes
        self.trailers: dict[str, str] = {}

    def save(self, path: Path, digests: Checksums) -> int:
        """Write the content to a file, update the digests, and return the length in bytes."""
        return save_pieces(self._content(), path, digests)

    def _content(self) -> Iterator[memoryview]:
        size = 0
        for piece in self._reader.content():
            yield memoryview(piece)
            size += len(piece)
        if self.sizes is None:
            return
        smallest, largest = self.sizes
        if size < smallest:
            raise s3_error("EntityTooSmall", ProposedSize=size, MinSizeAllowed=smallest)
        if size > largest:
            raise s3_error("EntityTooLarge", ProposedSize=size, MaxSizeAllowed=largest)
