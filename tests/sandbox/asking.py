"""How the tests of the sandbox ask: clients made once, expected refusals, requests signed by hand."""

from __future__ import annotations

import base64
import hashlib
import http.client
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.sandbox import Sandbox

ONCE = Config(retries={"total_max_attempts": 1})


class Asker:
    """One sandbox and the clients of one test run.

    Made once, because making a client takes longer than a call.
    """

    def __init__(self, served: Sandbox) -> None:
        self.served = served
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str, region: str = "us-east-1") -> Any:
        key = (service, region)
        if key not in self._clients:
            self._clients[key] = self.served.client(service, region, config=ONCE)
        return self._clients[key]

    def close(self) -> None:
        """Close the connections: the sandbox closes idle ones, and a call at that moment fails."""
        for client in self._clients.values():
            client.close()

    @property
    def s3(self) -> Any:
        return self.client("s3")

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    @property
    def iam(self) -> Any:
        return self.client("iam")

    @property
    def sts(self) -> Any:
        return self.client("sts")

    @property
    def ssm(self) -> Any:
        return self.client("ssm")

    @property
    def ebs(self) -> Any:
        return self.client("ebs")

    @cached_property
    def port(self) -> int:
        return urlsplit(self.served.url).port or 0

    def other_client(self, service: str, **options: Any) -> Any:
        """Return a client that is made anew, with other credentials or configuration."""
        own = {
            "config": ONCE,
            "aws_access_key_id": self.served.access_key,
            "aws_secret_access_key": self.served.secret_key,
        }
        return self.served.client(service, **(own | options))

    def bucket(self, name: str = "images") -> str:
        self.s3.create_bucket(Bucket=name)
        return name

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Open one HTTP connection to the sandbox."""
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
        """Return the headers of a request signed by hand; what `headers` has is signed too."""
        request = AWSRequest(method, f"{self.served.url}{path}", headers=dict(headers or {}), data=body)
        credentials = Credentials(self.served.access_key, secret or self.served.secret_key)
        SigV4Auth(credentials, service, region).add_auth(request)
        return dict(request.headers.items())

    def ask(self, method: str, path: str, body: bytes = b"", **options: Any) -> tuple[int, bytes]:
        """Send a request signed by hand; return status and body. `options` are those of `signed`."""
        if options.get("service", "s3") == "s3":
            digest = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
            options["headers"] = digest | dict(options.get("headers") or {})
        with self.connection() as connection:
            connection.request(method, path, body, self.signed(method, path, body, **options))
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """Expect a refusal with AWS's code, and with this text in its message."""
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert error["Code"] == code
    assert text in error.get("Message", "")


def sha256(data: bytes) -> str:
    """Return a checksum as S3's headers carry it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
