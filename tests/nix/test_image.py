"""Reading a built image."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.errors import ImageError, ImageFormatError, ImageNotFoundError
from vmsnix_ops.nix.image import DESCRIPTION, read_image, store_object

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE_NAME = "0123456789abcdfghijklmnpqrsvwxyz-sample"
SMALL = {"size": 8 * 2**20, "data_bytes": 2**20}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A directory like the output of a NixOS image build."""
    folder = tmp_path / STORE_NAME
    make_sample_image(folder, **SMALL)
    return folder


def describe(output: Path, **changes: Any) -> None:
    """Change fields of a description; ``None`` removes one."""
    path = output / DESCRIPTION
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def image_file(output: Path) -> Path:
    return next(output.glob("sample.*"))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run without root's permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_reads_an_output_directory(output: Path) -> None:
    image = read_image(output)
    assert image.path == image_file(output)
    assert (image.name, image.version, image.system) == ("sample", "26.11.sample", "x86_64-linux")
    assert (image.boot_mode, image.format) == ("legacy-bios", "vhd")
    assert image.logical_bytes == int(json.loads((output / DESCRIPTION).read_text())["logical_bytes"])
    assert image.store_path == str(output)
    assert (image.derivation, image.flake, image.revision, image.nar_hash, image.dirty) == (None,) * 4 + (
        False,
    )


def test_reads_a_result_link(output: Path, tmp_path: Path) -> None:
    (tmp_path / "result").symlink_to(output)
    assert read_image(tmp_path / "result") == read_image(output)


def test_the_format_of_an_image_file_comes_from_its_bytes(output: Path, tmp_path: Path) -> None:
    misnamed = shutil.copy(image_file(output), tmp_path / "my-image.raw")
    image = read_image(misnamed)
    assert (image.name, image.version, image.system) == ("my-image", "unknown", "x86_64-linux")
    assert (image.boot_mode, image.format, image.store_path) == ("legacy-bios", "vhd", None)


def test_reads_a_raw_image(tmp_path: Path) -> None:
    assert read_image(make_sample_image(tmp_path / "raw", format="raw", **SMALL)).format == "raw"


def test_an_image_file_is_for_the_system_that_is_given(output: Path) -> None:
    image = read_image(image_file(output), system="aarch64-linux", name="other")
    assert (image.name, image.system, image.boot_mode) == ("other", "aarch64-linux", "uefi")


def test_registration_options_are_read(output: Path) -> None:
    describe(output, registerImage={"TpmSupport": "v2.0"}, boot_mode="uefi")
    image = read_image(output)
    assert image.register_image == {"TpmSupport": "v2.0"}
    assert image.boot_mode == "uefi"


def test_an_image_without_registration_options_has_an_empty_mapping(output: Path) -> None:
    describe(output, registerImage=None)
    assert read_image(output).register_image == {}


def test_the_name_comes_from_the_description(output: Path) -> None:
    describe(output, vmsnix={"name": "ecs-node"})
    assert read_image(output).name == "ecs-node"


def test_the_name_is_the_files_without_version_and_system(output: Path) -> None:
    image_file(output).rename(output / "ecs-node-26.11.sample-x86_64-linux.vhd")
    describe(output, file="ecs-node-26.11.sample-x86_64-linux.vhd", vmsnix=None)
    assert read_image(output).name == "ecs-node"


def test_follows_the_absolute_store_path_that_nixpkgs_writes(output: Path) -> None:
    describe(output, file=str(image_file(output)))
    assert read_image(output).path == image_file(output)


def test_reads_a_copy_of_an_output_whose_description_names_the_original(output: Path, tmp_path: Path) -> None:
    describe(output, file=f"/nix/store/{STORE_NAME}/{image_file(output).name}")
    copy = tmp_path / "copy"
    output.rename(copy)
    assert read_image(copy).path == image_file(copy)


def test_reads_the_only_disk_when_there_is_no_top_level_file(output: Path) -> None:
    describe(output, file=None, disks={"root": {"file": image_file(output).name, "logical_bytes": "8388608"}})
    assert read_image(output).path == image_file(output)


def test_refuses_an_image_of_two_disks_as_the_zfs_variant_makes(output: Path) -> None:
    describe(output, file=None, disks={"boot": {"file": "a.vhd"}, "root": {"file": "b.vhd"}})
    with pytest.raises(ImageFormatError, match="2 disks: 'boot', 'root'") as caught:
        read_image(output)
    assert caught.value.field == "disks"


def test_an_image_can_be_pickled(output: Path) -> None:
    image = read_image(output)
    assert pickle.loads(pickle.dumps(image)) == image


