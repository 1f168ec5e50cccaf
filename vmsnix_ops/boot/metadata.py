"""The instance metadata service of a boot test: EC2's answers on 169.254.169.254.

QEMU runs this file as a program for each connection of the guest, with the connection as standard input and
output. No port is open, so no other program can connect. It imports only small modules of the standard
library, so that an answer takes some hundredths of a second.

As on an AMI with ``ImdsSupport=v2.0``, a request without a session token is refused.

Source: Amazon EC2 user guide, "Access instance metadata for an EC2 instance" and "Instance metadata
categories".
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
import time
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESS = "169.254.169.254"
VERSIONS = ("1.0", "2021-07-15", "latest")
LONGEST_LINE = 8192
LONGEST_SESSION = 21_600  # seconds; EC2's limit
NOT_FOUND = b"404 - Not Found"

_VERSION = re.compile(r"latest|1\.0|\d{4}-\d\d-\d\d")


class MetadataRequest(NamedTuple):
    """A request; the names of its headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class MetadataResponse(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


def answer(request: MetadataRequest, pages: Mapping[str, str], secret: bytes, now: float) -> MetadataResponse:
    """Return EC2's answer to a request of the guest at `now`, in seconds since the epoch.

    `pages` are texts by path below the version, such as ``"meta-data/instance-id"``; folders are derived from
    the paths. `secret` is the key for session tokens, so that connections need no common state.
    """
    path = request.path.partition("?")[0].strip("/")
    if request.method == "PUT":
        return _token(path, request.headers, secret, now)
    if request.method not in ("GET", "HEAD"):
        return MetadataResponse(405, b"")
    if not _valid(request.headers.get("x-aws-ec2-metadata-token", ""), secret, now):
        return MetadataResponse(401, b"401 - Unauthorized")
    if not path:
        return MetadataResponse(200, "\n".join(VERSIONS).encode())
    version, _, rest = path.partition("/")
    if not _VERSION.fullmatch(version):
        return MetadataResponse(404, NOT_FOUND)
    if rest in pages:
        return MetadataResponse(200, pages[rest].encode())
    names = _listing(rest, pages)
    return MetadataResponse(200, "\n".join(names).encode()) if names else MetadataResponse(404, NOT_FOUND)


def _token(path: str, headers: Mapping[str, str], secret: bytes, now: float) -> MetadataResponse:
    if path != "latest/api/token":
        return MetadataResponse(405, b"")
    if "x-forwarded-for" in headers:  # EC2 refuses requests that a proxy forwards
        return MetadataResponse(403, b"")
    wanted = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
    if not wanted.isdecimal() or not 1 <= int(wanted) <= LONGEST_SESSION:
        return MetadataResponse(400, b"")
    token = _signed(int(now) + int(wanted), secret)
    return MetadataResponse(200, token.encode(), {"x-aws-ec2-metadata-token-ttl-seconds": wanted})


def _signed(until: int, secret: bytes) -> str:
    return f"{until}-{hmac.new(secret, str(until).encode(), hashlib.sha256).hexdigest()}"


def _valid(token: str, secret: bytes, now: float) -> bool:
    until = token.partition("-")[0]
    if not until.isdecimal() or not token.isascii():
        return False
    return hmac.compare_digest(token, _signed(int(until), secret)) and now < int(until)


def _listing(folder: str, pages: Mapping[str, str]) -> list[str]:
    """Return the names in a folder; names of folders end with a slash, as in EC2."""
    before = f"{folder}/" if folder else ""
    names = {path[len(before) :].partition("/")[:2] for path in pages if path.startswith(before)}
    found = sorted("".join(pair) for pair in names)
    if folder == "meta-data/public-keys":  # EC2 lists these names with a label
        return [f"{name.rstrip('/')}=vmsnix" for name in found]
    return found


def serve(
    incoming: IO[bytes], outgoing: IO[bytes], pages: Mapping[str, str], secret: bytes, log: str
) -> None:
    """Answer the requests of a connection until the guest closes it, and write each to the log."""
    while (request := _read(incoming)) is not None:
        reply = answer(request, pages, secret, time.time())
        head = [
            f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
            "Content-Type: text/plain",
            "Server: EC2ws",
        ]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        head += [f"Content-Length: {len(reply.body)}", "", ""]
        with open(log, "a", encoding="utf-8") as lines:  # noqa: PTH123 - pathlib costs a tenth of the start
            lines.write(json.dumps([request.method, request.path, reply.status]) + "\n")
        outgoing.write("\r\n".join(head).encode() + (b"" if request.method == "HEAD" else reply.body))
        outgoing.flush()
        if request.headers.get("connection", "").lower() == "close":
            return


def _read(incoming: IO[bytes]) -> MetadataRequest | None:
    """Return the next request, or ``None`` at the end or if it is not HTTP."""
    words = incoming.readline(LONGEST_LINE).decode("latin-1").split()
    if len(words) < 2:
        return None
    headers: dict[str, str] = {}
    while line := incoming.readline(LONGEST_LINE).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
        if len(headers) > 100:
            return None
    length = headers.get("content-length", "0")
    if length.isdecimal():
        incoming.read(min(int(length), LONGEST_LINE))
    return MetadataRequest(words[0], words[1], headers)


def main() -> None:
    """Serve standard input and output with the pages in the file on the command line."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        given = json.load(file)
    with os.fdopen(0, "rb") as incoming, os.fdopen(1, "wb") as outgoing:
        serve(incoming, outgoing, given["pages"], bytes.fromhex(given["secret"]), given["log"])


if __name__ == "__main__":
    main()
