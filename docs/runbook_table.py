"""Write the table of runbooks from the metadata of the notebooks.

Usage: python docs/runbook_table.py [--check]

Write it between the markers in README.md. With ``--check``, only report whether it is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vmsnix_ops.runbooks.catalog import Runbook
from vmsnix_ops.runbooks.catalog import runbooks as read_all

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(?<=<!-- runbooks -->\n).*(?=<!-- /runbooks -->)", re.DOTALL)


def runbooks() -> tuple[Runbook, ...]:
    """Return the runbooks of this checkout, from the manifest."""
    return tuple(book for book in read_all() if not book.own)


def table() -> str:
    """Return a Markdown table with one line for each runbook."""
    lines = ["| command | what it does | effect |", "|---|---|---|"]
    for runbook in runbooks():
        what, effect = runbook.description or runbook.title, runbook.side_effects.replace("_", "-")
        lines.append(f"| `vmsnix {runbook.short_name}` | {what} | {effect} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the table, or check that it is up to date."""
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    if MARKED.search(before) is None:
        sys.stderr.write("README.md has no markers <!-- runbooks --> and <!-- /runbooks -->.\n")
        return 1
    after = MARKED.sub(lambda _match: f"\n{table()}\n\n", before)
    if arguments == ["--check"]:
        if before != after:
            sys.stderr.write("The table in README.md is out of date: run `python docs/runbook_table.py`.\n")
        return int(before != after)
    readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
