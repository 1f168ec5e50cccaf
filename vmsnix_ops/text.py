r"""Write text from outside safely: one function for each kind of output.

Tags, names, labels, log lines of Nix, messages of AWS, file names and parameters can contain anything. This
module is the only one that writes them to a terminal, a CI log, a log file, HTML, Markdown, CSV, JSON or the
files of GitHub Actions. Characters that move the cursor, reverse the reading order or are invisible become
visible escapes.

====================================  ==================================================
output                                function
====================================  ==================================================
terminal, CI log, log file            `line` (one line), `lines` (several), `echo`, `write`
workflow commands of GitHub Actions   `github_command`, `write_command`
``$GITHUB_OUTPUT``, ``$GITHUB_ENV``   `github_value`
Markdown, also in a table             `markdown`, `markdown_code`
HTML text and attributes              `vmsnix_ops.templates`; `html`, `link_target`
JSON in a page, for its script        `html_json`
chat, by a webhook                    `chat`
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
    # Another beginning ends their text, as in terminals. Otherwise a search would take quadratic time.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n\r]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b(?:[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
)

# GitHub's runner executes a line that begins with "::" after white space, or contains "##["; Azure Pipelines
# and TeamCity one that contains "##vso[" or "##teamcity[".
_COMMAND = re.compile(r"^(\s*)(?=::)|(?<=##)(?=\w*\[)", re.MULTILINE)


def line(value: object) -> str:
    """Return a value as one line for a terminal, a CI log or a log file."""
    text = str(value)
    if not _is_visible(text):
        text = "".join(map(_visible, text))
    return _no_command(text)


def lines(value: object, *, indent: str = "") -> str:
    """Return a value as lines for a terminal, a CI log or a log file.

    A carriage return also ends a line. The second and each later line begins with `indent`.
    """
    return f"\n{indent}".join(map(_no_command, visible(str(value)).split("\n")))


def plain(text: str) -> str:
    r"""Return text without terminal sequences: colours, cursor moves, titles, links.

    >>> plain("\x1b[1;32mOK\x1b[0m \x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\")
    'OK link'
    """
    return TERMINAL_SEQUENCES.sub("", text) if "\x1b" in text or not text.isascii() else text


def echo(value: object = "", *, err: bool = False) -> None:
    """Write a value and a line end to standard output or standard error, as `lines`."""
    write(sys.stderr if err else sys.stdout, f"{value}\n")


def write(stream: TextIO, text: str, *, indent: str = "") -> None:
    """Write text to a terminal, a pipe or a log file, as `lines`, and flush it."""
    end = "\n" if text.endswith("\n") else ""
    stream.write(lines(text.removesuffix("\n"), indent=indent) + end)
    stream.flush()


def write_command(stream: TextIO, command: str, message: object = "", **properties: object) -> None:
    """Write a workflow command of GitHub Actions; see `github_command`."""
    stream.write(github_command(command, message, **properties) + "\n")
    stream.flush()


class CommandFree(io.TextIOBase):
    """A stream for a library that wraps lines, such as rich: none of them is a workflow command.

    Such a library can begin a new line in the middle of a value. Without a stream, the current standard
    output is used.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """The stream to write to."""
        return sys.stdout if self._stream is None else self._stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here
        """The encoding of the stream."""
        return self.stream.encoding

    def write(self, text: str) -> int:
        """Write text whose values `line` has made safe."""
        return self.stream.write(_no_command(text))

    def flush(self) -> None:
        """Write the buffered text."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        return self.stream.fileno()


def github_command(command: str, message: object = "", **properties: object) -> str:
    """Return a workflow command of GitHub Actions, such as ``::group::upload``.

    The runner decodes sequences such as ``%0A`` in a command, so ``%`` is encoded too.

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
    r"""Return an entry of ``$GITHUB_OUTPUT`` or ``$GITHUB_ENV``; empty for a name that GitHub does not allow.

    A random word, which the value cannot contain, marks the end of a value with several lines.

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
    if _is_visible(text):
        return text
    return "\n".join(
        part if _is_visible(part) else "".join(map(_visible_in_lines, part))
        for part in re.split(r"\r\n|\r|\n", text)
    )


def markdown(value: object) -> str:
    """Return a value as one line of Markdown text, which can also be in a table and at the start of a line.

    Special characters become entities, which are text everywhere. Only ``|`` gets a backslash, for tables.
    """
    text = " ".join(line(" ".join(str(value).split())).split())
    return _MARKDOWN.sub(_entities, text)


def markdown_code(value: object) -> str:
    """Return a value as one line of Markdown code, which can also be in a table."""
    text = line(value)
    if re.fullmatch(r"[\w./:=,+@()%-]+( [\w./:=,+@()%-]+)*", text):
        return f"`{text}`"
    # Between backquotes, entities are not decoded. So a value with special characters becomes HTML.
    return f"<code>{_MARKDOWN.sub(_entities, text)}</code>"


# Markup anywhere in a line; then links without brackets; then markup at the start of a line.
_MARKDOWN = re.compile(
    r"[\\`*\[\]<|~&!#$@]|(?<!\w)_|_(?!\w)|:(?=//|\w+:)|(?<=[wW]{3})\."
    r"|^(?:[-+=>]|\d+(?=[.)](?:\s|$)))"
)


def chat(value: object) -> str:
    """Return a value as one line for a chat, in which ``<`` begins no link and no mention.

    Source: "Escaping text" in "Formatting message text" of Slack. Others read these entities as HTML.

    >>> chat("<!channel> <https://x.example|log>")
    '&lt;!channel&gt; &lt;https://x.example|log&gt;'
    """
    return line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(value: object) -> str:
    """Return a value as HTML, for text and for attributes in quotes. Line ends and tabs are kept."""
    return visible(str(value)).translate(_ENTITIES)


def html_json(value: object) -> str:
    r"""Return a value as JSON for a ``<script type="application/json">`` of a page.

    Its texts and keys are as visible as those of `html`, and contain no markup that could end the element.

    >>> html_json({"name": "</script>\x1b"})
    '{"name":"\\u003c/script\\u003e\\\\x1b"}'
    """
    text = _json.dumps(_visible_values(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _visible_values(value: object) -> object:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): _visible_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [visible(each) if isinstance(each, str) else _visible_values(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else visible(str(value))


_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def link_target(target: object) -> str:
    r"""Return the target of a link for a template; empty if the link could run a script.

    >>> link_target("../a&b/report.html"), link_target("java\tscript:alert(1)")
    ('../a&b/report.html', '')
    """
    text = re.sub(r"[\x00-\x20\x7f-\x9f]", "", str(target))
    scheme = re.match(r"[^/?#]*:", text)
    return "" if scheme and scheme[0].lower() not in ("https:", "http:") else text


def write_csv(frame: pd.DataFrame, target: Path | TextIO, *, date_format: str | None = None) -> None:
    """Write a frame, without its index, as CSV that contains no formulas for a spreadsheet.

    Each row is one line. A text that begins like a formula gets an apostrophe before it. Numbers are not
    changed. `date_format` is as for ``DataFrame.to_csv``.
    """
    safe = frame.copy(deep=False)
    for name, kind in frame.dtypes.items():
        if not hasattr(kind, "tz") and kind.kind in "OUT":
            # As objects, because pandas would add a decimal point to whole numbers.
            safe[name] = type(frame[name])([_cell(value) for value in frame[name]], frame.index, dtype=object)
    safe.rename(columns=_cell).to_csv(target, index=False, date_format=date_format)


def json(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON; objects that JSON does not support become text."""
    return json_text(_json.dumps(value, indent=indent, default=str, ensure_ascii=False))


def json_text(text: str) -> str:
    """Return JSON without invisible characters and workflow commands; its values do not change."""
    text = re.sub(r"##(?=\w*\[)", r"#\\u0023", text)
    if not text.isascii() or "\x7f" in text:
        # These characters can only be in texts of the JSON.
        text = "".join(map(_visible_in_json, text))
    return text


def plot_label(value: object) -> str:
    """Return a value as one line for a plot, in which ``$`` does not begin a formula."""
    return line(value).replace("$", r"\$")


# Unicode ignores these in a display, but Python counts them as printable: fillers, and variation selectors
# except U+FE0E and U+FE0F, which choose between text and picture of the sign before.
_IGNORED = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)


