"""Acknowledge findings with a reason and until a time, and export the findings of an audit.

The table ``acknowledgements`` is append-only: its latest row of a finding applies. A finding counts again
when its acknowledgement has expired or was withdrawn, and when its severity is higher than it was then.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.audit.findings import RULES
from vmsnix_ops.errors import ParameterError, UsageError, nearest
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.records import filters
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load, user_name
from vmsnix_ops.text import json_text, write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from vmsnix_ops.records.filters import When

COLUMNS: dict[str, str] = {
    "acknowledged_until": "when the finding counts again, UTC; empty if it is not acknowledged",
    "acknowledged_by": "user who acknowledged it",
    "acknowledged_reason": "why it is acceptable",
}
"""Columns that `mark` adds to findings, and their meaning."""

SHOW = "vmsnix findings list --acknowledged"
_ABOUT = ("finding_id", "severity", "rule", "account", "region", "endpoint", "kind", "resource_id", "name")


def acknowledge(
    finding_ids: str | Iterable[str], *, reason: str, until: When, tables: Tables | None = None
) -> pd.DataFrame:
    """Acknowledge findings until a time, and return the new rows of the table ``acknowledgements``.

    Acknowledged findings are shown apart, and do not fail an audit. Safe to run twice: the latest applies.

    Parameters
    ----------
    finding_ids
        IDs of findings that an audit recorded (column ``finding_id``).
    reason
        Why they are acceptable; everyone who reads the audit sees it.
    until
        When they count again: a duration from now (``"90D"``), a date (its end in UTC), or a datetime with a
        time zone.
    tables
        The tables of the history; by default those of the settings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        An ID is unknown, the reason is empty, or the time is invalid or past. Nothing was acknowledged.
    vmsnix_ops.errors.RecordsError
        The tables cannot be read or written.
    """
    end = filters.moment("until", until, end=True, ahead=True)
    if end is None or end <= datetime.now(UTC):
        raise ParameterError(
            f"Invalid until {until!r}.",
            why="It is in the past." if end else "An acknowledgement needs a time at which it ends.",
            fix='Use a later date such as "2027-06-30", or a duration such as "90D".',
        )
    return _record(finding_ids, reason, "acknowledged", end, tables)


def withdraw(
    finding_ids: str | Iterable[str], *, reason: str = "withdrawn", tables: Tables | None = None
) -> pd.DataFrame:
    """Withdraw acknowledgements: the findings count again from now on. Returns the new rows.

    The arguments and errors are as for `acknowledge`; a finding without an acknowledgement is an error, too.
    """
    current = list_acknowledgements(tables)
    for one in _listed(finding_ids):
        if one not in set(current["finding_id"]):
            raise ParameterError(
                f"The finding {one!r} is not acknowledged.",
                why=nearest(one, current["finding_id"]),
                fix=f"Run {SHOW} to list the acknowledged findings.",
            )
    return _record(finding_ids, reason, "withdrawn", None, tables)


def _listed(finding_ids: str | Iterable[str]) -> list[str]:
    found = list(dict.fromkeys([finding_ids] if isinstance(finding_ids, str) else finding_ids))
    if not found or not all(isinstance(one, str) and one for one in found):
        raise ParameterError("No finding given.", fix="Give the ID of a finding: vmsnix findings list")
    return found


def _record(
    finding_ids: str | Iterable[str],
    reason: str,
    action: str,
    until: datetime | None,
    tables: Tables | None,
) -> pd.DataFrame:
    import pandas as pd

    tables, wanted = tables or open_tables(load()), _listed(finding_ids)
    if not reason.strip():
        raise ParameterError(
            "No reason given.",
            why="Readers of the audit must see why the finding is acceptable.",
            fix='Give one, such as --reason "test account, deleted in March".',
        )
    columns = [*_ABOUT, "scanned_at"]
    known = tables.read("findings", columns=columns, where=[("finding_id", "in", wanted)])
    known = known.sort_values("scanned_at").drop_duplicates("finding_id", keep="last").set_index("finding_id")
    for one in wanted:
        if one not in known.index:
            run_id = _newest_run(tables)
            ids = () if run_id is None else _of_run(tables, run_id)["finding_id"].dropna()
            raise ParameterError(
                f"Unknown finding {one!r}.",
                why=nearest(one, ids) or f"No audit in {tables.location} has recorded it.",
                fix="Run vmsnix findings list to list the findings of the newest audit with their IDs.",
            )
    given = {"action": action, "until": until, "reason": reason, "user": user_name()}
    rows = known.loc[wanted].drop(columns="scanned_at").reset_index()
    rows = rows.assign(recorded_at=pd.Timestamp.now("UTC"), **given)
    rows["until"] = rows["until"].astype("datetime64[us, UTC]")
    tables.append("acknowledgements", rows)
    return rows


def list_acknowledgements(tables: Tables | None = None) -> pd.DataFrame:
    """Return the acknowledgements that apply or have expired (column ``expired``), the next to end first.

    Raises
    ------
    vmsnix_ops.errors.RecordsError
        The table is damaged or cannot be read.
    """
    import pandas as pd

    rows = (tables or open_tables(load())).read("acknowledgements").sort_values("recorded_at", kind="stable")
    latest = rows.drop_duplicates("finding_id", keep="last").query("action == 'acknowledged'")
    latest = latest.sort_values("until", ignore_index=True)
    return latest.assign(expired=latest["until"] <= pd.Timestamp.now("UTC"))


def mark(findings: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """Return findings with the columns `COLUMNS`, from the acknowledgements that apply to them now."""
    current = list_acknowledgements(tables)
    current = current[~current["expired"]].set_index("finding_id")
    ids = findings["finding_id"].astype("object")
    covered = ids.map(_rank(current)).astype("float64") <= _rank(findings)
    until, by, reason = (
        ids.map(current[name].astype("object")).where(covered) for name in ("until", "user", "reason")
    )
    return findings.assign(
        acknowledged_until=until.astype("datetime64[us, UTC]"),
        acknowledged_by=by.astype("str"),
        acknowledged_reason=reason.astype("str"),
    )


def _rank(rows: pd.DataFrame) -> pd.Series[float]:
    ranks = {str(severity): rank for rank, severity in enumerate(SEVERITIES)}  # 0: the most severe
    return rows["severity"].astype("object").map(ranks).astype("float64")


def split(findings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the findings that count, and those that are acknowledged."""
    acknowledged = findings["acknowledged_until"].notna()
    return findings[~acknowledged], findings[acknowledged]


