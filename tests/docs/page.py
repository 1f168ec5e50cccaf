"""The pages of the documentation as a reader uses them: their blocks, commands and outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NAMES = ["README.md", "CONTRIBUTING.md", "nix/README.md"]
NAMES += [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "[!_]*/*.md")
    for path in sorted((ROOT / "docs").glob(pattern))
]
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
UNITS = "MiB/s|s/GiB|s|min|h|B|KiB|MiB|GiB|TiB|%|x|USD"
SHAPES = [
    (re.compile(r"\d{8}T\d{9}Z-([a-z-]+)-[0-9a-f]{6}"), r"RUN-\1"),
    (re.compile(r"\b(ami|snap|vol|i|lt|import-ami|import-snap)-[0-9a-f]{8,17}\b"), r"\1-ID"),
    (re.compile(r"\S+/(archive|sandbox|broken)\b"), r"\1"),
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,64}\b"), "HEX"),
    (re.compile(r"-x86_64-linux-HEX"), ""),  # pages shorten the names of AMIs
    (re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d)?"), "DATE"),
    (re.compile(rf"[-+]?\d([\d,.]*\d)?( ({UNITS})(?=\W|$))?"), "N"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\bN( N)+\b"), "N"),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, without its indentation."""

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> Iterator[Command]:
        """Yield the commands of a block for a shell, each with the output that the page shows."""
        prompt = "$ " if re.match(r"\$ ", self.text) else ""
        if self.language not in ("sh", "console") and not (prompt and self.language == "text"):
            return
        if self.text.startswith("#!"):
            yield Command(self, self.text, None)
            return
        words: list[str] = []
        made: list[Command] = []
        for line in self.text.splitlines():
            if words or line.startswith(prompt):
                words.append(line if words else line.removeprefix(prompt))
                if not words[-1].endswith(("\\", "|")):
                    text = "\n".join(words).removesuffix("&&").strip()
                    if text and not text.startswith("#"):
                        made.append(Command(self, text, [] if prompt else None))
                    words = []
            elif made:
                made[-1].shown.append(line)  # type: ignore[union-attr]
        yield from made


@dataclass(frozen=True)
class Command:
    """A command of a block, which may have several lines, and the lines that it prints on the page."""

    block: Block
    text: str
    shown: list[str] | None


def text_of(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, from top to bottom."""
    text = text_of(page)
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found[2],
            re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE),
        )
        for found in FENCE.finditer(text)
    ]


def shape(text: str) -> str:
    """Return a text without what differs between two runs: IDs, times, sizes, paths, spaces."""
    for pattern, word in SHAPES:
        text = pattern.sub(word, text)
    return text.strip()


def missing_lines(shown: list[str], printed: str) -> list[str]:
    """Return the lines of a page whose shape is not in an output; ``...`` are lines that are left out."""
    all_of_it = shape(printed)
    return [line for line in shown if line.strip() not in ("", "...") and shape(line) not in all_of_it]
