"""S3 buckets: upload and delete images, list leftovers, check the bucket.

Uploads are multipart, parallel and resumable. The digests of the image (`vmsnix_ops.disk.survey`) contain the
SHA-256 of each part, which each part is compared with before it is sent: the file may have changed. Parts
that S3 already has with that SHA-256 are not sent again. An object is reused only if S3's composite SHA-256
is that of the parts, and is never overwritten, because an import may be reading it.

CRCs and ETags decide nothing: they protect the bytes in transit, but different files can have the same CRC.
"""

from __future__ import annotations

import base64
import hashlib
import re
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import CheckResult
from vmsnix_ops.aws.iam.documents import as_list, read_statements
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import call_with_retries, read_listing
from vmsnix_ops.aws.session import calling, code_of, if_found
from vmsnix_ops.disk.source import ByteSource, PathSource, ThreadBuffer
from vmsnix_ops.disk.survey import changed, part_bytes
from vmsnix_ops.progress import NO_STEP, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CreateMultipartUploadRequestTypeDef,
        HeadObjectOutputTypeDef,
        LifecycleRuleOutputTypeDef,
        MultipartUploadTypeDef,
        PublicAccessBlockConfigurationTypeDef,
        ServerSideEncryptionByDefaultTypeDef,
    )

    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

    _Sent = tuple[CompletedPartTypeDef, int]  # a part, and the bytes that were sent for it


_NOT_IN_TAGS = re.compile(r"[^\w .:/=+@-]")  # S3 takes letters, digits, spaces and + - = . _ : / @
ELSEWHERE = (
    "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect",
)  # fmt: skip
"""Errors of S3 for a bucket in another region."""
WRITTEN_MEANWHILE = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
ATTEMPTS = 3  # uploads that another publisher of the same image may end
THREADS = 10  # so at most THREADS x PART_BYTES of an image are in memory


