"""Block tokens and page tokens: short, signed, and good for a while only.

Source: "Read snapshots using the EBS direct APIs": block tokens are good for seven days, page tokens for 60
minutes. AWS does not tell how its tokens look; they must match ``^[A-Za-z0-9+/=]+$``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

BLOCK_LIFE, PAGE_LIFE = timedelta(days=7), timedelta(minutes=60)
_CONTENT = struct.Struct(">QI")
_SIGNATURE_BYTES = 16


class Signer:
    """Makes and checks the tokens of one purpose, such as reading one snapshot.

    Parameters
    ----------
    context
        The call; the key is kept with the sandbox's state.
    purpose
        What the tokens are good for; a token of another purpose is refused.
    life
        How long its tokens are good.
    expires
        When tokens made here end.
    """

    def __init__(
        self, context: Context, purpose: str, life: timedelta, expires: datetime | None = None
    ) -> None:
        table = context.tables.table("", "", "ebs_secret")
        key = table.setdefault("key", secrets.token_bytes(32))
        self._base = hashlib.blake2b(purpose.encode(), key=key, digest_size=_SIGNATURE_BYTES)
        self._clock, self._life = context.clock, life
        self._expires = int(expires.timestamp()) if expires is not None else 0

    def token(self, number: int) -> str:
        """Return the token of a block index or a page's start."""
        content = _CONTENT.pack(number, self._expires)
        return base64.b64encode(content + self._sign(content)).decode("ascii")

    def number(self, token: str) -> int | None:
        """Return what a token stands for; None when it is not one of these, or has expired."""
        try:
            raw = base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            return None
        content, signature = raw[: _CONTENT.size], raw[_CONTENT.size :]
        if len(content) < _CONTENT.size or not hmac.compare_digest(signature, self._sign(content)):
            return None
        number, expires = _CONTENT.unpack(content)
        end = datetime.fromtimestamp(expires, UTC)
        return None if self._clock.passed(end, since=end - self._life) else int(number)

    def _sign(self, content: bytes) -> bytes:
        signing = self._base.copy()
        signing.update(content)
        return signing.digest()
