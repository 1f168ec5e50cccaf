"""Service Quotas, and the request limits of AWS, which ``limits="aws"`` enables.

The table ``quotas`` of an account and region overrides the default quotas; its keys are "service/code". Each
limit is a token bucket: a request takes tokens, and tokens are added at a constant rate, per second of
sandbox time. Sources:

- Quotas: the operations in the Service Quotas API Reference; "Amazon EC2 endpoints and quotas" and "Amazon
  EBS endpoints and quotas" in the AWS General Reference.
- EBS direct APIs: the quotas of Amazon EBS in Service Quotas, in requests a second; the reasons and the text
  of RequestThrottledException in botocore's model. AWS documents no bursts, so a bucket contains the tokens
  of one second.
- EC2: "Request throttling for the Amazon EC2 API" in the Amazon EC2 Developer Guide has the sizes and refill
  rates of all buckets. The code and its HTTP status are those of "Error codes for the Amazon EC2 API".
- Copies of snapshots and AMIs: AWS publishes durations only for time-based copies. The durations here agree
  with public reports, such as copies of 2 GiB that took over 3 minutes in some regions (pull request 603 of
  bottlerocket-os/twoliter).

Two quotas on resources are always on: 100 pending snapshots, and 20 copies of snapshots to a region.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from vmsnix_ops.sandbox.core import ApiError, Paging, not_emulated, operation, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


SERVICE_NAMES = {
    "ec2": "Amazon Elastic Compute Cloud (Amazon EC2)",
    "ebs": "Amazon Elastic Block Store (Amazon EBS)",
}
DEFAULTS = {
    ("ec2", "L-B665C33B"): ("AMIs", 50_000.0, True),
    ("ec2", "L-0E3CBAB9"): ("Public AMIs", 5.0, True),
    ("ebs", "L-309BACF6"): ("Snapshots per Region", 100_000.0, True),
    ("ebs", "L-94D7AB7D"): ("Pending snapshots per account", 100.0, False),
    ("ebs", "L-AFEBDF7A"): ("StartSnapshot requests per account", 10.0, False),
    ("ebs", "L-1774F84A"): ("PutSnapshotBlock requests per snapshot", 1000.0, False),
    ("ebs", "L-AFAE1BE8"): ("PutSnapshotBlock requests per account", 1000.0, True),
    ("ebs", "L-1D4D9345"): ("CompleteSnapshot requests per account", 10.0, False),
    ("ebs", "L-18E976AB"): ("ListSnapshotBlocks requests per account", 50.0, False),
    ("ebs", "L-DB2FBAA1"): ("ListChangedBlocks requests per account", 50.0, False),
    ("ebs", "L-028ACFB9"): ("GetSnapshotBlock requests per snapshot", 1000.0, False),
    ("ebs", "L-C125AE42"): ("GetSnapshotBlock requests per account", 1000.0, True),
}
"""Name, default, and whether AWS raises the quota on request. The rates are requests a second."""

QUOTA_CODE = re.compile(r"L-[0-9A-F]{8}")
PAGES = Paging(  # text from memory
    *("MaxResults", 100, 100),
    lambda: ApiError("InvalidPaginationTokenException", "Invalid input was provided."),
)


def quota_value(context: Context, service: str, code: str) -> float:
    """Return the value of a quota for the account in the region."""
    value: float = context.table("quotas").get(f"{service}/{code}", DEFAULTS[service, code][1])
    return value


def _quota_view(context: Context, service: str, code: str, number: float) -> dict[str, Any]:
    return {
        "ServiceCode": service,
        "ServiceName": SERVICE_NAMES[service],
        "QuotaArn": context.arn("servicequotas", f"{service}/{code}"),
        "QuotaCode": code,
        "QuotaName": DEFAULTS[service, code][0],
        "Value": number,
        "Unit": "None",
        "Adjustable": DEFAULTS[service, code][2],
        "GlobalQuota": False,
    }


def _quota_key(params: Params) -> tuple[str, str]:
    service, code = params["ServiceCode"], params["QuotaCode"]
    if (service, code) in DEFAULTS:
        return service, code
    if QUOTA_CODE.fullmatch(code):
        raise not_emulated(f"the quota {service}/{code}")
    text = "The request failed because the specified quota does not exist."
    raise ApiError("NoSuchResourceException", text)


@operation("service-quotas", "GetServiceQuota", "ServiceCode QuotaCode")
def get_service_quota(context: Context, params: Params) -> dict[str, Any]:
    """Return the quota of the account."""
    service, code = _quota_key(params)
    return {"Quota": _quota_view(context, service, code, quota_value(context, service, code))}


@operation("service-quotas", "GetAWSDefaultServiceQuota", "ServiceCode QuotaCode")
def get_default_quota(context: Context, params: Params) -> dict[str, Any]:
    """Return the default of a quota."""
    service, code = _quota_key(params)
    return {"Quota": _quota_view(context, service, code, DEFAULTS[service, code][1])}


@operation("service-quotas", "ListServiceQuotas", "ServiceCode MaxResults NextToken")
def list_service_quotas(context: Context, params: Params) -> dict[str, Any]:
    """Return the account's quotas of a service. AWS lists many more."""
    return _page(context, params, lambda service, code: quota_value(context, service, code))


@operation("service-quotas", "ListAWSDefaultServiceQuotas", "ServiceCode MaxResults NextToken")
def list_default_quotas(context: Context, params: Params) -> dict[str, Any]:
    """Return the default quotas of a service. AWS lists many more."""
    return _page(context, params, lambda service, code: DEFAULTS[service, code][1])


