"""The images of a flake, and the flake's revision.

An image is a package of the flake that nixpkgs' ``system.build.images`` made. It has its NixOS configuration
as ``passthru.config``. The modules of vmsnix add name, description and disk size (``vmsnix.image``); other
images have only the disk size and ``meta.description``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import ParameterError, UnknownImageError, nearest
from vmsnix_ops.nix.command import environment, read_json, unexpected_answer
from vmsnix_ops.nix.image import SYSTEMS
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MEBIBYTE = 2**20

# Allowed names. Such a name cannot be an option, and cannot leave its attribute path. No shell is used.
NO_LOCK = "--no-write-lock-file"  # an argument of every command on a flake
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_+-]*")
_REFERENCE = re.compile(r"[A-Za-z0-9.~_/][A-Za-z0-9+.:/@~_%?=&,-]*")

# Two functions for `nix eval --apply`. Nix is lazy, so only the values of the answer are evaluated. `or` also
# handles missing parent attributes.
_FACTS = """
  facts = image: let
    config = image.passthru.config or { };
    declared = config.vmsnix.image or { };
    keys = config.vmsnix.admin.keys or [ ];
  in {
    description = declared.description or image.meta.description or "";
    disk = declared.diskSize or config.virtualisation.diskSize or null;
    inherit keys;
  };
"""
_ALL_IMAGES = """
packages: let
  %s
  wanted = %s;
  # A package that throws (broken, unfree) must not hide the others.
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
    """A flake."""

    reference: str  # flake reference, such as "path:/src/vmsnix/nix" or "github:altf4llc/vmsnix"
    folder: Path | None = None  # folder of a flake on this machine


@dataclass(frozen=True, slots=True)
class FlakeImage:
    """An image that a flake can build."""

    name: str  # name, such as "ecs-node"
    system: str  # "x86_64-linux" or "aarch64-linux"
    disk_bytes: int | None  # size of its disk in bytes; None if only the build determines it ("auto")
    description: str
    installable: str  # argument for `nix build`, such as "path:/src/nix#packages.x86_64-linux.ecs-node"
    keys: tuple[str, ...] = ()  # SSH public keys of the administrator (vmsnix.admin.keys)


@dataclass(frozen=True, slots=True)
class Provenance:
    """The source of a flake."""

    url: str  # URL that Nix resolved, without the lock
    # Git revision, 40 hexadecimal digits; for a folder that of its repository. None without git.
    revision: str | None
    # SRI hash of the source tree with uncommitted changes; None if Nix does not report it (lazy trees).
    nar_hash: str | None
    dirty: bool  # whether there are uncommitted changes


def host_system() -> str:
    """Return the system for which this machine can build images, such as ``"x86_64-linux"``."""
    return "aarch64-linux" if platform.machine() in ("aarch64", "arm64") else "x86_64-linux"


def check_system(system: str) -> str:
    """Return `system`; refuse an unknown one with a `ParameterError`."""
    if system not in SYSTEMS:
        raise ParameterError(
            f"No images for the system {system!r}.",
            why=nearest(system, SYSTEMS),
            fix=f"Use {' or '.join(SYSTEMS)}.",
        )
    return system


def find_flake(flake: str | Path | None = None, *, start: Path | None = None) -> Flake:
    """Return the flake in a folder or of a reference; by default that of the setting ``flake``.

    A folder becomes a ``path:`` reference, so that Nix copies only this folder, with untracked files. For the
    root of a git repository Nix's git fetcher is used, which omits ignored files. A relative folder is also
    searched in the parents of the working directory (or of `start`), because JupyterLab starts notebooks in
    their own folder.
    """
    given = str(load().flake if flake is None else flake)
    folder = _folder(given, Path.cwd() if start is None else start)
    if folder is None:
        _check_reference(given)
        return Flake(given)
    _check_reference(str(folder), why="Nix does not support these characters in the path of a folder.")
    kind = "git+file://" if (folder / ".git").exists() else "path:"
    return Flake(f"{kind}{folder}", folder)


