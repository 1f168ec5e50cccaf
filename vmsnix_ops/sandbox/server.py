"""The HTTP server on 127.0.0.1, and how it answers a request.

Each connection has a thread. A request is authenticated, its parameters are parsed, the caller is authorized,
fault rules are applied, and the operation runs.

Requests below ``/_vmsnix/`` read and control a sandbox in another process:

===========  ======================  ==============================================================
``health``   GET                     ``{"ok": true}``
``calls``    GET, DELETE             the calls; ``?name=ec2:*`` filters them
``faults``   GET, POST, DELETE       the fault rules; POST adds one
``clock``    GET, POST               ``{"speed": ..., "advance": seconds, "skew": seconds}``
``state``    GET                     the number of resources of each kind
``oidc``     GET                     a token of GitHub for ``?subject=...&audience=...``
===========  ======================  ==============================================================

They need no signature: the server listens on 127.0.0.1 and has no secrets. Requests with an Origin header are
refused, so no web site can send them through a browser.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import re
import secrets
import socket
import threading
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.calls import summarize_params
from vmsnix_ops.sandbox.core import OPERATIONS, ApiError, Context, load_json, load_operations, not_emulated
from vmsnix_ops.sandbox.credentials import ANONYMOUS, authenticate, authentication_error, credentials_table
from vmsnix_ops.sandbox.ec2.networks import is_region_enabled
from vmsnix_ops.sandbox.faults import edit_answer, flatten_params
from vmsnix_ops.sandbox.regions import in_partition
from vmsnix_ops.sandbox.s3.forms import is_form_upload, read_form_upload
from vmsnix_ops.sandbox.storage import find_bucket
from vmsnix_ops.sandbox.sts import STS_AUDIENCE, make_token
from vmsnix_ops.sandbox.wire.http import (
    TIMEOUT_TEXT,
    BadRequestError,
    ChunkSigner,
    DisconnectedError,
    Request,
    Response,
    TimedSocketReader,
    TooSlowError,
    abort,
    close,
    limit_time,
    linger,
    read_request,
    write_response,
)
from vmsnix_ops.sandbox.wire.models import SERVICES, SIGNING_NAMES, service_model
from vmsnix_ops.sandbox.wire.protocols import (
    check_constraints,
    identify_operation,
    parse_params,
    write_answer,
    write_error,
)
from vmsnix_ops.sandbox.wire.signature import (
    UNSIGNED_PAYLOAD,
    VERSION_2_REGION,
    Authorization,
    authorization_of_form,
    hoist_query,
    read_authorization,
    signing_key,
)

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.credentials import Credential
    from vmsnix_ops.sandbox.faults import Fault
    from vmsnix_ops.sandbox.s3.forms import FormUpload
    from vmsnix_ops.sandbox.state import SandboxState
    from vmsnix_ops.sandbox.wire.models import Service


logger = logging.getLogger("vmsnix_ops.sandbox")
HOST = "127.0.0.1"
MAX_CONNECTIONS = 1000  # each has a thread
DRAIN_LIMIT = 64 * 2**20  # bytes of a refused upload that are read; a longer one is disconnected


@dataclass(frozen=True)
class Timeouts:
    """How long a client may take, in seconds."""

    idle: float = 300.0  # between two requests
    head: float = 30.0  # for a request line and its headers
    silence: float = 60.0  # without a byte of the body, or without reading the answer
    per_byte: float = 1 / 1024  # in addition, for each byte of the body


TIMEOUTS = Timeouts()


class Server:
    """Serves one sandbox over HTTP until it is stopped."""

    def __init__(self, state: SandboxState, port: int = 0) -> None:
        load_operations()
        self.state = state
        self._dispatcher = Dispatcher(state)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="sandbox-server", daemon=True)

    @property
    def url(self) -> str:
        """The value for ``AWS_ENDPOINT_URL``."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start to serve, in threads of this process."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection, and wait for running calls."""
        self._dispatcher.stopping.set()
        close(self._listener)
        if self._thread.is_alive():
            self._thread.join()
        with self._guard:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            close(connection)
            thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._dispatcher.stopping.is_set():
                    return
                logger.exception("the sandbox could not accept a connection")
                self._dispatcher.stopping.wait(0.1)  # such as when there is no free file descriptor
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="sandbox-connection", daemon=True
            )
            with self._guard:
                full = len(self._connections) >= MAX_CONNECTIONS
                if not full:
                    self._connections[connection] = thread
            if full:
                abort(connection)
                continue
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            limit_time(connection, socket.SO_SNDTIMEO, TIMEOUTS.silence)
            incoming = TimedSocketReader(connection)
            source: Any = io.BufferedReader(incoming, 64 * 1024)
            while self._serve_one(connection, source, incoming):
                pass
        except OSError:
            logger.debug("a client disconnected, or was too slow")
        finally:
            with self._guard:
                self._connections.pop(connection, None)
            close(connection)

    def _serve_one(
        self, connection: socket.socket, source: io.BufferedReader, incoming: TimedSocketReader
    ) -> bool:
        """Answer one request, and return whether the connection can be used again."""
        incoming.set_timeout(TIMEOUTS.idle)
        if not source.peek(1):
            return False
        incoming.set_timeout(TIMEOUTS.head)
        try:
            request = read_request(
                source,
                lambda: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"),
                lambda: incoming.set_timeout(TIMEOUTS.silence, per_byte=TIMEOUTS.per_byte),
            )
        except BadRequestError as error:
            return self._refuse(connection, error)
        except TooSlowError:
            return self._refuse(connection, BadRequestError(TIMEOUT_TEXT, status=408, code="RequestTimeout"))
        if request is None:
            return False
        try:
            response = self._dispatcher.answer(request)
        except DisconnectedError:
            abort(connection)
            return False
        if response.drop:
            abort(connection) if response.cut_after is not None else close(connection)
            return False
        # Without 100 Continue, whether the client sends its body now is unknown.
        unknown = request.expects_continue and request.body.http.untouched
        keep = request.keeps_alive and not unknown and request.body.drain(DRAIN_LIMIT)
        head_only = request.method == "HEAD"
        if write_response(connection, response, head_only=head_only, close=not keep):
            return True
        if response.cut_after is None:
            linger(connection)
        return False

    def _refuse(self, connection: socket.socket, error: BadRequestError) -> bool:
        write_response(connection, self._dispatcher.refuse(error), head_only=False, close=True)
        linger(connection)
        return False


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            text = f"Port {port} on {HOST} is in use. Choose another port, or 0 for a free one."
            raise OSError(errno.EADDRINUSE, text) from error
        text = f"The sandbox cannot listen on {HOST}:{port}: {error.strerror}."
        raise OSError(error.errno, text) from error
    return listener


LOCAL_HOST = re.compile(
    r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])\.)?(?:s3\.)?(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
)
HANG_SECONDS = 3600.0
READ_ONLY = ("Describe", "Get", "List", "Head")


@dataclass
class Exchange:
    """One request and the facts about it for the call log."""

    request: Request
    service: Service
    authorization: Authorization | None
    path: str
    request_id: str
    at: datetime
    started: float = field(default_factory=time.monotonic)
    operation: str = "?"
    region: str = ""
    principal: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    operation_started: bool = False
    ran: bool = False  # the operation completed
    rules: list[Fault] = field(default_factory=list)  # fault rules that apply


class Dispatcher:
    """Answers requests."""

    def __init__(self, state: SandboxState) -> None:
        self.state = state
        self.stopping = threading.Event()

    def answer(self, request: Request) -> Response:
        """Return the answer to one request. Raises only when the client disconnects."""
        host = LOCAL_HOST.fullmatch(request.headers.get("host", "").lower())
        if host is None:
            text = "The sandbox answers local clients only: the Host header must be 127.0.0.1 or localhost."
            return _text_response(403, text)
        if request.raw_path.startswith(PREFIX):
            return answer_admin_request(self.state, request)
        path = request.raw_path
        try:
            authorization = read_authorization(request)
        except ApiError as error:
            service = service_model("s3")
            return write_error(service, error, _request_id(service))
        try:
            service = self._service_of(request, authorization)
        except ApiError as error:
            return _text_response(error.status, error.message)
        if host["bucket"] is not None and service.name == "s3":
            path = f"/{host['bucket']}{path}"
        request_id, now = _request_id(service), self.state.clock.now()
        exchange = Exchange(request, service, authorization, path, request_id, now)
        return self._exchange(exchange)

    def refuse(self, error: BadRequestError) -> Response:
        """Return the answer to an invalid request, in the protocol of the service that it is probably for."""
        service = service_model("s3")
        if error.request is not None:
            with suppress(ApiError):
                service = self._service_of(error.request, read_authorization(error.request))
        return write_error(service, error, _request_id(service))

    @staticmethod
    def _service_of(request: Request, authorization: Authorization | None) -> Service:
        if authorization is not None:
            name = SIGNING_NAMES.get(authorization.service, authorization.service)
            if name not in SERVICES:
                raise not_emulated(f"the service {authorization.service!r}; it has {', '.join(SERVICES)}")
            return service_model(name)
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return service_model("sts")
        if "x-amz-target" in request.headers:
            return service_model("ssm")
        return service_model("s3")

    def _exchange(self, exchange: Exchange) -> Response:
        outcome, dropped = "ok", False
        try:
            if exchange.service.name == "s3" and is_form_upload(exchange.request, exchange.path):
                response = self._run_form(exchange)
            else:
                response = self._run_request(exchange)
        except ApiError as error:
            outcome = error.code
            response = write_error(exchange.service, error, exchange.request_id)
        except DisconnectedError:
            self._log(exchange, "Disconnected", 0)
            raise
        except _DropConnectionError as drop:
            outcome, dropped = "Dropped", True
            response = Response(0, drop=True, cut_after=0 if drop.reset else None)
        except Exception as error:
            logger.exception("%s:%s failed", exchange.service.name, exchange.operation)
            outcome = "InternalError"
            broken = ApiError(outcome, f"The sandbox failed: {type(error).__name__}: {error}", status=500)
            response = write_error(exchange.service, broken, exchange.request_id)
        if self.state.clock.skew:  # clients correct their clocks by this header
            response.headers["Date"] = format_datetime(self.state.clock.shown(), usegmt=True)
        if exchange.operation_started and not exchange.operation.startswith(READ_ONLY):
            self.state.mark_changed()
        self._log(exchange, outcome, 0 if dropped else response.status)
        return response

    def _log(self, exchange: Exchange, outcome: str, status: int) -> None:
        self.state.calls.add(
            at=exchange.at,
            service=exchange.service.name,
            operation=exchange.operation,
            region=exchange.region,
            principal=exchange.principal,
            params=summarize_params(exchange.params),
            outcome=outcome,
            status=status,
            ran=exchange.ran,
            fault=", ".join(f"{rule.do} {rule.when}" for rule in exchange.rules),
            seconds=time.monotonic() - exchange.started,
            request_id=exchange.request_id,
        )

    def _run_form(self, exchange: Exchange) -> Response:
        """Run the upload of a form as the PutObject that it describes."""
        host = exchange.request.headers["host"]
        form = read_form_upload(exchange.request, exchange.path)
        exchange.authorization = authorization_of_form(form.fields)
        exchange.request = form.as_put_request()
        exchange.path = exchange.request.raw_path
        return form.answer(self._run_request(exchange, form), host)

    def _run_request(self, exchange: Exchange, form: FormUpload | None = None) -> Response:
        self._prepare_body(exchange)
        target = identify_operation(exchange.request, exchange.service, exchange.path)
        exchange.operation = target.operation
        caller = self._caller(exchange)
        exchange.principal = caller.principal
        if form is not None and exchange.authorization is not None:
            form.check_policy(exchange.authorization, self.state.clock)
        exchange.request = hoist_query(exchange.request, exchange.authorization)
        service = exchange.service
        params = parse_params(exchange.request, target)
        check_constraints(target, params)
        exchange.region = self._region(exchange, params)
        dry_run = service.name == "ec2" and bool(params.pop("DryRun", False))
        exchange.params = params
        operation = OPERATIONS.get((service.name, target.operation))
        if operation is None:
            raise not_emulated(f"{service.name}:{target.operation}")
        for name in params:
            if name not in operation.parameters:
                raise not_emulated(f"the parameter {name!r} of {service.name}:{target.operation}")
        self._apply_rules_before(exchange)
        context = self._context(exchange, caller)
        if context.limits is not None:
            context.limits.check(context, params)
        self.state.authorize(context, params)
        if dry_run:
            text = "Request would have succeeded, but DryRun flag is set."
            raise ApiError("DryRunOperation", text, status=412)
        exchange.operation_started = True
        if not exchange.operation.startswith(READ_ONLY):
            self.state.keep_for_stale_reads(service.name)
        with self.state.lock if operation.locks else nullcontext():
            result = operation.handler(context, params)
        exchange.ran = True
        result = self._apply_rules_after(exchange, result)
        response = write_answer(service, target.model, result, exchange.request_id)
        for rule in exchange.rules:
            if rule.when == "body" and rule.of == "answer":
                response.cut_after = rule.keep
        return response

    def _prepare_body(self, exchange: Exchange) -> None:
        """Prepare the body: reading it decodes ``aws-chunked`` and checks the hash that the client signed."""
        request, authorization = exchange.request, exchange.authorization
        payload = request.headers.get("x-amz-content-sha256", "")
        if not payload.startswith("STREAMING-"):
            if payload and payload != UNSIGNED_PAYLOAD:
                request.body.signed_sha256 = payload
            return
        signer = None
        if "HMAC" in payload and authorization is not None:
            known = credentials_table(self.state.tables).get(authorization.access_key)
            secret = known.secret if known is not None else ""
            key = signing_key(secret, authorization.date, authorization.region, authorization.service)
            signer = ChunkSigner(key, authorization.scope, authorization.stamp, authorization.signature)
        request.body.unwrap_chunks(signer)

    def _caller(self, exchange: Exchange) -> Credential:
        service, state = exchange.service, self.state
        if exchange.authorization is None:
            # botocore's model marks the operations of STS that need no signature. For S3, the bucket policy
            # decides.
            unsigned = service.operation(exchange.operation).auth_type == "none"
            if unsigned or service.name == "s3":
                return ANONYMOUS
            raise authentication_error(service, "unsigned")
        caller = authenticate(
            exchange.request, exchange.authorization, service, exchange.path, state.tables, state.clock
        )
        if not is_region_enabled(state.tables, caller.account, exchange.authorization.region):
            # IAM does not send the keys of an account to regions that it has not opted in to ("Enable or
            # disable AWS Regions in your account"), so valid keys are unknown there.
            raise authentication_error(service, "unknown")
        return caller

    def _region(self, exchange: Exchange, params: dict[str, Any]) -> str:
        """Return the region of a call.

        Requests to S3 with Signature Version 2, or without a signature, name no region: it is that of the
        bucket. Whether S3 accepts Version 2 in other regions than us-east-1 is not known.
        """
        authorization = exchange.authorization
        if authorization is not None and authorization.version != 2:
            return authorization.region
        bucket = find_bucket(self.state.tables, str(params.get("Bucket", "")))
        region = bucket.region if bucket is not None else VERSION_2_REGION
        if authorization is not None and region != VERSION_2_REGION:
            raise not_emulated(f"Signature Version 2 in {region}")
        return region

    def _context(self, exchange: Exchange, caller: Credential) -> Context:
        state, signed = self.state, exchange.authorization
        outcome: dict[str, Any] = {}
        tables = state.tables
        for rule in exchange.rules:
            outcome |= rule.outcome
            if rule.do == "stale" and exchange.operation.startswith(READ_ONLY):
                tables = state.tables_for_read(exchange.service.name, rule) or tables
        return Context(
            service=exchange.service.name,
            operation=exchange.operation,
            region=exchange.region,
            account=caller.account,
            principal=in_partition(caller.principal, exchange.region),
            access_key=caller.access_key,
            request_id=exchange.request_id,
            clock=state.clock,
            tables=tables,
            blocks=state.blocks,
            folder=state.folder,
            lock=state.lock,
            headers=exchange.request.headers,
            signature_keys=signed.condition_keys(state.clock.elapsed(signed.timestamp)) if signed else {},
            body=exchange.request.body,
            outcome=outcome,
            limits=state.limits,
            authorizer=state.authorize,
        )

    def _apply_rules_before(self, exchange: Exchange) -> None:
        """Find the fault rules of this call, and apply those with ``before``."""
        name = f"{exchange.service.name}:{exchange.operation}"
        facts = flatten_params(exchange.params) | {"region": exchange.region, "principal": exchange.principal}
        exchange.rules = self.state.faults.match(name, facts)
        for rule in exchange.rules:
            if rule.when == "before":
                self._apply(rule)
            elif rule.when == "body" and rule.of == "request":
                if exchange.request.body.http.finished:  # a small body was read with the parameters
                    raise _DropConnectionError(reset=rule.do == "reset")
                exchange.request.body.http.cut_after = rule.keep

    def _apply(self, rule: Fault) -> None:
        if rule.do == "error":
            raise ApiError(rule.code, rule.message, status=rule.http, **rule.extra)
        if rule.do == "delay":
            self.stopping.wait(1.0 if rule.seconds is None else rule.seconds)
        if rule.do == "hang":
            self.stopping.wait(HANG_SECONDS if rule.seconds is None else rule.seconds)
        if rule.do in {"hang", "drop", "reset"}:
            raise _DropConnectionError(reset=rule.do == "reset")

    def _apply_rules_after(self, exchange: Exchange, result: dict[str, Any]) -> dict[str, Any]:
        """Apply the fault rules with ``after`` to the result of the operation."""
        for rule in exchange.rules:
            if rule.when != "after":
                continue
            if rule.do in {"blank", "set"}:
                result = edit_answer(result, rule.fields, rule.values)
            else:
                self._apply(rule)
        return result


class _DropConnectionError(Exception):
    """A fault rule closes the connection without an answer."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


