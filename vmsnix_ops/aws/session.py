"""Sessions, clients, and errors of AWS as errors of this package.

All clients come from `client`, so timeouts, retries and the user agent are the same everywhere. All calls are
inside `calling`, so no bare ``ClientError`` is shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload
from weakref import WeakKeyDictionary

from vmsnix_ops import __version__, credentials, errors
from vmsnix_ops.aws import error_codes
from vmsnix_ops.aws.iam.permissions import denied_action
from vmsnix_ops.endpoints import endpoint_url, is_loopback
from vmsnix_ops.records import acts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import boto3
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError
    from types_boto3_autoscaling.client import AutoScalingClient
    from types_boto3_ebs.client import EBSClient
    from types_boto3_ec2.client import EC2Client
    from types_boto3_iam.client import IAMClient
    from types_boto3_s3.client import S3Client
    from types_boto3_service_quotas.client import ServiceQuotasClient
    from types_boto3_sns.client import SNSClient
    from types_boto3_ssm.client import SSMClient
    from types_boto3_sts.client import STSClient


# Calls that cannot be undone. Each client records such a call before it sends it (`vmsnix_ops.records.acts`),
# so no job can omit the record. Terminating the instance of a smoke test is not recorded, and so never
# prevented by a full disk: the instance costs money and contains nothing.


def _if_removing(member: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """Name the resource of a call that removes permissions; granting them can be undone."""

    def resource(request: Mapping[str, Any]) -> str:
        removes = request.get("OperationType") == "remove" or (request.get(member) or {}).get("Remove")
        return str(request[name]) if removes else ""

    return resource


IRREVERSIBLE: Mapping[tuple[str, str], Callable[[Mapping[str, Any]], str]] = {
    ("ec2", "CancelImportTask"): lambda request: str(request["ImportTaskId"]),
    ("ec2", "DeleteSnapshot"): lambda request: str(request["SnapshotId"]),
    ("ec2", "DeregisterImage"): lambda request: str(request["ImageId"]),
    ("ec2", "DisableImage"): lambda request: str(request["ImageId"]),  # AWS deletes its launch permissions
    ("ec2", "ModifyImageAttribute"): _if_removing("LaunchPermission", "ImageId"),
    ("ec2", "ModifySnapshotAttribute"): _if_removing("CreateVolumePermission", "SnapshotId"),
    ("iam", "DeletePolicyVersion"): lambda request: f"{request['PolicyArn']} {request['VersionId']}",
    ("s3", "AbortMultipartUpload"): lambda request: f"s3://{request['Bucket']}/{request['Key']}",
    ("s3", "DeleteObject"): lambda request: f"s3://{request['Bucket']}/{request['Key']}",
    ("ssm", "DeleteParameter"): lambda request: str(request["Name"]),
}
"""Each call with the function that names its resource; an empty name means that the call can be undone."""


def _record_irreversible_calls(client: BaseClient) -> None:
    service = str(client.meta.service_model.service_name)

    def announce(params: Mapping[str, Any], model: Any, **_more: Any) -> None:
        # This event has the parameters as the caller gave them; later events have the HTTP request.
        resource = IRREVERSIBLE[service, str(model.name)](params)
        if resource:
            acts.announce(f"{service}:{model.name}", resource, str(client.meta.region_name or ""))

    for name, operation in IRREVERSIBLE:
        if name == service:
            client.meta.events.register(f"provide-client-params.{service}.{operation}", announce)


Answer = TypeVar("Answer")

LOGGER = logging.getLogger(__name__)
# `retry` logs its attempts, and stamina logs its own. Without a handler, Python would print both.
for _logger in (LOGGER, logging.getLogger("stamina")):
    _logger.addHandler(logging.NullHandler())


def session(region: str | None = None) -> boto3.Session:
    """Return a boto3 session; boto3 finds the credentials (environment, profile, OIDC, ...)."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    credentials.watch_botocore()
    try:
        return boto3.Session(region_name=region or None)
    except ProfileNotFound as error:
        raise errors.CredentialsError(
            "No AWS credentials found.",
            why=str(error) + ".",
            fix="Set AWS_PROFILE to a profile of ~/.aws/config, or unset it.",
        ) from error