@dataclass(frozen=True, slots=True)
class BucketObject:
    """An object in S3 with the verified bytes of an image."""

    bucket: str
    key: str
    bytes: int
    checksum: str  # S3's SHA-256 of the object: the composite form of a multipart object, base64
    outcome: StepOutcome  # "created" or "reused"
    sent_bytes: int  # bytes that this run sent; fewer than `bytes` after a resume

    @property
    def url(self) -> str:
        """The object's URL for the AWS CLI."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class UploadPart:
    """A part of a multipart upload; `number` counts from 1."""

    number: int
    offset: int
    bytes: int


def split_parts(size: int) -> list[UploadPart]:
    """Return the parts of a file of this size: the ranges that have a digest of their own in its identity.

    Two runs (or two machines) make the same parts and can continue each other's upload.
    """
    length = part_bytes(size)
    offsets = range(0, max(size, 1), length)
    return [UploadPart(i, offset, min(length, size - offset)) for i, offset in enumerate(offsets, start=1)]


@needs(
    "s3:ListBucket",
    "s3:GetObject",
    "s3:PutObject",
    "s3:PutObjectTagging",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
)
def upload_file(
    s3: S3Client,
    path: Path,
    *,
    survey: Survey,
    bucket: str,
    key: str,
    tags: Mapping[str, str],
    kms_key: str = "",
    in_use: Callable[[], bool] = lambda: False,
    step: Step = NO_STEP,
) -> BucketObject:
    """Upload a file to this key, or find the object.

    Safe to run twice, also at the same time on two machines: the key is derived from the image's digest, an
    existing object is reused only if its checksum is that of the image, an unfinished upload of the key is
    continued, and completing an upload twice gives the same object. An object with other bytes is not
    overwritten but deleted first, unless an import may be reading it (`in_use`); then it is an UploadError.

    The client needs `THREADS` connections. Bytes without the digests of `survey` are not sent: a file that
    has changed or cannot be read is an ImageError, and the unfinished upload is deleted. An upload that other
    publishers end `ATTEMPTS` times is an AwsError. Without `kms_key`, the default encryption of the bucket is
    used.
    """
    with (
        bucket_errors(bucket, f"upload {path.name} to s3://{bucket}/{key}"),
        closing(PathSource(path)) as file,
    ):
        for _ in range(ATTEMPTS):
            found = _find(s3, survey, bucket=bucket, key=key, kms_key=kms_key)
            if found:
                step.update(found.bytes)
                return found
            if file.size != survey.file_bytes:
                at = min(file.size, survey.file_bytes)
                raise changed(str(path), at, max(file.size, survey.file_bytes) - at)
            _clear(s3, bucket, key, in_use)
            upload_id = _open(s3, bucket=bucket, key=key, tags=tags, kms_key=kms_key)
            if upload_id is None:
                continue
            try:
                sent, checksum = _send(
                    s3, file, survey, bucket=bucket, key=key, upload_id=upload_id, step=step
                )
            except errors.ImageError:
                # Another run could not distinguish the wrong parts.
                _abort(s3, bucket, key, upload_id)
                raise
            except Exception as error:
                # Another publisher may have completed this upload, or another upload of the same key.
                if code_of(error) not in ("NoSuchUpload", *WRITTEN_MEANWHILE):
                    raise
                _abort(s3, bucket, key, upload_id)
            else:
                return BucketObject(bucket, key, survey.file_bytes, checksum, "created", sent)
        raise errors.AwsError(
            f"The upload of s3://{bucket}/{key} was ended {ATTEMPTS} times by another process.",
            why="Another publisher of the same image completed or aborted it.",
            fix="Run the same command again.",
            code="NoSuchUpload",
            operation="UploadPart",
        )


@needs("s3:GetObject", "s3:ListBucket")
def check_object(s3: S3Client, *, survey: Survey, bucket: str, key: str) -> None:
    """Refuse an object that contains other bytes than the image.

    Safe to run twice: it only reads. A missing object is not refused: another publisher of the same image
    deletes it when its AMI is registered.
    """
    with bucket_errors(bucket, f"check s3://{bucket}/{key}"):
        head = _head(s3, bucket, key)
        if head is not None and not _has_bytes(head, survey):
            raise errors.UploadError(
                f"s3://{bucket}/{key} was replaced after it was uploaded.",
                why="Its size or its SHA-256 differs from the image that was identified.",
                fix="Find out what writes to the bucket, then run the same command again.",
            )


@needs("s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload", "s3:DeleteObject")
def delete_object(s3: S3Client, *, bucket: str, key: str) -> None:
    """Delete an object and all unfinished uploads of its key. Safe to run twice."""
    with bucket_errors(bucket, f"delete s3://{bucket}/{key}"):
        for upload in _uploads(s3, bucket, key):
            _abort(s3, bucket, key, upload["UploadId"])
        s3.delete_object(Bucket=bucket, Key=key)


def _clear(s3: S3Client, bucket: str, key: str, in_use: Callable[[], bool]) -> None:
    """Delete an object of this key, which is not the image, unless a running import may read it."""
    if _head(s3, bucket, key) is None:
        return
    if in_use():
        raise errors.UploadError(
            f"s3://{bucket}/{key} contains other bytes than the image.",
            why="A running import may be reading it, so vmsnix does not replace it.",
            fix="Wait until the import ends, or cancel it. Find out what writes to the bucket, then run the "
            "same command again.",
        )
    s3.delete_object(Bucket=bucket, Key=key)


def _find(s3: S3Client, survey: Survey, *, bucket: str, key: str, kms_key: str = "") -> BucketObject | None:
    """Return the object if its composite SHA-256, which S3 computed, is that of the image."""
    head = _head(s3, bucket, key)
    if head is None or not _has_bytes(head, survey) or (kms_key and head.get("SSEKMSKeyId") != kms_key):
        return None
    return BucketObject(bucket, key, survey.file_bytes, composite_checksum(survey), "reused", 0)


def _has_bytes(head: HeadObjectOutputTypeDef, survey: Survey) -> bool:
    same_size = head["ContentLength"] == survey.file_bytes
    return same_size and head.get("ChecksumSHA256") == composite_checksum(survey)


def _head(s3: S3Client, bucket: str, key: str) -> HeadObjectOutputTypeDef | None:
    try:
        return s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except s3.exceptions.ClientError as error:
        if code_of(error) in ("404", "NoSuchKey", "NotFound"):
            # A HEAD request has no body, so a missing bucket and a missing object look the same.
            s3.head_bucket(Bucket=bucket)
            return None
        raise


def _open(s3: S3Client, *, bucket: str, key: str, tags: Mapping[str, str], kms_key: str) -> str | None:
    """Return the ID of the oldest unfinished upload of this key; create one if there is none.

    None: another publisher completed or aborted it in the meantime.

    Two publishers that start at the same time may both create an upload. Both then use the oldest and abort
    the other.
    """
    if not _resumable(s3, bucket, key):
        from urllib.parse import urlencode

        request: CreateMultipartUploadRequestTypeDef = {
            "Bucket": bucket,
            "Key": key,
            "ChecksumAlgorithm": "SHA256",
            "ChecksumType": "COMPOSITE",
            "Tagging": urlencode(_object_tags(tags)),
        }
        if kms_key:
            request |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key}
        s3.create_multipart_upload(**request)
    uploads = _resumable(s3, bucket, key)
    if not uploads:
        return None
    for other in uploads[1:]:
        _abort(s3, bucket, key, other["UploadId"])
    return uploads[0]["UploadId"]


def _object_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags for an object: S3 allows only ten, and fewer characters than EC2."""
    wanted = (tagging.IMAGE, tagging.DIGEST, tagging.RUN)
    return {key: _NOT_IN_TAGS.sub("-", tags[key])[: tagging.LONGEST_VALUE] for key in wanted if tags.get(key)}


