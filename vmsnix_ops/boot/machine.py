"""The virtual machine of a boot test: QEMU, accelerator, firmware and command line.

It is similar to EC2: the disk is NVMe, the console is the first serial port, and the network reaches only the
metadata service. The machine writes to a temporary overlay, so the image never changes.

Sources: QEMU's ``qemu(1)`` (``-netdev user``, ``restrict``, ``guestfwd``) and ``docs/interop/firmware.json``.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops.boot import metadata as boot_metadata
from vmsnix_ops.errors import BootFailedError, ImageError, ToolMissingError, find_program

if TYPE_CHECKING:
    from collections.abc import Iterable

Accelerator = Literal["kvm", "tcg"]

QEMU_FORMATS = {"vhd": "vpc", "raw": "raw", "qcow2": "qcow2", "vhdx": "vhdx", "vmdk": "vmdk"}
"""QEMU's names of the formats in `vmsnix_ops.disk.formats`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The names of a processor architecture in QEMU, on hosts and in Debian."""

    qemu: str
    machine: str
    kvm_hosts: tuple[str, ...]
    debian: str
    tpm: str  # QEMU's TPM device


ARCHITECTURES = {
    "x86_64-linux": Architecture(
        "x86_64", "q35,graphics=off", ("x86_64", "amd64"), "qemu-system-x86", "tpm-crb"
    ),
    "aarch64-linux": Architecture(
        "aarch64", "virt", ("aarch64", "arm64"), "qemu-system-arm", "tpm-tis-device"
    ),
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """A virtual machine that can run on this host."""

    program: str
    architecture: Architecture
    accelerator: Accelerator  # "kvm", or "tcg" for emulation, which is five to twenty times slower
    why: str  # reason for emulation; empty with KVM
    firmware: tuple[Path, Path] | None  # code and variables template of a UEFI firmware; None for a BIOS


def find_hardware(system: str, boot_mode: str, accelerator: str) -> Hardware:
    """Return the virtual machine for an image on this host.

    ``legacy-bios`` boots with a BIOS, all other boot modes with UEFI. The accelerator ``auto`` is KVM if it
    is available.
    """
    if system not in ARCHITECTURES:
        raise ImageError(
            f"An image for {system or 'an unknown system'} cannot be booted.",
            why=f"vmsnix can boot images for {' and '.join(ARCHITECTURES)}.",
            fix="Build the image for one of them, or pass its system with --system.",
        )
    architecture = ARCHITECTURES[system]
    emulator = f"qemu-system-{architecture.qemu}"
    program = find_program(
        emulator,
        f"The image is for {system}, but {emulator} is not installed on this machine.",
        why="The boot test runs the image in QEMU.",
        fix=f"Install it (nix shell nixpkgs#qemu, or apt install {architecture.debian}), or skip the boot "
        "test.",
    )
    why = _why_no_kvm(architecture)
    if why and accelerator == "kvm":
        raise ToolMissingError(
            "KVM is not available.",
            why=why,
            fix="Use a machine with KVM, or --accelerator auto, which emulates and is slow.",
        )
    if accelerator == "tcg":
        why = "emulation was requested"
    firmware = None if boot_mode == "legacy-bios" else _find_firmware(program, architecture)
    return Hardware(program, architecture, "tcg" if why else "kvm", why, firmware)


def _why_no_kvm(architecture: Architecture) -> str:
    """Return why KVM cannot run this architecture on this host; empty if it can."""
    host = platform.machine().lower()
    if host not in architecture.kvm_hosts:
        return f"this machine is {host}, but the image is for {architecture.qemu}"
    if not Path("/dev/kvm").exists():
        return "this machine has no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "this user may not use /dev/kvm"
    return ""


def _find_firmware(program: str, architecture: Architecture) -> tuple[Path, Path]:
    """Return code and variables template of a UEFI firmware without Secure Boot on this host."""
    beside = Path(program).resolve().parent.parent / "share/qemu"
    folders = [Path("/etc/qemu"), beside, Path("/usr/local/share/qemu"), Path("/usr/share/qemu")]
    descriptions = {
        file.name: file for folder in reversed(folders) for file in folder.glob("firmware/*.json")
    }
    found = [
        _firmware(json.loads(file.read_text(encoding="utf-8")), architecture)
        for _, file in sorted(descriptions.items())
    ]
    for pair in found:
        if pair is not None and all(path.is_file() for path in pair):
            return pair
    raise ToolMissingError(
        f"The image boots with UEFI, but there is no UEFI firmware for {architecture.qemu} on this machine.",
        why=f"No firmware is described in {', '.join(str(folder / 'firmware') for folder in folders)}.",
        fix="Install it (Debian: ovmf, or qemu-efi-aarch64; in nixpkgs QEMU includes it).",
    )


def _firmware(description: dict[str, Any], architecture: Architecture) -> tuple[Path, Path] | None:
    """Return the two files of a firmware, if it has the architecture and no Secure Boot."""
    fits = any(target.get("architecture") == architecture.qemu for target in description.get("targets", ()))
    mapping = description.get("mapping", {})
    special = {"requires-smm", "enrolled-keys", "amd-sev-es", "amd-sev-snp", "intel-tdx"} & {
        *description.get("features", ())
    }
    if not fits or special or mapping.get("device") != "flash" or "nvram-template" not in mapping:
        return None
    return Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"])


def make_overlay(image: Path, image_format: str, folder: Path) -> Path:
    """Create a qcow2 overlay for the machine's writes, so that the image does not change."""
    program = find_program(
        "qemu-img",
        why="The boot test uses it to create an overlay, so that the image does not change.",
        fix="Install it (nix shell nixpkgs#qemu-utils, or apt install qemu-utils).",
    )
    overlay = folder / "overlay.qcow2"
    # As JSON, so that QEMU does not interpret characters of the path.
    backing = {"driver": image_format, "file": {"driver": "file", "filename": str(image.absolute())}}
    options = ["-q", "-f", "qcow2", "-F", image_format, "-b", f"json:{json.dumps(backing)}"]
    done = subprocess.run(
        [program, "create", *options, str(overlay)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        raise BootFailedError(
            f"{image.name} cannot be booted.",
            why=f"qemu-img reported: {done.stderr.strip().removeprefix('qemu-img: ') or done.returncode}.",
            fix="Build the image again, or check whether another program has locked it.",
        )
    return overlay


def command(hardware: Hardware, overlay: Path, metadata: Path, *, folder: Path) -> list[str]:
    """Return QEMU's command line.

    `metadata` is the input file of `vmsnix_ops.boot.metadata`; `folder` gets the firmware's variables.
    """
    service = shlex.join([sys.executable, "-I", "-S", boot_metadata.__file__, str(metadata)])
    network = (
        "user,id=network,restrict=on,ipv6=off,net=169.254.0.0/16,host=169.254.0.1,dhcpstart=169.254.0.10,"
        f"guestfwd=tcp:{boot_metadata.ADDRESS}:80-cmd:{_quoted(service)}"
    )
    return [
        hardware.program,
        *("-name", "vmsnix-boot-test", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-machine", hardware.architecture.machine, "-accel", hardware.accelerator),
        *("-cpu", "host" if hardware.accelerator == "kvm" else "max"),
        *("-m", "1024", "-smp", "2", "-display", "none", "-monitor", "none"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-drive", f"if=none,id=root,format=qcow2,cache=unsafe,file={_quoted(str(overlay))}"),
        *("-device", "nvme,drive=root,serial=vol0123456789abcdef0,bootindex=0"),
        *("-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile="),
        *("-device", "virtio-rng-pci"),
        *_firmware_options(hardware, folder),
    ]


def _firmware_options(hardware: Hardware, folder: Path) -> Iterable[str]:
    if hardware.firmware is None:
        return
    code, template = hardware.firmware
    variables = shutil.copy(template, folder / "variables.fd")
    yield from ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_quoted(str(code))}")
    yield from ("-drive", f"if=pflash,unit=1,format=raw,file={_quoted(str(variables))}")


def _quoted(text: str) -> str:
    return text.replace(",", ",,")
