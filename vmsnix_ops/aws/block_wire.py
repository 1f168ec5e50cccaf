"""The lean way to put and get one block of a snapshot.

botocore spends most of its time between the caller and the socket. This module sends the same bytes with the
same Signature Version 4 over urllib3's connection pool (which botocore itself uses), and nothing in between.
Everything that decides where the request goes and who sends it is still botocore's: `target` reads endpoint
(FIPS, dual stack, ``AWS_ENDPOINT_URL``), proxies and certificates from the session.

Only ``PutSnapshotBlock`` and ``GetSnapshotBlock`` go this way; everything else is a plain client call.

Source: EBS direct APIs reference, "PutSnapshotBlock"; IAM user guide, "Create a signed AWS API request".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import boto3

BLOCK_BYTES = 524_288
UNSIGNED = "UNSIGNED-PAYLOAD"  # the API's own choice: the checksum header is signed, the block is not


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials at one moment."""

    access_key: str
    secret_key: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where blocks go: plain values, so that a worker process can be told.

    Attributes
    ----------
    endpoint
        URL of the EBS direct APIs, without a trailing slash.
    region
        For the signature.
    proxy
        URL of the proxy, or empty.
    verify
        True, False, or the path of a certificate bundle: botocore's meaning.
    connect_seconds, read_seconds
        Limits of one request. A block that hangs is given up and sent again.
    """

    endpoint: str
    region: str
    proxy: str = ""
    verify: bool | str = True
    connect_seconds: float = 5.0
    read_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `code` and `message` of an error, or the bytes."""

    status: int
    code: str = ""
    message: str = ""
    body: bytes = b""
    checksum: str = ""

    @property
    def ok(self) -> bool:
        """Whether the block arrived."""
        return 200 <= self.status < 300


class ConnectionFailed(Exception):  # noqa: N818 (a condition that is retried, never shown)
    """No answer: the connection broke, or the time was over."""


def target(session: boto3.Session, region: str, *, read_seconds: float = 20.0) -> Target:
    """Return where the session's configuration sends calls to the EBS direct APIs."""
    from botocore.utils import get_environ_proxies

    client = session.client("ebs", region_name=region)
    endpoint = client.meta.endpoint_url.rstrip("/")
    configured = client.meta.config.proxies or get_environ_proxies(endpoint)
    proxy = (configured or {}).get(urllib.parse.urlsplit(endpoint).scheme, "")
    core = session._session  # boto3 itself offers no way to the certificate bundle
    bundle = core.get_config_variable("ca_bundle")
    return Target(endpoint, region, proxy, bundle or True, read_seconds=read_seconds)


def keys(session: boto3.Session) -> Keys:
    """Return the session's credentials, refreshed by botocore when they are about to expire."""
    from vmsnix_ops.errors import CredentialsError

    found = session.get_credentials()
    if found is None:
        raise CredentialsError(
            "There are no AWS credentials to work with.",
            cure="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in (aws sso "
            "login).",
        )
    frozen = found.get_frozen_credentials()
    return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")


class BlockWire:
    """Signed requests over one connection pool. Safe to use from several threads.

    Parameters
    ----------
    target
        Where to.
    keys
        Who; assign `keys` anew when they are refreshed.
    connections
        How many threads share it.
    """

    def __init__(self, target: Target, keys: Keys, *, connections: int) -> None:
        import urllib3

        self.target, self.keys = target, keys
        parts = urllib.parse.urlsplit(target.endpoint)
        self._host, self._path = parts.netloc, parts.path
        self._signing: tuple[str, Keys, bytes] | None = None
        limits = urllib3.Timeout(connect=target.connect_seconds, read=target.read_seconds)
        options: dict[str, Any] = {"maxsize": connections, "block": True, "timeout": limits, "retries": False}
        if parts.scheme == "https":
            options["cert_reqs"] = "CERT_REQUIRED" if target.verify else "CERT_NONE"
            options["ca_certs"] = target.verify if isinstance(target.verify, str) else _certificates()
        pools = (
            urllib3.ProxyManager(target.proxy, **options) if target.proxy else urllib3.PoolManager(**options)
        )
        self._pool = pools.connection_from_url(target.endpoint)

    def put(self, snapshot_id: str, index: int, block: bytes, digest: bytes) -> Answer:
        """Send one block.

        Parameters
        ----------
        snapshot_id
            A pending snapshot.
        index
            Of the block.
        block
            `BLOCK_BYTES` bytes.
        digest
            Their SHA-256, 32 bytes.

        Raises
        ------
        ConnectionFailed
            There was no answer.
        """
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-checksum": base64.b64encode(digest).decode(),
            "x-amz-checksum-algorithm": "SHA256",
            "x-amz-data-length": str(len(block)),
        }
        return self._send("PUT", f"/snapshots/{snapshot_id}/blocks/{index}", "", headers, block)

    def get(self, snapshot_id: str, index: int, token: str) -> Answer:
        """Fetch one block with the token that ``ListSnapshotBlocks`` gave for it.

        Raises
        ------
        ConnectionFailed
            There was no answer.
        """
        query = f"blockToken={urllib.parse.quote(token, safe='-_.~')}"
        return self._send("GET", f"/snapshots/{snapshot_id}/blocks/{index}", query, {}, None)

    def _send(
        self, method: str, path: str, query: str, headers: dict[str, str], body: bytes | None
    ) -> Answer:
        from urllib3.exceptions import HTTPError

        path = self._path + path
        signed = self._sign(method, path, query, headers)
        try:
            answer = self._pool.urlopen(
                method, f"{path}?{query}" if query else path, body=body, headers=signed, redirect=False
            )
        except (HTTPError, OSError) as error:
            raise ConnectionFailed(str(error)) from error
        if 200 <= answer.status < 300:
            return Answer(answer.status, body=answer.data, checksum=answer.headers.get("x-amz-Checksum", ""))
        return _refused(answer.status, answer.headers.get("x-amzn-ErrorType", ""), answer.data)

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, str]:
        """Return the headers with a Signature Version 4."""
        now, keys = datetime.now(UTC), self.keys
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        signed = {**headers, "host": self._host, "x-amz-content-sha256": UNSIGNED, "x-amz-date": stamp}
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        names = sorted(signed)
        listed = ";".join(names)
        canonical = "\n".join(
            [method, path, query, *(f"{name}:{signed[name]}" for name in names), "", listed, UNSIGNED]
        )
        scope = f"{stamp[:8]}/{self.target.region}/ebs/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(self._key(stamp[:8], keys), text.encode(), hashlib.sha256).hexdigest()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={listed}, "
            f"Signature={signature}"
        )
        return signed

    def _key(self, day: str, keys: Keys) -> bytes:
        """Return the signing key, which stays the same for a day."""
        if self._signing is None or self._signing[:2] != (day, keys):
            key = f"AWS4{keys.secret_key}".encode()
            for part in (day, self.target.region, "ebs", "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing = (day, keys, key)
        return self._signing[2]


def _refused(status: int, kind: str, body: bytes) -> Answer:
    """Read an error of the rest-json protocol; what is not JSON (a proxy's page) keeps its first words."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return Answer(status, kind.split(":")[0] or f"HTTP {status}", body[:200].decode(errors="replace"))
    code = (kind or str(said.get("__type", "")) or str(said.get("code", ""))).split(":")[0].rpartition("#")[2]
    reason = said.get("Reason")
    message = str(said.get("Message") or said.get("message") or "")
    return Answer(status, code or f"HTTP {status}", f"{message} ({reason})" if reason else message)


def _certificates() -> str:
    from botocore.httpsession import where

    return str(where())
