"""What is recorded of each AMI: every table's word, and what a publish makes where they are silent.

==================================  ==================================================================
of                                  says
==================================  ==================================================================
``amis``, the newest row            how it was registered, and its tags
``amis``, the newest of a run       whether it is public, its date, its protection: as the run found them
``promotions``, the newest row      all that, with whom it and its snapshots are shared, key, and channel
``retirements``, where it is newer  that it is shared with nobody, or again with whom it was
none of them                        a publish shares with nobody, or with everybody when told to
==================================  ==================================================================

A sync takes over what AWS says, and so it has no say in who may use an AMI: a job that runs every night must
not make the share that somebody added the recorded one. Only of an AMI that no run recorded the first sync
counts.
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
    histories: dict[_Key, list[dict[str, Any]]] = {}
    for row in _records(history.amis(tables, all_rows=True)):  # newest first
        histories.setdefault((row["ami_id"], row["region"]), []).append(row)
    found = []
    for where, rows in histories.items():
        row = rows[0]
        if row.get("state") == GONE or (regions and row["region"] not in regions):
            continue
        if image and row.get("image") != image:
            continue
        promised = _promised(_witness(rows), promotions.get(where, {}), retirements.get(where, {}))
        told = {name: value for name, value in row.items() if name not in _PROMISED}
        more = {
            "architecture": _ARCHITECTURES.get(row.get("system", "")),
            "pointers": pointers.get(where, []),
        }
        found.append(told | promised | more)
    return found


def _witness(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row, of one AMI's from the newest to the oldest, that tells who may use it."""
    by_runs = [row for row in rows if row["source"] != "sync"]
    knowing = [row for row in rows if "protected" in row]  # not those of older versions
    return by_runs[0] if by_runs else (knowing or rows)[-1]


def _promised(row: dict[str, Any], promotion: dict[str, Any], retirement: dict[str, Any]) -> dict[str, Any]:
    """Return who should be able to use it, dates, protection and keys, as far as they are known."""
    own = _dated({name: row[name] for name in _PROMISED if name in row}, row)
    known = own | {"shared_with": [], "snapshots_shared_with": []}
    if promotion:
        known |= {name: promotion[name] for name in (*_PROMISED, "encrypted") if name in promotion}
        known |= {"deprecated_at": promotion.get("deprecated_at"), "kms_key": promotion.get("kms_key", "")}
        for name in ("shared_with", "snapshots_shared_with"):
            known[name] = json.loads(promotion.get(name) or "[]")
        if row["recorded_at"] > promotion["promoted_at"]:  # published once more, to be public
            known |= own
    if retirement and not (promotion and promotion["promoted_at"] > retirement["done_at"]):
        known.pop("deprecated_at", None)
        known |= own
        back = retirement["action"] == "restored"
        known["shared_with"] = json.loads(retirement.get("shared_with") or "[]") if back else []
        known["snapshots_shared_with"] = known["snapshots_shared_with"] if back else []
    return known


def _dated(own: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row says, with what a date that is missing there means."""
    if "protected" in row:
        return {"deprecated_at": None} | own
    if row["source"] == "publish":  # by an older version, which recorded neither: a publish sets neither
        return own | {"deprecated_at": None, "protected": False}
    return own


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
