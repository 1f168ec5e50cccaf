"""Helpers of all S3 operations: buckets and objects, conditions, uploads and checksums, tags.

Source: "Error Responses" and "Checking object integrity" in the Amazon S3 API Reference and User Guide.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from vmsnix_ops.sandbox.core import ApiError, given, not_emulated, words
from vmsnix_ops.sandbox.storage import Bucket, MultipartUpload, Part, StoredObject, object_path
from vmsnix_ops.sandbox.wire.checksums import ALGORITHMS, Checksums, decode_base64, digest_size

if TYPE_CHECKING:
    from collections.abc import Container
    from datetime import datetime
    from pathlib import Path

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.wire.http import Body


DEFAULT_CHECKSUM = "crc64nvme"  # of an upload without a checksum ("Checking object integrity in Amazon S3")
CHECKSUM_MEMBERS = {name: f"Checksum{name.upper()}" for name in ALGORITHMS}

OTHER_ALGORITHMS = frozenset({"XXHASH3", "XXHASH64", "XXHASH128"})  # of S3, and not of the sandbox

# Parameters that are stored with an object and returned with it.
STORED_HEADERS = words(
    "CacheControl ContentDisposition ContentEncoding ContentLanguage ContentType Expires "
    "ServerSideEncryption SSEKMSKeyId BucketKeyEnabled StorageClass WebsiteRedirectLocation"
)
# Those that a copy takes from its request, never from its source.
REQUEST_HEADERS = words(
    "BucketKeyEnabled ServerSideEncryption SSEKMSKeyId StorageClass WebsiteRedirectLocation"
)
STORAGE_CLASSES = frozenset(
    words(
        "DEEP_ARCHIVE GLACIER GLACIER_IR INTELLIGENT_TIERING ONEZONE_IA REDUCED_REDUNDANCY STANDARD "
        "STANDARD_IA"
    )
)
ARCHIVED = frozenset({"DEEP_ARCHIVE", "GLACIER"})
TRASH_AGE = timedelta(minutes=1)
MAX_OBJECT_BYTES = 5 * 2**30  # in one PUT ("Amazon S3 multipart upload limits")

ERRORS: dict[str, tuple[int, str]] = {
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs"),
    "AccessDenied": (403, "Access Denied"),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the "
        "system. Please select a different name and try again.",
    ),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "IllegalVersioningConfigurationException": (400, "The Versioning element must be specified"),
    "InvalidBucketAclWithObjectOwnership": (
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
    ),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidObjectState": (403, "The operation is not valid for the object's storage class"),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found.  The part may not have been uploaded, or "
        "the specified entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. Parts must be ordered by part number.",
    ),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedPOSTRequest": (400, "The body of your POST request is not well-formed multipart/form-data."),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingRequestBodyError": (400, "Request Body is empty"),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchPublicAccessBlockConfiguration": (404, "The public access block configuration was not found"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been "
        "aborted or completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (404, "The specified bucket does not have a website configuration"),
    "ObjectLockConfigurationNotFoundError": (404, "Object Lock configuration does not exist for this bucket"),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PermanentRedirect": (
        301,
        "The bucket you are attempting to access must be addressed using the specified endpoint. Please "
        "send all future requests to this endpoint.",
    ),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
}
"""HTTP status and text of the errors that always have the same text."""


def s3_error(code: str, **more: Any) -> ApiError:
    """Return an error of `ERRORS`; `more` are its further members, and its ``headers``."""
    status, text = ERRORS[code]
    return ApiError(code, text, status=status, **more)


def invalid_argument(text: str, name: str, value: object = None) -> ApiError:
    """Return ``InvalidArgument`` with the name of the argument and, unless it is None, its value."""
    more: dict[str, Any] = {} if value is None else {"ArgumentValue": value}
    return ApiError("InvalidArgument", text, ArgumentName=name, **more)


def invalid_request(text: str) -> ApiError:
    """Return ``InvalidRequest``."""
    return ApiError("InvalidRequest", text)


def canonical_user_id(account: str) -> str:
    """Return the canonical user ID of an account: 64 hexadecimal digits."""
    return hashlib.sha256(account.encode()).hexdigest()


def owner_acl(bucket: Bucket) -> dict[str, Any]:
    """Return the ACL of a bucket without ACLs, and of its objects: full control for the owner."""
    owner = {"ID": canonical_user_id(bucket.account)}
    grantee = {**owner, "Type": "CanonicalUser"}
    return {"Owner": owner, "Grants": [{"Grantee": grantee, "Permission": "FULL_CONTROL"}]}


def new_part_file(context: Context) -> tuple[str, Path]:
    """Return the name and the path of a new part file."""
    file = secrets.token_hex(16)
    path = object_path(context.folder, file)
    path.parent.mkdir(exist_ok=True)
    return file, path


def check_key(key: str) -> None:
    """Check that a key has at most 1,024 bytes of UTF-8."""
    length = len(key.encode("utf-8", "surrogateescape"))
    if length > 1024:
        raise s3_error("KeyTooLongError", Size=length, MaxSizeAllowed=1024)


def stored_headers(params: Params, bucket: Bucket) -> dict[str, Any]:
    """Return the parameters that are stored with an object.

    The encryption is only stored: objects are not encrypted.
    """
    kept = {name: params[name] for name in STORED_HEADERS if name in params}
    kept.setdefault("ContentType", "binary/octet-stream")
    if kept.get("StorageClass", "STANDARD") not in STORAGE_CLASSES:
        raise s3_error("InvalidStorageClass", StorageClassRequested=kept["StorageClass"])
    if "ServerSideEncryption" not in kept:
        kept |= default_encryption(bucket)
    if kept["ServerSideEncryption"] not in ("AES256", "aws:kms"):
        raise not_emulated(f"the encryption {kept['ServerSideEncryption']} for objects")
    if "SSEKMSKeyId" in kept and kept["ServerSideEncryption"] != "aws:kms":
        text = "Server Side Encryption with KMS managed key requires HTTP header x-amz-server-side-encryption"
        raise ApiError("InvalidArgument", text)
    encoding = kept.get("ContentEncoding", "")
    if "aws-chunked" in encoding:  # only describes the transfer
        rest = ",".join(part.strip() for part in encoding.split(",") if part.strip() != "aws-chunked")
        kept.pop("ContentEncoding")
        if rest:
            kept["ContentEncoding"] = rest
    return kept


def default_encryption(bucket: Bucket) -> dict[str, Any]:
    """Return the default encryption of a bucket. Since January 2023 every object is encrypted."""
    for rule in bucket.settings.get("encryption", {}).get("Rules", []):
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        if default.get("SSEAlgorithm"):
            key = given(SSEKMSKeyId=default.get("KMSMasterKeyID"))
            return {"ServerSideEncryption": default["SSEAlgorithm"], **key}
    return {"ServerSideEncryption": "AES256"}


def shown_headers(stored: StoredObject) -> dict[str, Any]:
    """Return the stored parameters of an object for an answer, without the storage class STANDARD."""
    return {k: v for k, v in stored.headers.items() if not (k == "StorageClass" and v == "STANDARD")}


def check_write_conditions(bucket: Bucket, key: str, params: Params) -> None:
    """Check ``If-Match`` and ``If-None-Match`` of a write.

    Sources: "How to prevent object overwrites with conditional writes" in the Amazon S3 User Guide; AWS's
    answers of February 2026 in LocalStack's ``test_s3_api.snapshot.json``.
    """
    stored = bucket.objects.get(key)
    none_match, match = params.get("IfNoneMatch"), params.get("IfMatch")
    if none_match is not None and match is not None:
        text = "Multiple conditional request headers present in the request"
        raise _not_implemented("If-Match,If-None-Match", text)
    if none_match not in {None, "*"} or match == "*":
        header = "If-Match" if match is not None else "If-None-Match"
        raise _not_implemented(header, f"We don't accept the provided value of {header} header for this API")
    if none_match is not None and stored is not None:
        raise s3_error("PreconditionFailed", Condition="If-None-Match")
    if match is not None:
        if stored is None:
            raise s3_error("NoSuchKey", Key=key)
        if match.strip('"') != stored.etag:
            raise s3_error("PreconditionFailed", Condition="If-Match")


def _not_implemented(header: str, more: str) -> ApiError:
    """Return S3's own ``NotImplemented``."""
    text = "A header you provided implies functionality that is not implemented"
    return ApiError("NotImplemented", text, status=501, Header=header, additionalMessage=more)


