"""The form of a runbook, made from its parameters cell, checked while it is filled in."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import ipywidgets

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.runbooks import parameters
from vmsnix_ops.runbooks.console.fields import make_field
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.console.fields import Suggestion

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
        """Show these values; what they do not name gets its default."""
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
        return f"{strange!r} is not a region that is enabled here. {nearest(strange, known)}".strip()


def command_line(runbook: Runbook, values: Mapping[str, object], *, sandbox: bool) -> str:
    """Return the words that do the same in a shell."""
    words = ["vmsnix", "run", runbook.name]
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


def plan_html(form: Form, *, place: str, command: str) -> str:
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
    given = form.values()
    rows = "".join(
        f"<tr><th>{html(name)}</th><td><code>{html(_plain(value))}</code></td></tr>"
        for name, value in given.items()
    )
    table = f"<table>{rows}</table>" if rows else "<p>Every parameter has its default.</p>"
    return (
        f'<div class="vmsnix-plan"><p>{_deed(form)} {html(place)}</p>{table}'
        f"<details><summary>The same in a shell</summary><pre>{html(command)}</pre></details></div>"
    )


def _deed(form: Form) -> str:
    name = f"<b>{html(form.runbook.name)}</b>"
    if form.value(DRY_RUN) is True:
        return f"{name} looks and tells, and changes nothing (dry_run),"
    deeds = {
        "read_only": f"{name} looks, and changes nothing,",
        "creates": f"{name} <b>creates</b> what is missing",
        "destroys": f"{name} <b>destroys</b> what its plan lists",
    }
    return deeds[form.runbook.side_effects]


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
