"""The form of a runbook, made from its parameters cell. Each input is checked while it is typed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.runbooks import parameters, value_checks
from vmsnix_ops.runbooks.console.suggestions import USED, source_of
from vmsnix_ops.runbooks.console.widgets import button, row, stack, styled, with_hidden_label
from vmsnix_ops.runbooks.execution.side_effects import allowed_effects
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from markupsafe import Markup

    from vmsnix_ops.errors import VmsnixError
    from vmsnix_ops.runbooks.catalog import Runbook, SideEffects
    from vmsnix_ops.runbooks.console.suggestions import Suggestion
    from vmsnix_ops.runbooks.declarations import Parameter

PICK = "▾"
DRY_RUN = "dry_run"
EXPECT_PLAN, CONFIRM = "expect_plan", "confirm"
"""Parameters that have no field: a button applies a plan, and the typed confirmation confirms a run."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Image": ("system", "boot_mode", "root_device", "prefix", "tags"),
    "Upload": ("role_name", "incremental", "cloudformation"),
    "Tests": ("verify", "boot_test", "boot_expect", "expect", "deadline", "accelerator", "fail_on_drift"),
    "Machine": ("user_data", "public_key", "instance_type", "spot", "subnet", "pattern"),
    "Sharing and encryption": (
        *("kms_key", "kms_keys", "share_with", "revoke_from", "public", "confirm_public"),
        *("allow_shared", "known_accounts"),
    ),
    "Retention": (
        *("keep_last", "min_age_days", "launched_days", "retention_days", "orphan_days", "orphans"),
        *("max_count", "old_days"),
    ),
    "More": (
        *("best_effort", "deprecate_days", "protect", "unprotect", "topic", "identity", "result"),
        *("sample_blocks", "yes", "buckets", "one_by_one", "deadline_minutes", "packages", "fail_on"),
        *("scheduler", "workers", "ledger", "fresh"),
    ),
}
"""Parameters that are folded, by the title of their group. All others, also of own runbooks, are shown."""
_DEFAULT = re.compile(r"\s*\[default: (.*?)\]")

_HELP = """\
<span class="vmsnix-help">{{ text }}</span>
{%- if problem %}<span class="vmsnix-help">{{ problem }}</span>{% endif %}
"""
_PROBLEM = '<span class="{{ kind }}" role="alert">{{ problem }}</span>'
_UNSET = '<span class="vmsnix-quiet">{{ text }}</span>'
_NAME = '<span class="vmsnix-name">{{ name }}</span>'


