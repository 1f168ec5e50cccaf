"""The checksums of AWS clients: MD5, SHA-1, SHA-256, SHA-512 and three CRCs.

zlib computes CRC-32. ``awscrt``, if it is installed, computes CRC-32C and CRC-64/NVME; otherwise Python does,
at about 100 MB/s (`_folding_crc`). Without ``awscrt``, botocore sends CRC-32 by default.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Hash(Protocol):
    """The interface of all algorithms."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far."""


# Width in bits and reflected polynomial; https://reveng.sourceforge.io/crc-catalogue lists them.
CRC_POLYNOMIALS = {
    "crc32": (32, 0xEDB88320),
    "crc32c": (32, 0x82F63B78),
    "crc64nvme": (64, 0x9A6C9329AC4BC9B5),
}
ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256", "sha512", "md5")


def _table_crc(algorithm: str) -> Callable[[bytes | memoryview, int], int]:
    width, polynomial = CRC_POLYNOMIALS[algorithm]
    table, mask = list(range(256)), (1 << width) - 1
    for _ in range(8):
        table = [value >> 1 ^ (polynomial if value & 1 else 0) for value in table]

    def crc(data: bytes | memoryview, previous: int) -> int:
        value = previous ^ mask
        for byte in data:
            value = table[(value ^ byte) & 0xFF] ^ value >> 8
        return value ^ mask

    return crc


# For these degrees a, x^a modulo the polynomial has few terms. Each is about half of the next one.
FOLD_DEGREES = {
    "crc32c": (615, 1182, 2313, 4370, 8633, 17100, 33997, 67286, 134376, 266986, 529091, 1048800),
    "crc64nvme": (693, 1290, 2498, 4751, 9396, 18608, 36670, 72688, 142613, 280113, 528453, 1054538),
}


def _folding_crc(algorithm: str) -> Callable[[bytes | memoryview, int], int]:
    """Return a CRC that first replaces long data by shorter data with the same CRC.

    Data are a polynomial M = H x^a + L. It has the same remainder as H r + L, where r = x^a modulo the CRC's
    polynomial. H r is a sum of shifted copies of H, and Python shifts and adds long integers quickly. The
    integers are reflected, as the CRCs are: the first bit has the highest degree.
    """
    width, polynomial = CRC_POLYNOMIALS[algorithm]
    table_crc, mask = _table_crc(algorithm), (1 << width) - 1
    folds = []
    for degree in FOLD_DEGREES[algorithm]:
        remainder = _power_of_x(degree, width, polynomial)
        folds.append((degree, [term for term in range(width) if remainder >> (width - 1 - term) & 1]))

    def crc(data: bytes | memoryview, previous: int) -> int:
        bits = 8 * len(data)
        if bits < 2 * FOLD_DEGREES[algorithm][0]:
            return table_crc(data, previous)
        value = int.from_bytes(data, "little") ^ previous ^ mask
        while True:
            fold = next((one for one in folds if bits + width <= 2 * one[0] < 2 * bits), None)
            if fold is None:
                break
            degree, terms = fold
            high = value & ((1 << (bits - degree)) - 1)
            value >>= bits - degree
            for term in terms:
                value ^= high << (2 * degree - bits - term)
            bits = degree
        padding = -bits % 8  # zeros of higher degrees change nothing: the initial value is in the data
        return table_crc((value << padding).to_bytes((bits + padding) // 8, "little"), mask)

    return crc


@lru_cache
def _crc_function(algorithm: str) -> Callable[[bytes | memoryview, int], int]:
    if algorithm == "crc32":
        return zlib.crc32
    try:
        from awscrt import checksums  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return _folding_crc(algorithm)
    function = getattr(checksums, algorithm)
    return lambda data, previous: function(bytes(data), previous)


class Crc:
    """A CRC with the interface of `hashlib`'s objects."""

    def __init__(self, algorithm: str) -> None:
        self._width = CRC_POLYNOMIALS[algorithm][0]
        self._function = _crc_function(algorithm)
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        """Return the CRC, big-endian."""
        return self._value.to_bytes(self._width // 8, "big")


def new_checksum(algorithm: str) -> Hash:
    """Return a new checksum; `algorithm` is one of `ALGORITHMS`."""
    if algorithm in CRC_POLYNOMIALS:
        return Crc(algorithm)
    return hashlib.new(algorithm, usedforsecurity=False)


class Checksums:
    """Several checksums of the same bytes."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._hashes = {name: new_checksum(name) for name in algorithms}

    def __contains__(self, algorithm: str) -> bool:
        return algorithm in self._hashes

    def update(self, data: memoryview) -> None:
        """Add bytes."""
        for one in self._hashes.values():
            one.update(data)

    def digest(self, algorithm: str) -> bytes:
        """Return one checksum as bytes."""
        return self._hashes[algorithm].digest()

    def hex(self, algorithm: str) -> str:
        """Return one checksum in hexadecimal."""
        return self.digest(algorithm).hex()

    def base64(self, algorithm: str) -> str:
        """Return one checksum in base64, as in AWS's headers."""
        return encode_base64(self.digest(algorithm))


def encode_base64(digest: bytes) -> str:
    """Return bytes in base64 text."""
    return base64.b64encode(digest).decode("ascii")


def decode_base64(text: str, length: int) -> bytes | None:
    """Return the bytes of a base64 checksum; None when it is not base64 of `length` bytes."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest if len(digest) == length else None


def digest_size(algorithm: str) -> int:
    """Return the size of a checksum in bytes."""
    return len(new_checksum(algorithm).digest())


def _multiply(left: int, right: int, width: int, polynomial: int) -> int:
    """Multiply two polynomials over GF(2) modulo a reflected polynomial."""
    product = 0
    while right:
        if right & 1 << (width - 1):
            product ^= left
        right = right << 1 & (1 << width) - 1
        left = left >> 1 ^ (polynomial if left & 1 else 0)
    return product


def _power_of_x(exponent: int, width: int, polynomial: int) -> int:
    """Return a power of x modulo a reflected polynomial."""
    one = 1 << (width - 1)
    power, base = one, one >> 1
    while exponent:
        if exponent & 1:
            power = _multiply(power, base, width, polynomial)
        base = _multiply(base, base, width, polynomial)
        exponent >>= 1
    return power


def combine_crc(algorithm: str, first: bytes, second: bytes, second_length: int) -> bytes:
    """Return the CRC of two concatenated byte strings from their CRCs and the length of the second.

    With this, the ``FULL_OBJECT`` checksum of a multipart object does not need its bytes again.
    """
    width, polynomial = CRC_POLYNOMIALS[algorithm]
    factor = _power_of_x(second_length * 8, width, polynomial)
    joined = _multiply(int.from_bytes(first, "big"), factor, width, polynomial) ^ int.from_bytes(
        second, "big"
    )
    return joined.to_bytes(width // 8, "big")
