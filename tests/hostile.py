"""Hostile texts, and checks of the outputs that show them."""

from __future__ import annotations

import re
import unicodedata

HOSTILE = (
    "a\nb",
    "a\r::error::owned",
    "::error file=x::owned",
    "\n::set-output name=ami_id::ami-evil",
    "  ::stop-commands::token",
    "\u00a0::add-mask::x",
    "##[error]owned",
    "x ##[group]owned",
    "##vso[task.setvariable variable=x]y",
    "50%0A::error::owned",
    "\x1b[2J\x1b[31mred",
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b]52;c;ZWNobyBvd25lZA==\x07",
    "\x1b]0;title",
    "\x9b31m\x9d52;c;eA==\x9c",
    "\x07\x08\x7f\x00",
    "abc\u202etxt.exe",
    "\u2066a\u2069\u200f\u061c",
    "a\u200bb\ufeffc\u2028d\u2029e\x85f",
    "\ud800",
    "a\u3164b\u115f\u1160\uffa0c\u034f\u180bd\ufe00e\U000e0100",
    "[click](https://evil.example)",
    "![picture](https://evil.example/x.png)",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "a | b | c",
    "a\n| forged | row |",
    "a \\| b | c",
    "`code` ``more`` `",
    "**bold** _it_ ~~gone~~ # head",
    "# head",
    "- item",
    "1. item",
    "> quote",
    "---",
    "https://evil.example www.evil.example evil@x.example @team",
    "&lt;b&gt; &#60;",
    "EOF\nami_id=ami-evil\nEOF",
    "ami_id<<EOF",
    "$x^2$ $\\alpha",
    "[bold red]markup[/] [link=https://evil.example]x[/link]",
    '=HYPERLINK("https://evil.example")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\uff1d1+1",
    "a;=1",
    "{{ 7*7 }} {% raw %}",
)
"""Values that a tag, a name, a log line or a message of AWS can have."""

COMMAND = re.compile(r"^\s*::|##\w*\[")
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
IGNORED = "\u034f\u115f\u1160\u180b\u3164\ufe00\uffa0\U000e0100"
"""Some characters that have no width although they are letters and marks: Default_Ignorable_Code_Point."""


def hidden(shown: str) -> list[str]:
    """Return the invisible characters of a text, except line ends and tabs."""
    return [
        repr(one)
        for one in shown
        if one not in "\n\t" and (unicodedata.category(one) in HIDDEN or one in IGNORED)
    ]


def assert_safe_lines(shown: str, *, commands: bool = True, folds: bool = False) -> None:
    """Fail if a text has hidden characters, or (with `commands`) a line that a CI system executes."""
    assert hidden(shown) == []
    if commands:
        for one in re.split(r"\r\n|[\r\n]", shown):
            own = folds and re.match(r"::(end)?group::", one)
            assert own or not COMMAND.search(one), one


def read_github_file(written: str) -> dict[str, str]:
    """Read ``$GITHUB_OUTPUT`` as GitHub's runner does."""
    found, rows = {}, iter(written.split("\n"))
    for row in rows:
        if not row:
            continue
        if "<<" in row and ("=" not in row or row.index("<<") < row.index("=")):
            key, _, word = row.partition("<<")
            value = []
            for inner in rows:
                if inner == word:
                    break
                value.append(inner)
            else:
                raise AssertionError(f"{key} never ends")
            found[key] = "\n".join(value)
        else:
            key, equals, value_text = row.partition("=")
            assert equals, row
            found[key] = value_text
    return found
