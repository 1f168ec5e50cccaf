"""Which images a flake has, and where it comes from.

An image is a package of the flake that was made by nixpkgs' ``system.build.images``: it carries the
configuration that it was built from as ``passthru.config``. Our own modules put name, description and disk
size there (``vmsnix.image``); of other people's images the disk size is known, and ``meta.description``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import NixError, ParameterError, UnknownImageError, nearest
from vmsnix_ops.nix.command import ask, environment
from vmsnix_ops.nix.image import SYSTEMS
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MEBIBYTE = 2**20

# What a name may look like. Nix gets argument lists, so no shell could be reached; a name of this shape also
# cannot be an option, and cannot leave the attribute path that it stands in.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_+-]*")
_REFERENCE = re.compile(r"[A-Za-z0-9.~_/][A-Za-z0-9+.:/@~_%?=&,-]*")

# Two functions for `nix eval --apply`; Nix is lazy, so only what the answer holds is evaluated. `or` also
# covers attributes that are missing on the way.
_FACTS = """
  facts = image: let
    config = image.passthru.config or { };
    declared = config.vmsnix.image or { };
  in {
    description = declared.description or image.meta.description or "";
    disk = declared.diskSize or config.virtualisation.diskSize or null;
  };
"""
_ALL_IMAGES = """
packages: let
  %s
  wanted = %s;
  # Packages that throw (broken, unfree) are no reason not to list the others.
  isImage = image: (builtins.tryEval
    (image ? passthru.config.vmsnix.image || image ? passthru.config.system.build.image)).value;
  images = all: builtins.listToAttrs (builtins.concatMap
    (name: if isImage all.${name} then [ { inherit name; value = facts all.${name}; } ] else [ ])
    (builtins.attrNames all));
in
builtins.mapAttrs (system: images)
  (if wanted == null then packages else builtins.intersectAttrs { ${wanted} = null; } packages)
"""
_ONE_IMAGE = """
packages: let
  %s
  found = packages.%s.%s or null;
in
{
  names = builtins.mapAttrs (system: builtins.attrNames) packages;
  facts = if found == null then null else facts found;
}
"""


@dataclass(frozen=True, slots=True)
class Flake:
    """A flake as Nix is given it.

    Attributes
    ----------
    reference
        What Nix gets, such as ``"path:/src/vmsnix/nix"`` or ``"github:altf4llc/vmsnix"``.
    folder
        The folder that it stands in, for a flake on this machine.
    overrides
        Other sources for its inputs, name to flake reference.
    """

    reference: str
    folder: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()

    def options(self) -> list[str]:
        """Return the arguments that every command on this flake gets; the lock file is never written."""
        swapped = [word for name, source in self.overrides for word in ("--override-input", name, source)]
        return ["--no-write-lock-file", *swapped]


@dataclass(frozen=True, slots=True)
class FlakeImage:
    """An image that a flake can build.

    Attributes
    ----------
    name
        Such as ``"ecs-node"``.
    system
        ``"x86_64-linux"`` or ``"aarch64-linux"``.
    disk_bytes
        Size of its disk in bytes; ``None`` when it is only known after the build (``"auto"``).
    description
        One sentence; empty when the flake gives none.
    installable
        What ``nix build`` takes: ``"path:/src/nix#packages.x86_64-linux.ecs-node"``.
    """

    name: str
    system: str
    disk_bytes: int | None
    description: str
    installable: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which source a flake is.

    Attributes
    ----------
    url
        The flake as Nix resolved it, without the lock.
    revision
        Git revision, 40 hexadecimal digits; that of the surrounding repository for a plain folder. ``None``
        without git.
    nar_hash
        SRI hash of the source tree as it is now, changes included; ``None`` when Nix does not tell (lazy
        trees).
    dirty
        Whether there are changes that are in no revision.
    """

    url: str
    revision: str | None
    nar_hash: str | None
    dirty: bool


def host_system() -> str:
    """Return the system of images that this machine builds without help, such as ``"x86_64-linux"``."""
    return "aarch64-linux" if platform.machine() in ("aarch64", "arm64") else "x86_64-linux"


