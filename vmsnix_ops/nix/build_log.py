"""Make sense of the log of ``nix build --log-format internal-json``, line by line.

Each line on stderr is ``@nix`` and a JSON object. The numbers below are those of Nix's ``ActivityType`` and
``ResultType`` (``src/libutil/logging.hh``), unchanged from 2.8 to 2.34. Anything else on a line is kept as a
message; no line is an error.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field

from vmsnix_ops.text import plain

LAST_LINES = 20

_FILE_TRANSFER, _COPIES, _BUILDS, _BUILD = 101, 103, 104, 105
_LOG_LINE, _PHASE, _PROGRESS, _EXPECTED = 101, 104, 105, 106
_ERROR_LEVEL = 0
_MOST_MESSAGES = 200

# "builder for 'X' failed", and since 2.31 "Cannot build 'X'".
_FAILED = re.compile(
    r"(?:builder for|[Cc]annot build|build of|hash mismatch in fixed-output derivation) '([^'\n]+\.drv)"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a build is.

    Attributes
    ----------
    built, expected
        Derivations; `built` never exceeds `expected`.
    fetched
        Store paths that came from a cache.
    fetched_bytes, fetch_bytes
        Downloaded so far, and to download as far as known.
    building
        Name of the derivation that started last and still runs; empty when none does.
    phase
        Its phase, such as ``"buildPhase"``.
    """

    built: int = 0
    expected: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    fetch_bytes: int = 0
    building: str = ""
    phase: str = ""


@dataclass(slots=True)
class _Build:
    derivation: str
    phase: str = ""


@dataclass(slots=True)
class BuildLog:
    """The log so far.

    Attributes
    ----------
    messages
        What Nix said for people, without colours; the newest 200.
    errors
        Those of them that are errors.
    """

    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_MESSAGES))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_MESSAGES))
    _all_builds: int | None = None
    _built: int = 0
    _expected: int = 0
    _copies: dict[int, int] = field(default_factory=dict)
    _running: dict[int, _Build] = field(default_factory=dict)
    _logs: dict[str, deque[str]] = field(default_factory=dict)
    _transfers: dict[int, tuple[int, int]] = field(default_factory=dict)
    _fetched_before: int = 0
    _fetch_expected: dict[int, int] = field(default_factory=dict)

    def feed(self, line: str) -> None:
        """Take one line, whatever it holds."""
        entry = _parsed(line)
        if entry is None:
            if line.strip():
                self._say(line, error=plain(line).startswith("error:"))
            return
        action, activity, fields = entry.get("action"), _number(entry.get("id")), entry.get("fields")
        fields = fields if isinstance(fields, list) else []
        if action == "start":
            self._start(activity, entry.get("type"), fields)
        elif action == "stop":
            self._running.pop(activity, None)
            self._fetched_before += self._transfers.pop(activity, (0, 0))[0]
        elif action == "result":
            self._result(activity, entry.get("type"), fields)
        elif action == "msg":
            self._say(str(entry.get("msg", "")), error=entry.get("level") == _ERROR_LEVEL)

    def standing(self) -> Standing:
        """Return how far the build is now."""
        current = next(reversed(self._running.values()), None)
        fetched = self._fetched_before + sum(done for done, _ in self._transfers.values())
        known = self._fetched_before + sum(max(pair) for pair in self._transfers.values())
        return Standing(
            built=min(self._built, self._expected),  # 2.34 counts past the end
            expected=self._expected,
            fetched=sum(self._copies.values()),
            fetched_bytes=fetched,
            fetch_bytes=max(known, *self._fetch_expected.values(), 0) if self._fetch_expected else known,
            building=derivation_name(current.derivation) if current else "",
            phase=current.phase if current else "",
        )

    def failed(self) -> str:
        """Return the store path of the derivation that failed first; empty when none is named."""
        match = _FAILED.search("\n".join(self.errors))
        return match[1] if match else ""

    def last_lines(self, derivation: str) -> tuple[str, ...]:
        """Return the last 20 lines that a derivation's builder printed, without colours."""
        return tuple(self._logs.get(derivation, ()))

    def _say(self, text: str, *, error: bool) -> None:
        text = plain(text)
        self.messages.append(text)
        if error:
            self.errors.append(text)

    def _start(self, activity: int, kind: object, fields: list[object]) -> None:
        if kind == _BUILDS:
            self._all_builds = activity
        elif kind == _COPIES:
            self._copies[activity] = 0
        elif kind == _FILE_TRANSFER:
            self._transfers[activity] = (0, 0)
        elif kind == _BUILD and fields and isinstance(fields[0], str):
            self._running[activity] = _Build(fields[0])

    def _result(self, activity: int, kind: object, fields: list[object]) -> None:
        build = self._running.get(activity)
        if kind == _PROGRESS:
            done, expected = (max(_number(value), 0) for value in (*fields, 0, 0)[:2])
            if activity == self._all_builds:
                self._built, self._expected = done, expected
            elif activity in self._copies:
                self._copies[activity] = done
            elif activity in self._transfers:
                self._transfers[activity] = (done, expected)
        elif kind == _EXPECTED and len(fields) > 1 and fields[0] == _FILE_TRANSFER:
            self._fetch_expected[activity] = max(_number(fields[1]), 0)
        elif kind == _LOG_LINE and build is not None and fields:
            lines = self._logs.setdefault(build.derivation, deque(maxlen=LAST_LINES))
            lines.append(plain(str(fields[0])))
        elif kind == _PHASE and build is not None and fields:
            build.phase = str(fields[0])


def derivation_name(path: str) -> str:
    """Return the name in a derivation's store path.

    Examples
    --------
    >>> derivation_name("/nix/store/00000000000000000000000000000000-hello-2.12.drv")
    'hello-2.12'
    """
    name = path.rpartition("/")[2].removesuffix(".drv")
    return name[33:] if name[32:33] == "-" else name


def _parsed(line: str) -> dict[str, object] | None:
    if not line.startswith("@nix "):
        return None
    try:
        entry = json.loads(line.removeprefix("@nix "))
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
