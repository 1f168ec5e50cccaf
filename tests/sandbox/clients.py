"""Helpers of the sandbox's tests: a sandbox with its clients, users, expected errors, signed requests."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from vmsnix_ops.sandbox import Access
from vmsnix_ops.sandbox.core import Clock
from vmsnix_ops.sandbox.wire.models import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.sandbox import Sandbox

ONCE = Config(retries={"total_max_attempts": 1})
MIB, GIB, BLOCK = 2**20, 2**30, 524_288
STILL = 0.001
"""Sandbox seconds per real second. On a busy machine too, time passes only when a test says so."""


class SandboxClients:
    """A sandbox and its clients: ``aws.ec2``, ``aws.s3``, ...

    Clients are kept, because creating one takes longer than a call.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.account = sandbox.account
        self.port = urlsplit(sandbox.url).port or 0
        self._clients: dict[tuple[str, str], Any] = {}
        self._numbers = itertools.count(1)

    def __getattr__(self, service: str) -> Any:
        if service not in SERVICES:
            raise AttributeError(service)
        return self.client(service)

    def client(self, service: str, region: str = "us-east-1") -> Any:
        key = (service, region)
        if key not in self._clients:
            self._clients[key] = self.sandbox.client(service, region, config=ONCE)
        return self._clients[key]

    def close(self) -> None:
        """Close the connections: the sandbox closes idle ones, and a call at that moment fails."""
        for client in self._clients.values():
            client.close()

    def other_client(self, service: str, **options: Any) -> Any:
        """Return a new client, with other credentials or configuration."""
        own = {
            "config": ONCE,
            "aws_access_key_id": self.sandbox.access_key,
            "aws_secret_access_key": self.sandbox.secret_key,
        }
        return self.sandbox.client(service, **(own | options))

    # Signed requests

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Open an HTTP connection to the sandbox."""
        opened = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            yield opened
        finally:
            opened.close()

    def signed(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        service: str = "s3",
        region: str = "us-east-1",
        headers: Mapping[str, str] | None = None,
        secret: str | None = None,
    ) -> dict[str, str]:
        """Return the headers of a signed request, with signed `headers`."""
        request = AWSRequest(method, f"{self.sandbox.url}{path}", headers=dict(headers or {}), data=body)
        credentials = Credentials(self.sandbox.access_key, secret or self.sandbox.secret_key)
        SigV4Auth(credentials, service, region).add_auth(request)
        return dict(request.headers.items())

    def send(self, method: str, path: str, body: bytes = b"", **options: Any) -> tuple[int, bytes]:
        """Send a signed request, and return status and body. `options` are those of `signed`."""
        if options.get("service", "s3") == "s3":
            digest = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
            options["headers"] = digest | dict(options.get("headers") or {})
        with self.connection() as connection:
            connection.request(method, path, body, self.signed(method, path, body, **options))
            answer = connection.getresponse()
            return answer.status, answer.read()

    # Resources

    def clear(self) -> None:
        """Delete all resources, and stop the clock."""
        for (_, _, kind), table in self.sandbox.state.tables.items():
            if kind != "credentials":
                table.clear()
        self.sandbox.state.clock = Clock(STILL)
        self.sandbox.faults.clear()

    def pass_time(self, seconds: float) -> None:
        self.sandbox.clock.advance(seconds)

    def bucket(self, name: str = "images") -> str:
        self.s3.create_bucket(Bucket=name)
        return name

    def prepare(self, bucket: str, role: str = "vmimport") -> None:
        """Create a bucket, and a role of VM Import for all its objects."""
        self.sandbox.prepare(bucket, role=role, key_prefix="")

    def snapshot(self, size: int = 3, **more: Any) -> str:
        """Return a completed snapshot of an empty volume."""
        volume = self.ec2.create_volume(Size=size, AvailabilityZone="us-east-1a")["VolumeId"]
        snapshot_id: str = self.ec2.create_snapshot(VolumeId=volume, **more)["SnapshotId"]
        self.pass_time(60)
        return snapshot_id

    def image(self, snapshot_id: str | None = None, **more: Any) -> str:
        """Return an available image."""
        root = {"SnapshotId": snapshot_id or self.snapshot(), "VolumeType": "gp3"}
        params = {
            "Name": f"image-{next(self._numbers)}",
            "Architecture": "x86_64",
            "RootDeviceName": "/dev/sda1",
            "VirtualizationType": "hvm",
            "EnaSupport": True,
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": root}],
        }
        image_id: str = self.ec2.register_image(**(params | more))["ImageId"]
        return image_id

    def describe(self, image_id: str, region: str = "us-east-1", **more: Any) -> dict[str, Any]:
        ec2 = self.client("ec2", region)
        image: dict[str, Any] = ec2.describe_images(ImageIds=[image_id], **more)["Images"][0]
        return image

    def describe_snapshot(self, snapshot_id: str, region: str = "us-east-1") -> dict[str, Any]:
        ec2 = self.client("ec2", region)
        snapshot: dict[str, Any] = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]
        return snapshot


def allow_public_images(aws: Sandbox, *regions: str) -> None:
    """End block public access for AMIs, which is on in a new account."""
    for region in regions:
        aws.state.tables.table(aws.account, region, "ec2_settings")["image_block"] = "unblocked"


def user_access(aws: Access, *statements: dict[str, Any], name: str = "") -> Access:
    """Create a user whose policy has these statements, and return access as this user."""
    iam = aws.client("iam")
    count = len(iam.list_users()["Users"])
    name = name or (f"carol-{count}" if count else "carol")
    iam.create_user(UserName=name)
    if statements:
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], aws.account)


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """Expect AWS's error code, and a part of its text."""
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    assert text in error.get("Message", ""), error


def sha256(data: bytes) -> str:
    """Return a checksum in the form of S3's headers."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
