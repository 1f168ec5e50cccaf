"""IAM policies with exactly the permissions of each job, in any partition.

`policy_document` makes a policy of a job's permissions: ``policy_document(needs_of(scan), scope)``. The other
functions return the permissions of publishers and the policies of VM Import, buckets and GitHub.
`vmsnix_ops.cli.policies` lists all jobs.

Sources: the Service Authorization Reference (see `vmsnix_ops.aws.iam.permissions`); "Required permissions for
VM Import/Export"; "Configuring OpenID Connect in Amazon Web Services" in GitHub's documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, region_names
from vmsnix_ops.arguments import check_form
from vmsnix_ops.aws import buckets, identity, images, imports, keys, quotas, service_role, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import manifests, reading, writing
from vmsnix_ops.aws.iam.documents import allow, policy
from vmsnix_ops.aws.iam.permissions import PERMISSIONS, Target, needs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SPOT = "spot.amazonaws.com"
GITHUB = "token.actions.githubusercontent.com"
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]{1,100}")
_SUBJECT = re.compile(r"[A-Za-z0-9:/._*-]+")
_SUBJECTS = ("ref:refs/heads/", "ref:refs/tags/", "environment:")
_ACCOUNT = re.compile(r"[0-9]{12}|\*")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|\*")
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,2}-[0-9]+")
_PARTITION = re.compile(r"aws(-[a-z]+)*")
_KMS_KEY = re.compile(r"(arn:aws(-[a-z]+)*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?")
_ROLE = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_KEYS = re.compile(r"(?!.*\.\.)[\w!.'()/ -]{0,512}", re.ASCII)  # S3's safe characters, without wildcards
_PARAMETERS = re.compile(r"(?!.*\.\.)(/[\w.-]+)+", re.ASCII)  # names in Parameter Store


@dataclass(frozen=True, slots=True)
class PolicyScope:
    """The accounts, regions and resources to which a policy applies; invalid values are refused."""

    account: str = "*"  # account ID, 12 digits; "*" stands for all accounts
    regions: tuple[str, ...] = ()  # regions to which the policy is restricted; empty for all regions
    # As for a publish; the bucket "*" stands for all buckets.
    bucket: str = "*"
    key_prefix: str = "vmsnix/"
    role_name: str = "vmimport"
    kms_key: str = ""  # ARN of the KMS key that encrypts uploads, snapshots and AMIs; empty for none
    # "aws", "aws-cn", "aws-us-gov", "aws-eusc", ...; empty: the partition of the regions, or else "aws".
    partition: str = ""
    channel_prefix: str = "/vmsnix"  # prefix of the names of the channels' parameters
    audit_role: str = "vmsnix-auditor"  # name of the role that an auditor assumes in other accounts
    topic: str = ""  # ARN of the SNS topic that a promoter notifies; empty for all topics of the account

    def __post_init__(self) -> None:
        found = sorted({region_names.partition_of(region) for region in self.regions})
        if len(found) > 1 or (self.partition and found and found != [self.partition]):
            listed = ", ".join(f"{name} is in {region_names.partition_of(name)}" for name in self.regions)
            raise errors.ParameterError(
                "A policy applies to one partition.",
                why=f"{listed}{f', but --partition is {self.partition}' if self.partition else ''}.",
                fix="Print one policy per partition.",
            )
        object.__setattr__(self, "partition", self.partition or (found[0] if found else "aws"))
        shapes = [
            ("account", self.account, _ACCOUNT, "use 12 digits"),
            ("bucket", self.bucket, _NAME, "use 3 to 63 lower-case letters, digits, dots or dashes"),
            ("role", self.audit_role, _ROLE, "use up to 64 letters, digits or +=,.@-_"),
            ("role", self.role_name, _ROLE, "use up to 64 letters, digits or +=,.@-_"),
            ("key prefix", self.key_prefix, _KEYS, "use a plain path without wildcards"),
            ("parameter prefix", self.channel_prefix, _PARAMETERS, "use a name such as /vmsnix"),
            ("KMS key", self.kms_key, _KMS_KEY, "use an ARN such as arn:aws:kms:REGION:ACCOUNT:key/ID"),
            ("partition", self.partition, _PARTITION, f"use one of {', '.join(region_names.partitions())}"),
            *(("region", name, _REGION, "use a region such as eu-central-1") for name in self.regions),
        ]
        for name, value, shape, rule in shapes:
            if not shape.fullmatch(value):
                raise errors.ParameterError(f"Invalid {name} {value!r}: {rule}.")
        if self.topic:
            check_form("topic", self.topic, f"topic: {self.topic!r}")
        for name in self.regions:
            identity.check_region_name(name)

    @property
    def role_arn(self) -> str:
        """ARN of VM Import's role."""
        return f"arn:{self.partition}:iam::{self.account}:role/{self.role_name}"

    @property
    def policy_name(self) -> str:
        """Name of the publisher's policy for this bucket."""
        return f"vmsnix-publisher-{self.bucket}"

    @property
    def role_policy_name(self) -> str:
        """Name of the role's policy for this bucket; the role can have policies for several buckets."""
        return f"vmsnix-{self.bucket}"

    @property
    def bucket_arn(self) -> str:
        """ARN of the bucket."""
        return f"arn:{self.partition}:s3:::{self.bucket}"


