"""Signatures: every form of Signature Version 4, Version 2 in us-east-1, and the errors of each service.

Sources: "AWS Signature Version 4 for API requests" (IAM User Guide); "Signature calculations for the
Authorization header" and "Authenticating Requests: Using Query Parameters" (Amazon S3 API Reference); "Common
Errors" of each service's API Reference; "Error codes for the Amazon EC2 API"; AWS's answers of February 2026
in LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import timedelta
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree as ET

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

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


CODES = {  # for an unknown access key, a wrong secret key, and an expired session
    "ec2": ("AuthFailure", "AuthFailure", "RequestExpired"),
    "s3": ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    "iam": ("InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"),
    "sts": ("InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"),
    "ssm": ("UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"),
    "ebs": ("UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"),
}


@pytest.mark.parametrize("service", CODES)
def test_an_unknown_key_a_wrong_secret_and_an_expired_session_are_refused(
    aws: SandboxClients, service: str
) -> None:
    session = aws.sts.get_session_token(DurationSeconds=900)["Credentials"]
    keys = (
        {"aws_access_key_id": "AKIANOBODYKNOWSTHIS0"},
        {"aws_secret_access_key": "not-the-secret"},
        {
            "aws_access_key_id": session["AccessKeyId"],
            "aws_secret_access_key": session["SecretAccessKey"],
            "aws_session_token": session["SessionToken"],
        },
    )
    aws.sandbox.clock.advance(901)
    for key, code in zip(keys, CODES[service], strict=True):
        with refused(code):
            CALLS[service](aws.other_client(service, **key))


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
    aws.bucket()
    form = "application/x-www-form-urlencoded"
    with aws.connection() as connection:
        connection.request("GET", "/images/k")
        answer = connection.getresponse()
        assert (answer.status, b"<Code>AccessDenied</Code>" in answer.read()) == (403, True)
        body = "Action=GetCallerIdentity&Version=2011-06-15"
        connection.request("POST", "/", body, {"Content-Type": form})
        answer = connection.getresponse()
        assert (answer.status, b"<Code>MissingAuthenticationToken</Code>" in answer.read()) == (403, True)


def test_version_2_in_the_header_is_served_in_us_east_1(aws: SandboxClients) -> None:
    aws.bucket()
    client = aws.other_client("s3", config=Config(signature_version="s3", retries={"total_max_attempts": 1}))
    client.put_object(Bucket="images", Key="a b+ü", Body=b"by hand", Metadata={"foo": "bar"})
    found = client.get_object(Bucket="images", Key="a b+ü", ResponseContentType="text/x-disk")
    assert (found["Body"].read(), found["ContentType"]) == (b"by hand", "text/x-disk")
    assert found["Metadata"] == {"foo": "bar"}
    assert [one["Key"] for one in client.list_objects_v2(Bucket="images")["Contents"]] == ["a b+ü"]
    upload = client.create_multipart_upload(Bucket="images", Key="parts")["UploadId"]
    part = client.upload_part(Bucket="images", Key="parts", UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(Bucket="images", Key="parts", UploadId=upload, MultipartUpload=parts)
    keys = {"Objects": [{"Key": "parts"}, {"Key": "a b+ü"}]}
    assert len(client.delete_objects(Bucket="images", Delete=keys)["Deleted"]) == 2
    wrong = aws.other_client("s3", aws_secret_access_key="wrong", config=Config(signature_version="s3"))
    with refused("SignatureDoesNotMatch"):
        wrong.list_buckets()
    aws.client("s3", "eu-west-1").create_bucket(
        Bucket="west", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with refused("NotImplemented", "does not emulate Signature Version 2 in eu-west-1"):
        client.list_objects_v2(Bucket="west")


def test_version_2_in_the_header_needs_a_date_of_now(aws: SandboxClients) -> None:
    aws.bucket()
    header = {"Authorization": f"AWS {aws.sandbox.access_key}:c2lnbmF0dXJl"}
    old = "Tue, 27 Mar 2007 19:36:42 +0000"

    def code(headers: dict[str, str]) -> str:
        with aws.connection() as connection:
            connection.request("GET", "/images", headers=headers)
            return error_of(connection.getresponse().read())["Code"]

    assert code(header) == "AccessDenied"
    assert code({**header, "Date": "yesterday"}) == "AccessDenied"
    assert code({**header, "Date": old}) == "RequestTimeTooSkewed"
    assert code({**header, "x-amz-date": old, "Date": formatdate(usegmt=True)}) == "RequestTimeTooSkewed"
    assert code({**header, "Date": formatdate(usegmt=True)}) == "SignatureDoesNotMatch"
    assert code({"Authorization": "AWS key", "Date": old}) == "InvalidArgument"


def put_refused(aws: SandboxClients, condition: dict[str, dict[str, str]]) -> None:
    """Put an object into a bucket whose policy denies reading under a condition."""
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::images/*",
        "Condition": condition,
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    aws.s3.put_bucket_policy(Bucket="images", Policy=policy)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("s3:signatureversion", "AWS", {"header 2", "url 2"}),
        ("s3:signatureversion", "AWS4-HMAC-SHA256", {"header 4", "url 4"}),
        ("s3:authType", "REST-HEADER", {"header 2", "header 4"}),
        ("s3:authType", "REST-QUERY-STRING", {"url 2", "url 4"}),
    ],
)
def test_policies_can_require_a_form_of_signature(
    aws: SandboxClients, key: str, value: str, allowed: set[str]
) -> None:
    put_refused(aws, {"StringNotEquals": {key: value}})
    params, served = {"Bucket": "images", "Key": "k"}, set()
    for version, name in (("2", "s3"), ("4", "s3v4")):
        client = aws.other_client("s3", config=Config(signature_version=name))
        with suppress(ClientError):
            client.get_object(**params)
            served.add(f"header {version}")
        if fetch(client.generate_presigned_url("get_object", params))[0] == 200:
            served.add(f"url {version}")
    assert served == allowed


def test_a_policy_can_limit_the_age_of_urls(aws: SandboxClients) -> None:
    put_refused(aws, {"NumericGreaterThan": {"s3:signatureAge": "600000"}})
    client = aws.other_client("s3", config=Config(signature_version="s3v4"))
    url = client.generate_presigned_url("get_object", {"Bucket": "images", "Key": "k"}, ExpiresIn=3600)
    assert fetch(url)[0] == 200
    aws.sandbox.clock.advance(601)
    assert fetch(url)[0] == 403


def test_version_4a_is_not_emulated(aws: SandboxClients) -> None:
    algorithm = "AWS4-ECDSA-P256-SHA256"
    url = presigned(aws, "GET", "/images/k", {}).replace("AWS4-HMAC-SHA256", algorithm)
    header = f"{algorithm} Credential=k/20261130/s3/aws4_request, SignedHeaders=host, Signature=00"
    with aws.connection() as connection:
        connection.request("GET", "/images", headers={"Authorization": header})
        body = connection.getresponse().read()
    for error in (error_of(fetch(url)[1]), error_of(body)):
        assert error["Code"] == "NotImplemented"
        assert error["Message"] == "The sandbox does not emulate Signature Version 4A."


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
    """Send a request without any header that could change its signature, such as Content-Type."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=30)
    try:
        connection.request(method, f"{place.path}?{place.query}", data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


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


def default_client(aws: SandboxClients, region: str = "us-east-1") -> Any:
    """Return a client with the default configuration, which signs URLs with Version 2 in us-east-1."""
    return aws.other_client("s3", region_name=region, config=Config(s3={"addressing_style": "path"}))


def error_of(body: bytes) -> dict[str, str]:
    return {child.tag: child.text or "" for child in ET.fromstring(body)}


def test_urls_of_boto3s_default_configuration_are_served_in_us_east_1(aws: SandboxClients) -> None:
    aws.bucket()
    client = default_client(aws)
    metadata = {"Metadata": {"foo": "bar"}, "Bucket": "images", "Key": "a b+ü"}
    put = client.generate_presigned_url("put_object", metadata)
    assert "AWSAccessKeyId=" in put
    assert fetch(put, "PUT", b"by hand")[0] == 200
    assert aws.s3.head_object(Bucket="images", Key="a b+ü")["Metadata"] == {"foo": "bar"}
    read = {"Bucket": "images", "Key": "a b+ü", "ResponseContentType": "text/plain"}
    get = client.generate_presigned_url("get_object", read)
    assert fetch(get) == (200, b"by hand")
    listed = fetch(client.generate_presigned_url("list_objects_v2", {"Bucket": "images"}))
    assert (listed[0], b"<KeyCount>1</KeyCount>" in listed[1]) == (200, True)
    for changed in (get.replace("plain", "html"), get.replace("images", "others"), get.replace("ü", "u")):
        if changed != get:
            status, body = fetch(changed)
            assert (status, error_of(body)["Code"]) == (403, "SignatureDoesNotMatch")


def test_a_version_2_url_of_a_session_is_served(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    session = aws.sts.get_session_token()["Credentials"]
    keys = {
        "aws_access_key_id": session["AccessKeyId"],
        "aws_secret_access_key": session["SecretAccessKey"],
        "aws_session_token": session["SessionToken"],
    }
    client = aws.other_client("s3", config=Config(signature_version="s3"), **keys)
    url = client.generate_presigned_url("get_object", {"Bucket": "images", "Key": "k"})
    assert fetch(url) == (200, b"x")
    assert fetch(url.replace("x-amz-security-token=", "x-amz-security-token=A"))[0] == 403


def test_a_version_2_url_expires_and_needs_its_parameters(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x")
    client = aws.other_client("s3", config=Config(signature_version="s3"))
    params = ("get_object", {"Bucket": "images", "Key": "k"})
    error = error_of(fetch(client.generate_presigned_url(*params, ExpiresIn=-1))[1])
    assert (error["Code"], error["Message"]) == ("AccessDenied", "Request has expired")
    assert {"Expires", "ServerTime"} <= error.keys()
    url = client.generate_presigned_url(*params)
    for parameter in ("Signature", "Expires", "AWSAccessKeyId"):
        status, body = fetch(url.replace(f"{parameter}=", "other="))
        text = "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters"
        assert (status, error_of(body)["Message"]) == (403, text)


def test_version_2_in_another_region_is_not_emulated(aws: SandboxClients) -> None:
    place = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    aws.client("s3", "eu-west-1").create_bucket(Bucket="west", **place)
    params = ("get_object", {"Bucket": "west", "Key": "k"})
    client = aws.other_client("s3", config=Config(signature_version="s3"))
    status, body = fetch(client.generate_presigned_url(*params))
    assert (status, b"does not emulate Signature Version 2 in eu-west-1" in body) == (501, True)


def test_a_presigned_url_may_have_its_headers_in_the_query(aws: SandboxClients) -> None:
    """As the JavaScript SDK makes it. S3 ignores the checksum of an empty body that it puts there."""
    aws.bucket()
    query = {
        "x-amz-meta-foo": "bar baz",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-sdk-checksum-algorithm": "CRC32",
        "x-id": "PutObject",
    }
    assert fetch(presigned(aws, "PUT", "/images/k", query), "PUT", b"123456")[0] == 200
    found = aws.s3.head_object(Bucket="images", Key="k", ChecksumMode="ENABLED")
    assert (found["Metadata"], found["StorageClass"]) == ({"foo": "bar baz"}, "STANDARD_IA")
    assert found["ChecksumCRC64NVME"] == "CVmbZh4IWzA="
    url = presigned(aws, "GET", "/images/k", {"x-amz-checksum-mode": "ENABLED"})
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["x-amz-checksum-crc64nvme"] == "CVmbZh4IWzA="


def presigned(aws: SandboxClients, method: str, path: str, query: dict[str, str]) -> str:
    request = AWSRequest(method, f"{aws.sandbox.url}{path}?{urlencode(query)}")
    credentials = Credentials(aws.sandbox.access_key, aws.sandbox.secret_key)
    S3SigV4QueryAuth(credentials, "s3", "us-east-1").add_auth(request)
    return str(request.url)


def test_a_presigned_url_covers_all_headers_of_amazon(aws: SandboxClients) -> None:
    aws.bucket()
    url = presigned(aws, "PUT", "/images/k", {})
    request = urllib.request.Request(url, b"x", {"x-amz-meta-wrong": "1"}, method="PUT")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    with caught.value as answer:
        error = error_of(answer.read())
    assert (error["Code"], error["HeadersNotSigned"]) == ("AccessDenied", "x-amz-meta-wrong")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("X-Amz-Signature=", "other=", "Query-string authentication version 4 requires the X-Amz-Algorithm"),
        ("%2Faws4_request", "", "the Credential is mal-formed"),
        ("X-Amz-Expires=3600", "X-Amz-Expires=604801", "less than 604800 seconds"),
        ("X-Amz-Expires=3600", "X-Amz-Expires=many", "X-Amz-Expires should be a number"),
    ],
)
def test_wrong_parameters_of_a_presigned_url(aws: SandboxClients, old: str, new: str, text: str) -> None:
    url = presigned(aws, "GET", "/images/k", {})
    assert old in url
    status, body = fetch(url.replace(old, new))
    error = error_of(body)
    assert (status, error["Code"]) == (400, "AuthorizationQueryParametersError")
    assert text in error["Message"]


def test_a_wrong_signature_shows_what_was_signed(aws: SandboxClients) -> None:
    error = error_of(fetch(presigned(aws, "GET", "/images/k", {}) + "&x-id=GetObject")[1])
    assert error["Code"] == "SignatureDoesNotMatch"
    assert error["CanonicalRequest"].startswith("GET\n/images/k\n")
    assert error["StringToSign"].startswith("AWS4-HMAC-SHA256\n")
    assert bytes.fromhex(error["StringToSignBytes"]).decode() == error["StringToSign"]
    assert bytes.fromhex(error["CanonicalRequestBytes"]).decode() == error["CanonicalRequest"]


@pytest.mark.parametrize("key", ["plain", "a b", "a+b", "ü/ö", "a//b", "../up", "100%", "a:b@c,d;e=f&g"])
def test_accepts_signatures_of_any_key(aws: SandboxClients, key: str) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key=key, Body=key.encode())
    assert aws.s3.get_object(Bucket="images", Key=key)["Body"].read() == key.encode()
    assert [entry["Key"] for entry in aws.s3.list_objects_v2(Bucket="images")["Contents"]] == [key]
