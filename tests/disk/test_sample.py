"""The sample image boots, has the layout of the output of a Nix build, and is the same every time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import MIB, qemu_bytes, whole
from tests.support import require
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.sample import TEXT_LIMIT, boot_sector, make_sample_image

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = [("vhd", "sample.vhd", "dynamic"), ("vhd-fixed", "sample.vhd", "fixed"), ("raw", "sample.img", "")]


def serial_output(image: Path, driver: str, wanted: str) -> str:
    """Boot an image in QEMU, without network or display, until its serial port has printed a text."""
    command = [
        require("qemu-system"), "-M", "pc", "-accel", "tcg", "-m", "32", "-display", "none", "-net", "none",
        "-serial", "stdio", "-monitor", "none", "-drive", f"file={image},format={driver},snapshot=on",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as machine:
        deadline = threading.Timer(60, machine.kill)
        deadline.start()
        try:
            output = b""
            assert machine.stdout is not None
            for line in machine.stdout:
                output += line
                if wanted.encode() in line:
                    break
        finally:
            deadline.cancel()
            machine.kill()
    return output.decode()


@pytest.mark.parametrize(("format_", "file", "_kind"), FORMATS)
def test_the_sample_boots_and_prints_its_line(tmp_path: Path, format_: str, file: str, _kind: str) -> None:
    make_sample_image(tmp_path, format=format_, message="hello from the sample")  # type: ignore[arg-type]
    driver = "raw" if format_ == "raw" else "vpc"
    assert serial_output(tmp_path / file, driver, "the sample") == "hello from the sample\r\n"


@pytest.mark.parametrize(("format_", "file", "kind"), FORMATS)
def test_the_folder_has_the_layout_of_a_nix_output(
    tmp_path: Path, format_: str, file: str, kind: str
) -> None:
    folder = make_sample_image(tmp_path / "result", format=format_)  # type: ignore[arg-type]
    assert folder == tmp_path / "result"
    info = json.loads((folder / "nix-support" / "image-info.json").read_text())
    with open_image(info["file"]) as image:
        assert image.subformat == kind
        assert image.size == int(info["logical_bytes"])
        assert len(list(image.blocks())) == 25
    assert info["file"] == str(folder / file)
    assert (info["system"], info["boot_mode"]) == ("x86_64-linux", "legacy-bios")
    assert info["disks"] == {"root": {"logical_bytes": info["logical_bytes"], "file": info["file"]}}
    products = (folder / "nix-support" / "hydra-build-products").read_text().splitlines()
    assert [line.split()[2] for line in products] == [info["file"]] * 2


@pytest.mark.parametrize("kind", ["vhd", "vhd-fixed"])
def test_qemu_reads_the_same_disk(tmp_path: Path, kind: str) -> None:
    make_sample_image(tmp_path, format=kind, data_bytes=MIB, size=8 * MIB)  # type: ignore[arg-type]
    path = tmp_path / "sample.vhd"
    assert whole(path) == qemu_bytes(path, "vhd")
    subprocess.run(
        [require("qemu-img"), "info", "-f", "vpc", str(path)], check=True, capture_output=True, timeout=120
    )


def test_the_same_arguments_give_the_same_bytes_and_others_give_others(tmp_path: Path) -> None:
    def digest(name: str, **arguments: str) -> str:
        file = make_sample_image(tmp_path / name, **arguments) / "sample.vhd"  # type: ignore[arg-type]
        return hashlib.sha256(file.read_bytes()).hexdigest()

    first = digest("a")
    assert digest("b") == first
    assert digest("c", seed="other") != first
    assert digest("d", message="other") != first


def test_a_sample_has_the_requested_amount_of_data(tmp_path: Path) -> None:
    make_sample_image(tmp_path, format="raw", size=64 * MIB, data_bytes=6 * MIB)
    disk = (tmp_path / "sample.img").read_bytes()
    assert 6 * MIB * 0.99 < len(disk) - disk.count(0) < 6 * MIB * 1.01


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit a disk"):
        make_sample_image(tmp_path, size=16 * MIB, data_bytes=16 * MIB)


@pytest.mark.parametrize("message", ["x" * (TEXT_LIMIT + 1), "a\0b"])
def test_a_message_that_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        boot_sector(message, partition_start=1, partition_sectors=1)


def test_the_longest_message_does_not_reach_the_partition_table() -> None:
    sector = boot_sector("x" * TEXT_LIMIT, partition_start=2048, partition_sectors=99)
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert (sector[446], sector[450]) == (0x80, 0x83)
