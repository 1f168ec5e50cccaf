"""The catalog of runbooks: their purpose, their effect and their parameters.

A runbook is a notebook with a name such as ``20-publish-ami.ipynb``. Its metadata contain its purpose and
effect. Its cell tagged ``parameters`` declares its parameters; the command line, the forms and the docs are
made from this cell. This module imports nothing of Jupyter, so that ``vmsnix --help`` is fast.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from vmsnix_ops import files
from vmsnix_ops.errors import RunError, UnknownRunbookError, nearest
from vmsnix_ops.runbooks.declarations import Parameter, read_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

SideEffects = Literal["read_only", "creates", "destroys"]
"""What a runbook does to AWS: ``destroys`` means that it deletes or disables resources."""

SHORT_NAMES: Mapping[str, str] = {
    "publish": "publish-ami",
    "promote": "promote-ami",
    "verify": "verify-amis",
    "prove": "prove-ami",
    "audit": "audit-inventory",
    "timings": "import-timings",
    "retire": "retire-amis",
}
"""Short names of runbooks, for typing. Results, tables and reports contain the full name."""

FILE_NAME = re.compile(r"^(?P<number>\d\d)-(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)\.ipynb$")


@dataclass(frozen=True, slots=True)
class Runbook:
    """A notebook that does a job."""

    name: str  # full name, as in results and tables: publish-ami
    short_name: str  # for typing: publish for publish-ami, rollback for rollback
    number: int  # at the start of the file name; runbooks are sorted by it
    path: Path  # of the notebook
    title: str  # its purpose in a few words
    description: str  # its purpose in a sentence
    side_effects: SideEffects
    parameters: tuple[Parameter, ...]  # in the order of the parameters cell
    # The list parameter that can be given without --name: `vmsnix prove AMI AMI`. Empty for most runbooks.
    arguments: str = ""

    @property
    def slug(self) -> str:
        """Name of the file: ``20-publish-ami``."""
        return self.path.stem


def default_folder() -> Path:
    """Return the folder of the notebooks: in the installed package, or beside the package in a checkout."""
    import vmsnix_ops

    package = Path(vmsnix_ops.__file__).resolve().parent
    installed = package / "_notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def runbooks(folder: Path | None = None) -> tuple[Runbook, ...]:
    """Return all valid runbooks, sorted by their numbers.

    Files without a number (``console.ipynb``) are not runbooks.
    """
    return read_all(folder)[0]


def read_all(folder: Path | None = None) -> tuple[tuple[Runbook, ...], tuple[RunError, ...]]:
    """Return all valid runbooks, sorted by their numbers, and an error for each invalid notebook."""
    books: list[Runbook] = []
    errors: list[RunError] = []
    for path in _files(folder):
        try:
            books.append(read(path))
        except RunError as error:
            errors.append(error)
    return tuple(books), tuple(errors)


def find(name: str, folder: Path | None = None) -> Runbook:
    """Return a runbook by its name: ``publish-ami``, ``20-publish-ami`` or its short name ``publish``.

    Raises
    ------
    UnknownRunbookError
        There is none; the error suggests the nearest name.
    RunError
        Its notebook is invalid.
    """
    files = _files(folder)
    wanted = full_name(name, folder)
    for path in files:
        if wanted == _name(path):
            return read(path)
    names = [_name(path) for path in files]
    raise UnknownRunbookError(
        f"Unknown runbook {name!r}.",
        why=nearest(wanted, [*names, *short_names(folder).values(), *(path.stem for path in files)])
        or (f"The runbooks are {', '.join(names)}." if names else "No notebooks found."),
        fix="Run vmsnix list to list them.",
    )


def full_name(name: str, folder: Path | None = None) -> str:
    """Return the full name of a runbook: ``publish-ami`` for ``publish`` or ``20-publish-ami``.

    An unknown name is returned unchanged: the archive can contain runs of a runbook that no longer exists.
    """
    wanted = name.removesuffix(".ipynb")
    for path in _files(folder):
        if wanted in (path.stem, _name(path)):
            return _name(path)
    return SHORT_NAMES[wanted] if wanted in short_names(folder).values() else name


def short_names(folder: Path | None = None) -> dict[str, str]:
    """Return the short name of each runbook that has one, by full name.

    A runbook whose full name is a short name takes precedence over it.
    """
    known = names(folder)
    return {full: short for short, full in SHORT_NAMES.items() if full in known and short not in known}


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of all runbooks without reading them."""
    return tuple(_name(path) for path in _files(folder))


