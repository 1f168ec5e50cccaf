"""Build an image with Nix, and see how far it is.

>>> from vmsnix_ops.nix.build import plan_build
>>> plan = plan_build("ecs-node")     # doctest: +SKIP
>>> built = plan.build()              # doctest: +SKIP

`resolve` is the one entry for every ``image`` parameter: it takes what is built already, and builds what is
not.
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
    Answer,
    deriver,
    error_lines,
    explain,
    explanation,
    find_nix,
    parse_outputs,
    run,
)
from vmsnix_ops.nix.flake import (
    Flake,
    FlakeImage,
    Provenance,
    check_name,
    check_system,
    find_flake,
    find_image,
    host_system,
    provenance,
)
from vmsnix_ops.nix.image import BuiltImage, read_image
from vmsnix_ops.progress import Progress, Step, current, human_bytes
from vmsnix_ops.settings import load
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# Make sense of the log of ``nix build --log-format internal-json``, line by line.
#
# Each line on stderr is ``@nix`` and a JSON object. The numbers below are those of Nix's ``ActivityType`` and
# ``ResultType`` (``src/libutil/logging.hh``), unchanged from 2.8 to 2.34. Anything else on a line is kept as
# a message; no line is an error.

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


_REDRAW_SECONDS = 0.1
_FILE_LIKE = re.compile(r"result(-.*)?|.*\.(vhd|img|raw|qcow2|vmdk|vhdx)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BuildPlan(Displayed):
    """What a build will do. Nothing has happened yet.

    Attributes
    ----------
    image
        The image that will be built.
    source
        The flake.
    provenance
        Which source it is.
    keep
        Link that will keep the built image from garbage collection, one per image and system; building the
        same image again moves it on. Remove the link (or the folder) to let Nix collect the image.
    """

    image: FlakeImage
    source: Flake
    provenance: Provenance
    keep: Path

    def facts(self) -> list[tuple[str, str]]:
        """Return the plan as an operator reads it; unknown things are left out."""
        origin = self.provenance
        revision = f"{origin.revision or 'none'}{' with uncommitted changes' if origin.dirty else ''}"
        shown = {
            "will be built": f"{self.image.name} for {self.image.system}",
            "description": self.image.description,
            "disk": human_bytes(self.image.disk_bytes)
            if self.image.disk_bytes
            else "as large as its contents need",
            "flake": self.image.installable,
            "revision": revision if origin.revision or origin.dirty else "",
            "source hash": origin.nar_hash or "",
            "kept by": str(self.keep),
        }
        return [(label, value) for label, value in shown.items() if value]

    def build(self, *, progress: Progress | None = None) -> BuiltImage:
        """Build the image, or find it built.

        Safe to run twice: Nix builds nothing that its store holds already, and the result's path is the same.

        Parameters
        ----------
        progress
            Where the step ``build`` is shown; by default the face that fits.

        Raises
        ------
        BuildFailedError
            A derivation failed; carries it and the last 20 lines of its log.
        NixError
            Nix could not build for another reason, such as no network.
        ImageNotFoundError, ImageFormatError
            What was built is not an image.
        """
        _make_folder(self.keep.parent)
        arguments = [
            "build",
            self.image.installable,
            "--out-link",
            str(self.keep),
            "--json",
            *self.source.options(),
        ]
        with (progress or current()).step("build", unit="derivations") as step:
            answer, end = run_build(
                [find_nix(), *FEATURES, *arguments], f"The image {self.image.name} was not built.", step
            )
            derivation, output = parse_outputs(answer.output)
            built = read_image(output, name=self.image.name, system=self.image.system)
        return replace(
            built,
            drv_path=derivation,
            flake=self.image.installable,
            revision=self.provenance.revision,
            nar_hash=self.provenance.nar_hash,
            dirty=self.provenance.dirty,
            items=end.built + end.fetched,
        )


@check_arguments
def plan_build(
    image: str,
    *,
    system: str | None = None,
    flake: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    keep: Path | None = None,
) -> BuildPlan:
    """Find out what building an image would do.

    Parameters
    ----------
    image
        ``"ecs-node"``, ``"./nix#ecs-node"`` or ``"./nix#packages.aarch64-linux.ecs-node"``.
    system
        ``"x86_64-linux"`` or ``"aarch64-linux"``; that of this machine when empty.
    flake
        Where `image` is looked up when it names no flake; the setting ``flake`` when empty.
    overrides
        Other sources for the flake's inputs, name to flake reference.
    keep
        Link that keeps the result; by default below the setting ``state``.

    Raises
    ------
    UnknownImageError
        There is no such image (the nearest name is offered), or the name cannot be one.
    ParameterError
        The flake or the system cannot be what was given.
    ToolMissingError
        There is no nix.
    NixError
        The flake cannot be evaluated.
    """
    flake_given, name, system_given = split_image(image)
    chosen = check_system(system or system_given or host_system())
    if system and system_given and system != system_given:
        raise ParameterError(
            f"The image {image} is for {system_given}, but --system is {system}.",
            fix="Remove one of them.",
        )
    check_name(name)
    source = find_flake(flake_given or flake or None, overrides)
    find_nix()
    found = find_image(source, name, chosen)
    link = keep or load().state / "built" / f"{name}-{chosen}"
    return BuildPlan(found, source, provenance(source), link)


def build(
    attribute: str,
    *,
    system: str | None = None,
    flake: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> BuiltImage:
    """Build an image of a flake: `plan_build` and `BuildPlan.build` in one, with their errors."""
    plan = plan_build(attribute, system=system, flake=flake, overrides=overrides, keep=keep)
    return plan.build(progress=progress)


def resolve(
    image: str | Path,
    *,
    system: str | None = None,
    boot_mode: str | None = None,
    flake: str | Path | None = None,
    progress: Progress | None = None,
) -> BuiltImage:
    """Return the image that a person means, built.

    Parameters
    ----------
    image
        A ``result`` link, a directory or a file that exists; otherwise an image of a flake, which is built.
    system, flake, progress
        As for `build`.
    boot_mode
        How an image file boots that does not tell it.

    Raises
    ------
    ImageNotFoundError
        It looks like a path, and there is nothing there.
    VmsnixError
        As `read_image` and `build` say.
    """
    text = str(image)
    if not text.strip():
        raise ImageNotFoundError(
            "No image given.",
            fix="Use an image file, a 'result' link, or a flake attribute such as ./nix#ecs-node.",
        )
    if names_a_file(image):
        built = read_image(Path(text).expanduser(), system=system or None, boot_mode=boot_mode or None)
        return replace(built, drv_path=deriver(built.store_path)) if built.store_path else built
    return build(text, system=system, flake=flake, progress=progress)


def names_a_file(image: str | Path) -> bool:
    """Return whether `resolve` would read a file or a directory; else it would build an image of a flake."""
    text = str(image)
    if "\0" in text:
        return False
    return isinstance(image, Path) or os.path.lexists(Path(text).expanduser()) or _looks_like_a_path(text)


def split_image(image: str) -> tuple[str | None, str, str | None]:
    """Return flake, name and system that an attribute tells; ``None`` for what it leaves open.

    Examples
    --------
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


