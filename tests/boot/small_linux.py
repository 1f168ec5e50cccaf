"""A small real Linux on a bootable disk: Debian's kernel, and a busybox that runs its user data.

One FAT disk boots both ways: by BIOS (syslinux) and by UEFI (a unified kernel image). ``.ci/run`` unpacks the
kernel into ``.cache/test-linux`` (``just test-linux`` does the same).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support import require, unavailable

ROOT = Path(__file__).parents[2]
KERNEL = Path(os.environ.get("VMSNIX_TEST_LINUX", ROOT / ".cache/test-linux"))
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
MODULES = (  # in the order of their dependencies
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
OPTIONS = "console=ttyS0,115200 panic=0 quiet"
UP = "small linux is up"

INIT = r"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys
for module in MODULES; do insmod /modules/$module.ko; done
ip link set eth0 up
udhcpc -q -n -i eth0 -s /bin/configure >/dev/null
ask() { wget -q -O - --header "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/$1"; }
life='X-aws-ec2-metadata-token-ttl-seconds: 60'
printf "PUT /latest/api/token HTTP/1.1\r\n$life\r\nConnection: close\r\n\r\n" >/request
token=$(nc 169.254.169.254 80 </request | tail -n 1)
echo "instance $(ask meta-data/instance-id)"
echo "key $(ask meta-data/public-keys/0/openssh-key)"
wget -q -O - http://169.254.169.254/latest/meta-data/instance-id && echo "an answer without a token"
ask user-data >/user-data && sh /user-data
echo "UP"
while :; do sleep 60; done
"""
CONFIGURE = r"""#!/bin/sh
[ "$1" != bound ] || ip addr add "$ip/16" dev eth0
"""


def make_small_linux(folder: Path) -> Path:
    """Return a bootable raw disk; skip if a part of it is missing."""
    for tool in ("syslinux", "mcopy", "mkfs.vfat", "objcopy"):
        require(tool)
    kernels, busybox = sorted(KERNEL.glob("boot/vmlinuz-*")), Path("/bin/busybox")
    if not kernels or not busybox.exists() or not STUB.exists():
        unavailable("test-linux", f"there is no kernel in {KERNEL}, no static busybox, or no {STUB.name}")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        initrd = _initrd(Path(work), busybox)
        disk = folder / "small-linux.img"
        disk.touch()
        os.truncate(disk, 64 * 2**20)
        _run("mkfs.vfat", "-F", "16", disk)
        _run("syslinux", "--install", disk)
        settings = Path(work, "syslinux.cfg")
        settings.write_text(f"default linux\nlabel linux\nkernel linux\nappend initrd=initrd {OPTIONS}\n")
        _run("mmd", "-i", disk, "::EFI", "::EFI/BOOT")
        files = {kernels[-1]: "linux", initrd: "initrd", settings: "syslinux.cfg"}
        files[_unified(Path(work), kernels[-1], initrd)] = "EFI/BOOT/BOOTX64.EFI"
        for file, name in files.items():
            _run("mcopy", "-i", disk, file, f"::{name}")
    return disk


def _initrd(work: Path, busybox: Path) -> Path:
    root = work / "root"
    for name in ("bin", "dev", "proc", "sys", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in MODULES:
        shutil.copy(next(KERNEL.glob(f"lib/modules/*/kernel/**/{name}.ko")), root / "modules")
    scripts = {
        "init": INIT.replace("MODULES", " ".join(MODULES)).replace("UP", UP),
        "bin/configure": CONFIGURE,
    }
    for name, text in scripts.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    initrd = work / "initrd"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with initrd.open("wb") as file:
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            input=names.encode(),
            stdout=file,
            cwd=root,
            check=True,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )
    return initrd


def _unified(work: Path, kernel: Path, initrd: Path) -> Path:
    options, unified = work / "options", work / "unified.efi"
    options.write_bytes(OPTIONS.encode() + b"\0")
    sections = {".cmdline": (options, 0x30000), ".linux": (kernel, 0x2000000), ".initrd": (initrd, 0x4000000)}
    added = [
        word
        for name, (file, address) in sections.items()
        for word in ("--add-section", f"{name}={file}", "--change-section-vma", f"{name}={address:#x}")
    ]
    _run("objcopy", *added, STUB, unified)
    return unified


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, timeout=120)
