"""The report of a run: a static page that loads nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pandas as pd
import pytest

from tests.hostile import hidden
from tests.pages import Page
from vmsnix_ops.runbooks.evidence.report import clean, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runbooks.shelf import Shelf

VALUES = {
    "runbook": "publish-ami",
    "status": "done",
    "run_id": "20261122T213000025Z-publish-ami-abc123",
    "seconds": 12.5,
    "ami_id": "ami-0123456789abcdef0",
    "failure": None,
}


class Loads(HTMLParser):
    """Collects everything that a browser would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "base"):
            self.found.append(tag)
        for name, value in attrs:
            local = (value or "").startswith(("data:", "#"))
            if name in ("src", "srcset", "data", "poster", "xlink:href") and not local:
                self.found.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.found.append(f"{tag} {name}")


def page(*cells: nbformat.NotebookNode, **values: object) -> str:
    return render(nbformat.v4.new_notebook(cells=list(cells)), VALUES | values)


def code(source: str, *outputs: nbformat.NotebookNode, number: int | None = 1) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=number)


def shown(**data: str) -> nbformat.NotebookNode:
    types = {"html": "text/html", "plain": "text/plain", "svg": "image/svg+xml", "png": "image/png"}
    types |= {"javascript": "application/javascript", "widget": "application/vnd.jupyter.widget-view+json"}
    return nbformat.v4.new_output("display_data", {types[name]: value for name, value in data.items()})


EVIL = [
    shown(html='<script src="https://cdn.example/x.js"></script><b>table</b>'),
    shown(
        html='<script>alert(1)</script><img src="https://example.org/pixel.gif" onerror="x()"><b>table</b>'
    ),
    shown(html='<link rel="stylesheet" href="https://example.org/x.css"><b>table</b>'),
    shown(html='<iframe src="https://example.org"><script>1</script></iframe><b>table</b>'),
    shown(html='<svg><image xlink:href="https://example.org/x.png"/></svg><b>table</b>'),
    shown(
        html='<style>@import url("https://example.org/x.css"); b{background:url(//e.org/x)}</style>'
        "<b>table</b>"
    ),
    shown(
        html='<SCRIPT SRC=https://example.org/x.js></SCRIPT><object data="https://e.org"></object><b>table</b>'
    ),
    shown(html='<a href="java\nscript:alert(1)">link</a><b>table</b>'),
    shown(html='<svg onload="alert(1)"><path d="M0 0" onclick="alert(1)"/></svg><b>table</b>'),
    shown(html='<svg><use href="https://example.org/x.svg#a"/></svg><b>table</b>'),
    shown(html='<svg><a xlink:href="javascript:alert(1)"/></svg><b>table</b>'),
    shown(html='<svg><animate onbegin="alert(1)" attributeName="x"/></svg><b>table</b>'),
    shown(html='<svg><rect fill="url(//e.org/x)" stroke="u\\72l(//e.org/x)"/></svg><b>table</b>'),
    shown(html='<a href="&#106;avascript:alert(1)">a</a><a href=" vbscript:alert(1)">b</a><b>table</b>'),
    shown(html='<a href="data:text/html,<script>alert(1)</script>">link</a><b>table</b>'),
    shown(html='<p style="background:url(//e.org/x); color: red">p</p><b>table</b>'),
    shown(html="<p style=\"background:u\\72l(//e.org/x);width:image-set('//e.org/x' 1x)\">p</p><b>table</b>"),
    shown(html="<style>a{color:red}</style><p style='content:url(//e.org)'>p</p><b>table</b>"),
    shown(html='<style>@\\69mport "//e.org/x";b{background:image("//e.org/x")}</style><b>table</b>'),
    shown(html='<video poster="//e.org/x"><source src="//e.org/x"></video><b>table</b>'),
    shown(
        html='<form action="//e.org"><input name=x><button formaction="//e.org">b</button></form><b>table</b>'
    ),
    shown(html='<meta http-equiv="refresh" content="0;url=//e.org"><b>table</b>'),
    shown(javascript="alert(1)", html="<b>table</b>"),
    shown(widget='{"model_id": "x"}', html="<b>table</b>"),
]


@pytest.mark.parametrize("output", EVIL)
def test_a_report_loads_nothing_and_runs_nothing(output: nbformat.NotebookNode) -> None:
    text = page(nbformat.v4.new_markdown_cell("# Title\n\n$x^2$\n"), code("x", output))
    assert Loads(text).found == ["script"]
    Page(text)  # the script is that of the package
    assert "example.org" not in text
    assert "//e.org" not in text
    assert "alert(1)" not in text
    assert "<b>table</b>" in text


