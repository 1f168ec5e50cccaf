"""The form of a runbook, made from its parameters cell, checked while it is filled in."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.runbooks import parameters
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from markupsafe import Markup

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter


# One field of a form for one parameter: the widget that fits its type, its help, and what is wrong with it.
#
# A field hands out what was typed; `parameters.check`, which the command line uses, too, decides what that
# is.

PICK = "▾"

_HELP = """\
<span class="vmsnix-help">{{ words }}</span>
{%- if problem %}<span class="vmsnix-help">{{ problem }}</span>{% endif %}
"""
_COMPLAINT = '<span class="{{ kind }}" role="alert">{{ problem }}</span>'
_NAME = '<span class="vmsnix-name">{{ name }}</span>'


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A value that somebody may want.

    Attributes
    ----------
    value
        What is filled in.
    label
        What is shown in the list.
    """

    value: str
    label: str = ""


def make_field(parameter: Parameter, changed: Callable[[], None]) -> Field:
    """Return the field that fits a parameter.

    Parameters
    ----------
    parameter
        As the runbook declares it.
    changed
        Called after every change.
    """
    kind = parameter.type
    if kind.kind == "bool" and not kind.optional:
        return FlagField(parameter, changed)
    if parameter.choices or kind.kind == "bool":
        return ChoiceField(parameter, changed)
    if kind.kind == "list":
        return ListField(parameter, changed)
    if kind.kind == "dict":
        return MappingField(parameter, changed)
    if kind.kind in ("int", "float") and not kind.optional:
        return NumberField(parameter, changed)
    return TextField(parameter, changed)


class Field:
    """What every field has.

    Attributes
    ----------
    parameter
        What it is for.
    widget
        The field as it is shown.
    """

    def __init__(self, parameter: Parameter, changed: Callable[[], None]) -> None:
        self.parameter = parameter
        self._changed = changed
        self._quiet = False
        self._pick: Any = None
        self._words = parameter.help[:1].upper() + parameter.help[1:]
        self._help = ipywidgets.HTML(fill(_HELP, words=self._words, problem=""))
        self._problem = ipywidgets.HTML("")
        self.widget = ipywidgets.VBox([self._control(), self._help, self._problem])
        self.widget.add_class("vmsnix-field")
        self.widget.add_class(f"vmsnix-field-{parameter.name}")
        self.fill(parameter.default)

    def given(self) -> object:
        """Return what is filled in, for `parameters.check`.

        Raises
        ------
        ParameterError
            When it cannot even be read.
        """
        raise NotImplementedError

    def fill(self, value: object) -> None:
        """Show a value."""
        self._quiet = True
        try:
            self._show("" if value is None else value)
        finally:
            self._quiet = False

    def complain(self, problem: str, *, warning: bool = False) -> None:
        """Show what is wrong, or nothing more."""
        kind = "vmsnix-warning" if warning else "vmsnix-error"
        self._problem.value = fill(_COMPLAINT, kind=kind, problem=problem) if problem else ""
        (self.widget.add_class if problem and not warning else self.widget.remove_class)("vmsnix-wrong")

    def focus(self) -> None:
        """Put the cursor here."""
        self._first().focus()

    def suggest(self, suggestions: Sequence[Suggestion], problem: str = "") -> None:
        """Offer values, or say why there are none to offer; fields with choices of their own need none."""
        if self._pick is not None:
            _offer(self._pick, suggestions)
            self._help.value = fill(_HELP, words=self._words, problem=problem)

    def _control(self) -> Any:
        raise NotImplementedError

    def _show(self, value: object) -> None:
        raise NotImplementedError

    def _first(self) -> Any:
        return self._input

    def _tell(self, _change: object = None) -> None:
        if not self._quiet:
            self._changed()

    _input: Any


class FlagField(Field):
    """Yes or no."""

    def _control(self) -> Any:
        self._input = ipywidgets.Checkbox(description=self.parameter.name, indent=False)
        self._input.observe(self._tell, "value")
        return self._input

    def _show(self, value: object) -> None:
        self._input.value = bool(value)

    def given(self) -> object:
        """Return whether it is ticked."""
        return bool(self._input.value)