def receive_upload(
    context: Context, body: Body, params: Params, number: int, algorithm: str | None = None
) -> Part:
    """Write an upload to a part file, and check all its checksums.

    `params` are those of the call: ``ContentMD5``, ``Checksum...``, ``ChecksumAlgorithm``. `algorithm` is
    computed even when the client sent another checksum or none. Errors: ``BadDigest``, ``InvalidDigest``,
    ``InvalidRequest``, ``EntityTooLarge``.
    """
    expected = {name: params[member] for name, member in CHECKSUM_MEMBERS.items() if member in params}
    if len(expected) > 1:
        raise invalid_request(
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        )
    trailer = _trailing_algorithm(context)
    for name, value in expected.items():
        if decode_base64(value, digest_size(name)) is None:
            raise invalid_request(f"Value for x-amz-checksum-{name} header is invalid.")
    content_md5 = params.get("ContentMD5")
    if content_md5 is not None and decode_base64(content_md5, 16) is None:
        raise ApiError(
            "InvalidDigest", "The Content-MD5 you specified was invalid.", **{"Content-MD5": content_md5}
        )
    if params.get("ContentLength", 0) > MAX_OBJECT_BYTES:
        raise s3_error("EntityTooLarge")
    wanted = {name for name in (*expected, trailer, algorithm) if name} or {DEFAULT_CHECKSUM}
    digests = Checksums({"md5", *wanted})
    file, path = new_part_file(context)
    length = body.save(path, digests)
    if trailer is not None:
        expected[trailer] = body.trailers.get(f"x-amz-checksum-{trailer}", "")
    try:
        _compare_digests(digests, expected, content_md5)
    except ApiError:
        path.unlink()
        raise
    checksums = {name: digests.base64(name) for name in wanted}
    return Part(number, file, length, digests.hex("md5"), checksums, context.clock.now())


