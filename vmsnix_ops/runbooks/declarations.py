"""Read the declarations of a parameters cell: ``name: type = default  # help``.

The cell is parsed, never run. It may use the types for which the command line and the forms have an option
or a field: ``str``, ``bool``, ``int``, ``float``, ``list[...]`` and ``dict[str, ...]`` of these,
``Literal[...]`` for choices, and ``... | None``::

    via: Literal["import", "direct"] = "import"  # method to create the snapshot
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from vmsnix_ops.errors import RunError

Kind = Literal["str", "bool", "int", "float", "list", "dict"]
SCALARS: dict[str, Kind] = {"str": "str", "bool": "bool", "int": "int", "float": "float"}


@dataclass(frozen=True, slots=True)
class Type:
    """A declared type."""

    kind: Kind
    item: Type | None = None  # type of a list's items or of a dict's values
    optional: bool = False  # whether None is allowed
    choices: tuple[str | int, ...] = ()  # the only allowed values; empty for any value of the type

    def __str__(self) -> str:
        """Return the type in the notation of Python."""
        if self.choices:
            text = f"Literal[{', '.join(repr(choice) for choice in self.choices)}]"
        elif self.kind == "list":
            text = f"list[{self.item}]"
        elif self.kind == "dict":
            text = f"dict[str, {self.item}]"
        else:
            text = self.kind
        return f"{text} | None" if self.optional else text


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a runbook."""

    name: str
    type: Type  # the declared type, or else the type of the default
    default: object  # in the committed notebook
    help: str  # the comment after the declaration, or the comment lines above it

    @property
    def choices(self) -> tuple[str | int, ...]:
        """The only allowed values; empty if every value of the type is allowed."""
        return self.type.choices

    def as_dict(self) -> dict[str, object]:
        """Return the parameter for JSON."""
        return {
            "name": self.name,
            "type": str(self.type),
            "default": self.default,
            "choices": list(self.choices),
            "help": self.help,
        }


def read_parameters(source: str, *, notebook: str = "the notebook") -> tuple[Parameter, ...]:
    """Return the parameters that the source of a cell declares, in its order; errors name the notebook.

    A `RunError` if the cell contains something other than declarations with literal defaults, or an
    unsupported type.

    >>> read_parameters("retries: int = 3  # how often")[0].help
    'how often'
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise RunError(
            f"The parameters cell of {notebook} is not Python.",
            why=f"Line {error.lineno or 1}: {error.msg.rstrip('.')}.",
            fix="Correct that line.",
        ) from error
    comments = _comments(source)
    found = tuple(
        _parameter(statement, comments, notebook)
        for statement in tree.body
        if not isinstance(statement, ast.Import | ast.ImportFrom)
    )
    _check_names(found, notebook)
    return found


def _check_names(found: tuple[Parameter, ...], notebook: str) -> None:
    """Refuse a name that is declared twice, and one whose option also turns another parameter off."""
    names = [one.name for one in found]
    off = [f"no_{one.name}" for one in found if one.type.kind == "bool"]
    for name in names:
        if names.count(name) > 1 or name in off:
            used = "declared twice" if name not in off else f"also the option that turns {name[3:]} off"
            raise RunError(
                f"The parameters cell of {notebook} cannot be used: {name}",
                why=f"{name} is {used}.",
                fix="Rename it, or remove it.",
            )


@cache
def parse_type(text: str) -> Type:
    """Return a supported type in the notation of Python, such as ``list[str]``; else a ValueError."""
    found = _annotated_type(ast.parse(text, mode="eval").body)
    if found is None:
        raise ValueError(f"{text} is not a supported type")
    return found


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Return the comment of each line, and whether the line contains nothing else."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            found[token.start[0]] = (token.string.lstrip("#").strip(), alone)
    return found


def _parameter(statement: ast.stmt, comments: dict[int, tuple[str, bool]], notebook: str) -> Parameter:
    def refuse(why: str, fix: str) -> RunError:
        line = ast.unparse(statement).splitlines()[0]
        return RunError(f"The parameters cell of {notebook} cannot be used: {line}", why=why, fix=fix)

    declared: ast.expr | None = None
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        name, declared, value = statement.target.id, statement.annotation, statement.value
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name, value = statement.targets[0].id, statement.value
    else:
        raise refuse("It is not a declaration.", "Write `name: type = default  # help`.")
    if value is None:
        raise refuse("It has no default.", "Add a default; use None for a required parameter.")
    try:
        default: object = ast.literal_eval(value)
    except ValueError as error:
        raise refuse("Its default is not a literal value.", "Compute it in a later cell.") from error
    if _has_half_character(value):
        raise refuse("Its default contains half of a character, such as \\ud83d.", "Write the character.")
    kind = _value_type(default) if declared is None else _annotated_type(declared)
    if kind is None:
        raise refuse(
            "Its type is not supported.",
            "Use str, bool, int, float, list[...], dict[str, ...], Literal[...], each possibly `| None`.",
        )
    return Parameter(name, kind, default, _help(statement, comments))


def _has_half_character(value: ast.expr) -> bool:
    """Whether a text in a literal has a lone surrogate, which no file and no table can contain."""
    texts = (one.value for one in ast.walk(value) if isinstance(one, ast.Constant))
    return any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)


def _help(statement: ast.stmt, comments: dict[int, tuple[str, bool]]) -> str:
    last = statement.end_lineno or statement.lineno
    for line in (last, statement.lineno):
        if line in comments and not comments[line][1]:
            return comments[line][0]
    above: list[str] = []
    line = statement.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    return " ".join(above)


def _annotated_type(node: ast.expr) -> Type | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _annotated_type(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union_type(node.left, node.right)
    if isinstance(node, ast.Name):
        if node.id in ("list", "dict"):
            return Type("list" if node.id == "list" else "dict", Type("str"))
        return Type(SCALARS[node.id]) if node.id in SCALARS else None
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return _subscript_type(node.value.id, node.slice)
    return None


def _union_type(left: ast.expr, right: ast.expr) -> Type | None:
    sides = [left, right]
    others = [side for side in sides if not (isinstance(side, ast.Constant) and side.value is None)]
    if len(others) != 1:
        return None
    inner = _annotated_type(others[0])
    return replace(inner, optional=True) if inner else None


def _subscript_type(name: str, inside: ast.expr) -> Type | None:
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        choices = [part.value for part in parts if isinstance(part, ast.Constant)]
        if len(choices) != len(parts):
            return None
        if all(isinstance(choice, str) for choice in choices):
            return Type("str", choices=tuple(str(choice) for choice in choices))
        if all(type(choice) is int for choice in choices):
            return Type("int", choices=tuple(choice for choice in choices if isinstance(choice, int)))
        return None
    if name == "list" and len(parts) == 1:
        item = _annotated_type(parts[0])
        return Type("list", item) if item else None
    if name == "dict" and len(parts) == 2 and isinstance(parts[0], ast.Name) and parts[0].id == "str":
        item = _annotated_type(parts[1])
        return Type("dict", item) if item else None
    return None


def _value_type(value: object) -> Type | None:
    if value is None:
        return Type("str", optional=True)
    if isinstance(value, list):
        return Type("list", (_value_type(value[0]) if value else None) or Type("str"))
    if isinstance(value, dict):
        values = list(value.values())
        return Type("dict", (_value_type(values[0]) if values else None) or Type("str"))
    name = type(value).__name__
    return Type(SCALARS[name]) if name in SCALARS else None
