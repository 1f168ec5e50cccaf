"""Render an executed notebook as one page that loads nothing, and runs only its own script.

nbconvert renders the cells. Its own page template loads scripts from other hosts, so the page uses another
template. Each HTML and Markdown output is cleaned separately, so that none can close the element around it.
A content security policy in the page makes the browser refuse everything else.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops import templates
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.records.result import is_dry_run, marked
from vmsnix_ops.text import link_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nh3 import Cleaner

    from vmsnix_ops.pages import Lanes

FACTS = (
    "ami_id",
    "image_name",
    "region",
    "account",
    "sandbox",
    "snapshot_id",
    "digest",
    "run_id",
    "started_at",
    "version",
    "package_version",
)

# Elements that HTML and Markdown of a notebook may contain. Of any other element, only the text is kept. An
# inline SVG may contain shapes, but no element that could contain HTML, run a script, or load something.
TEXT = """
    a abbr b big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em
    figcaption figure font h1 h2 h3 h4 h5 h6 hr i img input ins kbd li mark ol p pre q s samp section small
    span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var
"""
SHAPES = "svg g path rect circle ellipse line polyline polygon text tspan"
ATTRIBUTES = {
    "*": "class id style title lang dir role aria-label align",
    "a": "href",
    "col": "span width",
    "details": "open",
    "font": "color",
    "img": "src alt width height",
    "input": "checked",
    "li": "value",
    "ol": "start type",
    "table": "border",
    "td": "colspan rowspan headers",
    "th": "colspan rowspan headers scope",
    "time": "datetime",
}
SHAPE_ATTRIBUTES = """
    viewBox preserveAspectRatio width height x y x1 x2 y1 y2 cx cy r rx ry dx dy d points transform fill
    fill-opacity stroke stroke-width stroke-opacity stroke-dasharray stroke-linecap stroke-linejoin opacity
    font-family font-size font-weight text-anchor dominant-baseline
