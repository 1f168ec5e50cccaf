"""Which AWS regions there are, as far as botocore knows; AWS is not asked."""

from __future__ import annotations

from functools import cache


@cache
def known_regions() -> frozenset[str]:
    """Return every region that botocore knows, in all partitions."""
    import botocore.session

    session = botocore.session.Session()
    return frozenset(
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    )