def check_system(system: str) -> str:
    """Return `system` when there are images for it.

    Raises
    ------
    ParameterError
        When there are none.
    """
    if system not in SYSTEMS:
        raise ParameterError(
            f"No images for the system {system!r}.",
            why=nearest(system, SYSTEMS),
            fix=f"Give {' or '.join(SYSTEMS)}.",
        )
    return system


def find_flake(flake: str | Path | None = None, overrides: Mapping[str, str] | None = None) -> Flake:
    """Return the flake that a person means.

    A folder is given to Nix as ``path:``, so that only this folder is copied into the store and files that
    git does not know yet are seen; but the top of a git repository is left to Nix's git fetcher, which keeps
    ignored files out.

    Parameters
    ----------
    flake
        A folder or a flake reference; the setting ``flake`` by default. A relative folder is also looked for
        in the parents of the working directory, because JupyterLab starts notebooks in their own folder.
    overrides
        Other sources for inputs, as with ``nix build --override-input``.

    Raises
    ------
    ParameterError
        It cannot be a flake reference.
    """
    given = str(load().flake if flake is None else flake)
    overrides = overrides or {}
    for name, source in overrides.items():
        _check_reference(source)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_/-]*", name):
            raise ParameterError(
                f"{name!r} is not a valid flake input name.", fix="Check the inputs of the flake."
            )
    swapped = tuple(sorted(overrides.items()))
    folder = _folder(given)
    if folder is None:
        _check_reference(given)
        return Flake(given, None, swapped)
    _check_reference(str(folder), why="Nix does not support these characters in the path of a folder.")
    kind = "git+file://" if (folder / ".git").exists() else "path:"
    return Flake(f"{kind}{folder}", folder, swapped)


