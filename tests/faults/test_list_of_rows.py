"""Each failure that docs/reference/failures.md lists has the tests that the page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "failures.md"
ROWS = 29
ROW = re.compile(r"^\| (\d+) .* \| .* \| (.*) \|$", re.MULTILINE)


def listed() -> dict[int, list[tuple[str, str]]]:
    """Return the tests of each row: file, and beginning of the test's name."""
    return {
        int(row[1]): re.findall(r"`(tests/[\w/.]+)` `(\w+)`", row[2])
        for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))
    }


def test_every_row_is_listed() -> None:
    assert sorted(listed()) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_the_tests_of_a_row_exist(row: int) -> None:
    tests = listed()[row]
    assert tests
    for file, name in tests:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def test_{name}", text, re.MULTILINE), f"{file} has no test_{name}"


def test_every_test_named_after_a_row_is_listed() -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def test_(row_\d\d)_", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= {test for tests in listed().values() for test in tests}
