"""IAM policies with exactly the permissions of each job, in any partition.

`policy_document` makes a policy of a job's permissions: ``policy_document(needs_of(scan), scope)``. The other
functions return the permissions of publishers and the policies of VM Import, buckets and GitHub.
`vmsnix_ops.cli.iam_policy` lists all jobs.

Sources: the Service Authorization Reference (see `vmsnix_ops.aws.iam.permissions`); "Required permissions for
VM Import/Export"; "Configuring OpenID Connect in Amazon Web Services" in GitHub's documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, region_names
from vmsnix_ops.aws import buckets, identity, images, imports, keys, quotas, service_role
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import manifests, reading, writing
from vmsnix_ops.aws.iam.permissions import PERMISSIONS, Target, needs_of

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = "2012-10-17"
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
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[\w-]{1,256}(\.fifo)?", re.ASCII)
_NO_TOPIC = "arn:aws:sns:us-east-1:000000000000:none"
_ROLE = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_KEYS = re.compile(r"(?!.*\.\.)[\w!.'()/ -]{0,512}", re.ASCII)  # S3's safe characters: no wildcard among them
_POINTERS = re.compile(r"(?!.*\.\.)(/[\w.-]+)+", re.ASCII)  # of Parameter Store


@dataclass(frozen=True, slots=True)
class PolicyScope:
    """Where a policy shall hold.

    Attributes
    ----------
    account
        Twelve digits, or ``"*"``.
    regions
        Regions to which the policy is held; empty for every region.
    bucket, key_prefix, role_name
        As for a publish; the bucket ``"*"`` is every bucket.
    kms_key
        ARN of the KMS key that encrypts uploads, snapshots and AMIs; empty for none.
    partition
        ``"aws"``, ``"aws-cn"``, ``"aws-us-gov"``, ``"aws-eusc"``, ...; empty: that of the regions, else
        ``"aws"``.
    channel_prefix
        First part of the names of the channels' pointers.
    audit_role
        Name of the role that an auditor takes in other accounts.
    topic
        ARN of the SNS topic that a promoter tells; empty for every topic of the account.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        One of them cannot be right.
    vmsnix_ops.errors.RegionError
        There is no region of that name; names the nearest.
    """

    account: str = "*"
    regions: tuple[str, ...] = ()
    bucket: str = "*"
    key_prefix: str = "vmsnix/"
    role_name: str = "vmimport"
    kms_key: str = ""
    partition: str = ""
    channel_prefix: str = "/vmsnix"
    audit_role: str = "vmsnix-auditor"
    topic: str = ""

    def __post_init__(self) -> None:
        found = sorted({region_names.partition_of(region) for region in self.regions})
        if len(found) > 1 or (self.partition and found and found != [self.partition]):
            told = ", ".join(f"{name} is in {region_names.partition_of(name)}" for name in self.regions)
            raise errors.ParameterError(
                "A policy applies to one partition.",
                why=f"{told}{f', but --partition is {self.partition}' if self.partition else ''}.",
                fix="Print one policy per partition.",
            )
        object.__setattr__(self, "partition", self.partition or (found[0] if found else "aws"))
        shapes = [
            ("account", self.account, _ACCOUNT, "use 12 digits"),
            ("bucket", self.bucket, _NAME, "use 3 to 63 lower-case letters, digits, dots or dashes"),
            ("role", self.audit_role, _ROLE, "use up to 64 letters, digits or +=,.@-_"),
            ("role", self.role_name, _ROLE, "use up to 64 letters, digits or +=,.@-_"),
            ("key prefix", self.key_prefix, _KEYS, "use a plain path without wildcards"),
            ("parameter prefix", self.channel_prefix, _POINTERS, "use a name such as /vmsnix"),
            ("KMS key", self.kms_key, _KMS_KEY, "use an ARN such as arn:aws:kms:REGION:ACCOUNT:key/ID"),
            ("topic", self.topic or _NO_TOPIC, _TOPIC, "use an ARN such as arn:aws:sns:REGION:ACCOUNT:NAME"),
            ("partition", self.partition, _PARTITION, f"use one of {', '.join(region_names.partitions())}"),
            *(("region", name, _REGION, "use a region such as eu-central-1") for name in self.regions),
        ]
        for name, value, shape, rule in shapes:
            if not shape.fullmatch(value):
                raise errors.ParameterError(f"Invalid {name} {value!r}: {rule}.")
        for name in self.regions:
            identity.check_region_name(name)

    @property
    def role_arn(self) -> str:
        """ARN of VM Import's role."""
        return f"arn:{self.partition}:iam::{self.account}:role/{self.role_name}"

    @property
    def policy_name(self) -> str:
        """Name of the publisher's policy; each bucket, and so each region, has its own."""
        return f"vmsnix-publisher-{self.bucket}"

    @property
    def role_policy_name(self) -> str:
        """Name of the role's policy for this bucket, beside those for others: the role serves all regions."""
        return f"vmsnix-{self.bucket}"

    @property
    def bucket_arn(self) -> str:
        """ARN of the bucket."""
        return f"arn:{self.partition}:s3:::{self.bucket}"


