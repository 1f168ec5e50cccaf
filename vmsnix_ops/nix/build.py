"""Build an image with Nix, and see how far it is.

>>> from vmsnix_ops.nix.build import plan_build
>>> plan = plan_build("ecs-node")     # doctest: +SKIP
>>> built = plan.build()              # doctest: +SKIP

`resolve` is the one entry for every ``image`` parameter: it takes what is built already, and builds what is
not.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.errors import BuildFailedError, ImageNotFoundError, NixError, ParameterError, SettingsError
from vmsnix_ops.nix.build_log import BuildLog, Standing, derivation_name
from vmsnix_ops.nix.command import FEATURES, Answer, error_lines, explain, explanation, find_nix, run
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
from vmsnix_ops.nix.image import BuiltImage, facts_html, read_image
from vmsnix_ops.nix.store import deriver, parse_outputs
from vmsnix_ops.progress import Progress, Step, current, human_bytes
from vmsnix_ops.settings import load
from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REDRAW_SECONDS = 0.1
_FILE_LIKE = re.compile(r"result(-.*)?|.*\.(vhd|img|raw|qcow2|vmdk|vhdx)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BuildPlan:
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

    def facts(self) -> dict[str, str]:
        """Return the plan as an operator reads it; unknown things are left out."""
        origin = self.provenance
        revision = f"{origin.revision or 'none'}{' with uncommitted changes' if origin.dirty else ''}"
        shown = {
            "will build": f"{self.image.name} for {self.image.system}",
            "what it is": self.image.description,
            "disk": human_bytes(self.image.disk_bytes)
            if self.image.disk_bytes
            else "as large as its contents need",
            "flake": self.image.installable,
            "revision": revision if origin.revision or origin.dirty else "",
            "source hash": origin.nar_hash or "",
            "kept by": str(self.keep),
        }
        return {label: value for label, value in shown.items() if value}

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

    def __str__(self) -> str:
        return "\n".join(f"{label + ':':<13} {line(value)}" for label, value in self.facts().items())

    def _repr_html_(self) -> str:
        return facts_html(self.facts())


@typed
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
            f"The image {image} is for {system_given}, and {system} was asked for.",
            cure="Give one system only.",
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
            "No image was given.",
            cure="Give an image file, a 'result' link, or a flake attribute such as ./nix#ecs-node.",
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
            self.step.at(standing.built, standing.expected or None, _describe(standing))


def _without_fetching(standing: Standing) -> Standing:
    return replace(standing, fetched=0, fetched_bytes=0, fetch_bytes=0)


def _describe(standing: Standing) -> str:
    parts = []
    if standing.building:
        parts.append(f"{standing.building}: {standing.phase}" if standing.phase else standing.building)
    if standing.fetch_bytes:
        parts.append(f"fetched {human_bytes(standing.fetched_bytes)} of {human_bytes(standing.fetch_bytes)}")
    return ", ".join(parts)


def _failure(what: str, answer: Answer, log: BuildLog) -> NixError:
    derivation = log.failed()
    if not derivation:
        return explain(what, answer)
    lines = log.last_lines(derivation)
    # Without a line, the builder never ran, and the reason is Nix's own.
    why, cure = explanation("\n".join(lines or answer.messages), by_a_builder=bool(lines))
    if lines:
        said = "The last lines of its log:" + "".join(f"\n  {line}" for line in lines)
    else:
        said = f"Nix says: {' '.join(error_lines(answer.messages))}"
    return BuildFailedError(
        f"{what} The derivation {derivation_name(derivation)} failed.",
        why=f"{why} {said}\n".lstrip(),
        cure=cure or f"Read the whole log: nix log {derivation}",
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
            f"The folder {folder} cannot be made.",
            why=f"{error.strerror}; the link that keeps the image from garbage collection goes there.",
            cure="Set VMSNIX_STATE to a folder that can be written.",
        ) from error
