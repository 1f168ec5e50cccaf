"""Check the service role of VM Import before an upload.

ImportSnapshot has one message for four causes: the role does not exist, EC2 does not accept a new role yet,
the caller may not pass the role, or the role may not read the bucket. These checks distinguish them.

Source: "Required permissions for VM Import/Export" in the VM Import/Export User Guide.
"""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import keys
from vmsnix_ops.aws.buckets import read_default_encryption
from vmsnix_ops.aws.checks import CheckResult
from vmsnix_ops.aws.iam.documents import as_list, read_statements
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.iam.simulation import allowed_resources, missing_actions
from vmsnix_ops.aws.session import calling, code_of
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from types_boto3_iam.client import IAMClient
    from types_boto3_s3.client import S3Client

    from vmsnix_ops.aws.identity import CallerIdentity


SERVICE = "vmie.amazonaws.com"
EXTERNAL_ID = "vmimport"
NEW_ROLE_SECONDS = 120  # EC2 may not accept a newer role yet
BUCKET_ACTIONS = ("s3:GetBucketLocation", "s3:ListBucket")
UNUSED_NAME = "other7f3a"  # part of no bucket's name
OBJECT_ACTIONS = ("s3:GetObject",)
SNAPSHOT_ACTIONS = (
    "ec2:ModifySnapshotAttribute",
    "ec2:CopySnapshot",
    "ec2:RegisterImage",
    "ec2:DescribeSnapshots",
)
PRINT_POLICY = (
    "vmsnix iam-policy vmimport-role --bucket {bucket} prints its policy; vmsnix bootstrap sets it."
)


@needs("iam:GetRole")
def check_role(iam: IAMClient, name: str) -> CheckResult:
    """Check that the role exists and that VM Import may assume it."""
    try:
        with calling(f"read the role {name}"):
            found = iam.get_role(RoleName=name)["Role"]
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        raise error.restated(
            errors.RoleError,
            f"The role {name} does not exist.",
            why="VM Import reads the uploaded image with a service role in your account.",
            fix="Create it (vmsnix bootstrap --no-dry-run), or use another with --role-name NAME.",
        ) from error
    age = (datetime.now(UTC) - found["CreateDate"]).total_seconds()
    facts = {"age_seconds": age, "arn": found["Arn"], "new": age < NEW_ROLE_SECONDS}
    trust = classify_trust(found["AssumeRolePolicyDocument"])
    if trust == "untrusted":
        raise errors.RoleError(
            f"The role {name} does not trust VM Import.",
            why=f"Its trust policy does not let {SERVICE} assume it.",
            fix=f'Allow {SERVICE} sts:AssumeRole with the condition sts:Externalid = "{EXTERNAL_ID}". To '
            "print the policy: vmsnix iam-policy vmimport-trust",
        )
    if trust == "refused":
        raise errors.RoleError(
            f"The role {name} does not trust VM Import.",
            why=f"It requires another sts:Externalid than {EXTERNAL_ID!r}, which VM Import sends.",
            fix="Correct the condition. To print the policy: vmsnix iam-policy vmimport-trust",
        )
    text = found["Arn"]
    if facts["new"]:
        text += f", created {counted(round(age), 'second')} ago: "
        text += "EC2 may not accept it yet; a publish waits for that"
    if trust == "open":
        fix = "Add the condition from vmsnix iam-policy vmimport-trust; vmsnix bootstrap sets it."
        return CheckResult(
            "vmimport role", "warn", f"{text}; no condition on sts:Externalid", fix, facts=facts
        )
    return CheckResult("vmimport role", "pass", text, facts=facts)


def classify_trust(document: Any) -> str:
    """Return how a trust policy treats VM Import: ``trusted``, ``open``, ``refused`` or ``untrusted``.

    ``open`` allows any external ID; ``refused`` requires another external ID than VM Import's.
    """
    trust = "untrusted"
    for statement in read_statements(document):
        principal = statement.get("Principal", {})
        services = as_list(principal.get("Service")) if isinstance(principal, dict) else []
        actions = {str(action).lower() for action in as_list(statement.get("Action"))}
        named = any(str(s).startswith(SERVICE) for s in services)
        if statement.get("Effect") != "Allow" or not named or not {"sts:assumerole", "sts:*", "*"} & actions:
            continue
        wanted = [
            str(value)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
            if key.lower() == "sts:externalid" and operator.startswith("String")
            for value in as_list(values)
        ]
        if EXTERNAL_ID in wanted:
            return "trusted"
        trust = "open" if not wanted else ("refused" if trust == "untrusted" else trust)
    return trust


