"""AWS's limits on requests, which are on with ``limits="aws"``, in sandbox time.

Each limit is a token bucket: every request takes a token, and tokens are added at a constant rate. Sources:

- EBS direct APIs: the quotas of Amazon EBS in Service Quotas, requests a second; the documentation of
  RequestThrottledException in botocore's model has its reasons and its text. A bucket contains the tokens of
  one second: AWS documents no other burst.
- EC2: "Request throttling for the Amazon EC2 API" in the Amazon EC2 Developer Guide has the sizes and refill
  rates of all buckets. The code and its HTTP status are those of "Error codes for the Amazon EC2 API".
- Copies of snapshots and AMIs: AWS publishes no duration, except that of a time-based copy. The figures agree
  with public reports: AMIs of 2 GiB whose copies take longer than 3 minutes in some regions (pull request
  603 of bottlerocket-os/twoliter).

Two quotas count resources and are always on: 100 pending snapshots, and 20 copies of snapshots to a region.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.quotas import quota_value

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


class Bucket(NamedTuple):
    """The size of a token bucket, and the tokens that are added in a second."""

    capacity: float
    refill: float


class Claim(NamedTuple):
    """The tokens that a request takes from one bucket, and the error when it has fewer."""

    name: tuple[str, ...]
    bucket: Bucket
    tokens: float
    error: AwsError


PER_SNAPSHOT = {"PutSnapshotBlock": "L-1774F84A", "GetSnapshotBlock": "L-028ACFB9"}
PER_ACCOUNT = {
    "PutSnapshotBlock": "L-AFAE1BE8",
    "GetSnapshotBlock": "L-C125AE42",
    "ListSnapshotBlocks": "L-18E976AB",
    "ListChangedBlocks": "L-DB2FBAA1",
    "StartSnapshot": "L-AFEBDF7A",
    "CompleteSnapshot": "L-1D4D9345",
}
"""The codes of the quotas of the EBS direct APIs, in requests a second."""

NON_MUTATING, UNFILTERED, MUTATING = Bucket(100, 20), Bucket(50, 10), Bucket(50, 5)
UNFILTERED_OPERATIONS = frozenset(
    {
        "DescribeInstanceStatus",
        "DescribeInstances",
        "DescribeNetworkInterfaces",
        "DescribeSecurityGroups",
        "DescribeSnapshots",
        "DescribeSpotInstanceRequests",
        "DescribeVolumes",
    }
)
"""Operations with a smaller bucket for requests without filters and without pages."""

EC2_OPERATIONS = {
    "CopyImage": Bucket(100, 1),
    "CreateLaunchTemplateVersion": Bucket(100, 5),
    "CreateSnapshot": Bucket(100, 5),
    "CreateTags": Bucket(100, 10),
    "CreateVolume": Bucket(100, 5),
    "DeleteSnapshot": Bucket(100, 5),
    "DeleteTags": Bucket(100, 10),
    "DeleteVolume": Bucket(100, 5),
    "DeregisterImage": Bucket(100, 5),
    "DisableImageBlockPublicAccess": Bucket(1, 0.1),
    "DisableSnapshotBlockPublicAccess": Bucket(1, 0.1),
    "EnableImageBlockPublicAccess": Bucket(1, 0.1),
    "EnableSnapshotBlockPublicAccess": Bucket(1, 0.1),
    "ModifyImageAttribute": Bucket(100, 5),
    "ModifyInstanceMetadataOptions": Bucket(100, 5),
    "ModifyLaunchTemplate": Bucket(100, 5),
    "ModifySnapshotAttribute": Bucket(100, 5),
    "RunInstances": Bucket(5, 2),
    "StartInstances": Bucket(5, 2),
    "TerminateInstances": Bucket(100, 5),
}
"""Operations with a bucket of their own; every other one has that of its category."""

INSTANCES = {
    "RunInstances": Bucket(1000, 2),
    "StartInstances": Bucket(1000, 2),
    "StopInstances": Bucket(1000, 20),
    "TerminateInstances": Bucket(1000, 20),
}
"""A second bucket of these operations, from which each instance takes a token."""

COPY_SECONDS, COPY_SECONDS_PER_GIB = 240.0, 30.0


class Limits:
    """The token buckets of one sandbox."""

    def __init__(self) -> None:
        self._levels: dict[tuple[str, ...], tuple[float, datetime]] = {}  # tokens at a time
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Fill all buckets."""
        with self._lock:
            self._levels.clear()

    def check(self, context: Context, params: Params) -> None:
        """Take the tokens of a request.

        Raises
        ------
        AwsError
            ``RequestThrottledException`` or ``RequestLimitExceeded``. The request took no tokens.
        """
        if context.service not in CLAIMS:
            return
        claims = CLAIMS[context.service](context, params)
        now = context.clock.now()
        with self._lock:
            left = {}
            for claim in claims:
                tokens, at = self._levels.get(claim.name, (claim.bucket.capacity, now))
                tokens = min(claim.bucket.capacity, tokens + context.clock.age(at) * claim.bucket.refill)
                if tokens < claim.tokens:
                    raise claim.error
                left[claim.name] = (tokens - claim.tokens, now)
            self._levels |= left


def _ebs_claims(context: Context, params: Params) -> list[Claim]:
    name, text = context.operation, "The number of API requests has exceeded the maximum allowed limit"

    def claim(code: str, reason: str, where: str, *owner: str) -> Claim:
        a_second = quota_value(context, "ebs", code)
        error = AwsError("RequestThrottledException", f"{text} for the {where}.", Reason=reason)
        return Claim(("ebs", name, *owner), Bucket(a_second, a_second), 1, error)

    of_account = claim(PER_ACCOUNT[name], "ACCOUNT_THROTTLED", "account", context.account, context.region)
    if name not in PER_SNAPSHOT:
        return [of_account]
    of_snapshot = claim(PER_SNAPSHOT[name], "RESOURCE_LEVEL_THROTTLE", "snapshot", params["SnapshotId"])
    return [of_snapshot, of_account]


def _ec2_claims(context: Context, params: Params) -> list[Claim]:
    name = context.operation
    error = AwsError("RequestLimitExceeded", "Request limit exceeded.", status=503)
    bucket = EC2_OPERATIONS.get(name)
    if bucket is None:
        reads = name.startswith(("Describe", "Get", "List", "Search"))
        whole = not (params.get("Filters") or params.get("MaxResults") or params.get("NextToken"))
        bucket = MUTATING if not reads else NON_MUTATING
        bucket = UNFILTERED if whole and name in UNFILTERED_OPERATIONS else bucket
    of = (context.account, context.region)
    claims = [Claim(("ec2", name, *map(str, bucket), *of), bucket, 1, error)]
    if name in INSTANCES:
        instances = float(params.get("MaxCount") or len(params.get("InstanceIds") or ()))
        claims.append(Claim(("instances", name, *of), INSTANCES[name], instances, error))
    return claims


CLAIMS = {"ebs": _ebs_claims, "ec2": _ec2_claims}


def copy_seconds(minutes: int | None, gib: float) -> float:
    """Return how long a snapshot is copied.

    Parameters
    ----------
    minutes
        The completion duration of a time-based copy; None for another copy.
    gib
        GiB that the snapshot stores.
    """
    return minutes * 60.0 if minutes else COPY_SECONDS + COPY_SECONDS_PER_GIB * gib
