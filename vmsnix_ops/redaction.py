"""Find secrets, and remove them from texts, notebooks, pictures and files.

A secret is recognized by its form (an access key, a private key), by its variable (``*_TOKEN``,
``*_PASSWORD``), or because this process signs AWS calls with it (`remember`). Text is searched unchanged,
and as it is displayed: without colours and markup, with decoded escapes.
"""

from __future__ import annotations

import base64
import bz2
import html
import io
import json
import lzma
import os
import re
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, chain, takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from vmsnix_ops.region_names import looks_like_region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_BETWEEN = r"[\s\\\"'|:=,>)\]}]{1,40}"  # between a name and its value: in code, JSON, a table, markup
_PATTERNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "private key",
        ("private key",),
        r"(?P<secret>-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r".*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z))",
    ),
    ("AWS access key", ("akia", "asia"), r"\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16})\b"),
    (
        "AWS secret access key",
        ("secret",),
        rf"(?i:secret[_ -]?(?:access[_ -]?)?key){_BETWEEN}(?P<secret>[A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])",
    ),
    (
        "AWS session token",
        ("token",),
        rf"(?i:(?:session|security)[_ -]?token){_BETWEEN}(?P<secret>[A-Za-z0-9/+=%_-]{{32,}})",
    ),
    (
        "AWS session token",
        ("iqojb3jpz2lu", "fwogzxivyxdz", "fqogzxivyxdz"),
        r"(?P<secret>(?:IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz)[A-Za-z0-9/+=%]{40,})",
    ),
    ("signature of an AWS request", ("signature=",), r"(?:X-Amz-)?Signature=(?P<secret>[0-9a-fA-F]{64})"),
    ("signature of a presigned URL", ("signature=",), r"[?&;]Signature=(?P<secret>[A-Za-z0-9/+=%]{20,})"),
    ("credential of a presigned URL", ("x-amz-credential=",), r"X-Amz-Credential=(?P<secret>[^&\s\"'<>]+)"),
    (
        "authorization header",
        ("authorization",),
        r"(?i:authorization)[\\\"']*\s*[:=]\s*[\\\"']*\w+\s+(?P<secret>[\w.~+/=-]{16,})",
    ),
    ("password in a URL", ("://",), r"://[^/\s:@\"'<>]+:(?P<secret>[^@\s/\"'<>]{3,})@"),
    (
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"\b(?P<secret>gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    ),
    ("web token", ("eyj",), r"\b(?P<secret>eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"),
    ("age key", ("age-secret-key-1",), r"(?P<secret>AGE-SECRET-KEY-1[A-Z0-9]{40,})"),
    ("Nix signing key", ("==",), r"(?<=:)(?P<secret>[A-Za-z0-9+/]{86}==)"),
)
SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (label, re.compile(pattern, re.DOTALL)) for label, _, pattern in _PATTERNS
)
"""Names of secrets, and patterns that match them; the group ``secret`` is removed."""

_TRIGGERS = tuple(words for _, words, _ in _PATTERNS)  # every match contains one, in lower case
_ALL_TRIGGERS = tuple(dict.fromkeys(chain.from_iterable(_TRIGGERS)))

_INVISIBLE = (  # characters without a width: joiners, writing directions, variation selectors
    "\x00\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)

HINT = (
    r"AKIA|ASIA|PRIVATE KEY"
    r"|(?i:secret[_ -]?(?:access[_ -]?)?key|(?:session|security)[_ -]?token|authorization)"
    r"|IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz|Signature=|X-Amz-Credential=|://[^/\s:@]+:|gh[pousr]_|github_pat_"
    r"|eyJ|AGE-SECRET-KEY-1|:[A-Za-z0-9+/]{86}==|;base64,"
    # characters that can hide a secret from these patterns
    rf"|[\x01-\x08\x0b\x0c\x0e-\x1f\x9b{_INVISIBLE}]"
    r"|</?[A-Za-z]|<!--|&[#A-Za-z]|\\|%[0-9A-Fa-f][0-9A-Fa-f]|[A-Za-z0-9+/_-]{60}\n"
)
"""Matches every text that one of `SHAPES` matches, and few others. The syntax is also valid for RE2."""

SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|WEBHOOK|PRIVATE_?KEY|API_?KEY|AUTH_CONFIG"
    r"|PASS$|_PWD$|(^|_)KEY$|(^|_)AUTH$|_PAT$"
)
NO_SECRET_NAME = re.compile(
    r"((FILE|PATH|DIR|DIRECTORY|HOME|ROOT|SOCK|URL|URI|ARN|NAME|ENDPOINT|REGION|EXPIRATION)$|PUBLIC)"
)
ALWAYS_SECRET_NAME = re.compile(r"WEBHOOK")
SHORTEST = 8  # a shorter value could be an ordinary word, which reports must keep
LONG = 16  # a value of this length is not an ordinary word; it is also removed inside other words
MOST_CLEAN = 2_000_000  # characters of the texts that are remembered to be clean
LONGEST_CLEAN = 100_000  # a longer text, such as a part of a stream, is not remembered

