"""Uploads with a form (presigned POST), by both versions of signatures.

Sources: "Browser-based uploads using POST" in the Amazon S3 API Reference; AWS's answers of February 2026 in
LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

import base64
import hmac
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest
from botocore.config import Config

from tests.sandbox.clients import ONCE

if TYPE_CHECKING:
    import http.client
    from pathlib import Path

    from tests.sandbox.clients import SandboxClients

BOUNDARY = "vmsnix-boundary"
CONTENT = b"abcdef"
TAGGING = "<Tagging><TagSet><Tag><Key>t</Key><Value>1</Value></Tag></TagSet></Tagging>"


@pytest.fixture(params=["s3", "s3v4"])
def client(aws: SandboxClients, request: pytest.FixtureRequest) -> Any:
    aws.bucket()
    return aws.other_client("s3", config=ONCE.merge(Config(signature_version=request.param)))


def form_body(fields: dict[str, str], content: bytes, filename: str = "disk.raw") -> bytes:
    lines = b""
    for name, value in fields.items():
        lines += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    named = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"{named}\r\n\r\n'
    return lines + head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(
    aws: SandboxClients, presigned: dict[str, Any], content: bytes = CONTENT, filename: str = "disk.raw"
) -> tuple[http.client.HTTPResponse, bytes]:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = form_body(presigned["fields"], content, filename)
    with aws.connection() as connection:
        connection.request("POST", urlsplit(presigned["url"]).path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()


def stored_files(aws: SandboxClients) -> set[Path]:
    return set((aws.sandbox.state.folder / "objects").rglob("*/*"))


def error_of(body: bytes) -> dict[str, str]:
    return {child.tag: child.text or "" for child in ET.fromstring(body)}


def test_a_form_stores_an_object(aws: SandboxClients, client: Any) -> None:
    metadata = {"x-amz-meta-test-1": "one", "x-amz-meta-TEST-2": "two", "Content-Type": "text/plain"}
    presigned = client.generate_presigned_post(
        "images",
        "a b+ü",
        Fields={**metadata, "tagging": TAGGING},
        Conditions=[
            {"bucket": "images"},
            ["starts-with", "$x-amz-meta-test-1", "o"],
            ["eq", "$x-amz-meta-test-2", "two"],
            {"Content-Type": "text/plain"},
            ["starts-with", "$tagging", ""],
        ],
    )
    answer, body = post(aws, presigned)
    assert (answer.status, body) == (204, b"")
    assert answer.headers["Location"].endswith("/images/a%20b%2B%C3%BC")
    found = aws.s3.get_object(Bucket="images", Key="a b+ü", ChecksumMode="ENABLED")
    assert (found["Body"].read(), found["ETag"]) == (CONTENT, answer.headers["ETag"])
    assert found["Metadata"] == {"test-1": "one", "test-2": "two"}
    assert (found["ContentType"], found["ChecksumCRC64NVME"]) == ("text/plain", "Pact6XRTYyA=")
    assert aws.s3.get_object_tagging(Bucket="images", Key="a b+ü")["TagSet"] == [{"Key": "t", "Value": "1"}]


@pytest.mark.parametrize("length", [0, 1, 262_143, 262_144, 1_000_000])
def test_a_file_of_any_length_is_stored(aws: SandboxClients, length: int) -> None:
    aws.bucket()
    content = (b"\r\n--vmsnix-bounda" * 70_000)[:length]
    answer, _ = post(aws, aws.s3.generate_presigned_post("images", "k"), content)
    assert answer.status == 204
    assert aws.s3.get_object(Bucket="images", Key="k")["Body"].read() == content


@pytest.mark.parametrize(("filename", "key"), [("disk.raw", "up/disk.raw"), ("", "up/${filename}")])
def test_the_key_may_contain_the_name_of_the_file(aws: SandboxClients, filename: str, key: str) -> None:
    aws.bucket()
    presigned = aws.s3.generate_presigned_post("images", "up/${filename}")
    assert post(aws, presigned, filename=filename)[0].status == 204
    assert aws.s3.list_objects_v2(Bucket="images")["Contents"][0]["Key"] == key


def test_a_form_chooses_its_answer(aws: SandboxClients, client: Any) -> None:
    created = client.generate_presigned_post(
        "images", "k", Fields={"success_action_status": "201"}, Conditions=[{"success_action_status": "201"}]
    )
    answer, body = post(aws, created)
    shown = error_of(body)
    assert (answer.status, shown["Bucket"], shown["Key"]) == (201, "images", "k")
    assert shown["ETag"] == answer.headers["ETag"]
    for target, status in (("http://localhost.test/done", 303), ("/relative", 204)):
        fields = {"success_action_redirect": target}
        presigned = client.generate_presigned_post("images", "k", Fields=fields, Conditions=[fields])
        answer, body = post(aws, presigned)
        assert (answer.status, body) == (status, b"")
        if status == 303:
            assert answer.headers["Location"].startswith(f"{target}?bucket=images&key=k&etag=")


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (["eq", "$x-amz-meta-a", "2"], 'Policy Condition failed: ["eq", "$x-amz-meta-a", "2"]'),
        (["eq", "x-amz-meta-a", "1"], 'Policy Condition failed: ["eq", "x-amz-meta-a", "1"]'),
        (["starts-with", "$x-amz-meta-a", "2"], "Policy Condition failed: "),
        ({"x-amz-meta-a": "2"}, "Policy Condition failed: "),
        (["content-length-range", "test", "10"], 'Policy Condition failed: ["content-length-range", "test"'),
        (["starts-with", "$key", ""], "Extra input fields: x-amz-meta-a"),
    ],
)
def test_a_form_that_violates_its_policy_is_refused(
    aws: SandboxClients, client: Any, condition: Any, text: str
) -> None:
    presigned = client.generate_presigned_post(
        "images", "k", Fields={"x-amz-meta-a": "1"}, Conditions=[condition]
    )
    answer, body = post(aws, presigned)
    error = error_of(body)
    assert (answer.status, error["Code"]) == (403, "AccessDenied")
    assert error["Message"].startswith(f"Invalid according to Policy: {text}")
    assert aws.s3.list_objects_v2(Bucket="images")["KeyCount"] == 0


def test_a_simple_condition_has_one_field(aws: SandboxClients, client: Any) -> None:
    presigned = client.generate_presigned_post("images", "k", Conditions=[{"bucket": "images", "key": "k"}])
    answer, body = post(aws, presigned)
    assert (answer.status, error_of(body)["Code"]) == (400, "InvalidPolicyDocument")


@pytest.mark.parametrize(
    ("length", "code", "member"),
    [(12, "EntityTooLarge", "MaxSizeAllowed"), (1, "EntityTooSmall", "MinSizeAllowed"), (10, "", "")],
)
def test_a_policy_limits_the_size(aws: SandboxClients, length: int, code: str, member: str) -> None:
    aws.bucket()
    before = stored_files(aws)
    presigned = aws.s3.generate_presigned_post("images", "k", Conditions=[["content-length-range", 5, 10]])
    answer, body = post(aws, presigned, b"a" * length)
    if not code:
        assert answer.status == 204
        return
    error = error_of(body)
    assert (error["Code"], error["ProposedSize"]) == (code, str(length))
    assert member in error
    assert stored_files(aws) == before


def test_a_changed_policy_has_another_signature(aws: SandboxClients, client: Any) -> None:
    presigned = client.generate_presigned_post("images", "k")
    presigned["fields"]["policy"] = "invalid"
    answer, body = post(aws, presigned)
    error = error_of(body)
    assert (answer.status, error["Code"], error["StringToSign"]) == (403, "SignatureDoesNotMatch", "invalid")


def test_fields_must_be_there(aws: SandboxClients, client: Any) -> None:
    presigned = client.generate_presigned_post("images", "k")
    version_2 = "AWSAccessKeyId" in presigned["fields"]
    missing = "AWSAccessKeyId" if version_2 else "x-amz-algorithm"
    signature = "signature" if version_2 else "x-amz-signature"
    for name in (missing, signature):
        fields = {key: value for key, value in presigned["fields"].items() if key != name}
        answer, body = post(aws, presigned | {"fields": fields})
        error = error_of(body)
        assert (answer.status, error["Code"]) == (400, "InvalidArgument")
        assert error["ArgumentName"].lower() == name.lower()
    fields = {key: value for key, value in presigned["fields"].items() if key in {"key", "policy"}}
    answer, body = post(aws, presigned | {"fields": fields})
    assert (answer.status, error_of(body)["Message"]) == (403, "Access Denied")


def test_a_policy_expires(aws: SandboxClients) -> None:
    aws.bucket()
    client = aws.other_client("s3", config=ONCE.merge(Config(signature_version="s3v4")))
    presigned = client.generate_presigned_post("images", "k", ExpiresIn=60)
    aws.pass_time(61)
    answer, body = post(aws, presigned)
    text = "Invalid according to Policy: Policy expired."
    assert (answer.status, error_of(body)["Message"]) == (403, text)


def test_another_content_type_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    with aws.connection() as connection:
        connection.request("POST", "/images", b"x", {"Content-Type": "text/plain"})
        answer = connection.getresponse()
        error = error_of(answer.read())
    assert (answer.status, error["Code"]) == (412, "PreconditionFailed")
    assert error["Condition"] == "Bucket POST must be of the enclosure-type multipart/form-data"


@pytest.mark.parametrize("body", [b"", b"--vmsnix-boundary", b"x" * 30_000, form_body({}, b"")[:-9]])
def test_a_form_that_ends_too_soon_is_refused(aws: SandboxClients, body: bytes) -> None:
    aws.bucket()
    before = stored_files(aws)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with aws.connection() as connection:
        connection.request("POST", "/images", body, headers)
        assert connection.getresponse().status in {400, 403}
    assert stored_files(aws) == before


@pytest.mark.parametrize("expiration", ["2999-01-01T00:00:00", "2999-01-01", 5, None])
def test_a_policy_whose_expiration_is_no_time_in_utc_is_refused(
    aws: SandboxClients, expiration: object
) -> None:
    policy = {"expiration": expiration, "conditions": [{"bucket": "images"}, {"key": "k"}]}
    text = base64.b64encode(json.dumps(policy).encode()).decode()
    signature = base64.b64encode(hmac.new(aws.sandbox.secret_key.encode(), text.encode(), "sha1").digest())
    fields = {"key": "k", "AWSAccessKeyId": aws.sandbox.access_key, "policy": text}
    given = {"url": f"{aws.sandbox.url}/{aws.bucket()}", "fields": fields | {"signature": signature.decode()}}
    answer, body = post(aws, given)
    assert answer.status in {400, 403}, body
