"""Text from outside is shown as text: in a terminal, a CI log, HTML, Markdown, CSV and JSON."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from tests.hostile import HOSTILE, assert_safe_lines, read_github_file
from vmsnix_ops import text

PACKAGE = Path(text.__file__).parent


@pytest.mark.parametrize("word", HOSTILE)
def test_a_value_becomes_one_line_without_commands_and_control_characters(word: str) -> None:
    shown = text.line(word)
    assert shown.isprintable()
    assert_safe_lines(shown)
    assert text.line(shown) == shown


@pytest.mark.parametrize("word", HOSTILE)
def test_several_lines_are_kept_and_none_is_a_command(word: str) -> None:
    shown = text.lines(f"first\n{word}\tlast", indent="  | ")
    assert shown.startswith("first\n  | ")
    assert_safe_lines(shown)
    assert all(one.startswith("  | ") for one in shown.split("\n")[1:])


@pytest.mark.parametrize(
    "word", ["ami-0123456789abcdef0", "Zürich 东京 🎉", "a::b", "a # b", "50 %", "C:\\x", ""]
)
def test_ordinary_text_is_shown_as_it_is(word: str) -> None:
    assert text.line(word) == text.lines(word) == word
    assert text.json(word) == json.dumps(word, ensure_ascii=False)


@pytest.mark.parametrize(
    ("coloured", "plain"),
    [
        ("\x1b[1;31merror:\x1b[0m no", "error: no"),
        ("\x1b]8;;https://x.example\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x1b]52;c;ZWNobyBvd25lZA==\x07copied", "copied"),
        ("\x9b31mred", "red"),
        ("\x1b]0;never ended", "\x1b]0;never ended"),
    ],
)
def test_terminal_sequences_are_removed_completely(coloured: str, plain: str) -> None:
    assert text.plain(coloured) == plain


@pytest.mark.parametrize("word", HOSTILE)
def test_json_has_the_same_value_and_no_hidden_characters(word: str) -> None:
    for indent in (None, 2):
        shown = text.json({word: [word]}, indent=indent)
        assert_safe_lines(shown)
        assert json.loads(shown) == {word: [word]}


@pytest.mark.parametrize("word", HOSTILE)
def test_html_contains_the_value_only_as_text(word: str) -> None:
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, [name for name, _ in attrs]))

    Reader().feed(f'<p title="{text.html(word)}">{text.html(word)}</p>')
    assert found == [("p", ["title"])]
    assert_safe_lines(text.html(word), commands=False)


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", " JaVa\tScript:alert(1)", "data:text/html,x", "vbscript:x", "\x01javascript:x"],
)
def test_a_link_to_a_script_is_empty(target: str) -> None:
    assert text.link_target(target) == ""


@pytest.mark.parametrize("target", ["../run-1/report.html", "https://x.example/a?b=c:d", "#cell-3"])
def test_a_link_to_a_page_is_kept(target: str) -> None:
    assert text.link_target(target) == target


@pytest.mark.parametrize("flood", ["\x9d", "\x90a", "\x9f\x98", "\x1b]", "\x1b[", "\x9b1;"])
def test_sequences_without_an_end_are_searched_in_linear_time(flood: str) -> None:
    words = flood * 300_000
    assert text.plain(words) == words  # with quadratic time, this takes an hour


def test_the_text_of_a_sequence_ends_at_the_next_one() -> None:
    assert text.plain("a\x9dtitle\x9dother\x9cb\x1b]0;c\x07d") == "a\x9dtitlebd"


def test_a_link_has_no_control_characters() -> None:
    assert text.link_target("\x01../a\x1b\nb\x9f/report.html\x00") == "../ab/report.html"


def test_a_property_of_a_command_ends_neither_property_nor_command() -> None:
    shown = text.github_command("warning", "text", title="a::error::b,line=1", file="c:d")
    name, properties, message = shown[2:].partition(" ")[0], *shown.partition(" ")[2].split("::", 1)
    assert (name, message) == ("warning", "text")
    decoded = [one.replace("%3A", ":").replace("%2C", ",") for one in properties.split(",")]
    assert decoded == ["title=a::error::b,line=1", "file=c:d"]


@pytest.mark.parametrize("function", [text.markdown, text.markdown_code])
@pytest.mark.parametrize("word", HOSTILE)
def test_markdown_renders_to_the_text_alone(function: object, word: str) -> None:
    shown = function(word)  # type: ignore[operator]
    for before, after, outer in (
        ("| a | b |\n|---|---|\n| ", " | last |\n", {"table", "thead", "tbody", "tr", "th", "td"}),
        ("", "\n\nlast\n", {"p"}),
        ("> ", "\n\nlast\n", {"p", "blockquote"}),
    ):
        rendered = (
            MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"{before}{shown}{after}")
        )
        tags = set(re.findall(r"<(\w+)", rendered))
        assert tags <= outer | {"code"}, rendered
        assert rendered.count("<tr>") == (2 if "table" in outer else 0)
        assert rendered.count("<td>") == (2 if "table" in outer else 0)
        assert ">last<" in rendered
    if function is text.markdown:  # between code quotes GitHub makes no links
        assert not re.search(r"://|www\.|@", shown)


FORMULAS = [
    "=1+1", "+1+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "'=1",
    "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x",
    "a;=1", "a;-1+1", "a\t=1", "-1", '"=1"', "=HYPERLINK(\"https://x.example\")",
]  # fmt: skip


@pytest.mark.parametrize("word", FORMULAS)
def test_a_spreadsheet_reads_no_formula_with_any_separator(word: str) -> None:
    file = io.StringIO()
    text.write_csv(pd.DataFrame({word: [word, "ok"], "number": [-1.5, -2]}), file)
    for separator in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(file.getvalue()), delimiter=separator):
            for cell in row:
                number = re.fullmatch(r"-\d\.\d", cell.rpartition(",")[2])
                first = cell.strip(" \"'\t\r\n")[:1]
                assert first not in set("=+-@\uff1d\uff0b\uff0d\uff20") or number or cell.startswith("'"), (
                    cell,
                    separator,
                )
    rows = list(csv.reader(io.StringIO(file.getvalue())))
    assert len(rows) == 3
    assert [float(row[1]) for row in rows[1:]] == [-1.5, -2.0]


def test_numbers_times_and_missing_values_are_unchanged_in_csv() -> None:
    frame = pd.DataFrame(
        {
            "object": pd.Series([-1, 2.5, None], dtype=object),
            "time": pd.to_datetime(["2026-01-02", None, "2026-01-03"], utc=True),
            "list": [["a", "b"], None, []],
            "category": pd.Categorical(["=a", "b", "b"]),
        }
    )
    file = io.StringIO()
    text.write_csv(frame, file, date_format="%Y")
    assert file.getvalue().splitlines() == [
        "object,time,list,category",
        "-1,2026,\"['a', 'b']\",'=a",
        "2.5,,,b",
        ",2026,[],b",
    ]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_job_output_cannot_set_another_output(word: str) -> None:
    written = text.github_value("error", word) + text.github_value("ami_id", "ami-1")
    assert list(read_github_file(written)) == ["error", "ami_id"]
    assert read_github_file(written)["ami_id"] == "ami-1"
    named = re.fullmatch(r"[A-Za-z0-9_-]+", word) is not None
    assert text.github_value(f"a{word}", "x") == (f"a{word}=x\n" if named else "")


def test_a_value_cannot_contain_its_delimiter() -> None:
    ends = [text.github_value("error", "a\nb").splitlines()[-1] for _ in range(2)]
    assert ends[0] != ends[1]
    assert all(len(end) >= 32 for end in ends)


@pytest.mark.parametrize("word", [*HOSTILE, "50%0A::error::x", "a,b:c%0D"])
def test_a_workflow_command_is_one_command(word: str) -> None:
    shown = text.github_command("warning", word, title=word)
    assert len(re.split(r"\r\n|[\r\n]", shown)) == 1
    assert "%0A" not in shown.replace("%250A", "").partition("::")[2] or "\n" in word
    name, _, properties = shown[2:].partition("::")[0].partition(" ")
    assert name == "warning"
    assert "," not in properties.removeprefix("title=")


# What writes, and where it may: the functions of `text` are the only ones elsewhere.
WRITERS = re.compile(
    r"print|pprint|pprint\.pprint|click\.(echo|secho|echo_via_pager)|(sys\.)?(__)?std(out|err)(__)?\.(write|writelines)"
    r"|html\.escape|escape|csv\.(writer|DictWriter)|.*\.(to_csv|to_html|to_markdown|to_latex)|traceback\.print_\w+"
    r"|os\.write|Console|rich\.(console\.Console|print)|.*(stream|screen|_log|output)\.write(lines)?|warnings\.warn"
)
ALLOWED = {
    "text.py": r".*",
    "cli/output.py": r"Console",
    "boot/run.py": r"Console",  # the serial console of a machine
    "runbooks/console/__init__.py": r"Console",  # the console in JupyterLab
    "aws/ebs_direct/engine.py": r"stream\.write",  # JSON to a worker process
    "aws/ebs_direct/journal.py": r"os\.write",  # a binary file of digests
    "aws/ebs_direct/worker.py": r"sys\.stdout\.write",  # JSON to the process that started it
    "interrupts.py": r"os\.write",  # a fixed text, in a signal handler
    "runbooks/execution/_interrupts.py": r"os\.write",
    "redaction.py": r"html\.escape",  # to find a secret in this form
    "files.py": r"os\.write",  # a file of JSON lines
    "runbooks/execution/_output.py": r"self\._(log|screen)\.write",  # safe lines, the runner's own commands
}


def test_all_output_uses_the_text_module() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("sandbox/"):  # apart: it writes its own address and JSON
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if WRITERS.fullmatch(called) and not re.fullmatch(ALLOWED.get(name, r"(?!)"), called):
                    found.append(f"{name}:{node.lineno} calls {called}")
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["print(x)", "click.echo(x)", "sys.stdout.write(x)", "frame.to_csv(f)", "html.escape(x)", "Console()"],
)
def test_output_without_the_text_module_is_found(source: str) -> None:
    call = ast.parse(source).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert WRITERS.fullmatch(ast.unparse(call.value.func))