def statements(names: Iterable[str], scope: PolicyScope) -> list[dict[str, Any]]:
    """Return the statements that allow these permissions on the resources of the scope only.

    All statements follow four rules (tests/privileges/test_statements.py):

    - ``ec2:CreateTags`` is allowed on resources with vmsnix's tag, on new resources of an action in the same
      policy (``ec2:CreateAction``), or on snapshots that only VM Import creates. Conditions on the request
      (``aws:RequestTag``, ``aws:TagKeys``) are never enough: they restrict the tags, not the resource.
    - An action that creates something has a condition on its source. The ARN of a new resource ends with a
      literal ``*``, so ``${*}`` matches it and no existing resource ("Example: Copying snapshots" in the EBS
      User Guide).
    - An AMI without snapshots, registered from a bundle in S3, may not be shared, launched or changed.
    - A principal that may read parameters may not decrypt them. Keys are used through EBS and S3 only.
    """
    names = tuple(names)
    groups: dict[Target, list[str]] = {}
    for name in names:
        groups.setdefault(PERMISSIONS[name].target, []).append(PERMISSIONS[name].action)
    found: list[dict[str, Any]] = []
    for target, actions in groups.items():
        grants = _new_resources(names, scope) if target == "new resources" else _grants(target, scope)
        for sid, resources, condition in grants:
            found.append(allow(sid, sorted(actions), resources, condition))
    if any(name.startswith("ssm:Get") for name in names):
        found.append(NO_SECRETS)
    return found


Grant = tuple[str, list[str], dict[str, Any]]
"""Name, resources and condition of a statement."""

OURS = {"StringLike": {f"aws:ResourceTag/{tagging.DIGEST}": "?*"}}
OUR_IMAGES = {
    # RegisterImage can also register an AMI from a bundle in S3, without a snapshot, and AWS has no condition
    # against it. So other actions require the root device type of AMIs with snapshots. RegisterImage,
    # CopyImage and DeleteTags do not support that condition key.
    **OURS,
    "StringEquals": {"ec2:RootDeviceType": "ebs"},
}
NO_SECRETS: dict[str, Any] = {
    # A principal that may read a parameter may decrypt it with AWS's own key, unless a Deny forbids it: the
    # policy of that key allows all principals of the account ("AWS managed key policies" in the KMS guide).
    "Sid": "NoSecrets",
    "Effect": "Deny",
    "Action": ["kms:Decrypt"],
    "Resource": ["*"],
    "Condition": {"StringLike": {"kms:ViaService": "ssm.*"}},
}
CREATED = {
    "ec2:ImportSnapshot": ("import-snapshot-task",),
    "ec2:RegisterImage": ("image",),
    "ec2:CopyImage": ("image", "snapshot"),
    "ec2:RunInstances": ("instance", "spot-instances-request", "volume"),
}
"""Actions that create and tag resources, and the types of these resources."""
BACKUPS = ("aws:backup:source-resource", "aws:dlm:lifecycle-policy-id")
"""Tags of snapshots that AWS Backup and Data Lifecycle Manager created."""


