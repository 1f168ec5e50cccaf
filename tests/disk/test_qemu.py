"""qcow2, VHDX and VMDK: the same bytes as QEMU reads, no other file of this machine, nothing left behind."""

from __future__ import annotations

import fcntl
import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.disk.images import MIB, qemu_bytes, qemu_create, qemu_make, scattered, whole, write_raw
from vmsnix_ops.disk import qemu
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.qemu import ConvertedImage, MappedImage
from vmsnix_ops.errors import ImageError, ImageFormatError

SIZE = 9 * MIB + 512
VARIANTS = [
    ("qcow2", ""),
    ("qcow2", "cluster_size=4096"),
    ("qcow2", "compat=0.10"),
    ("qcow2", "extended_l2=on,cluster_size=128k"),
    ("qcow2", "preallocation=metadata"),
    ("compressed", ""),
    ("vmdk", ""),
    ("vmdk", "subformat=streamOptimized"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Look into the folder for large temporary files after each test: it must be empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.mark.parametrize(("driver", "options"), VARIANTS)
def test_images_of_qemu_are_read_as_by_qemu(
    tmp_path: Path, temporary: Path, driver: str, options: str
) -> None:
    disk = scattered(SIZE, seed=3)
    kind = "qcow2" if driver == "compressed" else driver
    path = qemu_make(tmp_path / "disk, with a comma", write_raw(tmp_path / "raw", disk), driver, options)
    ours = whole(path)
    assert ours == qemu_bytes(path.rename(tmp_path / "plain"), kind)
    assert ours[:SIZE] == disk
    assert not any(ours[SIZE:])
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("driver", "kind"), [("qcow2", MappedImage), ("vmdk", MappedImage), ("compressed", ConvertedImage)]
)
def test_only_compressed_images_are_converted(tmp_path: Path, driver: str, kind: type) -> None:
    raw = write_raw(tmp_path / "raw", scattered(SIZE))
    with open_image(qemu_make(tmp_path / "disk", raw, driver)) as image:
        assert type(image) is kind


@pytest.mark.parametrize("driver", ["qcow2", "compressed"])
def test_a_reader_is_accepted(tmp_path: Path, temporary: Path, driver: str) -> None:
    disk = scattered(SIZE)
    path = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", disk), driver)
    with open_image(io.BytesIO(path.read_bytes())) as image:
        assert image.read(0, SIZE) == disk
    assert list(temporary.iterdir()) == []


def test_an_image_with_a_backing_file_is_refused_before_the_other_file_is_opened(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "secret", scattered(MIB))
    qemu_create(tmp_path / "disk", "qcow2", "-b", str(raw), "-F", "raw")
    with pytest.raises(ImageFormatError, match="its backing file") as caught:
        open_image(tmp_path / "disk")
    assert (caught.value.field, caught.value.offset) == ("backing_file_offset", 8)


def test_an_image_whose_data_lie_in_another_file_is_refused(tmp_path: Path) -> None:
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    qemu_create(tmp_path / "disk", "qcow2", "-o", options, "1M")
    with pytest.raises(ImageFormatError, match="in another file") as caught:
        open_image(tmp_path / "disk")
    assert (caught.value.field, caught.value.offset) == ("incompatible_features", 72)


def test_an_encrypted_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key")
    secret = f"secret,id=key,file={tmp_path / 'key'}"
    # Not LUKS: creating it measures the processor's speed, which fails on a busy machine.
    encryption = "encrypt.format=aes,encrypt.key-secret=key"
    qemu_create(tmp_path / "disk", "qcow2", "--object", secret, "-o", encryption, "1M")
    with pytest.raises(ImageFormatError, match="is encrypted"):
        open_image(tmp_path / "disk")


def test_a_vmdk_that_only_describes_other_files_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", scattered(MIB))
    image = bytearray(qemu_make(tmp_path / "disk", raw, "vmdk").read_bytes())
    image[12:20] = bytes(8)
    with pytest.raises(ImageFormatError) as caught:
        open_image(io.BytesIO(image))
    assert (caught.value.field, caught.value.offset) == ("capacity", 12)


def test_a_vmdk_with_a_parent_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", scattered(MIB))
    parent = qemu_make(tmp_path / "parent.vmdk", raw, "vmdk")
    qemu_create(tmp_path / "disk", "vmdk", "-b", str(parent), "-F", "vmdk")
    with pytest.raises(ImageFormatError, match="its parent") as caught:
        open_image(tmp_path / "disk")
    assert caught.value.field == "parentFileNameHint"


@pytest.mark.parametrize("driver", ["qcow2", "compressed", "vmdk", "vhdx"])
@pytest.mark.parametrize("keep", [8, 600, 70_000, -70_000])
def test_an_incomplete_image_is_refused(tmp_path: Path, temporary: Path, driver: str, keep: int) -> None:
    disk = scattered(SIZE, pieces=20)
    image = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", disk), driver).read_bytes()
    if driver == "vhdx" and keep < 0:
        keep = 4 * MIB  # a VHDX is preallocated in blocks, of which the last ones may be empty
    (tmp_path / "cut").write_bytes(image[:keep])
    with pytest.raises(ImageFormatError), open_image(tmp_path / "cut") as opened:
        opened.read(0, SIZE)
    assert list(temporary.iterdir()) == []


def test_an_image_with_overlapping_ranges_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", b"\xeb\xfe" * MIB)
    image = bytearray(qemu_make(tmp_path / "disk", raw, "vmdk").read_bytes())
    for directory_at in (48, 56):  # the grain directory and its copy
        directory = struct.unpack_from("<Q", image, directory_at)[0] * 512
        table = struct.unpack_from("<I", image, directory)[0] * 512
        image[table + 4 : table + 8] = image[table + 12 : table + 16]
    with pytest.raises(ImageFormatError, match="have the same location in the file"):
        open_image(io.BytesIO(image))


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vhdx"])
@pytest.mark.parametrize("lost", [1, 511, 512, 4096])
def test_an_image_without_its_last_byte_is_refused(tmp_path: Path, driver: str, lost: int) -> None:
    disk = b"\xeb\xfe" * (4 * MIB)  # whole blocks of each format, so that the file ends with data
    options = "block_size=1M" if driver == "vhdx" else ""
    path = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", disk), driver, options)
    with pytest.raises(ImageFormatError):
        open_image(io.BytesIO(path.read_bytes()[:-lost]))


@pytest.mark.parametrize(
    ("driver", "order", "field"), [("qcow2", "big", "size"), ("vhdx", "little", "VirtualDiskSize")]
)
def test_a_disk_that_is_not_whole_sectors_is_refused(
    tmp_path: Path, driver: str, order: Literal["big", "little"], field: str
) -> None:
    """qemu-img would leave out the bytes behind the last whole sector."""
    size = 3 * MIB
    path = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", b"\xeb" * size), driver)
    content = path.read_bytes()
    at = 24 if driver == "qcow2" else content.rindex(size.to_bytes(8, order))
    path.write_bytes(content[:at] + (size - 300).to_bytes(8, order) + content[at + 8 :])
    with pytest.raises(ImageFormatError, match=f"It is {size - 300} bytes, not a multiple of 512") as caught:
        open_image(path)
    assert (caught.value.field, caught.value.offset) == (field, at)


def test_a_wrong_size_field_is_refused(tmp_path: Path) -> None:
    image = bytearray(
        qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", scattered(MIB)), "qcow2").read_bytes()
    )
    image[24:32] = (2**55).to_bytes(8, "big")
    with pytest.raises(ImageFormatError):
        open_image(io.BytesIO(image))


def test_a_full_temporary_disk_names_the_fix(tmp_path: Path) -> None:
    # A file size limit of 1 MiB simulates the full disk.
    raw = write_raw(tmp_path / "raw", b"\xeb\xfe" * 2 * MIB)
    path = qemu_make(tmp_path / "disk", raw, "compressed")
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from vmsnix_ops.disk.formats import open_image;"
        f"image = open_image({str(path)!r});"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        "image.read(0, 512)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        timeout=120,
    )
    assert "ImageError: Not enough space in" in done.stderr
    assert "set TMPDIR" in done.stderr


