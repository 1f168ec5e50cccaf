"""The catalog of runbooks: their purpose, their effect and their parameters.

A runbook is a notebook with a name such as ``20-publish-ami.ipynb``. Its metadata contain its purpose and
effect. Its cell tagged ``parameters`` declares its parameters; the command line, the forms and the docs are
made from this cell.

For the notebooks of the package, all of this is read from ``manifest.json``, which is committed and generated
from them (``just runbooks``), and never from the notebooks themselves: in a checkout, an editor saves every
change, and an edited parameters cell must not change a command. The manifest also contains a digest of the
cells of each notebook, which shows whether they were modified. Own runbooks, in the folders of the setting
``runbooks``, are read from their notebooks.

This module imports nothing of Jupyter, so that ``vmsnix --help`` is fast.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from vmsnix_ops import files
from vmsnix_ops.errors import RunError, SettingsError, UnknownRunbookError, nearest
from vmsnix_ops.runbooks.declarations import Parameter, parse_type, read_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SideEffects = Literal["read_only", "creates", "changes", "deletes"]
"""The effect of a runbook in AWS: ``deletes`` means that it deletes or disables resources."""

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

COMMAND_NAMES = frozenset(
    {
        "attestation-policy",
        "channels",
        "completion",
        "console",
        "demo",
        "diff",
        "download",
        "findings",
        "fleet",
        "help",
        "history",
        "iam-policy",
        "lab",
        "list",
        "rerun",
        "run",
        "runbooks",
        "runs",
        "sandbox",
        "undo",
        "version",
    }
)
"""Names of the commands of ``vmsnix``, which an own runbook cannot have."""

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""The metadata of a saved notebook about its kernel, independent of the kernel that executed it."""

