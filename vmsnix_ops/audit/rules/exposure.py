"""Who may use it, and how well it is kept: sharing, encryption, metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, found, rule

if TYPE_CHECKING:
    import pandas as pd

LONGEST_NAME = 128
COPY = "-encrypted"
MEMBERS = {"organization": "OrganizationArn", "organizational unit": "OrganizationalUnitArn"}
"""How a launch permission calls whom an AMI is shared with, by our word for it; accounts are ``UserId``."""


@rule("high")
def public(facts: Facts) -> pd.DataFrame:
    """Find AMIs that everybody may launch."""
    amis = facts.amis
    return found(
        amis[amis["public"].fillna(value=False)],
        "Every AWS account may launch it and read its disk.",
        evidence="Public is true",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        change="Remove=[{Group=all}]",
    )


@rule("high")
def public_snapshot(facts: Facts) -> pd.DataFrame:
    """Find snapshots that everybody may read, whether an AMI holds them or not."""
    held = facts.of("snapshot")
    return found(
        held[held["public"].fillna(value=False)],
        "Every AWS account may make volumes of it, and read them.",
        evidence="createVolumePermission is all",
        cure="aws ec2 modify-snapshot-attribute --region {region} --snapshot-id {resource_id} "
        "--attribute createVolumePermission --operation-type remove --group-names all",
    )


@rule("high")
def shared_with_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are shared with accounts, organizations or units which nobody declared known."""
    known = facts.measure.known_accounts | {account for account, _ in facts.inventory.places}
    amis = facts.amis
    amis = amis[amis["evidence"].str.contains('"shared-with"', regex=False)]
    strangers = amis["evidence"].map(lambda text: _strangers(text, known))
    some = strangers.map(bool).astype(bool)
    amis, strangers = amis[some], strangers[some]
    return found(
        amis,
        "It is shared with {strangers}, which nobody declared known.",
        evidence="launch permission",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        strangers=strangers.map(lambda some: ", ".join(who for who, _ in some)),
        change=strangers.map(
            lambda some: (
                "Remove=[" + ",".join(f"{{{MEMBERS.get(kind, 'UserId')}={who}}}" for who, kind in some) + "]"
            )
        ),
    )


def _strangers(evidence: str, known: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    shared = [(who, detail) for kind, who, detail in json.loads(evidence) if kind == "shared-with"]
    return [(who, detail) for who, detail in shared if who != "all" and who not in known]


@rule("medium")
def unencrypted(facts: Facts) -> pd.DataFrame:
    """Find AMIs that can be launched and whose disk is not encrypted."""
    amis = facts.amis
    some = amis[
        ~amis["encrypted"].fillna(value=False) & (amis["size_gib"] > 0) & (amis["state"] == "available")
    ]
    return found(
        some,
        "Its disk is not encrypted; so are volumes made from it, unless the account encrypts by default. The "
        "command makes an encrypted copy: move its users there and retire this one; until then this stays.",
        evidence="Encrypted is false for a block device",
        cure="aws ec2 copy-image --region {region} --source-region {region} --source-image-id {resource_id} "
        "--name {copy} --encrypted --copy-image-tags",
        copy=some["name"].fillna("").str.slice(0, LONGEST_NAME - len(COPY)) + COPY,
    )


@rule("medium")
def no_imdsv2(facts: Facts) -> pd.DataFrame:
    """Find AMIs whose instances answer metadata requests without a session token."""
    amis = facts.amis
    some = amis[(amis["imds_support"] != "v2.0") & (amis["state"] == "available")]
    used = (some["referenced"] == True).fillna(value=False)  # noqa: E712
    warning = " It is used: try one instance with --metadata-options HttpTokens=required first."
    return found(
        some,
        "Its instances answer metadata requests without a token (IMDSv1), unless the launch forbids it. The "
        "command cannot be undone: what is launched from then on refuses programs that ask without a token."
        "{warning}",
        evidence="ImdsSupport is not v2.0",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} --imds-support v2.0",
        warning=used.map({True: warning, False: ""}),
    )
