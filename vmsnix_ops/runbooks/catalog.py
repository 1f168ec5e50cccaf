"""Which runbooks there are, what they do to the world, and which parameters they take.

A runbook is a notebook called ``NN-verb-noun.ipynb``. Its notebook metadata say what it is for, and its
cell tagged ``parameters`` is the one place where its parameters are declared; the command line, the forms
and the docs are made from it. Nothing of Jupyter is imported here, so that ``vmsnix --help`` stays fast.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from vmsnix_ops.errors import RunError, UnknownRunbookError, nearest
from vmsnix_ops.files import read as read_file
from vmsnix_ops.runbooks.declarations import Parameter, read_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

SideEffects = Literal["read_only", "creates", "destroys"]
"""What a runbook may do: look, add, or take away."""

SHORT_NAMES: Mapping[str, str] = {
    "publish": "publish-ami",
    "promote": "promote-ami",
    "verify": "verify-amis",
    "audit": "audit-inventory",
    "timings": "import-timings",
    "retire": "retire-amis",
}
"""Short names that people may type for a runbook. Results, tables and reports contain the full name."""

FILE_NAME = re.compile(r"^(?P<number>\d\d)-(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)\.ipynb$")


@dataclass(frozen=True, slots=True)
class Runbook:
    """A notebook that does a job.

    Attributes
    ----------
    name
        Full name, as results and tables have it: ``publish-ami``.
    short_name
        Name to type: ``publish`` for ``publish-ami``, ``rollback`` for ``rollback``.
    number
        Where it stands in the order in which an operator meets them.
    path
        The notebook.
    title, description
        What it is for, in a few words and in a sentence.
    side_effects
        What it may do to the world.
    parameters
        In the order of the parameters cell.
    """

    name: str
    short_name: str
    number: int
    path: Path
    title: str
    description: str
    side_effects: SideEffects
    parameters: tuple[Parameter, ...]

    @property
    def slug(self) -> str:
        """Name with number, as the file has it: ``20-publish-ami``."""
        return self.path.stem


def default_folder() -> Path:
    """Return the folder of the notebooks: inside an installed wheel, or beside the package in a checkout."""
    import vmsnix_ops

    package = Path(vmsnix_ops.__file__).resolve().parent
    installed = package / "_notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def runbooks(folder: Path | None = None) -> tuple[Runbook, ...]:
    """Return all runbooks in the order of their numbers, without those of `broken`.

    Parameters
    ----------
    folder
        Where the notebooks are; `default_folder` when not given. Files that are not called like a runbook
        (``console.ipynb``) are none.
    """
    return read_all(folder)[0]


def broken(folder: Path | None = None) -> tuple[RunError, ...]:
    """Return an error for every notebook that cannot be used; it disables no other one.

    Parameters
    ----------
    folder
        As for `runbooks`.
    """
    return read_all(folder)[1]


def read_all(folder: Path | None = None) -> tuple[tuple[Runbook, ...], tuple[RunError, ...]]:
    """Return what `runbooks` and `broken` return, and read each notebook once."""
    books: list[Runbook] = []
    errors: list[RunError] = []
    for path in _files(folder):
        try:
            books.append(read(path))
        except RunError as error:
            errors.append(error)
    return tuple(books), tuple(errors)


def find(name: str, folder: Path | None = None) -> Runbook:
    """Return the runbook of that name: ``publish-ami``, ``20-publish-ami`` or its short name ``publish``.

    Raises
    ------
    UnknownRunbookError
        When there is none; the error names the nearest.
    RunError
        When its notebook is broken.
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

    A name that no runbook has is returned unchanged: the archive can contain runs of a runbook that was
    deleted since.
    """
    wanted = name.removesuffix(".ipynb")
    for path in _files(folder):
        if wanted in (path.stem, _name(path)):
            return _name(path)
    return SHORT_NAMES[wanted] if wanted in short_names(folder).values() else name


def short_names(folder: Path | None = None) -> dict[str, str]:
    """Return the short name of each runbook that has one, by full name.

    A runbook that is itself called like a short name hides that short name.
    """
    known = names(folder)
    return {full: short for short, full in SHORT_NAMES.items() if full in known and short not in known}


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of all runbooks without reading them."""
    return tuple(_name(path) for path in _files(folder))