OWN_FIX = "Restore it from version control, or move it to another folder."
MANIFEST = Path(__file__).with_name("manifest.json")
FILE_NAME = re.compile(r"^(?P<number>\d\d)-(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)\.ipynb$")
NUMBERED = re.compile(r"^(?P<number>[0-9]+)(?P<name>.*)\.ipynb$")


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
    digest: str = ""  # of the cells of a notebook of the package, from the manifest; empty for an own runbook
    # What a call must have, from itself or from the settings: "ami or image", "bucket or via=direct".
    required: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Name of the file: ``20-publish-ami``."""
        return self.path.stem

    @property
    def own(self) -> bool:
        """Whether it is not a runbook of the package."""
        return not self.digest

    @property
    def purpose(self) -> str:
        """Its description for lists; that of an own runbook ends with its folder."""
        text = self.description or self.title
        return f"{text} (own, in {self.path.parent.name})" if self.own else text


def default_folder() -> Path:
    """Return the folder of the notebooks: in the installed package, or beside the package in a checkout."""
    import vmsnix_ops

    package = Path(vmsnix_ops.__file__).resolve().parent
    installed = package / "_notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def is_installed() -> bool:
    """Whether the notebooks of the package belong to an installation, and not to a checkout."""
    return default_folder().name == "_notebooks"


@dataclass(frozen=True, slots=True)
class _Found:
    """A runbook that is listed: its file, and its entry in the manifest or why it cannot be used."""

    path: Path
    entry: Mapping[str, Any] | None = None  # None for an own runbook
    refused: RunError | None = None

    @property
    def name(self) -> str:
        return str(self.entry["name"]) if self.entry is not None else _name(self.path)

    def read(self) -> Runbook:
        if self.refused is not None:
            raise self.refused
        return read(self.path) if self.entry is None else _from_manifest(self.entry)


def runbooks(
    folder: Path | None = None, *, start: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Runbook, ...]:
    """Return all valid runbooks: those of the package by their numbers, then own ones.

    With `folder`, only its notebooks are listed, and the manifest is not used. Files without a number
    (``console.ipynb``) are not runbooks. `start` and `environment` are as for `vmsnix_ops.settings.load`, to
    find the folders of own runbooks.
    """
    return read_all(folder, start=start, environment=environment)[0]


def read_all(
    folder: Path | None = None, *, start: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[tuple[Runbook, ...], tuple[RunError | SettingsError, ...]]:
    """Return all valid runbooks as `runbooks`, and an error for each notebook that cannot be used."""
    books: list[Runbook] = []
    found, errors = _list(folder, start, environment)
    for one in found:
        try:
            books.append(one.read())
        except RunError as error:
            errors.append(error)
    return tuple(books), tuple(errors)


def find(
    name: str,
    folder: Path | None = None,
    *,
    start: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Runbook:
    """Return a runbook by its name: ``publish-ami``, ``20-publish-ami`` or its short name ``publish``.

    The other arguments are as for `runbooks`. Raises an `UnknownRunbookError` with the nearest name if there
    is none, and a `RunError` if its notebook is invalid.
    """
    found, errors = _list(folder, start, environment)
    wanted, known = _full_name(name, found), _names(found)
    for one in sorted(found, key=lambda one: one.refused is not None):
        if wanted == one.name:
            return one.read()
    why = nearest(wanted, [*known, *_short_names(known).values(), *(one.path.stem for one in found)])
    fix = "Run vmsnix list to list them."
    if folder is None and (new := _new_notebook(wanted)) is not None:
        why = f"{new} is not in the manifest."
        fix = "In a checkout, run `just runbooks`. Put runbooks of your own into a folder of your own."
    elif not why and errors:  # perhaps it is in a folder that cannot be read
        why, fix = str(errors[0].what), errors[0].fix
    raise UnknownRunbookError(
        f"Unknown runbook {name!r}.",
        why=why or (f"The runbooks are {', '.join(known)}." if known else "No notebooks found."),
        fix=fix,
    )


def full_name(name: str) -> str:
    """Return the full name of a runbook: ``publish-ami`` for ``publish`` or ``20-publish-ami``.

    An unknown name is returned unchanged: the archive can contain runs of a runbook that no longer exists.
    """
    return _full_name(name, _list(None)[0])


def short_names() -> dict[str, str]:
    """Return the short name of each runbook that has one, by full name.

    A runbook whose full name is a short name takes precedence over it.
    """
    return _short_names(names())


def names() -> tuple[str, ...]:
    """Return the names of all runbooks without reading them."""
    return tuple(_names(_list(None)[0]))


def own_names() -> tuple[str, ...]:
    """Return the names of own runbooks without reading them."""
    return tuple(one.name for one in _list(None)[0] if one.entry is None and one.refused is None)


def of_notebook(path: Path) -> Runbook:
    """Return the runbook of a notebook: from the manifest for a notebook of the package."""
    for one in _package() if path.parent == default_folder() else ():
        if one.path == path:
            return one.read()
    return read(path)


def read(path: Path) -> Runbook:
    """Return the runbook in a notebook, without the manifest."""
    try:
        return _read(path)
    except RunError:
        raise
    except Exception as error:  # a user's notebook can contain anything
        why = f"Its content is not a valid runbook: {type(error).__name__}: {error}."
        raise _invalid(path, why, OWN_FIX) from error


def content(runbook: Runbook) -> tuple[str, bool | None]:
    """Return the content of a notebook, and whether its cells differ from those in the manifest.

    An own runbook has no manifest, and so the second value is ``None``. The `RunError` for a missing or
    damaged notebook says how to restore it.
    """
    text, notebook = load(runbook.path, restore(runbook))
    return text, None if runbook.own else digest(notebook) != runbook.digest


def restore(runbook: Runbook) -> str:
    """Return the sentence that says how to restore the notebook of a runbook."""
    return OWN_FIX if runbook.own else restore_original(runbook.path)


def restore_original(path: Path) -> str:
    """Return the sentence that says how to restore a notebook of the package."""
    if is_installed():
        return "Install the package again: pip install --force-reinstall --no-deps vmsnix-ops"
    return f"Restore it: {shlex.join(['git', '-C', str(path.parent), 'restore', path.name])}"


def digest(notebook: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the cells of a notebook: their types, sources and tags.

    What an editor or a run changes is not part of it: outputs, execution counts, ids and other metadata.
    """
    cells = []
    for cell in notebook["cells"]:
        text, metadata = cell.get("source", ""), cell.get("metadata")
        tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
        text = "".join(text) if isinstance(text, list) else text
        cells.append([cell.get("cell_type"), text, sorted(map(str, tags))])
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def without_injected(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return a notebook without the cell of parameters that papermill adds."""

    def injected(cell: Mapping[str, Any]) -> bool:
        return "injected-parameters" in cell.get("metadata", {}).get("tags", [])

    return {**notebook, "cells": [cell for cell in notebook["cells"] if not injected(cell)]}


@cache
def load_manifest() -> Mapping[str, Any]:
    """Return the manifest of the package's notebooks; a RunError if it is missing or damaged."""
    try:
        manifest: Mapping[str, Any] = json.loads(files.read(MANIFEST).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"Could not read the manifest of the runbooks: {MANIFEST}.",
            why=f"{type(error).__name__}: {error}.",
            fix="Install the package again, or run `just runbooks` in a checkout.",
        ) from error
    return manifest


def _from_manifest(entry: Mapping[str, Any]) -> Runbook:
    name = entry["name"]
    return Runbook(
        name=name,
        short_name=_short_names([one.name for one in _package()]).get(name, name),
        number=entry["number"],
        path=default_folder() / entry["file"],
        title=entry["title"],
        description=entry["description"],
        side_effects=entry["side_effects"],
        parameters=tuple(
            Parameter(one["name"], parse_type(one["type"]), _copy(one["default"]), one["help"])
            for one in entry["parameters"]
        ),
        arguments=entry["arguments"],
        required=tuple(entry["required"]),
        digest=entry["cells_sha256"],
    )


def _copy(default: Any) -> Any:
    """Return a default that its user may change."""
    return default.copy() if isinstance(default, list | dict) else default


def _package() -> list[_Found]:
    """Return the runbooks of the package, sorted by their numbers."""
    folder = default_folder()
    return [_Found(folder / entry["file"], entry) for entry in load_manifest()["runbooks"]]


def _list(
    folder: Path | None, start: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[list[_Found], list[RunError | SettingsError]]:
    """Return the runbooks of a folder; by default, those of the package and own ones, and errors of these."""
    if folder is not None:
        return [_Found(path) for path in _files(folder)], []
    from vmsnix_ops import settings

    found, errors = _package(), list[RunError | SettingsError]()
    try:
        folders = settings.runbook_folders(start, environment)
    except SettingsError as error:  # commands that need the settings report it too
        return found, [error]
    for own in folders:
        try:
            paths = _files(own, NUMBERED)
        except RunError as error:
            error.fix = "Create it, or correct the setting runbooks in vmsnix.toml."
            errors.append(error)
            continue
        if not paths:
            errors.append(
                RunError(
                    f"The folder {own} contains no runbooks.",
                    why="The names of runbooks have a number, such as 10-weekly-report.ipynb.",
                    fix="Rename the notebooks, or correct the setting runbooks in vmsnix.toml.",
                )
            )
        for path in paths:
            found.append(_Found(path, refused=_misnamed(path) or _clash(path, found)))
    return found, errors


def _misnamed(path: Path) -> RunError | None:
    """Return the error for a notebook with a number whose name cannot be that of a command, or ``None``."""
    match = NUMBERED.match(path.name)
    if match is None or FILE_NAME.match(path.name):
        return None
    name = re.sub(r"[^a-z0-9]+", "-", match["name"].lower()).strip("-") or "report"
    return RunError(
        f"The own runbook {path} cannot be used.",
        why="Its name is not two digits and a name of lower-case letters, digits and dashes.",
        fix=f"Rename it, for example to {match['number'][:2]:>02}-{name}.ipynb.",
    )


def _clash(path: Path, found: Sequence[_Found]) -> RunError | None:
    """Return the error for an own notebook whose name is in use, or ``None``."""
    name, package = _name(path), [one.name for one in found if one.entry is not None]
    other = next((one.path for one in found if one.name == name), None)
    if name in package:
        why = f"{name} is a runbook of the package."
    elif other is not None:
        why = f"{name} is the name of {other}, which comes first."
    elif name in SHORT_NAMES:
        why = f"{name} is the short name of the runbook {SHORT_NAMES[name]}."
    elif name in COMMAND_NAMES:
        why = f"{name} is a command of vmsnix."
    else:
        return None
    return RunError(
        f"The own runbook {path} cannot be used.",
        why=why,
        fix=f"Rename it{' or the other' if other else ''}, for example to {path.name[:2]}-own-{name}.ipynb.",
    )


def _names(found: Sequence[_Found]) -> list[str]:
    return [one.name for one in found if one.refused is None]


def _full_name(name: str, found: Sequence[_Found]) -> str:
    wanted = name.removesuffix(".ipynb")
    for one in found:
        if wanted in (one.path.stem, one.name) and one.refused is None:
            return one.name
    short = _short_names(_names(found))
    return SHORT_NAMES[wanted] if wanted in short.values() else name


def _short_names(known: Sequence[str]) -> dict[str, str]:
    return {full: short for short, full in SHORT_NAMES.items() if full in known and short not in known}


def _new_notebook(name: str) -> str | None:
    """Return the file of a notebook that is in the folder of the package, but not in the manifest."""
    try:
        return next((path.name for path in _files(default_folder()) if name == _name(path)), None)
    except RunError:
        return None


def _read(path: Path) -> Runbook:
    notebook = load(path, OWN_FIX)[1]
    match = FILE_NAME.match(path.name)
    if match is None:
        raise _invalid(path, "Its file name is not of the form 20-publish-ami.ipynb.", "Rename it.")
    metadata = _metadata(notebook, path)
    beside = [_name(other) for other in _files(path.parent)]
    runbook = Runbook(
        name=match["name"],
        short_name=_short_names(beside).get(match["name"], match["name"]),
        number=int(match["number"]),
        path=path,
        title=str(metadata.get("title", "")) or match["name"],
        description=str(metadata.get("description", "")),
        side_effects=cast("SideEffects", metadata["side_effects"]),
        parameters=read_parameters(_parameters_source(notebook, path), notebook=path.name),
        arguments=str(metadata.get("arguments", "")),
        required=_required(metadata, path),
    )
    _check_dry_run(runbook)
    _check_arguments(runbook)
    return runbook


def _files(folder: Path, names: re.Pattern[str] = FILE_NAME) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if names.match(path.name))
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


def load(path: Path, fix: str) -> tuple[str, Mapping[str, Any]]:
    """Return the content of a notebook as text and as JSON.

    The `RunError` for a missing or damaged notebook contains `fix`.
    """
    try:
        text = files.read(path).decode("utf-8-sig")
        notebook = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(notebook, ensure_ascii=False).encode()
    except OSError as error:
        raise _invalid(path, f"It could not be read: {error.strerror}.", fix) from error
    except UnicodeEncodeError as error:
        why = f"It contains {error.object[error.start]!a}, half of a character."
        raise _invalid(path, why, "Correct it in the notebook's JSON.") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"It is not JSON: {error}.", fix) from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise _invalid(path, "It is not a notebook of format 4.", fix)
    return text, notebook


