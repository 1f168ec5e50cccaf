"""The lean way to put and get one block of a snapshot.

botocore spends most of its time between the caller and the socket. This module sends the same bytes with the
same Signature Version 4 over bare connections (`vmsnix_ops.aws.ebs_direct.connection`), and nothing in
between. Everything that decides where the request goes and who sends it is still botocore's: `target` reads
endpoint (FIPS, dual stack, ``AWS_ENDPOINT_URL``), proxies and certificates from the session.

Only ``PutSnapshotBlock`` and ``GetSnapshotBlock`` go this way; everything else is a plain client call.

Source: EBS direct APIs reference, "PutSnapshotBlock"; IAM user guide, "Create a signed AWS API request".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import urllib.parse
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops.aws.ebs_direct.connection import CertificateRefused, Connection, ConnectionFailed, Reply, Way

if TYPE_CHECKING:
    import boto3

__all__ = ["BLOCK_BYTES", "Answer", "BlockWire", "ConnectionFailed", "Keys", "Target", "keys", "target"]

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
    certificates
        Path of the bundle of certificates that are trusted.
    read_seconds
        How long a request may hang before it is given up and sent again.
    """

    endpoint: str
    region: str
    proxy: str = ""
    certificates: str = ""
    read_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `code`, `message` and `reason` (of throttling) of an error, or the bytes."""

    status: int
    code: str = ""
    message: str = ""
    reason: str = ""
    body: bytes | bytearray = b""
    checksum: str = ""

    @property
    def ok(self) -> bool:
        """Whether the block arrived."""
        return 200 <= self.status < 300


def target(session: boto3.Session, region: str, *, read_seconds: float = 20.0) -> Target:
    """Return where the session's configuration sends calls to the EBS direct APIs.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The proxy is one that is spoken to over TLS.
    """
    from botocore.httpsession import where
    from botocore.utils import get_environ_proxies

    from vmsnix_ops import errors

    client = session.client("ebs", region_name=region)
    endpoint = client.meta.endpoint_url.rstrip("/")
    configured = client.meta.config.proxies or get_environ_proxies(endpoint)
    proxy = (configured or {}).get(urllib.parse.urlsplit(endpoint).scheme, "")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    if urllib.parse.urlsplit(proxy).scheme == "https":
        raise errors.ParameterError(
            "The proxy for the EBS direct APIs cannot be used.",
            why="It is to be spoken to over TLS itself (https://), which this client does not do.",
            cure="Name it with http:// in HTTPS_PROXY (what it passes on is encrypted all the same), or "
            "publish via import.",
        )
    core = session._session  # boto3 itself offers no way to the certificate bundle
    bundle = core.get_config_variable("ca_bundle")
    return Target(endpoint, region, proxy, str(bundle or where()), read_seconds)


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
    """Signed requests over as many connections as there are threads that use it at once.

    Parameters
    ----------
    target
        Where to.
    keys
        Who; assign `keys` anew when they are refreshed.
    """

    def __init__(self, target: Target, keys: Keys) -> None:
        self.target, self.keys = target, keys
        parts = urllib.parse.urlsplit(target.endpoint)
        self._host, self._path = parts.netloc, parts.path
        self._signing: tuple[str, Keys, bytes] | None = None
        context = ssl.create_default_context(cafile=target.certificates) if parts.scheme == "https" else None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._way = Way(parts.scheme, parts.hostname or "", port, target.proxy, context)
        # A proxy that can read what it passes on wants the whole address in the request line.
        self._before = target.endpoint.removesuffix(self._path) if target.proxy and context is None else ""
        self._extra = self._way.proxy_headers if self._before else {}
        self._free: deque[Connection] = deque()  # append and pop are atomic

    def put(
        self, snapshot_id: str, index: int, block: bytes | bytearray, digest: bytes, *, patience: int = 1
    ) -> Answer:
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
        patience
            How many times the target's `Target.read_seconds` to wait.

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
        return self._send("PUT", f"/snapshots/{snapshot_id}/blocks/{index}", "", headers, block, patience)

    def get(self, snapshot_id: str, index: int, token: str, *, patience: int = 1) -> Answer:
        """Fetch one block with the token that ``ListSnapshotBlocks`` gave for it.

        Raises
        ------
        ConnectionFailed
            There was no answer.
        """
        query = f"blockToken={urllib.parse.quote(token, safe='-_.~')}"
        return self._send("GET", f"/snapshots/{snapshot_id}/blocks/{index}", query, {}, None, patience)

    def close(self) -> None:
        """Close the connections that nobody uses at the moment."""
        while self._free:
            self._free.pop().close()

    def _send(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        body: bytes | bytearray | None,
        patience: int,
    ) -> Answer:
        path = self._path + path
        signed = self._sign(method, path, query, headers) | self._extra
        if body is not None:
            signed["content-length"] = str(len(body))
        line = f"{method} {self._before}{path}{'?' + query if query else ''} HTTP/1.1\r\n"
        head = line + "".join(f"{name}: {value}\r\n" for name, value in signed.items()) + "\r\n"
        try:
            reply = self._exchange(head.encode("ascii"), body, self.target.read_seconds * patience)
        except CertificateRefused as error:
            return Answer(0, "CertificateRefused", str(error))
        if 200 <= reply.status < 300:
            return Answer(reply.status, body=reply.body, checksum=reply.headers.get("x-amz-checksum", ""))
        return _refused(reply)

    def _exchange(self, head: bytes, body: bytes | bytearray | None, seconds: float) -> Reply:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = Connection(self._way)
        try:
            reply = connection.exchange(head, body, seconds=seconds)
        except ConnectionFailed as error:
            if not connection.used or isinstance(error.__cause__, TimeoutError):
                raise
            # The server may close a connection that was idle; that is no failure, and a block may be sent
            # twice.
            connection = Connection(self._way)
            reply = connection.exchange(head, body, seconds=seconds)
        if connection.open:
            self._free.append(connection)
        return reply

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


def _refused(reply: Reply) -> Answer:
    """Read an error of the rest-json protocol; what is not JSON (a proxy's page) keeps its first words."""
    kind = reply.headers.get("x-amzn-errortype", "")
    try:
        said = json.loads(reply.body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        text = reply.body[:200].decode(errors="replace")
        return Answer(reply.status, kind.split(":")[0] or f"HTTP {reply.status}", text)
    code = (kind or str(said.get("__type", "")) or str(said.get("code", ""))).split(":")[0].rpartition("#")[2]
    message = str(said.get("Message") or said.get("message") or "")
    return Answer(reply.status, code or f"HTTP {reply.status}", message, str(said.get("Reason") or ""))
