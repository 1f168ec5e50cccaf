"""Which regions there are, from botocore's own list."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from botocore.loaders import Loader

GLOBAL_SERVICES = frozenset({"iam"})


@lru_cache
def _partitions() -> dict[str, str]:
    """Map each region to its partition."""
    data: dict[str, Any] = Loader().load_data("endpoints")
    return {
        region: partition["partition"] for partition in data["partitions"] for region in partition["regions"]
    }


def region_exists(region: str) -> bool:
    """Return whether AWS has such a region."""
    return region in _partitions()


def partition_of(region: str) -> str:
    """Return the partition of a region: ``aws``, ``aws-cn``, ``aws-us-gov``, ..."""
    return _partitions().get(region, "aws")


def regions_of(partition: str) -> list[str]:
    """Return the regions of a partition, sorted."""
    return sorted(region for region, its_partition in _partitions().items() if its_partition == partition)


def in_partition(arn: str, region: str) -> str:
    """Return an ARN as a region shows it: the accounts of the sandbox are in every partition."""
    return f"arn:{partition_of(region)}:{arn.split(':', 2)[2]}" if arn.startswith("arn:") else arn
