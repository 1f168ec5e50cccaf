"""Which regions a job works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import identity
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import patiently
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.region_names import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    from types_boto3_ec2.client import EC2Client

ALL = "all"
ANYWHERE = "us-east-1"


def home(session: boto3.Session, *names: str | None) -> str:
    """Return the first region that is given, else AWS's own default.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is none.
    """
    found = next((name for name in (*names, session.region_name) if name), "")
    if not found:
        raise errors.ParameterError(
            "No region given.", fix="Add --region NAME, set region in vmsnix.toml, or set AWS_REGION."
        )
    return found


def chosen(session: boto3.Session, names: Iterable[str], *, home: str | None = None) -> tuple[str, ...]:
    """Return the regions that were asked for, each once; ``["all"]`` becomes every enabled one.

    Parameters
    ----------
    session, names, home
        As for `asked`.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        None was given and there is no default.
    vmsnix_ops.errors.RegionError
        There is no region of that name; names the nearest.
    """
    wanted = asked(session, names, home=home)
    if wanted != (ALL,):
        return wanted
    return enabled(client(session, "ec2", home or session.region_name or ANYWHERE))


def asked(session: boto3.Session, names: Iterable[str], *, home: str | None = None) -> tuple[str, ...]:
    """Return the regions that were asked for, each once; ``("all",)`` stays: every account has its own.

    Parameters
    ----------
    session
        Whose regions, and the default one.
    names
        Names; ``["all"]`` for every enabled one, empty for the home region.
    home
        The settings' region.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        None was given and there is no default.
    vmsnix_ops.errors.RegionError
        There is no region of that name; names the nearest.
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
    return named(wanted)


def named(names: Iterable[str]) -> tuple[str, ...]:
    """Return regions by name, each once. Asks botocore, not AWS.

    Raises
    ------
    vmsnix_ops.errors.RegionError
        There is no region of that name; names the nearest. Or the regions are in different partitions.
    """
    found = tuple(dict.fromkeys(names))
    for name in found:
        identity.check_region_name(name)
    partitions = {partition_of(name): name for name in reversed(found)}
    if len(partitions) > 1:
        raise errors.RegionError(
            "The regions are in different partitions.",
            why=", ".join(f"{name} is in {partition}" for partition, name in sorted(partitions.items()))
            + ".",
            fix="Run the job once per partition, with credentials of an account there.",
        )
    return found


@needs("ec2:DescribeRegions")
def enabled(ec2: EC2Client) -> tuple[str, ...]:
    """Return the regions that are enabled for an account."""
    with calling("list the enabled regions"):
        answer = patiently(ec2.describe_regions)
    return tuple(sorted(region["RegionName"] for region in answer["Regions"]))