def _resumable(s3: S3Client, bucket: str, key: str) -> list[MultipartUploadTypeDef]:
    """Return the unfinished uploads of this key whose parts have a SHA-256, oldest first."""
    found = [u for u in _uploads(s3, bucket, key) if u.get("ChecksumAlgorithm") == "SHA256"]
    return sorted(found, key=lambda upload: (upload["Initiated"], upload["UploadId"]))


def _uploads(s3: S3Client, bucket: str, key: str) -> Iterator[MultipartUploadTypeDef]:
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key):
        for upload in page.get("Uploads", ()):
            if upload["Key"] == key:
                yield upload


def _abort(s3: S3Client, bucket: str, key: str, upload_id: str) -> None:
    if_found(lambda: s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id), "NoSuchUpload")


def _send(
    s3: S3Client,
    file: ByteSource,
    survey: Survey,
    *,
    bucket: str,
    key: str,
    upload_id: str,
    step: Step,
) -> tuple[int, str]:
    """Send the missing parts and complete the upload; return the sent bytes and the object's checksum."""
    pages = s3.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
    stored = {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}
    buffer = ThreadBuffer()

    def send(part: UploadPart) -> _Sent:
        digest = survey.part(part.number - 1)
        checksum = base64.b64encode(digest).decode()
        there = stored.get(part.number)
        if there is not None and there["Size"] == part.bytes and there.get("ChecksumSHA256") == checksum:
            etag, sent = there["ETag"], 0  # S3 computed that SHA-256 from what it received
        else:
            data = buffer.get(part.bytes)
            file.read_into(part.offset, memoryview(data))
            if hashlib.sha256(data).digest() != digest:
                raise changed(file.name, part.offset, part.bytes)
            answer = s3.upload_part(
                Bucket=bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=data,  # type: ignore[arg-type]  # botocore takes a bytearray too
                ChecksumSHA256=checksum,
            )
            etag, sent = answer["ETag"], part.bytes
        step.advance(part.bytes)
        return {"PartNumber": part.number, "ETag": etag, "ChecksumSHA256": checksum}, sent

    done = _in_parallel(send, split_parts(survey.file_bytes))
    answer = s3.complete_multipart_upload(
        Bucket=bucket,
        Key=key,
        UploadId=upload_id,
        MultipartUpload={"Parts": [entry for entry, _ in done]},
        IfNoneMatch="*",
    )
    expected = composite_checksum(survey)
    if answer.get("ChecksumSHA256", expected) != expected:
        raise errors.UploadError(
            f"s3://{bucket}/{key} does not contain the image's bytes.",
            why=f"S3 reports SHA-256 {answer['ChecksumSHA256']}, but {expected} was sent.",
            fix="Run the same command again: it replaces the object.",
        )
    return sum(sent for _, sent in done), expected


def _in_parallel(send: Callable[[UploadPart], _Sent], parts: list[UploadPart]) -> list[_Sent]:
    """Send all parts; the first failure, or an interrupt, cancels those that have not started."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")
    futures: list[Future[_Sent]] = [pool.submit(send, part) for part in parts]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in futures if not future.cancelled()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def composite_checksum(survey: Survey) -> str:
    """Return S3's composite checksum of an image: SHA-256 over the parts' SHA-256, and their number."""
    digest = hashlib.sha256(survey.parts).digest()
    return f"{base64.b64encode(digest).decode()}-{len(split_parts(survey.file_bytes))}"


@contextmanager
def bucket_errors(bucket: str, doing: str) -> Iterator[None]:
    """Turn S3's errors about the bucket into a `BucketError`, and other errors of AWS as `calling` does."""
    try:
        with calling(doing):
            yield
    except errors.AwsError as error:
        if error.code in ("NoSuchBucket", "404"):
            raise missing_bucket(bucket) from error
        if error.code not in ELSEWHERE:
            raise
        raise error.restated(
            errors.BucketError,
            f"The bucket {bucket} is in another region.",
            why="VM Import reads only from a bucket of its own region.",
            fix="Use a bucket in the region that you publish to.",
        ) from error


