"""Checks of credentials, clock, account and region."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import REFUSED, Identity, identity, not_enabled
from vmsnix_ops.aws.session import Client, calling
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import known_regions

if TYPE_CHECKING:
    import boto3

MOST_SKEW_SECONDS = 5 * 60.0  # signatures are refused beyond
NOTICEABLE_SKEW_SECONDS = 60.0
LONG_ENOUGH_SECONDS = 60 * 60.0  # an import has this long as its deadline


def region_name(region: str) -> Check:
    """Check whether there is such a region. Asks botocore, not AWS."""
    known = known_regions()
    if region in known:
        return Check("region name", "pass", region)
    raise errors.RegionError(
        f"There is no AWS region {region!r}.",
        why=errors.nearest(region, known) or "botocore's list of regions does not have it.",
        cure="Check the name; if the region is brand new, update botocore.",
    )


def credentials(session: boto3.Session, region: str) -> Check:
    """Check whether the credentials are good, whose they are, and how long they are valid."""
    who = identity(session, region)
    facts = {"account": who.account, "arn": who.arn, "identity": who}
    expires = expiry(session)
    if expires is None:
        temporary = "/assumed-role/" in who.arn or ":assumed-role/" in who.arn
        note = "; temporary, their expiry is not known here" if temporary else ""
        return Check("credentials", "pass", who.arn + note, facts=facts)
    left = (expires - datetime.now(UTC)).total_seconds()
    evidence = f"{who.arn}; valid for {counted(round(max(left, 0) / 60), 'minute')}"
    if left < LONG_ENOUGH_SECONDS:
        cure = "Log in again before a long run; a run that they end is continued by running it again."
        return Check("credentials", "warn", evidence, cure, facts=facts)
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


def clock(who: Identity) -> Check:
    """Check whether this machine's clock agrees with AWS's."""
    ahead = who.skew_seconds
    evidence = f"{counted(round(abs(ahead)), 'second')} {'ahead of' if ahead >= 0 else 'behind'} AWS"
    if abs(ahead) < NOTICEABLE_SKEW_SECONDS:
        return Check("clock", "pass", evidence)
    cure = "Set this machine's clock (NTP): AWS refuses requests that are five minutes off."
    return Check("clock", "fail" if abs(ahead) >= MOST_SKEW_SECONDS else "warn", evidence, cure)


def account(number: str, allowed: tuple[str, ...]) -> Check:
    """Check whether this is one of the accounts that may be used."""
    if not allowed:
        return Check("account", "pass", f"{number} (no allowed_accounts set: any account will do)")
    if number in allowed:
        return Check("account", "pass", f"{number} is allowed")
    raise errors.CredentialsError(
        f"The account {number} is not one of those that may be used here.",
        why=f"allowed_accounts has {', '.join(allowed)}.",
        cure="Use the credentials of one of these accounts, or change allowed_accounts in vmsnix.toml.",
    )


@needs("ec2:DescribeRegions")
def region(ec2: Client, name: str) -> Check:
    """Check whether the region is enabled for the account."""
    try:
        with calling(f"look at the region {name}"):
            answer = ec2.describe_regions(RegionNames=[name], AllRegions=True)
    except errors.AwsError as error:
        if error.code in {*REFUSED, "InvalidParameterValue"}:
            raise not_enabled(name, error.why) from error
        raise
    status = answer["Regions"][0].get("OptInStatus", "opt-in-not-required")
    if status == "not-opted-in":
        raise not_enabled(name, f"Its status is {status}.")
    return Check("region", "pass", f"{name}: {status}")