NEW_INSTANCES = (
    "instance/*",
    "network-interface/${*}",  # only new ones: an existing interface belongs to another resource
    "security-group/*",
    "spot-instances-request/*",
    "subnet/*",
    "volume/*",
)
"""Resources that a launch creates or uses."""


def _grants(target: Target, scope: PolicyScope) -> list[Grant]:
    iam = f"arn:{scope.partition}:iam::{scope.account}"
    account, channels = scope.account, f"parameter{scope.channel_prefix}"
    images, snapshots = _ec2(scope, "image/*"), _ec2(scope, "snapshot/*")
    here = {"StringEquals": {"aws:RequestedRegion": list(scope.regions)}} if scope.regions else {}
    to_vm_import = {"StringEquals": {"iam:PassedToService": service_role.SERVICE}}
    of_spot = {"StringEquals": {"iam:AWSServiceName": SPOT}}
    of_smoke_tests = {"StringLike": {f"aws:ResourceTag/{tagging.SMOKE}": "?*"}}
    except_digest = {
        "ForAllValues:StringNotEqualsIgnoreCase": {"aws:TagKeys": [tagging.DIGEST]},
        "Null": {"aws:TagKeys": "false"},  # DeleteTags without keys removes every tag
    }
    known: dict[Target, list[Grant]] = {
        "everything": [("InTheseRegions", ["*"], here)],
        "global": [("Global", ["*"], {})],
        "bucket": [("Bucket", [scope.bucket_arn], {})],
        "objects": [("Objects", [f"{scope.bucket_arn}/{scope.key_prefix}*"], {})],
        "role": [("Role", [scope.role_arn], {})],
        "passed role": [("PassRole", [scope.role_arn], to_vm_import)],
        "principals": [("Principals", [f"{iam}:role/*", f"{iam}:user/*"], {})],
        "policies": [("Policies", [f"{iam}:policy/vmsnix*"], {})],
        "imported snapshots": [("TagImportedSnapshots", snapshots, _made_by_vm_import(scope))],
        "registrations": [
            ("NewImages", images, {}),
            ("OfOurSnapshots", _ec2(scope, "snapshot/snap-*"), OURS),
        ],
        "copies": [
            ("NewCopies", _ec2(scope, "image/${*}", "snapshot/${*}"), {}),
            ("OfOurImages", _ec2(scope, "image/ami-*", "snapshot/snap-*"), OURS),
        ],
        "snapshots without a parent": [("NewSnapshots", snapshots, {"Null": {"ebs:ParentSnapshot": "true"}})],
        # AWS compares only the ARN of the parent, not its tags.
        "snapshots of any parent": [
            ("NewSnapshotsOfAnyParent", snapshots, {"Null": {"ebs:ParentSnapshot": "false"}})
        ],
        "our snapshots": [("OurSnapshots", snapshots, OURS)],
        "our images": [("OurImages", images, OUR_IMAGES)],
        "our tags": [("TagOurResources", images + snapshots, OURS | except_digest)],
        "our imports": [("OurImports", _ec2(scope, "import-snapshot-task/*"), OURS)],
        "parameters": [
            ("Parameters", _arns(scope, "ssm", f"{account}:parameter/*", ":parameter/aws/service/*"), {})
        ],
        "launches": [
            ("NewInstances", _ec2(scope, *NEW_INSTANCES), {}),
            ("OfOurImages", _ec2(scope, "image/ami-*"), OUR_IMAGES),
            ("WithOurSnapshots", _ec2(scope, "snapshot/snap-*"), OURS),
        ],
        "our instances": [("OurInstances", _ec2(scope, "instance/*"), of_smoke_tests)],
        "spot role": [
            ("SpotRole", [f"{iam}:role/aws-service-role/{SPOT}/AWSServiceRoleForEC2Spot"], of_spot)
        ],
        "channels": [
            ("Channels", _arns(scope, "ssm", f"{account}:{channels}", f"{account}:{channels}/*"), {})
        ],
        "topics": [("Topics", [scope.topic] if scope.topic else _arns(scope, "sns", f"{account}:*"), {})],
        "audit roles": [("AuditRoles", [f"arn:{scope.partition}:iam::*:role/{scope.audit_role}"], {})],
    }
    return known[target]


