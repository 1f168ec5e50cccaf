"""A Debian made as an attested NixOS: erofs store with dm-verity, root hash in a unified kernel image.

``.ci/attested_tools`` unpacks systemd-repart, ukify and veritysetup of a newer Debian. The kernel is that of
`tests.boot.small_linux`. The initrd has Debian's veritysetup and busybox; the machine prints its PCRs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.boot.small_linux import KERNEL, ROOT
from tests.support import unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = Path(os.environ.get("VMSNIX_ATTESTED_TOOLS", ROOT / ".cache/attested-tools"))
UP, READABLE, UNREADABLE = "attested linux is up", "the store is readable", "the store is not readable"
SEED = "6f1fbd1e-5c7c-4d3f-8d5c-1c1c1c1c1c1c"
MARK = b"data of the store 1234\n"
"""A line in a file of the store, which `report` reads."""
MODULES = ("reed_solomon", "dm-mod", "dm-bufio", "dm-verity", "libcrc32c", "erofs")

INIT = r"""#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin:/bin DM_DISABLE_UDEV=1
/bin/busybox mount -t proc proc /proc; busybox mount -t sysfs sysfs /sys; busybox mount -t devtmpfs dev /dev
for module in MODULES; do busybox insmod /modules/$module.ko; done
for word in $(busybox cat /proc/cmdline); do case $word in usrhash=*) hash=${word#usrhash=};; esac; done
id() { echo "$1" | busybox sed -E 's/(.{8})(.{4})(.{4})(.{4})(.{12})/\1-\2-\3-\4-\5/'; }
half=$(id $(echo $hash | busybox cut -c1-32))
until data=$(/usr/sbin/findfs PARTUUID=$half); do busybox sleep 0.2; done # the disk appears later
tree=$(/usr/sbin/findfs PARTUUID=$(id $(echo $hash | busybox cut -c33-64)))
busybox mount -t tmpfs -o nosuid,nodev root /sysroot
busybox mkdir -p /sysroot/usr /sysroot/proc /sysroot/sys /sysroot/dev
veritysetup open $data usr $tree $hash && busybox mount -t erofs -o ro /dev/mapper/usr /sysroot/usr ||
  echo "the store is not mounted"
for folder in proc sys dev; do busybox mount --move /$folder /sysroot/$folder; done
exec busybox switch_root /sysroot /usr/bin/busybox sh /usr/bin/report
"""
REPORT = r"""
for bank in sha256 sha384; do
  for number in 4 7 9 12; do
    echo "PCR $bank $number $(/usr/bin/busybox cat /sys/class/tpm/tpm0/pcr-$bank/$number)"
  done
done
/usr/bin/busybox grep ' /usr ' /proc/mounts
/usr/bin/busybox sha256sum /usr/share/data && echo "READABLE" || echo "UNREADABLE"
echo "UP"
while :; do /usr/bin/busybox sleep 60; done
"""
BUILD = r"""
set -euo pipefail
export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C TZ=UTC
cd "$1"
mkdir -p initrd/{bin,dev,modules,proc,sys,sysroot,usr} usr/{bin,share}
for link in lib lib64 sbin; do ln -s usr/$link initrd/$link; done
for program in /usr/sbin/veritysetup /usr/sbin/findfs; do
  for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
    install -D "$file" "initrd/usr/${file#/usr/}"
  done
done
cp /usr/bin/busybox initrd/bin/; cp /usr/bin/busybox report usr/bin/; cp data usr/share/
cp modules/* initrd/modules/; install init initrd/init
find initrd usr -exec touch -h -d @$SOURCE_DATE_EPOCH {} +
cd initrd
find . -print0 | sort -z | cpio --quiet --null -o -H newc --reproducible --owner 0:0 >../initrd.cpio
cd ..
zstd -q -T1 initrd.cpio -o initrd.zst
: >uki.efi
systemd-repart --empty=create --size=auto --offline=yes --seed=SEED --definitions=repart.d \
  --defer-partitions=esp --dry-run=no --json=short disk.raw >repart.json
"""
FINISH = r"""
set -euo pipefail
export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C TZ=UTC
cd "$1"
ukify build --linux=kernel --initrd=initrd.zst --cmdline=@cmdline --os-release=@os-release --uname=test \
  --stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub --output=uki.efi
if [ -e key.pem ]; then
  /usr/lib/systemd/systemd-sbsign sign --private-key=key.pem --certificate=certificate.pem \
    --output=signed.efi uki.efi
  mv signed.efi uki.efi
fi
systemd-repart --offline=yes --seed=SEED --definitions=repart.d --dry-run=no disk.raw
"""
PARTITIONS = {
    "00-esp.conf": "Type=esp\nFormat=vfat\nCopyFiles=WORK/uki.efi:/EFI/BOOT/BOOTX64.EFI\n",
    "10-usr-verity.conf": "Type=usr-verity\nVerity=hash\nVerityMatchKey=usr\nMinimize=best\n",
    "20-usr.conf": "Type=usr\nFormat=erofs\nVerity=data\nVerityMatchKey=usr\nMinimize=best\n"
    "CopyFiles=WORK/usr:/\n",
}


@dataclass(frozen=True)
class Workshop:
    """A store that was built once; images of it differ in their UKI."""

    folder: Path  # in `TOOLS`

    def make(
        self,
        path: Path,
        *,
        words: str = "",
        kernel: tuple[bytes, bytes] | None = None,
        initrd: bytes = b"",
        key: bytes = b"",
        certificate: bytes = b"",
    ) -> Path:
        """Write an image with these words in its command line, and return its path.

        `kernel` is a text of the kernel and its replacement; `initrd` is added to the initrd. The UKI is
        signed with `key`, a private key in PEM.
        """
        work = Path(tempfile.mkdtemp(dir=TOOLS / "build"))
        try:
            for name in ("disk.raw", "initrd.zst", "kernel", "os-release", "repart.json"):
                shutil.copy(self.folder / name, work)
            if kernel is not None:
                content = (work / "kernel").read_bytes()
                assert kernel[0] in content
                assert len(kernel[0]) == len(kernel[1])
                (work / "kernel").write_bytes(content.replace(*kernel))
            with (work / "initrd.zst").open("ab") as file:
                file.write(initrd)
            root_hash = (work / "repart.json").read_text().split('"roothash":"')[1][:64]
            line = f"console=ttyS0,115200 panic=0 loglevel=4 usrhash={root_hash} {words}".strip()
            (work / "cmdline").write_text(line)
            if key:
                (work / "key.pem").write_bytes(key)
                (work / "certificate.pem").write_bytes(certificate)
            (work / "uki.efi").touch()
            _write_partitions(work)
            _run(FINISH, work)
            shutil.copy(work / "disk.raw", path)
        finally:
            shutil.rmtree(work)
        return path


@contextmanager
def workshop(*, data: bytes = b"") -> Iterator[Workshop]:
    """Build store and initrd, and delete them afterwards; skip if a part is missing."""
    kernels = sorted(KERNEL.glob("boot/vmlinuz-*"))
    if not kernels or not TOOLS.is_dir() or os.geteuid():
        unavailable("attested-tools", f"there is no kernel in {KERNEL}, no {TOOLS}, or this user is not root")
    work = Path(tempfile.mkdtemp(dir=TOOLS / "build"))
    try:
        (work / "modules").mkdir()
        for name in MODULES:
            shutil.copy(next(KERNEL.glob(f"lib/modules/*/kernel/**/{name}.ko")), work / "modules")
        shutil.copy(kernels[-1], work / "kernel")
        texts = {
            "init": INIT.replace("MODULES", " ".join(MODULES)),
            "report": REPORT.replace("UNREADABLE", UNREADABLE)
            .replace("READABLE", READABLE)
            .replace("UP", UP),
            "os-release": "ID=debian\n",
        }
        for name, text in texts.items():
            (work / name).write_text(text)
        (work / "data").write_bytes(MARK * 4000 + data)
        _write_partitions(work)
        _run(BUILD, work)
        yield Workshop(work)
    finally:
        shutil.rmtree(work)


def _write_partitions(work: Path) -> None:
    inside = f"/{work.relative_to(TOOLS)}"
    (work / "repart.d").mkdir(exist_ok=True)
    for name, text in PARTITIONS.items():
        (work / "repart.d" / name).write_text("[Partition]\n" + text.replace("WORK", inside))


def _run(script: str, work: Path) -> None:
    inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" bash -c "$1" build "$2"'
    words = [TOOLS, script.replace("SEED", SEED), f"/{work.relative_to(TOOLS)}"]
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--propagation",
        "private",
        "sh",
        "-c",
        inside,
        *words,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
