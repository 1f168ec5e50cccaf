"""Compare versions as ``builtins.compareVersions`` of Nix does, and match packages with conditions.

Source: "builtins.compareVersions" and "nix-env --upgrade" in the Nix manual. A version is split into numbers
and other parts; dots and dashes separate parts. Numbers are compared as numbers. ``pre`` comes first, then
the end of the version, then other parts, then numbers: ``2.3pre1``, ``2.3``, ``2.3a``, ``2.3.1``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import TYPE_CHECKING

from vmsnix_ops.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PART = re.compile(r"[0-9]+|[^0-9.-]+")
_SIGN, _VERSION = r"(?:<=|>=|==|=|<|>)", r"[A-Za-z0-9][\w.+~-]*"
_BOUND = re.compile(rf"({_SIGN})\s*({_VERSION})")
_CONDITION = re.compile(
    rf"(?P<name>[A-Za-z0-9][\w.+-]*?)\s*(?P<bounds>{_SIGN}\s*{_VERSION}(?:[\s,]*{_SIGN}\s*{_VERSION})*)?"
)
_SIGNS = {"<": (-1,), "<=": (-1, 0), "=": (0,), "==": (0,), ">=": (0, 1), ">": (1,)}


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1 if the first version is older, equal or newer.

    >>> compare("1.0", "2.3"), compare("2.3", "2.3"), compare("2.3.1", "2.3")
    (-1, 0, 1)
    >>> compare("2.3pre1", "2.3"), compare("2.3a", "2.3.1"), compare("3.0.9", "3.0.15")
    (-1, -1, -1)
    """
    for left, right in zip_longest(_PART.findall(one), _PART.findall(other), fillvalue=""):
        if _before(left, right):
            return -1
        if _before(right, left):
            return 1
    return 0


def _before(one: str, other: str) -> bool:
    numbers = one.isdecimal(), other.isdecimal()
    if all(numbers):
        return int(one) < int(other)
    if one == "pre" or other == "pre":
        return other != "pre"
    if one == "" and numbers[1]:
        return True
    if any(numbers):
        return numbers[1]
    return one < other


@dataclass(frozen=True, slots=True)
class PackageCondition:
    """A package name with optional bounds of its version."""

    name: str  # name of the package without its version
    # Pairs of a sign and a version, which must all be true; empty for any version.
    bounds: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + ",".join(f"{sign}{version}" for sign, version in self.bounds)

    def matches(self, version: str) -> bool:
        """Return whether a version satisfies all bounds; an empty version satisfies none."""
        return all(version and compare(version, bound) in _SIGNS[sign] for sign, bound in self.bounds)


def parse_condition(text: str) -> PackageCondition:
    """Parse a condition such as ``openssl<3.0.15`` or ``openssl>=3,<3.0.15``.

    A condition that no version can satisfy is refused: an empty result would mean that no image has it.

    >>> parse_condition("openssl < 3.0.15").matches("3.0.9")
    True
    >>> parse_condition("openssl>=3,<3.0.15").matches("1.1.1w")
    False
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ParameterError(
            f"{text!r} is not a valid package condition.",
            why="A condition is a package name with optional bounds (<, <=, =, >=, >): openssl, "
            "openssl<3.0.15, xz=5.6.0, openssl>=3,<3.0.15.",
            fix="Use one of these forms; put it in quotes in a shell.",
        )
    bounds = tuple(_BOUND.findall(match["bounds"] or ""))
    for (above, low), (below, high) in product(bounds, bounds):
        if -1 not in _SIGNS[above] and 1 not in _SIGNS[below]:
            order = compare(low, high)
            if order > 0 or (order == 0 and not (0 in _SIGNS[above] and 0 in _SIGNS[below])):
                raise ParameterError(
                    f"No version of {match['name']} can be both {above}{low} and {below}{high}.",
                    fix="Swap the bounds, or use two separate conditions.",
                )
    return PackageCondition(match["name"], bounds)


def parse_conditions(texts: Iterable[str]) -> tuple[PackageCondition, ...]:
    """Parse several conditions; a text that begins with a bound belongs to the condition before it.

    So ``openssl>=3,<3.0.15`` may also be split at its comma.

    >>> [str(one) for one in parse_conditions(["openssl>=3", "<3.0.15", "xz=5.6.0"])]
    ['openssl>=3,<3.0.15', 'xz=5.6.0']
    """
    conditions: list[str] = []
    for text in texts:
        if conditions and _BOUND.match(text.strip()):
            conditions[-1] += f",{text.strip()}"
        else:
            conditions.append(text)
    return tuple(parse_condition(text) for text in conditions)