def read_findings(run_id: str = "", *, tables: Tables | None = None) -> pd.DataFrame:
    """Return the findings of an audit from the tables, most severe first, with the acknowledgements of now.

    Parameters
    ----------
    run_id
        Run of the audit; by default the newest audit.
    tables
        The tables of the history; by default those of the settings.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        There is no such audit.
    vmsnix_ops.errors.RecordsError
        The tables cannot be read.
    """
    tables = tables or open_tables(load())
    newest = _newest_run(tables, run_id)
    if newest is None:
        raise UsageError(
            f"No audit {run_id!r} in {tables.location}." if run_id else "No audits yet.",
            why="" if run_id else f"The tables in {tables.location} contain no scan.",
            fix="Run vmsnix history runs --runbook audit to list the audits."
            if run_id
            else "Run vmsnix audit.",
        )
    found = mark(_of_run(tables, newest), tables)
    return (
        found.assign(acknowledged=found["acknowledged_until"].notna(), order=_rank(found))
        .sort_values(["order", "rule", "account", "region", "resource_id"])
        .drop(columns="order")
        .reset_index(drop=True)
    )


def _newest_run(tables: Tables, run_id: str = "") -> str | None:
    """Return the run of the newest scan; a scan without findings has rows in ``inventory`` only."""
    where = [("kind", "==", "region"), *([("run_id", "==", run_id)] if run_id else [])]
    scans = tables.read("inventory", columns=["run_id", "scanned_at"], where=where)
    return None if scans.empty else str(scans.sort_values("scanned_at")["run_id"].iloc[-1])


def _of_run(tables: Tables, run_id: str) -> pd.DataFrame:
    return tables.read("findings", where=[("run_id", "==", run_id)])


# Exports.

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note"}
# GitHub's code scanning shows these numbers as critical (over 9.0), high (7.0), medium (4.0) and low.
# Source: "SARIF support for code scanning" in GitHub's documentation.
SCORES = {"critical": "9.5", "high": "8.0", "medium": "5.0", "low": "2.0", "info": "0.0"}


@check_arguments
def export(findings: pd.DataFrame, format: Literal["csv", "json", "sarif"]) -> str:  # noqa: A002 - the word of the command line
    """Return findings, from `read_findings`, as CSV, JSON or SARIF 2.1.0.

    CSV contains no formulas for a spreadsheet. In SARIF, acknowledged findings have a suppression, and the
    location of a finding is ``ACCOUNT/REGION/KIND/ID``.
    """
    if format == "sarif":
        return json_text(json.dumps(_sarif(findings), indent=1, ensure_ascii=False)) + "\n"
    if format == "json":
        text = findings.to_json(orient="records", date_format="iso", date_unit="ms", indent=1)
        return json_text(text) + "\n"
    stream = io.StringIO()
    write_csv(findings, stream, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    return stream.getvalue()


def _sarif(findings: pd.DataFrame) -> dict[str, Any]:
    from vmsnix_ops import __version__

    rows = findings.astype("object").where(findings.notna(), None).to_dict("records")
    names = list(dict.fromkeys(str(row["rule"]) for row in rows))
    worst = {
        name: min((row["severity"] for row in rows if row["rule"] == name), key=SEVERITIES.index)
        for name in names
    }
    driver = {
        "name": "vmsnix audit",
        "version": __version__,
        "rules": [_sarif_rule(name, worst[name]) for name in names],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(row, names.index(row["rule"])) for row in rows],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _sarif_rule(name: str, severity: str) -> dict[str, Any]:
    text = RULES[name].description if name in RULES else name  # of another version
    return {
        "id": name,
        "shortDescription": {"text": text},
        "defaultConfiguration": {"level": LEVELS[severity]},
        "properties": {"security-severity": SCORES[severity], "tags": ["security"]},
    }


def _sarif_result(row: dict[Any, Any], rule: int) -> dict[str, Any]:
    parts = [row["account"], row["region"] or "global", row["kind"], row["resource_id"]]
    place = "/".join(str(part or "unknown") for part in parts)
    texts = [row["reason"], f"Fix: {row['remediation']}" if row["remediation"] else ""]
    result: dict[str, Any] = {
        "ruleId": row["rule"],
        "ruleIndex": rule,
        "level": LEVELS[row["severity"]],
        "message": {"text": " ".join(filter(None, texts)) or row["rule"]},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": quote(place)}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": place, "kind": "resource"}],
            }
        ],
        "properties": {
            key: row[key] for key in ("severity", "name", "image", "evidence", "monthly_usd") if row[key]
        },
    }
    if row["finding_id"]:
        result["partialFingerprints"] = {"findingId/v1": row["finding_id"]}
    if row["acknowledged_until"] is not None:
        until = f"until {row['acknowledged_until']:%Y-%m-%d}"
        note = f"{row['acknowledged_reason']} ({row['acknowledged_by']}, {until})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": note}]
    return result
