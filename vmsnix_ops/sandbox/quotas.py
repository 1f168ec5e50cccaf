"""Service Quotas: a few quotas of EC2 and EBS.

The table ``quotas`` of an account and region overrides the defaults; its keys are "service/code". Sources:
the operations in the Service Quotas API Reference; "Amazon EC2 endpoints and quotas" and "Amazon EBS
endpoints and quotas" in the AWS General Reference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, not_emulated, operation

if TYPE_CHECKING:
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
MAX_PAGE = 100


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
    values = {code: quota_value(context, service, code) for service, code in _codes_of(params["ServiceCode"])}
    return _page(context, params, values)


@operation("service-quotas", "ListAWSDefaultServiceQuotas", "ServiceCode MaxResults NextToken")
def list_default_quotas(context: Context, params: Params) -> dict[str, Any]:
    """Return the default quotas of a service. AWS lists many more."""
    values = {code: DEFAULTS[service, code][1] for service, code in _codes_of(params["ServiceCode"])}
    return _page(context, params, values)


def _codes_of(service: str) -> list[tuple[str, str]]:
    if service not in SERVICE_NAMES:
        raise not_emulated(f"the quotas of the service {service!r}")
    return sorted(key for key in DEFAULTS if key[0] == service)


def _page(context: Context, params: Params, values: dict[str, float]) -> dict[str, Any]:
    """Return one page of quotas. The token is the code of the first quota of the next page."""
    codes, token, size = list(values), params.get("NextToken"), params.get("MaxResults", MAX_PAGE)
    if token and token not in codes:
        raise ApiError("InvalidPaginationTokenException", "Invalid input was provided.")  # text from memory
    if not 1 <= size <= MAX_PAGE:
        text = f"maxResults must be between 1 and {MAX_PAGE}."  # text from memory
        raise ApiError("IllegalArgumentException", text)
    start = codes.index(token) if token else 0
    shown = codes[start : start + size]
    answer: dict[str, Any] = {
        "Quotas": [_quota_view(context, params["ServiceCode"], code, values[code]) for code in shown]
    }
    return answer | ({"NextToken": codes[start + size]} if start + size < len(codes) else {})