"""
WITHOUT_CONTENT = "script style iframe object noscript noembed noframes template title"
IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,", re.IGNORECASE)

# CSS that an output may contain: colours, sizes and alignment, but no positions and nothing that is loaded.
PROPERTIES = re.compile(
    r"background(-color)?|border(-(top|right|bottom|left))?(-(color|style|width|radius))?|border-(collapse|spacing)"
    r"|caption-side|color|display|empty-cells|fill|font(-(family|size|style|variant|variant-numeric|weight))?"
    r"|letter-spacing|line-height|list-style-type|(max-|min-)?(height|width)|opacity|overflow(-[xy]|-wrap)?"
    r"|padding(-(top|right|bottom|left))?|stroke(-width)?|table-layout|text-(align|decoration|overflow|transform)"
    r"|vertical-align|white-space|word-break"
)
FUNCTIONS = frozenset({"rgb", "rgba", "hsl", "hsla", "calc", "min", "max", "clamp", "var", "linear-gradient"})
PSEUDO_CLASSES = frozenset({"is", "not", "where", "nth-child", "nth-last-child", "nth-of-type"})
TOKENS = frozenset(
    {"ident", "hash", "number", "percentage", "dimension", "string", "literal", "whitespace", "comment"}
)


# nh3's parser needs time that grows at least with the square of the number of unclosed elements: 20,000 take
# minutes. Long markup is cleaned only if its elements are well nested, which is checked without the parser.
FEW, DEEPEST = 1_000, 100  # tags; levels
TAG = re.compile(
    r"<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9]*+)"
    r"(?:\s++[A-Za-z_:][\w:.-]*+(?:=(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'<>=`]++))?+)*+\s*+/?>"
)
VOID = "area base br col embed hr img input link meta source track wbr"
OTHER_SYNTAX = "iframe math noembed noframes noscript plaintext script svg template textarea title xmp"
_SOURCE = "<p>{{ note }}</p><pre>{{ source }}</pre>"
NOT_SHOWN = "This output is shown as source: it has more than 1,000 tags that are not well nested."


def render(notebook: Any, values: Mapping[str, Any], pictures: Sequence[Lanes] = ()) -> str:
    """Return the page of a run, with pictures above the cells.

    The executed notebook has no secrets; `values` is the content of ``result.json``.
    """
    shown = marked(values)
    facts = [(key.replace("_", " "), shown[key]) for key in FACTS if shown.get(key) not in (None, "")]
    if isinstance(values.get("seconds"), int | float):
        facts.append(("took", human_seconds(values["seconds"])))
    return templates.page(
        "runbooks/evidence/report.html",
        style=_style(),
        facts=facts,
        error=values.get("failure"),
        endpoint=values.get("endpoint") or ("sandbox" if values.get("sandbox") else ""),
        modified=values.get("modified"),
        interactive=values.get("interactive"),
        dry_run=is_dry_run(values),
        runbook=values["runbook"],
        status=values["status"],
        cells=_body(notebook),
        pictures=pictures,
    )


def clean(markup: str) -> str:
    """Return HTML that runs nothing, loads nothing, and covers no other part of the page.

    The result is well-formed. Its style sheets come first, and apply only below an element with the class
    ``output``.
    """
    if markup.count("<") > FEW and not _is_well_nested(markup):
        return str(templates.fill(_SOURCE, note=NOT_SHOWN, source=markup))
    # nh3 either removes a style sheet or keeps it unchanged. Therefore the rules of each sheet are parsed and
    # written again. Whatever the pattern takes for a sheet, only allowed properties are written.
    sheets = re.split(r"<style\b[^<>]*>", markup, flags=re.IGNORECASE)[1:]
    rules = "".join(_rules(sheet.partition("</")[0]) for sheet in sheets)
    return (f"<style>.output {{{rules}}}</style>" if rules else "") + str(_cleaner().clean(markup))


def _is_well_nested(markup: str) -> bool:
    """Whether every element is closed inside the element that contains it, at most `DEEPEST` levels deep."""
    open_elements: list[str] = []
    at = markup.find("<")
    while at >= 0:
        tag = TAG.match(markup, at)
        if tag is None:
            return False
        name = tag["name"].lower()
        if tag["end"]:
            if not open_elements or open_elements.pop() != name:
                return False
        elif name not in VOID.split():
            open_elements.append(name)
        if len(open_elements) > DEEPEST or name in OTHER_SYNTAX.split():
            return False
        # The content of a style sheet is text until the end tag.
        at = markup.find("</" if name == "style" and not tag["end"] else "<", tag.end())
    return not open_elements


@cache
def _cleaner() -> Cleaner:
    from nh3 import Cleaner

    shapes = SHAPES.split()
    attributes = {tag: set(names.split()) for tag, names in ATTRIBUTES.items()}
    return Cleaner(
        tags={*TEXT.split(), *shapes},
        attributes=attributes | {shape: set(SHAPE_ATTRIBUTES.split()) for shape in shapes},
        clean_content_tags=set(WITHOUT_CONTENT.split()),
        url_schemes={"https", "http", "mailto", "data"},
        attribute_filter=_attribute,
        set_tag_attribute_values={"input": {"type": "checkbox", "disabled": ""}},  # in a task list
        link_rel=None,
    )


def _attribute(_tag: str, name: str, value: str) -> str | None:
    """Return the value of an allowed attribute, or ``None`` to remove the attribute."""
    kept = True
    if name == "style":
        value = _inline(value)
        kept = value != ""
    elif name in ("fill", "stroke"):  # in SVG, their values are CSS
        kept = _inline(f"{name}: {value}") != ""
    elif name == "src":
        kept = IMAGE.match(value) is not None
    elif name == "href":
        kept = link_target(value) != "" or value.startswith("mailto:")
    elif name == "id":
        kept = not value.startswith("cell-")  # reserved for the links of the page
    return value if kept else None


@lru_cache(maxsize=1000)
def _inline(style: str) -> str:
    """Return the allowed declarations of a style attribute; cached, because cells of a table share them."""
    import tinycss2

    return _declarations(tinycss2.parse_blocks_contents(style))


def _rules(sheet: str) -> str:
    """Return the allowed rules of a style sheet, without ``@import``, ``@font-face`` and other at-rules."""
    import tinycss2

    kept = []
    for rule in tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            declarations = _declarations(tinycss2.parse_blocks_contents(rule.content))
            if declarations and _is_plain(rule.prelude, PSEUDO_CLASSES):
                kept.append(f"{tinycss2.serialize(rule.prelude).strip()} {{{declarations}}}\n")
    return "".join(kept)


def _declarations(found: list[Any]) -> str:
    import tinycss2

    kept = []
    for one in found:
        if one.type == "declaration" and PROPERTIES.fullmatch(one.lower_name) and _is_plain(one.value):
            important = " !important" if one.important else ""
            kept.append(f"{one.lower_name}: {tinycss2.serialize(one.value).strip()}{important}")
    return "; ".join(kept)


def _is_plain(tokens: list[Any], functions: frozenset[str] = FUNCTIONS, depth: int = 5) -> bool:
    """Whether CSS contains only words, numbers, colours and the listed functions, and no end tag."""
    return depth > 0 and all(
        (token.type in TOKENS and "<" not in token.serialize())
        or (token.type == "[] block" and _is_plain(token.content, functions, depth - 1))
        or (
            token.type == "function"
            and token.lower_name in functions
            and _is_plain(token.arguments, functions, depth - 1)
        )
        for token in tokens
    )


def _body(notebook: Any) -> str:
    from nbconvert.exporters.html import HTMLExporter

    exporter: Any = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="page",
        extra_template_basedirs=[str(files("vmsnix_ops.runbooks") / "_report")],
        exclude_anchor_links=True,
    )
    exporter.register_filter("clean", clean)
    body, _resources = exporter.from_notebook_node(notebook)
    return str(body)


@cache
def _style() -> str:
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    own = (files("vmsnix_ops.runbooks") / "_report" / "report.css").read_text(encoding="utf-8")
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    # The page's own style comes last, because it sets the background of code.
    return f"{colours}{own}"
