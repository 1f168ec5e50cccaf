"""May the caller do this: policies, evaluated before every operation runs.

The sandbox's own operator may do everything, as an administrator may. Users and roles are held to their
policies once they have any, or always with ``sandbox(enforce_iam=True)``. Bucket policies hold for everybody,
the operator included (`s3.bucket_policies`); keys of AWS KMS as far as Parameter Store needs them. Permission
boundaries, session policies, organizations, and the KMS keys of volumes, snapshots and objects are not
evaluated.

Texts: "Troubleshoot access denied error messages" in the IAM User Guide, and public transcripts of EC2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import actions
from .core import AwsError
from .ec2 import spot_role
from .iam.evaluation import ALLOWED, EXPLICIT_DENY, Question, evaluate
from .iam.simulation import documents_of, is_operator, owner_of
from .objects import find_bucket
from .s3 import bucket_policies

if TYPE_CHECKING:
    from .actions import Demand
    from .core import Context, Operation, Params

DENIALS: dict[str, tuple[str, int]] = {
    "ec2": ("UnauthorizedOperation", 403),
    "s3": ("AccessDenied", 403),
    "iam": ("AccessDenied", 403),
    "sts": ("AccessDenied", 403),
    "ebs": ("AccessDeniedException", 403),
    "ssm": ("AccessDeniedException", 400),
    "service-quotas": ("AccessDeniedException", 400),
    "sns": ("AuthorizationError", 403),
    "autoscaling": ("AccessDenied", 403),
}
"""Error code and HTTP status of a refusal, by service."""

IMPORT_SERVICE = "vmie.amazonaws.com"


class Authorizer:
    """Refuses what the caller's policies do not allow.

    Parameters
    ----------
    enforce
        Whether a user or role without any policy is refused everything, as on AWS.
    """

    def __init__(self, *, enforce: bool = False) -> None:
        self.enforce = enforce

    def __call__(self, context: Context, operation: Operation, params: Params) -> None:  # noqa: ARG002
        """Raise the service's refusal unless every action that the call needs is allowed.

        Raises
        ------
        AwsError
            With the action and the resource in its text. A caller who may not pass the role of an import
            is told that the role lacks permissions, as on AWS.
        """
        with context.lock:
            documents = self._documents(context)
            if documents is None and context.service != "s3":
                return
            for demand in actions.demands(context, params):
                reason = why_not(context, documents, demand)
                if reason:
                    raise refusal(context, demand, reason)
            if documents is None:
                return
            if (context.service, context.operation) == ("ec2", "RunInstances"):
                _check_spot_role(context, documents, params)
            if (context.service, context.operation) == ("ec2", "ImportSnapshot"):
                _check_pass_role(context, documents, params.get("RoleName") or "vmimport")

    def _documents(self, context: Context) -> list[str] | None:
        """Return the caller's policies; None for one who is not held to any."""
        if is_operator(context, context.principal):
            return None
        try:
            documents = documents_of(context, owner_of(context, context.principal))
        except AwsError:  # a user or role that was deleted while its keys live on
            documents = []
        return documents if documents or self.enforce else None


def why_not(context: Context, documents: list[str] | None, demand: Demand) -> str:
    """Return why the caller may not do one action on one resource, in AWS's words; "" when it may."""
    question = Question(demand.action, demand.resource, demand.keys)
    if demand.action.startswith("s3:"):
        return bucket_policies.why_not(
            context.tables,
            question,
            account=context.account,
            principal=context.principal,
            documents=documents,
            root=is_operator(context, context.principal),
        )
    decision = ALLOWED if documents is None else evaluate(documents, question)
    if decision == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    if decision == ALLOWED or demand.granted:
        return ""
    return f"because no identity-based policy allows the {demand.action} action"


def refusal(context: Context, demand: Demand, reason: str) -> AwsError:
    """Return the refusal in the words of the service; S3 gives other accounts no reason."""
    code, status = DENIALS[context.service]
    name = demand.resource.partition(":::")[2].partition("/")[0]
    bucket = find_bucket(context.tables, name) if context.service == "s3" else None
    if bucket is not None and bucket.account != context.account:
        return AwsError(code, "Access Denied", status=status)
    resource = f'"{demand.resource}"' if context.service == "s3" else demand.resource
    text = f"User: {context.principal} is not authorized to perform: {demand.action} on resource: {resource}"
    if context.service == "ec2":
        # AWS adds an encoded message that only sts:DecodeAuthorizationMessage can read.
        text = f"You are not authorized to perform this operation. {text}"
    return AwsError(code, f"{text} {reason}", status=status)


def _check_spot_role(context: Context, documents: list[str], params: Params) -> None:
    keys = {**actions.common_keys(context), "iam:awsservicename": [spot_role.SERVICE]}
    question = Question(spot_role.ACTION, spot_role.arn(context), keys)
    if spot_role.lacks(context, params) and evaluate(documents, question) != ALLOWED:
        raise AwsError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for "
            "EC2 Spot Instances.",
            status=403,
        )


def _check_pass_role(context: Context, documents: list[str], role_name: str) -> None:
    if why_not(context, documents, actions.pass_role(context, role_name, IMPORT_SERVICE)):
        raise AwsError(
            "InvalidParameter",
            f"The service role {role_name} provided does not exist or does not have sufficient permissions",
        )