def make_field(parameter: Parameter, changed: Callable[[], None]) -> Field:
    """Return a field for a parameter; `changed` is called after every change."""
    kind = parameter.type
    if kind.kind == "bool" and not kind.optional:
        return CheckboxField(parameter, changed)
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
    """Base class of the fields: a widget for a parameter, its help, and its problem.

    A field returns the input; `parameters.check`, which the command line also uses, converts it.
    """

    def __init__(self, parameter: Parameter, changed: Callable[[], None]) -> None:
        self.parameter = parameter
        self._changed = changed
        self._filling = False
        self._pick: Any = None
        self._help = ipywidgets.HTML("")
        self._unavailable = ""
        self._problem = ipywidgets.HTML("")
        self.widget = stack("vmsnix-field", self._control(), self._help, self._problem)
        self.widget.add_class(f"vmsnix-field-{parameter.name}")
        self.show_help({})
        self.fill(parameter.default)

    def value(self) -> object:
        """Return the input, for `parameters.check`; a ParameterError if it is incomplete."""
        return self._input.value

    def fill(self, value: object) -> None:
        """Fill in a value without calling `changed`."""
        self._filling = True
        try:
            self._set("" if value is None else value)
        finally:
            self._filling = False

    def show_help(self, defaults: Mapping[str, str]) -> None:
        """Show the help, with the default in use; see `parameters.defaults_in_use`."""
        unknown = value_checks.DEFAULT_FROM_SETTINGS.search(self.parameter.help)
        text = parameters.with_default(self.parameter.name, self.parameter.help, defaults)
        found = _DEFAULT.search(text)
        default = found[1] if found else ""
        if unknown and unknown[0] in text:
            default = default.replace("from ", "not set in ", 1)
        text = _DEFAULT.sub("", text, count=1)
        self._help_text = text[:1].upper() + text[1:]
        self._help.value = fill(_HELP, text=self._help_text, problem=self._unavailable)
        self._show_default(default)

    @property
    def changed(self) -> bool:
        """Whether the value is not the default."""
        try:
            value = self.value()
        except ParameterError:
            return True
        return value != self.parameter.default and not (self.parameter.default is None and value == "")

    def show_problem(self, problem: str, *, warning: bool = False) -> None:
        """Show a problem, or remove it."""
        kind = "vmsnix-warning" if warning else "vmsnix-error"
        self._problem.value = fill(_PROBLEM, kind=kind, problem=problem) if problem else ""
        (self.widget.add_class if problem and not warning else self.widget.remove_class)("vmsnix-wrong")

    def focus(self) -> None:
        """Move the cursor into the field."""
        self._first_input().focus()

    def suggest(self, suggestions: Sequence[Suggestion], problem: str = "") -> None:
        """Show suggestions, or why there are none; fields with fixed choices ignore them."""
        if self._pick is not None:
            self._pick.options = [
                (PICK, ""),
                *((each.label or each.value, each.value) for each in suggestions),
            ]
            self._pick.layout.display = "" if suggestions else "none"
            self._unavailable = problem
            self._help.value = fill(_HELP, text=self._help_text, problem=problem)

    def _control(self) -> Any:
        raise NotImplementedError

    def _show_default(self, text: str) -> None:
        """Show the value that is used without an input; a field that always has a value shows that."""

    def _set(self, value: object) -> None:
        self._input.value = value

    def _first_input(self) -> Any:
        return self._input

    def _observe(self, control: Any) -> Any:
        """Make a control the only input of the field."""
        self._input = control
        control.observe(self._on_input, "value")
        return control

    def _on_input(self, _change: object = None) -> None:
        if not self._filling:
            self._changed()

    _input: Any


class CheckboxField(Field):
    """A checkbox for yes or no."""

    def _control(self) -> Any:
        return self._observe(ipywidgets.Checkbox(description=self.parameter.name, indent=False))

    def _set(self, value: object) -> None:
        self._input.value = bool(value)


class ChoiceField(Field):
    """A list of choices."""

    def _control(self) -> Any:
        options = self._options("default")
        return self._observe(ipywidgets.Dropdown(description=self.parameter.name, options=options))

    def _options(self, default_text: str) -> list[tuple[str, object]]:
        parameter = self.parameter
        values: tuple[object, ...] = (True, False) if parameter.type.kind == "bool" else parameter.choices
        labels: dict[object, str] = {True: "yes", False: "no"} if parameter.type.kind == "bool" else {}
        options = [(labels.get(value, str(value)), value) for value in values if value != ""]
        if parameter.default not in [value for _label, value in options]:
            options.insert(0, (default_text, parameter.default))
        return options

    def _show_default(self, text: str) -> None:
        self._filling, before = True, self._input.value
        self._input.options = self._options(text or "default")
        self._input.value = before
        self._filling = False

    def _set(self, value: object) -> None:
        known = [option for _label, option in self._input.options]
        wanted = self.parameter.default if value == "" else value
        self._input.value = wanted if wanted in known else self.parameter.default


class NumberField(Field):
    """A number."""

    def _control(self) -> Any:
        make = ipywidgets.IntText if self.parameter.type.kind == "int" else ipywidgets.FloatText
        return self._observe(make(description=self.parameter.name, continuous_update=True))


