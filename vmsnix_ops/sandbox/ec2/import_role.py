"""The service role of VM Import: may VM Import assume it, and what may it read.

Source: "Required permissions for VM Import/Export": the trust policy names ``vmie.amazonaws.com`` with the
external id ``vmimport``, the role's policy allows to read the bucket. The policy of the bucket counts too,
for the role and for its sessions. Assumption: the name of a session, which no page gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.iam import evaluation
from vmsnix_ops.sandbox.iam.simulation import documents_of
from vmsnix_ops.sandbox.s3 import bucket_policies

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

SERVICE = "vmie.amazonaws.com"
QUESTION = evaluation.Question("sts:AssumeRole", "*", {"sts:externalid": ["vmimport"]})


def check(context: Context, role_name: str, bucket: str, key: str) -> None:
    """Refuse a role that VM Import cannot use for a bucket.

    A role that reaches the bucket, but not this object of it, is found out later: then the task fails.

    Raises
    ------
    AwsError
        AWS has one text for all of it: no such role, VM Import may not assume it, the bucket is not its own.
    """
    reads = may(context, role_name, "s3:GetObject", f"{bucket}/{key}")
    reaches = any(
        may(context, role_name, action, bucket) for action in ("s3:GetBucketLocation", "s3:ListBucket")
    )
    if not reads and not reaches:
        raise AwsError(
            "InvalidParameter",
            f"The service role {role_name} provided does not exist or does not have sufficient permissions",
        )


def may(context: Context, role_name: str, action: str, resource: str) -> bool:
    """Tell whether VM Import, with this role, may do something to an S3 resource, such as ``bucket/key``."""
    role = context.table("roles", region="").get(role_name)
    if role is None or not evaluation.trusts(role.trust_policy, SERVICE, "", QUESTION):
        return False
    keys = {
        "aws:principalaccount": [context.account],
        "aws:principalarn": [role.arn],
        "aws:principalisawsservice": ["false"],
        "aws:principaltype": ["AssumedRole"],
        "aws:requestedregion": [context.region],
        "aws:securetransport": ["true"],
        "aws:viaawsservice": ["false"],
    }
    asked = evaluation.Question(action, f"arn:{context.partition}:s3:::{resource}", keys)
    session = f"arn:{context.partition}:sts::{context.account}:assumed-role/{role.name}/vmimport"
    return not bucket_policies.why_not(
        context.tables,
        asked,
        account=context.account,
        principal=session,
        documents=documents_of(context, role),
    )


def may_use_key(context: Context, role_name: str, action: str, key: str) -> bool:
    """Tell whether the role's own policies let it use a customer's key; key policies are not emulated."""
    role = context.table("roles", region="").get(role_name)
    if role is None:
        return False
    asked = evaluation.Question(action, key, {"aws:requestedregion": [context.region]})
    return evaluation.evaluate(documents_of(context, role), asked) == evaluation.ALLOWED
