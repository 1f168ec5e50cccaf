"""Choose the regions of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import identity
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import call_with_retries
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.region_names import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    from types_boto3_ec2.client import EC2Client

ALL = "all"
ANY_REGION = "us-east-1"  # to list the enabled regions if no region is configured


def home_region(session: boto3.Session, *names: str | None) -> str:
    """Return the first region that is given, or the session's default region; refuse if there is none."""
    found = next((name for name in (*names, session.region_name) if name), "")
    if not found:
        raise errors.ParameterError(
            "No region given.", fix="Add --region NAME, set region in vmsnix.toml, or set AWS_REGION."
        )
    return found


def resolve_regions(
    session: boto3.Session, names: Iterable[str], *, home: str | None = None
) -> tuple[str, ...]:
    """Return the requested regions without duplicates; ``["all"]`` becomes all enabled regions."""
    wanted = requested_regions(session, names, home=home)
    if wanted != (ALL,):
        return wanted
    return enabled_regions(client(session, "ec2", home or session.region_name or ANY_REGION))


def requested_regions(
    session: boto3.Session, names: Iterable[str], *, home: str | None = None
) -> tuple[str, ...]:
    """Return the requested regions without duplicates, or ``("all",)``, which differs for each account.

    No names: the home region, else the session's default region.
    """
    wanted, home = tuple(names), home or session.region_name
    if wanted == (ALL,):
        return wanted
    wanted = wanted or ((home,) if home else ())
    if not wanted:
        raise errors.ParameterError(
            "No region given.",
            fix="Add --regions NAME,NAME (or all), set region in vmsnix.toml, or set AWS_REGION.",
        )
    return check_regions(wanted)


def check_regions(names: Iterable[str]) -> tuple[str, ...]:
    """Return the regions without duplicates; refuse unknown ones, and several partitions."""
    found = tuple(dict.fromkeys(names))
    for name in found:
        identity.check_region_name(name)
    partitions = {partition_of(name): name for name in reversed(found)}
    if len(partitions) > 1:
        listed = ", ".join(f"{name} is in {partition}" for partition, name in sorted(partitions.items()))
        raise errors.InvalidRegionError(
            "The regions are in different partitions.",
            why=f"{listed}.",
            fix="Run the job once per partition, with credentials of an account there.",
        )
    return found


@needs("ec2:DescribeRegions")
def enabled_regions(ec2: EC2Client) -> tuple[str, ...]:
    """Return the regions that are enabled for an account."""
    with calling("list the enabled regions"):
        answer = call_with_retries(ec2.describe_regions)
    return tuple(sorted(region["RegionName"] for region in answer["Regions"]))
