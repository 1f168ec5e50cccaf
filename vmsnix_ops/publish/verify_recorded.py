"""What is recorded of each AMI: every table's word, and what a publish makes where they are silent.

=================================  ===================================================================
of                                 says
=================================  ===================================================================
``amis``, the newest row           how it was registered, its tags; dates and protection at that time
``promotions``, the newest row     with whom it is shared, its dates, protection, key, and the channel
``retirements``, where it is newer  it is shared with nobody, or again with whom it was
none of them                       a publish shares with nobody but everybody, and only when told to
=================================  ===================================================================

A promotion is the word of an operator, and so a sync that came later does not take its place: whoever shares
an AMI behind our back shall not be recorded by the job that rebuilds a table.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmsnix_ops.records import history

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.records.tables import Tables

GONE = "deregistered"
_ARCHITECTURES = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}
_PROMISED = ("public", "deprecated_at", "protected")
_Key = tuple[str, str]


def recorded(tables: Tables, *, regions: tuple[str, ...] = (), image: str = "") -> list[dict[str, Any]]:
    """Return what AWS should say of each AMI; what was deregistered is left out.

    Parameters
    ----------
    tables
        Where they are kept.
    regions
        Only AMIs there; empty: everywhere.
    image
        Only AMIs of this image; empty: of all.

    Returns
    -------
    list of dict
        The columns of ``amis`` that are not empty, and ``architecture``; ``shared_with`` and
        ``snapshots_shared_with``, lists; ``deprecated_at`` (``None``: no date) and ``protected`` where they
        are known; ``encrypted`` and ``kms_key`` of one that was promoted; ``pointers``, the names of those
        that pointed to it last.
    """
    promotions, retirements = _promotions(tables), _retirements(tables)
    pointers = _pointers(tables)
    rows = []
    for row in _records(history.amis(tables)):
        where = (row["ami_id"], row["region"])
        if row.get("state") == GONE or (regions and row["region"] not in regions):
            continue
        if image and row.get("image") != image:
            continue
        promotion, retirement = promotions.get(where, {}), retirements.get(where, {})
        one = _one(row, promotion, retirement)
        one["architecture"] = _ARCHITECTURES.get(row.get("system", ""))
        one["pointers"] = pointers.get(where, [])
        rows.append(one)
    return rows


def _one(row: dict[str, Any], promotion: dict[str, Any], retirement: dict[str, Any]) -> dict[str, Any]:
    known = {**row, "shared_with": [], "snapshots_shared_with": []}
    if "protected" in row:
        known.setdefault("deprecated_at", None)
    elif row["source"] == "publish":  # by an older version, which recorded neither: a publish sets neither
        known |= {"deprecated_at": None, "protected": False}
    if promotion:
        promised = {name: promotion.get(name) for name in _PROMISED if name in promotion}
        known |= {"deprecated_at": None, **promised, "kms_key": promotion.get("kms_key", "")}
        known |= {name: promotion[name] for name in ("encrypted",) if name in promotion}
        for name in ("shared_with", "snapshots_shared_with"):
            known[name] = json.loads(promotion.get(name) or "[]")
    if retirement and not (promotion and promotion["promoted_at"] > retirement["done_at"]):
        known |= {name: row[name] for name in ("public", "protected") if name in row}
        known.pop("deprecated_at", None)
        if "protected" in row:
            known["deprecated_at"] = row.get("deprecated_at")
        back = retirement["action"] == "restored"
        known["shared_with"] = json.loads(retirement.get("shared_with") or "[]") if back else []
        known["snapshots_shared_with"] = known["snapshots_shared_with"] if back else []
    return known


def _promotions(tables: Tables) -> dict[_Key, dict[str, Any]]:
    """Return the newest facts of each AMI and region; a rollback says nothing of them."""
    rows = [row for row in _records(tables.read("promotions")) if row["how"] == "promote"]
    return {(row["ami_id"], row["region"]): row for row in sorted(rows, key=lambda one: one["promoted_at"])}


def _retirements(tables: Tables) -> dict[_Key, dict[str, Any]]:
    """Return what was done last to each AMI that was retired or restored."""
    newest_last = _records(history.retirements(tables, kind="ami"))[::-1]
    return {(row["resource_id"], row["region"]): row for row in newest_last}


def _pointers(tables: Tables) -> dict[_Key, list[str]]:
    """Return the pointers that were last pointed to each AMI."""
    last: dict[_Key, str] = {}
    for row in sorted(_records(tables.read("promotions")), key=lambda one: one["promoted_at"]):
        if row.get("pointer"):
            last[row["region"], row["pointer"]] = row["ami_id"]
    found: dict[_Key, list[str]] = {}
    for (region, pointer), ami_id in last.items():
        found.setdefault((ami_id, region), []).append(pointer)
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows without their empty values, which pandas spells in several ways."""
    import pandas as pd

    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