class ChoiceField(Field):
    """One of few."""

    def _control(self) -> Any:
        kind = self.parameter.type
        values: tuple[object, ...] = (True, False) if kind.kind == "bool" else self.parameter.choices
        options = [(_shown(value) or "(empty)", value) for value in values]
        default = self.parameter.default
        if default not in values:
            options.insert(0, ("(none)" if default is None else "(empty)", default))
        self._input = ipywidgets.Dropdown(description=self.parameter.name, options=options)
        self._input.observe(self._tell, "value")
        return self._input

    def _show(self, value: object) -> None:
        known = [option for _label, option in self._input.options]
        wanted = self.parameter.default if value == "" else value
        self._input.value = wanted if wanted in known else self.parameter.default

    def given(self) -> object:
        """Return what is chosen."""
        return self._input.value


class NumberField(Field):
    """A number that must be there."""

    def _control(self) -> Any:
        make = ipywidgets.IntText if self.parameter.type.kind == "int" else ipywidgets.FloatText
        self._input = make(description=self.parameter.name, continuous_update=True)
        self._input.observe(self._tell, "value")
        return self._input

    def _show(self, value: object) -> None:
        self._input.value = value

    def given(self) -> object:
        """Return the number."""
        return self._input.value


class TextField(Field):
    """Text, and everything that is best written as text; with a list of suggestions beside it, if any."""

    def _control(self) -> Any:
        self._input = ipywidgets.Text(description=self.parameter.name, continuous_update=True)
        self._input.placeholder = (
            "empty" if self.parameter.default in ("", None) else str(self.parameter.default)
        )
        self._input.observe(self._tell, "value")
        self._pick = _picker(self._picked)
        row = ipywidgets.HBox([self._input, self._pick])
        row.add_class("vmsnix-pickable")
        return row

    def _picked(self, value: str) -> None:
        self._input.value = value

    def _show(self, value: object) -> None:
        self._input.value = str(value)

    def given(self) -> object:
        """Return the text."""
        return str(self._input.value)


class ListField(Field):
    """Any number of values, one a row."""

    def _control(self) -> Any:
        self._rows: list[tuple[Any, Any]] = []
        self._box = ipywidgets.VBox([])
        self._pick = _picker(self._add_picked)
        self._add_button = _small_button("+ Add", f"Add a value to {self.parameter.name}", self._on_add)
        name = ipywidgets.HTML(fill(_NAME, name=self.parameter.name))
        below = ipywidgets.HBox([self._add_button, self._pick])
        below.add_class("vmsnix-pickable")
        box = ipywidgets.VBox([name, self._box, below])
        box.add_class("vmsnix-rows")
        return box

    def _on_add(self, _button: object) -> None:
        self._add("")
        self._rows[-1][0].focus()
        self._tell()

    def _add_picked(self, value: str) -> None:
        if value not in [text.value for text, _row in self._rows]:
            self._add(value)
            self._tell()

    def _add(self, value: object) -> None:
        text = ipywidgets.Text(value=str(value), continuous_update=True)
        text.observe(self._tell, "value")
        row = self._removable(text)
        self._rows.append((text, row))
        self._arrange()

    def _removable(self, *widgets: Any) -> Any:
        def remove(_button: object) -> None:
            self._rows = [entry for entry in self._rows if entry[1] is not row]
            self._arrange()
            self._tell()

        row = ipywidgets.HBox([*widgets, _small_button("✕", "Remove this row", remove)])
        row.add_class("vmsnix-row")
        return row

    def _arrange(self) -> None:
        self._box.children = [row for _entry, row in self._rows]

    def _show(self, value: object) -> None:
        self._rows = []
        self._arrange()
        for item in value if isinstance(value, list) else []:
            self._add(item)

    def _first(self) -> Any:
        return self._rows[0][0] if self._rows else self._add_button

    def given(self) -> object:
        """Return the values; rows that were left empty are none."""
        return [text.value for text, _row in self._rows if text.value.strip()]


