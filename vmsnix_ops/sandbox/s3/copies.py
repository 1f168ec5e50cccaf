"""Copies: of whole objects, whose part files are linked and not copied, and of ranges into parts.

Sources: CopyObject, UploadPartCopy in the Amazon S3 API Reference.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from ..objects import ObjectReader, Part, StoredObject, object_path
from ..wire.body import BUFFER
from ..wire.checksums import Digests
from .common import (
    OBJECT_LIMIT,
    bucket_of,
    check_acl,
    check_key,
    check_metadata,
    check_written,
    copy_source,
    headers_of,
    parse_tags,
    quoted,
    replace_object,
    shown_checksums,
)
from .multipart import check_part_number, store_part, upload_of
from .objects import WRITE

if TYPE_CHECKING:
    from ..core import Context, Params

SOURCE = ("CopySource", "CopySourceIfMatch", "CopySourceIfNoneMatch")
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@operation(
    "s3",
    "CopyObject",
    honours=[
        *WRITE,
        *SOURCE,
        "MetadataDirective",
        "TaggingDirective",
        "ChecksumAlgorithm",
        "IfMatch",
        "IfNoneMatch",
        "ExpectedSourceBucketOwner",
    ],
)
def copy_object(context: Context, params: Params) -> dict[str, Any]:
    """Copy an object; its metadata and tags go with it unless the directives say otherwise."""
    check_key(params["Key"])
    check_acl(params)
    bucket = bucket_of(context, params)
    source_bucket, source = copy_source(context, params)
    check_written(bucket, params["Key"], params)
    replaces = params.get("MetadataDirective", "COPY") == "REPLACE"
    changes = replaces or "StorageClass" in params or "WebsiteRedirectLocation" in params
    if source_bucket is bucket and source.key == params["Key"] and not changes:
        raise AwsError(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without "
            "changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    if source.size > OBJECT_LIMIT:
        raise AwsError(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy source: "
            f"{OBJECT_LIMIT}",
        )
    tags = (
        parse_tags(params.get("Tagging", ""))
        if params.get("TaggingDirective") == "REPLACE"
        else dict(source.tags)
    )
    etag, checksums = _whole_digests(context, source, params.get("ChecksumAlgorithm"))
    stored = StoredObject(
        key=params["Key"],
        parts=tuple(_link(context, part) for part in source.parts),
        etag=etag,
        modified=context.clock.now(),
        headers=headers_of(params, bucket) if replaces else dict(source.headers),
        metadata=check_metadata(params.get("Metadata", {})) if replaces else dict(source.metadata),
        checksums=checksums,
        tags=tags,
    )
    replace_object(context, bucket, stored)
    return {
        "CopyObjectResult": {
            "ETag": quoted(etag),
            "LastModified": stored.modified,
            "ChecksumType": "FULL_OBJECT" if checksums else None,
            **shown_checksums(checksums),
        },
        "ServerSideEncryption": stored.headers["ServerSideEncryption"],
    }


def _link(context: Context, part: Part) -> Part:
    """Give a part file a second name, so that original and copy can be deleted independently."""
    copy = replace(part, file=secrets.token_hex(16))
    path = copy.path(context.folder)
    path.parent.mkdir(exist_ok=True)
    path.hardlink_to(part.path(context.folder))
    return copy


def _whole_digests(
    context: Context, source: StoredObject, algorithm: str | None
) -> tuple[str, dict[str, str]]:
    """Return ETag and checksums of a copy, which is one piece even where its source was uploaded in parts."""
    wanted = {algorithm.lower()} if algorithm else set(source.checksums)
    if not source.multipart and wanted == set(source.checksums):
        return source.etag, source.checksums
    digests = Digests({"md5", *wanted})
    with _reader(context, source) as reader:
        buffer = memoryview(bytearray(BUFFER))
        while count := reader.readinto(buffer):
            digests.update(buffer[:count])
    return digests.hex("md5"), {name: digests.base64(name) for name in wanted}


def _reader(context: Context, source: StoredObject) -> ObjectReader:
    return ObjectReader([(part.path(context.folder), part.size) for part in source.parts])


@operation(
    "s3",
    "UploadPartCopy",
    honours=[
        *SOURCE,
        "Bucket",
        "Key",
        "UploadId",
        "PartNumber",
        "CopySourceRange",
        "ExpectedBucketOwner",
        "ExpectedSourceBucketOwner",
    ],
    locks=False,
)
def upload_part_copy(context: Context, params: Params) -> dict[str, Any]:
    """Make a part of an object's bytes."""
    check_part_number(params["PartNumber"])
    with context.lock:
        upload = upload_of(bucket_of(context, params), params)
        _, source = copy_source(context, params)
    start, end = _copied_range(source, params)
    algorithms = {upload.algorithm} if upload.algorithm else set()
    digests = Digests({"md5", *algorithms})
    file = secrets.token_hex(16)
    path = object_path(context.folder, file)
    path.parent.mkdir(exist_ok=True)
    with _reader(context, source) as reader, path.open("wb", buffering=0) as target:
        reader.seek(start)
        while start < end:
            piece = memoryview(reader.read(min(BUFFER, end - start)) or b"")
            target.write(piece)
            digests.update(piece)
            start += len(piece)
    part = Part(
        number=params["PartNumber"],
        file=file,
        size=path.stat().st_size,
        md5=digests.hex("md5"),
        checksums={name: digests.base64(name) for name in algorithms},
        modified=context.clock.now(),
    )
    store_part(context, params, part)
    result = {"ETag": quoted(part.md5), "LastModified": part.modified, **shown_checksums(part.checksums)}
    return {"CopyPartResult": result, "ServerSideEncryption": upload.headers["ServerSideEncryption"]}


def _copied_range(source: StoredObject, params: Params) -> tuple[int, int]:
    text = params.get("CopySourceRange")
    if text is None:
        return 0, source.size
    match = RANGE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]) or int(match[2]) >= source.size:
        raise AwsError(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {source.size}",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=text,
        )
    return int(match[1]), int(match[2]) + 1
