"""Boot an image in QEMU, and wait for a line on its serial console.

The machine writes to an overlay, so the image and its digest do not change. Its network has only EC2's
metadata service with instance ID, user data and a key. The serial console is saved. The boot succeeds if the
expected line appears before the deadline.

>>> from vmsnix_ops.boot import run
>>> run.boot("result/nixos.vhd").seconds  # doctest: +SKIP
21.4
"""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vmsnix_ops import files
from vmsnix_ops.boot import machine as boot_machine
from vmsnix_ops.boot.console import BootConsole, ConsoleMatch
from vmsnix_ops.boot.machine import Accelerator, Hardware, find_hardware
from vmsnix_ops.boot.measurements import BANKS
from vmsnix_ops.boot.tpm import running_tpm
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.qemu import temporary_folder
from vmsnix_ops.errors import BootFailedError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import BufferedReader

    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.boot.tpm import Tpm

EXPECT = r"login:|Reached target .*(Multi-User System|multi-user\.target)"
"""Pattern of a line that NixOS prints on its console after the boot."""

DEADLINE_SECONDS = {"kvm": 300.0, "tcg": 1800.0}
SILENCE_SECONDS, AFTERWARDS_SECONDS = 2.0, 10.0  # for the trace after a panic

EXTRA_SECONDS = 5.0  # after the deadline, until `timeout` stops QEMU
LONGEST_READ = 65_536
ACCELERATORS = ("auto", "kvm", "tcg")
BOOT_SIGNATURE = b"\x55\xaa"
KVM_FAILED = re.compile(rb"KVM internal error[^\n]*|kvm run failed[^\n]*")
"""QEMU's message when KVM cannot run the guest. QEMU then pauses the guest and does not end."""
INSTANCE = "i-00000000000000000"
FIX = "Check the whole console, correct the image, and build it again."