class MappingField(ListField):
    """Names and values, a pair a row."""

    def _add(self, value: object) -> None:
        name, text = value if isinstance(value, tuple) else ("", value)
        key = ipywidgets.Text(value=str(name), placeholder="name", continuous_update=True)
        content = ipywidgets.Text(value=str(text), placeholder="value", continuous_update=True)
        for part in (key, content):
            part.observe(self._tell, "value")
        pair = ipywidgets.HBox([key, content])
        pair.add_class("vmsnix-pair")
        self._rows.append((key, self._removable(pair)))
        self._arrange()

    def _show(self, value: object) -> None:
        self._rows = []
        self._arrange()
        for pair in value.items() if isinstance(value, dict) else []:
            self._add(pair)

    def given(self) -> object:
        """Return the mapping; rows that were left empty are none.

        Raises
        ------
        ParameterError
            For a value without a name, and for a name given twice.
        """
        found: dict[str, str] = {}
        for key, row in self._rows:
            name, value = key.value.strip(), row.children[0].children[1].value
            if not name and not value:
                continue
            if not name or name in found:
                what = (
                    f"The name {name!r} is given twice."
                    if name
                    else (f"No name given for the value {value!r}.")
                )
                raise ParameterError(f"{self.parameter.name}: {what}", fix="Give each value one name.")
            found[name] = value
        return found


def _picker(picked: Callable[[str], None]) -> Any:
    """Return a list of suggestions that shows its arrow only; picking fills something and closes it."""
    pick = ipywidgets.Dropdown(options=[(PICK, "")], tooltip="Suggestions")
    pick.add_class("vmsnix-pick")
    pick.layout.display = "none"

    def on_pick(change: Any) -> None:
        if change["new"]:
            picked(change["new"])
            pick.value = ""

    pick.observe(on_pick, "value")
    return pick


def _offer(pick: Any, suggestions: Sequence[Suggestion]) -> None:
    pick.options = [(PICK, ""), *((each.label or each.value, each.value) for each in suggestions)]
    pick.layout.display = "" if suggestions else "none"


def _small_button(text: str, tooltip: str, pressed: Callable[[Any], None]) -> Any:
    button = ipywidgets.Button(description=text, tooltip=tooltip)
    button.add_class("vmsnix-small")
    button.on_click(pressed)
    return button


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


DRY_RUN = "dry_run"
CLOSED = frozenset({"regions"})
"""Sources that know every value there is: another one is told while it is typed."""


