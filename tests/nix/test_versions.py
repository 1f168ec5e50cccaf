"""Versions in Nix's order."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import require
from vmsnix_ops.errors import ParameterError
from vmsnix_ops.nix.versions import compare, parse_condition, parse_conditions

ORDERED = [
    ("1.0", "2.3"),
    ("2.1", "2.3"),
    ("2.3", "2.5"),
    ("2.3", "2.3.1"),
    ("2.3pre1", "2.3"),
    ("2.3pre3", "2.3pre12"),
    ("2.3a", "2.3c"),
    ("2.3pre1", "2.3c"),
    ("2.3pre1", "2.3q"),
    ("2.3a", "2.3.1"),
    ("3.0.9", "3.0.15"),
    ("1.1.1v", "1.1.1w"),
    ("1.1.1", "1.1.1w"),
    ("9.9p1", "9.9p2"),
    ("0-unstable-2024-09-01", "0-unstable-2025-01-01"),
    ("", "0"),
]
"""Pairs of an older and a newer version; the first ten come from Nix's documentation."""

VERSIONS = st.text(alphabet="0123456789.-pre abcz+_", max_size=12)


@pytest.mark.parametrize(("older", "newer"), ORDERED)
def test_older_comes_before_newer(older: str, newer: str) -> None:
    assert (compare(older, newer), compare(newer, older), compare(newer, newer)) == (-1, 1, 0)


@given(VERSIONS, VERSIONS)
def test_the_order_is_antisymmetric(one: str, other: str) -> None:
    assert compare(one, other) == -compare(other, one)


def test_the_order_is_that_of_nix() -> None:
    nix = require("nix-instantiate")
    words = sorted({word for pair in ORDERED for word in pair} | {"1.0-rc1", "1..2", "a", "pre", "1.0.0"})
    pairs = [(one, other) for one in words for other in words]
    calls = " ".join(f'(builtins.compareVersions "{one}" "{other}")' for one, other in pairs)
    answer = subprocess.run(
        [nix, "--eval", "--strict", "--expr", f"[ {calls} ]"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    theirs = [int(word) for word in answer.stdout.strip("[] \n").split()]
    assert [compare(one, other) for one, other in pairs] == theirs


@pytest.mark.parametrize(
    ("text", "version", "meant"),
    [
        ("openssl", "", True),
        ("openssl<3.0.15", "3.0.14", True),
        ("openssl<3.0.15", "3.0.15", False),
        ("openssl <= 3.0.15", "3.0.15", True),
        ("xz=5.6.0", "5.6.0", True),
        ("xz==5.6.0", "5.6.1", False),
        ("gtk+3>3.24", "3.24.1", True),
        ("python3.12-requests>=2", "2.32.3", True),
        ("openssl<3.0.15", "", False),
        ("openssl>=3,<4", "3.0.9", True),
        ("openssl>=3,<4", "4.0", False),
        ("openssl >= 3 < 4", "1.1.1w", False),
        ("glibc>=2.40-66", "2.40-70", True),
    ],
)
def test_a_condition_has_a_name_and_bounds(text: str, version: str, meant: bool) -> None:
    assert parse_condition(text).matches(version) is meant


UNREADABLE = ["", "<3", "openssl<", "openssl < 3 4", "open ssl", "openssl<<3", "openssl<3,", "openssl=<3"]


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_invalid_condition_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="is not a valid package condition"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["openssl>=4,<3", "openssl>3,<3", "xz=5.6.0,=5.6.1", "xz<=5,>5"])
def test_a_condition_that_no_version_satisfies_is_refused(text: str) -> None:
    """It would never match, which would look like good news."""
    with pytest.raises(ParameterError, match="can be both"):
        parse_condition(text)


def test_a_bound_after_a_comma_belongs_to_the_condition_before_it() -> None:
    openssl, xz = parse_conditions(["openssl>=3", " <3.0.15", "xz"])
    assert (str(openssl), str(xz)) == ("openssl>=3,<3.0.15", "xz")
    assert [version for version in ("1.1.1w", "3.0.9", "3.0.15") if openssl.matches(version)] == ["3.0.9"]
    with pytest.raises(ParameterError, match="is not a valid package condition"):
        parse_conditions(["<3", "openssl"])