def missing_bucket(bucket: str) -> errors.BucketError:
    """Return the error for a bucket that does not exist."""
    return errors.BucketError(
        f"The bucket {bucket} does not exist.",
        why="VM Import reads uploads from one of your buckets, in the region that you publish to.",
        fix=f"Create it (aws s3 mb s3://{bucket}), or use another with --bucket NAME.",
        code="NoSuchBucket",
    )


# Lists of objects and unfinished multipart uploads, to find leftovers of publishes


@dataclass(frozen=True, slots=True)
class BucketItem:
    """An object or an unfinished multipart upload."""

    kind: str  # "object" or "multipart-upload"
    id: str  # its key, or the upload's ID
    key: str
    since: datetime  # when it was written or started
    bytes: int  # billed size


@needs("s3:ListBucket")
def bucket_region(s3: S3Client, bucket: str) -> str:
    """Return the region of a bucket."""
    return str(call_with_retries(s3.head_bucket, Bucket=bucket).get("BucketRegion") or "us-east-1")


@needs("s3:ListBucket")
def list_objects(s3: S3Client, bucket: str, prefix: str) -> Iterator[BucketItem]:
    """Yield the objects below a prefix."""
    for page in read_listing(s3.list_objects_v2, ("ContinuationToken",), Bucket=bucket, Prefix=prefix):
        for one in page.get("Contents") or ():
            yield BucketItem("object", one["Key"], one["Key"], one["LastModified"], one["Size"])


@needs("s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts")
def list_multipart_uploads(s3: S3Client, bucket: str, prefix: str) -> Iterator[BucketItem]:
    """Yield the unfinished multipart uploads below a prefix, with the bytes of their parts."""
    markers = ("KeyMarker", "UploadIdMarker")
    for page in read_listing(s3.list_multipart_uploads, markers, Bucket=bucket, Prefix=prefix):
        for one in page.get("Uploads") or ():
            size = _part_bytes(s3, bucket, one["Key"], one["UploadId"])
            yield BucketItem("multipart-upload", one["UploadId"], one["Key"], one["Initiated"], size)


def _part_bytes(s3: S3Client, bucket: str, key: str, upload_id: str) -> int:
    pages = read_listing(s3.list_parts, ("PartNumberMarker",), Bucket=bucket, Key=key, UploadId=upload_id)
    try:
        return sum(part["Size"] for page in pages for part in page.get("Parts") or ())
    except s3.exceptions.NoSuchUpload:  # it was completed or aborted in the meantime
        return 0


# Checks of the bucket.
#
# Sources: the operations' pages in the Amazon S3 API Reference; "Security best practices for Amazon S3".


ALL_BLOCKED: PublicAccessBlockConfigurationTypeDef = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
BOOTSTRAP = "Run vmsnix bootstrap --no-dry-run, which sets it."


@needs("s3:ListBucket")
def check_bucket(s3: S3Client, name: str, region: str, account: str) -> CheckResult:
    """Check that the bucket exists, belongs to the account, and is in the region."""
    try:
        with calling(f"read the bucket {name}"):
            answer = s3.head_bucket(Bucket=name, ExpectedBucketOwner=account)
    except errors.AwsError as error:
        if error.code in ("404", "NoSuchBucket"):
            raise missing_bucket(name) from error
        if error.code in ("403", "AccessDenied"):
            raise error.restated(
                errors.BucketError,
                f"No access to the bucket {name}.",
                why="It belongs to another account, or the caller lacks s3:ListBucket on it.",
                fix="Use a bucket of this account, or allow s3:ListBucket, s3:GetObject and s3:PutObject on "
                "it.",
            ) from error
        if error.code in ("301", "PermanentRedirect"):
            raise _elsewhere(name, "another region", region) from error
        raise
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    where = answer.get("BucketRegion") or headers.get("x-amz-bucket-region", region)
    if where != region:
        raise _elsewhere(name, where, region)
    return CheckResult("bucket", "pass", f"{name} in {where}, of account {account}")


