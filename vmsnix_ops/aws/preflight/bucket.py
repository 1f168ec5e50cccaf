"""Checks of the bucket: there, ours, in the right region; private, encrypted, TLS only, without leftovers.

Sources: the operations' pages in the Amazon S3 API Reference; "Security best practices for Amazon S3".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.aws.iam.documents import listed, statements
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import Client, calling
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
BOOTSTRAP = "Run vmsnix bootstrap --no-dry-run, which sets it."


@needs("s3:ListBucket")
def bucket(s3: Client, name: str, region: str, account: str) -> Check:
    """Check whether the bucket is there, ours, and in the region."""
    try:
        with calling(f"look at the bucket {name}"):
            answer = s3.head_bucket(Bucket=name, ExpectedBucketOwner=account)
    except errors.AwsError as error:
        if error.code in ("404", "NoSuchBucket"):
            raise buckets.missing(name) from error
        if error.code in ("403", "AccessDenied"):
            raise errors.BucketError(
                f"The bucket {name} may not be used.",
                why="It belongs to another account, or the caller lacks s3:ListBucket on it.",
                cure="Name a bucket of this account, or allow s3:ListBucket, s3:GetObject and s3:PutObject "
                "on it.",
                code=error.code,
                operation=error.operation,
                request_id=error.request_id,
            ) from error
        if error.code in ("301", "PermanentRedirect"):
            raise _elsewhere(name, "another region", region) from error
        raise
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    where = answer.get("BucketRegion") or headers.get("x-amz-bucket-region", region)
    if where != region:
        raise _elsewhere(name, where, region)
    return Check("bucket", "pass", f"{name} in {where}, of account {account}")


def _elsewhere(name: str, where: str, region: str) -> errors.BucketError:
    return errors.BucketError(
        f"The bucket {name} is in {where}, not in {region}.",
        why="VM Import reads only from a bucket of its own region.",
        cure=f"Name a bucket in {region}, or publish to {where}.",
    )


@needs("s3:GetBucketPublicAccessBlock", "s3:GetBucketPolicyStatus")
def private(s3: Client, name: str) -> Check:
    """Check that nobody else can read it. A public policy fails; a block with gaps is a warning."""
    with calling(f"look whether the bucket {name} is private"):
        status = _document(s3, "get_bucket_policy_status", name, "NoSuchBucketPolicy")
        block = _document(s3, "get_public_access_block", name, "NoSuchPublicAccessBlockConfiguration")
    if status.get("PolicyStatus", {}).get("IsPublic"):
        raise errors.BucketError(
            f"The bucket {name} is public.",
            why="Its policy lets everybody in, and an image may hold secrets.",
            cure="Remove that statement from the bucket policy, and " + BOOTSTRAP[0].lower() + BOOTSTRAP[1:],
        )
    on = block.get("PublicAccessBlockConfiguration", {})
    off = [setting for setting in BLOCKS if not on.get(setting)]
    if off:
        return Check("bucket private", "warn", f"not blocked: {', '.join(off)}", BOOTSTRAP)
    return Check("bucket private", "pass", "public access is blocked, the policy is not public")


@needs("s3:GetEncryptionConfiguration")
def encrypted(s3: Client, name: str) -> Check:
    """Check whether it is encrypted by default."""
    with calling(f"look whether the bucket {name} is encrypted"):
        answer = _document(
            s3, "get_bucket_encryption", name, "ServerSideEncryptionConfigurationNotFoundError"
        )
    rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    ways = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm", "") for rule in rules]
    if not any(ways):
        return Check("bucket encrypted", "warn", "no default encryption", BOOTSTRAP)
    return Check("bucket encrypted", "pass", ", ".join(way for way in ways if way))


@needs("s3:GetBucketPolicy")
def tls_only(s3: Client, name: str) -> Check:
    """Check whether its policy refuses what is not encrypted on the way."""
    with calling(f"look at the policy of the bucket {name}"):
        answer = _document(s3, "get_bucket_policy", name, "NoSuchBucketPolicy")
    if any(requires_tls(statement) for statement in statements(answer.get("Policy", "{}"))):
        return Check("bucket TLS only", "pass", "requests without TLS are refused")
    return Check("bucket TLS only", "warn", "the policy does not refuse requests without TLS", BOOTSTRAP)


def requires_tls(statement: dict[str, Any]) -> bool:
    """Whether a statement of a bucket policy refuses everybody everything without TLS."""
    condition = statement.get("Condition", {}).get("Bool", {})
    insecure = [str(v).lower() for k, v in condition.items() if k.lower() == "aws:securetransport"]
    everybody = statement.get("Principal") in ("*", {"AWS": "*"}, {"AWS": ["*"]})
    return (
        statement.get("Effect") == "Deny"
        and everybody
        and insecure in (["false"], ["['false']"])
        and any(action in ("*", "s3:*") for action in listed(statement.get("Action")))
    )


@needs("s3:GetLifecycleConfiguration")
def lifecycle(s3: Client, name: str, key_prefix: str) -> Check:
    """Check whether S3 itself removes what a dead machine leaves: objects, and unfinished uploads."""
    with calling(f"look at the lifecycle of the bucket {name}"):
        answer = _document(s3, "get_bucket_lifecycle_configuration", name, "NoSuchLifecycleConfiguration")
    rules = [rule for rule in answer.get("Rules", []) if _covers(rule, key_prefix)]
    uploads = [
        rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]
        for rule in rules
        if "AbortIncompleteMultipartUpload" in rule
    ]
    objects = [rule["Expiration"]["Days"] for rule in rules if rule.get("Expiration", {}).get("Days")]
    if uploads and objects:
        evidence = (
            f"uploads end after {counted(min(uploads), 'day')}, objects after {counted(min(objects), 'day')}"
        )
        return Check("bucket leftovers", "pass", evidence)
    left = " and ".join(
        what for what, found in (("unfinished uploads", uploads), ("objects", objects)) if not found
    )
    return Check("bucket leftovers", "warn", f"nothing removes {left} below {key_prefix!r}", BOOTSTRAP)


@needs("s3:GetBucketVersioning", "s3:GetLifecycleConfiguration")
def versions(s3: Client, name: str, key_prefix: str) -> Check:
    """Check whether removed images stay in the bucket as versions that nothing deletes."""
    with calling(f"read the versioning of the bucket {name}"):
        state = str(s3.get_bucket_versioning(Bucket=name).get("Status") or "")
        answer = _document(s3, "get_bucket_lifecycle_configuration", name, "NoSuchLifecycleConfiguration")
    if not state:
        return Check("bucket versions", "pass", "the bucket keeps no versions")
    if expires_versions(answer.get("Rules", []), key_prefix):
        return Check("bucket versions", "pass", f"versioning is {state}; old versions of images expire")
    evidence = f"versioning is {state}, and nothing deletes old versions below {key_prefix!r}"
    return Check("bucket versions", "warn", evidence, BOOTSTRAP)


def expires_versions(rules: Iterable[dict[str, Any]], key_prefix: str) -> bool:
    """Whether lifecycle rules delete old versions of images, and the markers that their removal left."""
    found = [rule for rule in rules if _covers(rule, key_prefix)]
    old = any("NoncurrentVersionExpiration" in rule for rule in found)
    # A rule that expires objects by their age deletes markers that are as old.
    markers = any(
        rule.get("Expiration", {}).get("ExpiredObjectDeleteMarker") or rule.get("Expiration", {}).get("Days")
        for rule in found
    )
    return old and markers


def overlapping(places: Mapping[str, str], bucket: str, key_prefix: str) -> list[str]:
    """Return the names of those places on S3 that share keys with the images of a bucket.

    Parameters
    ----------
    places
        Name to ``s3://bucket/prefix``; other places are ignored.
    bucket, key_prefix
        Where images go. A lifecycle rule deletes everything there after some days.
    """
    found = []
    for name, place in places.items():
        scheme, _, rest = place.partition("://")
        its_bucket, _, prefix = rest.partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        shared = prefix.startswith(key_prefix) or key_prefix.startswith(prefix)
        if scheme == "s3" and its_bucket == bucket and shared:
            found.append(name)
    return found


def kept_apart(places: Mapping[str, str], bucket: str, key_prefix: str) -> Check:
    """Check that neither archive nor history lies where lifecycle rules delete images.

    Raises
    ------
    vmsnix_ops.errors.BucketError
        One of them does.
    """
    found = overlapping(places, bucket, key_prefix)
    if found:
        raise errors.BucketError(
            f"The {' and the '.join(found)} in s3://{bucket} would be deleted with old images.",
            why=f"{', '.join(f'{name} is {places[name]}' for name in found)}; images go to "
            f"s3://{bucket}/{key_prefix}, where a lifecycle rule deletes everything after some days.",
            cure="Set key_prefix in vmsnix.toml to a prefix of its own, such as vmsnix/images/ beside "
            "vmsnix/archive, or use another bucket.",
        )
    return Check("bucket prefixes", "pass", f"only images are below s3://{bucket}/{key_prefix}")


def _covers(rule: dict[str, Any], key_prefix: str) -> bool:
    chosen = rule.get("Filter", {})
    if rule.get("Status") != "Enabled" or set(chosen) - {"Prefix"}:
        return False
    return key_prefix.startswith(chosen.get("Prefix", rule.get("Prefix", "")))


def _document(s3: Client, operation: str, name: str, missing: str) -> dict[str, Any]:
    """Return a document of a bucket; an empty one when there is none."""
    try:
        answer: dict[str, Any] = getattr(s3, operation)(Bucket=name)
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != missing:
            raise
        return {}
    return answer