@needs("iam:SimulatePrincipalPolicy")
def check_role_permissions(
    iam: IAMClient, s3: S3Client, arn: str, bucket: str, key_prefix: str
) -> CheckResult:
    """Check that the role may read only the images of this bucket, and may create snapshots.

    A bucket policy may allow more than the role's own policies. The simulation does not include it. So if the
    bucket policy names the role, a missing permission is a warning, not a failure.

    A caller who may start an import can read all objects that the role can read, as the disk of a snapshot.
    The simulation checks single ARNs, so this check simulates objects that a policy with a wildcard would
    include. It does not find a policy that names another bucket in full.
    """
    name, partition = arn.rpartition("/")[2], arn.split(":")[1]
    home = f"arn:{partition}:s3:::{bucket}"
    result = partial(CheckResult, "vmimport role's permissions")
    lacks = missing_actions(iam, arn, BUCKET_ACTIONS, [home])
    lacks += missing_actions(iam, arn, OBJECT_ACTIONS, [f"{home}/{key_prefix}image.vhd"])
    snapshot_lacks = missing_actions(iam, arn, SNAPSHOT_ACTIONS, ["*"])
    fix = PRINT_POLICY.format(bucket=bucket)
    if lacks and any(
        one.get("Effect") == "Allow" and arn in str(one.get("Principal")) for one in _policy(s3, bucket)
    ):
        return result("warn", f"the role lacks {', '.join(lacks)}, but the bucket policy may allow it", fix)
    if lacks:
        raise errors.RoleError(
            f"The role {name} may not read the bucket {bucket}.",
            why=f"Its policies do not allow {', '.join(lacks)} there.",
            fix=fix,
        )
    if snapshot_lacks:
        return result("warn", f"the role lacks {', '.join(snapshot_lacks)}", fix)
    examples = objects_beyond_images(bucket, key_prefix, partition)
    beyond = allowed_resources(iam, arn, "s3:GetObject", examples) or _allowed_by_bucket_policy(
        s3, bucket, arn, examples
    )
    if beyond:
        images = f"{home}/{key_prefix}*"
        text = f"{name} may read more than {images}, for example {beyond[0]}"
        why = "Anyone who may import a snapshot can read it too."
        fix = f"{why} Replace the role's policies with one for the images only: {fix}"
        return result("warn", text, fix, facts={"beyond": beyond})
    return result("pass", f"{name} may read the images of {bucket} and create snapshots")


def objects_beyond_images(bucket: str, key_prefix: str, partition: str = "aws") -> list[str]:
    """Return ARNs of objects that a policy for the images excludes, but a policy with a wildcard may include.

    These are objects beside the prefix and beside each folder above it, with and without an image's suffix;
    and objects in buckets whose names start or end like this bucket's, or are different.
    """
    names = ("secret", "image.vhd")
    folders = key_prefix.split("/")[:-1]
    beside = [f"{'/'.join(folders[: depth + 1])}-other" for depth in range(len(folders))]
    if key_prefix:
        beside += [*([] if key_prefix.endswith("/") else [f"{key_prefix}-other"]), "other"]
    keys = [f"{folder}/{name}" for folder in beside for name in names]
    keys = [key for key in dict.fromkeys(keys) if not key.startswith(key_prefix)]
    words = bucket.split("-")
    others = ["-".join([*words[:count], UNUSED_NAME]) for count in range(len(words), 0, -1)]
    others += ["-".join([UNUSED_NAME, *words[count:]]) for count in range(len(words))]
    others += [UNUSED_NAME]
    homes = [(bucket, key) for key in keys]
    homes += [(other, f"{prefix}{name}") for prefix in (key_prefix, "") for other in others for name in names]
    return [f"arn:{partition}:s3:::{home}/{key}" for home, key in homes]


