"""The caller: which region checks credentials that another region refuses."""

from __future__ import annotations

import pytest

from vmsnix_ops.aws import identity


@pytest.mark.parametrize(
    ("region", "elsewhere"),
    [
        ("me-south-1", "us-east-1"),
        ("cn-northwest-1", "cn-north-1"),
        ("us-gov-east-1", "us-gov-west-1"),
        ("nowhere-1", "us-east-1"),
        (None, "us-east-1"),
    ],
)
def test_credentials_are_checked_within_their_partition(region: str | None, elsewhere: str) -> None:
    assert identity._always_enabled(region) == elsewhere
