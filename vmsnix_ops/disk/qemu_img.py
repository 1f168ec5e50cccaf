"""Runs ``qemu-img``, with bounds: its memory is limited, and it never outlives the call.

QEMU's own probing is never used. The format is always given, and the file always as a file, so that nothing
in a name or in an image can make ``qemu-img`` open something else.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import ImageError, ImageFormatError, ToolMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEMORY_LIMIT = 2 << 30
"""Bytes of address space that ``qemu-img`` may use. It needs less than half; a damaged image wants more."""


def image_options(kind: str, path: Path) -> list[str]:
    """Return the arguments that name an image and its format, whatever characters its path holds."""
    filename = str(path.absolute()).replace(",", ",,")
    return ["--image-opts", f"driver={kind},file.driver=file,file.filename={filename}"]


def lines(arguments: Sequence[str], *, name: str, kind: str, accepted: Sequence[int] = (0,)) -> Iterator[str]:
    """Run ``qemu-img`` and yield the lines that it prints, as they come.

    Parameters
    ----------
    arguments
        Its arguments, verb first.
    name, kind
        What to call the image in errors, and its format.
    accepted
        Exit statuses that are no error.

    Raises
    ------
    ToolMissingError
        ``qemu-img`` is not installed.
    ImageFormatError
        ``qemu-img`` refuses the image; its own words are the reason.
    ImageError
        There is no room for its output, or another program holds the image.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise ToolMissingError(
            f"{name} is a {kind} image, and qemu-img is not on this machine.",
            why="Only VHD and raw images are read without it.",
            cure="Install it (nix shell nixpkgs#qemu-utils, or apt install qemu-utils), or build a VHD.",
        )
    environment = {**os.environ, "LC_ALL": "C"}
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=environment,
        )
        with process:
            try:
                _limit_memory(process.pid)
                yield from process.stdout or ()
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
        if status not in accepted:
            complaints.seek(0)
            _refuse(complaints.read(20_000).decode(errors="replace"), status, name, kind)


def _limit_memory(pid: int) -> None:
    """Bound the address space of a program that has just started (it may be over already), on Linux."""
    if sys.platform != "linux":
        return
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except ProcessLookupError:
        return


def _refuse(complaint: str, status: int, name: str, kind: str) -> None:
    """Raise the error that fits what ``qemu-img`` said."""
    said = complaint.strip().split("\n")[0].removeprefix("qemu-img: ")
    why = f"qemu-img says: {said.rstrip('.') or f'nothing, and ended with status {status}'}."
    if "No space left" in complaint or "File too large" in complaint:
        cure = "Make room, or set TMPDIR to a folder with as much free space as the image holds data."
        raise ImageError(f"There is no room in {temporary_folder()} to unpack {name}.", why=why, cure=cure)
    if re.search("Failed to get .*lock", complaint):
        cure = "Stop the machine that runs from this image, or copy the image first."
        raise ImageError(f"{name} is in use by another program.", why=why, cure=cure)
    raise ImageFormatError(
        f"{name} is not a sound {kind} image: qemu-img refuses it.",
        why=why,
        cure="Build the image again, or copy it again from where it came from.",
        field="as named by qemu-img",
    )


def temporary_folder() -> Path:
    """Return the folder for large temporary files: ``TMPDIR``, else ``/var/tmp`` (``/tmp`` may be memory)."""
    large = Path("/var/tmp")  # noqa: S108 - only a fresh private folder is made in it
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK):
        return large
    return Path(tempfile.gettempdir())
