"""The table of IAM permissions, and a decorator that declares which of them a function needs.

Every function that calls AWS has the decorator `needs` with the permissions of its calls. A job's policy
contains the permissions of its functions and no others (`vmsnix_ops.aws.iam.policies`). The tests run each
job with exactly its policy, and without each single action of it.

An action can have several permissions, because a job may need it for one kind of resource only:
``ec2:CreateTags`` tags a new resource, ``ec2:CreateTags of our resources`` an existing one. The first word of
a permission's name is the IAM action.

Source of the resources and condition keys: "Actions, resources, and condition keys" for Amazon EC2, Amazon
EBS, Amazon S3 and IAM in the Service Authorization Reference; the permissions
that DescribeImageReferences needs: "Identify resources referencing specified AMIs" in the EC2 User Guide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vmsnix_ops import errors

Function = TypeVar("Function", bound=Callable[..., Any])
Target = Literal[
    "everything",  # all resources, in the regions of the policy
    "global",  # all resources, without a region
    "bucket",
    "objects",
    "role",
    "passed role",  # the same role, passed to VM Import only
    "principals",  # users and roles of the account
    "policies",  # managed policies of the account whose names begin with vmsnix
    "new resources",  # while the job creates them
    "imported snapshots",  # snapshots without tags that VM Import made
    "registrations",  # a new image, of our snapshots
    "copies",  # a new image and its snapshots, of our images
    "snapshots without a parent",
    "snapshots of any parent",
    "our snapshots",  # with the tag vmsnix:digest
    "our images",
    "our tags",  # tags of both, except vmsnix:digest
    "our imports",  # import tasks with the tag vmsnix:digest
    "parameters",  # of the account, and public ones of AWS
    "launches",  # a new instance of our images, with its volumes and interfaces
    "our instances",  # of smoke tests, with the tag vmsnix:smoke
    "spot role",  # EC2's own role for spot instances
    "channels",  # parameters of channels, below the prefix in the settings
    "topics",
    "audit roles",  # the role of an auditor, in any account
]


@dataclass(frozen=True, slots=True)
class Permission:
    """One IAM action."""

    # The IAM action, such as "ec2:RegisterImage", with more words if the action has several permissions.
    name: str
    target: Target  # the resources on which the action is allowed
    why: str  # its purpose, for the page of permissions

    @property
    def action(self) -> str:
        """The IAM action."""
        return self.name.partition(" ")[0]


_ALL = (
    Permission(
        "s3:ListBucket",
        "bucket",
        "check that the bucket exists, and whether an object is missing or not readable",
    ),
    Permission("s3:ListBucketMultipartUploads", "bucket", "find an upload to continue"),
    Permission("s3:GetObject", "objects", "verify or read an existing object"),
    Permission("s3:PutObject", "objects", "upload an image or evidence"),
    Permission("s3:PutObjectTagging", "objects", "tag the uploaded object"),
    Permission("s3:DeleteObject", "objects", "delete the uploaded object"),
    Permission("s3:ListMultipartUploadParts", "objects", "list the parts of an upload to continue"),
    Permission("s3:AbortMultipartUpload", "objects", "delete an unfinished upload"),
    Permission("s3:GetBucketPublicAccessBlock", "bucket", "check that the bucket is private"),
    Permission("s3:GetBucketPolicyStatus", "bucket", "check that the bucket is private"),
    Permission("s3:GetBucketPolicy", "bucket", "check that TLS is required"),
    Permission("s3:GetEncryptionConfiguration", "bucket", "check that the bucket is encrypted"),
    Permission("s3:GetLifecycleConfiguration", "bucket", "check that leftovers expire"),
    Permission("s3:GetBucketVersioning", "bucket", "check whether deleted objects are kept as versions"),
    Permission("s3:CreateBucket", "bucket", "create the bucket"),
    Permission("s3:PutBucketPublicAccessBlock", "bucket", "block public access to the bucket"),
    Permission("s3:PutEncryptionConfiguration", "bucket", "encrypt the bucket"),
    Permission("s3:PutBucketPolicy", "bucket", "require TLS"),
    Permission("s3:PutLifecycleConfiguration", "bucket", "let leftovers expire"),
    Permission("ec2:DescribeRegions", "everything", "check that the region is enabled"),
    Permission("ec2:DescribeImages", "everything", "find existing resources"),
    Permission("ec2:DescribeSnapshots", "everything", "find existing resources"),
    Permission("ec2:DescribeInstances", "everything", "find references to AMIs"),
    Permission("ec2:DescribeLaunchTemplates", "everything", "find references to AMIs"),
    Permission("ec2:DescribeLaunchTemplateVersions", "everything", "find references to AMIs"),
    Permission("ec2:DescribeImageReferences", "everything", "find references to AMIs"),
    Permission("imagebuilder:ListImageRecipes", "everything", "find references to AMIs"),
    Permission("imagebuilder:ListContainerRecipes", "everything", "find references to AMIs"),
    Permission("imagebuilder:GetContainerRecipe", "everything", "find references to AMIs"),
    Permission("ec2:DescribeImageAttribute", "everything", "read with whom an AMI is shared"),
    Permission("autoscaling:DescribeLaunchConfigurations", "everything", "find references to AMIs"),
    Permission("autoscaling:DescribeAutoScalingGroups", "everything", "find references to AMIs"),
    Permission("ssm:DescribeParameters", "everything", "list parameters that may contain AMI IDs"),
    Permission("ssm:GetParameters", "parameters", "read AMI IDs from parameters"),
    Permission("ec2:DescribeImportSnapshotTasks", "everything", "read the progress of an import"),
    Permission("ec2:ImportSnapshot", "everything", "import a snapshot"),
    Permission("ec2:CancelImportTask", "our imports", "cancel an import after an interrupt"),
    Permission("ec2:RegisterImage", "registrations", "register an AMI"),
    Permission("ec2:CreateTags", "new resources", "tag a resource while it is created"),
    Permission("ec2:CreateTags of our resources", "our tags", "add or change tags"),
    Permission(
        "ec2:CreateTags of an imported snapshot", "imported snapshots", "tag the snapshot that VM Import made"
    ),
    Permission("ec2:DeleteSnapshot", "our snapshots", "delete snapshots that nothing needs"),
    Permission("ec2:DisableImage", "our images", "retire an AMI"),
    Permission("ec2:EnableImage", "our images", "restore a retired AMI"),
    Permission("ec2:DeregisterImage", "our images", "delete a retired AMI"),
    Permission("ec2:DeleteTags", "our tags", "remove the tags of a retirement"),
    Permission("ec2:ModifyImageAttribute", "our images", "share an AMI, or end sharing"),
    Permission("ec2:RunInstances", "launches", "launch an instance of an AMI to test it"),
    Permission("ec2:TerminateInstances", "our instances", "terminate the test instance"),
    Permission("ec2:DescribeInstanceStatus", "everything", "read the status checks of the test instance"),
    Permission("ec2:GetConsoleOutput", "our instances", "read the console of the test instance"),
    Permission("ec2:CopyImage", "copies", "copy an AMI to another region"),
    Permission("ec2:DescribeSnapshotAttribute", "everything", "read with whom a snapshot is shared"),
    Permission("ec2:DescribeLockedSnapshots", "everything", "list snapshots that cannot be deleted"),
    Permission("ec2:ModifySnapshotAttribute", "our snapshots", "share a snapshot, or end sharing"),
    Permission("ec2:EnableImageDeprecation", "our images", "set the deprecation date"),
    Permission("ec2:DisableImageDeprecation", "our images", "remove the deprecation date"),
    Permission("ec2:EnableImageDeregistrationProtection", "our images", "protect an AMI from deregistration"),
    Permission("ec2:DisableImageDeregistrationProtection", "our images", "end that protection"),
    Permission("ec2:GetImageBlockPublicAccessState", "everything", "check whether AMIs may be public"),
    Permission("ec2:GetEbsEncryptionByDefault", "everything", "check whether new snapshots are encrypted"),
    Permission("ec2:GetEbsDefaultKmsKeyId", "everything", "read the key of new snapshots"),
    Permission("ebs:StartSnapshot", "snapshots without a parent", "start a snapshot"),
    Permission("ebs:StartSnapshot with a parent", "snapshots of any parent", "start an incremental snapshot"),
    Permission("ebs:PutSnapshotBlock", "our snapshots", "write the blocks of a snapshot"),
    Permission("ebs:CompleteSnapshot", "our snapshots", "complete a snapshot"),
    Permission("ebs:ListSnapshotBlocks", "our snapshots", "list the blocks of a snapshot"),
    Permission("ebs:GetSnapshotBlock", "our snapshots", "read blocks, to verify or download"),
    Permission(
        "iam:CreateServiceLinkedRole", "spot role", "create the role for an account's first spot instance"
    ),
    Permission("iam:GetRole", "role", "read who may assume the role of VM Import"),
    Permission("iam:PassRole", "passed role", "give the role to VM Import"),
    Permission("iam:SimulatePrincipalPolicy", "principals", "find permissions that role and caller lack"),
    Permission("iam:CreateRole", "role", "create the role of VM Import"),
    Permission("iam:UpdateAssumeRolePolicy", "role", "let VM Import assume the role"),
    Permission("iam:GetRolePolicy", "role", "read the permissions of the role"),
    Permission("iam:PutRolePolicy", "role", "let the role read the bucket"),
    Permission("iam:GetPolicy", "policies", "check that the publisher's policy exists"),
    Permission("iam:GetPolicyVersion", "policies", "compare the publisher's policy"),
    Permission("iam:CreatePolicy", "policies", "create the publisher's policy"),
    Permission("iam:ListPolicyVersions", "policies", "find an old version of the policy to delete"),
    Permission("iam:DeletePolicyVersion", "policies", "delete an old version of the policy"),
    Permission("iam:CreatePolicyVersion", "policies", "update the publisher's policy"),
    Permission("ssm:GetParameter", "channels", "read a channel"),
    Permission("ssm:GetParameterHistory", "channels", "read the history of a channel"),
    Permission("ssm:GetParametersByPath", "channels", "list the channels"),
    Permission("ssm:PutParameter", "channels", "set a channel to an AMI"),
    Permission("ssm:DeleteParameter", "channels", "delete a new channel whose AMI is being retired"),
    Permission("ssm:AddTagsToResource", "channels", "tag a new channel"),
    Permission("sts:AssumeRole", "audit roles", "audit other accounts"),
    Permission("sns:GetTopicAttributes", "topics", "check that the topic exists"),
    Permission("sns:Publish", "topics", "announce a channel's new AMI, send a notice of a failed run"),
    Permission("servicequotas:GetServiceQuota", "global", "read the quotas of AMIs"),
)
PERMISSIONS: dict[str, Permission] = {permission.name: permission for permission in _ALL}
"""All permissions that vmsnix needs, by name."""

_NEEDS: dict[str, tuple[str, ...]] = {}
_HIDDEN = {
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject (S3 also refuses a missing object without s3:ListBucket)",
}


def needs(*actions: str) -> Callable[[Function], Function]:
    """Declare the permissions (keys of `PERMISSIONS`) that the calls of a function need."""
    for action in actions:
        if action not in PERMISSIONS:
            raise errors.UsageError(
                f"The action {action!r} is not in the table of permissions.",
                why=errors.nearest(action, PERMISSIONS),
                fix="Add it to vmsnix_ops/aws/iam/permissions.py, with its resources and its reason.",
            )

    def declare(function: Function) -> Function:
        _NEEDS[_name(function)] = actions
        return function

    return declare


def needs_of(*functions: Callable[..., Any]) -> tuple[str, ...]:
    """Return the permissions that these functions declare, in the order of the table."""
    found: set[str] = set()
    for function in functions:
        if _name(function) not in _NEEDS:
            raise errors.UsageError(
                f"{_name(function)} does not declare its permissions.", fix="Put @needs(...) above it."
            )
        found.update(_NEEDS[_name(function)])
    return tuple(action for action in PERMISSIONS if action in found)


def denied_action(message: str, operation: str) -> str:
    """Return the action that AWS denied, from its message or else from the operation.

    The answer to a HEAD request has no message.

    >>> denied_action("User: arn:... is not authorized to perform: ec2:RegisterImage on resource: x", "")
    'ec2:RegisterImage'
    """
    _, found, rest = message.partition("not authorized to perform: ")
    return rest.split()[0].rstrip(".,") if found and rest.split() else _HIDDEN.get(operation, "")


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