def read(path: Path) -> Runbook:
    """Return the runbook in a notebook."""
    try:
        return _read(path)
    except RunError:
        raise
    except Exception as error:  # a user's notebook can contain anything
        why = f"Its content is not a valid runbook: {type(error).__name__}: {error}."
        raise _invalid(path, why, "Restore it from version control, or move it to another folder.") from error


def _read(path: Path) -> Runbook:
    notebook = _load(path)
    match = FILE_NAME.match(path.name)
    if match is None:
        raise _invalid(path, "Its file name is not of the form 20-publish-ami.ipynb.", "Rename it.")
    metadata = _metadata(notebook, path)
    runbook = Runbook(
        name=match["name"],
        short_name=short_names(path.parent).get(match["name"], match["name"]),
        number=int(match["number"]),
        path=path,
        title=str(metadata.get("title", "")) or match["name"],
        description=str(metadata.get("description", "")),
        side_effects=cast("SideEffects", metadata["side_effects"]),
        parameters=read_parameters(_parameters_source(notebook, path), notebook=path.name),
        arguments=str(metadata.get("arguments", "")),
    )
    _check_dry_run(runbook)
    _check_arguments(runbook)
    return runbook


def _files(folder: Path | None) -> list[Path]:
    folder = default_folder() if folder is None else folder
    try:
        return sorted(path for path in folder.iterdir() if FILE_NAME.match(path.name))
    except OSError as error:
        raise RunError(
            f"Could not read the notebooks: {folder}.",
            why=f"{error.strerror}.",
            fix="Install the package again, or run it from a checkout.",
        ) from error


def _name(path: Path) -> str:
    return path.stem.partition("-")[2]


def _invalid(path: Path, why: str, fix: str) -> RunError:
    return RunError(f"{path.name} is not a runbook.", why=why, fix=fix)


def _load(path: Path) -> Mapping[str, object]:
    try:
        notebook = json.loads(files.read(path).decode("utf-8"))
    except OSError as error:
        raise _invalid(
            path, f"It could not be read: {error.strerror}.", "Correct it or delete it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _invalid(
            path,
            f"It is not JSON: {error}.",
            "Restore it from version control, or move it to another folder.",
        ) from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise _invalid(path, "It is not a notebook of format 4.", "Save it again in JupyterLab.")
    return notebook


def _metadata(notebook: Mapping[str, object], path: Path) -> Mapping[str, object]:
    everything = notebook.get("metadata")
    metadata = everything.get("vmsnix") if isinstance(everything, dict) else None
    if not isinstance(metadata, dict):
        raise _invalid(
            path, 'Its metadata has no "vmsnix" entry.', "Add title, description and side_effects."
        )
    if metadata.get("side_effects") not in get_args(SideEffects):
        raise _invalid(
            path,
            f"Its side_effects are {metadata.get('side_effects')!r}.",
            f"Declare one of {', '.join(get_args(SideEffects))} in the notebook's metadata.",
        )
    return metadata


def _parameters_source(notebook: Mapping[str, object], path: Path) -> str:
    tagged = []
    for cell in cast("list[dict[str, object]]", notebook["cells"]):
        metadata = cell.get("metadata")
        tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
        if cell.get("cell_type") == "code" and "parameters" in tags:
            tagged.append(cell.get("source", ""))
    if len(tagged) != 1:
        raise _invalid(
            path, f"{len(tagged)} cells are tagged 'parameters'.", "Tag exactly one code cell with it."
        )
    source = tagged[0]
    return "".join(source) if isinstance(source, list) else str(source)


def _check_dry_run(runbook: Runbook) -> None:
    """Refuse a runbook that destroys without ``dry_run: bool = True``."""
    if runbook.side_effects != "destroys":
        return
    for parameter in runbook.parameters:
        if parameter.name == "dry_run" and parameter.default is True:
            return
    raise _invalid(
        runbook.path,
        "It destroys, but its parameters cell does not declare `dry_run: bool = True`.",
        "Declare it, and use it in the notebook.",
    )


def _check_arguments(runbook: Runbook) -> None:
    lists = [one.name for one in runbook.parameters if one.type.kind == "list"]
    if runbook.arguments and runbook.arguments not in lists:
        raise _invalid(
            runbook.path,
            f"Its metadata names {runbook.arguments!r} as arguments, which is not a list parameter.",
            "Correct the name, or remove it.",
        )
