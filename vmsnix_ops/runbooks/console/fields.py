"""One field of a form for one parameter: the widget that fits its type, its help, and what is wrong with it.

A field hands out what was typed; `parameters.check`, which the command line uses, too, decides what that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmsnix_ops.runbooks.declarations import Parameter

PICK = "▾"


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
        self._help_html = f'<span class="vmsnix-help">{_marked(parameter.help)}</span>'
        self._help = ipywidgets.HTML(self._help_html)
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
        self._problem.value = f'<span class="{kind}" role="alert">{html(problem)}</span>' if problem else ""
        (self.widget.add_class if problem and not warning else self.widget.remove_class)("vmsnix-wrong")

    def focus(self) -> None:
        """Put the cursor here."""
        self._first().focus()

    def suggest(self, suggestions: Sequence[Suggestion], problem: str = "") -> None:
        """Offer values, or say why there are none to offer; fields with choices of their own need none."""
        if self._pick is not None:
            _offer(self._pick, suggestions)
            words = f'<span class="vmsnix-help">{html(problem)}</span>'
            self._help.value = self._help_html + (words if problem else "")

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
        name = ipywidgets.HTML(f'<span class="vmsnix-name">{html(self.parameter.name)}</span>')
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
                what = f"The name {name!r} is given twice." if name else f"The value {value!r} has no name."
                raise ParameterError(f"{self.parameter.name}: {what}", cure="Give every value one name.")
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


def _marked(text: str) -> str:
    return html(text[:1].upper() + text[1:])


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
