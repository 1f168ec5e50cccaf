r"""Write text from outside safely: one function for each kind of output.

Tags, names, labels, log lines of Nix, messages of AWS, file names and parameters can contain anything. This
module is the only one that writes them to a terminal, a CI log, a log file, HTML, Markdown, CSV, JSON or the
files of GitHub Actions. Characters that move the cursor, reverse the reading order or are invisible become
visible escapes, so that the reader sees what is really there.

====================================  ==================================================
output                                function
====================================  ==================================================
terminal, CI log, log file            `line` (one line), `lines` (several), `echo`, `write`
workflow commands of GitHub Actions   `github_command`, `write_command`
``$GITHUB_OUTPUT``, ``$GITHUB_ENV``   `github_value`
Markdown, also in a table             `markdown`, `markdown_code`
HTML text and attributes              `vmsnix_ops.templates`; `html`, `link_target`
CSV for spreadsheets                  `write_csv`
JSON                                  `json`
labels of a plot                      `plot_label`
====================================  ==================================================

>>> line("web\x1b]0;owned\x07\n::error::no")
'web\\x1b]0;owned\\x07\\n::error::no'
>>> html("<b>"), markdown("[a](b)"), markdown_code("a|b")
('&lt;b&gt;', '&#91;a&#93;(b)', '<code>a\\|b</code>')
"""

from __future__ import annotations

import io
import json as _json
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

TERMINAL_SEQUENCES = re.compile(
    # CSI (colours, cursor); OSC, DCS, SOS, PM and APC with their text (titles, links, the clipboard); others.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n\r]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b(?:[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
)

# GitHub's runner takes a line for a command when it begins with "::" after white space, or has "##["
# anywhere; Azure Pipelines and TeamCity when it has "##vso[" or "##teamcity[".
_COMMAND = re.compile(r"^(\s*)(?=::)|(?<=##)(?=\w*\[)", re.MULTILINE)


def line(value: object) -> str:
    """Return a value as one line for a terminal, a CI log or a log file."""
    text = str(value)
    if not text.isprintable():
        text = "".join(map(_visible, text))
    return _no_command(text)


def lines(value: object, *, indent: str = "") -> str:
    """Return a value as lines for a terminal, a CI log or a log file.

    Parameters
    ----------
    value
        Text of one or more lines. A carriage return ends a line, too.
    indent
        What the second and later lines begin with.
    """
    text = str(value)
    if text.isprintable():
        return _no_command(text)
    parts = re.split(r"\r\n|\r|\n", text)
    return f"\n{indent}".join(_no_command("".join(map(_visible_in_lines, part))) for part in parts)


def plain(text: str) -> str:
    r"""Return text without terminal sequences: colours, cursor moves, titles, links.

    >>> plain("\x1b[1;32mOK\x1b[0m \x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\")
    'OK link'
    """
    return TERMINAL_SEQUENCES.sub("", text) if "\x1b" in text or not text.isascii() else text


def echo(value: object = "", *, err: bool = False) -> None:
    """Write a value to standard output or standard error, as `lines`, and end the line."""
    write(sys.stderr if err else sys.stdout, f"{value}\n")


def write(stream: TextIO, text: str, *, indent: str = "") -> None:
    """Write text to a terminal, a pipe or a log file, as `lines`, at once."""
    end = "\n" if text.endswith("\n") else ""
    stream.write(lines(text.removesuffix("\n"), indent=indent) + end)
    stream.flush()


def write_command(stream: TextIO, command: str, message: object = "", **properties: object) -> None:
    """Write a workflow command of GitHub Actions; see `github_command`."""
    stream.write(github_command(command, message, **properties) + "\n")
    stream.flush()


class CommandFree(io.TextIOBase):
    """A stream for a library that draws, such as rich: no line that it makes is a workflow command.

    rich wraps a long cell, so that a new line can begin in the middle of a value.

    Parameters
    ----------
    stream
        Where the text goes; ``None`` for standard output as it is at every moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """The stream below."""
        return sys.stdout if self._stream is None else self._stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here
        """The encoding of the stream below."""
        return self.stream.encoding

    def write(self, text: str) -> int:
        """Write text whose values went through `line` already."""
        return self.stream.write(_no_command(text))

    def flush(self) -> None:
        """Write what is buffered."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream below is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the stream below."""
        return self.stream.fileno()


def github_command(command: str, message: object = "", **properties: object) -> str:
    """Return a workflow command of GitHub Actions, such as ``::group::upload``.

    The runner decodes ``%0A`` and the like in a command, so ``%`` is encoded as well.

    >>> github_command("warning", "50%0A::error::x", title="a,b")
    '::warning title=a%2Cb::50%250A::error::x'
    """
    named = ",".join(
        f"{name}={_percent(line(value)).replace(':', '%3A').replace(',', '%2C')}"
        for name, value in properties.items()
    )
    text = _percent("".join(map(_visible_in_lines, str(message))))
    return f"::{command}{' ' if named else ''}{named}::{text}"


