"""Parameters are converted to their declared types, or refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.declarations import read_parameters

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf


def convert(declaration: str, value: object) -> object:
    (parameter,) = read_parameters(declaration)
    return parameters.convert(parameter, value)


@pytest.mark.parametrize(
    ("declaration", "given", "value"),
    [
        ("a: str = ''", "012345678901", "012345678901"),
        ("a: str = ''", "false", "false"),
        ("a: str = ''", "", ""),
        ("a: str = ''", "no", "no"),
        ("a: str | None = None", "none", None),
        ("a: str | None = None", "", None),
        ("a: str | None = None", "x", "x"),
        ("a: bool = True", "false", False),
        ("a: bool = True", "No", False),
        ("a: bool = True", "off", False),
        ("a: bool = True", "0", False),
        ("a: bool = False", "TRUE", True),
        ("a: bool = False", "yes", True),
        ("a: bool = False", True, True),
        ("a: bool = True", 0, False),
        ("a: bool = False", 1, True),
        ("a: bool | None = None", 0, False),
        ("a: list[bool] = []", [0, 1], [False, True]),
        ("a: list[int] = []", 5, [5]),
        ("a: list[float] = []", 1.5, [1.5]),
        ("a: dict[str, bool] = {}", {"a": 0}, {"a": False}),
        ("a: int = 0", "08", 8),
        ("a: int = 0", " -5 ", -5),
        ("a: float = 0.0", "1e3", 1000.0),
        ("a: float = 0.0", 2, 2.0),
        ("a: list[str] = []", "us-east-1, eu-west-1", ["us-east-1", "eu-west-1"]),
        ("a: list[str] = []", '["a,b", "c"]', ["a,b", "c"]),
        ("a: list[str] = []", "012345678901,210987654321", ["012345678901", "210987654321"]),
        ("a: list[str] = []", "", []),
        ("a: list[int] = []", "1,2", [1, 2]),
        ("a: list[bool] = []", [True, "no"], [True, False]),
        ("a: dict[str, str] = {}", "Team=platform,Cost=a=b", {"Team": "platform", "Cost": "a=b"}),
        ("a: dict[str, str] = {}", '{"Team": "a, b"}', {"Team": "a, b"}),
        ("a: dict[str, int] = {}", "a=1", {"a": 1}),
        ("a: dict[str, str] = {}", "", {}),
        ("a: Literal['import', 'direct'] = 'import'", "direct", "direct"),
        ("a: Literal[1, 2] = 1", "2", 2),
    ],
)
def test_text_is_converted_to_the_declared_type(declaration: str, given: object, value: object) -> None:
    converted = convert(declaration, given)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("declaration", "given", "reason"),
    [
        ("flag: bool = True", "maybe", "Use true or false"),
        ("flag: bool = True", "", "Use true or false"),
        ("flag: bool = True", 2, "Use true or false"),
        ("count: int = 1", "1.5", "digits"),
        ("count: int = 1", "0x10", "digits"),
        ("count: int = 1", True, "bool"),
        ("ratio: float = 1.0", "fast", "1.5"),
        ("ratio: float = 1.0", "nan", "finite"),
        ("account: str = ''", 12345678901, "int"),
        ("account: str = ''", None, "A value is required"),
        ("regions: list[int] = []", "1,x", "Item 2"),
        ("regions: list[str] = []", "[1, 2", "JSON"),
        ("regions: list[str] = []", "[1]", "Item 1"),
        ("tags: dict[str, str] = {}", "Team", "key=value"),
        ("tags: dict[str, str] = {}", "a=1,a=2", "twice"),
        ("tags: dict[str, str] = {}", '{"a": 1}', "'a'"),
        ("via: Literal['import', 'direct'] = 'import'", "dirct", "Did you mean 'direct'"),
    ],
)
def test_an_error_names_parameter_type_and_value(declaration: str, given: object, reason: str) -> None:
    with pytest.raises(ParameterError) as refused:
        convert(declaration, given)
    name, kind = declaration.split(":")[0], declaration.split(": ")[1].split(" = ")[0]
    assert name in refused.value.what
    assert repr(given) in refused.value.what
    assert reason in refused.value.why
    assert refused.value.fix.startswith(f"Give {name} as {kind}; its default is ")


def test_the_error_for_a_mistyped_name_suggests_the_nearest(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb")
    book = catalog.find("try-this", shelf.folder)
    with pytest.raises(ParameterError, match=r"no parameter 'acount'\. Did you mean 'account'"):
        parameters.check(book, {"acount": "012345678901"})


def test_names_may_contain_dashes(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", parameters="dry_run: bool = False")
    book = catalog.find("try-this", shelf.folder)
    assert parameters.check(book, {"dry-run": "yes"}) == {"dry_run": True}


@pytest.mark.parametrize("value", ["AKIA" + "Q" * 16, "ghp_" + "a" * 36, "https://me:" + "hunter22@host/"])
def test_a_secret_is_refused_as_a_parameter_and_not_repeated(value: str) -> None:
    with pytest.raises(ParameterError, match="secret") as refused:
        convert("token: str = ''", value)
    assert value not in str(refused.value)


def test_pairs_are_split_at_the_first_equals_sign() -> None:
    assert parameters.split(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a=1", "a=2"]])
def test_an_invalid_pair_is_refused(pairs: list[str]) -> None:
    with pytest.raises(ParameterError):
        parameters.split(pairs)


TYPES = ("str", "bool", "int", "float", "list[str]", "list[int]", "list[float]", "list[bool]")
TYPES += ("dict[str, str]", "dict[str, bool]", "Literal['a', 'b']", "Literal[0, 1]")
WORDS = ("0", "1", "2", "-1", "08", "1.0", "1.5", "1e3", "True", "False", "true", "no", "None", "nan", "inf")
WORDS += ("", "a", "a,b", "1,2", "a=1", "[]", "[0]", "{}", '{"a": 0}', "1_000", "9" * 400, "[" * 100_000)


@pytest.mark.parametrize("optional", ["", " | None"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_value_is_the_same_from_papermill_and_from_the_command_line(kind: str, optional: str) -> None:
    """papermill passes some words as numbers, bools or None; the command line passes all words as text.

    What both accept is the same value; only text that lost something (leading zeros) is refused.
    """
    from papermill.cli import _resolve_type

    declaration = f"a: {kind}{optional} = None"

    def answer(value: object) -> object:
        try:
            return convert(declaration, value)
        except ParameterError as error:
            return error

    for word in WORDS:
        typed, plain = answer(_resolve_type(word)), answer(word)
        assert not isinstance(plain, ParameterError) or word[:40] in str(plain)
        if not isinstance(typed, ParameterError):
            assert typed == plain, word
            assert type(typed) is type(plain), word
        elif not isinstance(plain, ParameterError):
            assert "-r NAME VALUE" in str(typed) or _resolve_type(word) is None, (word, str(typed))


@pytest.mark.parametrize("given", [2, -1, 1.0, 0.0, [], {}, [True], "2", "1.0", ""])
def test_a_value_that_is_not_a_bool_is_refused(given: object) -> None:
    with pytest.raises(ParameterError, match="also yes, no, on, off, 1, 0"):
        convert("a: bool = True", given)


ONE = "region: str = ''\nimage: str = 'ecs-node'\nami: str = ''"
MANY = "regions: list[str] = ['all']\nimages: list[str] = []\naccounts: list[str] = []"
BOTH = "region: str = ''\nregions: list[str] = []"


@pytest.mark.parametrize(
    ("declared", "given", "taken"),
    [
        (ONE, {"regions": "eu-west-1"}, {"region": "eu-west-1"}),
        (ONE, {"regions": ["eu-west-1"]}, {"region": "eu-west-1"}),
        (ONE, {"regions": '["eu-west-1"]'}, {"region": "eu-west-1"}),
        (ONE, {"regions": ["eu-west-1", " eu-west-1"]}, {"region": "eu-west-1"}),
        (ONE, {"regions": []}, {"region": ""}),
        (ONE, {"regions": ""}, {"region": ""}),
        (ONE, {"images": "gc-fwd", "amis": ["ami-1"]}, {"image": "gc-fwd", "ami": "ami-1"}),
        (ONE, {"image": "./a,b.img"}, {"image": "./a,b.img"}),
        (MANY, {"region": "eu-west-1"}, {"regions": ["eu-west-1"]}),
        (MANY, {"region": "all"}, {"regions": ["all"]}),
        (MANY, {"region": ["eu-west-1"]}, {"regions": ["eu-west-1"]}),
        (MANY, {"account": "012345678901"}, {"accounts": ["012345678901"]}),
        (MANY, {"image": "ecs-node"}, {"images": ["ecs-node"]}),
        (MANY, {"region": ""}, {"regions": []}),
        (BOTH, {"region": "a", "regions": "b,c"}, {"region": "a", "regions": ["b", "c"]}),
    ],
)
def test_one_value_is_accepted_under_the_singular_and_the_plural_name(
    shelf: Shelf, declared: str, given: dict[str, object], taken: dict[str, object]
) -> None:
    shelf.put("20-publish-ami.ipynb", parameters=declared)
    assert parameters.check(catalog.find("publish", shelf.folder), given) == taken


@pytest.mark.parametrize(
    ("declared", "given", "words"),
    [
        (ONE, {"regions": "a,b"}, ["publish-ami takes one region.", "2 values given: a, b.", "fleet"]),
        (ONE, {"regions": ["a", "b", "c"]}, ["3 values given: a, b, c."]),
        (ONE, {"regions": {"a": 1}}, ["region: {'a': 1} is not text.", "Use a name, or a list of names."]),
        (ONE, {"regions": [["a"]]}, ["region: [['a']] is not text.", "Use a name, or a list of names."]),
        (ONE, {"regions": "all"}, ["publish-ami takes one region.", "'all' means every region."]),
        (ONE, {"region": "a,b"}, ["publish-ami takes one region.", "2 values given: a, b."]),
        (ONE, {"region": ["a", "b"]}, ["2 values given: a, b."]),
        (ONE, {"amis": "ami-1,ami-2"}, ["publish-ami takes one AMI.", "2 values given"]),
        (ONE, {"regions": "[a"}, ["not JSON"]),
        (ONE, {"regions": 5}, ["region: 5 is not text."]),
        (ONE, {"region": "a", "regions": "a"}, ["'region' is given twice.", "as region and once as regions"]),
        (ONE, {"regions": "AKIAIOSFODNN7EXAMPLE,b"}, ["region contains a secret"]),
        (MANY, {"region": "a,b"}, ["region takes one region.", "2 values given: a, b.", "--regions a,b."]),
        (MANY, {"region": ["a", "b"]}, ["Use --regions a,b."]),
        (MANY, {"account": 12345678901}, ["accounts: [12345678901]", "leading zeros"]),
        (MANY, {"regions": "a", "region": "b"}, ["'regions' is given twice."]),
        (BOTH, {"region": "a,b"}, ["Use region for one, and regions for the others."]),
        ("keep: int = 3", {"region": "a"}, ["has no parameter 'region'"]),
        ("dry_run: bool = True", {"dry-run": True, "dry_run": False}, ["'dry_run' is given twice."]),
    ],
)
def test_several_values_for_one_are_refused_with_the_reason(
    shelf: Shelf, declared: str, given: dict[str, object], words: list[str]
) -> None:
    shelf.put("20-publish-ami.ipynb", parameters=declared)
    with pytest.raises(ParameterError) as refused:
        parameters.check(catalog.find("publish", shelf.folder), given)
    for word in words:
        assert word in str(refused.value)
    assert "AKIA" not in str(refused.value)
