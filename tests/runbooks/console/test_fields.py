"""The fields of a form: one for each type of a parameter."""

from __future__ import annotations

from typing import Any

import pytest

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.runbooks.console import forms
from vmsnix_ops.runbooks.console.forms import make_field
from vmsnix_ops.runbooks.console.suggestions import Suggestion, source_of
from vmsnix_ops.runbooks.declarations import read_parameters


def field(declaration: str, calls: list[int] | None = None) -> Any:
    count = [] if calls is None else calls
    return make_field(read_parameters(declaration)[0], lambda: count.append(1))


@pytest.mark.parametrize(
    ("declaration", "kind"),
    [
        ('image: str = "ecs-node"  # which', forms.TextField),
        ("image: str | None = None  # which", forms.TextField),
        ('via: str = "import"  # the way (import: S3; direct: neither)', forms.TextField),
        ('via: Literal["import", "direct"] = "import"  # the way', forms.ChoiceField),
        ("keep: int = 3  # how many", forms.NumberField),
        ("factor: float = 1.5  # how much", forms.NumberField),
        ("keep: int | None = None  # how many", forms.TextField),
        ("dry_run: bool = True  # look only", forms.CheckboxField),
        ("known: bool | None = None  # perhaps", forms.ChoiceField),
        ("regions: list[str] = []  # where", forms.ListField),
        ("tags: dict[str, str] = {}  # more", forms.MappingField),
    ],
)
def test_every_type_has_a_field_that_contains_the_default(declaration: str, kind: type[forms.Field]) -> None:
    made = field(declaration)
    assert type(made) is kind
    default = made.parameter.default
    assert made.value() == ("" if default is None and kind is forms.TextField else default)


@pytest.mark.parametrize(
    ("declaration", "labels"),
    [
        ('v: Literal["none", "sample", "whole"] = "none"  # compare', ("none", "sample", "whole")),
        ('v: Literal["", "import", "direct"] = ""  # only this way', ("default", "import", "direct")),
    ],
)
def test_choices_are_offered(declaration: str, labels: tuple[str, ...]) -> None:
    made = field(declaration)
    assert tuple(label for label, _value in made._input.options) == labels
    assert made.value() == made.parameter.default


def test_an_input_reports_a_change_and_filling_in_does_not() -> None:
    calls: list[int] = []
    made = field('image: str = "a"  # which', calls)
    made.fill("b")
    assert calls == []
    made._input.value = "c"
    assert calls == [1]


def test_a_list_grows_and_shrinks_row_by_row() -> None:
    made = field('regions: list[str] = ["us-east-1"]  # where')
    made._add_button.click()
    made._rows[1][0].value = "eu-central-1"
    assert made.value() == ["us-east-1", "eu-central-1"]
    remove = made._rows[0][1].children[-1]
    remove.click()
    assert made.value() == ["eu-central-1"]
    made._add_button.click()  # an empty row is ignored
    assert made.value() == ["eu-central-1"]


def test_a_suggestion_is_picked_once_and_its_list_closes() -> None:
    made = field("regions: list[str] = []  # where")
    assert made._pick.layout.display == "none"
    made.suggest([Suggestion("us-east-1"), Suggestion("eu-central-1", "Frankfurt")])
    assert made._pick.layout.display == ""
    assert [label for label, _value in made._pick.options][1:] == ["us-east-1", "Frankfurt"]
    for _ in range(2):
        made._pick.value = "eu-central-1"
        assert made._pick.value == ""
    assert made.value() == ["eu-central-1"]


def test_the_reason_for_missing_suggestions_is_shown_below_the_help() -> None:
    made = field('image: str = ""  # which')
    made.suggest([], "nix is <not> installed.")
    assert "nix is &lt;not&gt; installed." in made._help.value
    made.suggest([Suggestion("ecs-node")])
    assert "installed" not in made._help.value


def test_a_mapping_needs_a_name_for_each_value_and_each_only_once() -> None:
    made = field('tags: dict[str, str] = {"Team": "platform"}  # more')
    assert made.value() == {"Team": "platform"}
    made._add_button.click()
    pair = made._rows[1][1].children[0].children
    pair[1].value = "a, b=c"
    with pytest.raises(ParameterError, match="No name given"):
        made.value()
    pair[0].value = "Team"
    with pytest.raises(ParameterError, match="given twice"):
        made.value()
    pair[0].value = "Owner"
    assert made.value() == {"Team": "platform", "Owner": "a, b=c"}


def test_help_and_problems_are_text_not_markup() -> None:
    made = field('image: str = ""  # <b>which</b>')
    made.show_problem("<script>")
    assert "<b>" not in made._help.value
    assert "&lt;script&gt;" in made._problem.value
    made.show_problem("")
    assert made._problem.value == ""


@pytest.mark.parametrize(
    ("declaration", "source"),
    [
        ('image: str = "ecs-node"  # flake attribute, or file', "images"),
        ('image: str = ""  # what shall be published (as for publish-ami)', "images"),
        ('image: str = ""  # short name of the image', "published"),
        ("images: list[str] = []  # only AMIs of these images", "published"),
        ('region: str = ""  # where', "regions"),
        ("regions: list[str] = []  # where", "regions"),
        ('bucket: str = ""  # which', "buckets"),
        ('ami: str = ""  # which', "amis"),
        ('source_ami: str = ""  # which', "amis"),
        ("kms_keys: dict[str, str] = {}  # of regions", ""),
        ("keep_last: int = 3  # how many", ""),
    ],
)
def test_where_suggestions_for_a_parameter_come_from(declaration: str, source: str) -> None:
    assert source_of(read_parameters(declaration)[0]) == source