class TextField(Field):
    """A line of text, with a list of suggestions beside it, if there are any."""

    def _control(self) -> Any:
        text = self._observe(ipywidgets.Text(description=self.parameter.name, continuous_update=True))
        self._pick = _picker(self._set)
        return row("vmsnix-pickable", text, self._pick)

    def _show_default(self, text: str) -> None:
        self._input.placeholder = text

    def _set(self, value: object) -> None:
        self._input.value = str(value)


class ListField(Field):
    """A list of values, each in a row."""

    def _control(self) -> Any:
        self._rows: list[tuple[Any, Any]] = []
        self._box = ipywidgets.VBox([])
        self._pick = _picker(self._on_pick)
        self._add_button = _small_button("+ Add", f"Add a value to {self.parameter.name}", self._on_add)
        name = ipywidgets.HTML(fill(_NAME, name=self.parameter.name))
        below = row("vmsnix-pickable", self._add_button, self._pick)
        self._unset = ipywidgets.HTML("")
        return stack("vmsnix-rows", name, self._unset, self._box, below)

    def _on_add(self) -> None:
        self._add("")
        self._rows[-1][0].focus()
        self._on_input()

    def _on_pick(self, value: str) -> None:
        if value not in [text.value for text, _row in self._rows]:
            self._add(value)
            self._on_input()

    def _add(self, value: object) -> None:
        text = ipywidgets.Text(value=str(value), continuous_update=True)
        with_hidden_label(text, self.parameter.name)
        text.observe(self._on_input, "value")
        self._append_row(text, text)

    def _append_row(self, first: Any, content: Any) -> None:
        def remove() -> None:
            self._set_rows([entry for entry in self._rows if entry[1] is not whole])
            self._on_input()

        whole = row("vmsnix-row", content, _small_button("✕", "Remove this row", remove))
        self._set_rows([*self._rows, (first, whole)])

    def _set_rows(self, rows: list[tuple[Any, Any]]) -> None:
        self._rows = rows
        self._unset.layout.display = "none" if rows else ""
        self._box.children = [row for _first, row in rows]

    def _show_default(self, text: str) -> None:
        self._unset.value = fill(_UNSET, text=text or "none")

    def _set(self, value: Any) -> None:
        self._set_rows([])
        for item in value.items() if isinstance(value, dict) else value or []:
            self._add(item)

    def _first_input(self) -> Any:
        return self._rows[0][0] if self._rows else self._add_button

    def value(self) -> object:
        """Return the values of all rows that are not empty."""
        return [text.value for text, _row in self._rows if text.value.strip()]


class MappingField(ListField):
    """A mapping, each name and value in a row."""

    def _add(self, value: object) -> None:
        name, text = value if isinstance(value, tuple) else ("", value)
        key = ipywidgets.Text(value=str(name), placeholder="name", continuous_update=True)
        content = ipywidgets.Text(value=str(text), placeholder="value", continuous_update=True)
        for part, label in ((key, "name"), (content, "value")):
            with_hidden_label(part, f"{self.parameter.name}: {label}")
            part.observe(self._on_input, "value")
        self._append_row(key, row("vmsnix-pair", key, content))

    def value(self) -> object:
        """Return the names and values of all rows that are not empty.

        A value without a name, and a name that is given twice, are a `ParameterError`.
        """
        found: dict[str, str] = {}
        for key, pair in self._rows:
            name, value = key.value.strip(), pair.children[0].children[1].value
            if not name and not value:
                continue
            if not name or name in found:
                missing = f"No name given for the value {value!r}."
                what = f"The name {name!r} is given twice." if name else missing
                raise ParameterError(f"{self.parameter.name}: {what}", fix="Give each value one name.")
            found[name] = value
        return found


def _picker(picked: Callable[[str], None]) -> Any:
    """Return a list of suggestions that shows only an arrow; `picked` is called with the selected value."""
    pick = styled(ipywidgets.Dropdown(options=[(PICK, "")], tooltip="Suggestions"), "vmsnix-pick")
    with_hidden_label(pick, "Suggestions")
    pick.layout.display = "none"

    def on_pick(change: Any) -> None:
        if change["new"]:
            picked(change["new"])
            pick.value = ""

    pick.observe(on_pick, "value")
    return pick


