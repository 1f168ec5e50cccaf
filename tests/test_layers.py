"""A module imports only from layers below its own, or from its own package.

The order is the one drawn in the architecture page of the docs. Imports inside functions and
below ``TYPE_CHECKING`` count too.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import types
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vmsnix_ops

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent.parent / "vmsnix_ops"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[set[str]] = [
    {
        "settings",
        "errors",
        "progress",
        "redaction",
        "files",
        "credentials",
        "endpoints",
        "region_names",
        "text",
        "display",
        "templates",
        "pages",
        "arguments",
        "import_hooks",
        "interrupts",
        "outcomes",
    },
    {"disk"},
    {"nix", "records", "boot"},
    {"aws"},
    {"publish", "channels", "audit"},
    {"runbooks"},
    {"cli", "__main__"},
]
LAYER = {package: number for number, packages in enumerate(LAYERS, 1) for package in packages}
LOWEST = 1
ENTRANCE = {"cli", "__main__"}
WITHIN_A_LAYER = {("channels", "publish")}  # (importing, imported)
HEAVY = [
    "boto3",
    "botocore",
    "pandas",
    "pyarrow",
    "papermill",
    "deltalake",
    "matplotlib",
    "ipywidgets",
    "jinja2",
    "nh3",
    "tinycss2",
    "pydantic",
]


def package_of(module: str) -> str:
    """Return the package of a module: ``aws`` of ``vmsnix_ops.aws.images``; empty for ``vmsnix_ops``."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(path: Path, name: str) -> tuple[tuple[int, str], ...]:
    """Return line and dotted name of every import of a module, in every form."""
    return tuple(_imported(path, name))


def _imported(path: Path, name: str) -> Iterator[tuple[int, str]]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__")):
                yield node.lineno, str(node.args[0].value)


def complaints(path: Path, name: str) -> list[str]:
    """Return the imports that a module must not have."""
    package, found = package_of(name), []
    for line, target in imported(path, name):
        if not target.startswith("vmsnix_ops."):
            continue
        other = package_of(target)
        if other in ("", package) or re.fullmatch(r"__\w+__", other):
            continue
        if package == "sandbox":
            allowed = other == "disk"
        elif other == "sandbox" or not package:
            allowed = package in {*ENTRANCE, ""}  # the package itself names its public modules
        elif (package in ENTRANCE and other in ENTRANCE) or (package, other) in WITHIN_A_LAYER:
            allowed = True
        elif LAYER.get(package) == LOWEST:
            allowed = LAYER.get(other) == LOWEST
        else:
            allowed = LAYER.get(other, 99) < LAYER.get(package, 99)
        if not allowed:
            found.append(f"{path.name}:{line} imports {target}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_from_lower_layers(path: Path) -> None:
    assert complaints(path, name_of(path)) == []


def test_every_package_has_a_layer() -> None:
    packages = {package_of(name_of(path)) for path in MODULES} - {"", "sandbox"}
    assert packages <= LAYER.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmsnix_ops.disk.vhd", "from vmsnix_ops.aws import images"),
        ("vmsnix_ops.nix.build", "from vmsnix_ops.records import tables"),
        ("vmsnix_ops.aws.images", "def late():\n    import vmsnix_ops.publish._plan"),
        ("vmsnix_ops.audit.findings", "from ..publish import plan"),
        ("vmsnix_ops.settings", "from .aws.session import client"),
        ("vmsnix_ops.errors", "from vmsnix_ops import publish"),
        ("vmsnix_ops.sandbox.server", "from vmsnix_ops.errors import VmsnixError"),
        ("vmsnix_ops.runbooks.execution.execute", "from vmsnix_ops import sandbox"),
        ("vmsnix_ops.aws.polling", "if TYPE_CHECKING:\n    from vmsnix_ops.runbooks import catalog"),
        ("vmsnix_ops.publish._plan", "import importlib\nimportlib.import_module('vmsnix_ops.cli')"),
    ],
)
def test_an_import_from_above_is_found(module: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / f"{module.rpartition('.')[2]}.py"
    path.write_text(source)
    assert len(complaints(path, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmsnix_ops.sandbox.ec2.imports", "from vmsnix_ops.disk.formats import open_image"),
        ("vmsnix_ops.cli", "from vmsnix_ops.sandbox import sandbox"),
        ("vmsnix_ops.aws.images", "from vmsnix_ops.aws import session\nfrom .polling import wait"),
        ("vmsnix_ops.publish._plan", "from vmsnix_ops import __version__, disk, nix, records"),
        ("vmsnix_ops.progress", "from vmsnix_ops.progress import NotebookBars"),
    ],
)
def test_an_import_from_below_is_fine(module: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / f"{module.rpartition('.')[2]}.py"
    path.write_text(source)
    assert complaints(path, module) == []


def test_the_architecture_page_shows_all_packages() -> None:
    """A line of the tree has a layer's number or packages as ``name/``; subpackages are indented."""
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.partition("```text\n")[2].partition("```")[0]
    shown, above = set(), ""
    for text in tree.splitlines():
        names = re.match(r"(?: \d )? *((?:\w+/ ?)+)", text)
        if names is None:
            continue
        deeper = names.start(1) > len(" 7  ")
        found = names[1].replace("/", "").split()
        shown |= {f"{above}/{name}" if deeper else name for name in found}
        above = above if deeper else found[-1]
    packages = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("__init__.py")} - {"."}
    assert shown == packages


def test_no_import_cycles() -> None:
    """Imports inside functions and below TYPE_CHECKING count too."""
    modules = {name_of(path): path for path in MODULES}
    graph = {
        name: {
            target if target in modules else target.rpartition(".")[0] for _, target in imported(path, name)
        }
        & modules.keys() - {name, "vmsnix_ops"}
        for name, path in modules.items()
    }
    graph.pop("vmsnix_ops")  # it imports its public modules when they are used
    tuple(TopologicalSorter(graph).static_order())  # raises an error with the cycle


def test_no_name_of_a_package_hides_a_module_of_it() -> None:
    for found in pkgutil.walk_packages(vmsnix_ops.__path__, "vmsnix_ops."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in [name for name in sys.modules if name.startswith("vmsnix_ops.")]:
        package, _, leaf = name.rpartition(".")
        assert isinstance(getattr(sys.modules[package], leaf), types.ModuleType), name


@pytest.mark.parametrize("module", ["vmsnix_ops", "vmsnix_ops.cli"])
def test_importing_the_package_is_cheap(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert [name for name in HEAVY if name in json.loads(done.stdout)] == []
