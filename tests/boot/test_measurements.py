"""Predicted measurements: known answers of other programs, bits that matter, and images that are refused."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.boot.attested_image import SALT, make_disk, make_pe, make_verity, measured_by_the_build
from vmsnix_ops.boot import measurements
from vmsnix_ops.disk import firmware
from vmsnix_ops.disk.firmware import EFI_SYSTEM, EfiFile, Partition, efi_files
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.boot.measurements import Measurements

MIB = 2**20


def efi_file(content: bytes) -> EfiFile:
    """A PE file in two parts of a disk, in the wrong order."""
    half = len(content) // 2
    disk = io.BytesIO((content[half:] + content[:half]).ljust(MIB, b"\0"))
    runs = ((len(content) - half, half), (0, len(content) - half))
    return EfiFile(open_image(disk), "EFI/BOOT/BOOTX64.EFI", len(content), runs)


def measure(disk: bytes) -> Measurements | None:
    with open_image(io.BytesIO(disk)) as image:
        return measurements.measure(image)


def measured(disk: bytes) -> Measurements:
    found = measure(disk)
    assert found is not None
    return found


def check_store(disk: bytes, root_hash: str) -> None:
    with open_image(io.BytesIO(disk)) as image:
        measurements.check_store(image, root_hash)


# Known answers


@pytest.mark.parametrize(
    ("pe", "sha256"),
    [
        (
            make_pe({".text": b"\xf4" * 600, ".linux": b"kernel"}),
            "eeb65857a2087347ce7a2a5ed4ae6951f2ddb849e183cf6dfa2aebe034632fde",
        ),
        (
            make_pe({".text": b"\xf4" * 600}, tail=b"more bytes " * 8),
            "af90fe6472e61d1a8f411c93806e7b2d398ca81fcd79feb54e4787d5bb1e9588",
        ),
        (
            make_pe({".text": b"\xf4" * 600}, signature=b"\x48\0\0\0\0\2\2\0".ljust(72, b"s")),
            "da90c3e2c16f1c3a850681a193f0ab95ffcf25f7105e7cb7997d6fa1833d3938",
        ),
    ],
    ids=["plain", "bytes after the sections", "signed"],
)
def test_the_authenticode_hash_is_that_of_pesign(pe: bytes, sha256: str, tmp_path: Path) -> None:
    # pesign 116: pesign --hash --digest_type=sha256 --in FILE
    hashes = measurements.read_pe(efi_file(pe)).authenticode()
    assert hashes["sha256"] == sha256
    assert len(hashes["sha384"]) == 96
    (tmp_path / "uki.efi").write_bytes(pe)
    assert measured_by_the_build(tmp_path / "uki.efi") == {
        name: value
        for bank in measurements.BANKS
        for name, value in {
            f"uki_{bank}": hashes[bank],
            f"pcr4_{bank}": measurements.pcr4([hashes], bank),
            f"pcr12_{bank}": measurements.extend(bank, ()),
        }.items()
    }


@pytest.mark.parametrize(
    ("block", "count", "root_hash"),
    [
        (512, 1, "56090c5649ebcd9393ad2e77d60b64c0a0587876b06864fc85afd207279975fc"),
        (512, 2, "ca5978e2a4db254b1ee5a7d04c1e3d0999326acd6640edab6e3ee1f696673246"),
        (512, 16, "32db771d57fd15d75dfd61984c8c9a288fc8e7f94bfb56e9d8023d29a10596da"),
        (512, 17, "3743f756ad0c3841120383373102df6462518acb833f0a945aaab782b9271805"),
        (512, 257, "6d64e59d8a1dce3dc73158a8dc4c46d10408a70db18d49c0d6e7197fba089356"),
        (4096, 129, "caa5b13067bc342b6860a578667f4e0a580fcac78dbed69cedcd80e26fc23e2b"),
    ],
)
def test_the_root_hash_is_that_of_veritysetup(block: int, count: int, root_hash: str) -> None:
    # veritysetup 2.8: veritysetup format --salt SALT --data-block-size N --hash-block-size N DATA HASH
    data = b"".join(hashlib.sha256(struct.pack("<I", at)).digest() * (block // 32) for at in range(count))
    own, tree = make_verity(data, block=block)
    assert own == root_hash  # also that of these tests' disks
    image = open_image(io.BytesIO(data.ljust(MIB, b"\0") + tree.ljust(MIB, b"\0")))
    partitions = [Partition(start, MIB, fat=False, efi=False, bios=False) for start in (0, MIB)]
    assert measurements._verity(image, *partitions) == root_hash


def test_pcr_4_is_extended_with_action_separator_and_programs() -> None:
    uki = {"sha256": "aa" * 32, "sha384": "bb" * 48}
    value = bytes(32)
    for event in (b"Calling EFI Application from Boot Option", bytes(4)):
        value = hashlib.sha256(value + hashlib.sha256(event).digest()).digest()
    assert measurements.pcr4([uki], "sha256") == hashlib.sha256(value + b"\xaa" * 32).hexdigest()
    assert len(measurements.pcr4([uki], "sha384")) == 96
    assert measurements.extend("sha384", ()) == "0" * 96


@pytest.mark.parametrize(
    ("bank", "measured"),
    [
        ("sha256", "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"),
        (
            "sha384",
            "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e357"
            "8ae72d04ecef661f272d59058b77af35",
        ),
    ],
)
def test_pcr_7_is_that_of_a_firmware_without_keys(bank: str, measured: str) -> None:
    # Read from a TPM after a boot with OVMF 2022.11, which has Secure Boot, but no keys.
    assert measurements.pcr7({"SecureBoot": b"\0"}, (), bank) == measured


# What the bytes say


def test_a_disk_has_root_hash_hashes_and_pcrs() -> None:
    disk = make_disk()
    found = measured(disk)
    uki = efi_files(open_image(io.BytesIO(disk)))["EFI/BOOT/BOOTX64.EFI"]
    hashes = measurements.read_pe(uki).authenticode()
    assert found.uki == "EFI/BOOT/BOOTX64.EFI"
    assert found.mount == "usr"
    assert found.command_line == f"console=ttyS0 usrhash={found.root_hash}"
    assert (found.uki_sha256, found.uki_sha384) == (hashes["sha256"], hashes["sha384"])
    assert found.pcrs("sha384") == {4: measurements.pcr4([hashes], "sha384"), 12: "0" * 96}
    assert (found.interactive, found.host_only, found.cluster) == (False, False, "")
    check_store(disk, found.root_hash)


@pytest.mark.parametrize(
    ("words", "interactive", "host_only", "cluster"),
    [
        ("vmsnix.interactive=1", True, False, ""),
        ("vmsnix.interactive", True, False, ""),
        ("vmsnix.interactive=0", False, False, ""),
        ("vmsnix.attests=host vmsnix.cluster=blue", False, True, "blue"),
    ],
)
def test_words_of_the_command_line_are_read(
    words: str, interactive: bool, host_only: bool, cluster: str
) -> None:
    found = measured(make_disk(words=words))
    assert (found.interactive, found.host_only, found.cluster) == (interactive, host_only, cluster)
    assert found.pcr4_sha384 != measured(make_disk()).pcr4_sha384


def test_each_changed_bit_of_a_uki_changes_its_hash_or_is_refused() -> None:
    parts = {
        ".text": b"\xf4" * 600,
        ".cmdline": b"console=ttyS0",
        ".linux": b"a kernel",
        ".initrd": b"an initrd",
    }
    content = make_pe(parts)
    before = measurements.read_pe(efi_file(content))
    assert before.certificates is not None
    ignored = {
        *range(before.checksum, before.checksum + 4),
        *range(before.certificates, before.certificates + 8),
    }
    inside = {at for one in before.sections for at in range(one.offset, one.offset + one.stored)}
    hashes = before.authenticode()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        try:
            after = measurements.read_pe(efi_file(bytes(changed))).authenticode()
        except ImageFormatError:
            assert at not in inside
        else:
            for bank in measurements.BANKS:
                assert (after[bank] == hashes[bank]) == (at in ignored), at


def test_another_store_changes_pcr_4() -> None:
    before, after = measured(make_disk()), measured(make_disk(store=b"a storf".ljust(129 * 4096, b".")))
    assert (before.pcr4_sha256, before.pcr4_sha384) != (after.pcr4_sha256, after.pcr4_sha384)


def test_a_boot_loader_before_the_uki_is_measured_first() -> None:
    disk = make_disk()
    with open_image(io.BytesIO(disk)) as image:
        uki = efi_files(image)["EFI/BOOT/BOOTX64.EFI"]
        content = uki.read(0, uki.size)
    loader = make_pe({".text": b"\xf4", ".sdmagic": b"#### LoaderInfo: systemd-boot 262 ####"})
    found = measured(make_disk(files={"EFI/BOOT/BOOTX64.EFI": loader, "EFI/Linux/nixos.efi": content}))
    both = [measurements.read_pe(efi_file(one)).authenticode() for one in (loader, content)]
    assert found.uki == "EFI/LINUX/NIXOS.EFI"
    assert found.pcr4_sha384 == measurements.pcr4(both, "sha384")
    with pytest.raises(ImageFormatError, match=r"NIXOS\.EFI, EFI/LINUX/OTHER\.EFI"):
        measure(
            make_disk(
                files={
                    "EFI/BOOT/BOOTX64.EFI": loader,
                    "EFI/Linux/nixos.efi": content,
                    "EFI/Linux/other.efi": content,
                }
            )
        )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"files": {"loader/credentials/a.cred": b"x"}}, r"also measures LOADER/CREDENTIALS/A\.CRED"),
        ({"files": {"loader/addons/a.addon.efi": b"x"}}, "LOADER/ADDONS"),
        ({"files": {"EFI/BOOT/BOOTX64.EFI.extra.d/a.efi": b"x"}}, r"BOOTX64\.EFI\.EXTRA\.D"),
        ({"sections": {".sdmagic": b"#### LoaderInfo: systemd-stub 257.13 ####"}}, "systemd-stub 257"),
        ({"sections": {".sdmagic": b"a stub"}}, "another stub"),
        ({"words": "roothash=" + "0" * 64}, "must have one root hash"),
        ({"words": "systemd.verity_usr_data=/dev/sdb"}, "selects other partitions"),
    ],
)
def test_an_image_whose_boot_measures_more_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ImageFormatError, match=problem):
        measure(make_disk(**change))  # type: ignore[arg-type]


def test_a_disk_with_two_efi_system_partitions_is_refused() -> None:
    disk = bytearray(make_disk())
    disk[1024 + 2 * 128 : 1024 + 2 * 128 + 16] = EFI_SYSTEM.bytes_le  # the type of the third partition
    with pytest.raises(ImageFormatError, match="The disk has 2 EFI system partitions"):
        measure(bytes(disk))


def test_of_two_entries_with_one_name_the_first_is_measured() -> None:
    disk = make_disk(files={"EFI/BOOT/BOOTX65.EFI": make_pe({".text": b"\xf4"})})
    for encoding in ("ascii", "utf-16-le"):
        disk = disk.replace("65.EFI".encode(encoding), "64.EFI".encode(encoding))
    disk = disk.replace(b"BOOTX65 EFI", b"BOOTX64 EFI")
    assert measured(disk).uki_sha256 == measured(make_disk()).uki_sha256


def test_more_files_than_are_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "MOST_FILES", 2)
    assert measure(make_disk()) is not None
    with pytest.raises(ImageFormatError, match="It has 2 files or more"):
        measure(make_disk(files={"EFI/a": b"", "EFI/b": b"", "loader/credentials/a.cred": b"x"}))


def test_other_disks_have_no_measurements() -> None:
    assert measure(bytes(4 * MIB)) is None
    assert measure(make_disk(files={"EFI/BOOT/BOOTX64.EFI": make_pe({".text": b"\xf4"})})) is None
    assert measure(make_disk(sections={".cmdline": b"console=ttyS0"})) is None


# The store


@pytest.mark.parametrize("at", [0, 100 * 4096 + 7, 129 * 4096 - 1], ids=["first", "middle", "last"])
def test_a_changed_bit_of_the_store_is_found(at: int) -> None:
    disk = bytearray(make_disk())
    root_hash = measured(bytes(disk)).root_hash
    start = disk.index(b"a store")
    disk[start + at] ^= 1
    with pytest.raises(ImageFormatError, match=rf"Block {at // 4096 // 128} of level 0 .* does not match"):
        check_store(bytes(disk), root_hash)
    assert measured(bytes(disk)).root_hash == root_hash  # PCR 4 names the root hash, not the store


def test_another_superblock_salt_or_root_hash_is_refused() -> None:
    disk = make_disk()
    root_hash = measured(disk).root_hash
    for offset, problem in ((0, "superblock is invalid"), (64, "superblock is invalid"), (88, "not match")):
        changed = bytearray(disk)
        changed[disk.index(b"verity\0\0") + offset] ^= 1
        with pytest.raises(ImageFormatError, match=problem):
            check_store(bytes(changed), root_hash)
    with pytest.raises(ImageFormatError, match="No partition has the UUID 00000000"):
        check_store(disk, "0" * 32 + root_hash[32:])
    assert SALT in disk


# Damage


def test_damage_never_raises_another_error() -> None:
    disk, choose = make_disk(), random.Random(1)
    start, tree = disk.index(b"MZ"), disk.index(b"verity\0\0")
    root_hash = measured(disk).root_hash
    for _ in range(60):
        changed = bytearray(disk)
        for _ in range(choose.randint(1, 6)):
            changed[choose.choice((start + choose.randrange(800), tree + choose.randrange(512)))] = (
                choose.choice((0, 1, 0x7F, 0xFF, choose.randrange(256)))
            )
        with suppress(ImageFormatError):
            measure(bytes(changed))
            check_store(bytes(changed), root_hash)


@pytest.mark.parametrize("length", [0, 63, 100, 400, 900])
def test_a_truncated_program_is_refused(length: int) -> None:
    with pytest.raises(ImageFormatError, match="cannot be predicted"):
        measurements.read_pe(efi_file(make_pe({".text": b"\xf4" * 600})[:length]))