def session_of(environment: Mapping[str, str]) -> boto3.Session:
    """Return a session that uses the given variables; botocore itself reads those of this process.

    Access keys take precedence over a profile, as in the AWS CLI.
    """
    import boto3

    credentials.watch_botocore()
    key, everywhere = environment.get("AWS_ACCESS_KEY_ID") or None, environment.get("AWS_ENDPOINT_URL")

    class EnvironmentSession(boto3.Session):
        def client(self, *arguments: Any, **options: Any) -> Any:
            service = str(arguments[0] if arguments else options["service_name"])
            endpoint = environment.get(f"AWS_ENDPOINT_URL_{service.upper()}") or everywhere or None
            return super().client(*arguments, **{"endpoint_url": endpoint, **options})

    session: boto3.Session = EnvironmentSession(
        aws_access_key_id=key,
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
        aws_session_token=environment.get("AWS_SESSION_TOKEN") or None,
        profile_name=None if key else environment.get("AWS_PROFILE") or None,
        region_name=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None,
    )
    return session


class Options(TypedDict, total=False):
    """The keyword arguments of `client`."""

    connections: int
    attempts: int
    read_seconds: float


@overload
def client(
    session: boto3.Session, service: Literal["autoscaling"], region: str | None = None, **how: Unpack[Options]
) -> AutoScalingClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["ebs"], region: str | None = None, **how: Unpack[Options]
) -> EBSClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["ec2"], region: str | None = None, **how: Unpack[Options]
) -> EC2Client: ...
@overload
def client(
    session: boto3.Session, service: Literal["iam"], region: str | None = None, **how: Unpack[Options]
) -> IAMClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["s3"], region: str | None = None, **how: Unpack[Options]
) -> S3Client: ...
@overload
def client(
    session: boto3.Session,
    service: Literal["service-quotas"],
    region: str | None = None,
    **how: Unpack[Options],
) -> ServiceQuotasClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["sns"], region: str | None = None, **how: Unpack[Options]
) -> SNSClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["ssm"], region: str | None = None, **how: Unpack[Options]
) -> SSMClient: ...
@overload
def client(
    session: boto3.Session, service: Literal["sts"], region: str | None = None, **how: Unpack[Options]
) -> STSClient: ...
def client(
    session: boto3.Session,
    service: str,
    region: str | None = None,
    *,
    connections: int = 16,
    attempts: int = 6,
    read_seconds: float = 60.0,
) -> Any:
    """Return a client with this package's timeouts and retries; the same client for the same arguments.

    Creating a client costs about 50 ms and a new connection. Threads may share clients; `connections` is
    their number. `attempts` are for errors that botocore retries (throttling, 5xx, broken connections): with
    its default of 3, throttling made imports fail. `read_seconds` is the timeout of one attempt.
    """
    key = (service, region or session.region_name, connections, attempts, read_seconds)
    with _LOCK:  # threads may share clients, but not boto3 sessions
        made = _CLIENTS.setdefault(session, {})
        if key not in made:
            made[key] = _make(session, *key)
        return made[key]


