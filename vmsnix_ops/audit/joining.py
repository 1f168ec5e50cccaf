"""Many accounts and regions, one inventory: what uses each resource, wherever that was seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmsnix_ops.audit import costs
from vmsnix_ops.audit.values import Inventory, Pointer, Read, Unread
from vmsnix_ops.aws import references
from vmsnix_ops.aws.references import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import pandas as pd
    import pyarrow as pa

    from vmsnix_ops.records.run_context import RunContext


def joined(
    found: list[Read],
    tables: list[pa.Table],
    unread: list[Unread],
    run: RunContext,
    now: datetime,
    prices: costs.Prices,
) -> Inventory:
    """Return one inventory of all that was read; what one account sees counts for the AMIs of another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vmsnix_ops.records import schemas
    from vmsnix_ops.records.frames import to_frame

    evidence: dict[tuple[str, str], list[Evidence]] = {}
    # Of a hurried place AWS was not asked who may launch each AMI: that is as unknown as in a blind one.
    blind = {(one.account, one.region) for read in found for one in read.unread if one.source in _PROOF}
    hurried = {(read.account, read.region) for read in found if read.hurried}
    guests = {(read.account, read.region): read.guests for read in found if read.guests}
    seen = {place: some for place, some in guests.items() if place not in blind}
    for read in found:
        for ami_id, some in read.found.by_ami.items():
            known = evidence.setdefault((read.region, ami_id), [])
            known += [_seen_from(one, read.account) if ami_id in read.strangers else one for one in some]
    table = pa.concat_tables([schemas.INVENTORY.arrow().empty_table(), *tables])
    tables.clear()
    holders = {(read.region, key): held for read in found for key, held in read.holders.items()}
    used, proofs = _use(table, evidence, holders, blind, hurried, seen, now)
    for name, values in (("referenced", used), ("evidence", proofs)):
        number, field_ = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(number, field_, pa.array(values, field_.type))
    order = [(name, "ascending") for name in ("kind", "created_at", "resource_id")]
    # Sorted in arrow, which copies once; what it was copied from goes before pandas sees it.
    table = table.take(pc.sort_indices(table, sort_keys=order))
    frame = to_frame(table)
    frame["monthly_usd"] = costs.monthly_usd(frame, prices)
    places: dict[tuple[str, str], int] = {}
    for read in found:
        if not read.bucket and not read.closed:
            places[read.account, read.region] = places.get((read.account, read.region), 0) + read.amis
    return Inventory(
        frame,
        run,
        now,
        places,
        (*unread, *(one for read in found for one in read.unread)),
        tuple(_pointers(found, frame)),
        tuple((read.account, read.region) for read in found if read.hurried),
        {(read.account, read.bucket): read.region for read in found if read.bucket},
    )


def _pointers(found: list[Read], frame: pd.DataFrame) -> Iterator[Pointer]:
    """Yield what names AMIs that are not its account's, as that account sees them."""
    scanned = {read.account for read in found}
    hidden = {ami_id for read in found for ami_id, owner in read.strangers.items() if not owner}
    known = frame[frame["resource_id"].isin(hidden) & (frame["kind"] == "ami")]
    owners = dict(zip(known["resource_id"], known["account"], strict=True))
    for read in found:
        for ami_id, owner in read.strangers.items():
            if owner in scanned:
                continue
            for one in read.found.names(ami_id):
                unshared = "" if owner else owners.get(ami_id, "")
                yield Pointer(read.account, read.region, ami_id, one, owner, unshared)


_PROOF = frozenset(
    {"instances", "launch templates", "Auto Scaling groups", "parameters", "image references"}
    | {"launch permissions", "AMIs", references.PARAMETERS_OF_TEMPLATES}
)
"""Sources without which nobody can say that an AMI is not used."""


_EVERYBODY = Evidence("shared-with", "all", "everybody")


def _seen_from(one: Evidence, account: str) -> Evidence:
    return Evidence(one.kind, one.id, ", ".join(filter(None, [one.detail, f"account {account}"])))


def _use(
    table: pa.Table,
    evidence: Mapping[tuple[str, str], list[Evidence]],
    holders: Mapping[tuple[str, str], list[str]],
    blind: set[tuple[str, str]],
    hurried: set[tuple[str, str]],
    seen: Mapping[tuple[str, str], frozenset[str]],
    now: datetime,
) -> tuple[list[bool | None], list[str]]:
    """Return, for each row, whether it is used and the evidence as JSON.

    That an AMI is shared with an account is a hint only while nobody looked there: `seen` are the AMIs of
    others about which AWS was asked in each place.
    """
    used: list[bool | None] = []
    proofs: list[str] = []
    columns = [
        table.column(name).to_pylist()
        for name in ("kind", "account", "region", "resource_id", "public", "created_at")
    ]
    for kind, account, region, resource_id, public, created_at in zip(*columns, strict=True):
        if kind == "ami":
            some = evidence.get((region, resource_id), [])
            if public and _EVERYBODY not in some:  # known also where AWS was not asked about each AMI
                some = [*some, _EVERYBODY]
            open_ = [
                one
                for one in some
                if one.kind != "shared-with" or resource_id not in seen.get((one.id, region), ())
            ]
            settled = created_at is None or created_at < now - references.SETTLED
            complete = settled and (account, region) not in blind and (account, region) not in hurried
            used.append(references.judge(open_, complete=complete, now=now))
            proofs.append(json.dumps([[one.kind, one.id, one.detail] for one in some]) if some else "[]")
        elif kind in ("snapshot", "direct-upload"):
            held = holders.get((region, resource_id), [])
            some = evidence.get((region, resource_id), [])
            unknown = not held and (account, region) in blind
            used.append(None if unknown else bool(held or some))
            proofs.append(
                json.dumps([["ami", one, ""] for one in held] + [[s.kind, s.id, s.detail] for s in some])
            )
        else:
            used.append(None)
            proofs.append("[]")
    return used, proofs
