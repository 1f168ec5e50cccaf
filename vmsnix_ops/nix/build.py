"""Build an image with Nix, and report the progress.

>>> from vmsnix_ops.nix.build import plan_build
>>> plan = plan_build("ecs-node")     # doctest: +SKIP
>>> built = plan.build()              # doctest: +SKIP

`resolve_image` handles every ``image`` parameter: it reads a built image, or builds an image of a flake.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.display import Displayed
from vmsnix_ops.errors import BuildFailedError, ImageNotFoundError, NixError, ParameterError, SettingsError
from vmsnix_ops.nix.command import (
    FEATURES,
    CommandResult,
    command_error,
    error_lines,
    find_cause,
    find_derivation,
    find_nix,
    parse_outputs,
    run,
)
from vmsnix_ops.nix.flake import (
    NO_LOCK,
    Flake,
    FlakeImage,
    Provenance,
    check_name,
    check_system,
    find_flake,
    find_image,
    host_system,
    read_provenance,
)
from vmsnix_ops.nix.image import BuiltImage, describe_keys, read_image
from vmsnix_ops.progress import Progress, Step, current, human_bytes
from vmsnix_ops.settings import load
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence


# The log of ``nix build --log-format internal-json``: each line on stderr is ``@nix`` and a JSON object. The
# numbers below are Nix's ``ActivityType`` and ``ResultType`` (``src/libutil/logging.hh``), unchanged from 2.8
# to 2.34. Any other line is a message.

LAST_LINES = 20

_FILE_TRANSFER, _COPIES, _BUILDS, _BUILD = 101, 103, 104, 105
_LOG_LINE, _PHASE, _PROGRESS, _EXPECTED = 101, 104, 105, 106
_ERROR_LEVEL = 0
_MOST_MESSAGES = 200

_ANNOUNCED = re.compile(r"(?:these (\d+) derivations|this derivation) will be built")
# In 2.34 an error names the derivation that Nix tries first, in earlier versions no pattern below matches.
_MISMATCH = "platform mismatch"

# "builder for 'X' failed", and since 2.31 "Cannot build 'X'".
_FAILED = re.compile(
    r"(?:builder for|[Cc]annot build|build of|hash mismatch in fixed-output derivation) '([^'\n]+\.drv)"
)


@dataclass(frozen=True, slots=True)
class BuildStatus:
    """The progress of a build."""

    # Number of derivations; `built` never exceeds `expected`.
    built: int = 0
    expected: int = 0
    fetched: int = 0  # number of store paths from a cache
    # Downloaded bytes, and known bytes to download.
    fetched_bytes: int = 0
    fetch_bytes: int = 0
    building: str = ""  # name of the derivation that started last and still runs; empty for none
    phase: str = ""  # its phase, such as "buildPhase"


@dataclass(slots=True)
class _Build:
    derivation: str
    phase: str = ""


@dataclass(slots=True)
class BuildLog:
    """The log of a build."""

    # Nix's last 200 messages, without colours.
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_MESSAGES))
    # The last 200 error messages.
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_MESSAGES))
    _all_builds: int | None = None
    _built: int = 0
    _expected: int = 0
    _announced: int = 0
    _copies: dict[int, int] = field(default_factory=dict)
    _running: dict[int, _Build] = field(default_factory=dict)
    _logs: dict[str, deque[str]] = field(default_factory=dict)
    _transfers: dict[int, tuple[int, int]] = field(default_factory=dict)
    _fetched_before: int = 0
    _fetch_expected: dict[int, int] = field(default_factory=dict)

    def feed(self, line: str) -> None:
        """Read one line of the log."""
        entry = _parsed(line)
        if entry is None:
            if line.strip():
                self._add_message(line, error=plain(line).startswith("error:"))
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
            self._add_message(str(entry.get("msg", "")), error=entry.get("level") == _ERROR_LEVEL)

    def status(self) -> BuildStatus:
        """Return the current progress."""
        current = next(reversed(self._running.values()), None)
        fetched = self._fetched_before + sum(done for done, _ in self._transfers.values())
        known = self._fetched_before + sum(max(pair) for pair in self._transfers.values())
        return BuildStatus(
            # 2.34 counts one derivation too many whenever one is finished, so its announcement counts.
            built=min(self._built, self._expected),
            expected=max(self._announced, self._built) if self._announced else self._expected,
            fetched=sum(self._copies.values()),
            fetched_bytes=fetched,
            fetch_bytes=max(known, *self._fetch_expected.values(), 0) if self._fetch_expected else known,
            building=derivation_name(current.derivation) if current else "",
            phase=current.phase if current else "",
        )

    def failed_derivation(self) -> str:
        """Return the store path of the first failed derivation; empty if none is named."""
        text = "\n".join(self.errors)
        match = _FAILED.search(text)
        return match[1] if match and _MISMATCH not in text else ""

    def last_lines(self, derivation: str) -> tuple[str, ...]:
        """Return the last 20 lines of a derivation's log, without colours."""
        return tuple(self._logs.get(derivation, ()))

    def _add_message(self, text: str, *, error: bool) -> None:
        text = plain(text)
        if announced := _ANNOUNCED.match(text):
            self._announced = int(announced[1] or 1)
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


