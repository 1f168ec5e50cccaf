"""The audit for people and for machines: a page, CSV, Parquet, JSON, and what a job says of it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, files
from vmsnix_ops.arguments import MOST_DAYS, check_arguments, check_range
from vmsnix_ops.audit import changes as comparing
from vmsnix_ops.audit import findings as judging
from vmsnix_ops.audit import page, views
from vmsnix_ops.audit.finding import SEVERITIES, Measure
from vmsnix_ops.audit.inventory import DEADLINE_MINUTES, Thoroughness, scan
from vmsnix_ops.nix.versions import all_wanted
from vmsnix_ops.progress import counted
from vmsnix_ops.records.result import Result, saving
from vmsnix_ops.records.secrets import frame_without_secrets
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.text import json_text, line, write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import boto3
    import pandas as pd
    from matplotlib.figure import Figure

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.audit.inventory import Inventory
    from vmsnix_ops.records.run_context import RunContext

NEVER = "never"


@dataclass(frozen=True, slots=True)
class AuditResult(Result):
    """The findings of an audit, and what changed since the last one.

    Attributes
    ----------
    inventory, findings, changes
        What was seen, what is wrong with it, and what changed.
    problems
        What could not be read from the tables or written to them, as sentences.
    fail_on
        Severity from which a finding makes the audit fail: ``"critical"``, ``"high"``, ``"medium"``,
        ``"low"`` or ``"never"``.
    """

    inventory: Inventory
    findings: pd.DataFrame
    changes: Changes
    problems: tuple[str, ...] = ()
    fail_on: str = NEVER

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.inventory.run

    @property
    def title(self) -> str:
        """One line."""
        return "What there is"

    def facts(self) -> list[tuple[str, str]]:
        """Return by which numbers the retirement of AMIs and snapshots of ours was decided."""
        return [("retirement policy", str(self.inventory.rules))]

    def table(self) -> display.Shown:
        """Return how many AMIs, snapshots and leftovers there are and what they cost, for people."""
        return display.of_frame(views.summary(self.inventory))

    def notes(self) -> tuple[str, ...]:
        """Return what could not be read or written."""
        return self.problems

    def frame(self) -> pd.DataFrame:
        """Return the findings."""
        return self.findings

    def summary(self) -> pd.DataFrame:
        """Return how many findings each rule has."""
        return judging.summary(self.findings)

    def worst(self, *severities: str, most: int = 10) -> Worst:
        """Return the findings of these severities, at most so many of each rule, as people read them."""
        chosen = self.findings[self.findings["severity"].isin(severities or SEVERITIES)]
        return Worst(chosen.groupby(["severity", "rule"], sort=False).head(most), len(chosen))

    def show_summary(self) -> display.Shown:
        """Return `summary` for people."""
        return display.of_frame(self.summary(), title="Findings by rule")

    def show_changes(self, *, most: int = 200) -> display.Shown:
        """Return what changed since the last audit, for people."""
        return display.of_frame(self.changes.frame.head(most), title=str(self.changes))

    def show_inventory(self, kind: str, *, most: int = 200) -> display.Shown:
        """Return what there is of a kind (``"ami"``, ``"snapshot"``, ...) for people, the oldest first."""
        return display.of_frame(views.show(self.inventory, kind, most=most))

    def plot(self) -> Figure:
        """Draw what snapshots of each age cost."""
        return views.plot(self.inventory)

    @property
    def error(self) -> errors.VmsnixError | None:
        """`AuditError` for findings as severe as `fail_on`; else `PartialError` for what was not read.

        What could not be read is no finding here: it is no fault of what is there.
        """
        bad = _bad(self.fail_on)
        found = self.findings[self.findings["severity"].isin(bad) & (self.findings["rule"] != "unread")]
        if len(found):
            first = found.iloc[0]
            return errors.AuditError(
                f"Findings that are {' or '.join(bad)}: {len(found)}.",
                why=f"The first: {first['resource_id']} {first['region']}: {first['reason']}",
                fix="findings.csv and audit.html beside the result have the fix of each.",
            )
        unread = self.inventory.unread
        if not unread:
            return None
        gap = unread[0]
        where = " ".join(filter(None, (gap.account, gap.region)))
        return errors.PartialError(
            "The audit is partial: not everything could be read.",
            why=f"The first of {len(unread)}: {gap.source} of {where}. {gap.error}",
            fix="Each is a finding that says what to do; or leave out those regions and accounts.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it; the report is beside it."""
        shown = self.summary()[["severity", "rule", "findings"]]
        by_severity, folder = self.findings["severity"].value_counts(), self.run.folder
        status = "partial" if self.inventory.unread or self.problems else "done"
        return {
            "status": "failed" if isinstance(self.error, errors.AuditError) else status,
            "problems": list(self.problems),
            "inventory": folder / "inventory.csv",
            "findings": folder / "findings.csv",
            "page": folder / "audit.html",
            **views.totals(self.inventory),
            **{f"findings_{severity}": int(by_severity.get(severity, 0)) for severity in SEVERITIES},
            "changes": str(self.changes),
            "tables": [
                {
                    "title": counted(len(self.findings), "finding"),
                    "columns": list(shown.columns),
                    "rows": shown.to_numpy().tolist(),
                }
            ],
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder):
            write(self, folder)