class Form:
    """The fields of one runbook.

    Parameters
    ----------
    runbook
        Whose form it is.
    changed
        Called after every change.

    Attributes
    ----------
    widget
        The form as it is shown.
    problems
        Parameter to what is wrong with it, as of the last check.
    """

    def __init__(self, runbook: Runbook, changed: Callable[[], None]) -> None:
        self.runbook = runbook
        self._changed = changed
        self.problems: dict[str, str] = {}
        self._values: dict[str, object] = {}
        self._known: dict[str, frozenset[str]] = {}
        self.fields = {
            parameter.name: make_field(parameter, self._on_change) for parameter in runbook.parameters
        }
        self.widget = ipywidgets.Box([field.widget for field in self.fields.values()])
        self.widget.add_class("vmsnix-form")
        self.check()

    def check(self) -> None:
        """Check every field as the command line would, and show what is wrong."""
        problems: dict[str, str] = {}
        values: dict[str, object] = {}
        for name, field in self.fields.items():
            try:
                values |= parameters.check(self.runbook, {name: field.given()})
            except ParameterError as error:
                problems[name] = _sentence(error, name)
                field.complain(problems[name])
            else:
                field.complain(self._doubt(name, values[name]), warning=True)
        # At once: a thread with suggestions checks, too, and nobody shall see half of the values.
        self.problems, self._values = problems, values

    def values(self) -> dict[str, object]:
        """Return what a run would be given: what is not the runbook's own default."""
        return {
            name: value
            for name, value in self._values.items()
            if value != self.fields[name].parameter.default
        }

    def value(self, name: str) -> object:
        """Return the value of one parameter, ``None`` while it is wrong or where there is no such one."""
        return self._values.get(name)

    def fill(self, values: Mapping[str, object]) -> None:
        """Show these values; what they do not name gets its default.

        ``regions`` fills ``region`` where the runbook has that alone, and the other way round. Several values
        for one are shown as they are: the check refuses them with the reason.
        """
        values = dict(values)
        for other, name in parameters.other_names(self.runbook).items():
            if other in values:
                value = values.pop(other)
                try:
                    values.setdefault(name, parameters.check(self.runbook, {other: value})[name])
                except ParameterError:
                    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
                    values.setdefault(name, shown)
        for name, field in self.fields.items():
            field.fill(values.get(name, field.parameter.default))
        self._on_change()

    def suggest(self, name: str, source: str, suggestions: Sequence[Suggestion], problem: str = "") -> None:
        """Offer values for a parameter, or say why there are none to offer."""
        self.fields[name].suggest(suggestions, problem)
        if source in CLOSED:
            self._known[name] = frozenset(each.value for each in suggestions)
            self.check()

    def focus_problem(self) -> None:
        """Put the cursor into the first field that is wrong."""
        if self.problems:
            self.fields[next(iter(self.problems))].focus()

    @property
    def has_dry_run(self) -> bool:
        """Whether the runbook can be asked to look and tell only."""
        return DRY_RUN in self.fields

    @property
    def destroys(self) -> bool:
        """Whether a run with these values takes something away."""
        return self.runbook.side_effects == "destroys" and self.value(DRY_RUN) is not True

    def _on_change(self) -> None:
        self.check()
        self._changed()

    def _doubt(self, name: str, value: object) -> str:
        known = self._known.get(name)
        if not known:
            return ""
        words = [str(word) for word in (value if isinstance(value, list) else [value]) if word]
        strange = next((word for word in words if word not in known and word != "all"), None)
        if strange is None:
            return ""
        return f"Unknown or disabled region {strange!r}. {nearest(strange, known)}".strip()


def command_line(runbook: Runbook, values: Mapping[str, object], *, sandbox: bool) -> str:
    """Return the words that do the same in a shell."""
    words = ["vmsnix", runbook.short_name]
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [f"{option}={item}" for item in value] or [f"{option}=[]"]
        elif isinstance(value, dict):
            words += [f"{option}={key}={item}" for key, item in value.items()] or [f"{option}={{}}"]
        else:
            words.append(f"{option}={'none' if value is None else value}")
    return shlex.join([*words, "--sandbox"] if sandbox else words)


def plan_html(form: Form, *, place: str, command: str) -> Markup:
    """Return what a run would do, in words and as parameters.

    Parameters
    ----------
    form
        Checked.
    place
        Where, in words.
    command
        The same as a command line.
    """
    return fill(
        _PLAN,
        runbook=form.runbook,
        dry=form.value(DRY_RUN) is True,
        given=[(name, _plain(value)) for name, value in form.values().items()],
        place=place,
        command=command,
    )


_PLAN = """\
<div class="vmsnix-plan">
<p><b>{{ runbook.name }}</b>
{% if dry %}
shows the plan and changes nothing (dry_run)
{% elif runbook.side_effects == "read_only" %}
is read-only
{% elif runbook.side_effects == "creates" %}
<b>creates</b> resources
{% else %}
<b>destroys</b> the resources in its plan
{% endif %}
{{ place }}</p>
{% for name, value in given %}
{% if loop.first %}<table>{% endif %}
<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>
{% if loop.last %}</table>{% endif %}
{% else %}
<p>All parameters have their defaults.</p>
{% endfor %}
<details><summary>As a shell command</summary><pre>{{ command }}</pre></details>
</div>
"""


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "(none)"
    return str(value) if value not in ("", None) else "(empty)"


def _sentence(error: ParameterError, name: str) -> str:
    """Return the error without what stands beside the field anyway: its name and its declaration."""
    what = error.what.removeprefix(f"{name}: ")
    return " ".join(part for part in (what[:1].upper() + what[1:], error.why) if part)