def _elsewhere(name: str, where: str, region: str) -> errors.BucketError:
    return errors.BucketError(
        f"The bucket {name} is in {where}, not in {region}.",
        why="VM Import reads only from a bucket of its own region.",
        fix=f"Use a bucket in {region}, or publish to {where}.",
    )


@needs("s3:GetBucketPublicAccessBlock", "s3:GetBucketPolicyStatus")
def check_bucket_private(s3: S3Client, name: str) -> CheckResult:
    """Check that the bucket is private. A public policy fails; an incomplete public access block warns."""
    with calling(f"check whether the bucket {name} is private"):
        status = if_found(lambda: s3.get_bucket_policy_status(Bucket=name), "NoSuchBucketPolicy")
        on = read_public_access_block(s3, name)
    if status and status["PolicyStatus"].get("IsPublic"):
        raise errors.BucketError(
            f"The bucket {name} is public.",
            why="Its policy allows access for everyone, and an image can contain secrets.",
            fix="Remove that statement from the bucket policy, and " + BOOTSTRAP[0].lower() + BOOTSTRAP[1:],
        )
    off = [setting for setting in ALL_BLOCKED if not on.get(setting)]
    if off:
        return CheckResult("bucket private", "warn", f"not blocked: {', '.join(off)}", BOOTSTRAP)
    return CheckResult("bucket private", "pass", "public access is blocked, the policy is not public")


@needs("s3:GetEncryptionConfiguration")
def check_bucket_encrypted(s3: S3Client, name: str) -> CheckResult:
    """Check that objects are encrypted by default."""
    with calling(f"check whether the bucket {name} is encrypted"):
        algorithms = [default.get("SSEAlgorithm", "") for default in read_default_encryption(s3, name)]
    if not any(algorithms):
        return CheckResult("bucket encrypted", "warn", "no default encryption", BOOTSTRAP)
    return CheckResult("bucket encrypted", "pass", ", ".join(filter(None, algorithms)))


@needs("s3:GetBucketPolicy")
def check_bucket_tls(s3: S3Client, name: str) -> CheckResult:
    """Check that the bucket policy denies requests without TLS."""
    with calling(f"read the policy of the bucket {name}"):
        statements = read_bucket_policy(s3, name)
    if any(map(requires_tls, statements)):
        return CheckResult("bucket TLS only", "pass", "requests without TLS are refused")
    return CheckResult(
        "bucket TLS only", "warn", "the policy does not refuse requests without TLS", BOOTSTRAP
    )


def requires_tls(statement: dict[str, Any]) -> bool:
    """Return whether a statement of a bucket policy denies all requests without TLS."""
    condition = statement.get("Condition", {}).get("Bool", {})
    insecure = [str(v).lower() for k, v in condition.items() if k.lower() == "aws:securetransport"]
    everyone = statement.get("Principal") in ("*", {"AWS": "*"}, {"AWS": ["*"]})
    return (
        statement.get("Effect") == "Deny"
        and everyone
        and insecure in (["false"], ["['false']"])
        and any(action in ("*", "s3:*") for action in as_list(statement.get("Action")))
    )


@needs("s3:GetLifecycleConfiguration")
def check_bucket_lifecycle(s3: S3Client, name: str, key_prefix: str) -> CheckResult:
    """Check that lifecycle rules delete leftovers: old objects and unfinished uploads."""
    with calling(f"read the lifecycle of the bucket {name}"):
        rules = [rule for rule in read_lifecycle_rules(s3, name) if _covers(rule, key_prefix)]
    uploads = [
        rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]
        for rule in rules
        if "AbortIncompleteMultipartUpload" in rule
    ]
    objects = [rule["Expiration"]["Days"] for rule in rules if rule.get("Expiration", {}).get("Days")]
    if uploads and objects:
        text = (
            f"uploads expire after {counted(min(uploads), 'day')}, objects after "
            f"{counted(min(objects), 'day')}"
        )
        return CheckResult("bucket leftovers", "pass", text)
    left = " and ".join(
        what for what, found in (("unfinished uploads", uploads), ("objects", objects)) if not found
    )
    return CheckResult("bucket leftovers", "warn", f"no rule deletes {left} below {key_prefix!r}", BOOTSTRAP)