@dataclass(frozen=True, slots=True)
class Worst(display.Displayed):
    """Findings that show themselves: a table in a notebook, lines in a log.

    Attributes
    ----------
    frame
        The findings that are shown.
    whole
        How many there are.
    """

    frame: pd.DataFrame
    whole: int

    @property
    def more(self) -> str:
        """What is not shown; empty when all is."""
        left = self.whole - len(self.frame)
        return f"{left:,} more in findings.csv." if left else ""

    def __str__(self) -> str:
        lines = []
        for row in judging.as_text(self.frame).to_dict("records"):
            words = (row["severity"], row["rule"], row["region"], row["resource_id"])
            lines += [line(" ".join(str(word) for word in words if word)), f"    {line(row['reason'])}"]
            lines += [f"    {line(row['remediation'])}"] if row["remediation"] else []
        return "\n".join([*lines, self.more] if self.more else lines) or "There are none."

    def table(self) -> display.Shown:
        """Return the findings for people."""
        names = ("severity", "rule", "region", "resource_id", "name", "reason", "remediation")
        rows = judging.as_text(self.frame)[list(names)].to_numpy().tolist()
        return display.shown((*names[:-1], "fix"), rows)

    def notes(self) -> list[str]:
        """Return how many are not shown."""
        return [self.more] if self.more else []


@check_arguments
def measure(
    *,
    old_days: int = 365,
    known_accounts: Iterable[str] = (),
    packages: Iterable[str] = (),
    fail_on: str = NEVER,
) -> Measure:
    """Return what an audit measures by; so that a slip is told before a long scan, and not after it.

    Parameters
    ----------
    old_days, known_accounts, packages
        As for `judge`.
    fail_on
        As for `check`.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        One of them cannot be right.
    """
    _bad(fail_on)
    check_range("old_days", old_days, 0, MOST_DAYS, "days")
    known = frozenset(known_accounts)
    for one in sorted(known):
        if not _KNOWN.fullmatch(one):
            raise errors.ParameterError(
                f"{one!r} is no account, organization or unit.",
                why="An account id has 12 digits, dashes left out; the others are named by their ARN.",
                fix="Correct it in known_accounts.",
            )
    return Measure(old_days=old_days, known_accounts=known, packages=all_wanted(packages))


_KNOWN = re.compile(r"[0-9]{12}|arn:[\w-]+:organizations::[0-9]{12}:(?:organization|ou)/[\w/-]+")


@check_arguments
def check(
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: Thoroughness = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
    keep_last: int | None = None,
    min_age_days: float | None = None,
    launched_days: float | None = None,
    retention_days: float | None = None,
    orphan_days: float | None = None,
    max_count: int | None = None,
    known_accounts: Iterable[str] = (),
    packages: Iterable[str] = (),
    old_days: int = 365,
    fail_on: str = NEVER,
    session: boto3.Session | None = None,
) -> AuditResult:
    """List what accounts own, what uses it, what it costs and what is wrong with it. Nothing is changed.

    Parameters
    ----------
    regions, accounts, buckets, one_by_one, deadline_minutes, session
        As for `vmsnix_ops.audit.inventory.scan`.
    keep_last, min_age_days, launched_days, retention_days, orphan_days, max_count
        The retirement policy; by default that of `vmsnix_ops.settings.Settings`.
    known_accounts, packages, old_days
        As for `judge`.
    fail_on
        Severity from which a finding makes the audit fail: ``"critical"``, ``"high"``, ``"medium"``,
        ``"low"`` or ``"never"``.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter or a setting is invalid. AWS was not asked.
    vmsnix_ops.errors.CredentialsError
        There are no credentials.
    vmsnix_ops.errors.InterruptedRunError
        Ctrl-C.
    """
    measure(old_days=old_days, known_accounts=known_accounts, packages=packages, fail_on=fail_on)
    found = scan(
        regions=regions,
        accounts=accounts,
        buckets=buckets,
        one_by_one=one_by_one,
        deadline_minutes=deadline_minutes,
        keep_last=keep_last,
        min_age_days=min_age_days,
        launched_days=launched_days,
        retention_days=retention_days,
        orphan_days=orphan_days,
        max_count=max_count,
        session=session,
    )
    return judge(found, old_days=old_days, known_accounts=known_accounts, packages=packages, fail_on=fail_on)


