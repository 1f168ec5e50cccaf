"""Two builds of an image, and the first file that differs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.disk.test_firmware import EFI, LINUX, MIB, fat, gpt, mbr
from tests.support import require
from vmsnix_ops.errors import BuildFailedError, NixError
from vmsnix_ops.nix import reproducible
from vmsnix_ops.nix.flake import host_system
from vmsnix_ops.nix.reproducible import compare_disks, compare_outputs
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import build_image
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable


def checked(image: str) -> build_image.BuildResult:
    return build_image.plan(image, check=True).apply(progress=silent())


def test_two_equal_builds_are_reproducible(nix: Path) -> None:
    result = checked("gc-fwd")
    assert isinstance(result, Result)
    assert ("reproducible", "yes, two builds are equal") in result.facts()
    assert (result.as_dict()["status"], result.as_dict()["reproducible"]) == ("done", True)
    result.raise_for_status()


def test_without_the_check_nothing_is_said_about_it(nix: Path) -> None:
    result = build_image.plan("gc-fwd").apply(progress=silent())
    assert "reproducible" not in dict(result.facts())
    assert result.as_dict()["reproducible"] is None


def test_the_first_differing_file_of_two_builds_is_named(nix: Path) -> None:
    result = checked("changes")
    assert result.difference is not None
    assert result.difference.file == f"changes-26.05.fixture-{host_system()}.vhd"
    assert result.difference.where.startswith("first differing byte of the disk: 2,000,0")
    assert "outside of the partitions" in result.difference.where
    assert Path(result.difference.second).is_dir()
    assert (result.as_dict()["status"], result.as_dict()["reproducible"]) == ("failed", False)
    with pytest.raises(NixError, match="not reproducible") as caught:
        result.raise_for_status()
    assert f"diffoscope {result.image.store_path} {result.image.store_path}.check" in caught.value.fix
    assert checked("changes").difference is not None  # a second check finds the same


def test_a_second_build_that_fails_is_an_error_and_not_a_difference(
    nix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first build makes a file outside of the store, and the second one finds it.
    flag = tmp_path / "built-before"
    flake = tmp_path / "flake"
    shutil.copytree(Path(__file__).parent / "fixture", flake)
    packages = flake / "packages.nix"
    script = 'echo "making the disk of ${name}"'
    text = packages.read_text().replace(script, f"{script}\ntest ! -e {flag}; echo > {flag}")
    packages.write_text(text)
    with pytest.raises(BuildFailedError, match="was not built a second time"):
        build_image.plan("ecs-node", flake=flake, check=True).apply(progress=silent())


def test_diffoscope_names_the_part_of_a_file(tmp_path: Path) -> None:
    require("diffoscope")
    for name in ("one", "two"):
        (tmp_path / name).write_text(f'{{"x": "{name}"}}\n')
    assert reproducible.diffoscope_parts(tmp_path / "one", tmp_path / "two") == "Pretty-printed"
    assert reproducible.diffoscope_parts(tmp_path / "one", tmp_path / "one") == ""


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal outputs with a file, a link and a program."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        (folder / "bin").mkdir(parents=True)
        (folder / "a").write_bytes(bytes(9_000_000))
        (folder / "bin/run").write_text("#!/bin/sh\n")
        (folder / "link").symlink_to("a")
    return folders


def test_equal_outputs_have_no_difference(outputs: tuple[Path, Path]) -> None:
    assert compare_outputs(*outputs) == ("", "")


def relink(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("bin")


def write(folder: Path) -> None:
    with (folder / "a").open("r+b") as file:
        file.seek(8_000_123)
        file.write(b"x")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (write, ("a", "first differing byte 8,000,123")),
        (lambda folder: (folder / "a").write_bytes(b"\0"), ("a", "first differing byte 1")),
        (lambda folder: (folder / "bin/run").chmod(0o755), ("bin/run", "only one of them is executable")),
        (lambda folder: (folder / "new").touch(), ("new", "it is missing in the first build")),
        (lambda folder: (folder / "link").unlink(), ("link", "it is missing in the second build")),
        (relink, ("link", "its link targets are a and bin")),
    ],
)
def test_a_difference_of_outputs_is_described(
    outputs: tuple[Path, Path], change: Callable[[Path], object], expected: tuple[str, str]
) -> None:
    change(outputs[1])
    assert compare_outputs(*outputs) == expected


def compare(folder: Path, disk: bytearray, at: int) -> str:
    """Change one byte of a disk, and return how it differs."""
    (folder / "one.img").write_bytes(disk)
    disk[at] ^= 1
    (folder / "two.img").write_bytes(disk)
    return compare_disks(folder / "one.img", folder / "two.img")


@pytest.mark.parametrize("kind", ["gpt", "mbr"])
def test_the_partition_of_a_difference_is_named(tmp_path: Path, kind: str) -> None:
    disk = gpt((EFI, bytes(MIB)), (LINUX, bytes(MIB))) if kind == "gpt" else mbr((0x83, True, bytes(MIB)))
    number, start = (2, 2 * MIB) if kind == "gpt" else (1, MIB)
    where = f"in partition {number}, at byte 77 of it, in no known file"
    assert compare(tmp_path, disk, start + 77) == f"first differing byte of the disk: {start + 77:,}, {where}"
    assert compare(tmp_path, disk, 100).endswith("100, outside of the partitions")


def test_a_file_of_the_efi_system_partition_is_named(tmp_path: Path) -> None:
    content = b"kernel" + bytes(5000)
    disk = gpt((EFI, fat({"EFI/BOOT/BOOTX64.EFI": content}, bits=16)))
    assert compare(tmp_path, disk, disk.index(b"kernel") + 4000).endswith("in the file EFI/BOOT/BOOTX64.EFI")


def test_a_file_of_an_ext4_partition_is_named(tmp_path: Path) -> None:
    for tool in ("mkfs.ext4", "debugfs"):
        require(tool)
    content = tmp_path / "content/nix/store"
    content.mkdir(parents=True)
    (content / "system").write_bytes(b"unmistakable" + bytes(50_000))
    subprocess.run(
        ["mkfs.ext4", "-q", "-d", tmp_path / "content", tmp_path / "root", "8M"], check=True, timeout=60
    )
    disk = gpt((EFI, bytes(MIB)), (LINUX, (tmp_path / "root").read_bytes()))
    where = compare(tmp_path, disk, disk.index(b"unmistakable") + 3)
    assert "in partition 2" in where
    assert where.endswith("in the file /nix/store/system")
    assert compare(tmp_path, disk, 2 * MIB + 1024 + 44).endswith("in no known file")  # the superblock


def test_disks_of_other_sizes_and_formats_are_told_apart(tmp_path: Path) -> None:
    disk = gpt((EFI, bytes(MIB)))
    (tmp_path / "one.img").write_bytes(disk)
    (tmp_path / "two.img").write_bytes(disk + bytes(MIB))
    assert compare_disks(tmp_path / "one.img", tmp_path / "two.img") == (
        f"the disks have {len(disk):,} and {len(disk) + MIB:,} bytes"
    )
