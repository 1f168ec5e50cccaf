"""Which operation a request is for, and with which parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.model import ListShape

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.wire import checksums, errors, jsons, models, xml
from vmsnix_ops.sandbox.wire.forms import FormParser, read_form
from vmsnix_ops.sandbox.wire.models import TRANSPORT_KEYS, Route, Service

if TYPE_CHECKING:
    from botocore.model import OperationModel, StructureShape

    from vmsnix_ops.sandbox.wire.http import Request

MOST_BYTES = 2**20  # of a document that is read as a whole: its objects take many times as much
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
class Target:
    """An operation that a request is for, before its parameters were read."""

    service: Service
    operation: str
    form: dict[str, str] | None = None  # of ec2 and query
    route: Route | None = None  # of the REST protocols
    labels: dict[str, str] | None = None

    @property
    def model(self) -> OperationModel:
        """The operation's model."""
        return self.service.operation(self.operation)


def identify(request: Request, service: Service, path: str) -> Target:
    """Return the operation that a request is for.

    Parameters
    ----------
    request
        The request.
    service
        The service it was signed for.
    path
        Its path, percent-encoded; for S3 the bucket comes first even where the host names it.

    Raises
    ------
    AwsError
        When the service has no such operation.
    """
    if service.protocol in {"ec2", "query"}:
        return _identify_form(request, service)
    if service.protocol == "json":
        prefix, _, operation = request.headers.get("x-amz-target", "").rpartition(".")
        if operation not in service or prefix != service.model.metadata["targetPrefix"]:
            raise AwsError("UnknownOperationException", f"There is no operation {operation!r}.")
        return Target(service, operation)
    found = service.find_route(request, path)
    if found is None:
        if service.protocol == "rest-xml":
            raise AwsError(
                "MethodNotAllowed", "The specified method is not allowed against this resource.", status=405
            )
        raise AwsError("UnknownOperationException", f"There is no {request.method} {path}.", status=404)
    route, labels = found
    return Target(service, route.operation, route=route, labels=labels)


def _identify_form(request: Request, service: Service) -> Target:
    form = {key: value for key, value in request.query.items() if key not in SIGNATURE_KEYS | TRANSPORT_KEYS}
    if request.method == "POST":
        form |= read_form(request.body.read(MOST_BYTES).decode("utf-8", "replace"))
    action, version = form.pop("Action", ""), form.pop("Version", "")
    if not action:
        raise AwsError("MissingAction", "The request is missing an action or a required parameter")
    if action not in service:
        raise errors.unknown_action(action)
    if version != service.version:
        raise AwsError("NoSuchVersion", f"The sandbox speaks version {service.version}, not {version!r}.")
    return Target(service, action, form=form)


def parse(request: Request, target: Target) -> dict[str, Any]:
    """Return the parameters of a request by the model's own names.

    A streaming member is given as the request's body, to be read by the operation.

    Raises
    ------
    AwsError
        When anything in the request belongs to no parameter, or is of another type.
    """
    shape = target.model.input_shape
    protocol = target.service.protocol
    if target.form is not None:
        return FormParser(protocol).parse(shape, target.form)
    if target.route is None:
        return jsons.read(shape, request.body.read(MOST_BYTES), protocol)
    params = _parse_rest(request, target, shape, protocol) if shape is not None else {}
    known = target.route.knows_query | SIGNATURE_KEYS | TRANSPORT_KEYS
    for key in request.query:
        if key not in known:
            raise errors.not_emulated(target.service.name, target.operation, f"the query key {key!r}")
    return params


def _parse_rest(request: Request, target: Target, shape: StructureShape, protocol: str) -> dict[str, Any]:
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
                params[name] = [models.parse(member.member, part.strip()) for part in raw.split(",")]
            else:
                params[name] = models.parse(member, raw, timestamp_format=form)
        except models.BadValueError as error:
            raise errors.bad_value(key, error.text, error.expected, protocol) from None
    params |= _parse_payload(request, shape, protocol)
    for name in shape.required_members:
        if name not in params:
            raise errors.missing_parameter(name, protocol)
    return params


def _parse_payload(request: Request, shape: StructureShape, protocol: str) -> dict[str, Any]:
    payload = shape.serialization.get("payload")
    if payload is not None:
        member = shape.members[payload]
        if member.type_name in {"blob", "string"}:
            if member.serialization.get("streaming"):
                return {payload: request.body}
            content = request.body.read()
            _check_digests(request, shape, content)
            return {payload: content if member.type_name == "blob" else content.decode("utf-8", "replace")}
        content = request.body.read(4 * MOST_BYTES if protocol == "rest-xml" else MOST_BYTES)
        if protocol == "rest-xml":
            _check_digests(request, shape, content)
        if not content:
            return {}
        value = xml.read(member, content) if protocol == "rest-xml" else jsons.read(member, content, protocol)
        return {payload: value}
    if protocol == "rest-json":
        body_members = [m for m in shape.members.values() if "location" not in m.serialization]
        return jsons.read(shape, request.body.read(MOST_BYTES), protocol) if body_members else {}
    request.body.read()
    return {}


def _check_digests(request: Request, shape: StructureShape, content: bytes) -> None:
    """Compare a document with the checksums in its headers.

    Checksums that are members of the operation's own are about an object, and are its business.
    """
    own = {member.serialization.get("name") for member in shape.members.values()}
    for name in checksums.ALGORITHMS:
        header = "content-md5" if name == "md5" else f"x-amz-checksum-{name}"
        expected = request.headers.get(header)
        if expected is None or header in own:
            continue
        computed = checksums.new(name)
        computed.update(content)
        if checksums.encode(computed.digest()) != expected:
            what = "Content-MD5" if name == "md5" else name.upper()
            raise AwsError("BadDigest", f"The {what} you specified did not match the calculated checksum.")