@check_arguments
def judge(
    inventory: Inventory,
    *,
    old_days: int = 365,
    known_accounts: Iterable[str] = (),
    packages: Iterable[str] = (),
    fail_on: str = NEVER,
    tables: Tables | None = None,
) -> AuditResult:
    """Return the audit of a scan: findings, and the changes since the last one. The scan is kept.

    Parameters
    ----------
    inventory
        The scan.
    old_days
        Age from which an AMI is old.
    known_accounts
        Accounts, organizations and units that AMIs may be shared with.
    packages
        Packages that no image shall contain, such as ``openssl<3.0.15``.
    fail_on
        As for `check`.
    tables
        The history; the settings' by default.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A package or a known account cannot be right.
    """
    tables = tables or open_tables(load())
    by = measure(old_days=old_days, known_accounts=known_accounts, packages=packages, fail_on=fail_on)
    problems = []
    try:
        changed = comparing.since_last(inventory, tables)
    except errors.RecordsError as error:
        changed = comparing.Changes.none()
        problems.append(f"What changed since the last audit is not known. {error}")
    found = judging.evaluate(inventory, measure=by, tables=tables)
    try:
        comparing.store(inventory, tables)
    except errors.RecordsError as error:
        problems.append(f"The next audit cannot compare itself with this one. {error}")
    return AuditResult(inventory, found, changed, tuple(problems), fail_on)


def write(audit: AuditResult, folder: Path) -> dict[str, Path]:
    """Write every form of the report into a folder, and return the files by name.

    Parquet and JSON hold every value as it is. CSV is what people open in spreadsheets, which run a cell
    that begins like a formula, and anybody who may name a resource could write one: there, such texts get an
    apostrophe before them.
    """
    frames = {
        "inventory": audit.inventory.frame,
        "findings": judging.as_text(audit.findings),
        "changes": audit.changes.frame,
    }
    paths: dict[str, Path] = {}
    for name, frame in frames.items():
        frames[name] = clean = frame_without_secrets(frame)
        paths[f"{name}.csv"] = folder / f"{name}.csv"
        text = io.StringIO()
        write_csv(clean, text, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
        files.write(paths[f"{name}.csv"], text.getvalue())
        paths[f"{name}.parquet"] = folder / f"{name}.parquet"
        with files.private_umask():
            clean.to_parquet(paths[f"{name}.parquet"], index=False)
    paths["audit.json"] = folder / "audit.json"
    files.write(paths["audit.json"], "".join(_json(audit, frames)))
    paths["audit.html"] = folder / "audit.html"
    files.write(paths["audit.html"], page.render(audit.inventory, audit.findings, audit.changes))
    return paths


def _bad(severity: str) -> tuple[str, ...]:
    """Return the severities that are as bad as this."""
    if severity == NEVER:
        return ()
    if severity not in SEVERITIES:
        known = (*SEVERITIES, NEVER)
        raise errors.ParameterError(
            f"There is no severity {severity!r}.",
            why=errors.nearest(severity, known),
            fix=f"Choose {', '.join(known)}.",
        )
    return SEVERITIES[: SEVERITIES.index(severity) + 1]


ROWS_AT_ONCE = 5000


def _json(audit: AuditResult, frames: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield one object: what the audit is about, and the rows of every frame, some at a time."""
    whole = {
        "scanned_at": audit.inventory.scanned_at.isoformat(),
        "run_id": audit.inventory.run.run_id,
        "places": [
            {"account": account, "region": region, "amis": number}
            for (account, region), number in audit.inventory.places.items()
        ],
        "totals": views.totals(audit.inventory),
        "compared": str(audit.changes),
    }
    yield json_text(json.dumps(whole, indent=1, ensure_ascii=False)).removesuffix("\n}")
    for name, frame in frames.items():
        yield f',\n "{name}": ['
        for start in range(0, len(frame), ROWS_AT_ONCE):
            part = frame.iloc[start : start + ROWS_AT_ONCE]
            text = part.to_json(orient="records", date_format="iso", force_ascii=False, lines=True).rstrip(
                "\n"
            )
            yield ("," if start else "") + "\n  " + ",\n  ".join(json_text(text.rstrip("\n")).split("\n"))
        yield "]"
    yield "\n}\n"