def _arns(scope: PolicyScope, service: str, *resources: str) -> list[str]:
    """Return the ARNs of resources, each after its account and a colon, in the regions of the scope."""
    regions = scope.regions or ("*",)
    return [f"arn:{scope.partition}:{service}:{region}:{one}" for region in regions for one in resources]


def _ec2(scope: PolicyScope, *kinds: str) -> list[str]:
    """Return EC2 ARNs in the regions of the scope; ARNs of images and snapshots have no account."""
    owned = [f"{'' if one.startswith(('image/', 'snapshot/')) else scope.account}:{one}" for one in kinds]
    return _arns(scope, "ec2", *owned)


def _new_resources(names: tuple[str, ...], scope: PolicyScope) -> list[Grant]:
    """Return the statements that allow tags inside the creating actions of this policy, and nowhere else."""
    grants: list[Grant] = []
    creating = [action for action in CREATED if action in names]
    if creating:
        kinds = sorted({f"{kind}/*" for action in creating for kind in CREATED[action]})
        named = [action.partition(":")[2] for action in creating]
        grants.append(("TagNewResources", _ec2(scope, *kinds), {"StringEquals": {"ec2:CreateAction": named}}))
    if any(name.startswith("ebs:StartSnapshot") for name in names):
        # AWS does not document the value for StartSnapshot, so any value is allowed: no other action of this
        # policy creates a snapshot.
        inside = {"Null": {"ec2:CreateAction": "false"}}
        grants.append(("TagNewSnapshots", _ec2(scope, "snapshot/*"), inside))
    return grants


def _made_by_vm_import(scope: PolicyScope) -> dict[str, Any]:
    """Return the condition that matches snapshots of VM Import, and copies of snapshots without tags.

    VM Import tags its task but not its snapshot, so AWS cannot distinguish the two. Both have the parent
    volume ``vol-ffffffff``, which does not exist (DescribeSnapshots in the EC2 API Reference).
    """
    absent = [*tagging.OWN, *BACKUPS]
    return {
        "ArnLike": {"ec2:ParentVolume": f"arn:{scope.partition}:ec2:*:*:volume/vol-ffffffff"},
        "Null": {"aws:TagKeys": "false"} | {f"aws:ResourceTag/{key}": "true" for key in absent},
        "ForAllValues:StringEquals": {"aws:TagKeys": list(tagging.PUBLISHED)},
    }


def policy_document(names: Iterable[str], scope: PolicyScope) -> dict[str, Any]:
    """Return the policy with these permissions; see `statements`."""
    return policy(*statements(names, scope))


def _preflight(via: str, *, public: bool = False) -> list[Callable[..., Any]]:
    functions: list[Callable[..., Any]] = [identity.check_region]
    if via == "import":
        functions += [
            buckets.check_bucket,
            service_role.check_role,
            service_role.check_role_permissions,
            service_role.check_pass_role,
        ]
    return functions + ([quotas.check_public_sharing] if public else [])


