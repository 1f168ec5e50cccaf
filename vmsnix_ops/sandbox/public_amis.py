"""Some public AMIs of Amazon, and the public parameters that name them.

Every region has the same AMIs, as of 30 September 2026. Their disks are empty, their snapshots are public,
and their IDs differ from those on AWS. Sources: "Calling AMI public parameters in Parameter Store" of the
Systems Manager User Guide; recorded answers of DescribeImages and GetParametersByPath.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

AMAZON_ACCOUNT = "137112412989"
"""The account that publishes Amazon Linux. Its owner alias is ``amazon``."""

PUBLISHED = datetime(2026, 9, 30, 12, tzinfo=UTC)
PARAMETER_PATH = "/aws/service/ami-amazon-linux-latest/"
DISK_GIB = 8


@dataclass(frozen=True, slots=True)
class PublicImage:
    """An image of Amazon Linux. `parameters` are the names below `PARAMETER_PATH` that name it."""

    name: str
    description: str
    architecture: str
    volume_type: str
    boot_mode: str
    imds: str
    parameters: tuple[str, ...]

    def image_id(self, region: str) -> str:
        """Return its ID in a region."""
        return f"ami-0{self._digest(region)}"

    def snapshot_id(self, region: str) -> str:
        """Return the ID of its snapshot in a region."""
        return f"snap-0{self._digest(region)}"

    def _digest(self, region: str) -> str:
        return hashlib.sha256(f"{region} {self.name}".encode()).hexdigest()[:16]


def _amazon_linux_2023(architecture: str, kernel: str, *more: str, minimal: bool) -> PublicImage:
    version, small = "2023.12.20260930.0", "minimal-" if minimal else ""
    return PublicImage(
        name=f"al2023-ami-{small}{version}-kernel-{kernel}-{architecture}",
        description=f"Amazon Linux 2023 AMI {version} {architecture} {'Minimal ' if minimal else ''}HVM "
        f"kernel-{kernel}",
        architecture=architecture,
        volume_type="gp3",
        boot_mode="uefi" if architecture == "arm64" else "uefi-preferred",
        imds="v2.0",
        parameters=tuple(f"al2023-ami-{small}kernel-{word}-{architecture}" for word in (kernel, *more)),
    )


def _amazon_linux_2(architecture: str, kernel: str, *more: str) -> PublicImage:
    version, lts = "2.0.20260930.0", "LTS Arm64 " if architecture == "arm64" else ""
    name, text = (f"kernel-{kernel}-", f"Kernel {kernel} ") if kernel != "4.14" else ("", "")
    return PublicImage(
        name=f"amzn2-ami-{name}hvm-{version}-{architecture}-gp2",
        description=f"Amazon Linux 2 {lts}{text}AMI {version} {architecture} HVM gp2",
        architecture=architecture,
        volume_type="gp2",
        boot_mode="uefi" if architecture == "arm64" else "",
        imds="",
        parameters=tuple(f"amzn2-ami-{word}hvm-{architecture}-gp2" for word in (f"kernel-{kernel}-", *more)),
    )


PUBLIC_IMAGES = tuple(
    image
    for architecture in ("x86_64", "arm64")
    for image in (
        _amazon_linux_2023(architecture, "6.1", minimal=False),
        _amazon_linux_2023(architecture, "6.18", "default", minimal=False),
        _amazon_linux_2023(architecture, "6.1", minimal=True),
        _amazon_linux_2023(architecture, "6.18", "default", minimal=True),
        _amazon_linux_2(architecture, "4.14", ""),
        _amazon_linux_2(architecture, "5.10", "kernel-default-"),
    )
)
