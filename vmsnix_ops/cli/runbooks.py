"""``vmsnix list`` and ``vmsnix runbooks``: list runbooks, create own ones, compare and reset your copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmsnix_ops import files
from vmsnix_ops.cli.options import complete_runbooks
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


PARAMETERS = """\
name: str = ""  # show only AMIs whose name contains this text
"""
QUERY = """\
from vmsnix_ops import history

amis = history.amis()
chosen = amis["name"].str.contains(name, regex=False)
amis.loc[chosen, ["image", "version", "region", "ami_id"]]
"""


folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the copies.  [default: <state>/notebooks]",
)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, including every parameter.")
def list_runbooks(as_json: bool) -> None:
    """List the runbooks with their purpose and effect: read-only, creates, changes or deletes."""
    from vmsnix_ops.cli.output import show_error, show_json, show_table
    from vmsnix_ops.display import make_table
    from vmsnix_ops.runbooks import catalog

    books, unusable = catalog.read_all()
    for error in unusable:
        show_error(error.what, error.why, error.fix)
    if as_json:
        show_json(
            [
                {
                    "name": book.name,
                    "short_name": book.short_name,
                    "number": book.number,
                    "title": book.title,
                    "description": book.description,
                    "side_effects": book.side_effects,
                    "notebook": str(book.path),
                    "own": book.own,
                    "parameters": [parameter.as_dict() for parameter in book.parameters],
                }
                for book in books
            ]
        )
        return
    rows = [[one.short_name, one.slug, one.purpose, one.side_effects.replace("_", "-")] for one in books]
    show_table(make_table(("runbook", "notebook", "purpose", "effect"), rows))


@click.group()
def runbooks() -> None:
    """Create your own runbooks; compare or reset the copies that `vmsnix lab` opens.

    To list the runbooks, use `vmsnix list`.
    """


@runbooks.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_runbooks)
@folder_option
def diff(names: tuple[str, ...], folder: Path | None) -> None:
    """Show which cells of notebooks were changed. Without NAME, compare all notebooks.

    The notebook of the package is compared with its last commit in git, or with the manifest of the package.
    Your copy is compared with the notebook of the package.
    """
    from vmsnix_ops.runbooks import copies

    place = folder_of(folder)
    found = [line for name in names or copies.originals() for line in copies.compare(name, place)]
    for line in found or ["No differences."]:
        echo(line)


@runbooks.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_runbooks)
@folder_option
def reset(names: tuple[str, ...], folder: Path | None) -> None:
    """Replace your copies by the notebooks of the package. The old copies are kept under other names."""
    from vmsnix_ops.runbooks import copies

    place = folder_of(folder)
    for full, source in [copies.original(name) for name in names]:
        with preparing():
            old = copies.reset(place, full)
        if old is None:
            echo(f"{place / source.name} has the cells of the package.")
        else:
            echo(f"Reset {place / source.name}. The old copy is {old.name}.")


@runbooks.command()
@click.argument("name", metavar="NAME")
def new(name: str) -> None:
    """Create a runbook of your own in the first folder of the setting `runbooks`. It lists the recorded AMIs.

    NAME is the name of the command, such as weekly-report.
    """
    from vmsnix_ops import settings
    from vmsnix_ops.errors import UsageError
    from vmsnix_ops.runbooks import catalog
    from vmsnix_ops.text import json

    folders, file = settings.runbook_folders(), f"10-{name}.ipynb"
    if not catalog.FILE_NAME.match(file):
        raise UsageError(
            f"{name!r} is not a name of a runbook.",
            fix="Use lower-case words with dashes, such as weekly-report.",
        )
    if not folders:
        raise UsageError(
            "No folder for own runbooks.",
            why="The setting runbooks is not set.",
            fix='Add this line at the top of vmsnix.toml: runbooks = ["runbooks"]',
        )
    path = folders[0] / file
    if name in (*catalog.COMMAND_NAMES, *catalog.SHORT_NAMES, *catalog.names()):
        raise UsageError(f"{name} is already a command of vmsnix.", fix="Use another name.")
    with preparing():
        files.make_folder(path.parent)
        files.write(path, json(_template(name), indent=1) + "\n")
    echo(f"Created {path}. To run it: vmsnix {name}")


def _template(name: str) -> dict[str, object]:
    from vmsnix_ops.runbooks import catalog

    title = name.replace("-", " ").capitalize()

    def cell(kind: str, place: str, source: str, **metadata: object) -> dict[str, object]:
        code: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
        text = source.strip().splitlines(keepends=True)
        return {"cell_type": kind, "id": place, "metadata": metadata, "source": text, **code}

    validate = f'from vmsnix_ops import history\n\nhistory.check_parameters("{name}", globals())'
    return {
        "cells": [
            cell("markdown", "title", f"# {title}\n\nLists the recorded AMIs. Describe here what it is for."),
            cell("code", "parameters", PARAMETERS, tags=["parameters"]),
            cell("code", "parameter-types", validate),
            cell("markdown", "amis-text", "## AMIs"),
            cell("code", "amis", QUERY),
        ],
        "metadata": {
            **catalog.NOTEBOOK_METADATA,
            "vmsnix": {
                "description": "List the recorded AMIs.",
                "name": name,
                "side_effects": "read_only",
                "title": title,
            },
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def preparing() -> AbstractContextManager[None]:
    """Return a context for a block that writes files for JupyterLab."""
    return files.state_errors("Could not prepare JupyterLab.")


def folder_of(folder: Path | None) -> Path:
    """Return the folder of the copies."""
    from vmsnix_ops.runbooks import copies
    from vmsnix_ops.settings import load

    return copies.work_folder(load().state) if folder is None else folder.absolute()
