"""The TPM of a boot test: swtpm, and the PCRs that it has after the boot.

The PCRs are read from swtpm by this process, not in the machine, so that no program of the image is trusted.
swtpm serves one client at a time, and QEMU stops it when it ends normally. So QEMU must be killed first.

Sources: ``swtpm(8)`` and swtpm's ``tpm_ioctl.h`` (control channel); "Trusted Platform Module Library", part
3, section 22.4 (TPM2_PCR_Read).
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import BootFailedError, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 30.0  # for swtpm to start, and for an answer
LONGEST_SOCKET = 100  # bytes of a socket's path; Linux allows 107
PCRS = (4, 7, 12)
"""PCRs that are read after a boot."""

_BANKS = {"sha256": 0x000B, "sha384": 0x000C}  # TPM_ALG_ID
_SET_DATA_FD, _NO_SESSIONS, _PCR_READ = 0x10, 0x8001, 0x017E


@dataclass(frozen=True, slots=True)
class Tpm:
    """A running swtpm."""

    control: Path  # its socket

    def options(self, device: str) -> list[str]:
        """Return QEMU's options for this TPM."""
        path = str(self.control).replace(",", ",,")
        return [
            *("-chardev", f"socket,id=tpm,path={path}", "-tpmdev", "emulator,id=tpm,chardev=tpm"),
            *("-device", f"{device},tpmdev=tpm"),
        ]

    def listens(self) -> bool:
        """Return whether swtpm accepts connections. Its socket exists a moment earlier."""
        with socket.socket(socket.AF_UNIX) as client:
            return not client.connect_ex(str(self.control))

    def read(self) -> dict[str, dict[int, str]]:
        """Return the PCRs by bank and number, in hexadecimal, after QEMU was killed.

        Raises a `BootFailedError` if swtpm does not answer, or has no such bank.
        """
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(SECONDS)
                control.connect(str(self.control))
                mine, theirs = socket.socketpair()
                with mine, theirs:
                    mine.settimeout(SECONDS)
                    socket.send_fds(control, [struct.pack(">I", _SET_DATA_FD)], [theirs.fileno()])
                    control.recv(4)  # its answer; without a channel, the next request fails
                    return {bank: {number: _pcr(mine, bank, number) for number in PCRS} for bank in _BANKS}
        except (OSError, struct.error) as error:
            raise BootFailedError(
                "The measurements of the boot could not be read.",
                why=f"swtpm did not answer: {error}.",
                fix="Check whether swtpm works on this machine, then boot the image again.",
            ) from error


def _pcr(channel: socket.socket, bank: str, number: int) -> str:
    selection = bytearray(3)
    selection[number // 8] |= 1 << number % 8
    body = struct.pack(">IHB", 1, _BANKS[bank], len(selection)) + selection
    channel.sendall(struct.pack(">HII", _NO_SESSIONS, 10 + len(body), _PCR_READ) + body)
    answer = channel.recv(4096)
    # tag, size, response code; update counter, the selection, number of digests, size of the digest
    code, digests = struct.unpack_from(">6xI", answer)[0], struct.unpack_from(">24xI", answer)[0]
    if code or digests != 1:
        raise OSError(f"it has no PCR {number} in {bank} (code {code:#x})")
    size = struct.unpack_from(">28xH", answer)[0]
    return answer[30 : 30 + size].hex()


@contextmanager
def running_tpm() -> Iterator[Tpm]:
    """Run swtpm with an empty TPM during the block; a ToolMissingError without swtpm."""
    program = find_program(
        "swtpm",
        why="The image needs a TPM (TpmSupport), and the boot test compares what it measures.",
        fix="Install it (nix shell nixpkgs#swtpm, or apt install swtpm), or skip the boot test.",
    )
    short = len(os.fsencode(tempfile.gettempdir())) < LONGEST_SOCKET - 40
    other = None if short else "/tmp"  # noqa: S108 - mkdtemp creates a private folder
    with tempfile.TemporaryDirectory(prefix="vmsnix-tpm-", dir=other) as folder:
        tpm = Tpm(Path(folder, "control"))
        state = ["--tpm2", "--tpmstate", f"dir={folder}", "--flags", "startup-clear"]
        started = subprocess.Popen(
            [program, "socket", *state, "--ctrl", f"type=unixio,path={tpm.control}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with started:
            try:
                until = time.monotonic() + SECONDS
                while not tpm.listens() and started.poll() is None and time.monotonic() < until:
                    time.sleep(0.02)
                yield tpm
            finally:
                with suppress(ProcessLookupError):
                    started.kill()