ENVIRONMENT, IN_USE = "secret of the environment", "credentials in use"

_HARMLESS = re.compile(
    r"""(?ix)
      true|false|yes|no|on|off|none|null|default|auto|always|never|enabled|disabled|required|optional
    | [+-]?\d[\d_,.]*(e[+-]?\d+)?%?            # a number, an account ID, a version
    | 0x[0-9a-f]+
    | \d{4}-\d\d-\d\d([t ][\d:.]+(z|[+-]\d\d:?\d\d)?)?
    | arn:aws[a-z-]*:\S*
    | (ami|snap|vol|i|r|lt|vpc|subnet|sg|eni|rtb|igw|acl|nat|pl|vpce|tgw|import-(snap|ami))-[0-9a-f]{8,17}
    | sha(256|512)[:-]\S+
    """
)
_PUBLIC_KEY = re.compile(
    r"(ssh-\w+|ecdsa-sha2-[\w-]+|sk-[\w@.-]+)\s+AAAA[\w+/=]+.*"
    r"|-----BEGIN (?:[A-Z0-9]+ )*(?:PUBLIC KEY(?: BLOCK)?|CERTIFICATE)-----.*"
    r"|([\w.-]+:[A-Za-z0-9+/]{43}=\s*)+"
    r"|age1[a-z0-9]{58}",
    re.DOTALL,
)
_AWS_ID = re.compile(r"[a-z]{1,12}(-[a-z]{2,4})?-(?:[0-9a-f]{17}|[0-9a-f]{8})")
_RUN_ID = re.compile(r"\d{8}T\d{9}Z-[A-Za-z0-9-]+-[0-9a-f]{6}")
_WORD, _TOKEN = re.compile(r"[A-Za-z0-9-]*"), re.compile(r"[\w./:@+~=-]*")
_NAME = re.compile(r"[a-z0-9]+([-_./][a-z0-9]+)*|[A-Za-z]+([-_/][A-Za-z]+)*")  # of a resource or a folder
_NOTE = "[secret removed: "