# Markup that a browser reads in another way when it was written once by a sanitizer ("mutation XSS").
MUTATIONS = [
    '<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<svg><desc><style><![CDATA[</style><img src=1 onerror=alert(1)>]]></style></desc></svg>",
    '<noscript><p title="</noscript><img src=1 onerror=alert(1)>"></noscript>',
    "<svg><foreignObject><iframe></foreignObject><img src=1 onerror=alert(1)></iframe></svg>",
    '<textarea><img title="</textarea><img src=1 onerror=alert(1)>"></textarea>',
    '<style>td[x="</style><script>alert(1)</script>"]{color:red}</style>',
    '<style>td[x="\\3c/style\\3e\\3cscript\\3e alert(1)"]{color:red}</style>',
    '<style>td{font-family:"\\3c/style\\3e\\3cscript\\3e alert(1)"}</style>',
    '<p title="<style>b{color:red}</style><img src=1 onerror=alert(1)>">',
    "<xmp><p title='</xmp><img src=1 onerror=alert(1)>'></xmp>",
    "<!--><img src=1 onerror=alert(1)>--><![CDATA[><img src=1 onerror=alert(1)>]]>",
]


@pytest.mark.parametrize("markup", MUTATIONS)
def test_cleaning_clean_markup_changes_nothing(markup: str) -> None:
    once = clean(markup)
    assert Loads(once).found == []
    assert "<script" not in once
    rest = once.rpartition("</style>")[2]
    assert clean(rest) == rest


@pytest.mark.parametrize(
    "markup",
    [
        "<table><tbody><tr><td>1</td></tr></tbody></table>",
        '<td style="text-align: left; white-space: nowrap">1</td>',
        '<details open=""><summary>more</summary>text</details>',
        '<img src="data:image/png;base64,iVBORw0KGgo=" alt="plot">',
        '<svg viewBox="0 0 9 9"><g transform="rotate(45)"><path d="M0 0L9 9" fill="#fff"></path></g></svg>',
        '<a href="mailto:ops@x.example">mail</a> <a href="#part">part</a> <a href="other.html">other</a>',
        '<p style="background-color: rgb(1, 2, 3); width: calc(1em + 2px)">colour</p>',
    ],
)
def test_tables_plots_and_links_are_kept(markup: str) -> None:
    whole = markup if "<td style" not in markup else f"<table><tbody><tr>{markup}</tr></tbody></table>"
    assert clean(whole) == whole


def test_styles_of_pandas_are_kept_for_their_table_only() -> None:
    styled = pd.DataFrame({"a": [1, 2]}).style.highlight_max(color="yellow").bar(color="#d65f5f")
    text = clean(styled.to_html(table_uuid="x"))
    assert text.startswith("<style>.output {#T_x_row0_col0 {width: 10em; background: linear-gradient(90deg,")
    assert "#T_x_row1_col0 {background-color: yellow;" in text
    assert '<td id="T_x_row1_col0" class="data row1 col0">2</td>' in text


def test_an_output_cannot_cover_the_page() -> None:
    text = clean(
        '<style>b{position:fixed;z-index:9;color:red}</style><b style="position:fixed;inset:0">x</b>'
    )
    assert text == "<style>.output {b {color: red}\n}</style><b>x</b>"


@pytest.mark.parametrize("cell", [nbformat.v4.new_markdown_cell, lambda text: code("x", shown(html=text))])
def test_an_output_cannot_close_the_element_around_it(cell: Callable[[str], nbformat.NotebookNode]) -> None:
    text = page(cell('</div></section></main><header class="failed"><h1 id="cell-1">failed</h1></header>'))
    assert text.count("<header") == text.count("</main>") == text.count("</header>") == 1
    assert '<h1 id="cell-1"' not in text


def test_hidden_characters_of_an_output_are_visible() -> None:
    text = page(code("x  # \u202e", shown(html="<b>&#8238;\u202e</b>", plain="\u202e")))
    assert "<b>\\u202e\\u202e</b>" in text
    assert hidden(text) == []


@pytest.mark.parametrize(
    "markup",
    [
        "<div>" * 100_000,
        "".join(f"<p><b class=x{number}></p>" for number in range(20_000)),
        "".join(f"<b class=x{number}><table><td></b></td></table>" for number in range(20_000)),
        "".join(f"<!--</b>--><b class=x{number}>" for number in range(20_000)),
        "".join(f"<title></b></title><b class=x{number}>" for number in range(20_000)),
        "<p " + "x=1 " * 100_000 + "<",
        "<style>" * 20000,
        "<style" * 20000,
        f"<p style='width:{'calc(' * 20000}'>",
        f"<style>a{':is(' * 5000}b{')' * 5000}{{color:red}}</style>",
        f"<style>a{{width:{'calc(' * 5000}{')' * 5000}}}</style>",
    ],
)
def test_badly_nested_markup_is_cleaned_quickly(markup: str) -> None:
    assert len(clean(markup)) < 3 * len(markup)