@needs("iam:SimulatePrincipalPolicy")
def check_role_key_permissions(iam: IAMClient, arn: str, key: str, bucket: str) -> CheckResult:
    """Check that the role's own policies allow it to encrypt snapshots with a key.

    The check does not read the key policy, which can also allow or deny it.
    """
    lacks = missing_actions(iam, arn, keys.SIMULATED, [key])
    name = arn.rpartition("/")[2]
    if lacks:
        raise errors.RoleError(
            f"The role {name} may not use the key {key}.",
            why=f"Its policies do not allow {', '.join(lacks)} on it, so an import would fail.",
            fix=f"vmsnix iam-policy vmimport-role --bucket {bucket} --kms-key {key} prints its policy; "
            "vmsnix bootstrap sets it when kms_key is in vmsnix.toml.",
        )
    return CheckResult("vmimport role's key", "pass", f"{name} may use {key}, if the key policy allows it")


@needs("iam:SimulatePrincipalPolicy", "s3:GetEncryptionConfiguration")
def check_bucket_key_permissions(iam: IAMClient, s3: S3Client, arn: str, bucket: str) -> CheckResult:
    """Check that the role may decrypt objects if the bucket encrypts them with a customer key."""
    with calling(f"read the encryption of the bucket {bucket}"):
        found = [default.get("KMSMasterKeyID", "") for default in read_default_encryption(s3, bucket)]
    key = next((one for one in found if one), "")
    name = arn.rpartition("/")[2]
    if not key.startswith("arn:") or ":alias/" in key:
        return CheckResult("bucket's key", "pass", f"{key or 'a key of S3'}: not checked further")
    if missing_actions(iam, arn, ["kms:Decrypt"], [key]):
        raise errors.RoleError(
            f"The role {name} cannot decrypt objects in the bucket {bucket}.",
            why=f"The bucket's default key is {key}, and the role's policies do not allow kms:Decrypt on it.",
            fix=f"vmsnix iam-policy vmimport-role --bucket {bucket} --kms-key {key} prints one that does.",
        )
    return CheckResult("bucket's key", "pass", f"{name} may decrypt with {key}, if the key policy allows it")


def _allowed_by_bucket_policy(s3: S3Client, bucket: str, arn: str, examples: list[str]) -> list[str]:
    """Return the objects that the bucket policy allows the role to read, ignoring conditions."""
    found: list[str] = []
    for statement in _policy(s3, bucket):
        principal = statement.get("Principal")
        named = as_list(principal.get("AWS")) if isinstance(principal, dict) else [principal]
        actions = [str(action).lower() for action in as_list(statement.get("Action"))]
        if (
            statement.get("Effect") == "Allow"
            and {"*", arn} & set(named)
            and any(fnmatchcase("s3:getobject", action) for action in actions)
        ):
            allowed = as_list(statement.get("Resource"))
            found += [one for one in examples if any(fnmatchcase(one, pattern) for pattern in allowed)]
    return found


def _policy(s3: S3Client, bucket: str) -> list[dict[str, Any]]:
    try:
        return read_statements(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    except s3.exceptions.ClientError:
        return []  # missing or not readable


@needs("iam:SimulatePrincipalPolicy")
def check_pass_role(iam: IAMClient, who: CallerIdentity, arn: str) -> CheckResult:
    """Check that the caller may pass the role to VM Import."""
    if who.is_root:
        return CheckResult("pass role", "pass", "the root user may pass every role")
    name = arn.rpartition("/")[2]
    try:
        lacks = missing_actions(
            iam, who.policy_source, ["iam:PassRole"], [arn], {"iam:PassedToService": SERVICE}
        )
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        return unknown_caller_check("pass role", who)
    if lacks:
        raise errors.RoleError(
            f"The caller may not pass the role {name} to VM Import.",
            why=f"The policies of {who.policy_source} do not allow iam:PassRole on {arn}.",
            fix=f"Allow iam:PassRole on {arn}, with iam:PassedToService = {SERVICE}.",
        )
    return CheckResult("pass role", "pass", f"{who.policy_source.rpartition('/')[2]} may pass {name}")


def unknown_caller_check(name: str, who: CallerIdentity) -> CheckResult:
    """Return the warning for a caller whose policies IAM does not find by the ARN of its session."""
    return CheckResult(
        name,
        "warn",
        f"not checked: {who.policy_source} not found in IAM",
        "A role with a path (AWS SSO's, for example) cannot be simulated from its session.",
    )
