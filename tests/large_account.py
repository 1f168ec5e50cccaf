"""Fill an account with thousands of AMIs, without thousands of calls, for the tests and benchmarks.

Each AMI has a snapshot of its own, and most have the tags of vmsnix. By default, one AMI in twenty has a
reference: an instance, a launch template, an Auto Scaling group with a launch configuration, or a parameter.
The same seed creates the same account.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.demo import Filler
from vmsnix_ops.sandbox.ec2.networks import DEFAULT_REGIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmsnix_ops.sandbox import Sandbox
    from vmsnix_ops.sandbox.core import SandboxTables

REGIONS = (*DEFAULT_REGIONS, "af-south-1", "ap-east-1", "me-south-1")
"""Twenty regions. An account must opt in to the last three."""

TEMPLATE_VERSIONS = 3
# Snapshots share a few block maps, because their content is never read.
CONTENTS = [dict.fromkeys(range(size), bytes(32)) for size in (300, 1500, 4000, 9000)]


@dataclass(frozen=True)
class FilledAccount:
    """How many AMIs and snapshots were created, and how many of the AMIs have a reference."""

    amis: int
    snapshots: int
    referenced: int


def populate(
    aws: Sandbox,
    *,
    regions: Sequence[str] = REGIONS,
    amis: int = 5000,
    referenced_one_in: int = 20,
    orphans: Sequence[str] = (),
) -> FilledAccount:
    """Fill regions of the sandbox's account.

    Each region gets `amis` AMIs, and a snapshot without an AMI for each name in `orphans`.
    """
    with aws.state.lock:
        made = fill(
            aws.state.tables,
            aws.account,
            regions=regions,
            amis=amis,
            referenced_one_in=referenced_one_in,
            orphans=orphans,
        )
    aws.state.mark_changed()
    return made


def fill(
    tables: SandboxTables,
    account: str,
    *,
    regions: Sequence[str] = REGIONS,
    amis: int = 5000,
    referenced_one_in: int = 20,
    orphans: Sequence[str] = (),
    seed: int = 0,
) -> FilledAccount:
    """Fill regions of an account, which is opted in to them."""
    referenced = 0
    for region in regions:
        tables.table(account, "", "opted_in_regions")[region] = True
        filler = Filler(tables, account, f"{seed} {region}", datetime.now(UTC))
        found = [add_ami(filler, region, number) for number in range(amis)][::referenced_one_in]
        for number, ami_id in enumerate(found):
            add_reference(filler, region, number, ami_id)
        referenced += len(found)
        for name in orphans:
            made = filler.now - timedelta(hours=filler.random.uniform(1, 24 * 900))
            filler.add_snapshot(region, 8, made, description="", tags={"Name": name}, blocks=CONTENTS[0])
    return FilledAccount(amis * len(regions), (amis + len(orphans)) * len(regions), referenced)


def add_ami(filler: Filler, region: str, number: int) -> str:
    digest = f"{filler.random.getrandbits(256):064x}"
    image = ("ecs-node", "gc-fwd", "actions-runner", "web")[number % 4]
    made = filler.now - timedelta(hours=filler.random.uniform(1, 24 * 900))
    name = f"altf4llc-{image}-26.11.{number}-x86_64-linux-{digest[:8]}"
    tags = {
        "Name": name,
        "vmsnix:image": image,
        "vmsnix:digest": digest,
        "vmsnix:run": f"{made:%Y%m%dT%H%M%SZ}-publish-ami-{digest[:6]}",
        "vmsnix:version": f"26.11.{number}",
        "vmsnix:flake": f"github:acme/images/{digest[:40]}",
    }
    if number % 50 == 7:
        tags = {}
    imported = f"Created by AWS-VMImport service for import-snap-0{digest[:16]}"
    blocks = filler.random.choice(CONTENTS)
    snapshot = filler.add_snapshot(region, 8, made, description=imported, tags=tags, blocks=blocks)
    ami = filler.add_image(
        name,
        snapshot,
        made,
        description=f"NixOS image {image}",
        imds="v2.0" if number % 10 else "",
        tags=dict(tags),
        permissions=[{"Group": "all"}] if number % 1000 == 13 else [],
        last_launched=made + timedelta(hours=1) if number % 3 == 0 else None,
    )
    return ami.image_id


def add_reference(filler: Filler, region: str, number: int, ami_id: str) -> None:
    if number % 4 == 0:
        filler.add_instance(region, ami_id, 2)
    elif number % 4 == 1:
        filler.add_template(region, f"nodes-{number}", [ami_id] * TEMPLATE_VERSIONS)
    elif number % 4 == 2:
        filler.add_configuration(region, f"old-{number}", ami_id)
    else:
        filler.add_parameter(region, f"/vmsnix/seeded-{number}/stable", [(filler.now, ami_id)])