@dataclass(frozen=True, slots=True)
class SuccessfulBoot:
    """A successful boot."""

    line: str
    seconds: float  # duration from QEMU's start to that line
    # "kvm", or "tcg" and the reason for emulation.
    accelerator: Accelerator
    why: str
    console: Path  # file with the console
    requests: tuple[tuple[str, str, int], ...]  # requests to the metadata service: method, path, status
    # PCRs of the TPM by bank and number; empty without a TPM.
    pcrs: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


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
    console: Path = Path("console.log"),
    tpm: bool = False,
    measurements: Measurements | None = None,
    on_message: Callable[[str], None] = lambda _text: None,
) -> SuccessfulBoot:
    """Boot an image and wait for a line on its serial console that matches `expect`.

    Terminal colours are removed before the comparison. The deadline is by default 300 s with KVM and 1800 s
    without. `console` gets the output; it is the only file that is written, so the function is safe to
    repeat. With `tpm` the machine has a TPM (swtpm), which must have measured `measurements` after the boot.

    Raises a `BootFailedError` with the last 40 lines of the console if the deadline passed, the machine
    stopped or panicked, or the TPM measured something else.
    """
    path, pattern = Path(image), check_options(expect, accelerator)
    hardware = find_hardware(system, boot_mode, accelerator)
    image_format = _check_format(path, boot_mode)

    def attempt(hardware: Hardware) -> SuccessfulBoot:
        on_message(f"QEMU with {hardware.accelerator}{f': {hardware.why}' if hardware.why else ''}")
        seconds = DEADLINE_SECONDS[hardware.accelerator] if deadline is None else deadline
        with tempfile.TemporaryDirectory(prefix="vmsnix-boot-", dir=temporary_folder()) as folder:
            place = Path(folder)
            overlay = boot_machine.make_overlay(path, boot_machine.QEMU_FORMATS[image_format], place)
            metadata, log = _metadata(place, user_data, public_key)
            command = boot_machine.command(hardware, overlay, metadata, folder=place)
            files.make_folder(console.parent)
            with (
                running_tpm() if tpm else nullcontext() as chip,
                BootConsole(console, pattern) as text,
                _running([*command, *_tpm_options(chip, hardware)], seconds) as machine,
            ):
                started, complaints = time.monotonic(), bytearray()
                found = _read_console(machine, text, started + seconds, complaints)
                took = time.monotonic() - started
                if found is None or found.kind == "failed":
                    raise _failure(path, console, found, machine, text, seconds, complaints)
                pcrs = _read_pcrs(chip, machine)
            requests = tuple(tuple(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines())
        if measurements is not None:
            _compare(path, measurements, pcrs)
        return SuccessfulBoot(found.line, took, hardware.accelerator, hardware.why, console, requests, pcrs)

    try:
        return attempt(hardware)
    except _NotStartedError as error:
        # Some hosts, mostly virtual machines, have a /dev/kvm that does not work.
        if hardware.accelerator == "tcg" or accelerator == "kvm":
            raise BootFailedError(error.what, why=error.why, fix=error.fix) from None
        return attempt(replace(hardware, accelerator="tcg", why=f"KVM failed ({error.why})"))


def _tpm_options(chip: Tpm | None, hardware: Hardware) -> list[str]:
    return chip.options(hardware.architecture.tpm) if chip is not None else []


def _read_pcrs(chip: Tpm | None, machine: subprocess.Popen[bytes]) -> dict[str, dict[int, str]]:
    """Kill QEMU, and return the PCRs of its TPM; empty without a TPM."""
    if chip is None:
        return {}
    # QEMU and `timeout` are one process group. A QEMU that ends by itself stops the TPM.
    os.killpg(machine.pid, signal.SIGKILL)
    machine.wait()
    return chip.read()


def _compare(path: Path, predicted: Measurements, pcrs: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse an image whose boot measured something else than predicted."""
    for bank in BANKS:
        for number, value in predicted.pcrs(bank).items():
            found = pcrs.get(bank, {}).get(number, "nothing, because the machine has no TPM")
            if found != value:
                raise BootFailedError(
                    f"{path.name} booted, but its TPM measured something else than predicted.",
                    why=f"PCR {number} ({bank.upper()}) is {found}, predicted {value}.",
                    fix="Do not publish it. Report the firmware and systemd of the image: their measurements "
                    "are not the documented ones.",
                )


class _NotStartedError(BootFailedError):
    """QEMU ended with an error before the console printed anything, or KVM could not run the guest."""


def _check_format(path: Path, boot_mode: str) -> str:
    """Return the format of an image; refuse a legacy-bios image without a boot sector."""
    with open_image(path) as disk:
        if boot_mode == "legacy-bios" and disk.read(510, 2) != BOOT_SIGNATURE:
            raise BootFailedError(
                f"{path.name} cannot boot.",
                why="Its boot mode is legacy-bios, but its first sector is not a boot sector: it does not "
                "end with 55 aa.",
                fix="Use the boot mode that it was built for (uefi?), or build it with a boot loader.",
            )
        return disk.format


def check_options(expect: str, accelerator: str) -> re.Pattern[str]:
    """Return the compiled expression; refuse one that matches an empty line, and an unknown accelerator."""
    if accelerator not in ACCELERATORS:
        raise ParameterError(f"Invalid accelerator {accelerator!r}: use {', '.join(ACCELERATORS)}.")
    try:
        pattern = re.compile(expect)
    except re.error as error:
        raise ParameterError(
            f"Invalid regular expression {expect!r} for the console.",
            why=f"Python's re reported: {error}.",
            fix="Correct it. Put a backslash before a literal .^$*+?{}[]\\|().",
        ) from error
    if pattern.search(""):
        raise ParameterError(
            f"The regular expression {expect!r} for the console matches an empty line.",
            why="Every image would pass.",
            fix="Use a text that appears only when the machine is up.",
        )
    return pattern


def _metadata(folder: Path, user_data: str, public_key: str) -> tuple[Path, Path]:
    """Write the input file of the metadata service; return it and the log of the requests."""
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
    content = {"pages": pages, "secret": secrets.token_hex(32), "log": str(log)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file, log


@contextmanager
def _running(command: list[str], seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU during the block.

    ``timeout`` ends QEMU some seconds after the deadline, also if this process was killed. QEMU has its own
    session, so that Ctrl-C reaches only this process, which then ends QEMU.
    """
    timeout = shutil.which("timeout")
    before = [timeout, "--kill-after=5", f"{seconds + EXTRA_SECONDS}"] if timeout else []
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
                machine.terminate()  # `timeout` passes the signal on to QEMU
                try:
                    machine.wait(10)
                except subprocess.TimeoutExpired:
                    machine.kill()


def _read_console(
    machine: subprocess.Popen[bytes], console: BootConsole, until: float, complaints: bytearray
) -> ConsoleMatch | None:
    """Read until a match, the end of the output or the deadline; after a failure until the output pauses.

    QEMU's messages are added to `complaints`; the reading also ends when one of them is `KVM_FAILED`.
    """
    found: ConsoleMatch | None = None
    silence = float("inf")
    output, errors = cast("BufferedReader", machine.stdout), cast("BufferedReader", machine.stderr)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        selector.register(errors, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and (ready := selector.select(min(left, silence))):
            streams = [key.fileobj for key, _ in ready]
            if errors in streams:
                message = errors.read1(LONGEST_READ)
                complaints += message
                if KVM_FAILED.search(complaints):
                    return found
                if not message:
                    selector.unregister(errors)
            if output not in streams:
                continue
            data = output.read1(LONGEST_READ)
            if not data:
                return found
            match = console.feed(data)
            if match is not None and found is None:
                found = match
                if match.kind == "expected":
                    return match
                until, silence = min(until, time.monotonic() + AFTERWARDS_SECONDS), SILENCE_SECONDS
    return found


def _failure(
    image: Path,
    saved: Path,
    found: ConsoleMatch | None,
    machine: subprocess.Popen[bytes],
    console: BootConsole,
    seconds: float,
    complaints: bytearray,
) -> BootFailedError:
    """Return the error for a failure on the console, a stopped machine, or a missed deadline."""
    what, fix = f"{image.name} did not boot.", f"{FIX} It is in {saved}."
    if found is not None:
        why = f"{found.meaning[0].upper()}{found.meaning[1:]}: {found.line.strip()}."
    elif failed := KVM_FAILED.search(complaints):
        why = f"QEMU reported: {failed[0].decode(errors='replace')}."
        return _NotStartedError(what, why=why, fix="Use --accelerator tcg, which emulates and is slow.")
    elif not _ended(machine):
        why = f"The expected line did not appear within {seconds:.0f} s."
    elif machine.returncode:
        rest = machine.stderr.read() if machine.stderr else b""
        output = (complaints + rest).decode(errors="replace").strip()
        message = output.splitlines()[-1] if output else "no message"
        why = f"QEMU ended with status {machine.returncode}: {message}"
        if not console.bytes:
            return _NotStartedError(what, why=why, fix="Check whether QEMU works on this machine.")
    else:
        why = "The machine shut down or rebooted before the expected line."
    return BootFailedError(what, why=why, fix=fix, console=console.tail())


def _ended(machine: subprocess.Popen[bytes]) -> bool:
    """Return whether QEMU has ended or is ending: its output closes before the process ends."""
    try:
        machine.wait(0.5)
    except subprocess.TimeoutExpired:
        return False
    return True
