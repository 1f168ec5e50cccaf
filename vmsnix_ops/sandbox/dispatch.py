"""From a request to its answer: authentication, parameters, authorization, fault rules, the operation."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.admin import PREFIX, answer_admin_request
from vmsnix_ops.sandbox.calls import summarize_params
from vmsnix_ops.sandbox.core import NOT_EMULATED, OPERATIONS, ApiError, Context, not_emulated
from vmsnix_ops.sandbox.credentials import (
    ANONYMOUS,
    authenticate,
    authentication_error,
    credentials_table,
)
from vmsnix_ops.sandbox.ec2.zones import is_region_enabled
from vmsnix_ops.sandbox.faults import edit_answer, flatten_params
from vmsnix_ops.sandbox.regions import in_partition
from vmsnix_ops.sandbox.s3.forms import is_form_upload, read_form_upload
from vmsnix_ops.sandbox.storage import find_bucket
from vmsnix_ops.sandbox.wire.http import ChunkSigner, DisconnectedError, Request, Response
from vmsnix_ops.sandbox.wire.models import SERVICES, find_service_name, service_model
from vmsnix_ops.sandbox.wire.protocols import identify_operation, parse_params, write_answer, write_error
from vmsnix_ops.sandbox.wire.signature import (
    UNSIGNED_PAYLOAD,
    VERSION_2_REGION,
    Authorization,
    MalformedAuthorizationError,
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
    from vmsnix_ops.sandbox.wire.http import BadRequestError
    from vmsnix_ops.sandbox.wire.models import Service


logger = logging.getLogger("vmsnix_ops.sandbox")
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
    """Answers requests.

    Parameters
    ----------
    state
        The state of the sandbox.
    """

    def __init__(self, state: SandboxState) -> None:
        self.state = state
        self.stopping = threading.Event()

    def answer(self, request: Request) -> Response:
        """Return the answer to one request. Raises only when the client disconnects."""
        host = LOCAL_HOST.fullmatch(request.headers.get("host", "").lower())
        if host is None:
            return _text_response(
                403, "The sandbox answers local clients only: the Host header must be 127.0.0.1 or localhost."
            )
        if request.raw_path.startswith(PREFIX):
            return answer_admin_request(self.state, request)
        path = request.raw_path
        try:
            authorization = read_authorization(request)
            service = self._service_of(request, authorization)
        except MalformedAuthorizationError as error:
            service = service_model("s3")
            return write_error(service, _as_aws_error(error), _request_id(service))
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
            with suppress(MalformedAuthorizationError, ApiError):
                service = self._service_of(error.request, read_authorization(error.request))
        refused = ApiError(error.code, str(error), status=error.status)
        return write_error(service, refused, _request_id(service))

    @staticmethod
    def _service_of(request: Request, authorization: Authorization | None) -> Service:
        if authorization is not None:
            name = find_service_name(authorization.service)
            if name is None:
                raise ApiError(
                    NOT_EMULATED,
                    f"The sandbox does not emulate the service {authorization.service!r}; "
                    f"it has {', '.join(SERVICES)}.",
                    status=501,
                )
            return service_model(name)
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return service_model("sts")
        if "x-amz-target" in request.headers:
            return service_model("ssm")
        return service_model("s3")

    def _exchange(self, exchange: Exchange) -> Response:
        outcome, dropped = "ok", False
        try:
            response = self._run(exchange)
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

    def _run(self, exchange: Exchange) -> Response:
        if exchange.service.name == "s3" and is_form_upload(exchange.request, exchange.path):
            return self._run_form(exchange)
        return self._run_request(exchange)

    def _run_form(self, exchange: Exchange) -> Response:
        """Run the upload of a form as the PutObject that it describes."""
        host = exchange.request.headers["host"]
        form = read_form_upload(exchange.request, exchange.path)
        try:
            exchange.authorization = authorization_of_form(form.fields)
        except MalformedAuthorizationError as error:
            raise _as_aws_error(error) from None
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
            raise ApiError(
                "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", status=412
            )
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
                request.body.expect_sha256(payload)
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
                exchange.request.body.cut_after = rule.keep

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


def _as_aws_error(error: MalformedAuthorizationError) -> ApiError:
    return ApiError(error.code, str(error), status=error.status, **error.extra)


def _request_id(service: Service) -> str:
    return secrets.token_hex(8).upper() if service.name == "s3" else str(uuid.uuid4())


def _text_response(status: int, text: str) -> Response:
    return Response(status, {"Content-Type": "text/plain; charset=utf-8"}, f"{text}\n".encode())
