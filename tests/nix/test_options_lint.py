"""Every option that our modules set exists in nixpkgs and accepts its value; our own are complete.

No nixpkgs is needed: ``data/nixos-options.json.gz`` lists nixpkgs' options and their types (a copy of July
2026), and ``data/module_definitions.nix`` returns the definitions of a module. The values that a type accepts
are read from its description.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import require

FLAKE = Path(__file__).parents[2] / "nix"
DATA = Path(__file__).parent / "data"
MODULES = sorted(
    [*(FLAKE / "modules").glob("profiles/*.nix"), *(FLAKE / "modules").glob("mixins/*/default.nix")]
)
IMAGES = sorted(path for path in (FLAKE / "images").glob("*.nix") if path.name != "default.nix")

# The first word of every option that this project declares.
OURS = "vmsnix"


def name(path: Path) -> str:
    return str(path.relative_to(FLAKE))


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    with gzip.open(DATA / "nixos-options.json.gz") as stream:
        return {option["name"]: option["type"] for option in json.load(stream)}


@pytest.fixture(scope="module")
def tree(options: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The options as a tree of names, in a file for Nix."""
    root: dict[str, Any] = {}
    for option, kind in options.items():
        if "_module" in option:
            continue
        node = root
        for part in option.split("."):
            node = node.setdefault(part, {})
        node["$type"] = kind
    path = tmp_path_factory.mktemp("options") / "tree.json"
    path.write_text(json.dumps(root))
    return path


def describe(tree: Path, file: Path, system: str = "x86_64-linux") -> dict[str, Any]:
    """Return the declarations and definitions of a module."""
    expression = (
        f"import {DATA}/module_definitions.nix {{ tree = builtins.fromJSON (builtins.readFile {tree});"
        f' file = {file}; system = "{system}"; with_options_of = {FLAKE}/modules/profiles/base.nix; }}'
    )
    command = [require("nix-instantiate"), "--eval", "--strict", "--json", "--expr", expression]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    described: dict[str, Any] = json.loads(result.stdout)
    return described


def fits(kind: str, value: Any) -> bool:
    """Return whether a type accepts a value, by its description; an unknown one accepts all."""
    kind = unwrapped(kind)
    alternatives = split(kind)
    if len(alternatives) > 1:
        return any(fits(each, value) for each in alternatives)
    for prefix, container in (
        ("list of ", list),
        ("attribute set of ", dict),
        ("lazy attribute set of ", dict),
    ):
        if kind.startswith(prefix):
            inner = value.values() if isinstance(value, dict) else value
            return isinstance(value, container) and all(
                fits(kind.removeprefix(prefix), each) for each in inner
            )
    if isinstance(value, dict) and value.get("kind") in ("package", "function"):
        return True
    if kind.startswith("one of "):
        return json.dumps(value) in re.findall(r'"[^"]*"|true|false|\d+', kind)
    if kind.startswith(
        ("signed integer", "unsigned integer", "positive integer", "16 bit", "integer between")
    ):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "absolute path":
        return isinstance(value, str) and value.startswith("/")
    if kind.startswith(("string", "non-empty string", "(optionally newline-terminated)")):
        return isinstance(value, str)
    return True


def unwrapped(kind: str) -> str:
    return kind[1:-1] if kind.startswith("(") and closing(kind) == len(kind) - 1 else kind


def closing(text: str) -> int:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return -1


def split(kind: str) -> list[str]:
    """Split ``a or b or (c or d)`` at the outer ``or``; ``list of`` and similar words apply to the rest."""
    if kind.startswith(("list of ", "attribute set of ", "one of ", "lazy attribute set of ")):
        return [kind]
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[()]| or ", kind):
        if found[0] == " or " and depth == 0:
            parts.append(kind[start : found.start()])
            start = found.end()
        depth += {"(": 1, ")": -1}.get(found[0], 0)
    return [*parts, kind[start:]]


@pytest.mark.parametrize("path", [*MODULES, *IMAGES], ids=name)
@pytest.mark.parametrize("system", ["x86_64-linux", "aarch64-linux"])
def test_every_option_that_is_set_exists(path: Path, system: str, tree: Path) -> None:
    described = describe(tree, path, system)
    unknown = [".".join(each["path"]) for each in described["definitions"] if each["type"] is None]
    assert unknown == []
    assert described["definitions"]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_value_fits_its_option(path: Path, tree: Path) -> None:
    wrong = [
        f"{'.'.join(each['path'])} is a {each['type']}, not {each['value']!r}"
        for each in describe(tree, path)["definitions"]
        if each["type"] is not None and not fits(each["type"], each["value"])
    ]
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_vmsnix_option_has_a_type_a_description_and_an_example(path: Path, tree: Path) -> None:
    for option in describe(tree, path)["options"]:
        assert option["path"][0] == OURS, option
        assert option["typed"], option
        assert option["described"], option
        assert option["example"], option


def test_every_vmsnix_option_is_in_the_readme(tree: Path) -> None:
    readme = (FLAKE / "README.md").read_text(encoding="utf-8")
    declared = {
        ".".join(option["path"][1:]) for path in MODULES for option in describe(tree, path)["options"]
    }
    assert len(declared) >= 20
    for option in declared:
        short = option.rsplit(".", 1)[-1]
        assert f"`{option}`" in readme or f"`.{short}`" in readme, option


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("boolean", True, "yes"),
        ("null or absolute path", "/run/key", "key"),
        ("list of string", ["a"], ["a", 1]),
        ("attribute set of (string or signed integer or boolean)", {"a": 1}, {"a": None}),
        ('one of "raw", "qcow2", "vpc"', "raw", "vhd"),
        ('value "auto" (singular enum) or (positive integer, meaning >0)', 4096, None),
        ("null or (list of string)", None, "a"),
        ("16 bit unsigned integer; between 0 and 65535 (both inclusive)", 22, "22"),
    ],
)
def test_the_lint_accepts_valid_and_finds_invalid_options(kind: str, right: object, wrong: object) -> None:
    assert fits(kind, right)
    if wrong is not None or "value" not in kind:
        assert not fits(kind, wrong)


def test_the_lint_finds_an_option_that_does_not_exist(tree: Path, tmp_path: Path) -> None:
    module = tmp_path / "module.nix"
    module.write_text(
        '{ lib, ... }: { services.opensshd.enable = lib.mkIf true true; boot.growPartition = "yes"; }'
    )
    found = {".".join(each["path"]): each for each in describe(tree, module)["definitions"]}
    assert found["services.opensshd"]["type"] is None
    assert not fits(found["boot.growPartition"]["type"], found["boot.growPartition"]["value"])