def _request_id(service: Service) -> str:
    return secrets.token_hex(8).upper() if service.name == "s3" else str(uuid.uuid4())


def _text_response(status: int, text: str) -> Response:
    return Response(status, {"Content-Type": "text/plain; charset=utf-8"}, f"{text}\n".encode())


PREFIX = "/_vmsnix/"
MAX_BYTES = 2**20
MAX_SKEW_SECONDS = 10 * 365 * 86400


def answer_admin_request(state: SandboxState, request: Request) -> Response:
    """Return the answer to a request below ``/_vmsnix/``."""
    if "origin" in request.headers:
        return _json({"error": "not for browsers"}, 403)
    name = request.path.removeprefix(PREFIX)
    try:
        content = request.body.read(MAX_BYTES)
        value: Any = load_json(content) if content else {}
        found = _route(state, request, name, dict(value))
    except (ValueError, TypeError, OverflowError, ApiError) as error:
        return _json({"error": str(error)}, 400)
    if found is None:
        return _json({"error": f"there is no {request.method} {request.path}"}, 404)
    return _json(found)


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(value, default=str).encode())


def _route(state: SandboxState, request: Request, name: str, value: Any) -> Any:
    method = request.method
    if name == "health" and method == "GET":
        return {"ok": True}
    if name == "calls" and method == "GET":
        return [call.as_json() for call in state.calls.matching(request.query.get("name", "*"))]
    if name == "calls" and method == "DELETE":
        state.calls.clear()
        return {}
    if name == "faults" and method == "GET":
        return [asdict(rule) for rule in state.faults.rules]
    if name == "faults" and method == "POST":
        return asdict(state.faults.add(value))
    if name == "faults" and method == "DELETE":
        state.faults.clear()
        return {}
    if name == "clock" and method in {"GET", "POST"}:
        return _clock(state, value)
    if name == "state" and method == "GET":
        return _count_resources(state)
    if name == "oidc" and method == "GET" and "subject" in request.query:
        # The form of ACTIONS_ID_TOKEN_REQUEST_URL, from which a workflow takes its token.
        audience = request.query.get("audience", STS_AUDIENCE)
        return {"value": make_token(request.query["subject"], audience=audience)}
    return None


def _clock(state: SandboxState, value: dict[str, Any]) -> dict[str, Any]:
    if "speed" in value:
        state.clock.speed = float(value["speed"])
    if "advance" in value:
        state.clock.advance(float(value["advance"]))
    if "skew" in value:
        skew = float(value["skew"])
        if not math.isfinite(skew) or abs(skew) > MAX_SKEW_SECONDS:
            raise ValueError(f"skew must be at most {MAX_SKEW_SECONDS} seconds, not {skew}")
        state.clock.skew = timedelta(seconds=skew)
    return {
        "speed": state.clock.speed,
        "skew": state.clock.skew.total_seconds(),
        "now": state.clock.now().isoformat(),
    }


def _count_resources(state: SandboxState) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    with state.lock:
        for account, region, kind in sorted(state.tables):
            if kind not in {"credentials", "trash"}:
                table = state.tables[account, region, kind]
                counts.setdefault(kind, {}).update({f"{account}/{region}": len(table)} if table else {})
    return counts
