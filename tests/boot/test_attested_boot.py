"""Boots of attested images with a TPM: predicted measurements are measured, and each change is found.

``just test-attested`` runs all of them and keeps the output.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.boot.attested_image import measured_by_the_build
from tests.boot.attested_linux import MARK, READABLE, TOOLS, UNREADABLE, UP, Workshop, workshop
from tests.support import require, unavailable
from vmsnix_ops.boot import measurements, run, tpm
from vmsnix_ops.boot.machine import find_hardware
from vmsnix_ops.boot.run import boot
from vmsnix_ops.disk.firmware import efi_files
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.errors import BootFailedError, ImageFormatError, ToolMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.boot.machine import Hardware
    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.boot.run import SuccessfulBoot

KERNEL = (b"debian-kernel@lists.debian.org", b"debian-kernel@lists.debian.net")
"""A text of the kernel's header that no program reads, and another one."""

MEASURED = r"EFI stub: Measured initrd data into PCR 9"
"""The first line of the kernel: PCR 4 and 12 have their last values."""

VARIANTS: list[dict[str, Any]] = [
    *({"words": f"vmsnix.cluster=cluster-{number}"} for number in range(8)),
    {"words": "vmsnix.interactive=1"},
    {"words": "vmsnix.attests=host"},
    {"kernel": KERNEL},
    {"kernel": KERNEL, "words": "audit=0"},
    *({"initrd": bytes([number]) * 512} for number in range(1, 5)),
    *({"words": f"systemd.hostname={'x' * number}"} for number in (1, 100, 1000, 1900)),
]


@pytest.fixture(scope="module")
def made() -> Iterator[Workshop]:
    for tool in ("qemu-system", "qemu-img", "swtpm"):
        require(tool)
    with workshop() as found:
        yield found


def predicted(image: Path) -> Measurements:
    with open_image(image) as disk:
        found = measurements.measure(disk)
        assert found is not None
        return found


def booted(image: Path, prediction: Measurements | None, *, expect: str = UP) -> SuccessfulBoot:
    return boot(
        image,
        expect=expect,
        boot_mode="uefi",
        tpm=True,
        measurements=prediction,
        deadline=900,
        console=image.with_suffix(".log"),
    )


SNAKEOIL = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")
ENROLLED = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
"""Variables of Debian's firmware with a published key in PK, KEK and db."""


