"""Signatures: every form of Signature Version 4, and the errors of each service.

Sources: "AWS Signature Version 4 for API requests" (IAM User Guide); "Signature calculations for the
Authorization header" and "Authenticating Requests: Using Query Parameters" (Amazon S3 API Reference); "Common
Errors" of each service's API Reference; "Error codes for the Amazon EC2 API".
"""

from __future__ import annotations

import hashlib
import hmac
import urllib.error
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config

from tests.sandbox.clients import SandboxClients, refused, sha256

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: dict[str, Callable[[Any], Any]] = {
    "ec2": lambda client: client.describe_regions(),
    "s3": lambda client: client.list_buckets(),
    "iam": lambda client: client.list_roles(),
    "sts": lambda client: client.get_caller_identity(),
    "ssm": lambda client: client.describe_parameters(),
    "ebs": lambda client: client.list_snapshot_blocks(SnapshotId="snap-0123456789abcdef0"),
}


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("ec2", "AuthFailure"),
        ("s3", "InvalidAccessKeyId"),
        ("iam", "InvalidClientTokenId"),
        ("sts", "InvalidClientTokenId"),
        ("ssm", "UnrecognizedClientException"),
        ("ebs", "UnrecognizedClientException"),
    ],
)
def test_refuses_an_unknown_access_key(aws: SandboxClients, service: str, code: str) -> None:
    client = aws.other_client(service, aws_access_key_id="AKIANOBODYKNOWSTHIS0")
    with refused(code):
        CALLS[service](client)


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("ec2", "AuthFailure"),
        ("s3", "SignatureDoesNotMatch"),
        ("iam", "SignatureDoesNotMatch"),
        ("sts", "SignatureDoesNotMatch"),
        ("ssm", "InvalidSignatureException"),
        ("ebs", "InvalidSignatureException"),
    ],
)
def test_refuses_a_wrong_secret(aws: SandboxClients, service: str, code: str) -> None:
    client = aws.other_client(service, aws_secret_access_key="not-the-secret")
    with refused(code):
        CALLS[service](client)


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("ec2", "RequestExpired"),
        ("s3", "ExpiredToken"),
        ("iam", "ExpiredToken"),
        ("sts", "ExpiredToken"),
        ("ssm", "ExpiredTokenException"),
        ("ebs", "ExpiredTokenException"),
    ],
)
def test_a_session_ends(aws: SandboxClients, service: str, code: str) -> None:
    session = aws.sts.get_session_token(DurationSeconds=900)["Credentials"]
    client = aws.other_client(
        service,
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    aws.sandbox.clock.advance(901)
    with refused(code):
        CALLS[service](client)


def test_a_session_needs_its_token(aws: SandboxClients) -> None:
    session = aws.sts.get_session_token()["Credentials"]
    keys = {
        "aws_access_key_id": session["AccessKeyId"],
        "aws_secret_access_key": session["SecretAccessKey"],
    }
    with refused("InvalidClientTokenId"):
        aws.other_client("sts", **keys).get_caller_identity()
    with refused("InvalidToken"):
        aws.other_client("s3", **keys, aws_session_token="another").list_buckets()


@pytest.mark.parametrize(
    ("service", "code", "skew"),
    [
        ("ec2", "RequestExpired", timedelta(minutes=6)),
        ("s3", "RequestTimeTooSkewed", timedelta(minutes=16)),
        ("sts", "SignatureDoesNotMatch", timedelta(minutes=6)),
        ("ssm", "InvalidSignatureException", timedelta(minutes=-6)),
    ],
)
def test_refuses_clocks_with_too_much_skew(
    aws: SandboxClients, service: str, code: str, skew: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws.sandbox.clock, "skew", skew)
    with refused(code):
        CALLS[service](aws.client(service))


@pytest.mark.parametrize(
    ("service", "code"),
    [("ec2", "AuthFailure"), ("sts", "SignatureDoesNotMatch"), ("s3", "AuthorizationHeaderMalformed")],
)
def test_refuses_an_unknown_region(aws: SandboxClients, service: str, code: str) -> None:
    with refused(code):
        CALLS[service](aws.client(service, "eu-nowhere-9"))


def test_refuses_unsigned_requests(aws: SandboxClients) -> None:
    form = "application/x-www-form-urlencoded"
    with aws.connection() as connection:
        connection.request("GET", "/images/k")
        answer = connection.getresponse()
        assert (answer.status, b"<Code>AccessDenied</Code>" in answer.read()) == (403, True)
        body = "Action=GetCallerIdentity&Version=2011-06-15"
        connection.request("POST", "/", body, {"Content-Type": form})
        answer = connection.getresponse()
        assert (answer.status, b"<Code>MissingAuthenticationToken</Code>" in answer.read()) == (403, True)


def test_refuses_signature_version_2(aws: SandboxClients) -> None:
    aws.bucket()
    client = aws.other_client("s3", config=Config(signature_version="s3", retries={"total_max_attempts": 1}))
    with refused("InvalidRequest", "Please use AWS4-HMAC-SHA256"):
        client.list_buckets()


def test_refuses_services_that_it_does_not_have(aws: SandboxClients) -> None:
    status, body = aws.send("POST", "/", b"{}", service="dynamodb")
    assert status == 501
    assert b"does not emulate the service 'dynamodb'" in body


# Payloads


def test_accepts_a_payload_whose_hash_is_in_the_signature_only(aws: SandboxClients) -> None:
    """boto3 with awscrt signs EBS blocks like this; all services but S3 are always signed like this."""
    snapshot = aws.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    block = b"\7" * 524_288
    headers = {
        "x-amz-Data-Length": "524288",
        "x-amz-Checksum": sha256(block),
        "x-amz-Checksum-Algorithm": "SHA256",
    }
    status, _ = aws.send("PUT", f"/snapshots/{snapshot}/blocks/0", block, service="ebs", headers=headers)
    assert status == 201


def test_refuses_a_body_other_than_the_signed_one(aws: SandboxClients) -> None:
    aws.bucket()
    headers = aws.signed(
        "PUT", "/images/k", b"signed", headers={"x-amz-content-sha256": hashlib.sha256(b"signed").hexdigest()}
    )
    with aws.connection() as connection:
        connection.request("PUT", "/images/k", b"tamper", headers)
        answer = connection.getresponse()
        assert (answer.status, b"XAmzContentSHA256Mismatch" in answer.read()) == (400, True)
    with refused("404"):
        aws.s3.head_object(Bucket="images", Key="k")


def test_accepts_unsigned_payloads(aws: SandboxClients) -> None:
    aws.bucket()
    status, _ = aws.send("PUT", "/images/k", b"x", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    assert status == 200


def chunk(data: bytes, extension: str = "") -> bytes:
    return f"{len(data):x}{extension}\r\n".encode() + data + b"\r\n"


def test_accepts_chunks_with_a_trailing_checksum(aws: SandboxClients) -> None:
    aws.bucket()
    data = b"a" * 100_000
    headers = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": str(len(data)),
        "x-amz-trailer": "x-amz-checksum-sha256",
        "Content-Encoding": "aws-chunked",
    }

    def send(checksum: str) -> tuple[int, bytes]:
        trailer = f"0\r\nx-amz-checksum-sha256:{checksum}\r\n\r\n".encode()
        body = chunk(data[:65_536]) + chunk(data[65_536:]) + trailer
        return aws.send("PUT", "/images/trailer", body, headers=headers)

    assert send(sha256(data))[0] == 200
    stored = aws.s3.get_object(Bucket="images", Key="trailer", ChecksumMode="ENABLED")
    assert stored["Body"].read() == data
    assert stored["ChecksumSHA256"] == sha256(data)
    assert "ContentEncoding" not in stored
    status, answer = send(sha256(b"other"))
    assert (status, b"BadDigest" in answer) == (400, True)


class ChunkSigning:
    """Signs chunks as a client, by the S3 API Reference."""

    def __init__(self, aws: SandboxClients, headers: dict[str, str]) -> None:
        signature, stamp = headers["Authorization"].rpartition("Signature=")[2], headers["X-Amz-Date"]
        self.previous, self.stamp = signature, stamp
        self.scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        key = f"AWS4{aws.sandbox.secret_key}".encode()
        for part in self.scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        self.key = key

    def sign(self, algorithm: str, *rest: str) -> str:
        text = "\n".join([algorithm, self.stamp, self.scope, self.previous, *rest])
        self.previous = hmac.new(self.key, text.encode(), "sha256").hexdigest()
        return self.previous

    def chunk(self, data: bytes) -> bytes:
        empty, digest = (hashlib.sha256(part).hexdigest() for part in (b"", data))
        signature = self.sign("AWS4-HMAC-SHA256-PAYLOAD", empty, digest)
        if not data:
            return f"0;chunk-signature={signature}\r\n".encode()
        return chunk(data, f";chunk-signature={signature}")


@pytest.mark.parametrize("tampered", [False, True])
def test_verifies_the_signature_of_every_chunk(aws: SandboxClients, *, tampered: bool) -> None:
    aws.bucket()
    data = b"b" * 70_000
    headers = {
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "x-amz-decoded-content-length": str(len(data)),
    }
    signed = aws.signed("PUT", "/images/chunks", headers=headers)
    signing = ChunkSigning(aws, signed)
    body = signing.chunk(data[:65_536]) + signing.chunk(data[65_536:]) + signing.chunk(b"") + b"\r\n"
    if tampered:
        body = body.replace(b"b\r\n", b"c\r\n", 1)
    with aws.connection() as connection:
        connection.request("PUT", "/images/chunks", body, signed)
        answer = connection.getresponse()
        text = answer.read()
    assert (answer.status, b"SignatureDoesNotMatch" in text) == ((403, True) if tampered else (200, False))
    if not tampered:
        assert aws.s3.get_object(Bucket="images", Key="chunks")["Body"].read() == data


@pytest.mark.parametrize("tampered", [False, True])
def test_verifies_the_signature_of_trailers(aws: SandboxClients, *, tampered: bool) -> None:
    aws.bucket()
    data = b"c" * 10_000
    headers = {
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": str(len(data)),
        "x-amz-trailer": "x-amz-checksum-sha256",
    }
    signed = aws.signed("PUT", "/images/trailers", headers=headers)
    signing = ChunkSigning(aws, signed)
    body = signing.chunk(data) + signing.chunk(b"")
    trailer = f"x-amz-checksum-sha256:{sha256(data)}\n"
    signature = signing.sign("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(trailer.encode()).hexdigest())
    if tampered:
        signature = signature[::-1]
    body += f"{trailer.strip()}\r\nx-amz-trailer-signature:{signature}\r\n\r\n".encode()
    with aws.connection() as connection:
        connection.request("PUT", "/images/trailers", body, signed)
        assert connection.getresponse().status == (403 if tampered else 200)


# Presigned URLs


def fetch(url: str, method: str = "GET", data: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_presigned_urls_read_and_write(aws: SandboxClients) -> None:
    aws.bucket()
    client = aws.other_client("s3", config=Config(signature_version="s3v4"))
    put = client.generate_presigned_url("put_object", {"Bucket": "images", "Key": "a b+ü"})
    assert fetch(put, "PUT", b"by hand")[0] == 200
    get = client.generate_presigned_url("get_object", {"Bucket": "images", "Key": "a b+ü"})
    assert fetch(get) == (200, b"by hand")
    assert fetch(get.replace("images", "others"))[0] == 403


def test_an_advance_before_a_reset_expires_no_url(aws: SandboxClients) -> None:
    aws.sandbox.clock.advance(10_000)  # in the second in which the URL is created
    aws.sandbox.reset()
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    client = aws.other_client("s3", config=Config(signature_version="s3v4"))
    assert fetch(client.generate_presigned_url("get_object", {"Bucket": "images", "Key": "k"}))[0] == 200


def test_presigned_urls_expire(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    client = aws.other_client("s3", config=Config(signature_version="s3v4"))
    url = client.generate_presigned_url("get_object", {"Bucket": "images", "Key": "k"}, ExpiresIn=60)
    aws.sandbox.clock.advance(61)
    status, body = fetch(url)
    assert (status, b"Request has expired" in body) == (403, True)


@pytest.mark.parametrize("key", ["plain", "a b", "a+b", "ü/ö", "a//b", "../up", "100%", "a:b@c,d;e=f&g"])
def test_accepts_signatures_of_any_key(aws: SandboxClients, key: str) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key=key, Body=key.encode())
    assert aws.s3.get_object(Bucket="images", Key=key)["Body"].read() == key.encode()
    assert [entry["Key"] for entry in aws.s3.list_objects_v2(Bucket="images")["Contents"]] == [key]
