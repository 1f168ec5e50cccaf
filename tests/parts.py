"""The parts of the tests: the README's command runs the quick ones, CI more, ``just nightly`` all.

A test with the marker ``long`` belongs to ``long``, another one in the folder ``browser`` or ``foreign`` to
that part, any other to ``quick``. A parametrized test with the marker ``variants`` is quick with its first
sets of values and long with the others. ``--parts`` chooses parts; a folder or test that the command line
names runs too.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
QUICK = (
    "audit",
    "aws",
    "boot",
    "channels",
    "cli",
    "disk",
    "docs",
    "faults",
    "nix",
    "notebooks",
    "privileges",
    "publish",
    "records",
    "runbooks",
    "sandbox",
    "security",
    "workflows",
)
SLOW = ("notebooks", "faults", "publish", "channels", "audit", "cli", "runbooks", "records")
"""Folders whose tests take longest. They begin first, so that no process works alone at the end."""
SEPARATE = ("browser", "foreign")
PARTS = ("quick", *SEPARATE, "long")
LONG_SECONDS = 60  # duration of a long test whose marker has none
VARIANT_SECONDS = 3  # and of a further set of values


def add_options(parser: pytest.Parser) -> None:
    """Add the options that choose parts."""
    parser.addoption(
        "--parts",
        default="quick",
        metavar="PART,PART",
        help=f"parts to run: {', '.join(PARTS)}, or all (default: quick)",
    )
    parser.addoption(
        "--no-forks",
        action="store_true",
        help="start programs of this package and kernels as users do, not as forks (slower)",
    )
    parser.addoption(
        "--long-sample",
        metavar="SEED/SECONDS",
        help="run a random sample of the long tests that takes about SECONDS",
    )


def chosen_parts(config: pytest.Config) -> set[str]:
    """Return the parts that the command line chooses.

    Raises
    ------
    pytest.UsageError
        A part does not exist.
    """
    words = set(config.getoption("--parts").split(","))
    if words == {"all"}:
        return set(PARTS)
    if unknown := words - set(PARTS):
        raise pytest.UsageError(
            f"--parts: no part {', '.join(sorted(unknown))}: use all, or {', '.join(PARTS)}"
        )
    return words


@cache
def folder_of(path: Path) -> str:
    """Return the folder in ``tests`` that contains a file, or empty text for a file beside the folders."""
    inside = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return inside[0] if len(inside) > 1 else ""


def mark_variants(items: Sequence[pytest.Item]) -> None:
    """Mark tests with ``variants`` as long, except with their first sets of values."""
    seen: Counter[str] = Counter()
    for item in items:
        if marker := item.get_closest_marker("variants"):
            name = item.nodeid.partition("[")[0]
            seen[name] += 1
            if seen[name] > marker.kwargs.get("quick", 1):
                item.add_marker(pytest.mark.long(seconds=marker.kwargs.get("seconds", VARIANT_SECONDS)))


def part_of(item: pytest.Item) -> str:
    """Return the part that a test belongs to."""
    if item.get_closest_marker("long"):
        return "long"
    folder = folder_of(item.path)
    return folder if folder in SEPARATE else "quick"


def seconds_of(item: pytest.Item) -> float:
    """Return the duration of a long test by its longest marker, or 0 for other tests."""
    markers = item.iter_markers("long")
    return max((float(marker.kwargs.get("seconds", LONG_SECONDS)) for marker in markers), default=0.0)


def sample(items: Sequence[pytest.Item], wanted: str) -> list[pytest.Item]:
    """Return a random sample of long tests for ``SEED/SECONDS``; a seed always gives the same sample.

    Tests with ``long(always=True)`` are in every sample.
    """
    seed, _, seconds = wanted.partition("/")
    shuffled = sorted(items, key=lambda item: item.nodeid)
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda item: not any(mark.kwargs.get("always") for mark in item.iter_markers("long")))
    left, taken = float(seconds), []
    for item in shuffled:
        if seconds_of(item) <= left:
            left -= seconds_of(item)
            taken.append(item)
    return taken


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the chosen parts, and give long ones a longer timeout."""
    parts = chosen_parts(config)
    named = [word for word in config.args if "::" in word]
    parts |= {
        name for name in SEPARATE if any(name in Path(word.split("::")[0]).parts for word in config.args)
    }
    if named:
        parts.add("long")
    mark_variants(items)
    keep = [item for item in items if part_of(item) in parts]
    if "long" in parts and (wanted := config.getoption("--long-sample")):
        long = [item for item in keep if part_of(item) == "long"]
        taken = set(sample(long, wanted))
        keep = [item for item in keep if part_of(item) != "long" or item in taken]
    for item in keep:
        if seconds_of(item):
            item.add_marker(pytest.mark.timeout(max(300.0, 10 * seconds_of(item))))
    kept = set(keep)
    keep.sort(key=lambda item: SLOW.index(folder) if (folder := folder_of(item.path)) in SLOW else len(SLOW))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = keep