def _is_visible(text: str) -> bool:
    return text.isprintable() and (text.isascii() or not _IGNORED.search(text))


def _visible(letter: str) -> str:
    if _is_visible(letter):
        return letter
    if letter.isspace() and letter >= "\xa0" and letter not in "\u2028\u2029":
        return " "  # a typographic space, which names can contain
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


# Full-width signs begin a formula too. In some countries a semicolon separates cells.
_RISKY = re.compile(r"[^\x20-\x7e]|^[\s'\"]*[=+\-@]|;")
_FORMULA = re.compile(r"(^|;)(?=[\s'\"]*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def _cell(value: Any) -> Any:
    """Return a cell of a CSV file; only text is changed."""
    if not isinstance(value, str):
        return value if value is None or isinstance(value, int | float | complex) else _no_text(value)
    if not _RISKY.search(value):
        return value
    text = value if _is_visible(value) else "".join(map(_visible, value))
    begins = value[:1] in ("\t", "\r", "\n")
    text = _FORMULA.sub(r"\1'", text)
    return f"'{text}" if begins and not text.startswith("'") else text


def _no_text(value: Any) -> Any:
    """Return a list, a mapping or a time unchanged, unless its text contains a formula or a line end."""
    with suppress(TypeError, ValueError):
        if value != value:  # NaN or NaT
            return value
    text = str(value)
    safe = _cell(text)
    return value if safe == text else safe


def _visible_in_json(letter: str) -> str:
    if letter == "\n" or _is_visible(letter):
        return letter
    return _json.dumps(letter)[1:-1] if letter != "\x7f" else "\\u007f"