def _trailing_algorithm(context: Context) -> str | None:
    announced = context.headers.get("x-amz-trailer", "").lower()
    match = re.fullmatch(r"x-amz-checksum-(\w+)", announced)
    if match is None:
        return None
    if match[1].upper() in OTHER_ALGORITHMS:
        raise not_emulated(f"the checksum algorithm {match[1].upper()}")
    if match[1] not in ALGORITHMS:
        raise invalid_request(
            f"The value specified in the x-amz-trailer header is not supported: {announced}"
        )
    return match[1]


def check_algorithm(name: str, known: Container[str]) -> None:
    """Check the name of a checksum algorithm."""
    if name.lower() in known:
        return
    if name.lower() in ALGORITHMS or name in OTHER_ALGORITHMS:
        raise not_emulated(f"the checksum algorithm {name} here")
    raise invalid_request(
        "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
        "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"
    )


def _compare_digests(digests: Checksums, expected: dict[str, str], content_md5: str | None) -> None:
    if content_md5 is not None and digests.base64("md5") != content_md5:
        raise ApiError(
            "BadDigest",
            "The Content-MD5 you specified did not match what we received.",
            ExpectedDigest=content_md5,
            CalculatedDigest=digests.base64("md5"),
        )
    for name, value in expected.items():
        if digests.base64(name) != value:
            raise ApiError(
                "BadDigest", f"The {name.upper()} you specified did not match the calculated checksum."
            )


def remove_parts(context: Context, parts: tuple[Part, ...] | list[Part]) -> None:
    """Delete part files a minute later, because an answer may still read them."""
    trash: dict[str, datetime] = context.tables.table("", "", "trash")
    now = context.clock.now()
    trash |= {part.file: now for part in parts}
    for file, since in list(trash.items()):
        if now - since < TRASH_AGE:
            break
        del trash[file]
        object_path(context.folder, file).unlink(missing_ok=True)


