"""Read a built disk image: a ``result`` link, a Nix output directory, or an image file.

Nix's image builders describe their output in ``nix-support/image-info.json``. The path of the image comes
from its field ``file``, not from a search for ``*.vhd``. The format comes from the image's bytes.

Source of the fields: nixpkgs, ``nixos/maintainers/scripts/ec2/amazon-image.nix``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.disk.firmware import read_firmware
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.display import Displayed
from vmsnix_ops.errors import ImageFormatError, ImageNotFoundError
from vmsnix_ops.progress import human_bytes
from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmsnix_ops.disk.firmware import Firmware

DESCRIPTION = Path("nix-support") / "image-info.json"
PRODUCTS = Path("nix-support") / "hydra-build-products"
REPART = "repart-output.json"
SYSTEMS = ("x86_64-linux", "aarch64-linux")
BOOT_MODES = ("legacy-bios", "uefi", "uefi-preferred")
UNKNOWN_VERSION = "unknown"

# Suffixes of disk images in an output. Compressed ones are found, and then refused by their bytes.
_IMAGES = (
    ".img",
    ".qcow2",
    ".raw",
    ".vhd",
    ".vhdx",
    ".vmdk",
    *(f"{kind}{packed}" for kind in (".img", ".raw", ".vhd") for packed in (".zst", ".xz", ".gz", ".bz2")),
)
_NO_IMAGES = frozenset({"doc", "json", "log", "manifest", "sbom", "iso", "report", "text", "txt"})

# A line of Hydra's list of products: type, subtype, path, and optionally the file to open first.
_PRODUCT = re.compile(r"""file\s+(?P<kind>\S+)\s+(?:"(?P<quoted>[^"]+)"|(?P<plain>[^\s"]+))(?:\s+[^\s"]+)?""")

# A VHD's size is rounded up to whole cylinders, of at most 16 heads and 255 sectors of 512 bytes.
_CYLINDER_BYTES = 16 * 255 * 512

# Path of a store object: 32 characters of Nix's base 32 (no e, o, u, t), a dash, a name.
_STORE_OBJECT = re.compile(
    r"(?P<object>/.*?/[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]+)(?:/(?P<inside>.*))?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class BuiltImage(Displayed):
    """A disk image on this machine, with its source, if known."""

    path: Path  # path of the image file, without symbolic links
    name: str  # name of the image, such as "ecs-node"
    version: str  # NixOS label of the image, such as "26.11.20260717.fc4cbc5"; or "unknown"
    system: str  # "x86_64-linux" or "aarch64-linux"
    boot_mode: str  # "legacy-bios", "uefi" or "uefi-preferred", as in `ec2 register-image`
    format: str  # "vhd", "raw", "qcow2", ..., from the bytes
    logical_bytes: int  # size of the virtual disk in bytes
    store_path: str | None = None  # Nix store object of the image; None outside a store
    derivation: str | None = None  # store path of its derivation, if known
    # Argument for `nix build`, such as "path:/src/nix#packages.x86_64-linux.ecs-node".
    flake: str | None = None
    # Git revision of the flake, 40 hexadecimal digits, if any. With `dirty`, the revision before the
    # uncommitted changes.
    revision: str | None = None
    nar_hash: str | None = None  # SRI hash of the flake's source tree, with uncommitted changes
    dirty: bool = False  # whether the flake had uncommitted changes
    # Options for the registration (`registerImage` in its description); may be empty.
    register_image: Mapping[str, object] = field(default_factory=dict)
    # SSH public keys of the administrator in the image, one line each. Known only for vmsnix's modules.
    keys: tuple[str, ...] = ()
    # What its description says about attestation; empty for other images.
    attested: Mapping[str, object] = field(default_factory=dict)
    # Number of built derivations and fetched store paths; None without a build.
    items: int | None = field(default=None, compare=False)  # of the build, not of the image

    def facts(self) -> list[tuple[str, str]]:
        """Return the known values."""
        values = {
            "image": self.name,
            "version": self.version,
            "system": self.system,
            "format": self.format,
            "boot mode": self.boot_mode,
            "disk": human_bytes(self.logical_bytes),
            "file": str(self.path),
            "derivation": self.derivation or "",
            "flake": self.flake or "",
            "revision": f"{self.revision or 'none'}{' with uncommitted changes' if self.dirty else ''}",
            "source hash": self.nar_hash or "",
            "may log in": describe_keys(self.keys),
        }
        if self.revision is None and not self.dirty:
            del values["revision"]
        return [(label, value) for label, value in values.items() if value]

    def result(self) -> dict[str, object]:
        """Return the attributes for JSON; `name` becomes ``image``, `version` becomes ``image_version``."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            "image": values.pop("name"),
            "image_version": values.pop("version"),
            **values,
            "path": str(self.path),
        }


def read_image(
    path: Path | str, *, name: str | None = None, system: str | None = None, boot_mode: str | None = None
) -> BuiltImage:
    """Read a built image: a ``result`` link, a Nix output directory, or an image file.

    By default the name is the file name without the version and the system that Nix appends, and the boot
    mode is that of the description or the disk. `system` is for an image that has neither a description nor a
    boot loader with its system; another system than that of the image is refused.
    """
    given = Path(path).expanduser()
    try:
        if not given.exists():
            raise _not_found(given)
        found = given.resolve()
        if found.is_dir():
            return _read_output(given, found, name, system, boot_mode)
        return _read_file(found, name, system, boot_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links before Python 3.13
        raise ImageNotFoundError(
            f"Could not read the image {given}.",
            why=f"The system reported: {error}.",
            fix="Check the permissions of the file and of its parent folders.",
        ) from error


def store_object(path: Path) -> str | None:
    """Return the Nix store object of a path, or ``None`` outside a store.

    >>> store_object(Path("/nix/store/00000000000000000000000000000000-image/image.vhd"))
    '/nix/store/00000000000000000000000000000000-image'
    >>> store_object(Path("/home/image.vhd")) is None
    True
    """
    match = _STORE_OBJECT.fullmatch(str(path))
    return match["object"] if match else None


def _not_found(given: Path) -> ImageNotFoundError:
    if given.is_symlink():
        return ImageNotFoundError(
            f"The image {given} no longer exists.",
            why=f"It links to {given.readlink()}, which does not exist; garbage collection may have deleted "
            "it.",
            fix="Build the image again.",
        )
    return ImageNotFoundError(
        f"No image at {given}.",
        fix="Use a 'result' link, a directory, an image file, or an attribute such as ./nix#ecs-node.",
    )


def _read_file(found: Path, name: str | None, system: str | None, boot_mode: str | None) -> BuiltImage:
    disk_format, size, firmware = _read_disk(found)
    system, boot_mode = _detect(found, firmware, system, boot_mode)
    return BuiltImage(
        path=found,
        name=name or found.stem,
        version=UNKNOWN_VERSION,
        system=system,
        boot_mode=boot_mode,
        format=disk_format,
        logical_bytes=size,
        store_path=store_object(found),
    )


def _detect(found: Path, firmware: Firmware, system: str | None, boot_mode: str | None) -> tuple[str, str]:
    """Return system and boot mode of an image without a description; refuse it if they are unknown.

    Given values count, unless the disk has UEFI boot loaders only for other systems.
    """
    for key, value, known in (("system", system, SYSTEMS), ("boot_mode", boot_mode, BOOT_MODES)):
        if value:
            _check_choice(found, key, value, known)
    if system and firmware.uefi and system not in firmware.systems:
        raise ImageFormatError(
            f"The image {found} is for {' and '.join(sorted(firmware.systems))}, not for {system}.",
            why=f"The disk has {firmware}.",
            fix=f"Pass --system {min(firmware.systems)}, or use the image for {system}.",
            field="system",
        )
    systems = firmware.systems
    if boot_mode == "legacy-bios":  # only x86 has it
        systems = systems & {SYSTEMS[0]} if systems else frozenset({SYSTEMS[0]})
    system = system or (next(iter(systems)) if len(systems) == 1 else None)
    if not system:
        raise ImageFormatError(
            f"The system of the image {found} is unknown.",
            why=f"It has no description (image-info.json), and the disk has {firmware}.",
            fix=f"Pass {' or '.join(f'--system {one}' for one in SYSTEMS if one in (systems or SYSTEMS))}.",
            field="system",
        )
    # aarch64 boots only with UEFI.
    mode = boot_mode or firmware.boot_mode(system) or ("uefi" if system != SYSTEMS[0] else "")
    if not mode:
        raise ImageFormatError(
            f"The boot mode of the image {found} is unknown.",
            why=f"It has no description (image-info.json), and the disk has {firmware}.",
            fix=f"Pass --boot-mode {', '.join(BOOT_MODES)}.",
            field="boot_mode",
        )
    return system, mode


def _read_output(
    given: Path, folder: Path, name: str | None, system: str | None, boot_mode: str | None
) -> BuiltImage:
    description = folder / DESCRIPTION
    if not description.is_file():
        image = _find_image(given, folder)
        built = _read_file(image, name, system, boot_mode)
        return replace(built, store_path=store_object(folder))
    info = _description(description)
    label = _text(description, info, "label", default=UNKNOWN_VERSION)
    disk = _disk_entry(description, info)
    image = _image_path(description, folder, _text(description, disk, "file"))
    disk_format, size, firmware = _read_disk(image)
    _check_size(description, disk, size)
    if "system" in info and "boot_mode" in info:
        built_for, boots = _text(description, info, "system"), _text(description, info, "boot_mode")
    else:
        # The disk may have what the description lacks.
        built_for, boots = _detect(
            image,
            firmware,
            _text(description, info, "system", default=system) if "system" in info or system else None,
            _text(description, info, "boot_mode") if "boot_mode" in info else boot_mode,
        )
    _check_choice(description, "system", built_for, SYSTEMS)
    _check_choice(description, "boot_mode", boots, BOOT_MODES)
    if system is not None and system != built_for:
        raise ImageFormatError(
            f"The image {given} is for {built_for}, not for {system}.",
            why=f"{DESCRIPTION} has that system.",
            fix=f"Use --system {built_for}, or build the image for {system}.",
            field="system",
        )
    register_image, attested = (_object(description, info, key) for key in ("registerImage", "attested"))
    stated_name, keys = _of_vmsnix(info, "name"), _of_vmsnix(info, "admin", "keys")
    if not name and isinstance(stated_name, str):
        name = stated_name
    return BuiltImage(
        path=image,
        name=name or _name_in(image.stem, label, built_for),
        version=label,
        system=built_for,
        boot_mode=boots,
        format=disk_format,
        logical_bytes=size,
        store_path=store_object(folder),
        register_image=register_image,
        keys=tuple(map(str, keys)) if isinstance(keys, list) else (),
        attested=attested,
    )


def _find_image(given: Path, folder: Path) -> Path:
    """Return the only disk image of an output without image-info.json.

    It is in Hydra's list of products, which sd-image and most image builders of nixpkgs write, or it is the
    only image of a store object or of a folder from systemd-repart. Other folders are not searched.
    """
    products = folder / PRODUCTS
    named: list[Path] = []
    if products.is_file():
        for line in products.read_text(encoding="utf-8", errors="replace").splitlines():
            product = _PRODUCT.fullmatch(line.strip())
            if product and product["kind"] not in _NO_IMAGES:
                named.append(_image_path(products, folder, product["quoted"] or product["plain"] or ""))
    images = list(dict.fromkeys(named))
    if not images:
        places = [folder] if (folder / REPART).is_file() or store_object(folder) else []
        places += [folder / "sd-image"] if (folder / "sd-image").is_dir() else []
        images = sorted(
            child.resolve()
            for place in places
            for child in place.iterdir()
            if child.is_file() and child.name.lower().endswith(_IMAGES)
        )
        images = list(dict.fromkeys(images))
    if len(images) == 1:
        return images[0]
    if images:
        listed = ", ".join(image.name for image in images[:5])
        raise ImageNotFoundError(
            f"The directory {given} has {len(images)} images: {listed}.",
            why=f"It has no {DESCRIPTION} to select one of them.",
            fix=f"Use the image file itself, such as {images[0]}.",
        )
    candidates = sorted(child.name for child in folder.iterdir() if child.is_file())[:3]
    raise ImageNotFoundError(
        f"The directory {given} is not a built image.",
        why=f"It has no {DESCRIPTION}, no {PRODUCTS} with an image, and no {REPART}.",
        fix=f"Use the image file itself, such as {given / candidates[0]}."
        if candidates
        else "Use the directory that 'nix build' created for an image, or an image file.",
    )


def _read_disk(image: Path) -> tuple[str, int, Firmware]:
    if not image.is_file():
        # A pipe would block forever, and a device is not an image.
        raise ImageFormatError(f"{image} is not a regular file.", fix="Use an image file.")
    with open_image(image) as disk:
        return disk.format, disk.size, read_firmware(disk)


def _description(description: Path) -> dict[str, object]:
    try:
        info = json.loads(description.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise ImageFormatError(
            f"{description} is not JSON.", why=f"{error}.", fix="Build the image again."
        ) from error
    if not isinstance(info, dict):
        raise _wrong_field(description, "(top level)", info, "an object")
    return info


def _disk_entry(description: Path, info: Mapping[str, object]) -> Mapping[str, object]:
    """Return the object with ``file`` and ``logical_bytes``: the top level, or the only one of ``disks``."""
    if "file" in info:
        return info
    disks = info.get("disks")
    if not isinstance(disks, dict) or not disks:
        raise _wrong_field(description, "file", None, "the path of the image")
    if len(disks) > 1:
        # The ZFS variant of nixpkgs has a boot disk and a disk for the root file system.
        raise ImageFormatError(
            f"The image of {description} has {len(disks)} disks: {', '.join(map(repr, sorted(disks)))}.",
            why="An AMI is registered from one disk, so this image would not boot.",
            fix="Build a variant with one disk (not the ZFS one), or use one of the image files.",
            field="disks",
        )
    (disk,) = disks.values()
    if not isinstance(disk, dict):
        raise _wrong_field(description, "disks", disk, "an object with 'file'")
    return disk


def _image_path(description: Path, folder: Path, file: str) -> Path:
    """Return the path in the field ``file``, which must be in the output.

    nixpkgs writes an absolute store path. In a copy of the output, or in a store below another root, the path
    in the folder is the same.
    """
    stated = Path(file)
    if stated.is_absolute() and not stated.is_relative_to(folder):
        match = _STORE_OBJECT.fullmatch(file)
        if match is None or not match["inside"]:
            raise _outside(description, file)
        stated = Path(match["inside"])
    try:
        image = (folder / stated).resolve()
        missing = not image.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, too long, a NUL
        raise _wrong_field(description, "file", file, "the path of the image") from error
    # A link to another object of the same store is allowed: symlinkJoin and runCommand share large files in
    # this way.
    same_store = (
        store_object(folder) is not None and folder.parent == Path(store_object(image) or "/-").parent
    )
    if not image.is_relative_to(folder) and not (same_store and ".." not in stated.parts):
        raise _outside(description, file)
    if missing:
        raise ImageNotFoundError(
            f"The image {image} does not exist.",
            why=f"{description} has it as 'file'; the output may have been copied incompletely.",
            fix="Build the image again, or copy the whole output.",
        )
    if image.is_dir():
        raise _wrong_field(description, "file", file, "the path of the image, not of a directory")
    return image


def _outside(description: Path, file: str) -> ImageFormatError:
    return ImageFormatError(
        f"The image in {description} is outside of its directory: {file!r}.",
        why="A description may only reference files in its own directory.",
        fix="To use this image, pass the file itself.",
        field="file",
    )


def _check_size(description: Path, disk: Mapping[str, object], size: int) -> None:
    """Refuse the description of another image. ``logical_bytes`` is a JSON string in nixpkgs."""
    stated = disk.get("logical_bytes")
    if stated is None:
        return
    if isinstance(stated, bool) or not re.fullmatch(r"[0-9]{1,19}", str(stated)):
        raise _wrong_field(description, "logical_bytes", stated, "a number of bytes")
    if abs(int(str(stated)) - size) > _CYLINDER_BYTES:
        raise ImageFormatError(
            f"The disk has {size} bytes, but {description} states {stated}.",
            why="The description belongs to another image, or the image is incomplete.",
            fix="Build the image again.",
            field="logical_bytes",
        )


def _of_vmsnix(info: object, *keys: str) -> object:
    """Return a value that the modules of vmsnix write (``nix/modules/profiles``), or ``None``."""
    for key in ("vmsnix", *keys):
        info = info.get(key) if isinstance(info, dict) else None
    return info


def describe_keys(keys: Iterable[str]) -> str:
    """Return fingerprint, owner and type of SSH public keys as ``ssh-keygen -l`` prints them, one a line.

    >>> key = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    >>> describe_keys([f"ssh-ed25519 {key} bob"])
    'SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA bob (ssh-ed25519)'
    """
    described = []
    for key in keys:
        kind, body, owner = [*key.split(" ", 2), "", ""][:3]
        try:
            digest = base64.b64encode(hashlib.sha256(base64.b64decode(body, validate=True)).digest()).decode()
        except ValueError:
            body = ""
        described.append(f"SHA256:{digest.rstrip('=')} {owner or 'no owner'} ({kind})" if body else line(key))
    return "\n".join(described)


def _name_in(stem: str, label: str, system: str) -> str:
    """Return the name in a file name such as ``NAME-26.11.20260717.fc4cbc5-x86_64-linux``."""
    for suffix in (f"-{system}", f"-{label}"):
        stem = stem.removesuffix(suffix) or stem
    return stem


def _text(description: Path, info: Mapping[str, object], key: str, *, default: str | None = None) -> str:
    value = info.get(key, default)
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong_field(description, key, value, "a text")
    return value


def _object(description: Path, info: Mapping[str, object], key: str) -> dict[str, object]:
    value = info.get(key, {})
    if not isinstance(value, dict):
        raise _wrong_field(description, key, value, "an object")
    return value


def _check_choice(source: Path, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _wrong_field(source, key, value, f"one of {', '.join(known)}")


def _wrong_field(source: Path, key: str, value: object, wanted: str) -> ImageFormatError:
    return ImageFormatError(
        f"Invalid field {key!r} in {source}.",
        why=f"It is {str(value)[:80]!r}, but must be {wanted}.",
        fix="Build the image with a current nixpkgs, or use the image file itself.",
        field=key,
    )
