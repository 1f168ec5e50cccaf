"""Sessions, clients, and what AWS's errors mean.

Every call to AWS in this package goes through `client`, so that timeouts, retries and the user agent are the
same everywhere, and stands inside `calling`, so that a person never sees a bare ``ClientError``.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from vmsnix_ops import __version__, credentials, errors
from vmsnix_ops.aws import error_codes
from vmsnix_ops.aws.iam.permissions import denied_action
from vmsnix_ops.records import acts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Asked = Mapping[str, Any]
    from collections.abc import Iterator

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


# Which calls cannot be undone, and the line that is written before each; see `vmsnix_ops.records.acts`.
#
# The check hangs on the client, so that no job can forget it. Terminating an instance of a smoke test is not
# one of these acts: an instance that runs on because a disk is full costs money, and holds nothing.


def _stops_sharing(member: str, name: str) -> Callable[[Asked], str]:
    """Return what tells whether a call takes permissions away; one that gives some can be undone."""

    def resource(asked: Asked) -> str:
        removes = asked.get("OperationType") == "remove" or (asked.get(member) or {}).get("Remove")
        return str(asked[name]) if removes else ""

    return resource


def _object(asked: Asked) -> str:
    return f"s3://{asked['Bucket']}/{asked['Key']}"


IRREVERSIBLE: Mapping[tuple[str, str], Callable[[Asked], str]] = {
    ("ec2", "CancelImportTask"): lambda asked: str(asked["ImportTaskId"]),
    ("ec2", "DeleteSnapshot"): lambda asked: str(asked["SnapshotId"]),
    ("ec2", "DeregisterImage"): lambda asked: str(asked["ImageId"]),
    ("ec2", "DisableImage"): lambda asked: str(asked["ImageId"]),  # AWS forgets with whom it was shared
    ("ec2", "ModifyImageAttribute"): _stops_sharing("LaunchPermission", "ImageId"),
    ("ec2", "ModifySnapshotAttribute"): _stops_sharing("CreateVolumePermission", "SnapshotId"),
    ("iam", "DeletePolicyVersion"): lambda asked: f"{asked['PolicyArn']} {asked['VersionId']}",
    ("s3", "AbortMultipartUpload"): _object,
    ("s3", "DeleteObject"): _object,
    ("ssm", "DeleteParameter"): lambda asked: str(asked["Name"]),
}
"""Each call with the function that names the resource; an empty name means that this call can be undone."""


def announce_before(client: BaseClient) -> None:
    """Let every irreversible call of this client write its line first."""
    service = str(client.meta.service_model.service_name)

    def announce(params: Asked, model: Any, **_more: Any) -> None:
        # Parameters as the caller gave them: later they are a request.
        resource = IRREVERSIBLE[service, str(model.name)](params)
        if resource:
            acts.announce(f"{service}:{model.name}", resource, str(client.meta.region_name or ""))

    for name, operation in IRREVERSIBLE:
        if name == service:
            client.meta.events.register(f"provide-client-params.{service}.{operation}", announce)


Answer = TypeVar("Answer")

# A call that is tried again is no news. Whoever wants to hear of it gives the logger a handler; without any,
# Python would print the bare name of the event.
logging.getLogger("stamina").addHandler(logging.NullHandler())


def session(region: str | None = None, profile: str | None = None) -> boto3.Session:
    """Return a boto3 session; credentials by the ordinary rules (environment, profile, OIDC, ...)."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    credentials.watch_botocore()
    try:
        return boto3.Session(region_name=region or None, profile_name=profile)
    except ProfileNotFound as error:
        raise errors.CredentialsError(
            "No AWS credentials found.",
            why=str(error) + ".",
            fix="Set AWS_PROFILE to a profile of ~/.aws/config, or unset it.",
        ) from error


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
    """Return a client with this package's timeouts and retries; the same one for the same words.

    Making a client costs about 50 ms and a new connection, and clients may be shared by threads.

    Parameters
    ----------
    session
        Where credentials and the default region come from.
    service
        botocore's service name, such as ``"ec2"``.
    region
        Region to ask; the session's own by default.
    connections
        Size of the connection pool: as many as threads share this client.
    attempts
        Attempts in all for what botocore itself retries (throttling, 5xx, broken connections). Its default of
        3 has lost imports to plain throttling.
    read_seconds
        How long one attempt may hang.
    """
    key = (service, region or session.region_name, connections, attempts, read_seconds)
    with _MAKING:  # boto3 sessions, unlike clients, may not be used by two threads at once
        made = _CLIENTS.setdefault(session, {})
        if key not in made:
            made[key] = _make(session, *key)
        return made[key]


