"""Convert the parameters of a runbook to their declared types, and refuse invalid ones.

papermill only warns about a misspelled name, passes ``false`` as text (which is true), and reads an account
ID as a number. Here the parameters cell of the notebook decides, and an invalid value stops the run before
it starts.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ParameterError, SettingsError, UsageError, nearest
from vmsnix_ops.redaction import find_secret
from vmsnix_ops.runbooks import value_checks
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vmsnix_ops.errors import VmsnixError
    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter, Type

TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})
NONE = frozenset({"", "none", "null"})

PLURALS = {"account": "accounts", "ami": "amis", "bucket": "buckets", "image": "images", "region": "regions"}
"""The name of a parameter for one value, and the name of the parameter for several."""


class _InvalidValueError(ValueError):
    """A value is invalid; `convert` turns this into a ParameterError."""


def check(runbook: Runbook, given: Mapping[str, object]) -> dict[str, object]:
    """Return the given parameters, converted to their declared types.

    Text is parsed by the declared type; any other value must already have that type. A runbook that only has
    ``region`` also accepts ``regions`` with one value, and the other way round; the same is true for the
    other names in `PLURALS`.

    One `ParameterError` lists all mistakes: unknown names, invalid values, several values for a parameter
    that takes one, a parameter that is given twice, and secrets (parameters are saved in the executed
    notebook).
    """
    checked, wrong = collect(runbook, given)
    if wrong:
        raise all_in_one(runbook, list(wrong.values()))
    return checked


def collect(
    runbook: Runbook, given: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, ParameterError]]:
    """Return the converted parameters, and the error of each other one, as `check` would raise it."""
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    others = other_names(runbook)
    checked: dict[str, object] = {}
    wrong: dict[str, ParameterError] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        known = name if name in declared else name.replace("-", "_")
        target = others.get(known, known)
        if target not in declared:
            wrong[name] = ParameterError(
                f"{runbook.name} has no parameter {name!r}.",
                why=nearest(known, declared) or f"It has {', '.join(declared)}.",
                fix=f"Run vmsnix help {runbook.short_name} to list them.",
            )
            continue
        if target in names:
            wrong[target] = ParameterError(
                f"The parameter {target!r} is given twice.",
                why=f"Once as {names[target]} and once as {name}.",
                fix="Use one of them.",
            )
            continue
        names[target] = name
        try:
            _refuse_secret(declared[target], value)
            checked[target] = convert(declared[target], _one_or_many(runbook, declared[target], known, value))
        except ParameterError as error:
            wrong[target] = error
    return checked, wrong


def check_call(
    runbook: Runbook,
    given: Mapping[str, object],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    paths: bool = True,
    before: Sequence[VmsnixError] = (),
) -> dict[str, object]:
    """Return the given parameters as `check` does, after all checks that need neither kernel nor network.

    `environment` has the variables for the settings, and the run starts in `cwd`. With `paths`, the run is on
    this machine, so that its paths can be checked. The error lists the mistakes `before`, which the caller
    has found, first.

    One `ParameterError` lists all mistakes: those of `check`, values that their kind does not allow (an
    unknown region, a path that does not exist), and missing ones. It is a `SettingsError` if the only mistake
    is in ``vmsnix.toml`` or a variable.
    """
    variables = dict(os.environ if environment is None else environment)
    place = value_checks.CallPlace(Path.cwd() if cwd is None else cwd, variables, paths)
    checked, wrong = collect(runbook, given)
    unset = {one.name for one in runbook.parameters} - wrong.keys()
    mistakes = [*before, *wrong.values()]
    if runbook.own:  # nothing has checked its defaults
        for one in runbook.parameters:
            if one.name not in {*checked, *wrong} and one.default is not None:
                try:
                    convert(one, one.default)
                except ParameterError as error:
                    unset.discard(one.name)
                    mistakes.append(error)
    mistakes += value_checks.call_errors(runbook, checked, unset, place)
    if mistakes:
        raise all_in_one(runbook, mistakes)
    return checked


def all_in_one(runbook: Runbook, errors: Sequence[VmsnixError]) -> VmsnixError:
    """Return the only error, or one error that lists all of them."""
    listed = list(dict.fromkeys(" ".join(part for part in (one.what, one.why) if part) for one in errors))
    if len(listed) == 1:
        return errors[0]
    return ParameterError(
        f"The call of {runbook.name} has {len(listed)} mistakes; nothing was started.",
        why="\n" + "\n".join(f"- {text}" for text in listed) + "\n",
        fix=f"Correct them. To list the parameters, run vmsnix help {runbook.short_name}",
    )


def other_names(runbook: Runbook) -> dict[str, str]:
    """Return the names that are read as another parameter: ``regions`` if there is only ``region``."""
    kinds = {parameter.name: parameter.type.kind for parameter in runbook.parameters}
    found: dict[str, str] = {}
    for one, many in PLURALS.items():
        if kinds.get(one) == "str" and many not in kinds:
            found[many] = one
        elif kinds.get(many) == "list" and one not in kinds:
            found[one] = many
    return found


def hints(runbook: Runbook, given: Iterable[str]) -> list[str]:
    """Return a hint for each given name that is read as another parameter; see `other_names`."""
    others = other_names(runbook)
    found = []
    for name in given:
        if name in others:
            target = others[name]
            number = "one" if target in PLURALS else "several"
            found.append(
                f"Hint: {runbook.name} takes {number} {_noun(target)}, so {name} is read as {target}."
            )
    return found


def defaults_in_use(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the value and the origin of each setting, as help shows them: ``us-east-1, from vmsnix.toml``.

    Settings without a value are left out. If the settings are invalid, the result is empty, because help must
    work then too. The variables are by default those of ``os.environ``.
    """
    from vmsnix_ops import settings as settings_module

    environment = os.environ if environment is None else environment
    found: dict[str, str] = {}
    for variable in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        if environment.get(variable):
            found["region"] = f"{environment[variable]}, from {variable}"
    with suppress(SettingsError):
        settings = settings_module.load(environment=environment)
        sources = settings_module.sources(environment=environment)
        for name in settings_module.FIELDS:
            value = getattr(settings, name)
            if value not in (None, "", ()) and name not in settings_module.SECRETS:
                shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                found[name] = f"{shown}, from {sources[name]}" if name in sources else shown
    return found