# Text that is not displayed, or is displayed decoded. All alternatives begin with one class of characters, so
# that the search is fast in long texts.
_HIDDEN = re.compile(
    rf"""(?x)
    [\x1b\x9b{_INVISIBLE}<&\\%\n]
    (?: (?<=\x1b) (?: \[[0-?]*[ -/]*[@-~]                            # colours, cursor movements
                   | \][^\x07\x1b\n]*(?:\x07|\x1b\\)?                # titles, hyperlinks
                   | [PX^_][^\x1b]*\x1b\\ | [ -/]*[0-~] )
      | (?<=\x9b) [0-?]*[ -/]*[@-~]
      | (?<=<) (?: /?[A-Za-z][^<>]{{0,2000}}> | !--[^<>]{{0,500}}--> )
      | (?<=&) (?: (?: \#\d{{1,7}} | \#[xX][0-9a-fA-F]{{1,6}} ) ;? | [A-Za-z][A-Za-z0-9]{{1,30}} ; )
      | (?<=\\) (?: u[0-9a-fA-F]{{4}} | U[0-9a-fA-F]{{8}} | x[0-9a-fA-F]{{2}} | [0-3][0-7]{{2}}
                   | [!-/:-@\[-`{{-~nrtbf] )
      | (?<=%) [0-9A-Fa-f]{{2}} (?:%[0-9A-Fa-f]{{2}})*
      | (?<=\n) (?<=[A-Za-z0-9+/_-]{{60}}\n) (?=[A-Za-z0-9+/_=-])          # base64 in lines
      | (?<=[{_INVISIBLE}])
    )
    """
)
_STRUCK_OVER = re.compile(r"[^\n]\x08")  # bold in a manual page
_INLINE = re.compile(
    r"</?(?:span|b|i|u|s|q|a|em|strong|code|font|mark|small|big|sub|sup|ins|del|wbr|tt|var|kbd|samp|tspan|abbr)\b"
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_SHOWN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|</?[A-Za-z][^<>]{0,2000}>")  # kept when a secret is removed
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{20,}(?:[ \t]*\r?\n[ \t>|]*[A-Za-z0-9+/_-]{4,})*={0,2}")  # base64
_WRAPPED = re.compile(  # a line end with the indentation of the next line, also in a box
    r"(?<![ \t])[ \t]*(?:[|\u2502\u2503][ \t]*)?\r?\n[ \t>]*(?:[|\u2502\u2503][ \t]*)?"
)
_BINARY_TYPE = re.compile(  # keys of a MIME bundle whose value is base64
    r"(?s)(?:image|audio|video|font)/(?!svg).*|application/(?:pdf|octet-stream)"
)
_HEXADECIMAL = re.compile(r"[0-9a-f]+")
_DOTS = ("...", "\u2026")
_PRINTABLE = re.compile(rb"[\x08-\x0d\x1b\x20-\x7e]{8,}")
_DEPTH = 3  # nested escapes: JSON in JSON in HTML
_OVERLAP = 64 * 1024
_NESTED = 4  # archives in archives, base64 in base64
_UNPACKED_BYTES = 64 * 1024 * 1024  # in one piece; larger content is searched in pieces
_UNPACKED_IN_ALL = 4 * 1024**3

_known: dict[str, None] = {}
_listeners: list[Callable[[Sequence[str]], None]] = []
_known_lock = threading.Lock()


def remember(*values: str | None) -> None:
    """Treat values as secrets in this process from now on, such as the keys that sign AWS calls."""
    with _known_lock:
        candidates = [value for value in values if value and len(value) >= SHORTEST and value not in _known]
        new = [value for value in candidates if not _is_harmless(value)]
        _known.update(dict.fromkeys(new))
    if new:
        for listener in tuple(_listeners):
            listener(new)


def remembered() -> tuple[str, ...]:
    """Return the values that were passed to `remember`."""
    return tuple(_known)


def listen(listener: Callable[[Sequence[str]], None]) -> None:
    """Call `listener` with all values that were or will be passed to `remember`."""
    _listeners.append(listener)
    if _known:
        listener(tuple(_known))


def find_secret(text: str) -> str:
    """Return the kind of the first secret in a text, or an empty string.

    >>> find_secret("ami-0123456789abcdef0")
    ''
    """
    texts = chain([text], (view.text for view in _views(text)))
    return next((label for one in texts for _, _, label in _shaped(one)), "")


def secret_values(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the values of variables whose names mark them as secret, longest first.

    The variables are by default those of ``os.environ``.
    """
    environment = os.environ if environment is None else environment
    found: set[str] = set()
    for name in environment:
        if _is_secret_name(name):
            found.update(_secrets_in(environment[name]))
    return tuple(sorted(found, key=len, reverse=True))


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    upper = name.upper()
    if not SECRET_NAME.search(upper):
        return False
    return bool(ALWAYS_SECRET_NAME.search(upper)) or not NO_SECRET_NAME.search(upper)


def _secrets_in(value: str) -> Iterator[str]:
    """Yield a variable's value, its lines, and the secret members of JSON, as separate secrets."""
    value = value.strip()
    if len(value) < SHORTEST or _is_harmless(value):
        return
    yield value
    if value[0] in "{[":
        with suppress(ValueError, RecursionError):
            yield from _members(json.loads(value), secret=False)
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= LONG and "-----" not in line)


def _members(value: Any, *, secret: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _members(item, secret=bool(SECRET_NAME.search(re.sub(r"\W", "_", str(key)).upper())))
    elif isinstance(value, list):
        for item in value:
            yield from _members(item, secret=secret)
    elif isinstance(value, str) and secret and len(value) >= SHORTEST and not _is_harmless(value):
        yield value


def _is_harmless(value: str) -> bool:
    """Return whether a value is not a secret, whatever the name of its variable."""
    if _HARMLESS.fullmatch(value) or _PUBLIC_KEY.fullmatch(value) or looks_like_region(value):
        return True
    return "/" in value and "://" not in value and _exists(value)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(path))  # noqa: PTH111 - the text may not be a path
    except (OSError, ValueError):
        return False


Span = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class _KnownForm:
    """A notation of a known secret, such as its URL encoding."""

    text: str
    label: str
    whole_words: bool  # matches only without a letter or digit beside it
    short: bool
    like_an_id: bool = False  # letters, digits and dashes


@lru_cache(maxsize=4096)
def _forms(value: str, label: str) -> tuple[_KnownForm, ...]:
    plain = re.fullmatch(r"[0-9a-fA-F]+", value) is not None or len(value) < LONG
    written = {value}
    for _ in range(2):
        for form in tuple(written):
            written |= {json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1], repr(form)[1:-1]}
            written |= {html.escape(form), html.escape(form, quote=False), form.replace("/", r"\/")}
            written |= {quote(form), quote(form, safe=""), quote(form, safe="").lower()}
    like_an_id = _WORD.fullmatch(value) is not None
    found = [_KnownForm(form, label, plain, len(value) < LONG, like_an_id) for form in written]
    raw = value.encode("utf-8", "surrogatepass")
    encoded = {raw.hex(), raw.hex(":"), raw.hex(" ")}
    encoded |= {text.upper() for text in encoded}
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + raw).decode("ascii")
        first = (0, 2, 3)[offset]
        # Without the characters that depend on neighbouring bytes.
        last = len(text) - (0, 3, 2)[(offset + len(raw)) % 3]
        if last - first >= SHORTEST:
            core = text[first:last]
            encoded |= {core, core.replace("+", "-").replace("/", "_"), quote(core, safe="")}
    return (*found, *(_KnownForm(form, label, whole_words=False, short=False) for form in encoded))


