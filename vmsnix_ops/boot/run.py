"""Boots an image in QEMU, before anybody else boots it.

The machine runs on an overlay, so the image is never written, and its digest stays what it is. It has no
network but EC2's metadata service, which serves instance ID, user data and a key. What it says on its serial
console is kept as evidence, and decides: the boot is good when the expected line appears before the deadline.

>>> from vmsnix_ops.boot import run
>>> run.boot("result/nixos.vhd").seconds  # doctest: +SKIP
21.4
"""

from __future__ import annotations

import json
import re
import secrets
import selectors
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.boot import machine as boot_machine
from vmsnix_ops.boot.console import Console, Finding
from vmsnix_ops.boot.machine import Accelerator, Hardware, find_hardware
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.qemu import temporary_folder
from vmsnix_ops.errors import BootFailedError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXPECT = r"login:|Reached target .*(Multi-User System|multi-user\.target)"
"""What a NixOS image says on its console when it is up."""

DEADLINE_SECONDS = {"kvm": 300.0, "tcg": 1800.0}
SILENCE_SECONDS, AFTERWARDS_SECONDS = 2.0, 10.0  # to hear what follows a panic: the trace says why
GRACE_SECONDS = 5.0
LONGEST_READ = 65_536
ACCELERATORS = ("auto", "kvm", "tcg")
BOOT_SIGNATURE = b"\x55\xaa"
INSTANCE = "i-00000000000000000"
FIX = "Check the whole console, correct the image, and build it again."


@dataclass(frozen=True, slots=True)
class Booted:
    """A boot that went well.

    Attributes
    ----------
    line
        The line of the console that was waited for.
    seconds
        From QEMU's start to that line.
    accelerator, why
        ``"kvm"``, or ``"tcg"`` and why it had to be emulated.
    console
        The console, as it came.
    requests
        What the machine asked of the metadata service: method, path, status.
    """

    line: str
    seconds: float
    accelerator: Accelerator
    why: str
    console: Path
    requests: tuple[tuple[str, str, int], ...]


