"""Predict the TPM measurements of an image, from the bytes of its disk.

An attested image has a unified kernel image (UKI) in its EFI system partition. The UKI's command line has the
root hash of a dm-verity partition. So PCR 4, which contains the hash of the UKI, stands for the whole system:
kernel, initrd, command line and store. Nothing is mounted and no other program is needed.

Every value is given in SHA-256 and SHA-384. AWS's attestation documents use SHA-384.

PCR 9 is not predicted: it differs between two boots of the same disk.

Sources: "TCG PC Client Platform Firmware Profile Specification", version 1.05, sections 3.3.4 (PCR usage),
8.2.4 (measuring boot events) and 10.4 (event types); "Windows Authenticode Portable Executable Signature
Format", "Calculating the PE Image Hash"; "PE Format" by Microsoft; "UAPI.5 Unified Kernel Image";
"Discoverable Partitions Specification" (UAPI.2); cryptsetup's "DMVerity" (on-disk format 1);
``systemd-stub(7)``.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vmsnix_ops.disk import firmware
from vmsnix_ops.disk.firmware import LOADERS, EfiFile, efi_files, read_gpt
from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.disk.firmware import Partition
    from vmsnix_ops.disk.image import DiskImage

BANKS = ("sha256", "sha384")
"""The PCR banks that are predicted."""

Digests = Mapping[str, str]
"""A digest in hexadecimal by the name of its algorithm."""

CALLING = b"Calling EFI Application from Boot Option"  # EV_EFI_ACTION
SEPARATOR = bytes(4)  # EV_SEPARATOR
STUB = 258
"""First version of systemd-stub that starts the kernel itself.

Older ones call LoadImage, so that some firmwares measure the kernel into PCR 4 a second time.
"""

INTERACTIVE, CLUSTER, HOST_ONLY = "vmsnix.interactive", "vmsnix.cluster", "vmsnix.attests"
"""Words of the command line that vmsnix's modules write, and whose values `Measurements` has."""

