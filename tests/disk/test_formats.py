"""The format comes from the bytes; other files are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.disk.images import MIB, edited, qemu_create, qemu_make, scattered, write_ours, write_raw
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.errors import ImageError, ImageFormatError, ImageNotFoundError, ToolMissingError


def test_a_vhd_with_the_suffix_raw_is_opened_as_a_vhd(tmp_path: Path) -> None:
    for kind in ("dynamic", "fixed"):
        with open_image(write_ours(tmp_path / f"{kind}.raw", scattered(3 * MIB), kind)) as image:
            assert (image.format, image.subformat, image.size) == ("vhd", kind, 3 * MIB)


def test_a_raw_disk_with_the_suffix_vhd_is_opened_as_a_raw_disk(tmp_path: Path) -> None:
    with open_image(write_raw(tmp_path / "disk.vhd", scattered(3 * MIB))) as image:
        assert (image.format, image.subformat, image.size, image.file_bytes) == ("raw", "", 3 * MIB, 3 * MIB)


@pytest.mark.parametrize("kind", ["qcow2", "vhdx", "vmdk"])
def test_the_formats_of_qemu_are_detected_from_their_bytes(tmp_path: Path, kind: str) -> None:
    raw = write_raw(tmp_path / "raw", scattered(3 * MIB))
    with open_image(qemu_make(tmp_path / "disk.vhd", raw, kind)) as image:
        assert (image.format, image.size) == (kind, 3 * MIB)


def test_strings_and_readers_are_accepted(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "disk.vhd", scattered(3 * MIB), "dynamic")
    readers = [str(path), io.BytesIO(path.read_bytes()), path.open("rb")]
    for source in readers:
        with open_image(source) as image:
            assert image.read(0, 3 * MIB) == scattered(3 * MIB)
    assert not readers[2].closed  # type: ignore[union-attr]
    readers[2].close()  # type: ignore[union-attr]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="No image at"):
        open_image(tmp_path / "absent.vhd")


def test_the_fix_for_a_broken_result_link_is_a_build(tmp_path: Path) -> None:
    (tmp_path / "result").symlink_to(tmp_path / "collected")
    with pytest.raises(ImageNotFoundError, match="build the image again"):
        open_image(tmp_path / "result")


def test_the_fix_for_a_folder_is_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"is a folder.*image-info\.json"):
        open_image(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.vhd").touch()
    with pytest.raises(ImageFormatError, match="is empty"):
        open_image(tmp_path / "empty.vhd")


def test_an_error_of_the_system_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ImageError, match=r"Could not open .*Too many levels of symbolic links"):
        open_image(tmp_path / "loop")


def test_an_impossible_path_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="Could not open"):
        open_image("a\0b")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk.img", scattered(MIB))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything, nobody may not
    try:
        with pytest.raises(ImageError, match="Permission denied"):
            open_image(path)
    finally:
        os.seteuid(user)


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="neither a file nor a block device"):
        open_image(tmp_path / "pipe")


def test_a_reader_that_cannot_seek_is_refused() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    with (
        open(read_end, "rb") as reader,  # noqa: PTH123
        pytest.raises(ImageError, match="does not support reading at a position"),
    ):
        open_image(reader)


def archives(folder: Path) -> dict[str, bytes]:
    """Return files of other formats, created with the standard library."""
    disk = write_raw(folder / "disk.img", scattered(MIB))
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.write(disk)
    with tarfile.open(folder / "tar", "w") as bundle:
        bundle.add(disk, "disk.img")
    return {
        "gzip": gzip.compress(disk.read_bytes()),
        "xz": lzma.compress(disk.read_bytes()),
        "bzip2": bz2.compress(disk.read_bytes()),
        "zip": (folder / "zip").read_bytes(),
        "tar": (folder / "tar").read_bytes(),
        "text": b'{"label": "26.11", "file": "/nix/store/disk.vhd"}\n' * 100,
        "ELF": Path("/proc/self/exe").read_bytes()[:8192],
        "VDI": bytes(64) + b"\x7f\x10\xda\xbe" + bytes(444),
        "description of a VMDK": b'# Disk DescriptorFile\nversion=1\nRW 8 FLAT "disk-flat.vmdk" 0\n',
        "lost its first 512 bytes": write_ours(folder / "v", scattered(MIB), "dynamic").read_bytes()[
            512:-512
        ],
    }


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    for what, data in archives(tmp_path).items():
        path = tmp_path / "disk.raw"
        path.write_bytes(data.ljust(-(-len(data) // 512) * 512, b"\0") if what != "text" else data)
        with pytest.raises(ImageFormatError, match=what) as caught:
            open_image(path)
        assert caught.value.field == "signature"
        assert caught.value.fix


def test_a_partition_table_takes_precedence_over_another_signature(tmp_path: Path) -> None:
    sector = bytearray(MIB)
    sector[:2], sector[510:512] = b"\x1f\x8b", b"\x55\xaa"
    with open_image(write_raw(tmp_path / "disk", bytes(sector))) as image:
        assert image.format == "raw"


def test_a_blank_disk_and_a_disk_of_noise_are_raw_disks(tmp_path: Path) -> None:
    for disk in (bytes(MIB), b"\x9d\x00\xf1\xc7" * 1024):
        with open_image(io.BytesIO(disk)) as image:
            assert (image.format, image.size) == ("raw", len(disk))


@pytest.mark.parametrize("length", [1, 511, 513, MIB + 1])
def test_a_raw_file_with_a_partial_sector_is_refused_with_its_size(length: int) -> None:
    with pytest.raises(ImageFormatError) as caught:
        open_image(io.BytesIO(b"\xeb" + bytes(length - 1)))
    assert caught.value.offset == length
    assert caught.value.field == "end of file"


def test_a_footer_of_511_bytes_is_refused(tmp_path: Path) -> None:
    image = write_ours(tmp_path / "disk.vhd", scattered(MIB), "fixed").read_bytes()
    with pytest.raises(ImageFormatError, match="511 bytes instead of 512") as caught:
        open_image(io.BytesIO(image[:-1]))
    assert caught.value.offset == MIB


def test_without_qemu_img_its_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", scattered(MIB)), "qcow2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="qemu-img is not installed on this machine"):
        open_image(image)


def test_every_error_has_what_why_and_fix(tmp_path: Path) -> None:
    image = write_ours(tmp_path / "disk.vhd", scattered(3 * MIB), "dynamic").read_bytes()
    with pytest.raises(ImageFormatError) as caught:
        open_image(io.BytesIO(edited(image, {"bat.0": 0x7FFFFFFF})))
    error = caught.value
    assert error.what == "the image is not a valid VHD image: BAT entry 0 at byte 1536 is wrong."
    assert error.why.startswith("Block 0 is at bytes 1099511627264 to")
    assert error.fix == "Build the image again, or copy it again from its source."


class Zeros(io.RawIOBase):
    """A file of zeros of any size."""

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = self.size + offset if whence == 2 else offset
        return self.at

    def read(self, length: int = -1, /) -> bytes:
        return bytes(min(length, self.size - self.at))


def test_a_disk_of_more_than_64_tib_is_refused(tmp_path: Path) -> None:
    limit = 64 << 40
    with open_image(Zeros(limit)) as image:
        assert image.size == limit
    with pytest.raises(ImageFormatError, match="larger than 64 TiB") as caught:
        open_image(Zeros(limit + 512))
    assert f"It has {limit + 512} bytes" in str(caught.value)
    large = qemu_create(tmp_path / "large.qcow2", "qcow2", "65T")
    with pytest.raises(ImageFormatError, match="larger than 64 TiB"):
        open_image(large)


def test_a_disk_that_is_not_a_multiple_of_512_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(scattered(MIB) + b"x")
    with pytest.raises(ImageFormatError, match="A raw disk is a multiple of 512 bytes"):
        open_image(path)
