"""Convert the parameters of a runbook to their declared types, or refuse them with the reason.

papermill only warns of a misspelled name, passes ``false`` as text, which is true, and reads an account id as
a number. Here the parameters cell of the notebook decides, and a value that does not fit ends the run before
it starts.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.runbooks.evidence.secrets import find_secret
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter, Type

__all__ = ["settle"]


def __dir__() -> list[str]:
    return __all__


TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})
NONE = frozenset({"", "none", "null"})


PLURALS = {"account": "accounts", "ami": "amis", "bucket": "buckets", "image": "images", "region": "regions"}
"""What a runbook takes one or many of, as the parameter of one and the parameter of many are called."""


class _UnfitError(ValueError):
    """A value does not fit; `convert` makes one ParameterError of it."""


def check(runbook: Runbook, given: Mapping[str, object]) -> dict[str, object]:
    """Return the given parameters as the runbook declares them; those not given keep the notebook's default.

    Parameters
    ----------
    runbook
        Whose parameters they are.
    given
        Name to value. Text is parsed by the declared type; any other value must already be of it.

    ``regions`` is accepted where a runbook has ``region`` alone, and the other way round, with one value;
    the same holds for the other names of `PLURALS`.

    Raises
    ------
    ParameterError
        For a name that the runbook does not declare, a value that does not fit its type, several values where
        a runbook takes one, a parameter that is given twice, and a value that is a secret, because parameters
        are kept in the executed notebook.
    """
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    others = other_names(runbook)
    checked: dict[str, object] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        known = name if name in declared else name.replace("-", "_")
        target = others.get(known, known)
        if target not in declared:
            raise ParameterError(
                f"{runbook.name} has no parameter {name!r}.",
                why=nearest(known, declared) or f"It has {', '.join(declared)}.",
                fix=f"Run vmsnix help {runbook.short_name} to list them.",
            )
        if target in checked:
            raise ParameterError(
                f"The parameter {target!r} is given twice.",
                why=f"Once as {names[target]} and once as {name}.",
                fix="Use one of them.",
            )
        _refuse_secret(declared[target], value)
        checked[target] = convert(declared[target], _counted(runbook, declared[target], known, value))
        names[target] = name
    return checked


def other_names(runbook: Runbook) -> dict[str, str]:
    """Return the names that are read as another parameter: ``regions`` where there is ``region`` alone."""
    kinds = {parameter.name: parameter.type.kind for parameter in runbook.parameters}
    found: dict[str, str] = {}
    for one, many in PLURALS.items():
        if kinds.get(one) == "str" and many not in kinds:
            found[many] = one
        elif kinds.get(many) == "list" and one not in kinds:
            found[one] = many
    return found


def hints(runbook: Runbook, given: Iterable[str]) -> list[str]:
    """Return a sentence for each given name that is read as another parameter; see `other_names`."""
    others = other_names(runbook)
    found = []
    for name in given:
        if name in others:
            target = others[name]
            taken = f"one {_noun(target)}" if target in PLURALS else f"several {_noun(target)}"
            found.append(f"Hint: {runbook.name} takes {taken}, so {name} is read as {target}.")
    return found


def _counted(runbook: Runbook, parameter: Parameter, name: str, value: object) -> object:
    """Return a value for one where a runbook takes one, and for many where it takes many.

    Only a region is searched for commas under its own name: an image can be a file whose name has one.
    """
    takes_one = parameter.name in PLURALS and parameter.type.kind == "str"
    if name == parameter.name:
        several = isinstance(value, list | tuple) and len(value) > 1
        if not takes_one or not (several or (name == "region" and isinstance(value, str))):
            return value
    try:
        items = list(dict.fromkeys(_split_items(value)))
    except _UnfitError as error:
        raise _unfit(parameter, value, error) from error
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
    """Return the items of a list, of a JSON list, or of text with commas between; any other value is one."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _split_items(_json(text))
        return [word.strip() for word in text.split(",") if word.strip()]
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, list | tuple | dict) for item in items):
        raise _UnfitError("Use a name, or a list of names.")
    if items is value:
        return [item for part in items for item in (_split_items(part) if isinstance(part, str) else [part])]
    return [] if value is None else [value]


def _noun(name: str) -> str:
    return name.replace("ami", "AMI")


def settle(runbook: str, namespace: dict[str, Any]) -> None:
    """Convert a notebook's parameters to their declared types, or refuse them; its first call.

    papermill passes a parameter as what it takes it for: ``false`` is a text, which is true, and an account
    id is a number without its leading zero. It only warns of a name that the notebook does not have.

    Parameters
    ----------
    runbook
        Name of the runbook.
    namespace
        Variables of the notebook, ``globals()``; the converted values replace the given ones.

    Raises
    ------
    ParameterError
        For a value that does not fit its type, and for a name that the runbook does not declare.
    """
    from vmsnix_ops.runbooks import catalog

    declared = catalog.find(runbook)
    defaults = {parameter.name: parameter.default for parameter in declared.parameters}
    given = {name: namespace[name] for name in defaults if name in namespace}
    others = other_names(declared)
    cells = len(namespace.get("In") or ())
    if cells <= _CELLS_BEFORE:  # no later cell has set a variable of such a name
        given |= {name: namespace[name] for name in others if name in namespace}
    if cells == _CELLS_BEFORE:
        # Fresh from papermill: whatever else is there came from a parameter that the notebook does not have.
        given |= {
            name: value
            for name, value in namespace.items()
            if isinstance(value, str | bool | int | float | list | dict)
            and not name.startswith("_")
            and name not in ("In", "Out")
        }
    for other, name in others.items():
        if other in given and given.get(name) == defaults[name]:
            given.pop(name, None)  # the parameters cell set it, and nobody else
    namespace.update(check(declared, given))
    for hint in hints(declared, given):
        echo(hint, err=True)
    for other in others.keys() & given.keys():
        del namespace[other]


