"""The recorded state of each AMI, from all tables.

==================================  =====================================================================
table                               values
==================================  =====================================================================
``amis``, the newest row            registration and tags
``amis``, the newest row of a run   public access, deprecation date, protection
``promotions``, the newest row      the same, and the accounts that may use the AMI and its snapshots, the
                                    KMS key and the channel
``retirements``, if it is newer     the accounts that may use it: none, or again those before
none of them                        a publish shares with no account, or makes the AMI public
==================================  =====================================================================

A sync copies the state in AWS to the tables. It must not record permissions: otherwise, a permission that was
added in AWS would become the expected one with the next sync. Only if no run has recorded an AMI, the values
of its first sync are used.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmsnix_ops.records import history

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.records.tables import Tables

GONE = "deregistered"
ARCHITECTURES = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}
_CHANGEABLE = ("public", "deprecated_at", "protected")
_Key = tuple[str, str]


def expected_amis(tables: Tables, *, regions: tuple[str, ...] = (), image: str = "") -> list[dict[str, Any]]:
    """Return the state that each AMI should have in AWS, without deregistered AMIs.

    Only AMIs in these regions and of this image are returned; by default all. A dictionary has the columns of
    ``amis`` that are not empty, and ``architecture``; the lists ``shared_with`` and
    ``snapshots_shared_with``; if known, ``deprecated_at`` (``None`` for no date) and ``protected``; for a
    promoted AMI ``encrypted`` and ``kms_key``; ``channel_parameters``, the names of the channels' parameters
    that were last set to it.
    """
    promotions, retirements = _promotions(tables), _retirements(tables)
    channels = _channel_parameters(tables)
    histories: dict[_Key, list[dict[str, Any]]] = {}
    for row in plain_rows(history.amis(tables, all_rows=True)):  # newest first
        histories.setdefault((row["ami_id"], row["region"]), []).append(row)
    found = []
    for key, rows in histories.items():
        row = rows[0]
        if row.get("state") == GONE or (regions and row["region"] not in regions):
            continue
        if image and row.get("image") != image:
            continue
        registered = {name: value for name, value in row.items() if name not in _CHANGEABLE}
        changeable = _changeable(_row_for_grants(rows), promotions.get(key, {}), retirements.get(key, {}))
        more = {
            "architecture": ARCHITECTURES.get(row.get("system", "")),
            "channel_parameters": channels.get(key, []),
        }
        found.append(registered | changeable | more)
    return found


def _row_for_grants(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of an AMI (newest first) that decides who may use it."""
    by_runs = [row for row in rows if row["source"] != "sync"]
    complete = [row for row in rows if "protected" in row]  # older versions did not record it
    return by_runs[0] if by_runs else (complete or rows)[-1]


def _changeable(row: dict[str, Any], promotion: dict[str, Any], retirement: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded permissions, dates, protection and keys of an AMI, if known."""
    own = _with_date({name: row[name] for name in _CHANGEABLE if name in row}, row)
    known = own | {"shared_with": [], "snapshots_shared_with": []}
    if promotion:
        known |= {name: promotion[name] for name in (*_CHANGEABLE, "encrypted") if name in promotion}
        known |= {"deprecated_at": promotion.get("deprecated_at"), "kms_key": promotion.get("kms_key", "")}
        for name in ("shared_with", "snapshots_shared_with"):
            known[name] = json.loads(promotion.get(name) or "[]")
        if row["recorded_at"] > promotion["promoted_at"]:  # published again, as public
            known |= own
    if retirement and not (promotion and promotion["promoted_at"] > retirement["done_at"]):
        known.pop("deprecated_at", None)
        known |= own
        restored = retirement["action"] == "restored"
        known["shared_with"] = json.loads(retirement.get("shared_with") or "[]") if restored else []
        known["snapshots_shared_with"] = known["snapshots_shared_with"] if restored else []
    return known


def _with_date(own: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a row; in a complete row a missing date means no date."""
    if "protected" in row:
        return {"deprecated_at": None} | own
    if row["source"] == "publish":  # of an older version, which recorded neither; a publish sets neither
        return own | {"deprecated_at": None, "protected": False}
    return own


def _promotions(tables: Tables) -> dict[_Key, dict[str, Any]]:
    """Return the newest promotion of each AMI and region; a rollback records no facts of the AMI."""
    rows = [row for row in plain_rows(tables.read("promotions")) if row["how"] == "promote"]
    return {(row["ami_id"], row["region"]): row for row in sorted(rows, key=lambda one: one["promoted_at"])}


def _retirements(tables: Tables) -> dict[_Key, dict[str, Any]]:
    """Return the last retirement or restoration of each AMI."""
    newest_last = plain_rows(history.retirements(tables, kind="ami"))[::-1]
    return {(row["resource_id"], row["region"]): row for row in newest_last}


def recorded_channels(tables: Tables) -> dict[_Key, dict[str, Any]]:
    """Return the newest promotion or rollback of each channel, by region and name of its parameter."""
    rows = sorted(plain_rows(tables.read("promotions")), key=lambda one: one["promoted_at"])
    return {(row["region"], row["channel_parameter"]): row for row in rows if row.get("channel_parameter")}


def _channel_parameters(tables: Tables) -> dict[_Key, list[str]]:
    """Return the channels' parameters that were last set to each AMI."""
    found: dict[_Key, list[str]] = {}
    for (region, parameter), row in recorded_channels(tables).items():
        found.setdefault((row["ami_id"], region), []).append(parameter)
    return found


def newest_proofs(tables: Tables) -> pd.DataFrame:
    """Return the newest proof of each AMI with the verdict ``proven`` or ``differs``.

    A later proof with another verdict does not replace it: it could not compare the AMI with an image. Nor
    does a sample without a difference replace a difference from the same image: it missed the changed blocks.
    """
    import pandas as pd

    proofs = history.proofs(tables)
    proofs = proofs[proofs["verdict"].isin(["proven", "differs"])]
    differs, compared = proofs["verdict"] == "differs", pd.MultiIndex.from_frame(proofs[["ami_id", "digest"]])
    missed = ~differs & (proofs["extent"] == "sample") & compared.isin(compared[differs])
    return proofs[~missed].drop_duplicates("ami_id")


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows without missing values."""
    import pandas as pd

    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