@dataclass
class Redactor:
    """Removes secrets from texts, notebooks and files, and counts them.

    `values` are secret values of any form, such as those of `secret_values`. The values passed to `remember`
    are removed too.
    """

    values: tuple[str, ...] = ()
    found: Counter[str] = field(default_factory=Counter)
    _all_forms: list[_KnownForm] = field(default_factory=list, repr=False)
    _prefixes: dict[str, list[_KnownForm]] = field(default_factory=dict, repr=False)
    _long: dict[str, str] = field(default_factory=dict, repr=False)
    _seen: int = field(default=-1, repr=False)
    # Texts without a secret. A notebook is saved after each cell, with the same texts of all earlier cells.
    _clean: set[str] = field(default_factory=set, repr=False)
    _clean_characters: int = field(default=0, repr=False)

    def text(self, text: str) -> str:
        """Return a text with a note instead of each secret."""
        return self.pieces([text])[0]

    def pieces(self, pieces: Sequence[str]) -> list[str]:
        """Redact the pieces of one text, such as the chunks of a stream; a secret may span several."""
        clean = list(pieces)
        for _ in range(_DEPTH):
            spans = self._spans("".join(clean) if len(clean) > 1 else clean[0]) if clean else []
            if not spans:
                break
            self.found.update(label for _, _, label in spans)
            clean = _cut(clean, spans)
        return clean

    def version(self) -> int:
        """Return a number that changes when there are more known secrets."""
        return len(remembered())

    def known_texts(self) -> tuple[str, ...]:
        """Return all notations of the known secrets."""
        return tuple(form.text for form in self._known_forms())

    def value(self, value: Any) -> Any:
        """Return a JSON-like value with all its texts redacted: keys, members, pictures."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            redacted = [self.value(item) for item in value]
            return redacted if isinstance(value, list) else tuple(redacted)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, PurePath):
            text = self.text(str(value))
            return value if text == str(value) else Path(text)
        if isinstance(value, bytes):
            return self.content(value)
        return value

    def json(self, text: str) -> str:
        """Redact all texts in JSON and keep it valid; redact other text as `text` does."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        if isinstance(value, dict | list):
            redacted = self.value(value)
            if redacted == value:
                return text
            indent = len(found[1]) if (found := re.match(r"[\[{]\r?\n( +)", text)) else None
            return json.dumps(redacted, ensure_ascii=False, indent=indent)
        return self.text(text)

    def content(self, content: bytes, name: str = "") -> bytes:
        """Return the content of a file without secrets; a file named ``*.json`` is still valid JSON.

        A picture, an archive or another binary file with a secret is replaced by a note.
        """
        text = _as_text(content)
        if text is None:
            label = self.binary(content)
            return f"{_note(label)}\n".encode() if label else content
        suffix = PurePath(name).suffix
        if suffix == ".jsonl":
            clean = "".join(self._json_line(line) for line in text.splitlines(keepends=True))
        elif suffix in (".json", ".ipynb"):
            clean = self.json(text)
        else:
            clean = self.text(text)
        clean = clean if clean == text else self.text(clean)
        return content if clean == text else clean.encode("utf-8", "surrogatepass")

    def binary(self, content: bytes) -> str:
        """Return the kind of the first secret in binary content, or an empty string."""
        label = self._label(content, 0)
        if label:
            self.found[label] += 1
        return label

    def _label(self, content: bytes, depth: int) -> str:
        known = [
            (form.text.encode("utf-8", "surrogatepass"), form.label)
            for form in self._known_forms()
            if not form.whole_words
        ]
        for part in _unpacked(content):
            for variant in (part, part.replace(b"\0", b"")) if b"\0" in part else (part,):  # UTF-16
                printable = "\n".join(run.decode("latin-1") for run in _PRINTABLE.findall(variant))
                label = next((label for _, _, label in self._spans(printable, depth)), "") or next(
                    (label for text, label in known if text in variant), ""
                )
                if label:
                    return label
        return ""

    def notebook(self, notebook: Any) -> None:
        """Redact a notebook (``nbformat.NotebookNode`` of format 4) in place.

        Sources, outputs, attachments and all metadata are searched.
        """
        for cell in notebook.cells:
            outputs = cell.get("outputs", [])
            streams = [output for output in outputs if output.get("output_type") == "stream"]
            for output in streams:
                output["text"] = _joined(output.get("text", ""))
            names = {str(output.get("name")) for output in streams}
            for chosen in ([o for o in streams if str(o.get("name")) == name] for name in sorted(names)):
                texts = self.pieces([output["text"] for output in chosen])
                for output, text in zip(chosen, texts, strict=True):
                    output["text"] = text
            cell["source"] = _joined(cell.get("source", ""))
            for output in outputs:
                if isinstance(lines := output.get("traceback"), list):
                    whole = "\n".join(map(str, lines))
                    clean = self.text(whole)
                    output["traceback"] = lines if clean == whole else clean.split("\n")
            identifier = cell.get("id")
            clean_cell = _node(self._mapping(cell))
            cell.update(clean_cell)
            if identifier is not None:
                cell["id"] = identifier
        for key, value in list(notebook.metadata.items()):
            del notebook.metadata[key]
            notebook.metadata[self.text(str(key))] = _node(self.value(value))

    def _json_line(self, line: str) -> str:
        text = line.rstrip("\r\n")
        return self.json(text) + line[len(text) :]

    def _mapping(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        clean: dict[Any, Any] = {}
        notes: list[str] = []
        named = next((str(value[key]) for key in ("Key", "key", "Name", "name") if key in value), "")
        for key, item in value.items():
            wanted = self.text(key) if isinstance(key, str) else key
            number = 2
            while wanted in clean and wanted != key:
                wanted, number = f"{self.text(str(key))} {number}", number + 1
            if isinstance(key, str) and _BINARY_TYPE.fullmatch(key):
                payload = "".join(map(str, item)) if isinstance(item, list) else item
                content = _from_base64(payload) if isinstance(payload, str) else None
                if content and (label := self.binary(content)):
                    notes.append(f"{_note(label)}: a picture ({wanted}) is left out")
                else:
                    redacted = self.value(payload)
                    clean[wanted] = item if redacted == payload else redacted
            else:
                clean[wanted] = self._member(named if key in ("Value", "value") else str(key), _joined(item))
        if notes:
            clean["text/plain"] = "\n".join(filter(None, (*notes, str(clean.get("text/plain", "")))))
        return clean

    def _member(self, name: str, item: Any) -> Any:
        """Redact the value of a key; some secrets are recognized only together with the key."""
        redacted = self.value(item)
        if redacted == item and isinstance(item, str) and name:
            before = f"{name}="
            spans = [span for span in self._spans(before + item) if span[0] >= len(before)]
            if spans:
                self.found.update(label for _, _, label in spans)
                return _cut([before + item], spans)[0][len(before) :]
        return redacted

    def _known_forms(self) -> list[_KnownForm]:
        known = remembered()
        if self._seen != len(known):
            labelled = dict.fromkeys(known, IN_USE) | dict.fromkeys(self.values, ENVIRONMENT)
            forms = {
                form.text: form
                for value, label in sorted(labelled.items(), key=lambda pair: len(pair[0]))
                for form in _forms(value, label)
            }
            self._all_forms = list(forms.values())
            self._prefixes = {}
            for form in self._all_forms:
                self._prefixes.setdefault(form.text[:SHORTEST], []).append(form)
            self._long = {value: label for value, label in labelled.items() if len(value) >= LONG}
            self._seen = len(known)
            self._forget_clean()
        return self._all_forms

    def _forget_clean(self) -> None:
        self._clean.clear()
        self._clean_characters = 0

    def _spans(self, text: str, depth: int = 0) -> list[Span]:
        """Return the places of secrets, in order and without overlaps."""
        if len(text) < SHORTEST:
            return []
        self._known_forms()  # forgets the clean texts when there are more known secrets
        if text in self._clean:
            return []
        spans = self._search(text, depth)
        if not spans and not depth and len(text) <= LONGEST_CLEAN:  # encoded content is searched less deeply
            if self._clean_characters > MOST_CLEAN:
                self._forget_clean()
            self._clean.add(text)
            self._clean_characters += len(text)
        return spans

    def _search(self, text: str, depth: int) -> list[Span]:
        found = [*self._found_in(text), *self._encoded(text, depth)]
        for view in _views(text):
            found += view.in_original(self._found_in(view.text))
        if "\n" in text and self._known_forms():
            # Only known values: a pattern could match the end of one line with the start of an unrelated one.
            unwrapped = _view(text, _WRAPPED, None)
            if unwrapped is not None:
                found += unwrapped.in_original(self._known_in(unwrapped.text))
        return _merged([span for span in found if not text.startswith(_NOTE, span[0])])

    def _found_in(self, text: str) -> Iterator[Span]:
        """Yield the places of secrets in an unchanged text; they can overlap."""
        yield from self._known_in(text)
        yield from _shaped(text)
        yield from self._abbreviated(text)

    def _encoded(self, text: str, depth: int) -> Iterator[Span]:
        """Yield base64 that contains a secret: user data, a picture, a document, nested base64."""
        if depth >= _NESTED:
            return
        for match in _ENCODED.finditer(text):
            if _HEXADECIMAL.fullmatch(match[0]):  # a digest
                continue
            payload = re.sub(r"[\s>|=]+", "", match[0])
            content = _from_base64(payload[: len(payload) - (len(payload) % 4 == 1)])
            if content is None or not (
                _PRINTABLE.search(content) or content.startswith(_PACKED) or b"\0" in content[1:4]
            ):
                continue
            label = self._label(content, depth + 1)
            if label:
                yield (*match.span(), label)

    def _abbreviated(self, text: str) -> Iterator[Span]:
        """Yield the first or last part of a known secret beside an ellipsis."""
        if "..." not in text and "\u2026" not in text:
            return
        self._known_forms()
        for value, label in self._long.items():
            for place in _places(text, value[:SHORTEST]):
                end = place + _common_length(value, text[place : place + len(value)])
                if text.startswith(_DOTS, end):
                    yield place, end, label
            for place in _places(text, value[-SHORTEST:]):
                end = place + SHORTEST
                start = end - _common_length(value[::-1], text[max(end - len(value), 0) : end][::-1])
                if text.endswith(_DOTS, 0, start):
                    yield start, end, label

    def _known_in(self, text: str) -> Iterator[Span]:
        """Yield the places of known secrets, in time linear in the length of the text."""
        forms = self._known_forms()
        if len(forms) > max(len(text), 64):
            prefixes = self._prefixes
            for start in range(len(text) - SHORTEST + 1):
                for form in prefixes.get(text[start : start + SHORTEST], ()):
                    if text.startswith(form.text, start) and _is_secret_at(text, start, form):
                        yield start, start + len(form.text), form.label
            return
        for form in forms:
            for start in _places(text, form.text, len(form.text)):
                if _is_secret_at(text, start, form):
                    yield start, start + len(form.text), form.label


def _places(text: str, part: str, step: int = 1) -> Iterator[int]:
    """Yield the positions of a part in a text, each at least `step` after the last one."""
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + step)


