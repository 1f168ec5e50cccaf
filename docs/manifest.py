"""Write the manifest of the runbooks from the notebooks; see `vmsnix_ops.runbooks.catalog`.

The notebooks are written as JupyterLab writes them too, so that saving one there changes nothing else.

Usage: python -m docs.manifest; ``just runbooks`` does this and writes the table in README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbformat

from vmsnix_ops.errors import RunError
from vmsnix_ops.runbooks import catalog

FOLDER = Path(__file__).parent.parent / "notebooks"


def make_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of notebooks; a RunError if one is invalid."""
    paths = sorted(path for path in folder.iterdir() if catalog.FILE_NAME.match(path.name))
    books = [catalog.read(path) for path in paths]
    return {
        "runbooks": [
            {
                "name": book.name,
                "file": book.path.name,
                "number": book.number,
                "title": book.title,
                "description": book.description,
                "side_effects": book.side_effects,
                "arguments": book.arguments,
                "required": list(book.required),
                "cells_sha256": catalog.digest(catalog.load(book.path, "")[1]),
                "parameters": [one.as_dict() for one in book.parameters],
            }
            for book in books
        ]
    }


def text() -> str:
    """Return the content of the manifest."""
    return json.dumps(make_manifest(FOLDER), indent=1, ensure_ascii=False) + "\n"


def formatted_as_saved(content: str) -> str:
    """Return a notebook as JupyterLab writes it."""
    written: str = nbformat.writes(nbformat.reads(content, as_version=4))
    return f"{written}\n"


def main() -> int:
    """Write the notebooks and the manifest."""
    for path in FOLDER.glob("*.ipynb"):
        content = path.read_text(encoding="utf-8")
        if (formatted := formatted_as_saved(content)) != content:
            path.write_text(formatted, encoding="utf-8")
    try:
        catalog.MANIFEST.write_text(text(), encoding="utf-8")
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
