"""Finds what must never be kept, and takes it out.

An executed notebook is evidence that many people read. Two nets catch what slipped into it: the shapes that
credentials have, and the very values that this process was given as secrets by its environment.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (label, re.compile(pattern, re.DOTALL))
    for label, pattern in (
        (
            "private key",
            r"(?P<secret>-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r".*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z))",
        ),
        ("AWS access key", r"\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16})\b"),
        (
            "AWS secret access key",
            r"(?i:secret_?(?:access_?)?key)[\\\"']*\s*[:=]\s*[\\\"']*(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        ),
        (
            "AWS session token",
            r"(?i:(?:session|security)[_-]?token)[\\\"']*\s*[:=]\s*[\\\"']*(?P<secret>[A-Za-z0-9/+=%_-]{32,})",
        ),
        ("AWS session token", r"(?P<secret>(?:IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz)[A-Za-z0-9/+=%]{40,})"),
        ("signature of an AWS request", r"(?:X-Amz-)?Signature=(?P<secret>[0-9a-fA-F]{64})"),
        ("signature of a presigned URL", r"[?&;]Signature=(?P<secret>[A-Za-z0-9/+=%]{20,})"),
        ("credential of a presigned URL", r"X-Amz-Credential=(?P<secret>[^&\s\"'<>]+)"),
        (
            "authorization header",
            r"(?i:authorization)[\\\"']*\s*[:=]\s*[\\\"']*\w+\s+(?P<secret>[\w.~+/=-]{16,})",
        ),
        ("password in a URL", r"://[^/\s:@\"'<>]+:(?P<secret>[^@\s/\"'<>]{3,})@"),
        ("GitHub token", r"\b(?P<secret>gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})"),
        ("web token", r"\b(?P<secret>eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"),
        ("age key", r"(?P<secret>AGE-SECRET-KEY-1[A-Z0-9]{40,})"),
        ("Nix signing key", r"(?<=:)(?P<secret>[A-Za-z0-9+/]{86}==)"),
    )
)
"""What a secret is called, and the shape by which it is known; the group ``secret`` is what is taken out."""

HINT = (
    r"AKIA|ASIA|PRIVATE KEY|(?i:secret_?(?:access_?)?key|(?:session|security)[_-]?token|authorization)"
    r"|IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz|Signature=|X-Amz-Credential=|://[^/\s:@]+:|gh[pousr]_|github_pat_"
    r"|eyJ|AGE-SECRET-KEY-1|:[A-Za-z0-9+/]{86}=="
)
"""Matches every text that one of `SHAPES` matches, and few others; in the syntax that RE2 has, too."""

SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|PRIVATE_KEY|API_KEY")
NO_SECRET_NAME = re.compile(r"(FILE|PATH|DIR|URL|URI|ARN|NAME|ENDPOINT)$")
SHORTEST = 16  # a shorter value could be an ordinary word, which must not vanish from reports


def find_secret(text: str) -> str:
    """Return what kind of secret the text holds, or an empty string.

    >>> find_secret("ami-0123456789abcdef0")
    ''
    """
    for label, shape in SHAPES:
        if shape.search(text):
            return label
    return ""


def secret_values(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the values that an environment calls secret by their names, longest first.

    Parameters
    ----------
    environment
        Variables; ``os.environ`` when not given.
    """
    environment = os.environ if environment is None else environment
    found = {
        value
        for name, value in environment.items()
        if SECRET_NAME.search(name.upper())
        and not NO_SECRET_NAME.search(name.upper())
        and len(value) >= SHORTEST
        and not value.startswith("/")
    }
    return tuple(sorted(found, key=len, reverse=True))


@dataclass
class Redactor:
    """Takes secrets out of texts and notebooks, and counts them.

    Parameters
    ----------
    values
        Values that are secret whatever their shape, such as those of `secret_values`.
    """

    values: tuple[str, ...] = ()
    found: dict[str, int] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """Return the text with a note in the place of every secret."""
        for value in self.values:
            if value in text:
                self._count("secret of the environment", text.count(value))
                text = text.replace(value, _note("secret of the environment"))
        for label, shape in SHAPES:
            text = shape.sub(partial(self._replace, label), text)
        return text

    def anything(self, value: Any) -> Any:
        """Return a JSON-like value with every text in it redacted; pictures are left alone."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.anything(item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if _is_picture(key) else self.anything(_joined(item)) for key, item in value.items()
            }
        return value

    def json(self, text: str) -> str:
        """Return JSON with every text in it redacted, so that it stays JSON; other text as `text` does."""
        try:
            value = json.loads(text)
        except ValueError:
            return self.text(text)
        if isinstance(value, dict | list):
            return json.dumps(self.anything(value), ensure_ascii=False)
        return self.text(text)

    def notebook(self, notebook: Any) -> None:
        """Redact a notebook in place: sources, outputs and metadata.

        Parameters
        ----------
        notebook
            ``nbformat.NotebookNode`` of format 4.
        """
        for cell in notebook.cells:
            cell.source = self.text(cell.source)
            for output in cell.get("outputs", []):
                for key in ("text", "ename", "evalue", "traceback", "data"):
                    if key in output:
                        output[key] = self._output(key, output[key])
        for key, value in list(notebook.metadata.items()):
            notebook.metadata[key] = _node(self.anything(value))

    def _output(self, key: str, value: Any) -> Any:
        redacted = self.anything(_joined(value) if key == "text" else value)
        return _node(redacted)

    def _replace(self, label: str, match: re.Match[str]) -> str:
        if match["secret"].startswith("[secret removed"):
            return match[0]
        self._count(label, 1)
        start, end = match.span("secret")
        return match.string[match.start() : start] + _note(label) + match.string[end : match.end()]

    def _count(self, label: str, times: int) -> None:
        self.found[label] = self.found.get(label, 0) + times


class LineRedactor:
    """Redacts a stream that comes in pieces: whole lines go on, a private key does not.

    Parameters
    ----------
    redactor
        Who knows what is secret.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rest = ""
        self._in_key = False

    def feed(self, text: str) -> str:
        """Return what can be shown now that this text has come."""
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        return self._lines(whole + newline) if newline else ""

    def flush(self) -> str:
        """Return what is left, at the end of the stream."""
        rest, self._rest = self._rest, ""
        return self._lines(rest)

    def _lines(self, text: str) -> str:
        shown = []
        for line in text.splitlines(keepends=True):
            if self._in_key:
                self._in_key = "-----END " not in line
                continue
            shown.append(line)
            self._in_key = "PRIVATE KEY" in line and "-----BEGIN " in line and "-----END " not in line
        return self._redactor.text("".join(shown))


def _note(label: str) -> str:
    return f"[secret removed: {label}]"


def _is_picture(key: str) -> bool:
    return key.startswith("image/") and key != "image/svg+xml"


def _joined(value: Any) -> Any:
    """Return a multi-line text of a notebook as one, because a secret may cross lines.

    A list of one text, such as a parameter, is no text of several lines, and stays a list.
    """
    if isinstance(value, list) and len(value) > 1 and all(isinstance(line, str) for line in value):
        return value if any(not line.endswith("\n") for line in value[:-1]) else "".join(value)
    return value


def _node(value: Any) -> Any:
    from nbformat import from_dict

    return from_dict(value)  # type: ignore[no-untyped-call]