def test_long_tables_are_kept() -> None:
    frame = pd.DataFrame({"name": ["x", "<y>"] * 1_000, "bytes": range(2_000)})
    text = frame.to_html()
    assert text.count("<") > 8_000
    assert clean(text).count("<td>") == 4_000
    styled = frame.style.format(escape="html").bar(subset=["bytes"])
    assert clean(styled.to_html()).count("</td>") == 4_000


def test_long_markup_that_is_badly_nested_is_shown_as_its_source() -> None:
    text = clean("<p>one<b>two</p>" * 1_000)
    assert text.startswith("<p>This output is shown as source: ")
    assert "&lt;p&gt;one&lt;b&gt;two&lt;/p&gt;" in text


def test_the_page_forbids_the_browser_to_load_or_run_anything() -> None:
    assert "default-src 'none'" in page(code("x"))


def test_plain_links_are_kept() -> None:
    assert '<a href="https://example.org/docs">docs</a>' in clean(
        '<a href="https://example.org/docs">docs</a>'
    )


def test_a_report_shows_the_verdict_and_the_facts() -> None:
    text = page(code("x"))
    for fact in ("publish-ami", "done", "ami-0123456789abcdef0", "12 s"):
        assert fact in text


def test_a_run_is_marked_with_its_endpoint() -> None:
    badges = {"aws": "AWS", "sandbox": "sandbox", "custom": "custom endpoint"}
    for endpoint, text in badges.items():
        assert f'<span class="endpoint {endpoint}">{text}</span>' in page(code("x"), endpoint=endpoint)
    assert '<span class="endpoint sandbox">' in page(code("x"), sandbox="http://127.0.0.1:1")
    assert '<span class="endpoint' not in page(code("x"), sandbox=None)


def test_a_report_shows_the_error_once_and_links_the_cell() -> None:
    failure = {"what": "It broke.", "why": "It was <old>.", "fix": "Mend it.", "cell": 3}
    error = nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["\x1b[31mE\x1b[0m: v"])
    text = page(code("boom()", error, number=3), status="failed", failure=failure)
    assert 'href="#cell-3"' in text
    assert 'id="cell-3"' in text
    assert text.count("It broke.") == 1
    assert "It was &lt;old&gt;." in text
    assert "ansi-red-fg" in text


def test_tables_plots_and_prints_are_shown_and_code_is_folded() -> None:
    text = page(
        code("plan", shown(html="<table><tr><td>upload</td></tr></table>", plain="plan")),
        code("plot", shown(png="iVBORw0KGgo=", plain="<Figure>")),
        code("plot", shown(svg="<svg xmlns='http://www.w3.org/2000/svg'/>")),
        code("print", nbformat.v4.new_output("stream", name="stdout", text="1 < 2\n")),
    )
    assert "<td>upload</td>" in text
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in text
    assert 'src="data:image/svg+xml;base64,' in text
    assert "1 &lt; 2" in text
    assert "<details>" in text
    assert "&lt;Figure&gt;</pre>" not in text


def test_parameters_are_not_folded() -> None:
    cell = code("region = 'us-east-1'")
    cell.metadata["tags"] = ["injected-parameters"]
    assert "<details open" in page(cell)


def test_cells_that_did_not_run_are_marked() -> None:
    assert "not run" in page(code("never()", number=None))


def test_a_report_has_a_light_and_a_dark_theme() -> None:
    text = page(code("x"))
    assert "prefers-color-scheme: dark" in text
    assert 'name="color-scheme" content="light dark"' in text


def test_values_are_escaped() -> None:
    text = page(code("x"), runbook="<script>alert(1)</script>", image_name="<img src=x onerror=alert(1)>")
    assert Loads(text).found == ["script"]
    Page(text)  # the script is that of the package


def test_a_long_name_in_a_frame_is_shown_whole(shelf: Shelf) -> None:
    name = "altf4llc-ecs-node-26.05.20261122.0123456-x86_64-linux-" + "d" * 64
    outcome = shelf.run(
        "import pandas\nfrom vmsnix_ops.display import frame_table",
        f"frame = pandas.DataFrame({{'name': [{name!r}]}})\nframe",
        "frame_table(frame)",
    )
    report = Path(outcome.report).read_text()
    assert report.count(name) == report.count(name[:30]) >= 3
    assert Path(outcome.log).read_text().count(name) == 2