def _small_button(text: str, tooltip: str, pressed: Callable[[], None]) -> Any:
    return styled(button(text, pressed, tooltip), "vmsnix-small")


def _field_box(fields: Mapping[str, Field]) -> Any:
    return styled(ipywidgets.Box([field.widget for field in fields.values()]), "vmsnix-fields")


class Group:
    """A group of fields, which is folded until a person opens it or one of its values is shown."""

    def __init__(self, title: str, fields: Mapping[str, Field]) -> None:
        self._title, self.fields = title, fields
        self._toggle = styled(ipywidgets.ToggleButton(tooltip=", ".join(fields)), "vmsnix-fold")
        self._toggle.observe(self.draw, "value")
        self._box = _field_box(fields)
        self.widget = stack("vmsnix-group", self._toggle, self._box)
        self.draw()

    def draw(self, _change: object = None) -> None:
        """Show the fields or hide them, and the names of the changed ones."""
        opened, changed = self._toggle.value, [name for name, field in self.fields.items() if field.changed]
        about = f": {', '.join(changed)}" if changed and not opened else ""
        self._toggle.description = f"{'▾' if opened else '▸'} {self._title}{about}"
        self._box.layout.display = "" if opened else "none"

    def open(self, names: Iterable[str]) -> None:
        """Open the group if it has one of these fields."""
        if not self.fields.keys().isdisjoint(names):
            self._toggle.value = True