_REDRAW_SECONDS = 0.1
_PATH_LIKE = re.compile(
    r"(?s:(?:/|\./|\.\./|~/|result/).*)|(?i:result(-.*)?|.*\.(vhd|img|raw|qcow2|vmdk|vhdx))"
)


@dataclass(frozen=True, slots=True)
class PlannedBuild(Displayed):
    """A build that has not started. Make it with `plan_build`."""

    image: FlakeImage
    source: Flake
    provenance: Provenance  # revision and hash of the flake
    # Link that protects the built image from garbage collection. There is one for each image and system; the
    # next build replaces it. Delete it to let Nix delete the image.
    keep: Path

    def facts(self) -> list[tuple[str, str]]:
        """Return the known values of the plan."""
        origin = self.provenance
        revision = f"{origin.revision or 'none'}{' with uncommitted changes' if origin.dirty else ''}"
        values = {
            "will be built": f"{self.image.name} for {self.image.system}",
            "description": self.image.description,
            "disk": human_bytes(self.image.disk_bytes)
            if self.image.disk_bytes
            else "as large as its contents need",
            "flake": self.image.installable,
            "revision": revision if origin.revision or origin.dirty else "",
            "source hash": origin.nar_hash or "",
            "kept by": str(self.keep),
            "may log in": describe_keys(self.image.keys),
        }
        return [(label, value) for label, value in values.items() if value]

    def build(self, *, progress: Progress | None = None) -> BuiltImage:
        """Build the image, unless the Nix store has it.

        Safe to run twice: Nix does not build store paths again, and the path of the result is the same. If a
        derivation fails, a BuildFailedError has its path and the last 20 lines of its log.
        """
        _make_folder(self.keep.parent)
        arguments = ["build", self.image.installable, "--out-link", str(self.keep), "--json", NO_LOCK]
        with (progress or current()).step("build", unit="derivations") as step:
            result, status = run_build(
                [find_nix(), *FEATURES, *arguments], f"The image {self.image.name} was not built.", step
            )
            derivation, output = parse_outputs(result.output)
            built = read_image(output, name=self.image.name, system=self.image.system)
        return replace(
            built,
            derivation=derivation,
            flake=self.image.installable,
            revision=self.provenance.revision,
            nar_hash=self.provenance.nar_hash,
            dirty=self.provenance.dirty,
            items=status.built + status.fetched,
        )


@check_arguments
def plan_build(
    image: str,
    *,
    system: str | None = None,
    flake: str | Path | None = None,
    keep: Path | None = None,
) -> PlannedBuild:
    """Evaluate an image of a flake, and return the plan of its build.

    `image` is ``"ecs-node"``, ``"./nix#ecs-node"`` or ``"./nix#packages.aarch64-linux.ecs-node"``. By default
    the system is that of this machine, and the flake is the setting ``flake``. `keep` is the link to the
    result, by default below the setting ``state``.
    """
    flake_given, name, system_given = split_image(image)
    chosen = check_system(system or system_given or host_system())
    if system and system_given and system != system_given:
        raise ParameterError(
            f"The image {image} is for {system_given}, but --system is {system}.", fix="Remove one of them."
        )
    check_name(name)
    source = find_flake(flake_given or flake or None)
    find_nix()
    found = find_image(source, name, chosen)
    link = keep or load().state / "built" / f"{name}-{chosen}"
    return PlannedBuild(found, source, read_provenance(source), link)


