"""AWS's regions and partitions, from botocore's list."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from botocore.loaders import Loader


@lru_cache
def _partitions() -> dict[str, str]:
    """Return the partition of each region."""
    data: dict[str, Any] = Loader().load_data("endpoints")
    return {region: entry["partition"] for entry in data["partitions"] for region in entry["regions"]}


def region_exists(region: str) -> bool:
    """Return whether AWS has this region."""
    return region in _partitions()


def partition_of(region: str) -> str:
    """Return the partition of a region: ``aws``, ``aws-cn``, ``aws-us-gov``, ..."""
    return _partitions().get(region, "aws")


def regions_of(partition: str) -> list[str]:
    """Return the regions of a partition, sorted."""
    return sorted(region for region, name in _partitions().items() if name == partition)


def in_partition(arn: str, region: str) -> str:
    """Return an ARN with the partition of a region. An account of the sandbox is in every partition."""
    return f"arn:{partition_of(region)}:{arn.split(':', 2)[2]}" if arn.startswith("arn:") else arn