def thorough_actions() -> tuple[str, ...]:
    """Return the permissions of the preflight runbook, which has more checks than a publish."""
    return needs_of(
        *_preflight("import"),
        buckets.check_bucket_private,
        buckets.check_bucket_encrypted,
        buckets.check_bucket_tls,
        buckets.check_bucket_lifecycle,
        buckets.check_bucket_versions,
        quotas.check_quotas,
        quotas.check_public_sharing,
        quotas.check_pending_snapshots,
        images.find_all_by_name,
    )


def publisher_actions(
    *, via: str = "import", public: bool = False, verify: bool = False, incremental: bool = False
) -> tuple[str, ...]:
    """Return the permissions of a publisher.

    Two kinds of publishers can turn another snapshot into one with vmsnix's tag: an import tags snapshots
    without tags, and an incremental upload starts from any parent. Such a publisher may neither share nor
    read snapshots, so a policy for both is refused; the promoter's and the verifier's policies allow that.

    Only a publisher by direct upload may make AMIs public, verify snapshots (read them back), or be
    incremental (upload from an earlier snapshot).
    """
    reason = ""
    if via == "import":
        option, fix = "--via import", "Use --via direct"
        reason = (
            "VM Import does not tag its snapshots, so AWS cannot distinguish them from copies of other "
            "snapshots. A publisher that may tag them must not share or read snapshots."
        )
    elif incremental:
        option, fix = "--incremental", "Leave it out"
        reason = (
            "An incremental publisher may start from any snapshot, because AWS cannot compare the tags of a "
            "parent. So it must not share or read snapshots."
        )
    if reason and (public or verify):
        raise errors.UsageError(
            f"{'--public' if public else '--verify'} cannot be combined with {option}.",
            why=reason,
            fix=f"{fix}, or grant it separately: vmsnix iam-policy "
            f"{'promoter --public' if public else 'verifier --blocks'}",
        )
    if via == "import" and incremental:
        raise errors.UsageError("--incremental needs --via direct.", fix="Add --via direct.")
    functions: list[Callable[..., Any]] = [
        *_preflight(via, public=public),
        images.find_all_by_name,
        images.describe_ami,
        images.register_ami,
        images.tag_ami,
        imports.find_snapshot,
        imports.wait_for_snapshot,
    ]
    if via == "import":
        functions += [
            buckets.upload_file,
            buckets.delete_object,
            imports.find_readers,
            imports.import_snapshot,
            imports.cancel_imports,
        ]
    else:
        functions += [writing.find, writing.upload, writing.finish, snapshots.delete_snapshot]
    functions += [manifests.choose_parent] if incremental else []
    functions += [reading.verify] if verify else []
    functions += [images.make_public] if public else []
    return needs_of(*functions)


def publisher_policy(scope: PolicyScope) -> dict[str, Any]:
    """Return the policy of a publisher by import."""
    return add_key_statements(policy_document(publisher_actions(), scope), scope)


def add_key_statements(policy: dict[str, Any], scope: PolicyScope, *, via: str = "import") -> dict[str, Any]:
    """Return a publisher's policy that also allows the use of the scope's KMS key."""
    more = keys.caller_statements(scope.kms_key, via=via)
    return {**policy, "Statement": [*policy["Statement"], *more]}


def deny_uploads_statement(scope: PolicyScope, key_prefix: str) -> dict[str, Any]:
    """Return the statement that denies an archivist the images below a prefix of the archive's bucket."""
    return {
        "Sid": "NoUploads",
        "Effect": "Deny",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"{scope.bucket_arn}/{key_prefix}*"],
    }


def import_role_policy(scope: PolicyScope) -> dict[str, Any]:
    """Return the policy of VM Import's service role: read the images, create snapshots."""
    snapshots = ["ec2:CopySnapshot", "ec2:Describe*", "ec2:ModifySnapshotAttribute", "ec2:RegisterImage"]
    return policy(
        allow("ReadTheBucket", ["s3:GetBucketLocation", "s3:ListBucket"], [scope.bucket_arn]),
        allow("ReadTheImages", ["s3:GetObject"], [f"{scope.bucket_arn}/{scope.key_prefix}*"]),
        allow("MakeSnapshots", snapshots, ["*"]),
        *keys.role_statements(scope.kms_key),
    )