def with_default(name: str, text: str, defaults: Mapping[str, str]) -> str:
    """Return the help of a parameter with the default in use, if its default is a setting.

    `defaults` are those of `defaults_in_use`.
    """
    setting = value_checks.setting_name(name)
    value = defaults.get(setting) or defaults.get(f"retire_{setting}")
    return (
        value_checks.DEFAULT_FROM_SETTINGS.sub(lambda _match: f"[default: {value}]", text) if value else text
    )


def _one_or_many(runbook: Runbook, parameter: Parameter, name: str, value: object) -> object:
    """Return one value for a parameter that takes one, and a list for a parameter that takes many.

    Of the parameters given under their own names, only ``region`` is split at commas: an image can be a file
    whose name contains one.
    """
    takes_one = parameter.name in PLURALS and parameter.type.kind == "str"
    if name == parameter.name:
        several = isinstance(value, list | tuple) and len(value) > 1
        if not takes_one or not (several or (name == "region" and isinstance(value, str))):
            return value
    try:
        items = list(dict.fromkeys(_split_items(value)))
    except _InvalidValueError as error:
        raise _invalid(parameter, value, error) from error
    if len(items) > 1:
        why = f"{len(items)} values given: {', '.join(map(str, items))}."
        if not takes_one:
            fix = f"Use --{parameter.name.replace('_', '-')} {','.join(map(str, items))}."
            raise ParameterError(f"{name} takes one {_noun(name)}.", why=why, fix=fix)
        many = PLURALS[parameter.name]
        fix = "Run it once for each, or use a fleet plan (`vmsnix help fleet`)."
        if any(other.name == many for other in runbook.parameters):
            fix = f"Use {parameter.name} for one, and {many} for the others."
        raise ParameterError(f"{runbook.name} takes one {_noun(parameter.name)}.", why=why, fix=fix)
    if takes_one and parameter.name == "region" and items == ["all"]:
        raise ParameterError(
            f"{runbook.name} takes one region.", why="'all' means every region.", fix="Use one region."
        )
    if takes_one:
        return items[0] if items else ""
    return items


