"""The caller of AWS, and checks of credentials, clock, account and region."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, region_names
from vmsnix_ops.aws.checks import CheckResult
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    from types_boto3_ec2.client import EC2Client


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """The account and ARN of the credentials in use."""

    account: str
    arn: str
    skew_seconds: float = 0.0  # how far this machine's clock is ahead of AWS's, to about one second

    @property
    def partition(self) -> str:
        """``aws``, ``aws-cn``, ``aws-us-gov``, ``aws-eusc``, ..."""
        return self.arn.split(":")[1]

    @property
    def is_root(self) -> bool:
        """Whether this is the account's root user, whom IAM policies do not restrict."""
        return self.arn.endswith(":root")

    @property
    def policy_source(self) -> str:
        """ARN of the user or role that has the caller's policies; for a session, its role.

        A session's ARN lacks the path of its role, so this ARN is wrong for a role with a path.
        """
        return re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", self.arn)


NOT_ENABLED_CODES = frozenset({"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"})
"""Error codes for valid credentials in a region that is not enabled for their account."""


def region_not_enabled(region: str, why: str) -> errors.RegionError:
    """Return the error for a region that refuses valid credentials.

    Only regions of the partition ``aws`` can be enabled; other partitions have their own credentials.
    """
    partition = partition_of(region)
    if partition != "aws":
        return errors.RegionError(
            f"The region {region} does not accept these credentials.",
            why=f"It is in the partition {partition}, whose accounts and credentials are separate. {why}",
            fix=f"Use credentials of an account in {partition}, or choose a region of your own partition.",
        )
    return errors.RegionError(
        f"The region {region} is not enabled for this account.",
        why=why,
        fix=f"Enable it (aws account enable-region --region-name {region}), or choose another.",
    )


def read_caller(session: boto3.Session, region: str | None = None) -> CallerIdentity:
    """Return account and ARN of the caller (sts:GetCallerIdentity, which needs no permission).

    A RegionError if the region is not enabled for the account.
    """
    try:
        return _get_caller_identity(session, region)
    except errors.CredentialsError as error:
        # A region that is not enabled reports valid credentials as unknown: check them elsewhere.
        region = region or session.region_name
        enabled = _always_enabled(region)
        if error.code not in NOT_ENABLED_CODES or region in (None, enabled):
            raise
        try:
            _get_caller_identity(session, enabled)
        except errors.AwsError:
            raise error from None
        raise region_not_enabled(region, error.why) from error


def read_account(session: boto3.Session, regions: Iterable[str]) -> str:
    """Return the account of the credentials, from the first region that answers."""
    refused: list[errors.AwsError] = []
    for region in regions:
        try:
            return read_caller(session, region).account
        except errors.AwsError as error:
            refused.append(error)
    raise refused[0]


_ALWAYS_ENABLED = {
    "aws": "us-east-1",
    "aws-cn": "cn-north-1",
    "aws-eusc": "eusc-de-east-1",
    "aws-us-gov": "us-gov-west-1",
}


def _always_enabled(region: str | None) -> str | None:
    """Return a region of the same partition that every account has; the region itself if none is known.

    Credentials of one partition are never sent to another.
    """
    return _ALWAYS_ENABLED.get(partition_of(region), region) if region else "us-east-1"


def _get_caller_identity(session: boto3.Session, region: str | None) -> CallerIdentity:
    with calling("read the caller's identity"):
        answer = client(session, "sts", region).get_caller_identity()
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    return CallerIdentity(answer["Account"], answer["Arn"], skew)


MOST_SKEW_SECONDS = 5 * 60.0  # AWS refuses signatures with more
NOTICEABLE_SKEW_SECONDS = 60.0
LONG_ENOUGH_SECONDS = 60 * 60.0  # the deadline of an import


def check_region_name(region: str) -> CheckResult:
    """Check that botocore lists the region; does not call AWS."""
    region_names.check_region_name(region, error=errors.InvalidRegionError)
    return CheckResult("region name", "pass", region)


def check_credentials(session: boto3.Session, region: str) -> CheckResult:
    """Check that the credentials are valid, and report caller and expiry."""
    caller = read_caller(session, region)
    facts = {"account": caller.account, "arn": caller.arn, "identity": caller}
    expires = credentials_expiry(session)
    if expires is None:
        temporary = "/assumed-role/" in caller.arn or ":assumed-role/" in caller.arn
        note = "; temporary, expiry unknown" if temporary else ""
        return CheckResult("credentials", "pass", caller.arn + note, facts=facts)
    left = (expires - datetime.now(UTC)).total_seconds()
    text = f"{caller.arn}; valid for {counted(round(max(left, 0) / 60), 'minute')}"
    if left < LONG_ENOUGH_SECONDS:
        fix = (
            "Log in again before a long run. If the credentials expire, run it again: it continues where it "
            "stopped."
        )
        return CheckResult("credentials", "warn", text, fix, facts=facts)
    return CheckResult("credentials", "pass", text, facts=facts)


def credentials_expiry(session: boto3.Session) -> datetime | None:
    """Return when the credentials expire, in UTC; ``None`` if they do not, or if it is unknown."""
    found: Any = session.get_credentials()
    moment = getattr(found, "_expiry_time", None)  # botocore offers no public name for it
    if isinstance(moment, datetime):
        return moment
    given = os.environ.get("AWS_CREDENTIAL_EXPIRATION", "")
    if given and getattr(found, "method", "") == "env":
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def check_clock(caller: CallerIdentity) -> CheckResult:
    """Check that this machine's clock agrees with AWS's."""
    ahead = caller.skew_seconds
    text = f"{counted(round(abs(ahead)), 'second')} {'ahead of' if ahead >= 0 else 'behind'} AWS"
    if abs(ahead) < NOTICEABLE_SKEW_SECONDS:
        return CheckResult("clock", "pass", text)
    fix = "Set this machine's clock (NTP): AWS refuses requests that are five minutes off."
    return CheckResult("clock", "fail" if abs(ahead) >= MOST_SKEW_SECONDS else "warn", text, fix)


def check_account(number: str, allowed: tuple[str, ...]) -> CheckResult:
    """Check that the account is one of the allowed ones, if there are any."""
    if not allowed:
        return CheckResult("account", "pass", f"{number} (allowed_accounts is not set)")
    if number in allowed:
        return CheckResult("account", "pass", f"{number} is allowed")
    raise errors.CredentialsError(
        f"The account {number} is not allowed.",
        why=f"allowed_accounts is {', '.join(allowed)}.",
        fix="Use credentials of an allowed account, or change allowed_accounts in vmsnix.toml.",
    )


@needs("ec2:DescribeRegions")
def check_region(ec2: EC2Client, name: str) -> CheckResult:
    """Check that the region is enabled for the account."""
    try:
        with calling(f"read the region {name}"):
            answer = ec2.describe_regions(RegionNames=[name], AllRegions=True)
    except errors.AwsError as error:
        if error.code in {*NOT_ENABLED_CODES, "InvalidParameterValue"}:
            raise region_not_enabled(name, error.why) from error
        raise
    status = answer["Regions"][0].get("OptInStatus", "opt-in-not-required")
    if status == "not-opted-in":
        raise region_not_enabled(name, f"Its status is {status}.")
    return CheckResult("region", "pass", f"{name}: {status}")