def boot(
    image: Path | str,
    *,
    expect: str = EXPECT,
    system: str = "x86_64-linux",
    boot_mode: str = "legacy-bios",
    user_data: str = "",
    public_key: str = "",
    deadline: float | None = None,
    accelerator: str = "auto",
    memory_mib: int = 1024,
    cores: int = 2,
    console: Path | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Booted:
    """Boot an image and wait for a line on its serial console.

    Safe to repeat: nothing is written but `console`.

    Parameters
    ----------
    image
        A disk image of any format that `vmsnix_ops.disk.formats.open_image` reads.
    expect
        Regular expression for the line, searched in every line without terminal colours.
    system, boot_mode
        What the image is for, as its ``image-info.json`` says.
    user_data, public_key
        What the metadata service serves; none when empty.
    deadline
        Seconds; by default 300 with KVM and 1800 without.
    accelerator
        ``"kvm"``, ``"tcg"``, or ``"auto"``: KVM where it works.
    memory_mib, cores
        Size of the machine.
    console
        Where the console is kept; ``console.log`` in the working directory by default.
    on_message
        Told what the operator should know while it runs.

    Raises
    ------
    vmsnix_ops.errors.BootFailedError
        The deadline passed, the machine stopped or panicked; it carries the console's last 40 lines.
    vmsnix_ops.errors.ToolMissingError
        QEMU, its firmware, or the KVM that was asked for is not on this machine.
    vmsnix_ops.errors.ImageError
        The image is damaged, or for a system that EC2 does not have.
    vmsnix_ops.errors.ParameterError
        The expression or the accelerator cannot be right.
    """
    path, wanted = Path(image), check(expect, accelerator)
    hardware = find_hardware(system, boot_mode, accelerator)
    guest = _Guest(
        path,
        _format_of(path, boot_mode),
        wanted,
        user_data,
        public_key,
        deadline,
        memory_mib,
        cores,
        console or Path("console.log"),
        on_message or (lambda _text: None),
    )
    try:
        return _attempt(guest, hardware)
    except _NotStartedError as error:
        # Some machines (nested ones, mostly) have a /dev/kvm that does not work.
        if hardware.accelerator == "tcg" or accelerator == "kvm":
            raise BootFailedError(error.what, why=error.why, fix=error.fix) from None
        return _attempt(guest, replace(hardware, accelerator="tcg", why=f"KVM failed ({error.why})"))


class _NotStartedError(BootFailedError):
    """QEMU ended with an error before the machine said a word."""


@dataclass(frozen=True, slots=True)
class _Guest:
    """What `boot` was asked for."""

    path: Path
    format: str
    expect: re.Pattern[str]
    user_data: str
    public_key: str
    deadline: float | None
    memory_mib: int
    cores: int
    console: Path
    tell: Callable[[str], None]


def _attempt(guest: _Guest, hardware: Hardware) -> Booted:
    """Boot once."""
    guest.tell(f"QEMU with {hardware.accelerator}{f': {hardware.why}' if hardware.why else ''}")
    seconds = DEADLINE_SECONDS[hardware.accelerator] if guest.deadline is None else guest.deadline
    with tempfile.TemporaryDirectory(prefix="vmsnix-boot-", dir=temporary_folder()) as folder:
        place = Path(folder)
        overlay = boot_machine.make_overlay(guest.path, boot_machine.QEMU_FORMATS[guest.format], place)
        metadata, log = _metadata(place, guest.user_data, guest.public_key)
        command = boot_machine.command(
            hardware, overlay, metadata, memory_mib=guest.memory_mib, cores=guest.cores, folder=place
        )
        files.make_folder(guest.console.parent)
        with Console(guest.console, guest.expect) as heard, _running(command, seconds) as machine:
            started = time.monotonic()
            found = _listen(machine.stdout, heard, started + seconds)  # type: ignore[arg-type]  # a pipe
            took = time.monotonic() - started
            if found is None or found.kind == "failed":
                raise _failure(guest, found, machine, heard, seconds)
        requests = tuple(tuple(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines())
    return Booted(found.line, took, hardware.accelerator, hardware.why, guest.console, requests)


def _format_of(path: Path, boot_mode: str) -> str:
    """Return the format of an image that may boot; refuse one that has no boot sector and wants one."""
    with open_image(path) as disk:
        if boot_mode == "legacy-bios" and disk.read(510, 2) != BOOT_SIGNATURE:
            raise BootFailedError(
                f"{path.name} cannot boot.",
                why="Its boot mode is legacy-bios, but its first sector is not a boot sector: it does not "
                "end with 55 aa.",
                fix="Use the boot mode that it was built for (uefi?), or build it with a boot loader.",
            )
        return disk.format


def check(expect: str, accelerator: str) -> re.Pattern[str]:
    """Return the expression, compiled; refuse one that cannot be waited for, and an unknown accelerator.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The expression or the accelerator cannot be right.
    """
    if accelerator not in ACCELERATORS:
        raise ParameterError(f"Invalid accelerator {accelerator!r}: use {', '.join(ACCELERATORS)}.")
    try:
        wanted = re.compile(expect)
    except re.error as error:
        raise ParameterError(
            f"Invalid regular expression {expect!r} for the console.",
            why=f"Python's re reported: {error}.",
            fix="Correct it. Put a backslash before a literal .^$*+?{}[]\\|().",
        ) from error
    if wanted.search(""):
        raise ParameterError(
            f"The regular expression {expect!r} for the console matches an empty line.",
            why="Every image would pass.",
            fix="Use a text that appears only when the machine is up.",
        )
    return wanted


def _metadata(folder: Path, user_data: str, public_key: str) -> tuple[Path, Path]:
    """Write what the metadata service is told; return that file and the log of its requests."""
    pages = {
        "meta-data/ami-id": "ami-00000000000000000",
        "meta-data/hostname": "vmsnix-boot-test",
        "meta-data/instance-id": INSTANCE,
        "meta-data/instance-type": "qemu",
        "meta-data/local-hostname": "vmsnix-boot-test",
        "meta-data/local-ipv4": "169.254.0.10",
        "meta-data/placement/availability-zone": "us-east-1a",
        "meta-data/placement/region": "us-east-1",
        "dynamic/instance-identity/document": json.dumps({"instanceId": INSTANCE, "region": "us-east-1"}),
        **({"user-data": user_data} if user_data else {}),
        **({"meta-data/public-keys/0/openssh-key": public_key} if public_key else {}),
    }
    file, log = folder / "metadata.json", folder / "requests"
    log.touch()
    told = {"pages": pages, "secret": secrets.token_hex(32), "log": str(log)}
    file.write_text(json.dumps(told), encoding="utf-8")
    return file, log


@contextmanager
def _running(command: list[str], seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU for the length of the block.

    ``timeout`` stands between, so that the machine ends some seconds after its deadline also when this
    process was killed and cannot end it. A session of its own: Ctrl-C is for this process, which then ends
    the machine.
    """
    guard = shutil.which("timeout")
    before = [guard, "--kill-after=5", f"{seconds + GRACE_SECONDS}"] if guard else []
    machine = subprocess.Popen(
        [*before, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with machine:
        try:
            yield machine
        finally:
            if machine.poll() is None:
                machine.terminate()  # `timeout` passes it on; QEMU ends at once
                try:
                    machine.wait(10)
                except subprocess.TimeoutExpired:
                    machine.kill()


def _listen(output: IO[bytes], console: Console, until: float) -> Finding | None:
    """Read until a line decides, the output ends, or the time is over; after a failure also until silence."""
    found: Finding | None = None
    silence = float("inf")
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and selector.select(min(left, silence)):
            data = output.read1(LONGEST_READ)  # type: ignore[attr-defined]  # a buffered reader
            if not data:
                return found
            seen = console.feed(data)
            if seen is not None and found is None:
                found = seen
                if seen.kind == "expected":
                    return seen
                until, silence = min(until, time.monotonic() + AFTERWARDS_SECONDS), SILENCE_SECONDS
    return found


def _failure(
    guest: _Guest, found: Finding | None, machine: subprocess.Popen[bytes], heard: Console, seconds: float
) -> BootFailedError:
    """Say why: what the machine said itself, that it stopped, or that nothing came in time."""
    what, fix = f"{guest.path.name} did not boot.", f"{FIX} It is in {guest.console}."
    if found is not None:
        why = f"{found.meaning[0].upper()}{found.meaning[1:]}: {found.line.strip()}."
    elif not _ended(machine):
        why = f"The expected line did not appear within {seconds:.0f} s."
    elif machine.returncode:
        said = (machine.stderr.read() if machine.stderr else b"").decode(errors="replace").strip()
        why = (
            f"QEMU ended with status {machine.returncode}: {said.splitlines()[-1] if said else 'no message'}"
        )
        if not heard.bytes:
            return _NotStartedError(what, why=why, fix="Check whether QEMU works on this machine.")
    else:
        why = "The machine shut down or rebooted before the expected line."
    return BootFailedError(what, why=why, fix=fix, console=heard.tail())


def _ended(machine: subprocess.Popen[bytes]) -> bool:
    """Whether QEMU has ended, or ends now: its output closes a moment before it does."""
    try:
        machine.wait(0.5)
    except subprocess.TimeoutExpired:
        return False
    return True
