"""Check quotas, and whether AMIs can be public.

Quota codes: "Amazon EC2 endpoints and quotas" in the AWS General Reference; the limit of 100
pending snapshots: "Quotas for EBS direct APIs" there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.checks import CheckResult
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.images import list_amis
from vmsnix_ops.aws.session import calling

if TYPE_CHECKING:
    from types_boto3_ec2.client import EC2Client
    from types_boto3_service_quotas.client import ServiceQuotasClient

AMIS, PUBLIC_AMIS = "L-B665C33B", "L-0E3CBAB9"
PENDING_SNAPSHOTS = 100
NEARLY = 0.9  # of a quota


@needs("ec2:DescribeImages", "servicequotas:GetServiceQuota")
def check_quotas(
    ec2: EC2Client, service_quotas: ServiceQuotasClient, *, public: bool, one_more: bool = True
) -> CheckResult:
    """Check that the quotas allow one more AMI, one more public AMI, or both."""
    found = list_amis(ec2)
    counted = [("AMIs", AMIS, len(found))] if one_more else []
    if public:
        counted.append(("public AMIs", PUBLIC_AMIS, sum(ami.public for ami in found)))
    lines, full, nearly = [], [], False
    for what, code, number in counted:
        with calling(f"read the quota of {what}"):
            answer = service_quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        most = int(answer["Quota"]["Value"])
        lines.append(f"{number} of {most} {what}")
        nearly |= number >= most * NEARLY
        if number >= most:
            full.append(what)
    fix = "Deregister AMIs that nothing needs, or request a higher quota from AWS."
    if full:
        raise errors.QuotaError(
            f"The quota for {' and '.join(full)} is reached.", why=", ".join(lines), fix=fix
        )
    return CheckResult("quotas", "warn" if nearly else "pass", ", ".join(lines), fix if nearly else "")


@needs("ec2:DescribeSnapshots")
def check_pending_snapshots(ec2: EC2Client) -> CheckResult:
    """Check that there are not too many pending snapshots to start another one."""
    with calling("count pending snapshots"):
        pages = ec2.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=[{"Name": "status", "Values": ["pending"]}]
        )
        number = sum(len(page["Snapshots"]) for page in pages)
    text = f"{number} of {PENDING_SNAPSHOTS}"
    if number < PENDING_SNAPSHOTS * NEARLY:
        return CheckResult("pending snapshots", "pass", text)
    fix = "Delete those of abandoned uploads. vmsnix audit lists them."
    return CheckResult("pending snapshots", "fail" if number >= PENDING_SNAPSHOTS else "warn", text, fix)


@needs("ec2:GetImageBlockPublicAccessState", "ec2:GetEbsEncryptionByDefault")
def check_public_sharing(ec2: EC2Client, *, public: bool) -> CheckResult:
    """Check whether AMIs can be public here; fail only if the job makes one public."""
    region = ec2.meta.region_name
    with calling("check whether AMIs may be public"):
        state = ec2.get_image_block_public_access_state()
        encryption = ec2.get_ebs_encryption_by_default()
    blocked = state["ImageBlockPublicAccessState"] == "block-new-sharing"
    encrypted = encryption["EbsEncryptionByDefault"]
    facts = [
        f"block public access for AMIs is {'on' if blocked else 'off'}",
        f"snapshots are {'' if encrypted else 'not '}encrypted by default",
    ]
    text = "; ".join(facts)
    if not public:
        return CheckResult("public AMIs", "pass", f"not requested; {text}")
    if blocked:
        raise errors.AwsError(
            f"AMIs cannot be public in {region}.",
            why="Block public access for AMIs is on.",
            fix="Turn it off (aws ec2 disable-image-block-public-access), or leave the AMI private.",
            code="OperationNotPermitted",
        )
    if encrypted:
        raise errors.AwsError(
            f"AMIs cannot be public in {region}.",
            why="Snapshots are encrypted by default here, and an AMI with encrypted snapshots cannot be "
            "public.",
            fix="Use an account or region without encryption by default, or leave the AMI private.",
            code="InvalidParameter",
        )
    return CheckResult("public AMIs", "pass", text)
