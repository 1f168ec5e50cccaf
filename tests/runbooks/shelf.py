"""A folder of small notebooks for the tests of the runner."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from docs.manifest import make_manifest
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.execution.execute import RunOutcome, run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PARAMETERS = """\
name: str = "world"  # whom to greet
account: str = ""  # account ID, 12 digits
count: int = 1  # how often
loud: bool = False  # in capitals
"""


def notebook(*cells: str, parameters: str = PARAMETERS, side_effects: str = "read_only") -> dict[str, Any]:
    """Return a notebook with a parameters cell and these code cells."""

    def code(number: int, source: str, **metadata: Any) -> dict[str, Any]:
        return {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": metadata,
            "source": source,
            "outputs": [],
            "execution_count": None,
        }

    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A title"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "vmsnix": {"title": "A title", "description": "What it is for.", "side_effects": side_effects},
        },
        "cells": [
            title,
            code(0, parameters, tags=["parameters"]),
            *(code(number, source) for number, source in enumerate(cells, 1)),
        ],
    }


@dataclass
class Shelf:
    """A folder of notebooks, an archive, and the output on the screen."""

    folder: Path
    archive: Path
    screen: io.StringIO = field(default_factory=io.StringIO)

    def put(self, file: str, *cells: str, **options: Any) -> Path:
        """Write a notebook ``NN-name.ipynb``."""
        path = self.folder / file
        path.write_text(json.dumps(notebook(*cells, **options)))
        return path

    def run(self, *cells: str, given: dict[str, object] | None = None, **options: Any) -> RunOutcome:
        """Write a notebook with these cells and run it."""
        self.put("10-try-this.ipynb", *cells)
        settled = {"folder": self.folder, "archive": self.archive, "screen": self.screen, "record": False}
        return run("try-this", given, **(settled | options))

    def executed(self, outcome: RunOutcome) -> dict[str, Any]:
        """Return the executed notebook of a run."""
        with open(outcome.notebook, encoding="utf-8") as file:  # noqa: PTH123 - a text from result.json
            return json.load(file)

    def outputs(self, outcome: RunOutcome) -> str:
        """Return all outputs of the executed notebook as text."""
        cells = self.executed(outcome)["cells"]
        return json.dumps([cell.get("outputs", []) for cell in cells])


def replace_package(folder: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Let the notebooks of a folder replace those of the package; their manifest is always up to date.

    Without `monkeypatch`, for the rest of the process.
    """
    change = setattr if monkeypatch is None else monkeypatch.setattr
    change(catalog, "default_folder", lambda: folder)
    change(catalog, "load_manifest", lambda: make_manifest(folder))


def make_shelf(folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Return an empty shelf with its own state folder, outside of GitHub Actions."""
    monkeypatch.setenv("VMSNIX_STATE", str(folder / "state"))
    for variable in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(variable, raising=False)
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    return Shelf(notebooks, archive)
