"""Every notebook validates its parameters, also under plain papermill; so do the functions that it calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import settings
from vmsnix_ops.errors import ParameterError, RegionError, VmsnixError
from vmsnix_ops.runbooks import catalog, parameters, value_checks
from vmsnix_ops.runbooks.declarations import Parameter
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "notebooks"
BOOKS = catalog.runbooks(FOLDER)
PARAMETERS = [(book, parameter) for book in BOOKS for parameter in book.parameters]
WRONG: dict[str, list[object]] = {
    "str": [12345678901, True, 1.5, ["x"], {"a": "b"}, None],
    "bool": ["maybe", "", 2, 1.0, ["x"], None],
    "int": ["x", "1.5", True, 1.5, ["x"], None],
    "float": ["x", True, float("nan"), "inf", ["x"], None],
    "list": [5, True, {"a": "b"}, [12345678901], None],
    "dict": ["x", ["a"], 5, True, {"a": 1}, None],
}
# Values of a wrong type that Python would accept silently, with another meaning.
WRONG_ARGUMENTS: dict[str, list[object]] = {
    "str": [True, ["x"], 5],
    "bool": ["false", "", 0],
    "int": ["3", True],
    "float": ["3", True],
    "list": ["xz", {"a": "b"}, [5]],
    "dict": ["a=b", ["a"], {"a": 1}],
}


def name_of(value: object) -> str:
    if isinstance(value, catalog.Runbook):
        return value.name
    return value.name if isinstance(value, Parameter) else repr(value)


@pytest.fixture
def types_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check no more than types: any text is a region."""
    monkeypatch.setattr(value_checks, "call_errors", lambda *_arguments: [])


each_parameter = pytest.mark.parametrize(("book", "parameter"), PARAMETERS, ids=name_of)