class Form:
    """The fields of a runbook; `changed` is called after every change."""

    def __init__(self, runbook: Runbook, changed: Callable[[], None]) -> None:
        self.runbook = runbook
        self._changed = changed
        self.problems: dict[str, str] = {}  # of the last check, by parameter
        self._values: dict[str, object] = {}
        self._regions: frozenset[str] = frozenset()
        self.fields = {
            parameter.name: make_field(parameter, self._on_change)
            for parameter in runbook.parameters
            if parameter.name != EXPECT_PLAN
            and (parameter.name != CONFIRM or runbook.side_effects != "deletes")
        }
        self._suggestions: dict[tuple[str, str], Sequence[Suggestion]] = {}
        folded = {name: title for title, names in GROUPS.items() for name in names}
        groups: dict[str, dict[str, Field]] = {title: {} for title in ("", *GROUPS)}
        for name, field in self.fields.items():
            groups[folded.get(name, "")][name] = field
        basic = _field_box(groups.pop(""))
        self.groups = [Group(title, fields) for title, fields in groups.items() if fields]
        self.widget = stack("vmsnix-form", basic, *(group.widget for group in self.groups))
        self.check()

    def check(self) -> None:
        """Check every field as the command line would, and show the problems."""
        values: dict[str, object] = {}
        errors: dict[str, VmsnixError] = {}
        for name, field in self.fields.items():
            try:
                values |= parameters.check(self.runbook, {name: field.value()})
            except ParameterError as error:
                errors[name] = error
        changed = {
            name: value for name, value in values.items() if value != self.fields[name].parameter.default
        }
        errors |= value_checks.value_errors(self.runbook, changed)
        problems = {name: _without_name(error, name) for name, error in errors.items()}
        for name in problems:
            values.pop(name, None)
        for name, field in self.fields.items():
            is_region = name in values and source_of(field.parameter) == "regions"
            warning = self._unknown_region(values[name]) if is_region else ""
            field.show_problem(problems.get(name) or warning, warning=name not in problems)
        # In one step, because a thread with new suggestions also calls this method.
        self.problems, self._values = problems, values
        for group in self.groups:
            group.open(problems)
            group.draw()

    def values(self) -> dict[str, object]:
        """Return the parameters for a run: all values that are not the runbook's defaults."""
        return {
            name: value
            for name, value in self._values.items()
            if value != self.fields[name].parameter.default
        }

    def confirmed_values(self, account: str) -> dict[str, object]:
        """Return `values` for a run that was confirmed with the account, which a runbook may also take."""
        asks = any(parameter.name == CONFIRM for parameter in self.runbook.parameters)
        return self.values() | ({CONFIRM: account} if self.deletes and asks else {})

    def value(self, name: str) -> object:
        """Return the value of a parameter; ``None`` if it is invalid, or there is no such parameter."""
        return self._values.get(name)

    def fill(self, values: Mapping[str, object]) -> None:
        """Fill in values, and the defaults of all other parameters.

        ``regions`` fills ``region`` if the runbook only has that, and the other way round. Several values for
        a parameter that takes one are filled in unchanged: the check refuses them and shows the reason.
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
        for group in self.groups:
            group.open(name for name, field in group.fields.items() if field.changed)
        self._on_change()

    def show_help(self, defaults: Mapping[str, str]) -> None:
        """Show the help of all fields, with the defaults in use."""
        for field in self.fields.values():
            field.show_help(defaults)

    def suggest(self, name: str, source: str, suggestions: Sequence[Suggestion], problem: str = "") -> None:
        """Show the suggestions of a source for a parameter, below the values used before; or a problem."""
        self._suggestions[name, source] = suggestions
        shown: dict[str, Suggestion] = {}
        for (of, _), known in sorted(self._suggestions.items(), key=lambda item: item[0][1] != USED):
            shown |= {one.value: one for one in known if of == name and one.value not in shown}
        self.fields[name].suggest(list(shown.values()), problem)
        if source == "regions":
            self._regions = frozenset(each.value for each in suggestions)
            self.check()

    def focus_problem(self) -> None:
        """Move the cursor into the first field with a problem."""
        if self.problems:
            self.fields[next(iter(self.problems))].focus()

    @property
    def has_dry_run(self) -> bool:
        """Whether the runbook has a dry run."""
        return DRY_RUN in self.fields

    @property
    def effect(self) -> SideEffects:
        """What a run with these values may do."""
        return allowed_effects(self.runbook.side_effects, self._values)

    @property
    def deletes(self) -> bool:
        """Whether a run with these values deletes or disables resources."""
        return self.runbook.side_effects == "deletes" and self.value(DRY_RUN) is not True

    def _on_change(self) -> None:
        self.check()
        self._changed()

    def _unknown_region(self, value: object) -> str:
        """Return a warning for the first region that is not enabled for the account."""
        for region in map(str, value if isinstance(value, list) else [value]):
            if self._regions and region not in self._regions and region not in ("", "all"):
                return f"Unknown or disabled region {region!r}. {nearest(region, self._regions)}".strip()
        return ""


def plan_html(form: Form, *, backend: str, command: str) -> Markup:
    """Return the effect and the parameters of a run, the backend (in words) and the shell command."""
    return fill(
        _PLAN,
        runbook=form.runbook,
        dry=form.value(DRY_RUN) is True,
        given=[(name, _value_text(value)) for name, value in form.values().items()],
        backend=backend,
        command=command,
    )


_PLAN = """\
<div class="vmsnix-plan">
<p><b>{{ runbook.name }}</b>
{% if dry %}
shows the plan and changes nothing (dry_run)
{% elif runbook.side_effects == "read_only" %}
is read-only
{% elif runbook.side_effects == "deletes" %}
<b>deletes</b> the resources in its plan
{% else %}
<b>{{ runbook.side_effects }}</b> resources
{% endif %}
{{ backend }}</p>
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


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "(none)"
    return str(value) if value not in ("", None) else "(none)"


def _without_name(error: VmsnixError, name: str) -> str:
    """Return the text of an error without the name and the declaration, which the form shows anyway."""
    what = error.what.removeprefix(f"{name}: ")
    return " ".join(part for part in (what[:1].upper() + what[1:], error.why) if part)
