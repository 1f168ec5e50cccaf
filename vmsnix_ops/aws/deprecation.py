"""How an AMI's end is announced and its early end prevented: deprecation date, deregistration protection.

A deprecated AMI can still be launched by who knows its id; other accounts no longer see it in lists. A
protected one cannot be deregistered before the protection is lifted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, retrying

if TYPE_CHECKING:
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami

LONGEST = timedelta(days=3652)
LONGEST_PUBLIC = timedelta(days=730)  # counted from the AMI's creation
UNSEEN = "InvalidAMIID.NotFound"  # for a moment after a copy or a registration


def to_the_minute(moment: datetime) -> datetime:
    """Return a deprecation date as AWS keeps it: in UTC, rounded to the nearest minute.

    Examples
    --------
    >>> to_the_minute(datetime(2027, 3, 1, 12, 0, 31, tzinfo=UTC)).isoformat()
    '2027-03-01T12:01:00+00:00'
    """
    later = moment.astimezone(UTC) + timedelta(seconds=30)
    return later.replace(second=0, microsecond=0)


def check_date(ami: Ami, moment: datetime, *, public: bool, now: datetime | None = None) -> None:
    """Refuse a date that AWS would refuse, before anything is done.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        It has passed, or is too far away: ten years, and for a public AMI two years from its creation.
    """
    now = now or datetime.now(UTC)
    latest = ami.created_at + LONGEST_PUBLIC if public else now + LONGEST
    if moment <= now:
        raise errors.ParameterError(
            f"The deprecation date {moment:%Y-%m-%d %H:%M} UTC has passed.",
            why=f"{ami.ami_id} was created on {ami.created_at:%Y-%m-%d}.",
            fix="Use more days, or promote a newer AMI.",
        )
    if moment > latest:
        raise errors.ParameterError(
            f"The deprecation date {moment:%Y-%m-%d %H:%M} UTC is too far away.",
            why=f"AWS allows {latest:%Y-%m-%d} at the latest for this {'public ' if public else ''}AMI.",
            fix="Use fewer days.",
        )


@needs("ec2:EnableImageDeprecation")
def deprecate(ec2: EC2Client, ami_id: str, moment: datetime) -> None:
    """Set the date from which an AMI is deprecated. Safe to run twice: the later call sets the same date."""
    with calling(f"set the deprecation date of {ami_id}"):
        retrying(
            lambda: ec2.enable_image_deprecation(ImageId=ami_id, DeprecateAt=to_the_minute(moment)), UNSEEN
        )


@needs("ec2:DisableImageDeprecation")
def undeprecate(ec2: EC2Client, ami_id: str) -> None:
    """Take the deprecation date away. Safe to run twice."""
    with calling(f"remove the deprecation date of {ami_id}"):
        ec2.disable_image_deprecation(ImageId=ami_id)


@needs("ec2:EnableImageDeregistrationProtection")
def protect(ec2: EC2Client, ami_id: str, *, cooldown: bool = False) -> None:
    """Protect an AMI from being deregistered. Safe to run twice.

    Parameters
    ----------
    ec2, ami_id
        Which one.
    cooldown
        Whether the protection goes on for 24 hours after it was lifted.
    """
    with calling(f"turn on the deregistration protection of {ami_id}"):
        retrying(
            lambda: ec2.enable_image_deregistration_protection(ImageId=ami_id, WithCooldown=cooldown), UNSEEN
        )


@needs("ec2:DisableImageDeregistrationProtection")
def unprotect(ec2: EC2Client, ami_id: str) -> None:
    """Lift the protection, at once or, when it has a cooldown, 24 hours later. Safe to run twice."""
    with calling(f"turn off the deregistration protection of {ami_id}"):
        ec2.disable_image_deregistration_protection(ImageId=ami_id)