def _metadata(notebook: Mapping[str, object], path: Path) -> Mapping[str, object]:
    everything = notebook.get("metadata")
    metadata = everything.get("vmsnix") if isinstance(everything, dict) else None
    if not isinstance(metadata, dict):
        why = 'Its metadata has no "vmsnix" entry.'
        raise _invalid(path, why, "Add title, description and side_effects.")
    if metadata.get("side_effects") not in get_args(SideEffects):
        fix = f"Declare one of {', '.join(get_args(SideEffects))} in the notebook's metadata."
        raise _invalid(path, f"Its side_effects are {metadata.get('side_effects')!r}.", fix)
    return metadata


def _required(metadata: Mapping[str, object], path: Path) -> tuple[str, ...]:
    required = metadata.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        fix = 'Write ["ami or image"] in the notebook\'s metadata.'
        raise _invalid(path, f'Its "required" is {required!r}, not a list of texts.', fix)
    return tuple(required)


def _parameters_source(notebook: Mapping[str, object], path: Path) -> str:
    tagged = []
    for cell in cast("list[dict[str, object]]", notebook["cells"]):
        metadata = cell.get("metadata")
        tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
        if cell.get("cell_type") == "code" and "parameters" in tags:
            tagged.append(cell.get("source", ""))
    if len(tagged) != 1:
        why = f"{len(tagged)} cells are tagged 'parameters'."
        raise _invalid(path, why, "Tag exactly one code cell with it.")
    source = tagged[0]
    return "".join(source) if isinstance(source, list) else str(source)


def _check_dry_run(runbook: Runbook) -> None:
    """Refuse a runbook that deletes without ``dry_run: bool = True``."""
    safe = any(one.name == "dry_run" and one.default is True for one in runbook.parameters)
    if runbook.side_effects == "deletes" and not safe:
        why = "It deletes, but its parameters cell does not declare `dry_run: bool = True`."
        raise _invalid(runbook.path, why, "Declare it, and use it in the notebook.")


def _check_arguments(runbook: Runbook) -> None:
    lists = [one.name for one in runbook.parameters if one.type.kind == "list"]
    if runbook.arguments and runbook.arguments not in lists:
        why = f"Its metadata names {runbook.arguments!r} as arguments, which is not a list parameter."
        raise _invalid(runbook.path, why, "Correct the name, or remove it.")
