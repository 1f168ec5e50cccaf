"""Managed policies attached to roles and users.

AWS's own policies can be attached by their ARN; what the best known of them allow is in `AWS_MANAGED`.
Sources: AttachRolePolicy, DetachRolePolicy, ListAttachedRolePolicies and the same for users in the IAM API
Reference; the AWS Managed Policy Reference.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..core import operation
from .common import PAGING, no_such, page, policy_of, role_of, user_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core import Context, Params
    from .state import Role, User

# Actions that AWS's own policies allow on all resources.
AWS_MANAGED = {
    "AdministratorAccess": ["*"],
    "AmazonEC2FullAccess": ["ec2:*", "elasticloadbalancing:*", "cloudwatch:*", "autoscaling:*"],
    "AmazonEC2ReadOnlyAccess": ["ec2:Describe*", "ec2:GetSecurityGroupsForVpc"],
    "AmazonS3FullAccess": ["s3:*", "s3-object-lambda:*"],
    "AmazonS3ReadOnlyAccess": ["s3:Get*", "s3:List*", "s3:Describe*"],
    "AmazonSSMReadOnlyAccess": ["ssm:Describe*", "ssm:Get*", "ssm:List*"],
}


def managed_document(context: Context, arn: str) -> str:
    """Return the JSON of a managed policy, the account's own or AWS's.

    Raises
    ------
    AwsError
        ``NoSuchEntity``.
    """
    prefix = f"arn:{context.partition}:iam::aws:policy/"
    if not arn.startswith(prefix):
        return policy_of(context, arn).document
    actions = AWS_MANAGED.get(arn.removeprefix(prefix))
    if actions is None:
        raise no_such(f"Policy {arn} does not exist or is not attachable.")
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _register(kind: str, member: str, find: Callable[[Context, str], Role | User]) -> None:
    """Register the three operations of one kind of owner."""

    def attach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = find(context, params[member]), params["PolicyArn"]
        managed_document(context, arn)
        if arn not in owner.attached_policies:
            owner.attached_policies.append(arn)
        return {}

    def detach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = find(context, params[member]), params["PolicyArn"]
        if arn not in owner.attached_policies:
            raise no_such(f"Policy {arn} was not found.")
        owner.attached_policies.remove(arn)
        return {}

    def list_all(context: Context, params: Params) -> dict[str, Any]:
        attached = find(context, params[member]).attached_policies
        shown = [{"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in attached]
        return page(shown, params, "AttachedPolicies")

    operation("iam", f"Attach{kind}Policy", honours=[member, "PolicyArn"])(attach)
    operation("iam", f"Detach{kind}Policy", honours=[member, "PolicyArn"])(detach)
    operation("iam", f"ListAttached{kind}Policies", honours=[member, *PAGING])(list_all)


_register("Role", "RoleName", role_of)
_register("User", "UserName", user_of)