def run_build(command: Sequence[str], what: str, step: Step) -> tuple[Answer, Standing]:
    """Run a Nix command that builds, report how far it is, and return what it said and how far it came.

    Parameters
    ----------
    command
        Program and arguments; the options for the log are added.
    what
        The first sentence of the error when it fails.
    step
        Where progress is shown.

    Raises
    ------
    BuildFailedError, NixError
        As for `BuildPlan.build`.
    """
    log, watch = BuildLog(), _Watch(step)

    def on_message(line: str) -> None:
        log.feed(line)
        watch.show(log.standing())

    answer = run([*command, "--log-format", "internal-json", "-v"], on_message=on_message)
    watch.show(log.standing(), now=True)
    if answer.status:
        raise _failure(what, replace(answer, messages=tuple(log.errors or log.messages)), log)
    return answer, log.standing()


class _Watch:
    """Reports a standing when it says something new, and bytes not more often than eyes can follow."""

    def __init__(self, step: Step) -> None:
        self.step, self.last, self.at = step, Standing(), 0.0

    def show(self, standing: Standing, *, now: bool = False) -> None:
        moved = _without_fetching(standing) != _without_fetching(self.last)
        due = standing != self.last and time.monotonic() - self.at >= _REDRAW_SECONDS
        if moved or due or (now and standing != self.last):
            self.last, self.at = standing, time.monotonic()
            self.step.update(standing.built, standing.expected or None, _describe(standing))


def _without_fetching(standing: Standing) -> Standing:
    return replace(standing, fetched=0, fetched_bytes=0, fetch_bytes=0)


def _describe(standing: Standing) -> str:
    parts = []
    if standing.building:
        parts.append(f"{standing.building}: {standing.phase}" if standing.phase else standing.building)
    if standing.fetch_bytes:
        parts.append(
            f"downloaded {human_bytes(standing.fetched_bytes)} of {human_bytes(standing.fetch_bytes)}"
        )
    return ", ".join(parts)


def _failure(what: str, answer: Answer, log: BuildLog) -> NixError:
    derivation = log.failed()
    if not derivation:
        return explain(what, answer)
    lines = log.last_lines(derivation)
    # Without a line, the builder never ran, and the reason is Nix's own.
    why, fix = explanation("\n".join(lines or answer.messages), by_a_builder=bool(lines))
    if lines:
        said = "The last lines of its log:" + "".join(f"\n  {line}" for line in lines)
    else:
        said = f"Nix reported: {' '.join(error_lines(answer.messages))}"
    return BuildFailedError(
        f"{what} The derivation {derivation_name(derivation)} failed.",
        why=f"{why} {said}\n".lstrip(),
        fix=fix or f"To read the whole log: nix log {derivation}",
        derivation=derivation,
        log=lines,
    )


def _looks_like_a_path(text: str) -> bool:
    if "#" in text:
        return False
    return text.startswith(("/", "./", "../", "~/", "result/")) or _FILE_LIKE.fullmatch(text) is not None


def _make_folder(folder: Path) -> None:
    try:
        files.make_folder(folder)
    except OSError as error:
        raise SettingsError(
            f"Could not create the folder {folder}.",
            why=f"{error.strerror}; the link there protects the image from garbage collection.",
            fix="Set VMSNIX_STATE to a writable folder.",
        ) from error
