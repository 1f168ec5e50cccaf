"""Who AWS says that we are; the checks of credentials, clock, account and region."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import known_regions, partition_of

if TYPE_CHECKING:
    import boto3
    from types_boto3_ec2.client import EC2Client


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller.

    Attributes
    ----------
    account, arn
        As AWS says it.
    skew_seconds
        How far this machine's clock was ahead of AWS's when it answered; a whole second is within the
        precision of the answer.
    """

    account: str
    arn: str
    skew_seconds: float = 0.0

    @property
    def partition(self) -> str:
        """``aws``, ``aws-cn``, ``aws-us-gov``, ``aws-eusc``, ..."""
        return self.arn.split(":")[1]

    @property
    def is_root(self) -> bool:
        """Whether this is the account's root user, whom no policy of the account holds."""
        return self.arn.endswith(":root")

    @property
    def policy_source(self) -> str:
        """ARN of the user or role that the caller's policies hang on; a session stands for its role.

        The path of a role is not part of a session's ARN, so a role with a path is not found under this one.
        """
        return re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", self.arn)


REFUSED = frozenset({"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"})
"""What a region says to good credentials of an account that has not opted into it."""


def not_enabled(region: str, why: str) -> errors.RegionError:
    """Return the error for a region that does not accept good credentials.

    Only regions of the partition ``aws`` can be enabled; others want credentials of their own partition.
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


def identity(session: boto3.Session, region: str | None = None) -> Identity:
    """Return account and ARN of the caller (sts:GetCallerIdentity, which needs no permission).

    Raises
    ------
    vmsnix_ops.errors.RegionError
        The region is not enabled for the account: it takes good credentials for unknown ones.
    vmsnix_ops.errors.CredentialsError
        The credentials are no good.
    """
    try:
        return _asked(session, region)
    except errors.CredentialsError as error:
        region = region or session.region_name
        enabled = _always_enabled(region)
        if error.code not in REFUSED or region in (None, enabled):
            raise
        try:
            _asked(session, enabled)
        except errors.AwsError:
            raise error from None
        raise not_enabled(region, error.why) from error


_ALWAYS_ENABLED = {
    "aws": "us-east-1",
    "aws-cn": "cn-north-1",
    "aws-eusc": "eusc-de-east-1",
    "aws-us-gov": "us-gov-west-1",
}


def _always_enabled(region: str | None) -> str | None:
    """Return a region of the same partition that every account has; the region itself where none is known.

    Credentials of one partition are never sent to another.
    """
    return _ALWAYS_ENABLED.get(partition_of(region), region) if region else "us-east-1"


def _asked(session: boto3.Session, region: str | None) -> Identity:
    with calling("read the caller's identity"):
        answer = client(session, "sts", region).get_caller_identity()
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    return Identity(answer["Account"], answer["Arn"], skew)


# Checks of credentials, clock, account and region.


MOST_SKEW_SECONDS = 5 * 60.0  # signatures are refused beyond
NOTICEABLE_SKEW_SECONDS = 60.0
LONG_ENOUGH_SECONDS = 60 * 60.0  # an import has this long as its deadline


def check_region_name(region: str) -> Check:
    """Check whether there is such a region. Asks botocore, not AWS."""
    known = known_regions()
    if region in known:
        return Check("region name", "pass", region)
    raise errors.RegionError(
        f"Unknown AWS region {region!r}.",
        why=errors.nearest(region, known) or "It is not in botocore's list of regions.",
        fix="Check the name. If the region is new, update botocore.",
    )


def check_credentials(session: boto3.Session, region: str) -> Check:
    """Check whether the credentials are good, whose they are, and how long they are valid."""
    who = identity(session, region)
    facts = {"account": who.account, "arn": who.arn, "identity": who}
    expires = expiry(session)
    if expires is None:
        temporary = "/assumed-role/" in who.arn or ":assumed-role/" in who.arn
        note = "; temporary, expiry unknown" if temporary else ""
        return Check("credentials", "pass", who.arn + note, facts=facts)
    left = (expires - datetime.now(UTC)).total_seconds()
    evidence = f"{who.arn}; valid for {counted(round(max(left, 0) / 60), 'minute')}"
    if left < LONG_ENOUGH_SECONDS:
        fix = (
            "Log in again before a long run. If the credentials expire, run it again: it continues where it "
            "stopped."
        )
        return Check("credentials", "warn", evidence, fix, facts=facts)
    return Check("credentials", "pass", evidence, facts=facts)


def expiry(session: boto3.Session) -> datetime | None:
    """Return when the credentials expire, in UTC; ``None`` when they do not, or nobody knows."""
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


def check_clock(who: Identity) -> Check:
    """Check whether this machine's clock agrees with AWS's."""
    ahead = who.skew_seconds
    evidence = f"{counted(round(abs(ahead)), 'second')} {'ahead of' if ahead >= 0 else 'behind'} AWS"
    if abs(ahead) < NOTICEABLE_SKEW_SECONDS:
        return Check("clock", "pass", evidence)
    fix = "Set this machine's clock (NTP): AWS refuses requests that are five minutes off."
    return Check("clock", "fail" if abs(ahead) >= MOST_SKEW_SECONDS else "warn", evidence, fix)


def check_account(number: str, allowed: tuple[str, ...]) -> Check:
    """Check whether this is one of the accounts that may be used."""
    if not allowed:
        return Check("account", "pass", f"{number} (allowed_accounts is not set)")
    if number in allowed:
        return Check("account", "pass", f"{number} is allowed")
    raise errors.CredentialsError(
        f"The account {number} is not allowed.",
        why=f"allowed_accounts is {', '.join(allowed)}.",
        fix="Use credentials of an allowed account, or change allowed_accounts in vmsnix.toml.",
    )


@needs("ec2:DescribeRegions")
def check_region(ec2: EC2Client, name: str) -> Check:
    """Check whether the region is enabled for the account."""
    try:
        with calling(f"read the region {name}"):
            answer = ec2.describe_regions(RegionNames=[name], AllRegions=True)
    except errors.AwsError as error:
        if error.code in {*REFUSED, "InvalidParameterValue"}:
            raise not_enabled(name, error.why) from error
        raise
    status = answer["Regions"][0].get("OptInStatus", "opt-in-not-required")
    if status == "not-opted-in":
        raise not_enabled(name, f"Its status is {status}.")
    return Check("region", "pass", f"{name}: {status}")