def test_html_in_a_name_is_escaped(output: Path) -> None:
    page = read_image(output, name="<script>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("file", ["../outside.vhd", "/etc/passwd", "sub/../../outside.vhd"])
def test_a_description_with_a_path_outside_is_refused(output: Path, file: str) -> None:
    shutil.copy(image_file(output), output.parent / "outside.vhd")
    describe(output, file=file)
    with pytest.raises(ImageFormatError, match="outside of its directory") as caught:
        read_image(output)
    assert caught.value.field == "file"


def test_a_link_to_outside_is_refused(tmp_path: Path) -> None:
    make_sample_image(tmp_path / "plain", **SMALL)
    shutil.copy(image_file(tmp_path / "plain"), tmp_path / "outside.vhd")
    image_file(tmp_path / "plain").unlink()
    (tmp_path / "plain" / "sample.vhd").symlink_to(tmp_path / "outside.vhd")
    with pytest.raises(ImageFormatError, match="outside of its directory"):
        read_image(tmp_path / "plain")


def test_follows_a_link_to_another_object_of_the_same_store(output: Path) -> None:
    other = output.parent / "zyxwvsrqpnmlkjihgfdcba9876543210-other"
    other.mkdir()
    name = image_file(output).name
    image_file(output).rename(other / name)
    (output / name).symlink_to(other / name)
    assert read_image(output).path == other / name


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="No image at"):
        read_image(tmp_path / "nope.vhd")


def test_a_garbage_collected_result_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "result").symlink_to("/nix/store/gone")
    with pytest.raises(ImageNotFoundError, match=r"garbage collection.*Build the image again"):
        read_image(tmp_path / "result")


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "result").symlink_to(tmp_path / "result")
    with pytest.raises(ImageNotFoundError):
        read_image(tmp_path / "result")


def test_a_directory_that_is_not_an_image_has_a_fix(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(512))
    with pytest.raises(
        ImageNotFoundError, match=r"no nix-support/image-info.json.*Use the image file itself.*disk\.img"
    ):
        read_image(tmp_path)


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="is not a built image"):
        read_image(tmp_path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.vhd").touch()
    with pytest.raises(ImageFormatError, match="empty"):
        read_image(tmp_path / "empty.vhd")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.vhd")
    with pytest.raises(ImageFormatError, match="not a regular file"):
        read_image(tmp_path / "pipe.vhd")


def test_an_unreadable_image_is_an_error(output: Path, tmp_path: Path) -> None:
    image = image_file(output)
    image.chmod(0)
    with as_nobody(), pytest.raises(ImageError, match="Could not read"):
        read_image(image)


def test_a_missing_image_of_a_description_is_an_error(output: Path) -> None:
    image_file(output).unlink()
    with pytest.raises(ImageNotFoundError, match="copied incompletely"):
        read_image(output)


def test_a_directory_in_a_description_is_an_error(output: Path) -> None:
    describe(output, file="nix-support")
    with pytest.raises(ImageFormatError, match="not of a directory"):
        read_image(output)


def test_a_description_of_another_image_is_an_error(output: Path) -> None:
    describe(output, logical_bytes="4295467008")
    with pytest.raises(ImageFormatError, match="states 4295467008") as caught:
        read_image(output)
    assert caught.value.field == "logical_bytes"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"boot_mode": "coreboot"}, "boot_mode"),
        ({"system": "riscv64-linux"}, "system"),
        ({"label": 3}, "label"),
        ({"file": None, "disks": None}, "file"),
        ({"file": ""}, "file"),
        ({"file": "a\0b"}, "file"),
        ({"file": "x" * 300}, "file"),
        ({"file": None, "disks": {"root": "sample.vhd"}}, "disks"),
        ({"logical_bytes": "much"}, "logical_bytes"),
        ({"logical_bytes": True}, "logical_bytes"),
        ({"registerImage": []}, "registerImage"),
    ],
)
def test_the_invalid_field_of_a_description_is_named(
    output: Path, changes: dict[str, object], field: str
) -> None:
    describe(output, **changes)
    with pytest.raises(ImageFormatError) as caught:
        read_image(output)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_description_that_is_not_a_json_object_is_an_error(output: Path, text: str) -> None:
    (output / DESCRIPTION).write_text(text, encoding="latin-1")
    with pytest.raises(ImageFormatError):
        read_image(output)


def test_a_size_may_differ_by_the_rounding_of_a_vhd(output: Path) -> None:
    size = read_image(output).logical_bytes
    describe(output, logical_bytes=str(size - 499712))
    assert read_image(output).logical_bytes == size


def test_refuses_a_system_that_contradicts_the_description(output: Path) -> None:
    with pytest.raises(ImageFormatError, match="is for x86_64-linux, not for aarch64-linux"):
        read_image(output, system="aarch64-linux")


def test_a_path_outside_of_any_store_has_no_store_object() -> None:
    assert store_object(Path("/home/me/disk.vhd")) is None
    assert store_object(Path(f"/nix/store/{STORE_NAME}/a/b.vhd")) == f"/nix/store/{STORE_NAME}"