def list_images(flake: str | Path | Flake | None = None, *, system: str | None = None) -> list[FlakeImage]:
    """Return the images of a flake, for one system or all, with one ``nix eval``. Nothing is built."""
    source = flake if isinstance(flake, Flake) else find_flake(flake)
    wanted = "null" if system is None else f'"{check_system(system)}"'
    what = f"Could not list the images of the flake {source.reference}."
    answer = _evaluate(source, _ALL_IMAGES % (_FACTS, wanted), what)
    return [
        _flake_image(source, name, each, facts)
        for each in SYSTEMS
        for name, facts in _mapping(source, answer.get(each, {})).items()
    ]


def find_image(source: Flake, name: str, system: str) -> FlakeImage:
    """Return one image of a flake, with one ``nix eval``; an UnknownImageError if it has no such package.

    Any package is accepted; after the build, `read_image` refuses one that is not an image.
    """
    check_name(name)
    what = f"Could not evaluate the image {name} of the flake {source.reference}."
    answer = _evaluate(source, _ONE_IMAGE % (_FACTS, check_system(system), name), what)
    known, facts = answer.get("names"), answer.get("facts")
    if not isinstance(known, dict):
        raise unexpected_answer(source.reference, answer)
    if not isinstance(facts, dict):
        elsewhere = [other for other, names in known.items() if name in names and other != system]
        names = [each for each in known.get(system, []) if each != "default" and not each.endswith("-facts")]
        raise UnknownImageError(
            f"The flake {source.reference} has no image {name!r} for {system}.",
            why=f"It has this image for {' and '.join(elsewhere)}." if elsewhere else nearest(name, names),
            fix=f"Its images for {system} are {', '.join(names)}."
            if names
            else "It has no images for that system.",
        )
    return _flake_image(source, name, system, facts)


def check_name(name: str) -> str:
    """Return `name`; refuse one that cannot be the name of an image with an `UnknownImageError`."""
    if not _NAME.fullmatch(name):
        raise UnknownImageError(
            f"Invalid image name {name!r}.",
            why="A name starts with a letter and contains only letters, digits, '-', '_' and '+'.",
            fix="Use a name such as ecs-node.",
        )
    return name


def read_provenance(source: Flake) -> Provenance:
    """Return the current revision and hash of a flake."""
    arguments = ["flake", "metadata", source.reference, NO_LOCK]
    answer = _mapping(source, read_json(arguments, f"Could not read the flake {source.reference}."))
    locked = answer.get("locked")
    locked = locked if isinstance(locked, dict) else {}
    url = str(answer.get("resolvedUrl") or answer.get("originalUrl") or source.reference)
    nar_hash = locked.get("narHash")
    revision = answer.get("revision") or locked.get("rev")
    # A dirty git tree has no revision; newer versions have "<revision>-dirty" in another field.
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
    arguments = ["eval", f"{source.reference}#packages", "--apply", function, NO_LOCK]
    return _mapping(source, read_json(arguments, what))


def _mapping(source: Flake, answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise unexpected_answer(source.reference, answer)
    return answer


def _flake_image(source: Flake, name: str, system: str, facts: object) -> FlakeImage:
    facts = _mapping(source, facts)
    size, keys = facts.get("disk"), facts.get("keys")
    return FlakeImage(
        name=name,
        system=system,
        disk_bytes=size * _MEBIBYTE if isinstance(size, int) else None,
        description=str(facts.get("description", "")),
        installable=f"{source.reference}#packages.{system}.{name}",
        keys=tuple(map(str, keys)) if isinstance(keys, list) else (),
    )


def _folder(given: str, start: Path) -> Path | None:
    """Return the folder of a flake on this machine, or ``None`` for another reference."""
    text = given.removeprefix("path:")
    path = Path(text).expanduser()
    places: Sequence[Path] = [start] if path.is_absolute() else [start, *start.parents]
    if "?" not in text and "\0" not in text:
        for place in places:
            if os.path.isfile(place / path / "flake.nix"):  # noqa: PTH113 - Path.is_file raises in forbidden parents
                return (place / path).resolve()
    if (
        not given
        or given.startswith(("/", ".", "~", "path:"))
        or ("\0" not in given and (start / given).is_dir())
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
    """Return the revision of a folder's repository, and whether the folder has uncommitted changes."""
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
