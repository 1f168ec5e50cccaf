"""The AWS regions and partitions in botocore's data. No call is made to AWS."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from vmsnix_ops.errors import ParameterError, VmsnixError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

_REGION = re.compile(r"[a-z]{2}(?:-[a-z]{2,8}){1,2}-\d[a-z]?")


def looks_like_region(text: str) -> bool:
    """Return whether a text has the form of a region or an availability zone, such as ``us-gov-west-1``."""
    return _REGION.fullmatch(text) is not None


@cache
def _partitions() -> dict[str, str]:
    import botocore.session

    session = botocore.session.Session()
    return {
        region: partition
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    }


@cache
def known_regions() -> frozenset[str]:
    """Return every region in botocore's data, of all partitions."""
    return frozenset(_partitions())


def check_region_name(
    region: str, shown: str = "", *, error: type[VmsnixError] = ParameterError, likely: Iterable[str] = ()
) -> None:
    """Refuse a region that is not in botocore's data, and name the nearest one.

    `shown` is the name as the error shows it, by default in quotes; `error` is the class of the error. The
    regions in `likely` are suggested first.
    """
    if region not in known_regions():
        raise error(
            f"{shown or repr(region)} is not an AWS region.",
            why=nearest(region, likely)
            or nearest(region, known_regions())
            or "It is not in botocore's list of regions.",
            fix="Check the name. If the region is new, update botocore.",
        )


@cache
def partitions() -> tuple[str, ...]:
    """Return every partition in botocore's data: ``aws``, ``aws-cn``, ``aws-us-gov``, ``aws-eusc``, ..."""
    import botocore.session

    return tuple(botocore.session.Session().get_available_partitions())


@cache
def partition_of(region: str) -> str:
    """Return the partition of a region; of a region that is not in botocore's data, by its name.

    >>> partition_of("cn-north-1"), partition_of("us-gov-east-1"), partition_of("eusc-de-east-1")
    ('aws-cn', 'aws-us-gov', 'aws-eusc')
    """
    if region in _partitions():
        return _partitions()[region]
    import botocore.session
    from botocore.exceptions import UnknownRegionError

    try:
        return str(botocore.session.Session().get_partition_for_region(region))
    except UnknownRegionError:
        return "aws"


_CONSOLES = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
    "aws-eusc": "console.amazonaws-eusc.eu",
}


def ami_url(region: str, ami_id: str) -> str:
    """Return the address of an AMI in the AWS console; empty if that of its partition is not known.

    Source: "AWS Management Console endpoints and quotas" in the AWS General Reference.
    """
    host = _CONSOLES.get(partition_of(region), "") if looks_like_region(region) else ""
    if not host or not re.fullmatch(r"ami-[0-9a-f]+", ami_id):
        return ""
    return f"https://{region}.{host}/ec2/home?region={region}#ImageDetails:imageId={ami_id}"
