"""Read a static page: its elements, its scripts, and the rows of its tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import vmsnix_ops

SCRIPT = (Path(vmsnix_ops.__file__).parent / "page.js").read_text()
FLEXIBLE = 9
"""Least width of a column without a width, in rem, as in page.js."""
NARROW = 60
"""Width of a table in a window of 1024 pixels, in rem, without the margins and two scroll bars."""


class Elements(HTMLParser):
    """What HTML has: its elements, their attributes, its policy, and the content of its scripts."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.policy = ""
        self.scripts: list[tuple[str, str, str]] = []  # type, title and content
        self._begun: tuple[str, str] | None = None
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        for name, value in given.items():
            self.attributes.setdefault(name, set()).add(value)
        if given.get("http-equiv") == "Content-Security-Policy":
            assert not self.policy
            self.policy = given["content"]
        if tag == "script":
            assert given.keys() <= {"type", "data-title"}
            self._begun = (given.get("type", ""), given.get("data-title", ""))

    def handle_data(self, data: str) -> None:
        if self._begun:
            self.scripts.append((*self._begun, data))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._begun = None


class Page(Elements):
    """A page, whose policy allows no script but that of the package, and which has no other."""

    def __init__(self, page: str) -> None:
        super().__init__(page)
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        assert self.policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src ")
        assert [text for kind, _, text in self.scripts if kind != "application/json"] == [SCRIPT]
        for _, title, block in self.scripts[:-1]:
            shown = [one for one in json.loads(block)["columns"] if not one.get("hidden")]
            width = sum(one.get("width") or FLEXIBLE for one in shown)
            assert width <= NARROW, f"{title}: {width:.1f} rem do not fit into a window of 1024 pixels"
        self.tags.remove("script")

    def rows(self, title: str) -> list[dict[str, Any]]:
        """Return the rows of a table."""
        (block,) = [text for _, name, text in self.scripts if name == title]
        assert not re.search("[<>&]", block)
        table = json.loads(block)
        columns = {}
        for one in table["columns"]:
            words = one.get("words")
            columns[one["name"]] = [words[place] for place in one["values"]] if words else one["values"]
        assert {len(values) for values in columns.values()} == {table["count"]}
        return [{name: columns[name][row] for name in columns} for row in range(table["count"])]
