"""Collects what is wrong with a plan file, so that a person can put all of it right at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.errors import PlanError, nearest
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Value = TypeVar("Value")


class Faults:
    """What is wrong so far."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, sentence: str) -> None:
        """Note a fault, once."""
        if sentence not in self.found:
            self.found.append(sentence)

    def unknown(self, table: Mapping[str, Any], keys: Iterable[str], place: str) -> None:
        """Note the keys that nobody knows."""
        known = list(keys)
        for key in table:
            if key not in known:
                hint = nearest(key, known) or f"It has {', '.join(known)}."
                self.add(f"{place} has no key {key!r}. {hint}")

    def take(
        self, table: Mapping[str, Any], key: str, kind: type[Value], default: Value, place: str
    ) -> Value:
        """Return a value of this type, or note that it is of another and return the default."""
        value = table.get(key, default)
        right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not right:
            words = {
                str: "text",
                int: "a whole number",
                dict: "a table",
                list: "a list",
                bool: "true or false",
            }
            self.add(
                f"{place}: {key} = {json.dumps(value, default=str)} is not {words.get(kind, kind.__name__)}."
            )
            return default
        return value if isinstance(value, kind) else default

    def texts(self, table: Mapping[str, Any], key: str, place: str) -> list[str]:
        """Return a list of texts; a single text is a list of one."""
        value = table.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.add(f"{place}: {key} = {json.dumps(value, default=str)} is not a list of texts.")
            return []
        if key in table and not value:
            self.add(f"{place}: {key} is empty; leave it out, or list something.")
        for item in value:
            if value.count(item) > 1:
                self.add(f"{place}: {key} lists {item!r} twice.")
        return list(dict.fromkeys(value))

    def amounts(self, table: Mapping[str, Any], key: str, place: str) -> dict[str, float]:
        """Return a table of positive numbers."""
        found = {}
        for name, amount in self.take(table, key, dict, {}, place).items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1e9:
                self.add(f"{place}: {key}.{name} = {json.dumps(amount, default=str)} is no positive number.")
            else:
                found[str(name)] = float(amount)
        return found

    def error(self, path: Path) -> PlanError:
        """Return all of it as one error."""
        count = len(self.found)
        return PlanError(
            f"The plan {path} has {counted(count, 'fault')}; nothing has started.",
            why="\n".join(self.found)
            if count == 1
            else "\n" + "\n".join(f"- {text}" for text in self.found) + "\n",
            cure="Correct the file.",
        )