_CLIENTS: WeakKeyDictionary[boto3.Session, dict[Any, Any]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _make(
    session: boto3.Session,
    service: str,
    region: str | None,
    connections: int,
    attempts: int,
    read_seconds: float,
) -> Any:
    from botocore.config import Config
    from botocore.exceptions import NoRegionError

    # A proxy cannot reach the sandbox on this machine's loopback address.
    proxies: dict[str, str] | None = {} if is_loopback(endpoint_url()) else None
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=read_seconds,
        max_pool_connections=connections,
        user_agent_extra=f"vmsnix_ops/{__version__}",
        # Uploads give the SHA-256 of each part in a signed header, so botocore need not hash it again.
        s3={"payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=proxies,
    )
    try:
        made = session.client(service, region_name=region or None, config=config)
    except NoRegionError as error:
        raise errors.RegionError(
            "No AWS region given.", fix="Add --region NAME, set region in vmsnix.toml, or set AWS_REGION."
        ) from error
    local = is_loopback(made.meta.endpoint_url)
    if local != (proxies is not None):  # the endpoint is not that of AWS_ENDPOINT_URL
        config = config.merge(Config(proxies={} if local else None))
        made = session.client(service, region_name=region or None, config=config)
    _record_irreversible_calls(made)
    return made


def if_found(call: Callable[[], Answer], *missing: str) -> Answer | None:
    """Return the answer to a call, or ``None`` for these error codes, which mean that nothing exists."""
    try:
        return call()
    except Exception as error:
        if code_of(error) not in missing:
            raise
        return None


@contextmanager
def calling(doing: str) -> Iterator[None]:
    """Turn botocore's exceptions into this package's errors; `doing` completes "Could not ..."."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _convert(error, doing) from error
    except BotoCoreError as error:
        raise _convert_local(error, doing) from error
    except ResponseParserError as error:  # not a BotoCoreError, and never retried
        raise errors.AwsError(
            f"Could not {doing}.",
            why="The response was incomplete.",
            fix="Run the same command again: it continues where it stopped.",
        ) from error


def code_of(error: BaseException) -> str:
    """Return the AWS error code of a botocore ``ClientError`` or an `AwsError`; empty for other errors."""
    if isinstance(error, errors.AwsError):
        return error.code
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _convert(error: ClientError, doing: str) -> errors.AwsError:
    """Return this package's error for an error that AWS returned."""
    answer = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", "")).strip()
    what = f"Could not {doing}."
    why = f"AWS returned {code}: {message.rstrip('.')}." if message else f"AWS returned {code}."
    details = {
        "code": code,
        "operation": error.operation_name,
        "request_id": str(metadata.get("RequestId", "")),
    }
    wrong_clock = message.startswith(("Signature expired", "Signature not yet current"))
    if code in error_codes.CLOCK or (code in error_codes.CREDENTIALS and wrong_clock):
        return errors.CredentialsError(what, why=why, fix="Set this machine's clock (NTP).", **details)
    if code in error_codes.CREDENTIALS:
        return errors.CredentialsError(what, why=why, fix=_credentials_fix(code), **details)
    if code in error_codes.DENIED:
        action = denied_action(message, error.operation_name) or f"the action for {error.operation_name}"
        fix = f"Allow {action} in the caller's IAM policy; vmsnix iam-policy prints complete policies."
        return errors.AccessDeniedError(what, why=why, fix=fix, **details)
    if code in error_codes.THROTTLING:
        reason = str(error.response.get("Reason", ""))
        cause = error_codes.throttle_cause(code, reason, error.operation_name)
        why = f"{why} {cause}".rstrip()
        fix = (
            "Run it again later, or with less work at once: AWS's request limits apply to the whole account."
        )
        return errors.AwsError(what, why=why, fix=fix, **details)
    if code in error_codes.QUOTA:
        fix = (
            "Wait for running work to end, delete what is no longer needed, or request a higher quota from "
            "AWS."
        )
        return errors.QuotaError(what, why=why, fix=fix, **details)
    return errors.AwsError(what, why=why, **details)


def _credentials_fix(code: str) -> str:
    if code.startswith(("Expired", "RequestExpired")):
        return (
            "Log in again (for example, aws sso login), then run the same command again: it continues where "
            "it stopped."
        )
    return (
        "Check which credentials are in use: aws sts get-caller-identity. A region that is not enabled "
        "causes the same error."
    )


def _convert_local(error: Exception, doing: str) -> errors.AwsError:
    """Return this package's error for an error that happened before AWS answered."""
    from botocore import exceptions

    what, why = f"Could not {doing}.", str(error).rstrip(".") + "."
    missing = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.SSOError,
    )
    if isinstance(error, missing):
        fix = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in (aws sso login)."
        return errors.CredentialsError(what, why=why, fix=fix)
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        fix = (
            "Check the network, the region's name and AWS_ENDPOINT_URL, then run the same command again: it "
            "continues where it stopped."
        )
        return errors.AwsError(what, why=why, fix=fix)
    return errors.AwsError(what, why=why, fix="Run the same command again: it continues where it stopped.")


def client_token(*parts: Any) -> str:
    """Return a ClientToken: the same for a request with equal parts, and for no other.

    One of the parts is the number of the attempt, because AWS remembers a token longer than what failed.
    """
    text = json.dumps(parts, sort_keys=True)
    return f"vmsnix-{hashlib.sha256(text.encode()).hexdigest()[:48]}"


def retry(
    call: Callable[[], Answer], *codes: str, containing: str = "", seconds: float = 60.0, attempts: int = 12
) -> Answer:
    """Call again while AWS returns one of these error codes; the call must be safe to repeat.

    Botocore retries throttling and server errors. This function is for codes that botocore treats as final
    although the same call may succeed later, such as "not found" for a new resource ("Eventual consistency in
    the Amazon EC2 API"). `containing` is a text in AWS's message, for codes with several meanings.
    """
    import stamina

    refused = ""
    for attempt in stamina.retry_context(
        on=lambda error: code_of(error) in codes and containing in str(error),
        attempts=attempts,
        timeout=seconds,
        wait_initial=0.2,
        wait_max=5.0,
        wait_jitter=0.2,
    ):
        if refused:
            LOGGER.warning("AWS answered %s: attempt %d.", refused, attempt.num)
        with attempt:
            try:
                return call()
            except Exception as error:
                refused = code_of(error)
                raise
    raise RuntimeError("stamina returns or raises")  # pragma: no cover