def images(
    flake: str | Path | Flake | None = None,
    *,
    system: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> list[FlakeImage]:
    """Return the images of a flake, from one ``nix eval``; nothing is built.

    Parameters
    ----------
    flake
        As for `find_flake`.
    system
        Only those for this system; all by default.
    overrides
        As for `find_flake`.

    Raises
    ------
    ParameterError
        The flake or the system cannot be what was given.
    ToolMissingError
        There is no nix.
    NixError
        The flake cannot be evaluated.
    """
    source = flake if isinstance(flake, Flake) else find_flake(flake, overrides)
    wanted = "null" if system is None else f'"{check_system(system)}"'
    what = f"Could not list the images of the flake {source.reference}."
    answer = _evaluate(source, _ALL_IMAGES % (_FACTS, wanted), what)
    return [
        _flake_image(source, name, each, facts)
        for each in SYSTEMS
        for name, facts in _mapping(source, answer.get(each, {})).items()
    ]


def find_image(source: Flake, name: str, system: str) -> FlakeImage:
    """Return one image of a flake, from one ``nix eval``.

    Any package is found, also one that does not say that it is an image: what it is shows when it is built.

    Raises
    ------
    UnknownImageError
        The flake has no such image for that system, or the name cannot be one (then nix is not even started).
    NixError
        The flake cannot be evaluated.
    """
    check_name(name)
    what = f"Could not evaluate the image {name} of the flake {source.reference}."
    answer = _evaluate(source, _ONE_IMAGE % (_FACTS, check_system(system), name), what)
    known, facts = answer.get("names"), answer.get("facts")
    if not isinstance(known, dict):
        raise _strange(source, answer)
    if not isinstance(facts, dict):
        elsewhere = [other for other, names in known.items() if name in names and other != system]
        names = [each for each in known.get(system, []) if each != "default"]
        raise UnknownImageError(
            f"The flake {source.reference} has no image {name!r} for {system}.",
            why=f"It has this image for {' and '.join(elsewhere)}." if elsewhere else nearest(name, names),
            fix=f"Its images for {system} are {', '.join(names)}."
            if names
            else "It has no images for that system.",
        )
    return _flake_image(source, name, system, facts)


def attribute(name: str, system: str) -> str:
    """Return the attribute path of an image in a flake."""
    return f"packages.{system}.{name}"


def check_name(name: str) -> str:
    """Return `name` when it can be the name of an image.

    Raises
    ------
    UnknownImageError
        It looks like an option, a path, or a piece of shell.
    """
    if not _NAME.fullmatch(name):
        raise UnknownImageError(
            f"Invalid image name {name!r}.",
            why="A name starts with a letter and contains only letters, digits, '-', '_' and '+'.",
            fix="Use a name such as ecs-node.",
        )
    return name


def provenance(source: Flake) -> Provenance:
    """Return which source a flake is now.

    Raises
    ------
    NixError
        The flake cannot be read.
    """
    answer = ask(
        ["flake", "metadata", source.reference, *source.options()],
        f"Could not read the flake {source.reference}.",
    )
    if not isinstance(answer, dict):
        raise _strange(source, answer)
    locked = answer.get("locked")
    locked = locked if isinstance(locked, dict) else {}
    url = str(answer.get("resolvedUrl") or answer.get("originalUrl") or source.reference)
    nar_hash = locked.get("narHash")
    revision = answer.get("revision") or locked.get("rev")
    # A dirty git tree has no revision; newer versions tell "<revision>-dirty" beside it.
    changed = answer.get("dirtyRevision") or locked.get("dirtyRev")
    dirty = revision is None and locked.get("type") == "git"
    if revision is None and changed:
        revision = str(changed).removesuffix("-dirty")
    if revision is None and source.folder is not None:
        revision, dirty = _git_state(source.folder)
    return Provenance(
        url=url,
        revision=str(revision) if revision else None,
        nar_hash=str(nar_hash) if nar_hash else None,
        dirty=dirty,
    )


def _evaluate(source: Flake, function: str, what: str) -> Mapping[str, object]:
    answer = ask(
        ["eval", f"{source.reference}#packages", "--apply", function, *source.options()],
        what,
    )
    return _mapping(source, answer)


def _mapping(source: Flake, answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise _strange(source, answer)
    return answer


def _flake_image(source: Flake, name: str, system: str, facts: object) -> FlakeImage:
    facts = _mapping(source, facts)
    size = facts.get("disk")
    return FlakeImage(
        name=name,
        system=system,
        disk_bytes=size * _MEBIBYTE if isinstance(size, int) else None,
        description=str(facts.get("description", "")),
        installable=f"{source.reference}#{attribute(name, system)}",
    )


def _strange(source: Flake, answer: object) -> NixError:
    return NixError(
        f"Nix returned an unexpected answer about {source.reference}.",
        why=f"It starts with {str(answer)[:80]!r}.",
        fix="Check that Nix is between 2.8 and 2.34: nix --version",
    )


def _folder(given: str) -> Path | None:
    """Return the folder of a flake on this machine, or ``None`` for a reference of another kind."""
    text = given.removeprefix("path:")
    path = Path(text).expanduser()
    places: Sequence[Path] = [Path.cwd()] if path.is_absolute() else [Path.cwd(), *Path.cwd().parents]
    if "?" not in text and "\0" not in text:
        for place in places:
            if os.path.isfile(place / path / "flake.nix"):  # noqa: PTH113 - Path.is_file raises in forbidden parents
                return (place / path).resolve()
    if (
        not given
        or given.startswith(("/", ".", "~", "path:"))
        or ("\0" not in given and Path(given).is_dir())
    ):
        raise ParameterError(
            f"No flake in {given!r}.",
            why="That folder does not exist or has no flake.nix.",
            fix="Use the folder that contains flake.nix, or a reference such as github:owner/repository.",
        )
    return None


def _check_reference(
    text: str, *, why: str = "It contains characters that a flake reference cannot have."
) -> None:
    if not _REFERENCE.fullmatch(text):
        raise ParameterError(
            f"{text!r} is not a valid flake reference.",
            why=why,
            fix="Use a folder such as ./nix, or github:owner/repository.",
        )


def _git_state(folder: Path) -> tuple[str | None, bool]:
    """Return revision and dirtiness of the repository around a folder; having none is not an error."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None, False
    changes = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", ".")
    return head, changes != ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            env=environment() | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
