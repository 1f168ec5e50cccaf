"""Write the JSON schemas of plan files, settings and results below docs/reference, from the code.

Run ``just schemas`` after a change. Editors complete ``fleet.toml`` and ``vmsnix.toml`` by them.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from vmsnix_ops.arguments import MOST_DAYS
from vmsnix_ops.outcomes import FINAL_STATUSES
from vmsnix_ops.records.result import KEYS
from vmsnix_ops.runbooks.fleet.plan_file import PlanTable
from vmsnix_ops.settings import Settings, load

REFERENCE = Path(__file__).parent / "reference"
DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
ACCOUNTS = {"items": {"type": "string", "pattern": "^[0-9]{12}$"}}
OF_THE_MACHINE = ("state", "history", "archive")  # their defaults are folders of the user who runs this
BOUNDS: dict[str, dict[str, Any]] = {
    "allowed_accounts": ACCOUNTS,
    "audit_accounts": ACCOUNTS,
    "channels": {
        "items": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,63}$"},
        "minItems": 1,
        "uniqueItems": True,
    },
    "key_prefix": {"pattern": "^([^/].*/)?$"},
    "snapshot_prices": {
        "additionalProperties": {
            "type": "array",
            "items": {"type": "number", "minimum": 0},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "put_ceiling": {"minimum": 1, "maximum": 100_000},
}
"""What `load` checks besides the type of a setting."""


def schemas() -> dict[str, str]:
    """Return each schema by the name of its file."""
    made = {"fleet": plan_schema(), "vmsnix": settings_schema(), "result": result_schema()}
    return {
        f"{name}.schema.json": json.dumps({**DIALECT, **schema}, indent=2) + "\n"
        for name, schema in made.items()
    }


def plan_schema() -> dict[str, Any]:
    """Return the schema of a fleet's plan file."""
    return PlanTable.model_json_schema()


def settings_schema() -> dict[str, Any]:
    """Return the schema of ``vmsnix.toml``."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty.toml").touch()
        defaults = asdict(load(Path(folder), {"VMSNIX_CONFIG": "empty.toml"}))
    meanings = attributes(Settings)
    properties = {}
    for name, kind in get_type_hints(Settings, localns={"Mapping": Mapping}).items():
        schema = TypeAdapter(kind if kind != str | None else str).json_schema()
        if kind in (str, str | None, Path) and name != "key_prefix":
            schema["minLength"] = 1
        if name.startswith("retire_"):
            schema |= {"minimum": 0, "maximum": MOST_DAYS}
        properties[name] = {"description": meanings[name], **schema, **BOUNDS.get(name, {})}
        if defaults[name] not in (None, "") and name not in OF_THE_MACHINE:
            properties[name]["default"] = defaults[name]
    return {
        "title": "vmsnix.toml",
        "description": "Settings of vmsnix. Each can be overridden by the variable VMSNIX_<NAME>.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def result_schema() -> dict[str, Any]:
    """Return the schema of ``result.json``."""
    properties = {
        name: {"description": meaning, **TypeAdapter(kind | None).json_schema()}
        for name, (kinds, meaning) in KEYS.items()
        for kind in [float if kinds == (int, float) else kinds]
    }
    properties["status"]["enum"] = ["running", *FINAL_STATUSES, None]
    return {
        "title": "result.json",
        "description": "What a run reports to programs. A runbook adds keys of its own.",
        "type": "object",
        "properties": properties,
        "required": [*KEYS],
    }


def attributes(documented: type) -> dict[str, str]:
    """Return the meaning of each attribute, from the docstring of a class."""
    text = (inspect.getdoc(documented) or "").partition("Attributes\n----------\n")[2]
    found = {}
    for name, meaning in re.findall(r"^(\w+)\n((?:    .*\n?)+)", text, re.MULTILINE):
        found[name] = " ".join(meaning.split()).replace("``", "`")
    return found


if __name__ == "__main__":
    for name, text in schemas().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