def statements(names: Iterable[str], place: PolicyScope) -> list[dict[str, Any]]:
    """Return the statements that allow these permissions where they are needed, and nothing else.

    Four rules hold for every statement (tests/privileges/test_statements.py):

    - ``ec2:CreateTags`` is allowed on what is ours already, on what a creating action of this same policy
      makes (``ec2:CreateAction``), or on a snapshot that only VM Import makes. What the *request* says
      (``aws:RequestTag``, ``aws:TagKeys``) never decides alone: it describes the tags, not the resource.
    - Whatever creates something is conditioned on what it is created from. A new resource's ARN ends with a
      literal ``*``, so ``${*}`` matches it and never an existing one ("Example: Copying snapshots" in the
      EBS User Guide).
    - An AMI without snapshots, registered of a bundle in S3, may not be shared, launched or changed.
    - Who may read parameters may not decrypt them. A key is used through EBS and S3, never directly.

    Parameters
    ----------
    names
        Keys of `vmsnix_ops.aws.iam.permissions.PERMISSIONS`.
    place
        Where.
    """
    names = tuple(names)
    groups: dict[Target, list[str]] = {}
    for name in names:
        groups.setdefault(PERMISSIONS[name].target, []).append(PERMISSIONS[name].action)
    found: list[dict[str, Any]] = []
    for target, actions in groups.items():
        grants = _new_resources(names, place) if target == "new resources" else _grants(target, place)
        for sid, resources, condition in grants:
            found.append({"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": resources})
            if condition:
                found[-1]["Condition"] = condition
    if any(name.startswith("ssm:Get") for name in names):
        found.append(NO_SECRETS)
    return found


Grant = tuple[str, list[str], dict[str, Any]]
"""Name, resources and condition of a statement."""

