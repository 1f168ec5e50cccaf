"""Some public AMIs of Amazon, and the public parameters that name them.

``public_amis.tsv`` has the AMIs of 30 September 2026, which are the same in every region. Their disks are
empty, their snapshots are public, and their IDs differ from those on AWS. Sources: "Calling AMI public
parameters in Parameter Store" of the Systems Manager User Guide; recorded answers of DescribeImages and
GetParametersByPath.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def _public_images() -> Iterator[PublicImage]:
    text = files(__package__).joinpath("public_amis.tsv").read_text("ascii")
    for line in text.splitlines()[1:]:
        name, description, architecture, volume_type, boot_mode, imds, parameters = line.split("\t")
        facts = (name, description, architecture, volume_type, boot_mode, imds)
        yield PublicImage(*facts, tuple(parameters.split(" ")))


PUBLIC_IMAGES = tuple(_public_images())