def github_value(name: str, value: object) -> str:
    r"""Return an entry of ``$GITHUB_OUTPUT`` or ``$GITHUB_ENV``; empty for a name that they cannot have.

    A value of several lines stands between two lines with a random word, which the value cannot contain.

    >>> github_value("ami_id", "ami-1")
    'ami_id=ami-1\n'
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
        return ""
    text = lines(value)
    if "\n" not in text:
        return f"{name}={text}\n"
    from secrets import token_hex

    word = f"end_{token_hex(16)}"
    return f"{name}<<{word}\n{text}\n{word}\n"


def visible(text: str) -> str:
    """Return text with visible escapes for hidden characters; line ends and tabs are kept."""
    if text.isprintable():
        return text
    return "\n".join(
        part if part.isprintable() else "".join(map(_visible_in_lines, part))
        for part in re.split(r"\r\n|\r|\n", text)
    )


def markdown(value: object) -> str:
    """Return a value as one line of Markdown text; it can stand in a table and at the start of a line.

    Mostly entities, which are text at every place; a backslash before ``|`` is what a table needs.
    """
    text = " ".join(line(" ".join(str(value).split())).split())
    return _MARKDOWN.sub(_entities, text)


def markdown_code(value: object) -> str:
    """Return a value as one line of Markdown code; it can stand in a table."""
    text = line(value)
    if re.fullmatch(r"[\w./:=,+@()%-]+( [\w./:=,+@()%-]+)*", text):
        return f"`{text}`"
    # Entities mean nothing between backquotes, so a value with special characters becomes HTML.
    return f"<code>{_MARKDOWN.sub(_entities, text)}</code>"


# What makes markup anywhere; then links without brackets; then what makes a block at the start of a line.
_MARKDOWN = re.compile(
    r"[\\`*\[\]<|~&!#$@]|(?<!\w)_|_(?!\w)|:(?=//|\w+:)|(?<=[wW]{3})\."
    r"|^(?:[-+=>]|\d+(?=[.)](?:\s|$)))"
)


def html(value: object) -> str:
    """Return a value as HTML, for text and for attributes in quotes. Line ends and tabs are kept."""
    return visible(str(value)).translate(_ENTITIES)


_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def link_target(target: object) -> str:
    r"""Return the target of a link for a template; empty when following it could run a script.

    >>> link_target("../a&b/report.html"), link_target("java\tscript:alert(1)")
    ('../a&b/report.html', '')
    """
    text = re.sub(r"[\x00-\x20\x7f-\x9f]", "", str(target))
    scheme = re.match(r"[^/?#]*:", text)
    return "" if scheme and scheme[0].lower() not in ("https:", "http:") else text


def write_csv(frame: pd.DataFrame, target: Path | TextIO, *, date_format: str | None = None) -> None:
    """Write a frame as CSV in which a spreadsheet finds no formula, one row a line.

    A text that begins like a formula gets an apostrophe before it. Numbers stay numbers.

    Parameters
    ----------
    frame
        Any frame; its index is left out.
    target
        A file or a text stream.
    date_format
        As for ``DataFrame.to_csv``.
    """
    safe = frame.copy(deep=False)
    for name, kind in frame.dtypes.items():
        if not hasattr(kind, "tz") and kind.kind in "OUT":
            # As objects: pandas would make numbers with a decimal point of whole ones.
            safe[name] = type(frame[name])([_cell(value) for value in frame[name]], frame.index, dtype=object)
    safe.rename(columns=_cell).to_csv(target, index=False, date_format=date_format)


def json(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON; what is not JSON becomes its text."""
    return json_text(_json.dumps(value, indent=indent, default=str, ensure_ascii=False))


def json_text(text: str) -> str:
    """Return JSON without invisible characters and workflow commands; a program reads the same from it."""
    text = re.sub(r"##(?=\w*\[)", r"#\\u0023", text)
    if not text.isascii() or "\x7f" in text:
        # Outside of its texts JSON has none of these characters.
        text = "".join(map(_visible_in_json, text))
    return text


def plot_label(value: object) -> str:
    """Return a value as one line for a plot, in which ``$`` begins no formula."""
    return line(value).replace("$", r"\$")


def _visible(letter: str) -> str:
    if letter.isprintable():
        return letter
    if letter.isspace() and letter >= "\xa0" and letter not in "\u2028\u2029":
        return " "  # the spaces of typography, which people put into names
    return letter.encode("unicode_escape").decode("ascii")


def _visible_in_lines(letter: str) -> str:
    return letter if letter in "\n\t" else _visible(letter)


def _no_command(text: str) -> str:
    return _COMMAND.sub(r"\1" + r"\\", text) if "::" in text or "##" in text else text


def _entities(found: re.Match[str]) -> str:
    if found[0] in _SHORT:
        return _SHORT[found[0]]
    return "".join(f"&#{ord(letter)};" for letter in found[0])


_SHORT = {"|": "\\|", "<": "&lt;", "&": "&amp;"}


def _percent(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


# Full-width signs are computed, too. Where a spreadsheet separates by semicolons, a cell begins after each.
_RISKY = re.compile(r"[^\x20-\x7e]|^[\s'\"]*[=+\-@]|;")
_FORMULA = re.compile(r"(^|;)(?=[\s'\"]*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def _cell(value: Any) -> Any:
    """Return a cell of a CSV file; only text is changed."""
    if not isinstance(value, str):
        return value if value is None or isinstance(value, int | float | complex) else _no_text(value)
    if not _RISKY.search(value):
        return value
    text = "".join(map(_visible, value)) if not value.isprintable() else value
    begins = value[:1] in ("\t", "\r", "\n")
    text = _FORMULA.sub(r"\1'", text)
    return f"'{text}" if begins and not text.startswith("'") else text


def _no_text(value: Any) -> Any:
    """Return a list, a mapping or a moment as it is, unless its text would be computed or break the line."""
    with suppress(TypeError, ValueError):
        if value != value:  # missing, as pandas marks it
            return value
    text = str(value)
    safe = _cell(text)
    return value if safe == text else safe


def _visible_in_json(letter: str) -> str:
    if letter.isprintable() or letter == "\n":
        return letter
    return _json.dumps(letter)[1:-1] if letter != "\x7f" else "\\u007f"
