"""Run an audit, and write its result for people and programs: a page, CSV, Parquet and JSON."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, files
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.audit import changes as audit_changes
from vmsnix_ops.audit import inventory as inventories
from vmsnix_ops.audit import views
from vmsnix_ops.audit.acknowledgements import COLUMNS as ACKNOWLEDGED
from vmsnix_ops.audit.acknowledgements import SHOW, mark, split
from vmsnix_ops.audit.findings import NO_TABLES, AuditCriteria, ReadableTables, as_text
from vmsnix_ops.audit.inventory import DEADLINE_MINUTES, Inventory, OneByOne
from vmsnix_ops.audit.page import page, past_audits
from vmsnix_ops.audit.retirement.decisions import RetirementRules
from vmsnix_ops.audit.rules import evaluate
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.progress import counted
from vmsnix_ops.records.recorded_amis import newest_proofs
from vmsnix_ops.records.result import Result, saving, where
from vmsnix_ops.records.secrets import frame_without_secrets
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.templates import fill
from vmsnix_ops.text import json_text, line, write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import boto3
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmsnix_ops.audit.changes import Changes
    from vmsnix_ops.records.run_context import RunContext

NEVER = "never"


@check_arguments
def scan(
    regions: str | Iterable[str] = (),
    *,
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: OneByOne = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
    session: boto3.Session | None = None,
) -> Inventory:
    """Read every AMI and snapshot with its usage and cost. Nothing is written, neither in AWS nor here.

    Parameters
    ----------
    regions
        ``"all"``, a region, or a list of regions; by default the region of the settings or of AWS.
    accounts, buckets, one_by_one, deadline_minutes, session
        As for `check`.

    Raises
    ------
    vmsnix_ops.errors.VmsnixError
        As for `check`.
    """
    return inventories.scan(
        regions=_as_list(regions),
        accounts=accounts,
        buckets=buckets,
        one_by_one=one_by_one,
        deadline_minutes=deadline_minutes,
        session=session,
    )


@check_arguments
def check(
    regions: str | Iterable[str] = (),
    *,
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: OneByOne = "auto",
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
    """List every AMI and snapshot with its usage, cost, findings and fixes. Nothing is changed.

    `AuditResult.save` stores the scan and its findings in the tables, once for each run.

    Parameters
    ----------
    regions
        A region or a list of regions; by default the region of the settings or of AWS. ``"all"``: every
        region that is enabled, in each account.
    accounts
        Account IDs or role ARNs (see `vmsnix_ops.aws.accounts.open_accounts`); by default the setting
        ``audit_accounts``, or the caller's account.
    buckets
        Buckets of uploads in the caller's account; by default the bucket of the settings.
    one_by_one
        Whether to read the launch permissions and Image Builder recipes of each AMI. AWS reports them only
        for one AMI at a time. ``"auto"`` reads them in regions with at most 500 AMIs. Elsewhere, the usage
        of an AMI without references is unknown.
    deadline_minutes
        Stop scanning after this many minutes and report what was not read.
    keep_last, min_age_days, launched_days, retention_days, orphan_days, max_count
        The retirement policy; by default that of `vmsnix_ops.settings.Settings`.
    known_accounts
        IDs of accounts, and ARNs of organizations and units, that AMIs may be shared with.
    packages
        Packages that no image may contain, such as ``openssl<3.0.15``.
    old_days
        Age in days from which an AMI is old.
    fail_on
        Lowest severity that fails the audit: ``"critical"``, ``"high"``, ``"medium"``, ``"low"`` or
        ``"never"``.
    session
        Overrides the AWS environment. It also assumes the roles in other accounts.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter or a setting is invalid. Nothing was read.
    vmsnix_ops.errors.CredentialsError
        There are no credentials. `Inventory.unread` lists all other errors.
    vmsnix_ops.errors.InterruptedRunError
        Ctrl-C.
    """
    criteria = AuditCriteria.of(old_days=old_days, known_accounts=known_accounts, packages=packages)
    _severities_from(fail_on)
    rules = RetirementRules.of(
        load().retirement,
        keep_last=keep_last,
        min_age_days=min_age_days,
        launched_days=launched_days,
        retention_days=retention_days,
        orphan_days=orphan_days,
        max_count=max_count,
    )
    inventory = inventories.scan(
        rules,
        regions=_as_list(regions),
        accounts=accounts,
        buckets=buckets,
        one_by_one=one_by_one,
        deadline_minutes=deadline_minutes,
        session=session,
    )
    return AuditResult.of(inventory, criteria, fail_on=fail_on)


def _as_list(regions: str | Iterable[str]) -> Iterable[str]:
    return [regions] if isinstance(regions, str) and regions else regions


@dataclass(frozen=True, slots=True)
class AuditResult(Result):
    """The findings of an audit, and what changed since the last one."""

    inventory: Inventory
    findings: pd.DataFrame
    changes: Changes
    # Failures to read or write the tables, as sentences. `save` adds to them.
    problems: list[str] = field(default_factory=list)
    fail_on: str = NEVER  # lowest severity that fails the audit
    # The tables of the history; by default those of the settings.
    tables: Tables | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        criteria: AuditCriteria | None = None,
        *,
        fail_on: str = NEVER,
        tables: Tables | None = None,
    ) -> AuditResult:
        """Find the problems in an inventory, and compare it with the last one of another run."""
        history = tables or open_tables(load())
        problems = []
        try:
            changed = audit_changes.since_last(inventory, history)
        except errors.RecordsError as error:
            changed = audit_changes.Changes.none("The changes are unknown: the last scan could not be read.")
            problems.append(f"Could not compare with the last audit. {error}")
        readable = ReadableTables(history)
        inventory = replace(inventory, frame=_with_proofs(inventory.frame, readable))
        findings = mark(evaluate(inventory, criteria=criteria, tables=readable), readable)
        for name, unread in readable.unread.items():
            result = (
                "Acknowledged findings are listed with the others."
                if name == "acknowledgements"
                else f"Rules that need the table {name} found nothing."
            )
            problems.append(f"{result} {unread}")
        return cls(inventory, findings, changed, problems, fail_on, tables)

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.inventory.run

    @property
    def title(self) -> str:
        """The title."""
        return "Inventory"

    def facts(self) -> list[tuple[str, str]]:
        """Return the retirement policy."""
        return [("retirement policy", str(self.inventory.rules))]

    def table(self) -> display.DisplayTable:
        """Return numbers and costs by account, region and kind, for people."""
        return display.shortened(self.inventory.table(), BRIEF, "inventory.csv and audit.html")

    def notes(self) -> tuple[str, ...]:
        """Return the failures to read or write the tables."""
        return tuple(self.problems)

    def frame(self) -> pd.DataFrame:
        """Return the findings; ``acknowledged_until`` is empty for those that count."""
        return self.findings

    def summary(self) -> pd.DataFrame:
        """Return the number of findings of each rule and the cost of their resources, most severe first."""
        acknowledged = self.findings["acknowledged_until"].notna()
        counted_apart = self.findings.assign(counts=~acknowledged, acknowledged=acknowledged)
        groups = counted_apart.groupby(["severity", "rule"], as_index=False, sort=False)
        return groups.agg(
            findings=("counts", "sum"),
            acknowledged=("acknowledged", "sum"),
            accounts=("account", "nunique"),
            regions=("region", "nunique"),
            monthly_usd=("monthly_usd", "sum"),
        )

    def show_findings(self, *severities: str, most: int = 10) -> ShownFindings:
        """Return the findings of these severities for people, at most this many of each rule."""
        chosen = self.findings[self.findings["severity"].isin(severities or SEVERITIES)]
        counting, acknowledged = split(chosen)
        first = counting.groupby(["severity", "rule"], sort=False).head(most)
        return ShownFindings(first, len(counting), severities, acknowledged)

    def show_summary(self) -> display.DisplayTable:
        """Return `summary` for people."""
        table = display.frame_table(self.summary(), title="Findings by rule")
        return display.shortened(table, BRIEF, "findings.csv and audit.html")

    def show_changes(self, *, most: int = 200) -> display.DisplayTable:
        """Return what changed since the last audit, for people."""
        table = display.frame_table(self.changes.frame.head(most), title=str(self.changes), nothing="")
        return display.shortened(table, BRIEF, "changes.csv and audit.html")

    def show_inventory(self, kind: str, *, most: int = 200) -> display.DisplayTable:
        """Return resources of a kind (``"ami"``, ``"snapshot"``, ...) for people, oldest first."""
        title = f"Inventory of kind {kind}, oldest first"
        table = display.frame_table(views.show(self.inventory, kind, most=most), title=title)
        return display.shortened(table, BRIEF // 2, "inventory.csv and audit.html")

    def plot(self, *, ax: Axes | None = None) -> Figure:
        """Plot the cost of snapshots by age, by default into a new figure."""
        return views.plot(self.inventory, ax=ax)

    @property
    def error(self) -> errors.VmsnixError | None:
        """`AuditError` for findings as severe as `fail_on`; else `PartialError` if something is missing."""
        severities = _severities_from(self.fail_on)
        # The rule `unread` does not count: it is not about a problem of a resource.
        counting, _ = split(self.findings)
        found = counting[counting["severity"].isin(severities) & (counting["rule"] != "unread")]
        if len(found):
            first = found.iloc[0]
            return errors.AuditError(
                f"{counted(len(found), 'finding')} with severity {' or '.join(severities)}.",
                why=f"The first: {first['resource_id']} {first['region']}: {first['reason']}",
                fix="findings.csv and audit.html in the folder of the run have the fix of each finding.",
            )
        unread = self.inventory.unread
        if not unread and self.problems:
            return errors.PartialError(
                f"The audit is partial: {counted(len(self.problems), 'problem')} with the tables.",
                why=f"The first: {self.problems[0]}",
                fix="All resources were read. Repair the tables, then run the audit again.",
            )
        if not unread:
            return None
        first_unread = unread[0]
        where = " ".join(filter(None, (first_unread.account, first_unread.region)))
        return errors.PartialError(
            f"The audit is partial: {counted(len(unread), 'source')} could not be read.",
            why=f"The first: {first_unread.source} of {where}. {first_unread.error}",
            fix="Apply the fix of each finding of the rule unread, or leave out these regions and accounts.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        shown = self.summary()[["severity", "rule", "findings", "acknowledged"]]
        counting, acknowledged = split(self.findings)
        by_severity, folder = counting["severity"].value_counts(), self.run.folder
        status = "partial" if self.inventory.unread or self.problems else "done"
        wanted = [*self.inventory.regions, *((one.account, one.region) for one in self.inventory.unread)]
        return {
            "status": "failed" if isinstance(self.error, errors.AuditError) else status,
            **where(wanted),
            "problems": list(self.problems),
            "inventory": folder / "inventory.csv",
            "findings": folder / "findings.csv",
            "page": folder / "audit.html",
            **views.totals(self.inventory),
            **{f"findings_{severity}": int(by_severity.get(severity, 0)) for severity in SEVERITIES},
            "findings_acknowledged": len(acknowledged),
            "changes": str(self.changes),
            "tables": [
                {
                    "title": counted(len(counting), "finding")
                    + (f", {len(acknowledged):,} acknowledged" if len(acknowledged) else ""),
                    "columns": list(shown.columns),
                    "rows": shown.to_numpy().tolist(),
                }
            ],
        }

    def _write_files(self, folder: Path) -> None:
        try:
            audit_changes.store(self.inventory, self.tables or open_tables(load()), self.findings)
        except errors.RecordsError as error:
            text = f"Could not store this audit, so the next one cannot compare with it. {error}"
            if text not in self.problems:
                self.problems.append(text)
        with saving(folder):
            files.make_folder(folder)
            write(self, folder)


BRIEF = 10
"""Most rows of a table, and most findings, as text on a terminal and in a log; the files have all."""


MOST_FOLDED = 200
"""Most rows of the folded table of acknowledged findings; findings.csv has all."""

_FOLDED = "<details><summary>{{ text }}</summary>{{ table }}</details>"


@dataclass(frozen=True, slots=True)
class ShownFindings(display.Displayed):
    """Findings for people: a table in a notebook, lines in a log."""

    frame: pd.DataFrame = field(repr=False)  # type: ignore[assignment]  # the findings to show
    total: int  # number of all findings
    severities: tuple[str, ...] = ()  # empty for all
    acknowledged: pd.DataFrame | None = field(default=None, repr=False)  # those that are shown folded

    @property
    def nothing(self) -> str:
        """The text that is shown if there are no findings."""
        return (
            f"No findings with severity {' or '.join(self.severities)}."
            if self.severities
            else "No findings."
        )

    def __str__(self) -> str:
        lines = []
        for row in as_text(self.frame.head(BRIEF)).to_dict("records"):
            texts = (row["severity"], row["rule"], row["region"], row["resource_id"], row["finding_id"])
            lines += [line(" ".join(str(text) for text in texts if text)), f"    {line(row['reason'])}"]
            lines += [f"    {line(row['remediation'])}"] if row["remediation"] else []
        left = self.total - min(len(self.frame), BRIEF)
        more = [f"{left:,} more in findings.csv and audit.html."] if left else []
        folded = [f"{text} not listed: {SHOW}"] if (text := self._counted_apart) else []
        return "\n".join([*(lines + more or [self.nothing]), *folded])

    def _repr_html_(self) -> str:
        shown = display.Displayed._repr_html_(self)
        if self.acknowledged is None or not (text := self._counted_apart):
            return shown
        names = ("severity", "rule", "region", "resource_id", *ACKNOWLEDGED)
        table = display.frame_table(self.acknowledged[list(names)].head(MOST_FOLDED))
        return shown + str(fill(_FOLDED, text=text, table=table))

    @property
    def _counted_apart(self) -> str:
        number = 0 if self.acknowledged is None else len(self.acknowledged)
        return counted(number, "acknowledged finding") if number else ""

    def table(self) -> display.DisplayTable:
        """Return the findings."""
        names = ("finding_id", "severity", "rule", "region", "resource_id", "name", "reason", "remediation")
        rows = as_text(self.frame)[list(names)].to_numpy().tolist()
        return display.make_table(("finding", *names[1:-1], "fix"), rows, nothing=self.nothing)

    def notes(self) -> list[str]:
        """Return how many findings are not shown."""
        left = self.total - len(self.frame)
        return [f"{left:,} more in findings.csv."] if left else []


def _with_proofs(frame: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    proofs = newest_proofs(tables)
    proven = proofs[proofs["verdict"] == "proven"].set_index("ami_id")["proved_at"]
    if proven.empty:  # pandas cannot map to no times
        return frame
    return frame.assign(proven_at=frame["resource_id"].map(proven).astype(frame["proven_at"].dtype))


def write(audit: AuditResult, folder: Path) -> dict[str, Path]:
    """Write the inventory, the findings and the changes to a folder, and return the files by name.

    Parquet and JSON contain exact values. In CSV, a text that starts like a formula gets an apostrophe before
    it: a spreadsheet would run the formula, and anyone who may name a resource can write one.
    """
    frames = {
        "inventory": audit.inventory.frame,
        "findings": as_text(audit.findings),
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
    inventory = replace(audit.inventory, frame=frames["inventory"])
    changed = replace(audit.changes, frame=frames["changes"])
    try:
        past = past_audits(inventory, audit.tables or open_tables(load()))
    except errors.RecordsError:  # a problem of the audit, which lists it
        past = past_audits(inventory, NO_TABLES)
    files.write(paths["audit.html"], page(inventory, frames["findings"], changed, past))
    return paths


def _severities_from(lowest: str) -> tuple[str, ...]:
    if lowest == NEVER:
        return ()
    if lowest not in SEVERITIES:
        known = (*SEVERITIES, NEVER)
        raise errors.ParameterError(
            f"Invalid fail_on {lowest!r}.", why=errors.nearest(lowest, known), fix=f"Use {', '.join(known)}."
        )
    return SEVERITIES[: SEVERITIES.index(lowest) + 1]


ROWS_AT_ONCE = 5000


def _json(audit: AuditResult, frames: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield one JSON object: the scan, and the rows of every frame, some at a time."""
    whole = {
        "scanned_at": audit.inventory.scanned_at.isoformat(),
        "run_id": audit.inventory.run.run_id,
        "regions": [
            {"account": account, "region": region, "amis": number}
            for (account, region), number in audit.inventory.regions.items()
        ],
        "totals": views.totals(audit.inventory),
        "changed": str(audit.changes),
    }
    yield json_text(json.dumps(whole, indent=1, ensure_ascii=False)).removesuffix("\n}")
    for name, frame in frames.items():
        yield f',\n "{name}": ['
        for start in range(0, len(frame), ROWS_AT_ONCE):
            part = frame.iloc[start : start + ROWS_AT_ONCE]
            text = part.to_json(orient="records", date_format="iso", force_ascii=False, lines=True)
            yield ("," if start else "") + "\n  " + ",\n  ".join(json_text(text.rstrip("\n")).split("\n"))
        yield "]"
    yield "\n}\n"
