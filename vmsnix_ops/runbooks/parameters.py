"""From what people give to what a runbook declares: typed, or refused with the reason.

papermill takes a mistyped name for a warning, ``false`` for a true string and an account id for an octal
number. Here the parameters cell decides, and what does not fit it ends the run before it begins.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.runbooks.evidence.secrets import find_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter, Type

TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})
NONE = frozenset({"", "none", "null"})


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

    Raises
    ------
    ParameterError
        For a name that the runbook does not declare, a value that does not fit its type, and a value that
        is a secret, because parameters are kept in the executed notebook.
    """
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    checked: dict[str, object] = {}
    for name, value in given.items():
        known = name if name in declared else name.replace("-", "_")
        if known not in declared:
            raise ParameterError(
                f"{runbook.name} has no parameter {name!r}.",
                why=nearest(known, declared) or f"It has {', '.join(declared)}.",
                cure=f"`vmsnix run {runbook.name} --help` lists them.",
            )
        checked[known] = convert(declared[known], value)
    return checked


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
    names = {parameter.name for parameter in declared.parameters}
    given = {name: namespace[name] for name in names if name in namespace}
    if len(namespace.get("In") or ()) == _CELLS_BEFORE:
        # Fresh from papermill: whatever else is there came from a parameter that the notebook does not have.
        given |= {
            name: value
            for name, value in namespace.items()
            if isinstance(value, str | bool | int | float | list | dict)
            and not name.startswith("_")
            and name not in ("In", "Out")
        }
    namespace.update(check(declared, given))


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
                f"{pair!r} is not a parameter.", why="It has no '='.", cure="Write -p name=value."
            )
        if name in given:
            raise ParameterError(f"The parameter {name!r} is given twice.", cure="Give it once.")
        given[name] = value
    return given


def convert(parameter: Parameter, value: object) -> object:
    """Return a value as the parameter declares it.

    Raises
    ------
    ParameterError
        When it does not fit, or when it is a secret.
    """
    secret = find_secret(json.dumps(value, default=str))
    if secret:
        # The value itself is left out of the message, which ends up in logs.
        raise ParameterError(
            f"{parameter.name} was given a secret ({secret}).",
            why="Parameters are kept in the executed notebook, the report and the history.",
            cure="Pass it by the environment, or by AWS's own configuration.",
        )
    try:
        converted = _convert(parameter.type, value)
    except _UnfitError as error:
        raise ParameterError(
            f"{parameter.name}: {value!r} is not {_described(parameter.type)}.",
            why=str(error),
            cure=f"{parameter.name} is declared as {parameter.type}; its default is {parameter.default!r}.",
        ) from error
    return converted


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
            raise _UnfitError("It must have a value.")
        return None
    converted = _CONVERTERS[kind.kind](kind, value)
    if kind.choices and converted not in kind.choices:
        hint = nearest(str(converted), [str(choice) for choice in kind.choices])
        raise _UnfitError(hint or "There is no such choice.")
    return converted


def _text(_kind: Type, value: object) -> str:
    if not isinstance(value, str):
        raise _UnfitError(
            f"It is of type {type(value).__name__}, and numbers lose leading zeros. With papermill, "
            "give it as text: -r NAME VALUE."
        )
    if "\0" in value:
        raise _UnfitError("It holds a NUL character.")
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
    raise _UnfitError("Say true or false (yes, no, on, off, 1, 0 are understood).")


def _whole(_kind: Type, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _UnfitError(f"It is of type {type(value).__name__}.")
    if isinstance(value, int):
        return value
    try:
        return int(value.strip(), 10)
    except ValueError:
        raise _UnfitError("Write it in digits.") from None


def _number(_kind: Type, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _UnfitError(f"It is of type {type(value).__name__}.")
    try:
        number = float(value)
    except ValueError:
        raise _UnfitError("Write it like 1.5.") from None
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
        raise _UnfitError("Write items with commas between, or a JSON list.")
    return [_item(kind, item, f"Item {number}") for number, item in enumerate(value, 1)]


def _dict(kind: Type, value: object) -> dict[str, object]:
    if isinstance(value, str):
        text = value.strip()
        value = _json(text) if text.startswith("{") else _pairs(text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _UnfitError("Write key=value with commas between, or a JSON object.")
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