_CELLS_BEFORE = (
    4  # IPython's empty first entry, the parameters, papermill's, and the cell that calls `settle`
)


def split(pairs: Iterable[str]) -> dict[str, str]:
    """Return ``name=value`` words as a dictionary of texts.

    Raises
    ------
    ParameterError
        For a word without ``=``, and for a name given twice.
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
    """Return a value as the parameter declares it.

    Raises
    ------
    ParameterError
        When it does not fit, or when it is a secret.
    """
    _refuse_secret(parameter, value)
    try:
        return _convert(parameter.type, value)
    except _UnfitError as error:
        raise _unfit(parameter, value, error) from error


def _refuse_secret(parameter: Parameter, value: object) -> None:
    secret = find_secret(json.dumps(value, default=str))
    if secret:
        # The value itself is left out of the message, which ends up in logs.
        raise ParameterError(
            f"{parameter.name} contains a secret ({secret}).",
            why="Parameters are saved in the executed notebook, the report and the history.",
            fix="Pass it in the environment, or with AWS's own configuration.",
        )


def _unfit(parameter: Parameter, value: object, error: _UnfitError) -> ParameterError:
    return ParameterError(
        f"{parameter.name}: {value!r} is not {_described(parameter.type)}.",
        why=str(error),
        fix=f"{parameter.name} is declared as {parameter.type}; its default is {parameter.default!r}.",
    )


def _described(kind: Type) -> str:
    if kind.choices:
        return f"one of {', '.join(str(choice) for choice in kind.choices if choice != '')}"
    names = {
        "str": "text",
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "list": "a list",
        "dict": "a mapping",
    }
    return names[kind.kind]


def _convert(kind: Type, value: object) -> object:
    if value is None or (kind.optional and isinstance(value, str) and value.strip().lower() in NONE):
        if not kind.optional:
            raise _UnfitError("A value is required.")
        return None
    converted = _CONVERTERS[kind.kind](kind, value)
    if kind.choices and converted not in kind.choices:
        hint = nearest(str(converted), [str(choice) for choice in kind.choices])
        raise _UnfitError(hint or "It is not one of the choices.")
    return converted


def _text(_kind: Type, value: object) -> str:
    if not isinstance(value, str):
        raise _UnfitError(
            f"It is of type {type(value).__name__}, and numbers lose leading zeros. With papermill, "
            "give it as text: -r NAME VALUE."
        )
    if "\0" in value:
        raise _UnfitError("It contains a NUL character.")
    return value


def _truth(_kind: Type, value: object) -> bool:
    if isinstance(value, bool):
        return value
    # papermill makes numbers of 1 and 0, whose words are understood, too.
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise _UnfitError("Use true or false (also yes, no, on, off, 1, 0).")


def _whole(_kind: Type, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _UnfitError(f"It is of type {type(value).__name__}.")
    if isinstance(value, int):
        return value
    try:
        return int(value.strip(), 10)
    except ValueError:
        raise _UnfitError("Use digits.") from None


def _number(_kind: Type, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _UnfitError(f"It is of type {type(value).__name__}.")
    try:
        number = float(value)
    except ValueError:
        raise _UnfitError("Use a number such as 1.5.") from None
    except OverflowError:
        raise _UnfitError("It is too large.") from None
    if not math.isfinite(number):
        raise _UnfitError("It must be finite.")
    return number


def _list(kind: Type, value: object) -> list[object]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = _json(text)
        else:
            value = [word.strip() for word in text.split(",")] if text else []
    if isinstance(value, bool | int | float):  # of one item, as papermill reads it
        value = [value]
    if not isinstance(value, list | tuple):
        raise _UnfitError("Use items separated by commas, or a JSON list.")
    return [_item(kind, item, f"Item {number}") for number, item in enumerate(value, 1)]


def _dict(kind: Type, value: object) -> dict[str, object]:
    if isinstance(value, str):
        text = value.strip()
        value = _json(text) if text.startswith("{") else _pairs(text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _UnfitError("Use key=value pairs separated by commas, or a JSON object.")
    return {key: _item(kind, item, f"The value of {key!r}") for key, item in value.items()}


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split(",") if text else []:
        key, equals, item = word.partition("=")
        if not equals or not key.strip():
            raise _UnfitError(f"{word!r} is not key=value.")
        if key.strip() in found:
            raise _UnfitError(f"The key {key.strip()!r} is given twice.")
        found[key.strip()] = item.strip()
    return found


def _item(kind: Type, value: object, place: str) -> object:
    if kind.item is None:
        return value
    try:
        return _convert(kind.item, value)
    except ValueError as error:
        raise _UnfitError(f"{place} is {value!r}, which is not {_described(kind.item)}. {error}") from error


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        if isinstance(error, _UnfitError):
            raise
        raise _UnfitError(f"It is not JSON: {error}.") from error
    except RecursionError:
        raise _UnfitError("It is nested too deeply.") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON whose keys are given once each: of two values one would be lost."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _UnfitError(f"The key {key!r} is given twice.")
        found[key] = value
    return found


_CONVERTERS = {
    "str": _text,
    "bool": _truth,
    "int": _whole,
    "float": _number,
    "list": _list,
    "dict": _dict,
}
