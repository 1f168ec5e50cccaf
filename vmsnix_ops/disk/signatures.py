"""Signatures of file formats.

They come from the formats' specifications, and from the database of ``file``. A file with a partition table
is a disk whatever its first bytes are, because boot code may begin with any bytes.
"""

from __future__ import annotations

VHDX = b"vhdxfile"
QCOW2 = b"QFI\xfb"
VMDK = b"KDMV"

_UNPACK = "Unpack it first, and use the disk image in it."
_CONVERT = "Convert it first: qemu-img convert -O raw INPUT OUTPUT.img"
_NO_DISK = "Use the disk image itself (nix-support/image-info.json of a Nix output has its name)."

FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a gzip file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file", _UNPACK),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive (an OVA is one too)", _UNPACK),
    (0, b"\r\0\0\0\0\0\0\0nix-archive-1", "a Nix archive (NAR)", "Restore it with nix-store --restore."),
    (0, b"\x7fELF", "an ELF program", _NO_DISK),
    (0, b"%PDF-", "a PDF document", _NO_DISK),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", _NO_DISK),
    (0, b"SQLite format 3\0", "an SQLite database", _NO_DISK),
    (0, b"PAR1", "a Parquet table", _NO_DISK),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk (VDI)", _CONVERT),
    (0, b"QED\0", "a QED disk", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels disk", _CONVERT),
    (0, b"COWD", "an ESX sparse extent", _CONVERT),
    (0, b"\xbe\xba\xfe\xca", "an ESX space-efficient sparse extent", _CONVERT),
    (0, b"# Disk DescriptorFile", "the description of a VMDK, whose data is in other files", _CONVERT),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", _CONVERT),
    (0, b"cxsparse", "a VHD that lost its first 512 bytes", "Build the image again, or copy it again."),
)
"""Signatures of unsupported formats: offset, bytes, name of the format, fix."""


def foreign(head: bytes) -> tuple[int, str, str] | None:
    """Return offset, name and fix of an unsupported format; ``None`` for any other file."""
    for offset, mark, what, fix in FOREIGN:
        if head[offset : offset + len(mark)] == mark:
            return offset, what, fix
    if is_text(head):
        return 0, "text", _NO_DISK
    return None


def is_text(head: bytes) -> bool:
    """Return whether bytes are UTF-8 text without control characters; the last character may be cut."""
    if not head:
        return False
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start == 0 or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(character >= " " or character in "\t\n\r\f" for character in text) and "\x7f" not in text