def resolve_image(
    image: str | Path,
    *,
    system: str | None = None,
    boot_mode: str | None = None,
    flake: str | Path | None = None,
    progress: Progress | None = None,
) -> BuiltImage:
    """Read an existing ``result`` link, directory or image file, or build an image of a flake.

    `boot_mode` is that of an image file that does not contain it; the other parameters are those of
    `plan_build`.
    """
    text = str(image)
    if not text.strip():
        raise ImageNotFoundError(
            "No image given.",
            fix="Use an image file, a 'result' link, or a flake attribute such as ./nix#ecs-node.",
        )
    if is_path(image):
        built = read_image(Path(text).expanduser(), system=system or None, boot_mode=boot_mode or None)
        return replace(built, derivation=find_derivation(built.store_path)) if built.store_path else built
    return plan_build(text, system=system, flake=flake).build(progress=progress)


def is_path(image: str | Path, start: Path | None = None) -> bool:
    """Return whether `resolve_image` reads a file or a directory, and does not build an image of a flake.

    Relative paths start at `start`, by default the working directory.
    """
    text = str(image)
    if "\0" in text:
        return False
    path = (start or Path()) / Path(text).expanduser()
    if isinstance(image, Path) or os.path.lexists(path):
        return True
    return "#" not in text and _PATH_LIKE.fullmatch(text) is not None


def split_image(image: str) -> tuple[str | None, str, str | None]:
    """Return flake, name and system of an attribute; ``None`` for missing parts.

    >>> split_image("ecs-node")
    (None, 'ecs-node', None)
    >>> split_image("./nix#packages.aarch64-linux.ecs-node")
    ('./nix', 'ecs-node', 'aarch64-linux')
    """
    flake, mark, name = image.partition("#")
    if not mark:
        flake, name = "", image
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "packages":
        return flake or None, parts[2], parts[1]
    return flake or None, name, None


def run_build(command: Sequence[str], what: str, step: Step) -> tuple[CommandResult, BuildStatus]:
    """Run a Nix command that builds, report its progress, and return its result and final status.

    `command` is without the options of the log; `what` is the first sentence of the error.
    """
    log, reporter = BuildLog(), _StatusReporter(step)

    def on_message(line: str) -> None:
        log.feed(line)
        reporter.show(log.status())

    result = run([*command, "--log-format", "internal-json", "-v"], on_message=on_message)
    reporter.show(log.status(), now=True)
    if result.status:
        raise _build_error(what, replace(result, messages=tuple(log.errors or log.messages)), log)
    return result, log.status()


class _StatusReporter:
    """Reports each change of a build's status; changes of the downloaded bytes only at an interval."""

    def __init__(self, step: Step) -> None:
        self.step, self.last, self.at = step, BuildStatus(), 0.0

    def show(self, status: BuildStatus, *, now: bool = False) -> None:
        changed = _without_fetching(status) != _without_fetching(self.last)
        due = status != self.last and time.monotonic() - self.at >= _REDRAW_SECONDS
        if changed or due or (now and status != self.last):
            self.last, self.at = status, time.monotonic()
            self.step.update(status.built, status.expected or None, _describe(status))


def _without_fetching(status: BuildStatus) -> BuildStatus:
    return replace(status, fetched=0, fetched_bytes=0, fetch_bytes=0)


def _describe(status: BuildStatus) -> str:
    parts = []
    if status.building:
        parts.append(f"{status.building}: {status.phase}" if status.phase else status.building)
    if status.fetch_bytes:
        parts.append(f"downloaded {human_bytes(status.fetched_bytes)} of {human_bytes(status.fetch_bytes)}")
    return ", ".join(parts)


def _build_error(what: str, result: CommandResult, log: BuildLog) -> NixError:
    derivation = log.failed_derivation()
    if not derivation:
        return command_error(what, result)
    lines = log.last_lines(derivation)
    # Without a log the builder did not run, and the messages are Nix's own.
    why, fix = find_cause("\n".join(lines or result.messages), of_builder=bool(lines))
    if lines:
        text = "The last lines of its log:" + "".join(f"\n  {line}" for line in lines)
    else:
        text = f"Nix reported: {' '.join(error_lines(result.messages))}"
    return BuildFailedError(
        f"{what} The derivation {derivation_name(derivation)} failed.",
        why=f"{why} {text}\n".lstrip(),
        fix=fix or f"To read the whole log: nix log {derivation}",
        derivation=derivation,
        log=lines,
    )


def _make_folder(folder: Path) -> None:
    try:
        files.make_folder(folder)
    except OSError as error:
        raise SettingsError(
            f"Could not create the folder {folder}.",
            why=f"{error.strerror}; the link there protects the image from garbage collection.",
            fix="Set VMSNIX_STATE to a writable folder.",
        ) from error