def read(path: Path) -> Runbook:
    """Return what a notebook says about itself.

    Raises
    ------
    RunError
        When it cannot be read, or does not declare what a runbook must.
    """
    try:
        return _read(path)
    except RunError:
        raise
    except Exception as error:  # anything can stand in a file of somebody else
        why = f"Its content is not a valid runbook: {type(error).__name__}: {error}."
        raise _broken(path, why, "Restore it from version control, or move it to another folder.") from error


def _read(path: Path) -> Runbook:
    notebook = _load(path)
    named = FILE_NAME.match(path.name)
    if named is None:
        raise _broken(path, "Its file name is not of the form 20-publish-ami.ipynb.", "Rename it.")
    about = _about(notebook, path)
    parameters = read_parameters(_parameters_source(notebook, path), place=path.name)
    runbook = Runbook(
        name=named["name"],
        short_name=short_names(path.parent).get(named["name"], named["name"]),
        number=int(named["number"]),
        path=path,
        title=str(about.get("title", "")) or named["name"],
        description=str(about.get("description", "")),
        side_effects=cast("SideEffects", about["side_effects"]),
        parameters=parameters,
    )
    _check_destructive(runbook)
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


def _broken(path: Path, why: str, fix: str) -> RunError:
    return RunError(f"{path.name} is not a runbook.", why=why, fix=fix)


def _load(path: Path) -> Mapping[str, object]:
    try:
        notebook = json.loads(read_file(path).decode("utf-8"))
    except OSError as error:
        raise _broken(path, f"It could not be read: {error.strerror}.", "Correct it or delete it.") from error
    except (ValueError, RecursionError) as error:
        raise _broken(
            path,
            f"It is not JSON: {error}.",
            "Restore it from version control, or move it to another folder.",
        ) from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise _broken(path, "It is not a notebook of format 4.", "Save it again in JupyterLab.")
    return notebook


def _about(notebook: Mapping[str, object], path: Path) -> Mapping[str, object]:
    metadata = notebook.get("metadata")
    about = metadata.get("vmsnix") if isinstance(metadata, dict) else None
    if not isinstance(about, dict):
        raise _broken(path, 'Its metadata has no "vmsnix" entry.', "Add title, description and side_effects.")
    if about.get("side_effects") not in get_args(SideEffects):
        raise _broken(
            path,
            f"Its side_effects are {about.get('side_effects')!r}.",
            f"Declare one of {', '.join(get_args(SideEffects))} in the notebook's metadata.",
        )
    return about


def _parameters_source(notebook: Mapping[str, object], path: Path) -> str:
    tagged = []
    for cell in cast("list[dict[str, object]]", notebook["cells"]):
        metadata = cell.get("metadata")
        tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
        if cell.get("cell_type") == "code" and "parameters" in tags:
            tagged.append(cell.get("source", ""))
    if len(tagged) != 1:
        raise _broken(
            path, f"{len(tagged)} cells are tagged 'parameters'.", "Tag exactly one code cell with it."
        )
    source = tagged[0]
    return "".join(source) if isinstance(source, list) else str(source)


def _check_destructive(runbook: Runbook) -> None:
    """Refuse a destructive runbook that would destroy when nobody said so."""
    if runbook.side_effects != "destroys":
        return
    for parameter in runbook.parameters:
        if parameter.name == "dry_run" and parameter.default is True:
            return
    raise _broken(
        runbook.path,
        "It destroys, but its parameters cell does not declare `dry_run: bool = True`.",
        "Declare it, and use it in the notebook.",
    )