OURS = {"StringLike": {f"aws:ResourceTag/{tagging.DIGEST}": "?*"}}
OUR_IMAGES = {
    # AWS has no condition for the bundle in S3 of which RegisterImage makes an instance store, and asks for
    # no snapshot. So nobody may use what was registered like that: these actions have the type of the root
    # device as a key, RegisterImage, CopyImage and DeleteTags have not.
    **OURS,
    "StringEquals": {"ec2:RootDeviceType": "ebs"},
}
NO_SECRETS: dict[str, Any] = {
    # Who may read a parameter may decrypt it with AWS's own key, unless an explicit Deny says otherwise: the
    # policy of that key lets in everybody in the account ("AWS managed key policies" in the KMS guide).
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
"""Actions that tag what they create, and the kinds of resources that they create."""
BACKUPS = ("aws:backup:source-resource", "aws:dlm:lifecycle-policy-id")
"""Tags of snapshots that AWS Backup and Data Lifecycle Manager made."""


def _grants(target: Target, place: PolicyScope) -> list[Grant]:
    """Return the statements of one target."""
    iam = f"arn:{place.partition}:iam::{place.account}"
    images, snapshots = _ec2(place, "image/*"), _ec2(place, "snapshot/*")
    here = {"StringEquals": {"aws:RequestedRegion": list(place.regions)}} if place.regions else {}
    known: dict[Target, list[Grant]] = {
        "everything": [("InTheseRegions", ["*"], here)],
        "global": [("Global", ["*"], {})],
        "bucket": [("Bucket", [place.bucket_arn], {})],
        "objects": [("Objects", [f"{place.bucket_arn}/{place.key_prefix}*"], {})],
        "role": [("Role", [place.role_arn], {})],
        "passed role": [
            ("PassRole", [place.role_arn], {"StringEquals": {"iam:PassedToService": service_role.SERVICE}})
        ],
        "principals": [("Principals", [f"{iam}:role/*", f"{iam}:user/*"], {})],
        "policies": [("Policies", [f"{iam}:policy/vmsnix*"], {})],
        "imported snapshots": [("TagImportedSnapshots", snapshots, _made_by_vm_import(place))],
        "registrations": [
            ("NewImages", images, {}),
            ("OfOurSnapshots", _ec2(place, "snapshot/snap-*"), OURS),
        ],
        "copies": [
            ("NewCopies", _ec2(place, "image/${*}", "snapshot/${*}"), {}),
            ("OfOurImages", _ec2(place, "image/ami-*", "snapshot/snap-*"), OURS),
        ],
        "snapshots without a parent": [
            ("NewSnapshots", snapshots, {"Null": {"ebs:ParentSnapshot": "true"}}),
        ],
        # AWS compares the parent's ARN, and no tag of it.
        "snapshots of any parent": [
            ("NewSnapshotsOfAnyParent", snapshots, {"Null": {"ebs:ParentSnapshot": "false"}})
        ],
        "our snapshots": [("OurSnapshots", snapshots, OURS)],
        "our images": [("OurImages", images, OUR_IMAGES)],
        "our tags": [
            (
                "TagOurResources",
                images + snapshots,
                OURS
                | {
                    "ForAllValues:StringNotEqualsIgnoreCase": {"aws:TagKeys": [tagging.DIGEST]},
                    "Null": {"aws:TagKeys": "false"},  # DeleteTags without keys removes every tag
                },
            )
        ],
        "our imports": [("OurImports", _ec2(place, "import-snapshot-task/*"), OURS)],
        "parameters": [
            (
                "Parameters",
                [
                    f"arn:{place.partition}:ssm:{region}:{owned}"
                    for region in place.regions or ("*",)
                    for owned in dict.fromkeys((f"{place.account}:parameter/*", ":parameter/aws/service/*"))
                ],
                {},
            )
        ],
        "launches": [
            (
                "NewInstances",
                # An interface is a new one: an existing one belongs to something else.
                _ec2(
                    place,
                    "instance/*",
                    "network-interface/${*}",
                    "security-group/*",
                    "spot-instances-request/*",
                    "subnet/*",
                    "volume/*",
                ),
                {},
            ),
            ("OfOurImages", _ec2(place, "image/ami-*"), OUR_IMAGES),
            ("WithOurSnapshots", _ec2(place, "snapshot/snap-*"), OURS),
        ],
        "our instances": [
            (
                "OurInstances",
                _ec2(place, "instance/*"),
                {"StringLike": {f"aws:ResourceTag/{tagging.SMOKE}": "?*"}},
            )
        ],
        "spot role": [
            (
                "SpotRole",
                [f"{iam}:role/aws-service-role/{SPOT}/AWSServiceRoleForEC2Spot"],
                {"StringEquals": {"iam:AWSServiceName": SPOT}},
            )
        ],
        "pointers": [
            (
                "Pointers",
                [
                    f"arn:{place.partition}:ssm:{region}:{place.account}:parameter{place.channel_prefix}{end}"
                    for region in place.regions or ("*",)
                    for end in ("", "/*")
                ],
                {},
            )
        ],
        "topics": [
            (
                "Topics",
                [place.topic]
                if place.topic
                else [
                    f"arn:{place.partition}:sns:{region}:{place.account}:*"
                    for region in place.regions or ("*",)
                ],
                {},
            )
        ],
        "audit roles": [("AuditRoles", [f"arn:{place.partition}:iam::*:role/{place.audit_role}"], {})],
    }
    return known[target]


def _ec2(place: PolicyScope, *kinds: str) -> list[str]:
    """Return ARNs of EC2 in the place's regions; those of images and snapshots have no account."""
    return [
        f"arn:{place.partition}:ec2:{region}:{owner}:{kind}"
        for region in place.regions or ("*",)
        for kind in kinds
        for owner in ["" if kind.partition("/")[0] in ("image", "snapshot") else place.account]
    ]


def _new_resources(names: tuple[str, ...], place: PolicyScope) -> list[Grant]:
    """Return the statements that allow tags inside the creating actions of this policy, and nowhere else."""
    grants: list[Grant] = []
    creating = [action for action in CREATED if action in names]
    if creating:
        kinds = sorted({f"{kind}/*" for action in creating for kind in CREATED[action]})
        named = [action.partition(":")[2] for action in creating]
        grants.append(("TagNewResources", _ec2(place, *kinds), {"StringEquals": {"ec2:CreateAction": named}}))
    if any(name.startswith("ebs:StartSnapshot") for name in names):
        # Which value StartSnapshot sets is not documented, so any will do: no other action of this policy
        # creates a snapshot.
        inside = {"Null": {"ec2:CreateAction": "false"}}
        grants.append(("TagNewSnapshots", _ec2(place, "snapshot/*"), inside))
    return grants


def _made_by_vm_import(place: PolicyScope) -> dict[str, Any]:
    """Return the condition that holds for a snapshot that VM Import made, and for a copy without any tag.

    VM Import tags its task and not its snapshot, so that nothing else tells whose it is. The parent volume
    of both, ``vol-ffffffff``, does not exist (DescribeSnapshots in the EC2 API Reference).
    """
    absent = [tagging.NAME, *(key for key in tagging.OWN if key != tagging.NAME), *BACKUPS]
    return {
        "ArnLike": {"ec2:ParentVolume": f"arn:{place.partition}:ec2:*:*:volume/vol-ffffffff"},
        "Null": {"aws:TagKeys": "false"} | {f"aws:ResourceTag/{key}": "true" for key in absent},
        "ForAllValues:StringEquals": {"aws:TagKeys": list(tagging.PUBLISHED)},
    }


def policy_document(names: Iterable[str], place: PolicyScope) -> dict[str, Any]:
    """Return the policy of these permissions; see `statements`."""
    return {"Version": VERSION, "Statement": statements(names, place)}


def preflight_actions(*, via: str = "import", public: bool = False) -> tuple[str, ...]:
    """Return what the checks of a publish look at."""
    functions: list[Any] = [identity.check_region]
    if via == "import":
        functions += [
            buckets.check_bucket,
            service_role.check_role,
            service_role.check_role_permissions,
            service_role.check_pass_role,
        ]
    if public:
        functions.append(quotas.check_public_sharing)
    return needs_of(*functions)


def thorough_actions() -> tuple[str, ...]:
    """Return what the preflight runbook looks at: those of a publish, and more."""
    functions = (
        buckets.check_bucket_private,
        buckets.check_bucket_encrypted,
        buckets.check_bucket_tls,
        buckets.check_bucket_lifecycle,
        buckets.check_bucket_versions,
        quotas.check_quotas,
        quotas.check_public_sharing,
        quotas.check_pending_snapshots,
        images.find_by_name,
    )
    found = {*needs_of(*functions), *preflight_actions()}
    return tuple(action for action in PERMISSIONS if action in found)


def publisher_actions(
    *, via: str = "import", public: bool = False, verify: bool = False, incremental: bool = False
) -> tuple[str, ...]:
    """Return the permissions of who publishes.

    Who may make a foreign snapshot ours (an import tags a snapshot without tags, an incremental upload starts
    from any parent) may neither share nor read one: that is for the promoter's and the verifier's policies.

    Parameters
    ----------
    via
        ``"import"`` or ``"direct"``.
    public
        Whether its AMIs are made public; only via direct.
    verify
        Whether snapshots are read back; only via direct.
    incremental
        Whether an upload may start from an earlier snapshot; only via direct.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        One policy would allow both.
    """
    if via == "import" and (public or verify):
        raise errors.UsageError(
            f"A publisher via import cannot have {'--public' if public else '--verify'}.",
            why="VM Import does not tag its snapshots, so AWS cannot distinguish them from copies of other "
            "snapshots. A publisher that may tag them must not share or read snapshots.",
            fix="Use --via direct, or grant it separately: vmsnix iam-policy "
            f"{'promoter --public' if public else 'verifier --blocks'}",
        )
    if via == "import" and incremental:
        raise errors.UsageError("--incremental needs --via direct.", fix="Add --via direct.")
    if incremental and (public or verify):
        raise errors.UsageError(
            f"An incremental publisher cannot have {'--public' if public else '--verify'}.",
            why="It may start from any snapshot, because AWS cannot compare the tags of a parent. Such a "
            "publisher must not share or read snapshots.",
            fix="Leave --incremental out, or grant it separately: vmsnix iam-policy "
            f"{'promoter --public' if public else 'verifier --blocks'}",
        )
    functions: list[Any] = [
        images.find_by_name,
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
            imports.tasks,
            imports.import_snapshot,
            imports.cancel,
        ]
    else:
        functions += [writing.find, writing.upload, writing.finish, imports.delete_snapshot]
    if incremental:
        functions.append(manifests.choose_parent)
    if verify:
        functions.append(reading.verify)
    if public:
        functions.append(images.make_public)
    found = {*needs_of(*functions), *preflight_actions(via=via, public=public)}
    return tuple(name for name in PERMISSIONS if name in found)


def publisher_policy(place: PolicyScope) -> dict[str, Any]:
    """Return the policy of who publishes via import."""
    return add_key_statements(policy_document(publisher_actions(), place), place)


def add_key_statements(policy: dict[str, Any], place: PolicyScope, *, via: str = "import") -> dict[str, Any]:
    """Return a publisher's policy that allows the use of the place's key, too."""
    used = keys.caller_statements(place.kms_key, via=via)
    return {**policy, "Statement": [*policy["Statement"], *used]}


def deny_uploads_statement(place: PolicyScope, key_prefix: str) -> dict[str, Any]:
    """Return the statement that keeps an archivist from the images below a prefix of the archive's bucket."""
    return {
        "Sid": "NoUploads",
        "Effect": "Deny",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"{place.bucket_arn}/{key_prefix}*"],
    }


