"""Rebuild a published audit of a real account: 138 AMIs, 12 referenced, 115 unreferenced, 1.9 TB.

Eleven AMIs are in neither group, and the audit does not explain them. We assume that their usage is unknown:
other accounts may launch them, or somebody launched them recently and left no reference. The fixture is built
like this.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.account import OTHER_ACCOUNT, REGION, Owner
from tests.large_account import populate
from tests.support import require
from vmsnix_ops.audit import inventory, views
from vmsnix_ops.audit.rules import evaluate

if TYPE_CHECKING:
    from vmsnix_ops.audit.inventory import Inventory

AMIS, REFERENCED, UNREFERENCED, UNKNOWN = 138, 12, 115, 11
TERABYTES = 1.9
SHARED, PUBLIC, LAUNCHED = 5, 2, 4


@pytest.fixture
def account(own: Owner) -> Owner:
    made = populate(own.aws, regions=[REGION], amis=AMIS, referenced_one_in=12)
    assert (made.amis, made.referenced) == (AMIS, REFERENCED)
    tables = own.aws.state.tables
    images = list(tables.table(own.account, REGION, "images").values())
    snapshots = tables.table(own.account, REGION, "snapshots")
    unnamed = [image for number, image in enumerate(images) if number % 12]
    for number, image in enumerate(images):
        image.last_launched, image.permissions, image.tags = None, [], {"owner": "somebody"}
        image.created -= timedelta(days=3)
        size = 14 if number % 10 else 15
        image.mappings[0]["Ebs"]["VolumeSize"] = size
        snapshots[image.snapshot_ids()[0]].size_gib = size
    for image in unnamed[:SHARED]:
        image.permissions = [{"UserId": OTHER_ACCOUNT}]
    for image in unnamed[SHARED : SHARED + PUBLIC]:
        image.permissions = [{"Group": "all"}]
    for image in unnamed[SHARED + PUBLIC : UNKNOWN]:
        image.last_launched = datetime.now(UTC) - timedelta(days=20)
    # The others were launched once, too long ago to count as used.
    for image in unnamed[UNKNOWN:]:
        image.last_launched = datetime.now(UTC) - timedelta(days=200)
    own.aws.clock.advance(2 * 24 * 3600)
    return own


@pytest.fixture
def scanned(account: Owner) -> Inventory:
    return account.scan(regions=[REGION])


def test_the_published_numbers_are_reproduced(scanned: Inventory) -> None:
    total = views.totals(scanned)
    assert total["amis"] == AMIS
    counted = [total[f"amis_{use}"] for use in ("referenced", "unreferenced", "unknown")]
    assert counted == [REFERENCED, UNREFERENCED, UNKNOWN]
    assert total["size_gib"] / 1024 == pytest.approx(TERABYTES, abs=0.05)


def test_the_eleven_unknown_amis_are_shared_or_were_launched(scanned: Inventory) -> None:
    unknown = scanned.amis[scanned.amis["referenced"].isna()]
    kinds = [sorted({one["kind"] for one in json.loads(text)}) for text in unknown["references"]]
    assert kinds.count(["shared-with"]) == SHARED + PUBLIC
    assert kinds.count(["launched"]) == LAUNCHED
    assert int(unknown["public"].sum()) == PUBLIC
    assert len(evaluate(scanned, rules=["use-unknown"])) == UNKNOWN
    assert len(evaluate(scanned, rules=["unreferenced"])) == UNREFERENCED


def test_the_twelve_used_amis_need_every_kind_of_reference(scanned: Inventory) -> None:
    used = scanned.amis[scanned.amis["referenced"].fillna(value=False)]
    kinds = {one["kind"] for text in used["references"] for one in json.loads(text)}
    assert kinds >= {
        "instance",
        "launch-template",
        "launch-configuration",
        "auto-scaling-group",
        "parameter",
    }


def test_cost_follows_stored_bytes(scanned: Inventory) -> None:
    by_volume = views.totals(scanned)["size_gib"] * inventory.DEFAULT[0]
    by_bytes = inventory.total_usd(scanned.frame)
    snapshots = scanned.frame[scanned.frame["kind"] == "snapshot"]
    assert by_bytes == pytest.approx(
        float(snapshots["stored_bytes"].sum()) / 2**30 * inventory.DEFAULT[0], abs=0.02
    )
    assert by_bytes < by_volume / 4


def test_boto3_and_the_aws_cli_count_the_same(account: Owner, scanned: Inventory) -> None:
    ec2 = account.client("ec2")
    lists: dict[str, Any] = {
        "ami": ("describe-images", "--owners", "Images", {"Owners": ["self"]}),
        "snapshot": ("describe-snapshots", "--owner-ids", "Snapshots", {"OwnerIds": ["self"]}),
    }
    for kind, (command, flag, member, options) in lists.items():
        counted = int((scanned.frame["kind"] == kind).sum())
        pages = ec2.get_paginator(command.replace("-", "_")).paginate(**options)
        assert sum(len(page[member]) for page in pages) == counted == AMIS
        shown = subprocess.run(
            [require("aws"), "ec2", command, flag, "self", "--query", f"length({member})"],
            env={**os.environ, "AWS_PAGER": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (int(shown.stdout or -1), shown.stderr) == (counted, "")