def _common_length(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class LineRedactor:
    """Redacts a stream line by line, and removes private keys of several lines."""

    LONGEST = 1_000_000  # maximum number of buffered characters of an unfinished line
    OVERLAP = 20_000  # the last characters are kept: a secret may have begun in them

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rest: list[str] = []
        self._size = 0
        self._in_key = False

    def feed(self, text: str) -> str:
        """Add text to the stream, and return the finished lines."""
        whole, newline, rest = text.rpartition("\n")
        if newline:
            before = "".join(self._rest)
            self._rest, self._size = [rest], len(rest)
            return self._lines(before + whole + newline)
        self._rest.append(rest)
        self._size += len(rest)
        if self._size <= self.LONGEST:
            return ""
        line = self._redactor.text("".join(self._rest))
        cut = max(len(line) - self.OVERLAP, 0)
        note = line.rfind(_NOTE, max(cut - 200, 0), cut)  # a note must not be split
        cut = cut if note < 0 or "]" in line[note:cut] else note
        self._rest, self._size = [line[cut:]], len(line) - cut
        return line[:cut]

    def flush(self) -> str:
        """Return the rest at the end of the stream."""
        rest, self._rest, self._size = "".join(self._rest), [], 0
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


@dataclass(frozen=True, slots=True)
class _View:
    """A text as it is displayed, with the place of each part in the original."""

    text: str
    starts: list[int]  # start of each part in the view
    places: list[tuple[int, int, bool]]  # start and end of the part in the original; whether it is unchanged
    above: _View | None  # the view that this one was made from

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the original for a place in the view."""
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end - 1) - 1
        begin, finish, same = self.places[first]
        begin = begin + start - self.starts[first] if same else begin
        after, finish, same = self.places[last]
        finish = after + end - self.starts[last] if same else finish
        return self.above.original(begin, finish) if self.above is not None else (begin, finish)

    def in_original(self, spans: Iterable[Span]) -> Iterator[Span]:
        """Yield places in the view as places in the original."""
        return ((*self.original(start, end), label) for start, end, label in spans)


def _views(text: str) -> Iterator[_View]:
    """Yield views of a text, each without one more level of colours, markup and escapes."""
    above: _View | None = None
    for _ in range(_DEPTH):
        above = _view(text, _HIDDEN if "\b" not in text else _STRUCK_OVER, above)
        if above is None:
            return
        yield above
        text = above.text


def _view(text: str, pattern: re.Pattern[str], above: _View | None) -> _View | None:
    """Return the text with the visible form of each match of a pattern; ``None`` without a match."""
    found: list[tuple[str, tuple[int, int, bool]]] = []
    done = 0
    for match in pattern.finditer(text):
        begin, end = match.span()
        found += ((text[done:begin], (done, begin, True)), (_shown(match[0]), (begin, end, False)))
        done = end
    if not done:
        return None
    found.append((text[done:], (done, len(text), True)))
    parts, places = [part for part, _ in found if part], [place for part, place in found if part]
    starts = [0, *accumulate(map(len, parts))]
    return _View("".join(parts), starts[:-1], places, above) if parts else None


def _shown(hidden: str) -> str:
    """Return the visible form of a match of `_HIDDEN`."""
    first = hidden[0]
    if first == "<":
        return "" if hidden.startswith("<!") or _INLINE.match(hidden) else " "
    if first == "&":
        return html.unescape(hidden)
    if first == "%" and len(hidden) > 2:
        return unquote(hidden, errors="replace")
    if first == "\\":
        kind, number = hidden[1], hidden[2:]
        if kind in "uUx":
            return chr(min(int(number, 16), sys.maxunicode))
        return chr(int(hidden[1:], 8)) if number else _ESCAPES.get(kind, kind)
    return ""


def _shaped(text: str) -> Iterator[Span]:
    lowered = text.lower() if text else ""
    if not any(map(lowered.__contains__, _ALL_TRIGGERS)):
        return
    for (label, shape), triggers in zip(SHAPES, _TRIGGERS, strict=True):
        if any(trigger in lowered for trigger in triggers):
            for match in shape.finditer(text):
                yield (*match.span("secret"), label)


def _is_secret_at(text: str, start: int, form: _KnownForm) -> bool:
    """Return whether a known value is a secret here, and not a part of an ID, an ARN, a path or a digest."""
    end = start + len(form.text)
    if form.whole_words and (
        (form.text[0].isalnum() and text[start - 1 : start].isalnum())
        or (form.text[-1].isalnum() and text[end : end + 1].isalnum())
    ):
        return False
    if form.like_an_id:
        word = _around(text, start, end, _WORD)
        if _AWS_ID.fullmatch(word) or _RUN_ID.fullmatch(word):
            return False
    if not form.short and not _NAME.fullmatch(form.text):
        return True
    token = _around(text, start, end, _TOKEN)
    if token.startswith("arn:aws") and token.count(":") >= 5:
        return False
    # A folder in an existing path, such as that of a user, is not a secret; a file's name may be one.
    slash = token.find("/")
    place = token[slash:] if slash >= 0 else ""
    within = place.find(form.text)
    return not (within > 0 and os.path.isdir(place[: within + len(form.text)]))  # noqa: PTH112 - never raises


def _around(text: str, start: int, end: int, kind: re.Pattern[str]) -> str:
    """Return the characters of a kind around a place, at most 300 on each side."""
    before = kind.match(text[max(start - 300, 0) : start][::-1])
    after = kind.match(text, end, end + 300)
    left = start - (before.end() if before else 0)
    return text[left : after.end() if after else end]


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end, label in sorted(spans, key=lambda span: (span[0], -span[1])):
        if merged and start < merged[-1][1]:
            first, last, kept = merged[-1]
            merged[-1] = (first, max(last, end), kept)
        elif start < end:
            merged.append((start, end, label))
    return merged


def _cut(pieces: list[str], spans: list[Span]) -> list[str]:
    """Replace spans of the joined pieces by notes, each in the piece in which its secret begins."""
    clean, offset, number = [], 0, 0
    for piece in pieces:
        last = offset + len(piece)
        parts, done = [], offset
        while number < len(spans) and spans[number][0] < last:
            start, end, label = spans[number]
            stop = min(end, last)
            if start >= offset:
                parts.append(piece[done - offset : start - offset])
                # Colours and markup inside the secret are kept.
                kept = _SHOWN.findall(piece[start - offset : stop - offset])
                parts += [_note(label), *kept]
            done = stop
            if end > last:
                break
            number += 1
        parts.append(piece[done - offset :])
        clean.append("".join(parts))
        offset = last
    return clean


def _note(label: str) -> str:
    return f"{_NOTE}{label}]"


def _as_text(content: bytes) -> str | None:
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _from_base64(payload: str) -> bytes | None:
    try:
        text = "".join(payload.split()).replace("-", "+").replace("_", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def _unpacked(content: bytes, depth: int = 0, budget: list[int] | None = None) -> Iterator[bytes]:
    """Yield content and its unpacked parts: texts of a PNG, members of a ZIP, decompressed data."""
    budget = [_UNPACKED_IN_ALL] if budget is None else budget
    budget[0] -= len(content)
    yield content
    if depth >= _NESTED:
        return
    try:
        for part in _parts_of(content):
            if budget[0] <= 0:
                return
            yield from _unpacked(part, depth + 1, budget)
    except _UNPACK_ERRORS:
        return  # only the first bytes were those of an archive


def _parts_of(content: bytes) -> Iterator[bytes]:
    """Yield the unpacked parts of content of a known type."""
    unpack = next((unpack for starts, unpack in _UNPACKERS if content.startswith(starts)), None)
    if unpack is not None:
        yield from unpack(content)
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for entry in archive:
                yield f"{entry.name}\n{entry.linkname}".encode("utf-8", "replace")
                member = archive.extractfile(entry) if entry.isreg() else None
                if member is not None:
                    yield from iter(partial(member.read, _UNPACKED_BYTES), b"")
    elif b"PK\x05\x06" in content[-66_000:]:  # a ZIP may follow other data
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for info in packed.infolist():
                yield info.filename.encode("utf-8", "replace") + b"\n" + info.comment
                with packed.open(info) as inner:
                    yield from iter(partial(inner.read, _UNPACKED_BYTES), b"")


def _arrow_stream(content: bytes) -> Iterator[bytes]:
    import pyarrow as pa

    name = "zstd" if content[0] == 0x28 else "lz4"
    yield pa.CompressedInputStream(pa.BufferReader(content), name).read(_UNPACKED_BYTES)


def _pdf_streams(content: bytes) -> Iterator[bytes]:
    for found in re.finditer(rb"stream\r?\n", content):
        with suppress(zlib.error):
            yield zlib.decompressobj().decompress(memoryview(content)[found.end() :], _UNPACKED_BYTES)


def _streams(content: bytes, make: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the content of consecutive compressed streams; the pieces of a large one overlap."""
    rest = content
    while rest:
        stream, part, end = make(), b"", b""
        while not stream.eof and (rest or len(part) == _UNPACKED_BYTES):
            part = stream.decompress(rest, _UNPACKED_BYTES)
            rest = getattr(stream, "unconsumed_tail", b"")  # only zlib returns unread input
            yield end + part
            end = part[-_OVERLAP:]
        if not stream.eof:
            return
        rest = stream.unused_data


def _table_texts(content: bytes) -> Iterator[bytes]:
    """Yield the schema and the values of a Parquet or Arrow file."""
    import pyarrow as pa

    if content.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(pa.BufferReader(content))
        schema, batches = file.schema_arrow, file.iter_batches()
    else:
        reader = pa.ipc.open_file(pa.BufferReader(content))
        schema, batches = reader.schema, (reader.get_batch(n) for n in range(reader.num_record_batches))
    yield schema.to_string(truncate_metadata=False).encode("utf-8", "replace")
    for batch in batches:
        for column in batch.columns:
            texts = (
                value.decode("latin-1") if isinstance(value, bytes) else str(value)
                for value in column.to_pylist()
            )
            yield "\n".join(texts).encode("utf-8", "surrogatepass")


def _png_texts(content: bytes) -> Iterator[bytes]:
    offset = 8
    while offset + 8 <= len(content):
        (size,) = struct.unpack_from(">I", content, offset)
        kind, data = content[offset + 4 : offset + 8], content[offset + 8 : offset + 8 + size]
        if kind in (b"zTXt", b"iTXt"):
            yield data
            for start in range(len(data)):
                if data[start : start + 1] == b"\x78":  # zlib's header may begin here
                    try:
                        yield zlib.decompressobj().decompress(data[start:], _UNPACKED_BYTES)
                    except zlib.error:
                        continue
                    break
        offset += 12 + size


_UNPACKERS: tuple[tuple[tuple[bytes, ...], Callable[[bytes], Iterator[bytes]]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), _png_texts),
    ((b"\x1f\x8b",), partial(_streams, make=lambda: zlib.decompressobj(31))),
    ((b"BZh",), partial(_streams, make=bz2.BZ2Decompressor)),
    ((b"\xfd7zXZ\0", b"\x5d\0\0"), partial(_streams, make=lzma.LZMADecompressor)),
    ((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), partial(_streams, make=zlib.decompressobj)),
    ((b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"), _arrow_stream),
    ((b"PAR1", b"ARROW1"), _table_texts),
    ((b"%PDF",), _pdf_streams),
)
"""The first bytes of packed content, and the function that unpacks it."""

_PACKED = (b"PK\x03\x04", *(start for starts, _ in _UNPACKERS for start in starts))
_UNPACK_ERRORS: tuple[type[Exception], ...] = (ImportError, ValueError, OSError, RuntimeError, EOFError)
_UNPACK_ERRORS += (struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


def _joined(value: Any) -> Any:
    """Return a notebook's list of lines as one text, because a secret may span lines.

    A list of one text, such as a parameter, is returned unchanged.
    """
    if isinstance(value, list) and len(value) > 1 and all(isinstance(line, str) for line in value):
        return value if any(not line.endswith("\n") for line in value[:-1]) else "".join(value)
    return value


def _node(value: Any) -> Any:
    from nbformat import from_dict

    return from_dict(value)  # type: ignore[no-untyped-call]