def _page(context: Context, params: Params, value: Callable[[str, str], float]) -> dict[str, Any]:
    service = params["ServiceCode"]
    if service not in SERVICE_NAMES:
        raise not_emulated(f"the quotas of the service {service!r}")
    codes = sorted(code for owner, code in DEFAULTS if owner == service)
    views = [_quota_view(context, service, code, value(service, code)) for code in codes]
    return PAGES.page(views, params, "Quotas")


class TokenBucket(NamedTuple):
    """The size of a token bucket, and the tokens that are added in a second."""

    capacity: float
    refill: float


class Charge(NamedTuple):
    """The tokens that a request takes from one bucket, and the error if the bucket contains fewer."""

    name: tuple[str, ...]
    bucket: TokenBucket
    tokens: float
    error: ApiError


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

NON_MUTATING, UNFILTERED, MUTATING = TokenBucket(100, 20), TokenBucket(50, 10), TokenBucket(50, 5)
UNFILTERED_OPERATIONS = words(
    "DescribeInstanceStatus DescribeInstances DescribeNetworkInterfaces DescribeSecurityGroups "
    "DescribeSnapshots DescribeSpotInstanceRequests DescribeVolumes"
)
"""Operations with a smaller bucket for requests without filters and page size."""

EC2_OPERATIONS = {
    name: bucket
    for bucket, names in {
        TokenBucket(100, 1): "CopyImage",
        TokenBucket(100, 5): "CreateLaunchTemplateVersion CreateSnapshot CreateVolume DeleteSnapshot "
        "DeleteVolume DeregisterImage ModifyImageAttribute ModifyLaunchTemplate ModifySnapshotAttribute "
        "TerminateInstances",
        TokenBucket(100, 10): "CreateTags DeleteTags",
        TokenBucket(1, 0.1): "DisableImageBlockPublicAccess DisableSnapshotBlockPublicAccess "
        "EnableImageBlockPublicAccess EnableSnapshotBlockPublicAccess",
        TokenBucket(5, 2): "RunInstances StartInstances",
    }.items()
    for name in words(names)
}
"""Operations with other buckets than those of reading and changing operations."""

INSTANCES = {
    "RunInstances": TokenBucket(1000, 2),
    "StartInstances": TokenBucket(1000, 2),
    "StopInstances": TokenBucket(1000, 20),
    "TerminateInstances": TokenBucket(1000, 20),
}
"""The second bucket of these operations, from which a request takes one token for each instance."""

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
        """Take the tokens of a request; if there are too few, take none and raise the service's error."""
        if context.service not in CHARGES:
            return
        charges = CHARGES[context.service](context, params)
        now = context.clock.now()
        with self._lock:
            left = {}
            for charge in charges:
                tokens, at = self._levels.get(charge.name, (charge.bucket.capacity, now))
                tokens = min(charge.bucket.capacity, tokens + context.clock.age(at) * charge.bucket.refill)
                if tokens < charge.tokens:
                    raise charge.error
                left[charge.name] = (tokens - charge.tokens, now)
            self._levels |= left


def _ebs_charges(context: Context, params: Params) -> list[Charge]:
    name, text = context.operation, "The number of API requests has exceeded the maximum allowed limit"

    def charge(code: str, reason: str, scope: str, *scope_ids: str) -> Charge:
        rate = quota_value(context, "ebs", code)
        error = ApiError("RequestThrottledException", f"{text} for the {scope}.", Reason=reason)
        return Charge(("ebs", name, *scope_ids), TokenBucket(rate, rate), 1, error)

    charges = [charge(PER_ACCOUNT[name], "ACCOUNT_THROTTLED", "account", context.account, context.region)]
    if name in PER_SNAPSHOT:
        code, snapshot_id = PER_SNAPSHOT[name], params["SnapshotId"]
        charges.insert(0, charge(code, "RESOURCE_LEVEL_THROTTLE", "snapshot", snapshot_id))
    return charges


def _ec2_charges(context: Context, params: Params) -> list[Charge]:
    name = context.operation
    error = ApiError("RequestLimitExceeded", "Request limit exceeded.", status=503)
    bucket = EC2_OPERATIONS.get(name)
    if bucket is None:
        reads = name.startswith(("Describe", "Get", "List", "Search"))
        unfiltered = not (params.get("Filters") or params.get("MaxResults") or params.get("NextToken"))
        bucket = NON_MUTATING if reads else MUTATING
        bucket = UNFILTERED if unfiltered and name in UNFILTERED_OPERATIONS else bucket
    scope_ids = (context.account, context.region)
    charges = [Charge(("ec2", name, *map(str, bucket), *scope_ids), bucket, 1, error)]
    if name in INSTANCES:
        instances = float(params.get("MaxCount") or len(params.get("InstanceIds") or ()))
        charges.append(Charge(("instances", name, *scope_ids), INSTANCES[name], instances, error))
    return charges


CHARGES = {"ebs": _ebs_charges, "ec2": _ec2_charges}


def copy_seconds(minutes: int | None, gib: float) -> float:
    """Return how many seconds the copy of a snapshot with this many stored GiB takes.

    `minutes` is the completion duration of a time-based copy.
    """
    return minutes * 60.0 if minutes else COPY_SECONDS + COPY_SECONDS_PER_GIB * gib