@needs("s3:GetBucketVersioning", "s3:GetLifecycleConfiguration")
def check_bucket_versions(s3: S3Client, name: str, key_prefix: str) -> CheckResult:
    """Check that lifecycle rules delete old versions of images, if the bucket is versioned."""
    with calling(f"read the versioning of the bucket {name}"):
        state = str(s3.get_bucket_versioning(Bucket=name).get("Status") or "")
        rules = read_lifecycle_rules(s3, name)
    if not state:
        return CheckResult("bucket versions", "pass", "the bucket keeps no versions")
    if expires_versions(rules, key_prefix):
        return CheckResult("bucket versions", "pass", f"versioning is {state}; old versions of images expire")
    text = f"versioning is {state}, and nothing deletes old versions below {key_prefix!r}"
    return CheckResult("bucket versions", "warn", text, BOOTSTRAP)


def expires_versions(rules: Iterable[LifecycleRuleOutputTypeDef], key_prefix: str) -> bool:
    """Return whether lifecycle rules delete old versions of images and their delete markers."""
    found = [rule for rule in rules if _covers(rule, key_prefix)]
    old = any("NoncurrentVersionExpiration" in rule for rule in found)
    # A rule that expires objects by age also deletes delete markers of that age.
    markers = any(
        rule.get("Expiration", {}).get("ExpiredObjectDeleteMarker") or rule.get("Expiration", {}).get("Days")
        for rule in found
    )
    return old and markers


def find_overlapping(places: Mapping[str, str], bucket: str, key_prefix: str) -> list[str]:
    """Return the names of the locations (by name; URLs) that share keys with the images of a bucket.

    A lifecycle rule deletes all objects below the prefix of the images after some days.
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


def check_prefixes(places: Mapping[str, str], bucket: str, key_prefix: str) -> CheckResult:
    """Check that archive and history are not where lifecycle rules delete images."""
    found = find_overlapping(places, bucket, key_prefix)
    if found:
        raise errors.BucketError(
            f"A lifecycle rule would delete the {' and the '.join(found)} in s3://{bucket}.",
            why=f"{', '.join(f'{name} is {places[name]}' for name in found)}; images are below "
            f"s3://{bucket}/{key_prefix}, where the rule deletes every object after some days.",
            fix="Set key_prefix in vmsnix.toml to a separate prefix, such as vmsnix/images/ beside "
            "vmsnix/archive, or use another bucket.",
        )
    return CheckResult("bucket prefixes", "pass", f"only images are below s3://{bucket}/{key_prefix}")


def _covers(rule: LifecycleRuleOutputTypeDef, key_prefix: str) -> bool:
    chosen = rule.get("Filter", {})
    if rule.get("Status") != "Enabled" or set(chosen) - {"Prefix"}:
        return False
    return key_prefix.startswith(chosen.get("Prefix", rule.get("Prefix", "")))


# The settings of a bucket; of a missing bucket they are empty.


def read_public_access_block(s3: S3Client, name: str) -> PublicAccessBlockConfigurationTypeDef:
    """Return which public access is blocked."""
    error = "NoSuchPublicAccessBlockConfiguration"
    answer = if_found(lambda: s3.get_public_access_block(Bucket=name), error, "NoSuchBucket")
    return answer["PublicAccessBlockConfiguration"] if answer else {}


def read_default_encryption(s3: S3Client, name: str) -> list[ServerSideEncryptionByDefaultTypeDef]:
    """Return the encryption of new objects, one for each rule."""
    error = "ServerSideEncryptionConfigurationNotFoundError"
    answer = if_found(lambda: s3.get_bucket_encryption(Bucket=name), error, "NoSuchBucket")
    rules = answer["ServerSideEncryptionConfiguration"]["Rules"] if answer else []
    found = [rule.get("ApplyServerSideEncryptionByDefault") for rule in rules]
    return [default for default in found if default is not None]


def read_bucket_policy(s3: S3Client, name: str) -> list[dict[str, Any]]:
    """Return the statements of the bucket policy."""
    answer = if_found(lambda: s3.get_bucket_policy(Bucket=name), "NoSuchBucketPolicy", "NoSuchBucket")
    return read_statements(answer["Policy"]) if answer else []


def read_lifecycle_rules(s3: S3Client, name: str) -> list[LifecycleRuleOutputTypeDef]:
    """Return the lifecycle rules."""
    read, error = s3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"
    answer = if_found(lambda: read(Bucket=name), error, "NoSuchBucket")
    return answer["Rules"] if answer else []