def _split_items(value: object) -> list[object]:
    """Return the items of a list, of a JSON list, or of text with commas; any other value is one item."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _split_items(_json(text))
        return [word.strip() for word in text.split(",") if word.strip()]
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, list | tuple | dict) for item in items):
        raise _InvalidValueError("Use a name, or a list of names.")
    if items is value:
        return [item for part in items for item in (_split_items(part) if isinstance(part, str) else [part])]
    return [] if value is None else [value]


def _noun(name: str) -> str:
    return name.replace("ami", "AMI")


def validate(runbook: str, namespace: dict[str, Any], *, modified: bool = False) -> None:
    """Convert the parameters of a notebook; see `vmsnix_ops.arguments.check_parameters`."""
    from vmsnix_ops.runbooks import catalog

    if "IPython" in sys.modules:
        from vmsnix_ops.runbooks.execution import cards

        cards.attach()
    running = os.environ.get("VMSNIX_NOTEBOOK", "")
    own = os.environ.get("VMSNIX_RUNBOOK") == runbook and running != ""
    declared = catalog.of_notebook(Path(running)) if own else catalog.find(runbook)
    defaults = {parameter.name: parameter.default for parameter in declared.parameters}
    given = {name: namespace[name] for name in defaults if name in namespace}
    others = other_names(declared)
    cells = len(namespace.get("In") or ())
    if cells <= _CELLS_BEFORE:  # no later cell has set a variable with such a name
        given |= {name: namespace[name] for name in others if name in namespace}
    if cells == _CELLS_BEFORE:
        # papermill has just started the notebook: every other variable is a parameter with an unknown name.
        given |= {
            name: value
            for name, value in namespace.items()
            if isinstance(value, str | bool | int | float | list | dict)
            and not name.startswith("_")
            and name not in ("In", "Out")
        }
    for other, name in others.items():
        if other in given and given.get(name) == defaults[name]:
            given.pop(name, None)  # only the parameters cell has set it
    try:
        checked = check_call(declared, given)
    except UsageError:
        _record_refusal(declared, given)
        raise
    namespace.update(checked)
    values = {name: namespace.get(name, default) for name, default in defaults.items()}
    _start_run(declared, values, modified=modified)
    for hint in hints(declared, given):
        echo(hint, err=True)
    for other in others.keys() & given.keys():
        del namespace[other]


def _start_run(declared: Runbook, values: Mapping[str, object], *, modified: bool) -> None:
    """Start or continue the run of a kernel that the runner did not start."""
    if "IPython" not in sys.modules:
        return
    from vmsnix_ops.runbooks.execution import cards, interactive

    cards.show_head(values)
    run_id = interactive.begin(declared, values, modified=modified)
    if run_id:
        option = " --sandbox" if os.environ.get("VMSNIX_SANDBOX") else ""  # such as vmsnix lab --sandbox
        echo(f"Run {run_id}. vmsnix runs show{option} {run_id[-6:]} shows it.")


def _record_refusal(declared: Runbook, given: Mapping[str, object]) -> None:
    """Start the run of a program such as papermill, so that its result.json has the usage error.

    In JupyterLab, a person corrects the value, and nothing is archived.
    """
    if "IPython" not in sys.modules:
        return
    from vmsnix_ops.runbooks.execution import interactive

    if interactive.is_unattended():
        interactive.begin(declared, json.loads(json.dumps(dict(given), default=str)))


# IPython's empty first entry, the parameters, papermill's parameters, and the cell that checks them.
_CELLS_BEFORE = 4


def command_words(values: Mapping[str, object]) -> list[str]:
    """Return the options of a command line for these parameters."""
    words = []
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
    return words


def command_line(runbook: Runbook, values: Mapping[str, object], *, sandbox: bool, yes: bool = False) -> str:
    """Return the shell command for a run; with `yes`, it confirms that the run may delete."""
    words = ["vmsnix", runbook.short_name, *command_words(values), *(["--yes"] if yes else [])]
    return shlex.join([*words, "--sandbox"] if sandbox else words)


def split(pairs: Iterable[str]) -> dict[str, str]:
    """Return a dictionary of ``name=value`` pairs.

    A pair without ``=``, and a name that is given twice, are a `ParameterError`.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ParameterError(
                f"{pair!r} is not a parameter.", why="It has no '='.", fix="Use -p name=value."
            )
        if name in given:
            raise ParameterError(f"The parameter {name!r} is given twice.", fix="Use it once.")
        given[name] = value
    return given


def convert(parameter: Parameter, value: object) -> object:
    """Return a value, converted to the declared type of its parameter.

    An invalid value, and a secret, are a `ParameterError`.
    """
    _refuse_secret(parameter, value)
    try:
        return _convert(parameter.type, value)
    except _InvalidValueError as error:
        raise _invalid(parameter, value, error) from error


def _refuse_secret(parameter: Parameter, value: object) -> None:
    secret = find_secret(json.dumps(value, default=str))
    if secret:
        # The message does not contain the value, because it reaches logs.
        raise ParameterError(
            f"{parameter.name} contains a secret ({secret}).",
            why="Parameters are saved in the executed notebook, the report and the history.",
            fix="Pass it in the environment, or with AWS's own configuration.",
        )


