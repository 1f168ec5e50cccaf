"""Deprecation dates and deregistration protection of AMIs.

A deprecated AMI can still be launched with its ID; other accounts no longer see it in lists. A protected AMI
cannot be deregistered until the protection is off.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.error_codes import AMI_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, retry

if TYPE_CHECKING:
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami

LONGEST = timedelta(days=3652)
LONGEST_PUBLIC = timedelta(days=730)  # counted from the AMI's creation


def to_the_minute(moment: datetime) -> datetime:
    """Return a deprecation date as AWS stores it: in UTC, rounded to the nearest minute.

    >>> to_the_minute(datetime(2027, 3, 1, 12, 0, 31, tzinfo=UTC)).isoformat()
    '2027-03-01T12:01:00+00:00'
    """
    later = moment.astimezone(UTC) + timedelta(seconds=30)
    return later.replace(second=0, microsecond=0)


def check_deprecation_date(ami: Ami, moment: datetime, *, public: bool) -> None:
    """Refuse a date that AWS would refuse: one that has passed, or is too far away.

    That is more than ten years from now, or for a public AMI more than two years after its creation.
    """
    now = datetime.now(UTC)
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
    """Set the deprecation date of an AMI. Safe to run twice: the second call sets the same date."""
    with calling(f"set the deprecation date of {ami_id}"):
        retry(
            lambda: ec2.enable_image_deprecation(ImageId=ami_id, DeprecateAt=to_the_minute(moment)),
            AMI_NOT_FOUND,
        )


@needs("ec2:DisableImageDeprecation")
def undeprecate(ec2: EC2Client, ami_id: str) -> None:
    """Remove the deprecation date. Safe to run twice."""
    with calling(f"remove the deprecation date of {ami_id}"):
        ec2.disable_image_deprecation(ImageId=ami_id)


@needs("ec2:EnableImageDeregistrationProtection")
def protect(ec2: EC2Client, ami_id: str) -> None:
    """Protect an AMI from deregistration. Safe to run twice."""
    with calling(f"turn on the deregistration protection of {ami_id}"):
        retry(
            lambda: ec2.enable_image_deregistration_protection(ImageId=ami_id, WithCooldown=False),
            AMI_NOT_FOUND,
        )


@needs("ec2:DisableImageDeregistrationProtection")
def unprotect(ec2: EC2Client, ami_id: str) -> None:
    """Turn off the protection, at once or 24 hours later if it has a cooldown. Safe to run twice."""
    with calling(f"turn off the deregistration protection of {ami_id}"):
        ec2.disable_image_deregistration_protection(ImageId=ami_id)
