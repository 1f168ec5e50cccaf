"""Checks of this machine and of the image: readable, its name free, room on the disk, the tools there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, imports
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.publish.registration import registration

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.aws.session import Client
    from vmsnix_ops.nix.image import BuiltImage

GIB = 2**30
LITTLE_SPACE_GIB = 10.0  # a NixOS image and its build need about this much
NO_SPACE_GIB = 0.5
NEED_QEMU_IMG = frozenset({"qcow2", "vhdx", "vmdk"})


def image(
    given: str, *, flake: str, via: str, system: str = "", boot_mode: str = "", root_device: str = ""
) -> tuple[Check, BuiltImage | None]:
    """Check whether the image is readable and of a format that this way takes.

    A flake attribute is evaluated and not built.

    Returns
    -------
    tuple
        The check, and the image where there are bytes of it.
    """
    from vmsnix_ops.disk.formats import open_image
    from vmsnix_ops.nix import build as nix

    if not nix.names_a_file(given):
        nix.plan_build(given, flake=flake, system=system or None)
        return Check("image", "pass", f"{given} would be built"), None
    found = nix.resolve(given, system=system or None, boot_mode=boot_mode or None)
    with open_image(found.path) as disk:
        kind = f"{disk.format} {disk.subformat}".strip()
        if via == "import":
            imports.check_format(found.path.name, disk)
        registration(
            found, name="unknown", disk_bytes=disk.size, root_device=root_device, boot_mode=boot_mode
        )
        size = f"{disk.file_bytes / GIB:.2f} GiB file, {disk.size / GIB:.2f} GiB disk"
    return Check("image", "pass", f"{found.name} {found.version}, {found.system}: {kind}, {size}"), found


def name_free(
    ec2: Client, built: BuiltImage, *, prefix: str, root_device: str = "", boot_mode: str = ""
) -> Check:
    """Check whether the AMI's name is free, or belongs to the same bytes; reads the whole image."""
    from vmsnix_ops.disk.formats import open_image

    with open_image(built.path) as disk:
        digest, size = disk.digest(), disk.size
    name = images.clean_name(f"{prefix}-{built.name}-{built.version}-{built.system}-{digest[:8]}")
    wanted = registration(built, name=name, disk_bytes=size, root_device=root_device, boot_mode=boot_mode)
    existing = images.holder(images.named(ec2, name))
    if existing is None:
        return Check("name", "pass", f"{name} is free")
    images.check_same(existing, digest=digest, facts=wanted.facts())
    evidence = f"{name} is {existing.ami_id}, made of the same bytes"
    if existing.deprecated:
        return Check("name", "warn", f"{evidence}; {images.deprecation(existing)}")
    return Check("name", "pass", evidence)


def disk_space(folder: Path, *, enough_gib: float = LITTLE_SPACE_GIB) -> Check:
    """Check how much room there is where runs are kept.

    Parameters
    ----------
    folder
        It may not exist yet; then its nearest parent counts.
    enough_gib
        What is enough, in GiB.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / GIB
    evidence, cure = (
        f"{free:.1f} GiB free in {there}",
        "Remove what nobody needs (nix-collect-garbage, old runs).",
    )
    if free < min(NO_SPACE_GIB, enough_gib):
        return Check("disk space", "fail", evidence, cure)
    return Check(
        "disk space", "warn" if free < enough_gib else "pass", evidence, "" if free >= enough_gib else cure
    )


def tool(name: str, *, needed: str, for_what: str) -> Check:
    """Check whether a program is on PATH.

    Parameters
    ----------
    name
        The program.
    needed
        Why this very job cannot do without; empty when it can.
    for_what
        What it is for, otherwise.
    """
    path = shutil.which(name)
    if path is not None:
        return Check(name, "pass", path)
    if needed:
        cure = f"Install {name}, or choose what does not need it."
        error = errors.ToolMissingError(f"{name} is not on PATH.", why=needed, cure=cure)
        return Check(name, "fail", f"not on PATH; {needed}", cure, error)
    return Check(
        name, "warn", f"not on PATH; needed only for {for_what}", f"Install {name} when you need it."
    )
