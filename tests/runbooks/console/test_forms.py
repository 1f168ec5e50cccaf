"""A form refuses the same values as the command line, and describes the run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.runbooks.shelf import replace_package
from vmsnix_ops.cli import run as run_command
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console.forms import GROUPS, Form, plan_html
from vmsnix_ops.runbooks.console.suggestions import Suggestion
from vmsnix_ops.runbooks.parameters import command_line

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf

DECLARED = """\
image: str = "ecs-node"  # which image
region: str = ""  # where
keep: int | None = None  # how many
tags: dict[str, str] = {}  # more tags
regions: list[str] = []  # where to look
public: bool = False  # share with every account
dry_run: bool = True  # show the plan
"""


def make(shelf: Shelf, side_effects: str = "creates") -> tuple[Form, list[int]]:
    calls: list[int] = []
    shelf.put("10-try-this.ipynb", parameters=DECLARED, side_effects=side_effects)
    return Form(catalog.find("try-this", shelf.folder), lambda: calls.append(1)), calls


def type_in(form: Form, name: str, text: Any) -> None:
    form.fields[name]._input.value = text


def test_only_values_that_differ_from_the_defaults_are_given(shelf: Shelf) -> None:
    form, calls = make(shelf)
    assert form.values() == {}
    type_in(form, "image", "gc-fwd")
    type_in(form, "keep", "3")
    assert form.values() == {"image": "gc-fwd", "keep": 3}
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("keep", "many", "whole number"),
        ("image", "AKIAIOSFODNN7EXAMPLE", "secret"),
        ("image", "a\0b", "NUL"),
    ],
)
def test_an_invalid_value_is_shown_while_it_is_typed(shelf: Shelf, name: str, text: str, words: str) -> None:
    form, _ = make(shelf)
    type_in(form, name, text)
    assert words in form.problems[name]
    assert words in form.fields[name]._problem.value
    assert "AKIA" not in form.fields[name]._problem.value
    assert form.value(name) is None
    type_in(form, name, str(form.fields[name].parameter.default or ""))
    assert form.problems == {}


def test_an_unknown_region_causes_a_warning_with_the_nearest(shelf: Shelf) -> None:
    form, _ = make(shelf)
    type_in(form, "region", "us-esat-1")
    form.suggest("region", "regions", [Suggestion("us-east-1"), Suggestion("eu-central-1")])
    assert "us-east-1" in form.fields["region"]._problem.value
    type_in(form, "region", "us-east-1")
    assert form.fields["region"]._problem.value == ""


def test_a_field_shows_the_value_that_is_used_without_an_input(shelf: Shelf) -> None:
    declared = 'region: str = ""  # AWS region  [default: from vmsnix.toml or AWS_REGION]'
    shelf.put("10-try-this.ipynb", parameters=declared)
    form = Form(catalog.find("try-this", shelf.folder), lambda: None)
    assert form.fields["region"]._input.placeholder == "not set in vmsnix.toml or AWS_REGION"
    form.show_help({"region": "eu-west-1, from vmsnix.toml"})
    form.suggest("region", "regions", [], "Could not list the regions.")
    assert form.fields["region"]._input.placeholder == "eu-west-1, from vmsnix.toml"
    assert '<span class="vmsnix-help">AWS region</span>' in form.fields["region"]._help.value
    assert "Could not list" in form.fields["region"]._help.value


FOLDED = """\
image: str = "ecs-node"  # which image
keep_last: int | None = None  # AMIs to keep  [default: from vmsnix.toml]
system: Literal["", "x86_64-linux"] = ""  # system  [default: the image's own]
regions: list[str] = []  # where  [default: every recorded region]
"""


def test_further_parameters_are_folded_in_groups_that_open_for_a_value_or_a_problem(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", parameters=FOLDED)
    form = Form(catalog.find("try-this", shelf.folder), lambda: None)
    form.show_help({"retire_keep_last": "3, from vmsnix.toml"})
    image, retention = form.groups
    assert list(image.fields) == ["system"]
    assert form.fields["system"]._input.label == "the image's own"
    assert form.fields["regions"]._unset.value == '<span class="vmsnix-quiet">every recorded region</span>'
    assert form.fields["keep_last"]._input.placeholder == "3, from vmsnix.toml"
    assert retention._box.layout.display == "none"
    assert retention._toggle.description == "▸ Retention"
    form.fill({"system": "x86_64-linux"})
    assert image._box.layout.display == ""
    image._toggle.value = False
    assert image._toggle.description == "▸ Image: system"
    type_in(form, "keep_last", "many")
    assert retention._box.layout.display == ""
    assert form.values() == {"system": "x86_64-linux"}


def test_every_folded_parameter_is_one_of_a_runbook() -> None:
    declared = {parameter.name for book in catalog.runbooks() for parameter in book.parameters}
    assert {name for names in GROUPS.values() for name in names} <= declared


def test_filling_in_a_form_replaces_all_values(shelf: Shelf) -> None:
    form, _ = make(shelf)
    form.fill({"image": "gc-fwd", "tags": {"Team": "a"}, "regions": ["us-east-1"], "unknown": 1})
    assert form.values() == {"image": "gc-fwd", "tags": {"Team": "a"}, "regions": ["us-east-1"]}
    form.fill({"keep": 2})
    assert form.values() == {"keep": 2}


def test_the_plan_describes_the_effect_of_a_run(shelf: Shelf) -> None:
    form, _ = make(shelf, "deletes")
    assert not form.deletes
    assert "changes nothing" in plan_html(form, backend="in AWS account 012345678901", command="")
    type_in(form, "dry_run", False)
    type_in(form, "image", "<img>")
    plan = plan_html(form, backend="in AWS account 012345678901", command="vmsnix run")
    assert form.deletes
    assert "deletes" in plan
    assert "in AWS account 012345678901" in plan
    assert "&lt;img&gt;" in plan


def test_the_command_line_gives_the_run_the_same_parameters(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, _ = make(shelf)
    values = {
        "image": "./a b#c'd",
        "keep": None,
        "tags": {"Team": "x=y", "Owner": "z"},
        "regions": ["us-east-1", "eu-central-1"],
        "public": True,
        "dry_run": False,
    }
    form.fill(values)
    given: dict[str, object] = {}
    replace_package(shelf.folder, monkeypatch)
    monkeypatch.setattr(
        run_command, "execute", lambda _book, values, **options: given.update(values, **options) or 0
    )
    words = shlex.split(command_line(form.runbook, form.values(), sandbox=True))
    assert words[:2] == ["vmsnix", "try-this"]
    done = CliRunner().invoke(run_command.run, words[1:], standalone_mode=False)
    assert done.exception is None
    assert {name: given[name] for name in form.values()} == form.values()
    assert given["sandbox"] is True


@pytest.mark.parametrize(
    ("declared", "given", "values", "problem"),
    [
        ("region: str = ''", {"regions": ["eu-west-1"]}, {"region": "eu-west-1"}, ""),
        ("region: str = ''", {"regions": ["a", "b"]}, {}, "2 values given: a, b."),
        ("region: str = ''", {"region": "a, b"}, {}, "2 values given: a, b."),
        ("regions: list[str] = ['all']", {"region": "eu-west-1"}, {"regions": ["eu-west-1"]}, ""),
    ],
)
def test_a_form_accepts_one_value_under_either_name(
    shelf: Shelf, declared: str, given: dict[str, Any], values: dict[str, Any], problem: str
) -> None:
    shelf.put("10-try-this.ipynb", parameters=declared)
    form = Form(catalog.find("try-this", shelf.folder), lambda: None)
    form.fill(given)
    assert form.values() == values
    assert problem in " ".join(form.problems.values())
    assert bool(problem) == bool(form.problems)