def abort_upload(context: Context, bucket: Bucket, upload: MultipartUpload) -> None:
    """Delete an unfinished upload and its parts."""
    del bucket.uploads[upload.upload_id]
    remove_parts(context, list(upload.parts.values()))


_NOT_IN_TAGS = re.compile(r"[^\w .:/=+@-]")
"""Tags have letters, digits, spaces and ``+ - = . _ : / @`` ("Object tagging" of the S3 User Guide)."""


def parse_tags(text: str) -> dict[str, str]:
    """Return the tags of an ``x-amz-tagging`` header, which has the form of a query.

    A key without a value is a tag with an empty value. Errors: ``InvalidArgument`` for another form,
    ``InvalidTag``, ``BadRequest`` beyond ten tags.
    """
    pairs = [pair.partition("=") for pair in text.split("&") if pair]
    tags = [{"Key": unquote_plus(key), "Value": unquote_plus(value)} for key, _, value in pairs]
    keys = [tag["Key"] for tag in tags]
    if len(set(keys)) != len(keys) or any(_NOT_IN_TAGS.search(tag["Key"] + tag["Value"]) for tag in tags):
        raise invalid_argument(
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters "
            "without tag name duplicates.",
            "x-amz-tagging",
            text,
        )
    return check_tags(tags, limit=10)


def check_tags(tags: list[dict[str, str]], *, limit: int) -> dict[str, str]:
    """Return a list of tags as a dictionary, after S3's checks. An object has at most 10 tags, a bucket 50.

    Texts: AWS's answers of February 2026 in LocalStack's ``test_s3_api.snapshot.json``.
    """
    of_object = limit == 10
    if len(tags) > limit:
        what = f"{'Object tags' if of_object else 'Bucket tag count'} cannot be greater than {limit}"
        raise ApiError("BadRequest" if of_object else "InvalidTag", what)
    found: dict[str, str] = {}
    for tag in tags:
        key, value = tag["Key"], tag["Value"]
        if key in found:
            raise ApiError("InvalidTag", "Cannot provide multiple Tags with the same key", TagKey=key)
        if key.lower().startswith("aws:"):
            system = "System tags cannot be added/updated by requester"
            text = "Your TagKey cannot be prefixed with aws:" if of_object else system
            raise ApiError("InvalidTag", text, TagKey=key)
        if not 1 <= len(key) <= 128 or _NOT_IN_TAGS.search(key):
            raise ApiError("InvalidTag", "The TagKey you have provided is invalid", TagKey=key)
        if len(value) > 256 or _NOT_IN_TAGS.search(value):
            text = "The TagValue you have provided is invalid"
            raise ApiError("InvalidTag", text, TagKey=key, TagValue=value)
        found[key] = value
    return found


def check_readable(stored: StoredObject) -> None:
    """Check that an object is not archived. S3 must restore an archived object first."""
    storage_class = stored.headers.get("StorageClass")
    if storage_class in ARCHIVED:
        raise s3_error("InvalidObjectState", StorageClass=storage_class)


def check_acl(params: Params) -> None:
    """Check that a request sets no ACL, which new buckets refuse."""
    if params.get("ACL", "private") not in {"private", "bucket-owner-full-control"}:
        raise s3_error("AccessControlListNotSupported")


def check_user_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return user metadata, after the check of its size: 2 KB of names and values."""
    size_in_bytes = sum(
        len(k.encode()) + len(v.encode("utf-8", "surrogateescape")) for k, v in metadata.items()
    )
    if size_in_bytes > 2048:
        raise s3_error("MetadataTooLarge", Size=size_in_bytes, MaxSizeAllowed=2048)
    return metadata


def quote_etag(etag: str) -> str:
    """Return an ETag with quotes, as in answers."""
    return f'"{etag}"'


def checksum_members(checksums: dict[str, str]) -> dict[str, str]:
    """Return checksums by the names of their parameters."""
    return {CHECKSUM_MEMBERS[name]: value for name, value in checksums.items()}