_CLIENTS: WeakKeyDictionary[boto3.Session, dict[Any, Any]] = WeakKeyDictionary()
_MAKING = threading.Lock()


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

    # A proxy would look for this machine's sandbox on its own.
    proxies: dict[str, str] | None = {} if _is_loopback(os.environ.get("AWS_ENDPOINT_URL", "")) else None
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=read_seconds,
        max_pool_connections=connections,
        user_agent_extra=f"vmsnix_ops/{__version__}",
        # Checksums that matter are given by us, one a part, in a header that is signed; botocore would hash
        # the part once more to sign it, which only costs time.
        s3={"payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=proxies,
    )
    try:
        made = session.client(service, region_name=region or None, config=config)
    except NoRegionError as error:
        raise errors.RegionError(
            "No AWS region given.",
            fix="Add --region NAME, set region in vmsnix.toml, or set AWS_REGION.",
        ) from error
    local = _is_loopback(made.meta.endpoint_url)
    if local != (proxies is not None):  # the endpoint is another one than the environment's
        config = config.merge(Config(proxies={} if local else None))
        made = session.client(service, region_name=region or None, config=config)
    announce_before(made)
    return made


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # no URL: botocore refuses it
        return False
    return host in ("localhost", "::1") or host.startswith("127.")


def if_found(call: Callable[[], Answer], *missing: str) -> Answer | None:
    """Return the answer to a call, or ``None`` when AWS answers with one of these codes."""
    try:
        return call()
    except Exception as error:
        if code_of(error) not in missing:
            raise
        return None


@contextmanager
def calling(doing: str) -> Iterator[None]:
    """Turn botocore's exceptions into this package's errors.

    Parameters
    ----------
    doing
        What the block tries to do, as the end of "Could not ...".
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise explain(error, doing) from error
    except BotoCoreError as error:
        raise _explain_local(error, doing) from error
    except ResponseParserError as error:  # no BotoCoreError, and never retried
        raise errors.AwsError(
            f"Could not {doing}.",
            why="The response was incomplete.",
            fix="Run the same command again: it continues where it stopped.",
        ) from error


def code_of(error: BaseException) -> str:
    """Return AWS's error code of a botocore ``ClientError`` or of one of our errors, else an empty string."""
    if isinstance(error, errors.AwsError):
        return error.code
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def explain(error: ClientError, doing: str) -> errors.AwsError:
    """Return our error for a botocore ``ClientError``: what could not be done, AWS's words, the fix."""
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


def _explain_local(error: Exception, doing: str) -> errors.AwsError:
    """Explain what went wrong before AWS could answer."""
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


def retrying(
    call: Callable[[], Answer], *codes: str, saying: str = "", seconds: float = 60.0, attempts: int = 12
) -> Answer:
    """Call again while AWS answers with one of these codes: the windows in which what exists is not yet seen.

    botocore retries throttling and server errors by itself; this is for the codes that it takes for final and
    that are not (``reference``: AWS's page on eventual consistency of the EC2 API).

    Parameters
    ----------
    call
        What to do; it must be safe to do twice.
    codes
        AWS error codes to wait out.
    saying
        Only when AWS's message holds these words, for codes that mean many things.
    seconds, attempts
        When to give up and let the error through, whichever comes first.
    """
    import stamina

    for attempt in stamina.retry_context(
        on=lambda error: code_of(error) in codes and saying in str(error),
        attempts=attempts,
        timeout=seconds,
        wait_initial=0.2,
        wait_max=5.0,
        wait_jitter=0.2,
    ):
        with attempt:
            return call()
    raise RuntimeError("unreachable: stamina returns or raises")  # pragma: no cover
