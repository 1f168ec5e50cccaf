"""Check the arguments of functions by their annotations.

papermill may pass the text ``false``, which is true in Python, or the text ``xz`` for a list, which is then
read as two letters. A function with `check_arguments` refuses both; the error contains the argument's name
and a fix.

>>> @check_arguments
... def retire(regions: Sequence[str] = (), *, dry_run: bool = True) -> None: ...
>>> try:
...     retire("eu-west-1")
... except ParameterError as error:
...     print(error)
regions: 'eu-west-1' is not a list of texts. It is a text. Write ['eu-west-1'].
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ParamSpec, TypeVar

from vmsnix_ops.errors import ParameterError, nearest

P = ParamSpec("P")
R = TypeVar("R")

LISTS = frozenset({"list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Collection", "Set"})
MAPPINGS = frozenset({"dict", "Mapping"})
SCALARS: dict[str, type | tuple[type, ...]] = {"bool": bool, "str": str, "int": int, "float": (int, float)}
TEXT, FLAG = "a text", "true or false"
NAMES = {
    "bool": FLAG,
    "str": TEXT,
    "int": "a whole number",
    "float": "a number",
    **dict.fromkeys(LISTS, "a list"),
    **dict.fromkeys(MAPPINGS, "a mapping"),
}

MOST_DAYS = 36_500
"""A hundred years. A larger number is a mistake, and may exceed the range of dates."""

DAYS = (0, MOST_DAYS, " days")
RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("deprecate_days", "launched_days", "min_age_days"), DAYS),
    **dict.fromkeys(("old_days", "orphan_days", "retention_days"), DAYS),
    **dict.fromkeys(("keep_last", "max_count"), (0, MOST_DAYS, "")),
    "deadline": (0, 7 * 86_400, " seconds"),
    "deadline_minutes": (0.001, 7 * 24 * 60, " minutes"),
    "sample_blocks": (1, 10**9, " blocks"),
    "workers": (0, 1000, ""),
}
"""The lowest and the highest value of a number, and its unit."""

DEVICE = r"/dev/(sd[a-z][1-9]?[0-9]?|xvd[a-z]{1,2})"
FORMS: dict[str, tuple[str, str]] = {
    "account": (
        r"[0-9]{12}|arn:aws[\w-]*:iam::[0-9]{12}:role/.+",
        "an account ID of 12 digits, or an ARN of a role",
    ),
    "ami": (r"(?!ami-).*|ami-([0-9a-f]{8}|[0-9a-f]{17})", "an AMI ID such as ami-0123456789abcdef0"),
    "audience": (
        r"public|[0-9]{12}|arn:aws[a-z-]*:organizations::[0-9]{12}:(organization|ou)/o-[a-z0-9/-]+",
        "an account ID of 12 digits, or an ARN of an organization or organizational unit",
    ),
    "audited": (
        r"[0-9]{12}|arn:[\w-]+:organizations::[0-9]{12}:(organization|ou)/[\w/-]+",
        "an account ID of 12 digits, or an ARN of an organization or organizational unit",
    ),
    "bucket": (
        r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "a bucket name, which has 3 to 63 lower-case letters, digits, dots or dashes",
    ),
    "confirmation": (
        r"[0-9a-f]{16}|[0-9]+",
        "the fingerprint of a plan, a number of resources, or an account ID",
    ),
    "device": (DEVICE, "a device name such as /dev/sda1 or /dev/xvda"),
    "identity": (r"[0-9a-f]{64}", "an identity, which has 64 hexadecimal digits"),
    "instance type": (r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an instance type such as t3.small"),
    "key": (
        r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[\w/-]+|alias/[\w/-]+|(mrk-)?[0-9a-fA-F-]{32,36}",
        "a KMS key: an ARN, an ID, or alias/NAME",
    ),
    "plan": (r"[0-9a-f]{16}", "the fingerprint of a plan, which has 16 hexadecimal digits"),
    "prefix": (
        r"[A-Za-z0-9()\[\] ./'@_-]{0,40}",
        "a prefix of up to 40 letters, digits, spaces or ()[]./'@_-",
    ),
    "public": (r"[0-9]{12}(\+keys)?", "an account ID of 12 digits, or ACCOUNT+keys"),
    "role": (r"[\w+=,.@-]{1,64}", "the name of a role (not its ARN), which has up to 64 letters or digits"),
    "scheduler": (r"(tcp|tls)://.+", "an address such as tls://HOST:PORT"),
    "subnet": (r"subnet-([0-9a-f]{8}|[0-9a-f]{17})", "a subnet ID such as subnet-0123456789abcdef0"),
    "topic": (
        r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[\w-]{1,256}(\.fifo)?",
        "an ARN of an SNS topic, such as arn:aws:sns:eu-central-1:012345678901:releases",
    ),
}
"""The form of the values of a kind, and its description for errors."""


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse texts, booleans, numbers, lists and mappings that do not match the function's annotations."""
    signature = inspect.signature(function)
    kinds = {
        name: ast.parse(parameter.annotation, mode="eval").body
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, str)
    }

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise _unknown_argument(function.__name__, signature, args, kwargs, error) from None
        for name, value in given.items():
            if name in kinds and not _fits(kinds[name], value):
                raise _refusal(name, kinds[name], value)
        return function(*args, **kwargs)

    return call


