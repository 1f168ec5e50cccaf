"""Versions in Nix's own order, so that "older than 3.0.15" means what ``builtins.compareVersions`` says.

Source: "builtins.compareVersions" and "nix-env --upgrade" in the Nix manual: a version is cut into runs of
digits and runs of other characters, dots and dashes separate them, numbers compare as numbers, ``pre`` comes
before everything, the end of a version before a number and after ``pre``, and ``2.3a`` before ``2.3.1``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from vmsnix_ops.errors import ParameterError

_PART = re.compile(r"[0-9]+|[^0-9.-]+")
_WANTED = re.compile(r"(?P<name>[A-Za-z0-9][\w.+-]*?)\s*(?:(?P<sign><=|>=|==|=|<|>)\s*(?P<version>\S+))?")
_SIGNS = {
    "<": (-1,),
    "<=": (-1, 0),
    "=": (0,),
    "==": (0,),
    ">=": (0, 1),
    ">": (1,),
}


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1 as the first version is older, the same or newer.

    Examples
    --------
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
class Wanted:
    """A package, perhaps with a bound on its version.

    Attributes
    ----------
    name
        Name of the package, without its version.
    sign
        ``<``, ``<=``, ``=``, ``>=`` or ``>``; empty for any version.
    version
        The bound.
    """

    name: str
    sign: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.version}"

    def matches(self, version: str) -> bool:
        """Tell whether a version of the package is meant. One without a version matches no bound."""
        if not self.sign:
            return True
        return bool(version) and compare(version, self.version) in _SIGNS[self.sign]


def wanted(text: str) -> Wanted:
    """Return what a text such as ``openssl<3.0.15`` asks for.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        It is no such text.

    Examples
    --------
    >>> wanted("openssl < 3.0.15").matches("3.0.9")
    True
    """
    match = _WANTED.fullmatch(text.strip())
    if match is None:
        raise ParameterError(
            f"{text!r} names no package.",
            why="A package is asked for by name, perhaps with a bound: openssl, openssl<3.0.15, xz=5.6.0.",
            cure="Write it like one of these; quote it in a shell.",
        )
    return Wanted(match["name"], match["sign"] or "", match["version"] or "")
