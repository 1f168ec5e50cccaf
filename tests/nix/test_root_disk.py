"""GRUB's disk: udev's rule, the preparation of GRUB's installation, and GRUB itself, in a small real Linux.

A machine boots Debian's kernel from a virtio or NVMe disk, beside a second disk with the same file system.
udev and the shell run what ``profiles/amazon.nix`` contains, GRUB is installed to the link, and the disk then
boots by itself.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.boot.small_linux import KERNEL, MODULES
from tests.support import DEADLINE, require, unavailable

PROFILES = Path(__file__).parents[2] / "nix/modules/profiles"
GRUB = KERNEL / "grub"
PROGRAMS = ("bash", "ln", "ls", "mkdir", "readlink", "rm", "sleep", "stat", "sync")
BLOCK_MODULES = [*(name for name in MODULES if "net" not in name and name != "failover"), "virtio_blk"]
START, SECTORS = 2048, 120 * 2048
# On EC2, a rule of amazon-ec2-utils makes the name of the AMI's root device a link to an NVMe disk.
SDA1 = 'KERNEL=="nvme0n1", SYMLINK+="sda1"\n'
INITRD = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in MODULES; do insmod /modules/$module.ko; done
for disk in ROOT; do mount -t ext4 /dev/$disk /root && break; done
mount --move /dev /root/dev; mount --move /proc /root/proc; mount --move /sys /root/sys
exec switch_root /root /bin/bash /machine
"""
MACHINE = r"""
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
ln -s /proc/self/fd /dev/fd
echo "before udev: $(PREPARE
ls -l /dev/vmsnix-root-disk)"
rm -f /dev/vmsnix-root-disk
mkdir -p /run/udev
systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle
echo "udev: $(readlink -f /dev/vmsnix-root-disk); sda1: $(readlink /dev/sda1)"
PREPARE
echo "prepared: $(readlink -f /dev/vmsnix-root-disk)"
mkdir -p /boot/grub /tmp/install
ln -s /boot /tmp/install/boot
settings='serial --unit=0 --speed=115200\nterminal_output serial\n'
printf "${settings}echo 'GRUB is started'\nsleep 60\n" >/boot/grub/grub.cfg
grub-install --recheck --root-directory=/tmp/install --target=i386-pc "$(readlink -f /dev/vmsnix-root-disk)"
echo "grub-install: $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def setting(name: str) -> str:
    """Return the text of a setting of the profile, with the script's path on the test's machine."""
    text = (PROFILES / "amazon.nix").read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(name)} = ''\n(.*?)\n      '';", text, re.DOTALL)
    assert found, name
    shown = found[1]
    for part, value in (
        ("rootDisk", "/root-disk"),
        ("rootDiskLink", "vmsnix-root-disk"),
        ("pkgs.coreutils", ""),
    ):
        shown = shown.replace(f"${{{part}}}", value)
    assert "${" not in shown
    return shown


def copy(program: str, tree: Path) -> None:
    """Copy a program and its libraries."""
    beside = GRUB / "usr/lib/x86_64-linux-gnu"
    places = [GRUB / folder / program for folder in ("bin", "usr/bin", "usr/sbin", "usr/lib/grub/i386-pc")]
    path = next((place for place in places if place.exists()), None) or Path(require(program))
    libraries = subprocess.run(
        ["ldd", path],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
        env={"LD_LIBRARY_PATH": f"{beside}:{GRUB}/lib/x86_64-linux-gnu", "PATH": "/usr/bin:/bin"},
    ).stdout
    shutil.copy(path, tree / "bin" / program)
    for library in re.findall(r"(?:=> )?(/\S+) \(0x", libraries):
        folder = tree / ("lib64" if "ld-linux" in library else "lib/x86_64-linux-gnu")
        shutil.copy(library, folder / Path(library).name)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with kernel, initial RAM disk and a disk without a boot loader."""
    for tool in ("qemu-system", "mkfs.ext4", "ldd"):
        require(tool)
    kernels = sorted(KERNEL.glob("boot/vmlinuz-*"))
    if not kernels or not GRUB.exists() or not Path("/bin/busybox").exists():
        unavailable("test-linux", f"there is no kernel or GRUB in {KERNEL}, or no static busybox")
    folder = tmp_path_factory.mktemp("root-disk")
    shutil.copy(kernels[-1], folder / "kernel")
    tree = folder / "tree"
    for name in (
        "bin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "boot",
        "etc/udev/rules.d",
        "lib64",
        "lib/x86_64-linux-gnu",
    ):
        (tree / name).mkdir(parents=True)
    for link in ("sbin", "usr/bin", "usr/sbin"):
        (tree / link).parent.mkdir(exist_ok=True)
        (tree / link).symlink_to("/bin")
    for program in (*PROGRAMS, "udevadm", "grub-install", "grub-bios-setup", "grub-probe"):
        copy(program, tree)
    (tree / "bin/systemd-udevd").symlink_to("udevadm")
    (tree / "bin/sh").symlink_to("bash")
    shutil.copytree(GRUB / "usr/lib/grub/i386-pc", tree / "usr/lib/grub/i386-pc")
    script = tree / "root-disk"
    script.write_text("#!/bin/bash\n" + (PROFILES / "root-disk.sh").read_text())
    script.chmod(0o755)
    (tree / "etc/udev/rules.d/99-local.rules").write_text(SDA1 + setting("services.udev.extraRules") + "\n")
    (tree / "machine").write_text(
        MACHINE.replace("PREPARE", setting("boot.loader.grub.extraPrepareConfig").strip())
    )
    disk = folder / "disk"
    entry = struct.pack("<B3sB3sII", 0x80, b"\0" * 3, 0x83, b"\0" * 3, START, SECTORS)
    disk.write_bytes(b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa")
    with disk.open("r+b") as file:
        file.truncate((START + SECTORS) * 512)
    options = ["-q", "-F", "-L", "nixos", "-d", tree, "-E", f"offset={START * 512}"]
    subprocess.run(["mkfs.ext4", *options, disk, f"{SECTORS // 2}k"], check=True, timeout=DEADLINE)
    ram = folder / "ram"
    for name in ("bin", "dev", "proc", "sys", "root", "modules"):
        (ram / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", ram / "bin")
    for name in BLOCK_MODULES:
        shutil.copy(next(KERNEL.glob(f"lib/modules/*/kernel/**/{name}.ko")), ram / "modules")
    (ram / "init").write_text(INITRD.replace("MODULES", " ".join(BLOCK_MODULES)))
    (ram / "init").chmod(0o755)
    return folder


def initrd(parts: Path, folder: Path, root: str) -> Path:
    shutil.copytree(parts / "ram", folder / "ram")
    init = folder / "ram/init"
    init.write_text(init.read_text().replace("ROOT", root))
    names = "\n".join(str(path.relative_to(folder / "ram")) for path in sorted((folder / "ram").rglob("*")))
    with (folder / "initrd").open("wb") as file:
        command = ["/bin/busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(
            command, input=names.encode(), stdout=file, cwd=folder / "ram", check=True, timeout=DEADLINE
        )
    return folder / "initrd"


def run(*options: str, until: str = "") -> str:
    """Return the console of a machine until it ends, or until a text appears."""
    command = [
        require("qemu-system"),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-machine",
        "q35,graphics=off",
    ]
    command += ["-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-serial", "stdio", *options]
    shown = ""
    with subprocess.Popen(
        ["timeout", f"{DEADLINE:.0f}", *command], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as machine:
        assert machine.stdout is not None
        for line in machine.stdout:  # ends: `timeout` ends QEMU
            shown += line
            if until and until in line:
                machine.terminate()
                break
    return shown


DISKS = {
    "virtio": ("virtio-blk-pci,drive={0},serial={0}", "vda1", "/dev/vda"),
    "nvme with the link sda1": ("nvme,drive={0},serial={0}", "nvme0n1p1", "/dev/nvme0n1"),
}


@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("kind", DISKS)
def test_grub_is_installed_to_the_disk_of_the_root_file_system(
    tmp_path: Path, parts: Path, kind: str
) -> None:
    device, partition, disk = DISKS[kind]
    drives = []
    for name in ("first", "second"):
        shutil.copy(parts / "disk", tmp_path / name)
        drives += ["-drive", f"if=none,id={name},format=raw,file={tmp_path / name}"]
        drives += ["-device", device.format(name)]
    options = ["-kernel", str(parts / "kernel"), "-initrd", str(initrd(parts, tmp_path, partition))]
    console = run(*options, "-append", "console=ttyS0 quiet panic=-1", *drives)
    assert f"vmsnix-root-disk -> {disk}" in console, console
    assert f"udev: {disk}; sda1: {'nvme0n1' if 'nvme' in kind else ''}" in console
    assert f"prepared: {disk}" in console
    assert "grub-install: 0" in console
    assert (tmp_path / "second").read_bytes() == (parts / "disk").read_bytes()
    boot = [
        "-drive",
        f"if=none,id=first,format=raw,file={tmp_path / 'first'}",
        "-device",
        device.format("first"),
    ]
    assert "GRUB is started" in run(*boot, until="GRUB is started")