def _invalid(parameter: Parameter, value: object, error: _InvalidValueError) -> ParameterError:
    return ParameterError(
        f"{parameter.name}: {value!r} is not {_describe(parameter.type)}.",
        why=str(error),
        fix=f"Give {parameter.name} as {parameter.type}; its default is {parameter.default!r}.",
    )


def _describe(kind: Type) -> str:
    if kind.choices:
        return f"one of {', '.join(str(choice) for choice in kind.choices if choice != '')}"
    return _CONVERTERS[kind.kind][1]


def _convert(kind: Type, value: object) -> object:
    if value is None or (kind.optional and isinstance(value, str) and value.strip().lower() in NONE):
        if not kind.optional:
            raise _InvalidValueError("A value is required.")
        return None
    converted = _CONVERTERS[kind.kind][0](kind, value)
    if kind.choices and converted not in kind.choices:
        hint = nearest(str(converted), [str(choice) for choice in kind.choices])
        raise _InvalidValueError(hint or "It is not one of the choices.")
    return converted


def _to_text(_kind: Type, value: object) -> str:
    if not isinstance(value, str):
        raise _InvalidValueError(
            f"It is of type {type(value).__name__}, and numbers lose leading zeros. With papermill, "
            "give it as text: -r NAME VALUE."
        )
    if "\0" in value:
        raise _InvalidValueError("It contains a NUL character.")
    return value


def _to_bool(_kind: Type, value: object) -> bool:
    if isinstance(value, bool):
        return value
    # papermill passes 1 and 0 as numbers.
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise _InvalidValueError("Use true or false (also yes, no, on, off, 1, 0).")


def _to_int(_kind: Type, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _InvalidValueError(f"It is of type {type(value).__name__}.")
    if isinstance(value, int):
        return value
    try:
        return int(value.strip(), 10)
    except ValueError:
        raise _InvalidValueError("Use digits.") from None


def _to_float(_kind: Type, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _InvalidValueError(f"It is of type {type(value).__name__}.")
    try:
        number = float(value)
    except ValueError:
        raise _InvalidValueError("Use a number such as 1.5.") from None
    except OverflowError:
        raise _InvalidValueError("It is too large.") from None
    if not math.isfinite(number):
        raise _InvalidValueError("It must be finite.")
    return number


def _to_list(kind: Type, value: object) -> list[object]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = _json(text)
        else:
            value = [word.strip() for word in text.split(",")] if text else []
    if isinstance(value, bool | int | float):  # papermill passes a list of one number as a number
        value = [value]
    if not isinstance(value, list | tuple):
        raise _InvalidValueError("Use items separated by commas, or a JSON list.")
    return [_item(kind, item, f"Item {number}") for number, item in enumerate(value, 1)]


def _to_dict(kind: Type, value: object) -> dict[str, object]:
    if isinstance(value, str):
        text = value.strip()
        value = _json(text) if text.startswith("{") else _pairs(text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _InvalidValueError("Use key=value pairs separated by commas, or a JSON object.")
    return {key: _item(kind, item, f"The value of {key!r}") for key, item in value.items()}


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split(",") if text else []:
        key, equals, item = word.partition("=")
        if not equals or not key.strip():
            raise _InvalidValueError(f"{word!r} is not key=value.")
        if key.strip() in found:
            raise _InvalidValueError(f"The key {key.strip()!r} is given twice.")
        found[key.strip()] = item.strip()
    return found


def _item(kind: Type, value: object, label: str) -> object:
    if kind.item is None:
        return value
    try:
        return _convert(kind.item, value)
    except ValueError as error:
        raise _InvalidValueError(
            f"{label} is {value!r}, which is not {_describe(kind.item)}. {error}"
        ) from error


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except ValueError as error:
        if isinstance(error, _InvalidValueError):
            raise
        raise _InvalidValueError(f"It is not JSON: {error}.") from error
    except RecursionError:
        raise _InvalidValueError("It is nested too deeply.") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; refuse a repeated key, of which JSON would keep only the last value."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _InvalidValueError(f"The key {key!r} is given twice.")
        found[key] = value
    return found


_CONVERTERS: dict[str, tuple[Callable[[Type, object], object], str]] = {
    "str": (_to_text, "text"),
    "bool": (_to_bool, "true or false"),
    "int": (_to_int, "a whole number"),
    "float": (_to_float, "a number"),
    "list": (_to_list, "a list"),
    "dict": (_to_dict, "a mapping"),
}
