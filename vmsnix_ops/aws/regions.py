"""Which regions a job works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import calling, client

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3

ALL = "all"
ANYWHERE = "us-east-1"


@needs("ec2:DescribeRegions")
def chosen(session: boto3.Session, asked: Iterable[str], *, home: str | None = None) -> tuple[str, ...]:
    """Return the regions that were asked for, each once.

    Parameters
    ----------
    session
        Whose regions, and the default one.
    asked
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
    wanted, home = tuple(dict.fromkeys(asked)), home or session.region_name or ""
    if wanted == (ALL,):
        with calling("list the enabled regions"):
            answer = client(session, "ec2", home or ANYWHERE).describe_regions()
        return tuple(sorted(region["RegionName"] for region in answer["Regions"]))
    wanted = wanted or ((home,) if home else ())
    if not wanted:
        raise errors.ParameterError(
            "No region was given.",
            cure="Give regions (or all), set region in vmsnix.toml, or set AWS_REGION.",
        )
    known = {r for p in session.get_available_partitions() for r in session.get_available_regions("ec2", p)}
    for region in wanted:
        if region not in known:
            raise errors.RegionError(
                f"There is no AWS region {region!r}.",
                why=errors.nearest(region, known),
                cure="Check the name; all stands for every enabled region.",
            )
    return wanted
