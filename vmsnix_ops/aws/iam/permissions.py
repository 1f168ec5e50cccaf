"""What each function of this room must be allowed: one table of IAM actions, one decorator.

`needs` stands above every function that calls AWS and names the actions of all the calls that the function
makes. `vmsnix_ops.aws.iam.policies` sums up the functions of a job, and that is the job's policy: an action
that no function declares cannot get into one. The tests run each job with exactly its policy, and with every
single action taken away.

Some actions appear more than once, because a job may need them on one kind of resource and not on another:
``ec2:CreateTags`` while a resource is created is another permission than ``ec2:CreateTags of our resources``.
The first word of a permission's name is the IAM action.

Source of the resources and condition keys: "Actions, resources, and condition keys" for Amazon EC2, Amazon
EBS, Amazon S3 and IAM in the Service Authorization Reference; what DescribeImageReferences looks at for its
caller, from "Identify resources referencing specified AMIs" in the EC2 User Guide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vmsnix_ops import errors

Function = TypeVar("Function", bound=Callable[..., Any])
Target = Literal[
    "everything",  # cannot be narrowed; held to the regions where that is possible
    "global",  # cannot be narrowed, and has no region
    "bucket",
    "objects",
    "role",
    "passed role",  # the same role, and only to VM Import
    "principals",  # users and roles of the account
    "policies",  # managed policies of the account whose names begin with vmsnix
    "new resources",  # while the job creates them
    "imported snapshots",  # snapshots without tags that VM Import made
    "registrations",  # a new image, of our snapshots
    "copies",  # a new image and its snapshots, of our images
    "snapshots without a parent",
    "snapshots of any parent",
    "our snapshots",  # those with the tag vmsnix:digest
    "our images",
    "our tags",  # tags of both, but not the tag vmsnix:digest itself
    "our imports",  # import tasks with the tag vmsnix:digest
    "parameters",  # those of the account, and those that AWS publishes
    "launches",  # a new instance and what belongs to it, of our images
    "our instances",  # those of smoke tests, with the tag vmsnix:smoke
    "spot role",  # EC2's own role for spot instances
    "pointers",  # parameters below the pointers' prefix
    "topics",
    "audit roles",  # the role of an auditor, in any account
]


@dataclass(frozen=True, slots=True)
class Permission:
    """One IAM action.

    Attributes
    ----------
    name
        The IAM action, such as ``"ec2:RegisterImage"``; where one action has several permissions, more words
        follow it.
    target
        What it is allowed on.
    why
        What it is for, as the documentation says it.
    """

    name: str
    target: Target
    why: str

    @property
    def action(self) -> str:
        """The IAM action."""
        return self.name.partition(" ")[0]


_ALL = (
    Permission("s3:ListBucket", "bucket", "is the bucket there, is an object missing or only hidden"),
    Permission("s3:ListBucketMultipartUploads", "bucket", "find an upload to go on with"),
    Permission("s3:GetObject", "objects", "verify what is there already"),
    Permission("s3:PutObject", "objects", "upload"),
    Permission("s3:PutObjectTagging", "objects", "tag what is uploaded"),
    Permission("s3:DeleteObject", "objects", "clean up"),
    Permission("s3:ListMultipartUploadParts", "objects", "which parts are there already"),
    Permission("s3:AbortMultipartUpload", "objects", "end an upload that nobody needs"),
    Permission("s3:GetBucketPublicAccessBlock", "bucket", "is the bucket private"),
    Permission("s3:GetBucketPolicyStatus", "bucket", "is the bucket private"),
    Permission("s3:GetBucketPolicy", "bucket", "is TLS required"),
    Permission("s3:GetEncryptionConfiguration", "bucket", "is the bucket encrypted"),
    Permission("s3:GetLifecycleConfiguration", "bucket", "are leftovers removed"),
    Permission("s3:GetBucketVersioning", "bucket", "are removed objects kept as versions"),
    Permission("s3:CreateBucket", "bucket", "make the bucket"),
    Permission("s3:PutBucketPublicAccessBlock", "bucket", "make it private"),
    Permission("s3:PutEncryptionConfiguration", "bucket", "encrypt it"),
    Permission("s3:PutBucketPolicy", "bucket", "require TLS"),
    Permission("s3:PutLifecycleConfiguration", "bucket", "remove leftovers"),
    Permission("ec2:DescribeRegions", "everything", "is the region enabled"),
    Permission("ec2:DescribeImages", "everything", "find what there is already"),
    Permission("ec2:DescribeSnapshots", "everything", "find what there is already"),
    Permission("ec2:DescribeInstances", "everything", "what is in use"),
    Permission("ec2:DescribeLaunchTemplates", "everything", "what is in use"),
    Permission("ec2:DescribeLaunchTemplateVersions", "everything", "what is in use"),
    Permission("ec2:DescribeImageReferences", "everything", "what is in use"),
    Permission("imagebuilder:ListImageRecipes", "everything", "what is in use"),
    Permission("imagebuilder:ListContainerRecipes", "everything", "what is in use"),
    Permission("imagebuilder:GetContainerRecipe", "everything", "what is in use"),
    Permission("ec2:DescribeImageAttribute", "everything", "with whom is an AMI shared"),
    Permission("autoscaling:DescribeLaunchConfigurations", "everything", "what is in use"),
    Permission("autoscaling:DescribeAutoScalingGroups", "everything", "what is in use"),
    Permission("ssm:DescribeParameters", "everything", "which parameters may point at AMIs"),
    Permission("ssm:GetParameters", "parameters", "which AMIs they point at"),
    Permission("ec2:DescribeImportSnapshotTasks", "everything", "follow an import"),
    Permission("ec2:ImportSnapshot", "everything", "import"),
    Permission("ec2:CancelImportTask", "our imports", "stop an import after an interrupt"),
    Permission("ec2:RegisterImage", "registrations", "register"),
    Permission("ec2:CreateTags", "new resources", "tag a resource while it is created"),
    Permission("ec2:CreateTags of our resources", "our tags", "add or change tags"),
    Permission("ec2:CreateTags of an imported snapshot", "imported snapshots", "tag what VM Import made"),
    Permission("ec2:DeleteSnapshot", "our snapshots", "remove snapshots that nothing needs"),
    Permission("ec2:DisableImage", "our images", "retire an AMI"),
    Permission("ec2:EnableImage", "our images", "restore a retired AMI"),
    Permission("ec2:DeregisterImage", "our images", "remove a retired AMI"),
    Permission("ec2:DeleteTags", "our tags", "remove the tags of a retirement"),
    Permission("ec2:ModifyImageAttribute", "our images", "share an AMI, or stop"),
    Permission("ec2:RunInstances", "launches", "launch an instance of an AMI to test it"),
    Permission("ec2:TerminateInstances", "our instances", "terminate it"),
    Permission("ec2:DescribeInstanceStatus", "everything", "does it pass its checks"),
    Permission("ec2:GetConsoleOutput", "our instances", "what does it say"),
    Permission("ec2:CopyImage", "copies", "copy an AMI to another region"),
    Permission("ec2:DescribeSnapshotAttribute", "everything", "with whom is a snapshot shared"),
    Permission("ec2:DescribeLockedSnapshots", "everything", "which snapshots cannot be deleted"),
    Permission("ec2:ModifySnapshotAttribute", "our snapshots", "share a snapshot, or stop"),
    Permission("ec2:EnableImageDeprecation", "our images", "set the deprecation date"),
    Permission("ec2:DisableImageDeprecation", "our images", "take the deprecation date away"),
    Permission("ec2:EnableImageDeregistrationProtection", "our images", "protect an AMI"),
    Permission("ec2:DisableImageDeregistrationProtection", "our images", "lift the protection"),
    Permission("ec2:GetImageBlockPublicAccessState", "everything", "may AMIs be public"),
    Permission("ec2:GetEbsEncryptionByDefault", "everything", "will snapshots be encrypted"),
    Permission("ec2:GetEbsDefaultKmsKeyId", "everything", "with which key will snapshots be encrypted"),
    Permission("ebs:StartSnapshot", "snapshots without a parent", "begin a snapshot"),
    Permission("ebs:StartSnapshot with a parent", "snapshots of any parent", "begin an incremental snapshot"),
    Permission("ebs:PutSnapshotBlock", "our snapshots", "write its blocks"),
    Permission("ebs:CompleteSnapshot", "our snapshots", "seal it"),
    Permission("ebs:ListSnapshotBlocks", "our snapshots", "list the blocks of a snapshot"),
    Permission("ebs:GetSnapshotBlock", "our snapshots", "read blocks back, to verify or download"),
    Permission("iam:CreateServiceLinkedRole", "spot role", "make it, for an account's first spot instance"),
    Permission("iam:GetRole", "role", "who may take the role of VM Import"),
    Permission("iam:PassRole", "passed role", "let VM Import use its role"),
    Permission("iam:SimulatePrincipalPolicy", "principals", "what do role and caller lack"),
    Permission("iam:CreateRole", "role", "make the role"),
    Permission("iam:UpdateAssumeRolePolicy", "role", "let VM Import take it"),
    Permission("iam:GetRolePolicy", "role", "what the role may do"),
    Permission("iam:PutRolePolicy", "role", "let it read the bucket"),
    Permission("iam:GetPolicy", "policies", "is the publisher's policy there"),
    Permission("iam:GetPolicyVersion", "policies", "is it as it should be"),
    Permission("iam:CreatePolicy", "policies", "make the publisher's policy"),
    Permission("iam:ListPolicyVersions", "policies", "make room for a new version"),
    Permission("iam:DeletePolicyVersion", "policies", "make room for a new version"),
    Permission("iam:CreatePolicyVersion", "policies", "bring it up to date"),
    Permission("ssm:GetParameter", "pointers", "where a channel points"),
    Permission("ssm:GetParameterHistory", "pointers", "where a channel pointed, and who changed it"),
    Permission("ssm:GetParametersByPath", "pointers", "which channels there are"),
    Permission("ssm:PutParameter", "pointers", "point a channel to an AMI"),
    Permission("ssm:DeleteParameter", "pointers", "delete a new pointer whose AMI is being retired"),
    Permission("ssm:AddTagsToResource", "pointers", "tag a new pointer"),
    Permission("sts:AssumeRole", "audit roles", "look into other accounts"),
    Permission("sns:GetTopicAttributes", "topics", "is the topic there"),
    Permission("sns:Publish", "topics", "tell a topic where a channel points"),
    Permission("servicequotas:GetServiceQuota", "global", "how many AMIs there may be"),
)
PERMISSIONS: dict[str, Permission] = {permission.name: permission for permission in _ALL}
"""Every permission that this package ever needs, by name."""

_NEEDS: dict[str, tuple[str, ...]] = {}
_HIDDEN = {
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject (without s3:ListBucket a missing object is refused like this, too)",
}


def needs(*actions: str) -> Callable[[Function], Function]:
    """Declare which IAM actions the calls of a function need.

    Parameters
    ----------
    actions
        Keys of `PERMISSIONS`.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        An action is not in the table: at import, so that no wrong declaration gets far.
    """
    for action in actions:
        if action not in PERMISSIONS:
            raise errors.UsageError(
                f"The action {action!r} is not in the table of permissions.",
                why=errors.nearest(action, PERMISSIONS),
                cure="Add it to vmsnix_ops/aws/iam/permissions.py, with its resources and its reason.",
            )

    def declare(function: Function) -> Function:
        _NEEDS[_name(function)] = actions
        return function

    return declare


def needs_of(*functions: Callable[..., Any]) -> tuple[str, ...]:
    """Return the actions that these functions declare, each once, in the order of the table.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        A function declares nothing.
    """
    found: set[str] = set()
    for function in functions:
        if _name(function) not in _NEEDS:
            raise errors.UsageError(
                f"{_name(function)} does not say what it must be allowed.", cure="Put @needs(...) above it."
            )
        found.update(_NEEDS[_name(function)])
    return tuple(action for action in PERMISSIONS if action in found)


def denied_action(message: str, operation: str) -> str:
    """Return which action a refusal is about.

    AWS names it in most messages; a HEAD request is answered without any, so its action comes from the
    operation.

    Examples
    --------
    >>> denied_action("User: arn:... is not authorized to perform: ec2:RegisterImage on resource: x", "")
    'ec2:RegisterImage'
    """
    _, found, rest = message.partition("not authorized to perform: ")
    return rest.split()[0].rstrip(".,") if found and rest.split() else _HIDDEN.get(operation, "")


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
