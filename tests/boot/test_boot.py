"""Boots in QEMU: success, failures, and that the image never changes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.small_linux import UP, make_small_linux
from tests.disk.images import qemu_make
from tests.support import DEADLINE, require, wait_until
from vmsnix_ops.boot import console, machine
from vmsnix_ops.boot.run import boot
from vmsnix_ops.disk.sample import MESSAGE, make_sample_image
from vmsnix_ops.errors import BootFailedError, ImageError, ParameterError, ToolMissingError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAbc operator@example"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for large temporary files; the tests check that it is empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.chdir(tmp_path)
    for tool in ("qemu-system", "qemu-img"):
        require(tool)
    return folder


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_linux(tmp_path_factory.mktemp("linux"))


def sample(folder: Path, kind: str = "vhd") -> Path:
    made = make_sample_image(folder, format=kind)  # type: ignore[arg-type]
    return next(path for path in made.iterdir() if path.is_file())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["vhd", "vhd-fixed", "raw", "qcow2", "vmdk"])
@pytest.mark.variants(quick=2, seconds=1)
def test_an_image_of_every_format_boots_and_is_not_written(
    tmp_path: Path, temporary: Path, kind: str
) -> None:
    if kind in ("qcow2", "vmdk"):
        image = qemu_make(tmp_path / "disk", sample(tmp_path / "raw", "raw"), kind)
    else:
        image = sample(tmp_path / "an image, 'quoted'", kind)
    before = digest(image)
    booted = boot(image, expect=re.escape(MESSAGE), deadline=60)
    assert MESSAGE in booted.line
    assert MESSAGE in booted.console.read_text()
    assert digest(image) == before
    assert list(temporary.iterdir()) == []


@pytest.mark.long(seconds=15)
def test_linux_fetches_its_instance_id_key_and_user_data(linux: Path) -> None:
    before = digest(linux)
    data = "echo the answer is $((6 * 7)) >/dev/console\n"
    booted = boot(linux, expect=UP, user_data=data, public_key=KEY, deadline=120)
    console = booted.console.read_text(errors="replace")
    assert "instance i-00000000000000000" in console
    assert f"key {KEY}" in console
    assert "the answer is 42" in console
    assert "an answer without a token" not in console
    assert ("PUT", "/latest/api/token", 200) in booted.requests
    assert ("GET", "/latest/meta-data/instance-id", 401) in booted.requests
    assert ("GET", "/latest/user-data", 200) in booted.requests
    assert digest(linux) == before


@pytest.mark.long(seconds=10)
def test_linux_boots_with_uefi(linux: Path) -> None:
    booted = boot(linux, expect=UP, boot_mode="uefi", deadline=120)
    assert ("GET", "/latest/user-data", 404) in booted.requests


@pytest.mark.long(seconds=7)
def test_a_kernel_panic_fails_the_boot_at_once(linux: Path) -> None:
    with pytest.raises(BootFailedError, match=r"Its kernel panicked: .*Kernel panic - not syncing") as caught:
        boot(linux, expect=UP, user_data="echo c >/proc/sysrq-trigger\n", deadline=600)
    assert any(
        "end Kernel panic" in line for line in caught.value.console
    )  # the trace after the panic is saved, too


@pytest.mark.long(seconds=6)
def test_a_machine_that_shuts_down_fails_the_boot_at_once(linux: Path) -> None:
    with pytest.raises(BootFailedError, match="shut down or rebooted"):
        boot(linux, expect=UP, user_data="poweroff -f\n", deadline=600)


def test_an_image_that_never_boots_ends_at_the_deadline(tmp_path: Path, temporary: Path) -> None:
    # Emulated: it prints its message in 0.2 s, and with the KVM of some virtual machines in 7 s.
    with pytest.raises(BootFailedError, match="did not appear within 4 s") as caught:
        boot(sample(tmp_path / "sample"), expect="a line that never comes", deadline=4, accelerator="tcg")
    assert MESSAGE in caught.value.console[-1]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("lines", ["tr -d '\\n'", pytest.param("cat", marks=pytest.mark.long(seconds=15))])
@pytest.mark.long(seconds=6)
def test_the_saved_console_has_a_maximum_size(
    linux: Path, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "KEPT_BYTES", 50_000)
    flood = f"yes | head -c 200000 | {lines}\npoweroff -f\n"
    with pytest.raises(BootFailedError, match="shut down or rebooted") as caught:
        boot(linux, expect=UP, user_data=flood, deadline=600, console=Path("flood.log"))
    assert len(caught.value.console) == 40
    assert sum(line.strip("y") == "" for line in caught.value.console) > 20
    assert len(str(caught.value)) < 100_000
    assert Path("flood.log").stat().st_size < 50_000 + 41 * console.LONGEST_LINE


def test_a_disk_without_a_boot_sector_is_refused_before_anything_starts(tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(2**20))
    with pytest.raises(BootFailedError, match=r"not a boot sector.*boot mode"):
        boot(empty)


@pytest.mark.long(seconds=8)
def test_firmware_without_a_boot_device_fails_the_boot(tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(2**20))
    with pytest.raises(BootFailedError, match="Its firmware found no boot device"):
        boot(empty, boot_mode="uefi", deadline=120)


def test_a_missing_qemu_is_an_error_with_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = sample(tmp_path / "sample")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolMissingError, match=r"qemu-system-x86_64 is not installed on this machine.*apt install"
    ):
        boot(image)


def test_an_image_of_another_architecture_names_its_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = sample(tmp_path / "sample")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolMissingError, match=r"for aarch64-linux, but qemu-system-aarch64 .* qemu-system-arm"
    ):
        boot(image, system="aarch64-linux")
    with pytest.raises(ImageError, match=r"riscv64-linux cannot be booted.*x86_64-linux and aarch64-linux"):
        boot(image, system="riscv64-linux")


def test_requested_kvm_is_not_replaced_by_emulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_why_no_kvm", lambda _: "this machine has no /dev/kvm")
    with pytest.raises(ToolMissingError, match=r"KVM is not available.*no /dev/kvm.*auto"):
        boot(sample(tmp_path / "sample"), accelerator="kvm")


# What QEMU does where /dev/kvm exists and does not work: it ends at once, or it prints its message about the
# first instruction and the guest stands still (QEMU's accel/kvm/kvm-all.c).
BROKEN_KVM = {
    "no vmx": "echo no vmx >&2; exit 1",
    "KVM internal error. Suberror: 1": "echo BIOS; echo KVM internal error. Suberror: 1 >&2; exec sleep 60",
    "kvm run failed Bad address": "echo error: kvm run failed Bad address >&2; exec sleep 60",
}


@pytest.mark.parametrize("message", BROKEN_KVM)
def test_a_kvm_that_fails_is_replaced_by_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    real = shutil.which("qemu-system-x86_64")
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *"-accel kvm"*) {BROKEN_KVM[message]};; esac\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "_why_no_kvm", lambda _: "")
    image, messages = sample(tmp_path / "sample"), list[str]()
    booted = boot(image, expect=re.escape(MESSAGE), on_message=messages.append)
    assert booted.accelerator == "tcg"
    assert message in booted.why
    assert messages[0] == "QEMU with kvm"
    assert message in messages[1]
    with pytest.raises(BootFailedError, match=message):
        boot(image, expect=re.escape(MESSAGE), accelerator="kvm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expect": "login: ["}, "Invalid regular expression"),
        ({"expect": ".*"}, "matches an empty line"),
        ({"accelerator": "hvf"}, "Invalid accelerator 'hvf'"),
    ],
)
def test_invalid_expressions_are_refused(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        boot(sample(tmp_path / "sample"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_qemu_ends_with_the_test(tmp_path: Path, temporary: Path, number: signal.Signals) -> None:
    image = sample(tmp_path / "sample")
    seconds = 600 if number == signal.SIGINT else 2
    script = f"from vmsnix_ops.boot.run import boot; boot({str(image)!r}, expect='never', deadline={seconds})"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: bool(machines(temporary)))
        process.send_signal(number)
        process.wait(DEADLINE)
        wait_until(lambda: not machines(temporary))
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert list(temporary.iterdir()) == []


def machines(folder: Path) -> list[int]:
    """Return the processes with the folder in their command line, except `qemu-img`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = entry.joinpath("cmdline").read_bytes()
        except OSError:
            continue  # the process has ended
        if str(folder).encode() in words and b"qemu-system" in words:
            found.append(int(entry.name))
    return found
