"""Reading recorded logs of ``nix build --log-format internal-json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.nix.build import BuildLog, BuildStatus, derivation_name
from vmsnix_ops.nix.command import find_cause

DATA = Path(__file__).parent / "data"
STORE = "/nix/store/00000000000000000000000000000000-"
# Recorded with the fixture's flake: Debian's nix-bin of bookworm, trixie and sid (November 2026).
VERSIONS = pytest.mark.parametrize("version", ["2.8.0", "2.26.3", "2.34.8"])


def fed(*lines: str) -> BuildLog:
    log = BuildLog()
    for line in lines:
        log.feed(line)
    return log


def entry(action: str, activity: int = 1, **values: Any) -> str:
    return "@nix " + json.dumps({"action": action, "id": activity, **values})


@VERSIONS
def test_counts_derivations_and_names_the_phase(version: str) -> None:
    log, seen = BuildLog(), []
    for line in (DATA / f"build-works-{version}.log").read_text().splitlines():
        log.feed(line)
        standing = log.status()
        if not seen or standing != seen[-1]:
            seen.append(standing)
    assert [standing.built for standing in seen] == sorted(standing.built for standing in seen)
    count = seen[-1].expected
    assert {standing.expected for standing in seen[-2 * count :]} == {count}
    assert any(standing.building == "nixos-system-actions-runner-26.05.fixture" for standing in seen)
    phases = [standing.phase for standing in seen if standing.building.startswith("actions-runner")]
    assert phases[0] == ""
    assert next(phase for phase in phases if phase) == "buildPhase"
    assert phases[-1] == "installPhase"
    assert seen[-1] == BuildStatus(built=count, expected=count)
    assert count == {"2.34.8": 5}.get(version, 2)
    assert not log.errors


@VERSIONS
def test_names_the_derivation_that_failed_and_keeps_its_last_20_lines(version: str) -> None:
    log = fed(*(DATA / f"build-fails-{version}.log").read_text().splitlines())
    assert derivation_name(log.failed_derivation()) == "talks-and-fails-1.0"
    assert log.last_lines(log.failed_derivation()) == (
        *(f"line {number}" for number in range(22, 41)),
        "in red",
    )


@VERSIONS
def test_a_build_for_another_system_names_no_derivation_as_failed(version: str) -> None:
    log = fed(*(DATA / f"build-mismatch-{version}.log").read_text().splitlines())
    assert log.failed_derivation() == ""
    assert find_cause("\n".join(log.errors))[0] == "This machine cannot build for that system."


def test_messages_of_newer_versions_are_understood() -> None:
    log = fed(
        entry(
            "msg",
            level=0,
            msg=f"\x1b[31;1merror:\x1b[0m Cannot build '\x1b[35;1m{STORE}x.drv\x1b[0m'.\n  Reason: ...",
        ),
        entry("msg", level=0, msg=f"error: Cannot build '{STORE}above.drv'.\n  Reason: 1 dependency failed."),
    )
    assert log.failed_derivation() == f"{STORE}x.drv"
    assert log.last_lines(log.failed_derivation()) == ()


def test_never_shows_more_built_than_expected() -> None:
    log = fed(entry("start", type=104), entry("result", type=105, fields=[7, 5, 0, 0]))
    assert (log.status().built, log.status().expected) == (5, 5)


def test_fetched_bytes_are_added_up() -> None:
    log = fed(
        entry("start", 1, type=102),
        entry("result", 1, type=106, fields=[101, 5000]),
        entry("start", 2, type=101),
        entry("start", 3, type=101),
        entry("result", 2, type=105, fields=[600, 1000, 0, 0]),
        entry("result", 3, type=105, fields=[100, 2000, 0, 0]),
    )
    assert (log.status().fetched_bytes, log.status().fetch_bytes) == (700, 5000)
    log.feed(entry("result", 2, type=105, fields=[1000, 1000, 0, 0]))
    log.feed(entry("stop", 2))
    assert (log.status().fetched_bytes, log.status().fetch_bytes) == (1100, 5000)


def test_fetched_bytes_are_counted_without_an_announcement() -> None:
    log = fed(entry("start", 2, type=101), entry("result", 2, type=105, fields=[600, 1000, 0, 0]))
    assert (log.status().fetched_bytes, log.status().fetch_bytes) == (600, 1000)


def test_progress_of_other_activities_is_not_the_builds() -> None:
    log = fed(
        entry("start", 1, type=104), entry("start", 2, type=102), entry("result", 2, type=105, fields=[9, 9])
    )
    assert log.status() == BuildStatus()


def test_counts_the_paths_that_came_from_a_cache() -> None:
    log = fed(
        entry("start", 1, type=104),
        entry("start", 2, type=103),
        entry("result", 2, type=105, fields=[3, 9, 0, 0]),
        entry("result", 2, type=105, fields=[7, 9, 0, 0]),
    )
    assert log.status() == BuildStatus(fetched=7)


def test_messages_come_without_colours() -> None:
    log = fed(entry("msg", level=3, msg="\x1b[31mred\x1b[0m"), "warning: \x1b[1mplain\x1b[0m", "error: no")
    assert list(log.messages) == ["red", "warning: plain", "error: no"]
    assert list(log.errors) == ["error: no"]


def test_a_long_build_does_not_grow_without_end() -> None:
    log = fed(*(entry("msg", level=3, msg=str(number)) for number in range(1000)))
    assert len(log.messages) == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["start", "stop", "result", "msg"]) | json_values,
        "id": st.integers(0, 3) | json_values,
        "type": st.sampled_from([100, 101, 104, 105, 106]) | json_values,
        "fields": st.lists(json_values, max_size=4) | json_values,
        "level": json_values,
        "msg": json_values,
    },
)
lines = st.one_of(
    st.text(), st.text().map("@nix ".__add__), entries.map(lambda value: f"@nix {json.dumps(value)}")
)


@given(st.lists(lines, max_size=30))
def test_invalid_lines_are_ignored(garbage: list[str]) -> None:
    log = fed(*garbage)
    standing = log.status()
    assert 0 <= standing.built <= standing.expected
    assert 0 <= standing.fetched_bytes <= standing.fetch_bytes
    assert isinstance(log.last_lines(log.failed_derivation()), tuple)


def test_deeply_nested_json_is_ignored() -> None:
    fed("@nix " + "[" * 100_000)