PIECE = 2**20  # bytes that are read at once
MOST_HEADER, MOST_TEXT, MOST_SECTIONS = 2**16, 2**16, 512
_VERITY = b"verity\0\0"
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s")
_STUB_VERSION = re.compile(rb"systemd-stub (\d+)")
_ROOT_HASH = re.compile(r"(root|usr)hash=(.*)")
_EXTRAS = re.compile(r"LOADER/(CREDENTIALS|ADDONS)/.|.*\.EFI\.EXTRA\.D/.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a TPM will measure when an image boots, and what the image says about itself."""

    root_hash: str  # of dm-verity, from the command line
    mount: str  # what the root hash protects: "root" or "usr"
    uki: str  # path of the UKI in the EFI system partition, in upper case
    command_line: str
    uki_sha256: str  # Authenticode hashes of the UKI
    uki_sha384: str
    pcr4_sha256: str
    pcr4_sha384: str
    pcr12_sha256: str
    pcr12_sha384: str
    interactive: bool  # whether people can become root on the machine
    host_only: bool  # whether unmeasured containers run on the machine
    cluster: str  # its ECS cluster; empty if the image does not set it

    def pcrs(self, bank: str) -> dict[int, str]:
        """Return the predicted PCRs of a bank by their numbers."""
        return {number: getattr(self, f"pcr{number}_{bank}") for number in (4, 12)}

    def as_dict(self) -> dict[str, Any]:
        """Return all values by their names."""
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing: the digests in SHA-384, as AWS compares them."""
        rows = [("root hash", self.root_hash), ("UKI SHA-384", self.uki_sha384)]
        rows += [(f"PCR {number}", value) for number, value in self.pcrs("sha384").items()]
        rows += [("interactive", "people can become root")] if self.interactive else []
        rows += [("attests", "the host, not its containers")] if self.host_only else []
        return [*rows, *([("cluster", self.cluster)] if self.cluster else [])]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a PE file: position and length in the file, in bytes."""

    name: str
    offset: int
    stored: int  # length in the file
    length: int  # length of the content, without the padding


@dataclass(frozen=True, slots=True)
class PortableExecutable:
    """The parts of a PE file that its Authenticode hash needs."""

    file: EfiFile
    checksum: int  # position of the field
    certificates: int | None  # position of the directory's entry for the certificate table
    header: int  # length of the headers
    certificate_bytes: int  # length of the certificate table
    sections: tuple[Section, ...]

    def text(self, name: str) -> bytes:
        """Return the content of a section without NUL bytes at its end; empty if it does not exist.

        An ImageFormatError for two sections of this name, as in a UKI with several profiles.
        """
        found = [one for one in self.sections if one.name == name]
        if len(found) > 1:
            raise _wrong(self.file, name, f"It has {len(found)} sections of this name.")
        return b"".join(
            self.file.read(one.offset, min(one.length, one.stored, MOST_TEXT)).rstrip(b"\0") for one in found
        )

    def authenticode(self) -> dict[str, str]:
        """Return the Authenticode hashes of the file.

        Source: "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image Hash":
        all bytes count except the checksum, the directory's entry for the certificate table, and this table.
        Sections are hashed in the order of the file, then the bytes after the last one.
        """
        hashes = [hashlib.new(bank) for bank in BANKS]
        edges = [0, self.checksum, self.checksum + 4]
        edges += [self.certificates, self.certificates + 8] if self.certificates is not None else []
        edges.append(self.header)
        ranges = list(zip(edges[::2], edges[1::2], strict=True))
        stored = sorted((one.offset, one.offset + one.stored) for one in self.sections if one.stored)
        hashed = self.header + sum(stop - start for start, stop in stored)
        ranges += [*stored, (hashed, self.file.size - self.certificate_bytes)]
        for start, stop in ranges:
            for at in range(start, stop, PIECE):
                piece = self.file.read(at, min(PIECE, stop - at))
                for one in hashes:
                    one.update(piece)
        return {one.name: one.hexdigest() for one in hashes}


def read_pe(file: EfiFile) -> PortableExecutable:
    """Return the structure of a PE file; an ImageFormatError names the field that is wrong.

    Source: "PE Format" by Microsoft, sections "COFF File Header", "Optional Header" and "Section Table".
    """
    if sum(length for _, length in file.runs) < file.size:
        raise _wrong(file, "cluster chain", "It has fewer clusters than its size needs.")
    head = file.read(0, MOST_HEADER)
    try:
        at = struct.unpack_from("<I", head, 60)[0]
        if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
            raise _wrong(file, "signature", "It is not a PE file.")
        count, optional_bytes = struct.unpack_from("<H12xH", head, at + 6)
        optional = at + 24
        magic = struct.unpack_from("<H", head, optional)[0]
        if magic not in (0x10B, 0x20B):
            raise _wrong(file, "magic", f"It is {magic:#x}, but must be 0x10b or 0x20b.")
        header = struct.unpack_from("<I", head, optional + 60)[0]
        directories = optional + (96 if magic == 0x10B else 112)
        entries = struct.unpack_from("<I", head, directories - 4)[0]
        table = optional + optional_bytes
        if count > MOST_SECTIONS or not table + 40 * count <= header <= len(head):
            raise _wrong(file, "size of headers", f"It is {header}, with {count} sections.")
        certificates = directories + 4 * 8 if entries > 4 else None
        place, size = struct.unpack_from("<II", head, certificates) if certificates is not None else (0, 0)
        if size and place + size != file.size:
            raise _wrong(file, "certificate table", "It is not at the end of the file.")
        sections = []
        for entry in range(table, table + 40 * count, 40):
            name, length, stored, offset = struct.unpack_from("<8sI4xII", head, entry)
            sections.append(Section(name.rstrip(b"\0").decode("latin-1"), offset, stored, length))
    except struct.error as error:
        raise _wrong(file, "headers", "The file ends before.") from error
    stored_at = sorted((one.offset, one.offset + one.stored) for one in sections if one.stored)
    bounds = [(0, header), *stored_at, (file.size - size, file.size - size)]
    if any(after[0] < before[1] for before, after in pairwise(bounds)):
        raise _wrong(file, "section table", "Its sections overlap, or end after the file.")
    return PortableExecutable(file, optional + 64, certificates, header, size, tuple(sections))


def extend(bank: str, digests: Iterable[bytes]) -> str:
    """Return a PCR that starts at zeros and is extended with `digests`, in hexadecimal.

    Source: "Trusted Platform Module Library", part 1, section 17.2 (extend of a PCR).
    """
    value = bytes(hashlib.new(bank).digest_size)
    for one in digests:
        value = hashlib.new(bank, value + one).digest()
    return value.hex()


def pcr4(programs: Iterable[Digests], bank: str) -> str:
    """Return PCR 4 after the firmware has started `programs`, given their Authenticode hashes.

    Source: Platform Firmware Profile, section 3.3.4.5 (PCR[4], boot manager code): the action before the
    first boot option, the separator, then EV_EFI_BOOT_SERVICES_APPLICATION of each program.
    """
    first = [hashlib.new(bank, event).digest() for event in (CALLING, SEPARATOR)]
    return extend(bank, [*first, *(bytes.fromhex(one[bank]) for one in programs)])


def pcr7(variables: Mapping[str, bytes], authorities: Iterable[tuple[str, bytes]], bank: str) -> str:
    """Return PCR 7 for the given contents of the Secure Boot variables.

    `variables` has the contents of ``SecureBoot``, ``PK``, ``KEK``, ``db``, ``dbx``; missing ones are empty.
    `authorities` are the variables and EFI_SIGNATURE_DATA that verified the started programs, in order: none
    without Secure Boot.

    PCR 7 does not name an image: it is the same for all images that are signed with the same key.

    Source: Platform Firmware Profile, sections 3.3.4.8 (PCR[7], Secure Boot policy) and 10.2.6
    (UEFI_VARIABLE_DATA).
    """
    configuration = [_variable(name, variables.get(name, b"")) for name in _SECURE_BOOT]
    events = [*configuration, SEPARATOR, *(_variable(name, data) for name, data in authorities)]
    return extend(bank, [hashlib.new(bank, event).digest() for event in events])


_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")  # EFI_GLOBAL_VARIABLE
_IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")  # EFI_IMAGE_SECURITY_DATABASE_GUID
_SECURE_BOOT = {
    "SecureBoot": _GLOBAL,
    "PK": _GLOBAL,
    "KEK": _GLOBAL,
    "db": _IMAGE_SECURITY,
    "dbx": _IMAGE_SECURITY,
}


def _variable(name: str, data: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA structure."""
    lengths = struct.pack("<QQ", len(name), len(data))
    return _SECURE_BOOT[name].bytes_le + lengths + name.encode("utf-16-le") + data


def measure(image: DiskImage) -> Measurements | None:
    """Return the predicted measurements of an image; ``None`` for a disk without a verity UKI.

    Raises an `ImageFormatError` with the reason if they cannot be predicted.
    """
    files = efi_files(image)
    chain = _boot_chain(files)
    if not chain:
        return None
    uki = chain[-1]
    command_line = uki.text(".cmdline").decode("utf-8", "replace").strip()
    words = command_line.split()
    hashes = [(match[1], match[2]) for word in words if (match := _ROOT_HASH.fullmatch(word))]
    if not hashes:
        return None
    (mount, root_hash), *more = hashes
    if more or not re.fullmatch(r"[0-9a-f]{64}", root_hash):
        found = ", ".join(f"{name}hash={value}" for name, value in hashes)
        raise _wrong(uki.file, ".cmdline", f"It has {found}, but must have one root hash of 64 digits.")
    _check_predictable(uki, words, files)
    hashed = [program.authenticode() for program in chain]
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return Measurements(
        root_hash=root_hash,
        mount=mount,
        uki=uki.file.path,
        command_line=command_line,
        uki_sha256=hashed[-1]["sha256"],
        uki_sha384=hashed[-1]["sha384"],
        pcr4_sha256=pcr4(hashed, "sha256"),
        pcr4_sha384=pcr4(hashed, "sha384"),
        pcr12_sha256=extend("sha256", ()),
        pcr12_sha384=extend("sha384", ()),
        interactive=values.get(INTERACTIVE, "0") != "0" or INTERACTIVE in words,
        host_only=values.get(HOST_ONLY) == "host",
        cluster=values.get(CLUSTER, ""),
    )


def read_measurements(image: DiskImage, declared: Mapping[str, object]) -> Measurements | None:
    """Return the measurements of an image, after comparing its store and its description with its bytes.

    `declared` is the object ``attested`` of image-info.json, with names of `Measurements`; it is empty for
    other images. They may have a UKI whose measurements cannot be predicted, and then have none. An image
    that is declared as attested is refused (ImageFormatError) if its store or a value is not the declared
    one, if its bytes have no value of a declared name, or if its measurements cannot be predicted.
    """
    try:
        found = measure(image)
        if found is not None:
            check_store(image, found.root_hash)
    except ImageFormatError:
        if declared:
            raise
        return None
    if not declared:
        return found
    if found is None:
        raise _not_declared(image, "attested", declared, "an EFI system partition without such a UKI")
    values = found.as_dict()
    for key, value in declared.items():
        if (value or None) != (values.get(key) or None):
            raise _not_declared(image, key, value, values.get(key) or None)
    return found


def _not_declared(image: DiskImage, key: str, declared: object, found: object) -> ImageFormatError:
    return ImageFormatError(
        f"{image.source.name} is not the image that its description declares: {key}.",
        why=f"image-info.json has {declared!r}, but the bytes have {found!r}.",
        fix="Build the image again. Do not change an image or its description after the build.",
        field=key,
    )


def _boot_chain(files: Mapping[str, EfiFile]) -> list[PortableExecutable]:
    """Return the programs that the firmware starts, the UKI last; empty if there is no UKI."""
    loaders = [file for name in LOADERS if (file := files.get(f"EFI/BOOT/{name}")) is not None and file.size]
    if len(loaders) != 1:  # several: an image for several systems
        return []
    loader = read_pe(loaders[0])
    if any(section.name == ".linux" for section in loader.sections):
        return [loader]
    ukis = [file for path, file in files.items() if re.fullmatch(r"EFI/LINUX/[^/]*\.EFI", path)]
    if not ukis:
        return []
    if len(ukis) > 1:
        names = ", ".join(sorted(file.path for file in ukis))
        raise _wrong(ukis[0], "EFI/LINUX", f"The loader chooses one of several UKIs: {names}.")
    return [loader, read_pe(ukis[0])]


def _check_predictable(uki: PortableExecutable, words: list[str], files: Mapping[str, EfiFile]) -> None:
    """Refuse a UKI whose boot measures more than is predicted."""
    stub = _STUB_VERSION.search(uki.text(".sdmagic"))
    if stub is None or int(stub[1]) < STUB:
        found = f"systemd-stub {int(stub[1])}" if stub else "another stub"
        raise _wrong(
            uki.file,
            ".sdmagic",
            f"It has {found}; before systemd {STUB}, only some firmwares measure the kernel into PCR 4.",
        )
    extras = sorted(path for path in files if _EXTRAS.match(path))
    if extras:
        raise _wrong(uki.file, "PCR 12", f"Its stub also measures {extras[0]}.")
    volumes = sum(one.efi for one in read_gpt(uki.file.image))
    if volumes > 1:
        raise _wrong(uki.file, "GPT", f"The disk has {volumes} EFI system partitions.")
    if len(files) >= firmware.MOST_FILES:
        raise _wrong(uki.file, "EFI system partition", f"It has {firmware.MOST_FILES} files or more.")
    if changed := [word for word in words if re.match(r"systemd\.verity_\w+_(data|hash|options)=", word)]:
        raise _wrong(uki.file, ".cmdline", f"{changed[0]} selects other partitions than the root hash.")


def _wrong(file: EfiFile, field: str, why: str) -> ImageFormatError:
    return ImageFormatError(
        f"The measurements of {file.image.source.name} cannot be predicted: {field} of {file.path}.",
        why=why,
        fix="Build the image with one UKI of a current systemd and nothing else in its EFI system partition.",
        field=field,
    )


# The store


def check_store(image: DiskImage, expected: str) -> None:
    """Compute the root hash of the verity partitions from their bytes, and compare it with `expected`.

    All bytes of the data partition are read, and each block of the hash tree is compared too. Memory: one
    block of each level of the tree. Partitions that do not exist, are damaged, or have another root hash are
    an `ImageFormatError`.

    Sources: cryptsetup's "DMVerity" (format 1: the salt is hashed before the data, digests have a fixed
    width, the top level of the tree comes first); "Discoverable Partitions Specification": the UUID of the
    data partition is the first half of the root hash, that of the verity partition the second half.
    """
    halves = [uuid.UUID(expected[:32]), uuid.UUID(expected[32:])]
    by_id = {one.unique: one for one in read_gpt(image)}
    found = [by_id.get(half) for half in halves]
    if found[0] is None or found[1] is None:
        missing = halves[found.index(None)]
        raise _bad_store(image, f"No partition has the UUID {missing}, which is half of the root hash.")
    computed = _verity(image, found[0], found[1])
    if computed != expected:
        raise _bad_store(image, f"Its bytes have the root hash {computed}, but the command line {expected}.")


def _verity(image: DiskImage, data: Partition, tree: Partition) -> str:
    """Return the root hash of a data partition, and compare the tree on the disk with it."""
    head = image.read(tree.start, _SUPERBLOCK.size)
    if len(head) < _SUPERBLOCK.size:
        raise _bad_store(image, "The verity partition is incomplete.")
    magic, version, kind, _, name, block, node, count, salt_bytes, salt = _SUPERBLOCK.unpack(head)
    algorithm = name.rstrip(b"\0").decode("latin-1")
    known = (magic, version, kind, algorithm) == (_VERITY, 1, 1, "sha256")
    sizes = all(512 <= one <= 2**19 and one & (one - 1) == 0 for one in (block, node))
    if not known or not sizes or salt_bytes > 256 or not 1 <= count <= data.size // block:
        raise _bad_store(
            image,
            f"Its verity superblock is invalid: version {version}, type {kind}, {algorithm[:16]!r}, "
            f"{count} blocks of {block} bytes, nodes of {node} bytes.",
        )
    width = 32
    salted = hashlib.sha256(salt[:salt_bytes])
    levels = list[int]()  # blocks of each level, from the data up
    left = count
    while left > 1:
        left = -(-left // (node // width))
        levels.append(left)
    first = tree.start + max(node, -(-512 // node) * node)
    at = [first + node * sum(levels[number + 1 :]) for number in range(len(levels))]
    if levels and at[0] + node * levels[0] > tree.start + tree.size:
        raise _bad_store(image, "Its hash tree does not fit into the verity partition.")
    pending = [bytearray() for _ in levels]
    written = [0] * len(levels)
    root = b""

    def digest(content: bytes | memoryview) -> bytes:
        one = salted.copy()
        one.update(content)
        return one.digest()

    def add(level: int, value: bytes, *, last: bool) -> None:
        nonlocal root
        if level == len(levels):
            root = value
            return
        pending[level] += value
        if len(pending[level]) < node and not last:
            return
        content = bytes(pending[level]).ljust(node, b"\0")
        pending[level].clear()
        if image.read(at[level] + written[level] * node, node) != content:
            raise _bad_store(
                image, f"Block {written[level]} of level {level} of its hash tree does not match its data."
            )
        written[level] += 1
        add(level + 1, digest(content), last=written[level] == levels[level])

    step = max(PIECE, block)
    for offset in range(0, count * block, step):
        piece = memoryview(image.read(data.start + offset, min(step, count * block - offset)))
        for start in range(0, len(piece), block):
            number = (offset + start) // block
            add(0, digest(piece[start : start + block]), last=number == count - 1)
    return root.hex()


def _bad_store(image: DiskImage, why: str) -> ImageFormatError:
    return ImageFormatError(
        f"The store of {image.source.name} does not match its root hash.",
        why=why,
        fix="Build the image again, or copy it again from its source.",
        field="root hash",
    )
