"""Service Quotas: those that preflight reads.

The table ``quotas`` of an account and region overrides the defaults; its keys are "service/code". Sources:
GetServiceQuota, ListServiceQuotas, GetAWSDefaultServiceQuota in the Service Quotas API Reference; "Amazon EC2
endpoints and quotas" and "Amazon EBS endpoints and quotas" in the AWS General Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params


SERVICE_NAMES = {
    "ec2": "Amazon Elastic Compute Cloud (Amazon EC2)",
    "ebs": "Amazon Elastic Block Store (Amazon EBS)",
}
DEFAULTS = {
    ("ec2", "L-B665C33B"): ("AMIs", 50_000.0),
    ("ec2", "L-0E3CBAB9"): ("Public AMIs", 5.0),
    ("ebs", "L-309BACF6"): ("Snapshots per Region", 100_000.0),
}


def quota_value(context: Context, service: str, code: str) -> float:
    """Return the value of a quota for the account in the region."""
    own: float = context.table("quotas").get(f"{service}/{code}", DEFAULTS[service, code][1])
    return own


def _quota_view(context: Context, service: str, code: str, number: float) -> dict[str, Any]:
    return {
        "ServiceCode": service,
        "ServiceName": SERVICE_NAMES[service],
        "QuotaArn": context.arn("servicequotas", f"{service}/{code}"),
        "QuotaCode": code,
        "QuotaName": DEFAULTS[service, code][0],
        "Value": number,
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }


def _quota_key(params: Params) -> tuple[str, str]:
    key = (params["ServiceCode"], params["QuotaCode"])
    if key not in DEFAULTS:
        raise AwsError(
            "NoSuchResourceException", "The request failed because the specified quota does not exist."
        )
    return key


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