def test_an_image_in_use_by_a_machine_is_refused(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", scattered(MIB)), "qcow2")
    # QEMU locks two bytes of the file: 101 means that it writes, 201 that no other process may write.
    with path.open("r+b") as file:
        for at in (101, 201):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, at, 1, 0))
        with pytest.raises(ImageError, match=r"in use by another program.*Stop the machine"):
            open_image(path)


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    return qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", b"x" * MIB), "compressed")


def test_the_converted_copy_is_used_until_it_is_deleted(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_image(compressed) as first, open_image(compressed) as second:
        assert first.read(0, 512) == b"x" * 512
        monkeypatch.setattr(qemu, "_convert", None)
        assert second.read(0, 512) == b"x" * 512
        qemu.delete_copy()
        assert first.read(512, 512) == second.read(512, 512) == b"x" * 512
    with open_image(compressed) as third, pytest.raises(TypeError):
        third.read(0, 512)


def test_the_copy_of_another_or_of_a_changed_image_is_not_used(compressed: Path, tmp_path: Path) -> None:
    with open_image(compressed) as image:
        assert image.read(0, 1) == b"x"
    other = qemu_make(tmp_path / "other", write_raw(tmp_path / "raw", b"y" * MIB), "compressed")
    with open_image(other) as image:
        assert image.read(0, 1) == b"y"
    compressed.write_bytes(other.read_bytes())
    with open_image(compressed) as image:
        assert image.read(0, 1) == b"y"
    qemu.delete_copy()
