"""Which tests run when: the README's command runs the quick ones, CI more, ``just nightly`` all.

A test belongs to ``long`` when it has that marker, to ``browser`` or ``foreign`` when it is in that folder,
and else to ``quick``. ``--parts`` chooses parts; a folder or test that the command line names runs too.
"""

from __future__ import annotations

import random
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
SEPARATE = ("browser", "foreign")
PARTS = ("quick", *SEPARATE, "long")
LONG_SECONDS = 60  # what a long test takes unless its marker says otherwise


def add_options(parser: pytest.Parser) -> None:
    """Add the options that choose parts."""
    parser.addoption(
        "--parts",
        default="quick",
        metavar="PART,PART",
        help=f"parts to run: {', '.join(PARTS)}, or all (default: quick)",
    )
    parser.addoption(
        "--long-sample",
        metavar="SEED/SECONDS",
        help="of the long tests, run a random sample that takes about so many seconds of work",
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


def folder_of(path: Path) -> str:
    """Return the name of the folder in ``tests`` that contains a file, or nothing for a file beside them."""
    inside = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return inside[0] if len(inside) > 1 else ""


def part_of(item: pytest.Item) -> str:
    """Return the part that a test belongs to."""
    if (folder := folder_of(item.path)) in SEPARATE:
        return folder
    return "long" if item.get_closest_marker("long") else "quick"


def seconds_of(item: pytest.Item) -> float:
    """Return what a long test takes, as its marker says."""
    marker = item.get_closest_marker("long")
    return float(marker.kwargs.get("seconds", LONG_SECONDS)) if marker else 0.0


def sample(items: Sequence[pytest.Item], wanted: str) -> list[pytest.Item]:
    """Return a random sample of long tests, the same for the same seed: ``SEED/SECONDS``."""
    seed, _, seconds = wanted.partition("/")
    shuffled = sorted(items, key=lambda item: item.nodeid)
    random.Random(seed).shuffle(shuffled)
    left, taken = float(seconds), []
    for item in shuffled:
        if seconds_of(item) <= left:
            left -= seconds_of(item)
            taken.append(item)
    return taken


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the chosen parts, and give long ones more time."""
    parts = chosen_parts(config)
    named = [word for word in config.args if "::" in word]
    parts |= {
        name for name in SEPARATE if any(name in Path(word.split("::")[0]).parts for word in config.args)
    }
    if named:
        parts.add("long")
    keep = [item for item in items if part_of(item) in parts]
    if "long" in parts and (wanted := config.getoption("--long-sample")):
        long = [item for item in keep if part_of(item) == "long"]
        taken = set(sample(long, wanted))
        keep = [item for item in keep if part_of(item) != "long" or item in taken]
    for item in keep:
        if seconds_of(item):
            item.add_marker(pytest.mark.timeout(max(300.0, 10 * seconds_of(item))))
    kept = set(keep)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = keep