def import_role_trust_policy() -> dict[str, Any]:
    """Return the trust policy that allows only VM Import to assume its role."""
    return policy(
        {
            "Sid": "VmImport",
            "Effect": "Allow",
            "Principal": {"Service": service_role.SERVICE},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:Externalid": service_role.EXTERNAL_ID}},
        }
    )


def tls_only_policy(scope: PolicyScope) -> dict[str, Any]:
    """Return the bucket policy that denies requests without TLS."""
    return policy(tls_statement(scope))


def tls_statement(scope: PolicyScope) -> dict[str, Any]:
    """Return the statement of `tls_only_policy`."""
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [scope.bucket_arn, f"{scope.bucket_arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def github_trust_policy(
    scope: PolicyScope, *, repository: str, subject: str = "ref:refs/heads/main", any_subject: bool = False
) -> dict[str, Any]:
    """Return the trust policy of a role that workflows of a GitHub repository assume with OIDC.

    `repository` is ``owner/name``, `subject` its workflows: ``ref:refs/heads/main``,
    ``environment:production``, ... With `any_subject`, a subject may match more than one named ref, such as
    ``*``, ``pull_request`` or ``ref:refs/heads/main*``; then anyone who may push a branch can assume the
    role.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise errors.ParameterError(
            f"Invalid repository {repository!r}: use owner/name.",
            why="A wildcard or a missing owner would trust other repositories.",
        )
    if not _SUBJECT.fullmatch(subject):
        raise errors.ParameterError(f"Invalid subject {subject!r}: use, for example, ref:refs/heads/main.")
    if subject.startswith("repo:"):
        raise errors.ParameterError(
            f"The subject {subject!r} starts with a repository.",
            why=f"The policy puts repo:{repository}: in front of the subject.",
            fix="Use --repository for the repository, and --subject for the rest.",
        )
    reason = "" if any_subject else _too_broad(subject)
    if reason:
        raise errors.ParameterError(
            f"The subject {subject!r} {reason}.",
            why=f"Anyone who may push to {repository} could assume the role.",
            fix="Set --subject to a specific ref (ref:refs/heads/main, environment:production), put the "
            "wildcard after a '/' (ref:refs/heads/release/*), or add --any-subject.",
        )
    if scope.account == "*":
        raise errors.ParameterError("No account given.", fix="Add --account with the account of the role.")
    audience = "sts.amazonaws.com.cn" if scope.partition == "aws-cn" else "sts.amazonaws.com"
    provider = f"arn:{scope.partition}:iam::{scope.account}:oidc-provider/{GITHUB}"
    return policy(
        {
            "Sid": "GitHubActions",
            "Effect": "Allow",
            "Principal": {"Federated": provider},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {f"{GITHUB}:aud": audience},
                "StringLike": {f"{GITHUB}:sub": f"repo:{repository}:{subject}"},
            },
        }
    )


def _too_broad(subject: str) -> str:
    """Return why a subject matches more than it names; empty if it does not.

    A wildcard is accepted only after a whole name: ``release/*`` matches the branches below ``release/``, but
    ``main*`` also matches the branch ``main-evil``, and ``prod*`` an environment that a workflow creates by
    its name. Anyone who may open a pull request controls its workflow.
    """
    if subject == "pull_request":
        return "is every pull request"
    fixed, wildcard, _ = subject.partition("*")
    if not wildcard:
        return ""
    if not any(fixed.startswith(kind) and fixed != kind for kind in _SUBJECTS):
        return "does not fix a branch, tag or environment"
    return "" if fixed.endswith(("/", ":")) else f"matches every name that starts with {fixed!r}"
