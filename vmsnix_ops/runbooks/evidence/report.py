"""An executed notebook as one static page: no scripts, nothing remote, readable in light and dark.

nbconvert renders the cells; its own pages link scripts from content networks, an unpinned one among them,
so the page around the cells is ours. A content security policy in the page makes the browser keep the
promise.
"""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops import templates
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.text import html, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

FACTS = (
    "ami_id",
    "image_name",
    "region",
    "account",
    "snapshot_id",
    "digest",
    "run_id",
    "started_at",
    "version",
    "package_version",
)
FORBIDDEN = frozenset(
    {"script", "iframe", "object", "embed", "link", "meta", "base", "form", "applet", "frame", "portal"}
)
VOID = frozenset({"link", "meta", "base", "embed", "frame"})
LOADS = frozenset({"src", "srcset", "background", "poster", "data", "xlink:href", "action", "formaction"})


def render(notebook: Any, values: Mapping[str, Any]) -> str:
    """Return the page of a run.

    Parameters
    ----------
    notebook
        Executed ``NotebookNode``, already without secrets.
    values
        Content of ``result.json``.
    """
    facts = [(key.replace("_", " "), values[key]) for key in FACTS if values.get(key) not in (None, "")]
    if isinstance(values.get("seconds"), int | float):
        facts.append(("took", human_seconds(values["seconds"])))
    return templates.page(
        "runbooks/evidence/report.html",
        style=_style(),
        facts=facts,
        error=values.get("failure"),
        sandbox=values.get("sandbox"),
        runbook=values["runbook"],
        status=values["status"],
        cells=clean(_body(notebook)),
    )


def clean(markup: str) -> str:
    """Return HTML without anything that runs or loads: scripts, frames, handlers, remote files."""
    cleaner = _Cleaner()
    cleaner.feed(markup)
    cleaner.close()
    return "".join(cleaner.parts)


def _body(notebook: Any) -> str:
    from nbconvert.exporters.html import HTMLExporter

    exporter: Any = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="page",
        extra_template_basedirs=[str(files("vmsnix_ops.runbooks") / "_report")],
        exclude_anchor_links=True,
    )
    body, _resources = exporter.from_notebook_node(notebook)
    return str(body)


@cache
def _style() -> str:
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    own = (files("vmsnix_ops.runbooks") / "_report" / "report.css").read_text(encoding="utf-8")
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    # The page's own colours come last: the code's background is the page's, not the style's.
    return f"{colours}{own}"


class _Cleaner(HTMLParser):
    """Writes HTML anew, without what is forbidden."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self._inside: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN:
            if tag not in VOID:
                self._inside.append(tag)
        elif not self._inside:
            self._style = tag == "style"
            self.parts.append(f"<{tag}{_attributes(attrs)}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in FORBIDDEN and not self._inside:
            self.parts.append(f"<{tag}{_attributes(attrs)}/>")

    def handle_endtag(self, tag: str) -> None:
        if tag in FORBIDDEN:
            if tag in self._inside:
                del self._inside[self._inside.index(tag) :]
        elif not self._inside:
            self._style = False
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._write(_harmless_style(data) if self._style else visible(data))

    def handle_entityref(self, name: str) -> None:
        self._write(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._write(html(unescape(f"&#{name};")))

    def _write(self, text: str) -> None:
        if not self._inside:
            self.parts.append(text)


def _attributes(attrs: list[tuple[str, str | None]]) -> str:
    kept = []
    for name, value in attrs:
        text = value or ""
        scheme = re.sub(r"[\x00-\x20]", "", text).lower()
        if name.startswith("on") or scheme.startswith(("javascript:", "vbscript:")):
            continue
        if name in LOADS and not scheme.startswith("data:image/"):
            continue
        if name == "style":
            text = _harmless_style(text)
        kept.append(f" {name}" if value is None else f' {name}="{html(text)}"')
    return "".join(kept)


def _harmless_style(text: str) -> str:
    return re.sub(
        r"@import[^;]*;?|url\(\s*['\"]?(?!\s*['\"]?(?:data:|#))[^)]*\)", "", text, flags=re.IGNORECASE
    )
