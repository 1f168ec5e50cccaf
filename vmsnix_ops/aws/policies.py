"""Policies: what each job needs and not an action more, in any partition.

`document` turns a job's actions into a policy; the functions below it are the jobs of this room. What other
rooms do (audits, for example) sums up its own functions the same way: ``document(needs_of(scan), place)``.
`vmsnix_ops._cli.jobs` lists them all.

Sources: the Service Authorization Reference (see `vmsnix_ops.aws.permissions`); "Required permissions for VM
Import/Export"; "Configuring OpenID Connect in Amazon Web Services" in GitHub's documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import (
    block_reading,
    blocks,
    buckets,
    images,
    imports,
    preflight_account,
    preflight_bucket,
    preflight_limits,
    preflight_role,
)
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.permissions import PERMISSIONS, Target, needs_of

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = "2012-10-17"
SPOT = "spot.amazonaws.com"
GITHUB = "token.actions.githubusercontent.com"
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]{1,100}")
_SUBJECT = re.compile(r"[A-Za-z0-9:/._*-]+")
_ACCOUNT = re.compile(r"[0-9]{12}|\*")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|\*")
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,2}-[0-9]+")
_PARTITION = re.compile(r"aws(-[a-z]+)*")
_TAGGED_AT_LAUNCH = re.compile(r":(instance|spot-instances-request|volume)/")
_ROLE = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_KEYS = re.compile(r"(?!.*\.\.)[\w!.'()/ -]{0,512}", re.ASCII)  # S3's safe characters: no wildcard among them
_POINTERS = re.compile(r"(?!.*\.\.)(/[\w.-]+)+", re.ASCII)  # of Parameter Store


@dataclass(frozen=True, slots=True)
class Place:
    """Where a policy shall hold.

    Attributes
    ----------
    account
        Twelve digits, or ``"*"``.
    regions
        Regions to which the policy is held; empty for every region.
    bucket, key_prefix, role_name
        As for a publish; the bucket ``"*"`` is every bucket.
    partition
        ``"aws"``, ``"aws-cn"`` or ``"aws-us-gov"``.
    pointer_prefix
        First part of the names of the channels' pointers.
    audit_role
        Name of the role that an auditor takes in other accounts.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        One of them cannot be right.
    """

    account: str = "*"
    regions: tuple[str, ...] = ()
    bucket: str = "*"
    key_prefix: str = "vmsnix/"
    role_name: str = "vmimport"
    partition: str = "aws"
    pointer_prefix: str = "/vmsnix"
    audit_role: str = "vmsnix-auditor"

    def __post_init__(self) -> None:
        shapes = [
            ("account", self.account, _ACCOUNT, "An account id has 12 digits."),
            ("bucket", self.bucket, _NAME, "S3 allows 3 to 63 lower-case letters, digits, dots and dashes."),
            ("role", self.audit_role, _ROLE, "IAM allows 64 letters, digits and +=,.@-_."),
            ("role", self.role_name, _ROLE, "IAM allows 64 letters, digits and +=,.@-_."),
            ("key prefix", self.key_prefix, _KEYS, "It would be another path, or stand for many."),
            ("prefix of pointers", self.pointer_prefix, _POINTERS, "It is called like /vmsnix."),
            ("partition", self.partition, _PARTITION, "There are aws, aws-cn and aws-us-gov."),
            *(("region", name, _REGION, "A region is called like eu-central-1.") for name in self.regions),
        ]
        for name, value, shape, why in shapes:
            if not shape.fullmatch(value):
                raise errors.ParameterError(
                    f"The {name} {value!r} cannot be right.", why=why, cure="Correct it."
                )

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


def resources(target: Target, place: Place) -> list[str]:
    """Return the ARNs that a permission of this target is given on."""
    ec2 = [f"arn:{place.partition}:ec2:{region}:" for region in place.regions or ("*",)]
    iam = f"arn:{place.partition}:iam::{place.account}"
    everywhere = [f"{region}:{place.account}:" for region in place.regions or ("*",)]
    known: dict[Target, list[str]] = {
        "everything": ["*"],
        "global": ["*"],
        "bucket": [place.bucket_arn],
        "objects": [f"{place.bucket_arn}/{place.key_prefix}*"],
        "role": [place.role_arn],
        "principals": [f"{iam}:role/*", f"{iam}:user/*"],
        "policies": [f"{iam}:policy/vmsnix*"],
        "tagged at creation": [
            f"{home}{owner}:{kind}/*"
            for home in ec2
            for owner, kind in (("", "image"), ("", "snapshot"), (place.account, "import-snapshot-task"))
        ],
        "snapshots": [f"{home}:snapshot/*" for home in ec2],
        "our snapshots": [f"{home}:snapshot/*" for home in ec2],
        "our images": [f"{home}:image/*" for home in ec2],
        "audit roles": [f"arn:{place.partition}:iam::*:role/{place.audit_role}"],
        "our resources": [f"{home}:{kind}/*" for home in ec2 for kind in ("image", "snapshot")],
        "parameters": [
            f"arn:{place.partition}:ssm:{region}:{owned}"
            for region in place.regions or ("*",)
            for owned in dict.fromkeys((f"{place.account}:parameter/*", ":parameter/aws/service/*"))
        ],
        "launches": launched(place) + [f"{home}:{kind}/*" for home in ec2 for kind in ("image", "snapshot")],
        "spot role": [f"{iam}:role/aws-service-role/{SPOT}/AWSServiceRoleForEC2Spot"],
        "our instances": [f"{home}{place.account}:instance/*" for home in ec2],
        "pointers": [
            f"arn:{place.partition}:ssm:{where}parameter{place.pointer_prefix}{end}"
            for where in everywhere
            for end in ("", "/*")
        ],
        "topics": [f"arn:{place.partition}:sns:{where}*" for where in everywhere],
    }
    return known[target]


def launched(place: Place) -> list[str]:
    """Return the ARNs of what a launch makes or uses besides the AMI."""
    kinds = (
        "instance",
        "network-interface",
        "security-group",
        "spot-instances-request",
        "subnet",
        "volume",
    )
    home = f"arn:{place.partition}:ec2"
    return [
        f"{home}:{region}:{place.account}:{kind}/*" for region in place.regions or ("*",) for kind in kinds
    ]


def condition(action: str, target: Target, place: Place) -> dict[str, Any]:
    """Return the condition that narrows a permission further; empty when there is none."""
    if action == "iam:PassRole":
        return {"StringEquals": {"iam:PassedToService": preflight_role.SERVICE}}
    if target == "spot role":
        return {"StringEquals": {"iam:AWSServiceName": SPOT}}
    if target == "our instances":
        return {"StringLike": {f"aws:ResourceTag/{tagging.SMOKE}": "?*"}}
    if target in ("our snapshots", "our images", "our resources"):
        return {"StringLike": {f"aws:ResourceTag/{tagging.DIGEST}": "?*"}}
    if target == "everything" and place.regions:
        return {"StringEquals": {"aws:RequestedRegion": list(place.regions)}}
    return {}


def document(actions: Iterable[str], place: Place) -> dict[str, Any]:
    """Return the policy that allows these actions where they are needed, and nothing else.

    Parameters
    ----------
    actions
        Keys of `vmsnix_ops.aws.permissions.PERMISSIONS`.
    place
        Where.
    """
    actions = tuple(actions)
    groups: dict[tuple[Target, bool], list[str]] = {}
    for action in actions:
        target = PERMISSIONS[action].target
        groups.setdefault((target, action == "iam:PassRole"), []).append(action)
    statements = []
    for (target, _), group in groups.items():
        statement: dict[str, Any] = {
            "Sid": _sid(target, group),
            "Effect": "Allow",
            "Action": sorted(group),
            "Resource": resources(target, place),
        }
        if target == "tagged at creation" and "ec2:RunInstances" in actions:
            statement["Resource"] += [arn for arn in launched(place) if _TAGGED_AT_LAUNCH.search(arn)]
        narrowed = condition(group[0], target, place)
        statements.append(statement | ({"Condition": narrowed} if narrowed else {}))
    return {"Version": VERSION, "Statement": statements}


def _sid(target: str, group: list[str]) -> str:
    words = "pass role" if group == ["iam:PassRole"] else target
    words = "in these regions" if words == "everything" else words
    return "".join(word.capitalize() for word in words.split())


def preflight_actions(*, via: str = "import", public: bool = False) -> tuple[str, ...]:
    """Return what the checks of a publish look at."""
    functions: list[Any] = [preflight_account.region]
    if via == "import":
        functions += [
            preflight_bucket.bucket,
            preflight_role.role,
            preflight_role.role_rights,
            preflight_role.pass_role,
        ]
    if public:
        functions.append(preflight_limits.public_sharing)
    return needs_of(*functions)


def thorough_actions() -> tuple[str, ...]:
    """Return what the preflight runbook looks at: those of a publish, and more."""
    functions = (
        preflight_bucket.private,
        preflight_bucket.encrypted,
        preflight_bucket.tls_only,
        preflight_bucket.lifecycle,
        preflight_limits.quotas,
        preflight_limits.public_sharing,
        preflight_limits.pending_snapshots,
        images.find_by_name,
    )
    found = {*needs_of(*functions), *preflight_actions()}
    return tuple(action for action in PERMISSIONS if action in found)


def publisher_actions(*, via: str = "import", public: bool = False, verify: bool = False) -> tuple[str, ...]:
    """Return what a publish needs.

    Parameters
    ----------
    via
        ``"import"`` or ``"direct"``.
    public
        Whether its AMIs are made public.
    verify
        Whether snapshots are read back.
    """
    functions: list[Any] = [
        images.find_by_name,
        images.describe,
        images.register,
        images.add_tags,
        imports.find_snapshot,
        imports.wait_for_snapshot,
        imports.delete_snapshot,
    ]
    if via == "import":
        functions += [buckets.upload, buckets.delete, imports.tasks, imports.import_snapshot, imports.cancel]
    else:
        functions += [blocks.find, blocks.upload, blocks.finish]
    if verify:
        functions.append(block_reading.verify)
    if public:
        functions.append(images.share_with_everybody)
    found = {*needs_of(*functions), *preflight_actions(via=via, public=public)}
    return tuple(action for action in PERMISSIONS if action in found)


def publisher(
    place: Place, *, via: str = "import", public: bool = False, verify: bool = False
) -> dict[str, Any]:
    """Return the policy of who publishes; the parameters are those of `publisher_actions`."""
    return document(publisher_actions(via=via, public=public, verify=verify), place)


def import_role(place: Place) -> dict[str, Any]:
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
        ],
    }


def import_trust() -> dict[str, Any]:
    """Return the trust policy that lets VM Import, and nobody else, take its role."""
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "VmImport",
                "Effect": "Allow",
                "Principal": {"Service": preflight_role.SERVICE},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:Externalid": preflight_role.EXTERNAL_ID}},
            }
        ],
    }


def tls_only(place: Place) -> dict[str, Any]:
    """Return the bucket policy that refuses every request without TLS."""
    return {"Version": VERSION, "Statement": [tls_statement(place)]}


def tls_statement(place: Place) -> dict[str, Any]:
    """Return the one statement of `tls_only`."""
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [place.bucket_arn, f"{place.bucket_arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def github_trust(place: Place, *, repository: str, subject: str = "ref:refs/heads/main") -> dict[str, Any]:
    """Return the trust policy of a role that a GitHub repository's workflows take, without any stored key.

    Parameters
    ----------
    place
        Its account and partition; the account must be given.
    repository
        ``owner/name``.
    subject
        Which workflows of it: ``ref:refs/heads/main``, ``environment:production``, ``pull_request``, ...

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The repository or the subject cannot be right, or would let in more than one repository.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise errors.ParameterError(
            f"The repository {repository!r} cannot be right.",
            why="A wildcard or a missing owner would let strangers in.",
            cure="Give owner/name.",
        )
    if not _SUBJECT.fullmatch(subject):
        raise errors.ParameterError(
            f"The subject {subject!r} cannot be right.", cure="Give ref:refs/heads/main, for example."
        )
    if place.account == "*":
        raise errors.ParameterError("No account was given.", cure="Give the account of the role: --account.")
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


def _audience(partition: str) -> str:
    return "sts.amazonaws.com.cn" if partition == "aws-cn" else "sts.amazonaws.com"
