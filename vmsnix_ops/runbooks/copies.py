"""Copies of the package's notebooks for JupyterLab, and what differs between notebooks.

`vmsnix lab` opens copies in a work folder, so that the package's notebooks are not changed by accident. A
copy is made once and never overwritten. A hidden file in the folder records the digest of the cells from
which each copy was made; it shows which copies are older than the package's notebooks, and which were
edited.
"""

from __future__ import annotations

import copy
import difflib
import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files, settings
from vmsnix_ops.errors import RunError, UnknownRunbookError, UsageError, nearest
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CONSOLE = "console.ipynb"
"""Notebook of the console, which is copied too; it is not a runbook."""

RECORD = ".vmsnix-copies.json"
"""In a work folder: for each copy, the digests of the cells that were copied, and that the user rejected."""

GIT_SECONDS = 20
OUTPUT_METADATA = ("collapsed", "execution", "scrolled")
"""Metadata of a cell that belong to its outputs."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a notebook of the package."""

    name: str  # of the runbook, or "console"
    source: Path  # the notebook of the package
    path: Path
    edited: bool  # the cells differ from those that were copied
    outdated: bool  # the package's cells have changed since, and the user has not decided to keep the copy


def work_folder(state: Path) -> Path:
    """Return the default folder of the copies."""
    return state / "notebooks"


def originals() -> dict[str, Path]:
    """Return the notebooks of the package by name: those of the runbooks, and the console's."""
    books = {book.name: book.path for book in catalog.runbooks() if not book.own}
    return {**books, "console": catalog.default_folder() / CONSOLE}


def original(name: str) -> tuple[str, Path]:
    """Return the full name and the notebook of a runbook of the package.

    An `UnknownRunbookError` if there is none, and a `UsageError` for an own runbook.
    """
    known = originals()
    full = catalog.full_name(name.removesuffix(".ipynb"))
    if full in known:
        return full, known[full]
    if full in catalog.names():
        raise UsageError(
            f"{full} is a runbook of your own.",
            why="It is not copied, and the package has no other version of it.",
            fix="Compare it with your version control, such as git diff.",
        )
    raise UnknownRunbookError(
        f"Unknown runbook {name!r}.", why=nearest(full, known), fix="Run vmsnix list to list them."
    )


def make(folder: Path) -> tuple[list[Copy], list[RunError]]:
    """Make the missing copies in a work folder.

    Returns all copies, and an error for each notebook of the package that is missing or damaged. A
    `UsageError` if the folder is the one of the package's notebooks.
    """
    package, own = catalog.default_folder(), [path.resolve() for path in settings.runbook_folders()]
    if folder.resolve() in own:
        raise UsageError(
            f"{folder} is a folder of own runbooks.",
            why="The copies would have the same names as the runbooks of the package.",
            fix="Use another folder; it contains links to your folders of own runbooks.",
        )
    if folder.resolve() == package.resolve():
        raise UsageError(
            f"{folder} is the folder of the shared notebooks.",
            why="vmsnix lab opens copies.",
            fix="Use another folder, or edit the shared notebooks with vmsnix lab --edit.",
        )
    files.make_folder(folder)
    record, copies, problems = _read_record(folder), [], list[RunError]()
    for name, source in originals().items():
        path = folder / source.name
        try:
            text, notebook = catalog.load(source, catalog.restore_original(source))
        except RunError as error:
            problems.append(error)
            continue
        current = catalog.digest(notebook)
        if not path.exists():
            _write(path, text)
            record[source.name] = {"copied": current}
        known = record.setdefault(source.name, {"copied": _digest(path)})
        copies.append(
            Copy(
                name,
                source,
                path,
                edited=_digest(path) != known["copied"],
                outdated=current not in (_digest(path), *known.values()),
            )
        )
    _write_record(folder, record)
    for path in own:
        _link(folder / f"own-{path.name}", path)
    return copies, problems


def _link(link: Path, folder: Path) -> None:
    """Show a folder of own runbooks in the work folder; what a user has put there is not replaced."""
    if link.is_symlink():
        link.unlink()
    if not link.exists() and folder.is_dir():
        link.symlink_to(folder)


def keep(folder: Path, copies: Iterable[Copy]) -> None:
    """Remember that the user keeps these copies, until the package's notebooks change again."""
    record = _read_record(folder)
    for one in copies:
        record[one.path.name] = {**record.get(one.path.name, {}), "kept": _digest(one.source)}
    _write_record(folder, record)