def import_role_policy(place: PolicyScope) -> dict[str, Any]:
    """Return the policy of VM Import's own role: read the bucket, make snapshots."""
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "ReadTheBucket",
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:ListBucket"],
                "Resource": [place.bucket_arn],
            },
            {
                "Sid": "ReadTheImages",
                "Effect": "Allow",
                "Action": ["s3:GetObject"],
                "Resource": [f"{place.bucket_arn}/{place.key_prefix}*"],
            },
            {
                "Sid": "MakeSnapshots",
                "Effect": "Allow",
                "Action": [
                    "ec2:CopySnapshot",
                    "ec2:Describe*",
                    "ec2:ModifySnapshotAttribute",
                    "ec2:RegisterImage",
                ],
                "Resource": ["*"],
            },
            *keys.role_statements(place.kms_key),
        ],
    }


def import_role_trust_policy() -> dict[str, Any]:
    """Return the trust policy that lets VM Import, and nobody else, take its role."""
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "VmImport",
                "Effect": "Allow",
                "Principal": {"Service": service_role.SERVICE},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:Externalid": service_role.EXTERNAL_ID}},
            }
        ],
    }


def tls_only_policy(place: PolicyScope) -> dict[str, Any]:
    """Return the bucket policy that refuses every request without TLS."""
    return {"Version": VERSION, "Statement": [tls_statement(place)]}


