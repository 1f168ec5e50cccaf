"""The declarations of a parameters cell."""

from __future__ import annotations

import pytest

from vmsnix_ops.errors import RunError
from vmsnix_ops.runbooks.declarations import read_parameters


@pytest.mark.parametrize(
    ("source", "type_", "default"),
    [
        ("a: str = 'x'", "str", "x"),
        ("a = 'x'", "str", "x"),
        ("a: bool = True", "bool", True),
        ("a = False", "bool", False),
        ("a: int = -3", "int", -3),
        ("a: float = 1.5", "float", 1.5),
        ("a: str | None = None", "str | None", None),
        ("a: None | int = None", "int | None", None),
        ("a = None", "str | None", None),
        ("a: list[str] = ['x', 'y']", "list[str]", ["x", "y"]),
        ("a: list[int] = []", "list[int]", []),
        ("a: list = []", "list[str]", []),
        ("a = [1]", "list[int]", [1]),
        ("a: dict[str, str] = {}", "dict[str, str]", {}),
        ("a: dict[str, list[str]] = {}", "dict[str, list[str]]", {}),
        ("a: Literal['import', 'direct'] = 'import'", "Literal['import', 'direct']", "import"),
        ("a: 'Literal[1, 2] | None' = None", "Literal[1, 2] | None", None),
    ],
)
def test_types_and_defaults_are_those_of_the_cell(source: str, type_: str, default: object) -> None:
    (parameter,) = read_parameters(source)
    assert (parameter.name, str(parameter.type), parameter.default) == ("a", type_, default)


def test_the_trailing_comment_is_the_help() -> None:
    assert read_parameters("a: str = '#1'  # the first one")[0].help == "the first one"


def test_comment_lines_above_are_the_help_of_a_parameter_without_one() -> None:
    source = "a: int = 1  # one\n# How often,\n# at most.\nb: int = 2\nc: int = 3\n"
    assert [parameter.help for parameter in read_parameters(source)] == ["one", "How often, at most.", ""]


@pytest.mark.parametrize(
    ("declaration", "choices"),
    [
        ('via: Literal["import", "direct"] = "import"  # way to the snapshot', ("import", "direct")),
        ('via: Literal["", "import", "direct"] = ""  # only this way; empty: all', ("", "import", "direct")),
        ('via: Literal["import", "direct"] | None = None  # way', ("import", "direct")),
        ("count: Literal[1, 2] = 1  # how often", (1, 2)),
        ('via: str = "import"  # way to the snapshot (import, direct)', ()),
    ],
)
def test_choices_are_read_from_the_type_only(declaration: str, choices: tuple[str, ...]) -> None:
    (parameter,) = read_parameters(declaration)
    assert parameter.choices == choices


def test_a_default_can_have_several_lines() -> None:
    source = "a: dict[str, str] = {\n    'Team': 'x',  # inner\n}  # tags\nb: int = 1  # other\n"
    first, second = read_parameters(source)
    assert (first.default, first.help, second.help) == ({"Team": "x"}, "tags", "other")


def test_imports_are_not_parameters() -> None:
    assert [p.name for p in read_parameters("from typing import Literal\na: Literal['x'] = 'x'\n")] == ["a"]


@pytest.mark.parametrize(
    "source",
    [
        "a: str = os.environ['HOME']",
        "a: str = 'x' + 'y'",
        "a: str",
        "a: datetime = None",
        "a: Literal[x] = 'x'",
        "a: dict[int, str] = {}",
        "a: str | int = 1",
        "print('x')",
        "for a in 'x': pass",
        "a, b = 1, 2",
        "a: str = 'x",
        "a: str = 'x\0y'",
        "a: str = 'x'\na: int = 1",
        "a: bool = True\nno_a: str = ''",
        "no_a: str = ''\na: bool = True",
    ],
)
def test_anything_else_in_the_cell_is_refused(source: str) -> None:
    with pytest.raises(RunError, match="parameters cell of 20-x"):
        read_parameters(source, notebook="20-x")