def reset(folder: Path, name: str) -> Path | None:
    """Replace a copy by the package's notebook, and return the path of the old copy.

    Safe to run twice: without differences it returns ``None`` and changes nothing. Nothing is changed either
    if the package's notebook is missing or damaged, which is a `RunError`.
    """
    _, source = original(name)
    text, notebook = catalog.load(source, catalog.restore_original(source))
    path, current, old = folder / source.name, catalog.digest(notebook), None
    if path.exists():
        if _digest(path) == current:
            return None
        old = _free_name(path)
        path.rename(old)
    files.make_folder(folder)
    _write(path, text)
    _write_record(folder, {**_read_record(folder), source.name: {"copied": current}})
    return old


def compare(name: str, folder: Path) -> list[str]:
    """Return what differs in a notebook of the package and in its copy, as lines of unified diffs.

    The package's notebook is compared with its last commit in git, or else with the manifest, which contains
    only a digest of the cells. The copy is compared with the package's notebook.
    """
    full, source = original(name)
    if not source.exists():
        return [f"{source} is missing. {catalog.restore_original(source)}"]
    shown = _compare_original(full, source)
    own = folder / source.name
    if own.exists():
        shown += _diff(_text(source), _text(own), f"the package's {source.name}", f"your copy {own}")
    return shown


def _compare_original(name: str, source: Path) -> list[str]:
    committed = _committed(source)
    shown = []
    if committed is not None:
        shown = _diff(committed, _text(source), f"the committed {source.name}", str(source))
    book = next((book for book in catalog.runbooks() if book.name == name), None)
    if shown or book is None or _digest(source) == book.digest:
        return shown
    if committed is not None:
        return [f"The manifest is older than {source.name}. Run `just runbooks`, and commit it."]
    return [f"The cells of {source} differ from those of the package. {catalog.restore(book)}"]


def _committed(path: Path) -> str | None:
    """Return the last committed content of a file; ``None`` without git or outside of a repository."""
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS, check=False)
        if done.returncode == 0:
            return done.stdout.decode("utf-8", errors="replace")
    return None


def _diff(before: str, after: str, name_before: str, name_after: str) -> list[str]:
    return list(
        difflib.unified_diff(_lines(before), _lines(after), name_before, name_after, n=2, lineterm="")
    )


def _lines(text: str) -> list[str]:
    """Return the cells of a notebook as lines; the raw text of a file that is not a notebook."""
    try:
        cells = json.loads(text)["cells"]
        found = []
        for cell in cells:
            tags = cell.get("metadata", {}).get("tags", [])
            found.append(f"[{', '.join([cell['cell_type'], *tags])}]")
            found += "".join(cell["source"]).splitlines()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text.splitlines()
    return found


def _text(path: Path) -> str:
    try:
        return files.read(path).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _digest(path: Path) -> str:
    """Return the digest of the cells of a notebook; empty for a file that is not a notebook."""
    try:
        return catalog.digest(catalog.load(path, "")[1])
    except RunError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write an unchanged copy, completely or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with files.open_text(temporary) as file:
        file.write(text)
    temporary.replace(path)


def _free_name(path: Path) -> Path:
    now, number = f"{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    kept = path.with_name(f"{path.stem}.kept-{now}.ipynb")
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.kept-{now}-{number}.ipynb")
    return kept


def _read_record(folder: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(files.read(folder / RECORD))
    except (OSError, ValueError):
        return {}
    return {
        str(name): {str(key): str(value) for key, value in one.items()}
        for name, one in (found.items() if isinstance(found, dict) else ())
        if isinstance(one, dict) and "copied" in one
    }


def _write_record(folder: Path, record: Mapping[str, Mapping[str, str]]) -> None:
    if record != _read_record(folder):
        files.write(folder / RECORD, json.dumps(record, indent=1))


def strip_outputs(path: str, model: dict[str, Any], **_others: Any) -> None:
    """Remove what a run or an editor adds to a shared notebook, before JupyterLab saves it.

    This is a hook of Jupyter's contents manager in ``vmsnix lab --edit``. Only the notebooks of the package,
    and new ones with a number beside them, are changed; copies of evidence are in a folder below.
    """
    if model.get("type") != "notebook" or "/" in path.strip("/"):
        return
    if not (path.strip("/") == CONSOLE or catalog.FILE_NAME.match(path.strip("/"))):
        return
    notebook = model["content"]
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"] |= copy.deepcopy(catalog.NOTEBOOK_METADATA)
    for cell in notebook["cells"]:
        for key in OUTPUT_METADATA:
            cell["metadata"].pop(key, None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
