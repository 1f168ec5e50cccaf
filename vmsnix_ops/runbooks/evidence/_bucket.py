"""The few calls to S3 that an archive in a bucket needs."""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops import credentials
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CONTENT_TYPES = {
    "ipynb": "application/x-ipynb+json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "txt": "text/plain; charset=utf-8",
}
ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
UNKNOWN = frozenset({"403", "AccessDenied"})  # what a HEAD is answered with by who may only write


def is_remote(archive: str | Path) -> bool:
    """Whether an archive is in a bucket."""
    return str(archive).startswith("s3://")


def split(place: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` location."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return bucket, key


@needs("s3:PutObject")
def put(environment: Mapping[str, str], place: str, content: bytes) -> None:
    """Write an object. S3 compares the bytes that arrive with their SHA-256."""
    bucket, key = split(place)
    client(environment).put_object(
        Bucket=bucket,
        Key=key,
        Body=content,
        ContentType=CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream"),
        ChecksumSHA256=base64.b64encode(hashlib.sha256(content).digest()).decode(),
    )


@needs("s3:GetObject", "s3:ListBucket", "s3:PutObject")
def put_once(environment: Mapping[str, str], place: str, content: bytes) -> None:
    """Write an object whose key derives from its content, unless it is there already."""
    from botocore.exceptions import ClientError

    bucket, key = split(place)
    try:
        there = client(environment).head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ABSENT | UNKNOWN:
            raise
    else:
        if there["ContentLength"] == len(content):
            return
    put(environment, place, content)


@needs("s3:GetObject", "s3:ListBucket")
def get(environment: Mapping[str, str], place: str) -> bytes | None:
    """Return an object's content, or ``None`` when there is none."""
    from botocore.exceptions import ClientError

    bucket, key = split(place)
    try:
        content: bytes = client(environment).get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise
    return content


@needs("s3:ListBucket")
def folders(environment: Mapping[str, str], archive: str) -> list[str]:
    """Return the names of what looks like a folder directly below a location."""
    bucket, prefix = split(archive.rstrip("/") + "/")
    pages = client(environment).get_paginator("list_objects_v2")
    return [
        str(found["Prefix"]).removeprefix(prefix).rstrip("/")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for found in page.get("CommonPrefixes", [])
    ]


@contextmanager
def explained(what: str, cure: str) -> Iterator[None]:
    """Turn what boto3 raises into one error of ours."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise ArchiveError(what, why=f"{error}.", cure=cure) from error


def client(environment: Mapping[str, str]) -> Any:
    """Return an S3 client that follows the run's variables, which may be those of a sandbox."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    key, secret, token, profile = (environment.get(name) or None for name in names)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    # As everywhere in AWS, keys in the environment count more than a profile.
    return _client(key, secret, token, None if key else profile, region or None, endpoint or None)


@lru_cache(maxsize=8)
def _client(
    key: str | None,
    secret: str | None,
    token: str | None,
    profile: str | None,
    region: str | None,
    endpoint: str | None,
) -> Any:
    import boto3
    from botocore.config import Config

    credentials.watch()
    session = boto3.session.Session(
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        profile_name=profile,
        region_name=region,
    )
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=10, max_pool_connections=16
    )
    return session.client("s3", endpoint_url=endpoint, config=config)