def _unknown_argument(
    function: str,
    signature: inspect.Signature,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    error: TypeError,
) -> ParameterError:
    """Return the error for a call whose arguments do not fit the function's names."""
    names = list(signature.parameters)
    by_position = [
        name for name, one in signature.parameters.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if unknown := next((name for name in kwargs if name not in names), ""):
        why = nearest(unknown, names)
        return ParameterError(
            f"{function} has no argument {unknown!r}.", why=why, fix=f"Its arguments are {', '.join(names)}."
        )
    if len(args) > len(by_position):
        fix = f"Its arguments are {', '.join(names)}. Give them by name, and several values as a list."
        return ParameterError(f"{function}: {len(args)} arguments without a name.", why=f"{error}.", fix=fix)
    return ParameterError(f"{function}: {error}.", fix=f"Its arguments are {', '.join(names)}.")


def check_parameters(runbook: str, namespace: dict[str, Any], *, modified: bool = False) -> None:
    """Convert the parameters of a notebook to their declared types; every notebook calls this first.

    papermill guesses types: it passes ``false`` as text (which is true), and an account ID as a number
    without its leading zero. It only warns about an unknown name. In JupyterLab and under plain papermill,
    the call also starts the record of the run.

    Parameters
    ----------
    runbook
        Name of the runbook.
    namespace
        Variables of the notebook, ``globals()``. The converted values replace the given ones.
    modified
        In a kernel that vmsnix did not start, such as that of JupyterLab: whether cells that differ from
        those of the package may change something in AWS.

    Raises
    ------
    ParameterError
        An invalid value, or a name that the runbook does not declare.
    """
    import vmsnix_ops

    vmsnix_ops.parameters.validate(runbook, namespace, modified=modified)


def check_range(name: str, value: float) -> None:
    """Refuse a number outside of its range in `RANGES`, and NaN, with a `ParameterError`."""
    low, high, unit = RANGES[name]
    if not low <= value <= high:
        raise ParameterError(
            f"{name}: {value!r} is not between {low:.10g} and {high:.10g}{unit}.",
            fix="Use a number in this range.",
        )


def check_form(kind: str, text: str, shown: str) -> None:
    """Refuse a text without the form of its kind in `FORMS`; `shown` is its name and value."""
    form, described = FORMS[kind]
    if not re.fullmatch(form, text, re.ASCII):
        raise ParameterError(f"{shown} is not {described}.", fix="Use a value of this form.")


def _fits(kind: ast.expr, value: object) -> bool:
    if isinstance(kind, ast.BinOp):
        return _fits(kind.left, value) or _fits(kind.right, value)
    if isinstance(kind, ast.Constant):
        return value is None if kind.value is None else True
    if isinstance(kind, ast.Name):
        return _fits_name(kind.id, value)
    if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        if kind.value.id in LISTS:
            return _is_list(value) and all(_fits(inner[0], item) for item in _items(value))
        if kind.value.id in MAPPINGS:
            return isinstance(value, Mapping) and all(_fits(inner[-1], item) for item in value.values())
    return True  # a class of this package, whose constructor checks its values


def _fits_name(name: str, value: object) -> bool:
    if name in SCALARS:
        return isinstance(value, SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
    if name == "Path":
        return hasattr(value, "__fspath__")
    if name in LISTS:
        return _is_list(value)
    return isinstance(value, Mapping) if name in MAPPINGS else True


def _is_list(value: object) -> bool:
    return not isinstance(value, str | bytes | bool | int | float | Mapping) and hasattr(value, "__iter__")


def _items(value: object) -> list[object]:
    """Return the items of a list. An iterator is not read, because it can be read only once."""
    return list(value) if isinstance(value, Sequence | Set) else []


def _refusal(name: str, kind: ast.expr, value: object) -> ParameterError:
    fix = f"Give {name} {_described(kind)}."
    if isinstance(value, str):
        if "list of" in _described(kind):
            fix = f"Write {[value]!r}."
        elif _described(kind) == FLAG:
            fix = "Write True or False without quotes."
    elif _described(kind) == TEXT:
        fix = f"Write it in quotes: {str(value)!r}."
    what = f"It is {_named(value)}."
    return ParameterError(f"{name}: {value!r} is not {_described(kind)}.", why=what, fix=fix)


def _described(kind: ast.expr) -> str:
    if isinstance(kind, ast.BinOp):
        parts = [side for side in (kind.left, kind.right) if not isinstance(side, ast.Constant)]
        return " or ".join(_described(side) for side in parts)
    if isinstance(kind, ast.Name):
        return NAMES.get(kind.id, kind.id)
    if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        one = _described(inner[0 if kind.value.id in LISTS else -1]).partition(" ")[2]
        return f"a {'list' if kind.value.id in LISTS else 'mapping'} of {one or 'value'}s"
    return ast.unparse(kind)


def _named(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, Mapping):
        return "a mapping"
    name = next((name for name, kind in SCALARS.items() if isinstance(value, kind)), "")
    return NAMES.get(name, f"a {type(value).__name__}")