def cells(book: catalog.Runbook) -> list[str]:
    """Return the code cells of a notebook."""
    content = json.loads(book.path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def namespace(book: catalog.Runbook, **given: object) -> dict[str, Any]:
    """Return the variables of a notebook after its parameters cell and papermill's."""
    variables: dict[str, Any] = {}
    exec(cells(book)[0], variables)
    return variables | given


def execute(source: str, variables: dict[str, Any]) -> None:
    exec(source, variables)


@pytest.mark.usefixtures("types_only")
@each_parameter
def test_the_first_call_refuses_a_value_of_another_type_and_names_it(
    book: catalog.Runbook, parameter: Parameter
) -> None:
    for value in WRONG[parameter.type.kind]:
        if value is None and parameter.type.optional:
            continue
        with pytest.raises(ParameterError) as refused:
            execute(cells(book)[1], namespace(book, **{parameter.name: value}))
        assert refused.value.what.startswith(f"{parameter.name}: ")
        assert refused.value.fix


OTHER_NAMES = [(book, *names) for book in BOOKS for names in parameters.other_names(book).items()]


@pytest.mark.usefixtures("types_only")
@pytest.mark.parametrize(("book", "other", "name"), OTHER_NAMES, ids=name_of)
def test_the_first_call_accepts_one_value_under_the_other_name(
    book: catalog.Runbook, other: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = namespace(book, **{other: "eu-west-1"})
    execute(cells(book)[1], variables)
    assert variables[name] in ("eu-west-1", ["eu-west-1"])
    assert other not in variables
    assert f"{other} is read as {name}.\n" in capsys.readouterr().err
    with pytest.raises(ParameterError, match="2 values given: a, b"):
        execute(cells(book)[1], namespace(book, **{other: "a,b"}))


@pytest.mark.usefixtures("types_only")
@each_parameter
def test_the_first_call_reads_what_papermill_passes_as_text(
    book: catalog.Runbook, parameter: Parameter
) -> None:
    texts: dict[str, list[tuple[object, object]]] = {
        "str": [("012345678901", "012345678901")],
        "bool": [("false", False), ("False", False), ("no", False), ("true", True), (True, True)],
        "int": [("3", 3), (3, 3)],
        "float": [("3", 3.0), (3, 3.0), ("0.5", 0.5)],
        "list": [("xz", ["xz"]), ("a,b", ["a", "b"]), ('["012345678901"]', ["012345678901"]), ("", [])],
        "dict": [("a=b", {"a": "b"}), ("", {})],
    }
    for given, wanted in texts[parameter.type.kind]:
        if parameter.choices:
            given = wanted = parameter.choices[-1]
        variables = namespace(book, **{parameter.name: given})
        execute(cells(book)[1], variables)
        assert (variables[parameter.name], type(variables[parameter.name])) == (wanted, type(wanted))


@pytest.mark.usefixtures("types_only")
@each_parameter
def test_an_invalid_choice_is_refused(book: catalog.Runbook, parameter: Parameter) -> None:
    if parameter.choices:
        with pytest.raises(ParameterError, match=f"{parameter.name}: 'imprt' is not one of"):
            execute(cells(book)[1], namespace(book, **{parameter.name: "imprt"}))


@each_parameter
def test_the_functions_behind_it_refuse_a_value_of_another_type(
    book: catalog.Runbook, parameter: Parameter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    late = {  # used by a later call, which gets the result of an earlier one
        ("bootstrap", "cloudformation"): (
            "from vmsnix_ops import bootstrap\nplan = bootstrap.BootstrapPlan(*[None] * 5)",
            "plan.template(cloudformation)",
        ),
    }
    for value in WRONG_ARGUMENTS[parameter.type.kind]:
        variables = namespace(book, **{parameter.name: value})
        sources = [cells(book)[1].splitlines()[0], *cells(book)[2:4]]  # its import, without the check
        if (book.name, parameter.name) in late:
            first, *sources = late[book.name, parameter.name]
            execute(first, variables)
        # The regions of an audit may be text: one region.
        one_region = isinstance(value, str) and (book.name, parameter.name) == ("audit-inventory", "regions")
        with pytest.raises(RegionError if one_region else ParameterError) as refused:
            execute("\n".join(sources), variables)
        if one_region:
            assert refused.value.what == f"{value!r} is not an AWS region."
            continue
        named = {"plan": "file", "cloudformation": "place"}.get(parameter.name, parameter.name)
        assert named in refused.value.what


NUMBERS = [one for one in PARAMETERS if one[1].type.kind in ("int", "float")]


@pytest.mark.parametrize("value", [-1, 99_999_999_999, 10**30])
@pytest.mark.parametrize(("book", "parameter"), NUMBERS, ids=name_of)
def test_a_number_out_of_range_is_refused_before_any_call(
    book: catalog.Runbook, parameter: Parameter, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient

    def call(*_arguments: object, **_options: object) -> None:
        pytest.fail("AWS was called")

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setenv("VMSNIX_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.toml").write_text('name = "x"\n')
    (tmp_path / "image.vhd").touch()
    variables = namespace(book) | {"amis": ["web"], "image": "image.vhd", parameter.name: value}
    with pytest.raises(ParameterError, match=parameter.name):
        execute("\n".join(cells(book)[1:4]), variables)


@pytest.fixture(scope="module")
def aws() -> Iterator[Sandbox]:
    with sandbox(speed=10_000) as served:
        yield served


CHANGED = {
    "region": "eu-west-3",
    "bucket": "another-bucket-x",
    "role_name": "another-role",
    "prefix": "another",
    "kms_key": "arn:aws:kms:us-east-1:012345678901:key/0123abcd-0123-0123-0123-0123456789ab",
    "retire_keep_last": 8,
    "retire_min_age_days": 31.5,
    "retire_launched_days": 32.5,
    "retire_retention_days": 33.5,
    "retire_orphan_days": 34.5,
    "retire_max_count": 26,
}


def setting_of(parameter: Parameter) -> str:
    """Return the setting that a parameter overrides; empty for none."""
    names = (parameter.name, f"retire_{parameter.name}")
    return next((name for name in names if name in settings.FIELDS), "")


SAME = [one for one in PARAMETERS if setting_of(one[1])]
FILTERS = {("import-timings", "region")}  # it filters rows


def test_every_setting_of_the_notebooks_is_tested() -> None:
    assert {setting_of(parameter) for _, parameter in SAME} == {*CHANGED, "flake"}
    policy = {name for name in settings.FIELDS if name.startswith("retire_")}
    for name in ("retire-amis", "audit-inventory"):
        assert policy <= {setting_of(parameter) for book, parameter in SAME if book.name == name}


@pytest.mark.parametrize(("book", "parameter"), SAME, ids=name_of)
def test_a_setting_is_used_where_the_parameter_is_left_empty(
    book: catalog.Runbook,
    parameter: Parameter,
    aws: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parameter.default == (None if parameter.type.optional else "")
    if (book.name, parameter.name) in FILTERS:
        assert "all" in parameter.help
        return
    from vmsnix_ops.disk.sample import make_sample_image

    aws.reset()
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMSNIX_PROGRESS", "silent")
    monkeypatch.chdir(tmp_path)
    changed = CHANGED.get(setting_of(parameter), str(tmp_path / "another-flake"))
    content: dict[str, Any] = {"region": "us-east-1", "bucket": "vmsnix-images"}
    content |= {"state": str(tmp_path / "state"), setting_of(parameter): changed}
    (tmp_path / "vmsnix.toml").write_text(
        "".join(f"{key} = {json.dumps(text)}\n" for key, text in content.items())
    )
    role = "another-role" if parameter.name == "role_name" else "vmimport"
    aws.prepare(bucket=content["bucket"], region=content["region"], role=role)
    variables = namespace(book)
    if book.name in ("preflight", "publish-ami"):
        variables["image"] = str(make_sample_image(tmp_path / "image"))
    if book.name in ("promote-ami", "smoke-test"):
        variables["image"] = "nothing-here"
    if book.name == "prove-ami":
        variables["amis"] = ["nothing-here"]
    if book.name == "audit-inventory":
        variables["regions"] = ["us-east-1"]
    shown = ""
    try:
        for source in cells(book)[1:3]:
            execute(source, variables)
    except VmsnixError as error:
        shown = str(error)
    shown += "".join(str(variables.get(name, "")) for name in ("plan", "checks", "found"))
    shown += repr([(call.region, call.params) for call in aws.calls])
    number = isinstance(changed, int | float)
    assert (f"{parameter.name} {changed}" if number else changed) in shown


@pytest.mark.parametrize("book", BOOKS, ids=name_of)
def test_papermill_infers_every_parameter_with_its_type(book: catalog.Runbook) -> None:
    from papermill import inspect_notebook

    from vmsnix_ops.runbooks.execution import translator  # noqa: F401 - registers itself

    inferred = {
        name: (one["inferred_type_name"].replace('"', "'"), one["help"])
        for name, one in inspect_notebook(str(book.path)).items()
    }
    assert inferred == {one.name: (str(one.type), one.help) for one in book.parameters}


def run_papermill(tmp_path: Path, book: str, *words: str) -> tuple[int, str]:
    """Run the parameters cell and the first call of a notebook by papermill's own command."""
    content = json.loads(catalog.find(book, FOLDER).path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"][:2]
    names = [parameter.name for parameter in catalog.find(book, FOLDER).parameters]
    shown = {**code[1], "id": "shown", "source": f"print([{', '.join(names)}])"}
    path = tmp_path / "try.ipynb"
    path.write_text(json.dumps({**content, "cells": [*code, shown]}))
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb"), "--log-output", *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_papermill_command_has_the_same_safeguards_as_vmsnix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    words = ("-p", "allow_shared", "false", "-p", "dry_run", "False", "-p", "images", "ecs-node")
    code, shown = run_papermill(tmp_path, "retire-amis", *words)
    assert code == 0, shown
    assert (
        "['retire', [], ['ecs-node'], [], None, None, None, None, None, True, False, None, False, '', '']"
        in shown
    )


@pytest.mark.parametrize(
    ("book", "words", "message"),
    [
        ("promote-ami", ("-p", "unprotect", "fasle"), "unprotect: 'fasle' is not true or false"),
        ("publish-ami", ("-p", "confirm_public", "012345678901"), "confirm_public: 12345678901 is not"),
        ("promote-ami", ("-p", "dryrun", "True"), "promote-ami has no parameter 'dryrun'"),
    ],
)
@pytest.mark.variants(seconds=6)
def test_the_papermill_command_refuses_invalid_values(
    tmp_path: Path, book: str, words: tuple[str, ...], message: str
) -> None:
    code, shown = run_papermill(tmp_path, book, *words)
    assert code != 0
    assert message in shown