def tls_statement(place: PolicyScope) -> dict[str, Any]:
    """Return the one statement of `tls_only_policy`."""
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [place.bucket_arn, f"{place.bucket_arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def github_trust_policy(
    place: PolicyScope, *, repository: str, subject: str = "ref:refs/heads/main", any_subject: bool = False
) -> dict[str, Any]:
    """Return the trust policy of a role that a GitHub repository's workflows take, without any stored key.

    Parameters
    ----------
    place
        Its account and partition; the account must be given.
    repository
        ``owner/name``.
    subject
        Which workflows of it: ``ref:refs/heads/main``, ``environment:production``, ...
    any_subject
        Whether a subject may match what it does not name, such as ``*``, ``pull_request`` and
        ``ref:refs/heads/main*``: who may push a branch may take the role.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The repository or the subject cannot be right, would let in more than one repository, or matches what
        it does not name without `any_subject`.
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
    reason = "" if any_subject else _matches_more(subject)
    if reason:
        raise errors.ParameterError(
            f"The subject {subject!r} {reason}.",
            why=f"Anyone who may push to {repository} could assume the role.",
            fix="Set --subject to a specific ref (ref:refs/heads/main, environment:production), put the "
            "wildcard after a '/' (ref:refs/heads/release/*), or add --any-subject.",
        )
    if place.account == "*":
        raise errors.ParameterError("No account given.", fix="Add --account with the account of the role.")
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "GitHubActions",
                "Effect": "Allow",
                "Principal": {
                    "Federated": f"arn:{place.partition}:iam::{place.account}:oidc-provider/{GITHUB}"
                },
                "Action": "sts:AssumeRoleWithWebIdentity",
                "Condition": {
                    "StringEquals": {f"{GITHUB}:aud": _audience(place.partition)},
                    "StringLike": {f"{GITHUB}:sub": f"repo:{repository}:{subject}"},
                },
            }
        ],
    }


def _matches_more(subject: str) -> str:
    """Return what is wrong with a subject that matches more than it names; empty if it does not.

    A wildcard is accepted behind a whole name only: ``release/*`` are the branches below ``release/``, but
    ``main*`` is also the branch ``main-evil``, and ``prod*`` an environment that a workflow creates by naming
    it. Who may open a pull request decides what its workflow does.
    """
    if subject == "pull_request":
        return "is every pull request"
    fixed, wildcard, _ = subject.partition("*")
    if not wildcard:
        return ""
    if not any(fixed.startswith(kind) and fixed != kind for kind in _SUBJECTS):
        return "does not fix a branch, tag or environment"
    return "" if fixed.endswith(("/", ":")) else f"matches every name that starts with {fixed!r}"


def _audience(partition: str) -> str:
    return "sts.amazonaws.com.cn" if partition == "aws-cn" else "sts.amazonaws.com"