def read_variables(firmware: Path) -> dict[str, bytes]:
    """Return the UEFI variables in a file. Source: EDK2, ``AuthenticatedVariableFormat.h``."""
    content, found = firmware.read_bytes(), {}
    at = content.index(b"\xaa\x55\x3f")
    while content[at : at + 2] == b"\xaa\x55":
        name_bytes, data_bytes = struct.unpack_from("<II", content, at + 36)
        name, end = at + 60, at + 60 + name_bytes + data_bytes
        if content[at + 2] == 0x3F:  # not deleted
            text = content[name : name + name_bytes].decode("utf-16-le").rstrip("\0")
            found[text] = content[name + name_bytes : end]
        at = -(-end // 4) * 4
    return found


def flip(image: Path, at: int) -> None:
    """Change the lowest bit of one byte of a file."""
    with image.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.long(seconds=30, always=True)
def test_the_tpm_measures_what_was_predicted(made: Workshop, tmp_path: Path) -> None:
    image = made.make(tmp_path / "clean.raw")
    prediction = predicted(image)
    found = booted(image, prediction)
    console = found.console.read_text(errors="replace")
    for bank in measurements.BANKS:
        assert found.pcrs[bank][4] == prediction.pcrs(bank)[4]
        assert found.pcrs[bank][7] == measurements.pcr7({"SecureBoot": b"\0"}, (), bank)
        assert set(found.pcrs[bank][12]) == {"0"}
        # The machine itself reads the same values.
        assert f"PCR {bank} 4 {found.pcrs[bank][4].upper()}" in console
    assert READABLE in console
    assert re.search(r"/dev/mapper/usr /usr erofs ro,", console)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        pytest.param(".linux", KERNEL[0], marks=pytest.mark.long(seconds=30, always=True), id="kernel"),
        pytest.param(".initrd", b"", id="initrd"),
        pytest.param(".cmdline", b"panic=0", id="command line"),
    ],
)
@pytest.mark.long(seconds=30)
def test_a_changed_bit_of_the_uki_is_measured_and_refused(
    made: Workshop, tmp_path: Path, section: str, text: bytes
) -> None:
    image = made.make(tmp_path / "changed.raw")
    clean = predicted(image)
    with open_image(image) as disk:
        uki = efi_files(disk)[clean.uki]
        part = next(one for one in measurements.read_pe(uki).sections if one.name == section)
        text = text or uki.read(part.offset + part.length // 2, 64)
        assert text in uki.read(part.offset, part.length)
    flip(image, image.read_bytes().index(text) + len(text) - 1)
    changed = predicted(image)
    with pytest.raises(BootFailedError, match="measured something else than predicted") as caught:
        booted(image, clean, expect=MEASURED)
    assert f"is {changed.pcr4_sha256}, predicted {clean.pcr4_sha256}" in caught.value.why
    assert changed.pcr4_sha256 != clean.pcr4_sha256


@pytest.mark.long(seconds=40, always=True)
def test_a_changed_bit_of_the_store_is_an_input_output_error(made: Workshop, tmp_path: Path) -> None:
    image = made.make(tmp_path / "changed.raw")
    prediction = predicted(image)
    at = image.read_bytes().index(MARK * 100) + len(MARK) * 50
    flip(image, at)
    with open_image(image) as disk, pytest.raises(ImageFormatError, match="does not match its root hash"):
        measurements.check_store(disk, prediction.root_hash)
    found = booted(image, prediction, expect=UNREADABLE)  # the PCRs name the root hash, not the store
    assert "Input/output error" in found.console.read_text(errors="replace")


@pytest.mark.long(seconds=40)
def test_a_changed_bit_of_the_hashes_is_an_input_output_error(made: Workshop, tmp_path: Path) -> None:
    image = made.make(tmp_path / "changed.raw")
    prediction, content = predicted(image), image.read_bytes()
    # The hash of a block is the SHA-256 of the salt in the superblock, and of the block.
    superblock, block = content.index(b"verity\0\0\x01\0\0\0\x01"), content.index(MARK * 100) // 4096 * 4096
    (length,) = struct.unpack_from("<H", content, superblock + 80)
    salt = content[superblock + 88 : superblock + 88 + length]
    flip(image, content.index(hashlib.sha256(salt + content[block : block + 4096]).digest()))
    with open_image(image) as disk, pytest.raises(ImageFormatError, match="does not match its root hash"):
        measurements.check_store(disk, prediction.root_hash)
    # The changed block has the hashes of 128 blocks, also those of the first program.
    with pytest.raises(BootFailedError, match="Its kernel panicked"):
        booted(image, prediction, expect=READABLE)
    assert "Input/output error" in image.with_suffix(".log").read_text(errors="replace")


@pytest.mark.long(seconds=60)
def test_a_signed_uki_and_the_keys_of_secure_boot_are_measured_as_predicted(
    made: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SNAKEOIL.with_suffix(".key").exists() or not ENROLLED.exists():
        unavailable("ovmf", "there is no firmware with the key snakeoil")
    read_key = ["openssl", "rsa", "-passin", "pass:snakeoil", "-in", SNAKEOIL.with_suffix(".key")]
    key = subprocess.run(read_key, capture_output=True, check=True, timeout=60).stdout
    image = made.make(tmp_path / "signed.raw", key=key, certificate=SNAKEOIL.read_bytes())
    unsigned, prediction = predicted(made.make(tmp_path / "clean.raw")), predicted(image)

    def enrolled(*words: str) -> Hardware:
        hardware = find_hardware(*words)
        assert hardware.firmware is not None
        return replace(hardware, firmware=(hardware.firmware[0], ENROLLED))

    monkeypatch.setattr(run, "find_hardware", enrolled)
    found = booted(image, prediction)
    variables = read_variables(ENROLLED)
    assert {"PK", "KEK", "db"} <= set(variables)
    # The certificate that verified the UKI: the only one in db, after the header of its list (28 bytes).
    authority = ("db", variables["db"][28:])
    for bank in measurements.BANKS:
        expected = measurements.pcr7({**variables, "SecureBoot": b"\1"}, [authority], bank)
        assert found.pcrs[bank][7] == expected
        # A signature is no part of the hash.
        assert prediction.pcrs(bank) == unsigned.pcrs(bank)
    refused = booted(tmp_path / "clean.raw", None, expect="No bootable option or device was found")
    assert not re.search(MEASURED, refused.console.read_text(errors="replace"))


@pytest.mark.parametrize("number", range(len(VARIANTS)))
@pytest.mark.long(seconds=40)
def test_every_variant_is_measured_as_predicted(made: Workshop, tmp_path: Path, number: int) -> None:
    image = made.make(tmp_path / "variant.raw", **VARIANTS[number])
    prediction = predicted(image)
    found = booted(image, prediction, expect=MEASURED)
    print(f"variant {number}: {VARIANTS[number]}")
    for bank in measurements.BANKS:
        for pcr, value in prediction.pcrs(bank).items():
            print(f"{bank} PCR {pcr} predicted {value} measured {found.pcrs[bank][pcr]}")
            assert found.pcrs[bank][pcr] == value


@pytest.mark.long(seconds=60)
def test_other_programs_compute_the_same_hashes_of_every_variant(made: Workshop, tmp_path: Path) -> None:
    seen = set()
    work = TOOLS / "build" / tmp_path.name
    work.mkdir()
    try:
        for variant in ({}, *VARIANTS):
            image = made.make(tmp_path / "variant.raw", **variant)
            prediction = predicted(image)
            seen.add(prediction.pcr4_sha384)
            with open_image(image) as disk:
                uki = efi_files(disk)[prediction.uki]
                (work / "uki.efi").write_bytes(uki.read(0, uki.size))
                for name, unique in (
                    ("data", prediction.root_hash[:32]),
                    ("tree", prediction.root_hash[32:]),
                ):
                    found = next(
                        one
                        for one in measurements.read_gpt(disk)
                        if one.unique is not None and one.unique.hex == unique
                    )
                    (work / name).write_bytes(disk.read(found.start, found.size))
            inside = f"/build/{work.name}"
            run = ["chroot", str(TOOLS), "bash", "-c"]
            pesign = f"pesign --hash --digest_type=sha256 --in {inside}/uki.efi"
            verity = f"veritysetup verify {inside}/data {inside}/tree {prediction.root_hash}"
            printed = subprocess.run(
                [*run, f"{pesign} && {verity}"], capture_output=True, text=True, timeout=120, check=True
            ).stdout
            assert printed.split()[0] == prediction.uki_sha256
            built = measured_by_the_build(work / "uki.efi")
            assert built == {name: getattr(prediction, name) for name in built}
    finally:
        shutil.rmtree(work)
    assert len(seen) == 1 + len(VARIANTS)  # each variant has another PCR 4


@pytest.mark.long(seconds=20)
def test_two_builds_are_the_same_bit_for_bit(made: Workshop, tmp_path: Path) -> None:
    with workshop() as again:
        images = [one.make(tmp_path / f"{number}.raw") for number, one in enumerate((made, again))]
    first, second = (hashlib.sha256(image.read_bytes()).hexdigest() for image in images)
    assert first == second


def test_a_new_tpm_has_zeros_and_a_stopped_one_is_an_error() -> None:
    require("swtpm")
    with tpm.running_tpm() as chip:
        lengths = {"sha256": 64, "sha384": 96}
        assert chip.read() == {bank: dict.fromkeys(tpm.PCRS, "0" * n) for bank, n in lengths.items()}
        chip.control.unlink()
        with pytest.raises(BootFailedError, match="swtpm did not answer"):
            chip.read()
    assert not chip.control.parent.exists()


SLOW_SWTPM = """#!{python}
import os, socket, sys, time
path = sys.argv[-1].removeprefix("type=unixio,path=")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
time.sleep(0.3)
server.listen()
time.sleep(60)
"""


def test_a_tpm_is_used_when_it_accepts_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "swtpm"
    program.write_text(SLOW_SWTPM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with tpm.running_tpm() as chip, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(chip.control))


def test_an_image_with_a_tpm_needs_swtpm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="apt install swtpm"), tpm.running_tpm():
        pass


def test_a_boot_without_a_tpm_is_not_as_predicted() -> None:
    zeros = dict.fromkeys(("uki_sha256", "uki_sha384", "pcr4_sha256", "pcr4_sha384"), "0")
    prediction = measurements.Measurements(
        "0" * 64, "usr", "UKI", "", **zeros, pcr12_sha256="0", pcr12_sha384="0",
        interactive=False, host_only=False, cluster="",
    )  # fmt: skip
    with pytest.raises(BootFailedError, match=r"PCR 4 \(SHA256\) is nothing, because the machine has no TPM"):
        run._compare(Path("image"), prediction, {})
    pcrs = {bank: {4: "0", 12: "0"} for bank in measurements.BANKS}
    run._compare(Path("image"), prediction, pcrs)
    with pytest.raises(BootFailedError, match=r"PCR 12 \(SHA384\) is 0, predicted 1"):
        run._compare(Path("image"), replace(prediction, pcr12_sha384="1"), pcrs)
