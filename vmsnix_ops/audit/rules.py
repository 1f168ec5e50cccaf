"""The rules of an audit. Each is a function that returns findings, with the reason and a fix.

A fix is a command that ends its finding. If a person has to choose a value, the command contains a
placeholder such as ``<AMI>``, which every shell refuses until it is replaced. If no command is enough, or no
command is right for every account, the reason says what to decide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit.findings import (
    COLUMNS,
    IDENTITY,
    NO_TABLES,
    RULES,
    AuditCriteria,
    AuditData,
    Command,
    ReadableTables,
    commands_for,
    concat,
    fill_template,
    finding_ids,
    findings_for,
    publish_commands,
    rule,
)
from vmsnix_ops.aws import drift
from vmsnix_ops.aws.images import Ami
from vmsnix_ops.aws.references import ALIAS, LAUNCH_REPORT_DELAY, PERMISSION_MEMBERS
from vmsnix_ops.aws.references import references_from_json as load_references
from vmsnix_ops.aws.snapshots import Snapshot
from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.progress import counted
from vmsnix_ops.records import history
from vmsnix_ops.records.recorded_amis import expected_amis, newest_proofs
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    import pandas as pd

    from vmsnix_ops.audit.inventory import ForeignReference, Inventory
    from vmsnix_ops.aws.references import Reference
    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings


def evaluate(
    inventory: Inventory,
    *,
    criteria: AuditCriteria | None = None,
    tables: Tables | None = None,
    rules: Iterable[str] = (),
) -> pd.DataFrame:
    """Return the findings of all rules, or of some by name, most severe first.

    Columns are those in `COLUMNS`; `remediation` contains a `Command` or nothing, and `severity` is ordered.
    `tables` is the history: without it, and for tables in `ReadableTables.unread`, rules that need it find
    nothing.
    """
    import pandas as pd

    chosen = tuple(rules) or tuple(RULES)
    for name in chosen:
        if name not in RULES:
            raise ParameterError(f"Unknown rule {name!r}.", why=nearest(name, RULES))
    criteria = criteria or AuditCriteria()
    tables = tables or NO_TABLES
    packages, digests = pd.DataFrame(columns=["digest", "name", "version"]), frozenset[str]()
    if criteria.packages:  # else do not read a table that may have millions of rows
        names = [wanted.name for wanted in criteria.packages]
        packages = tables.read("packages", columns=list(packages.columns), where=[("name", "in", names)])
        digests = frozenset(tables.read("packages", columns=["digest"])["digest"])
    recorded, expected = history.amis(tables), expected_amis(tables)
    if isinstance(tables, ReadableTables):
        if tables.unread.keys() & {"amis", "promotions", "retirements"}:
            expected = []  # what AWS should report needs all these tables
        if "packages" in tables.unread:
            criteria = replace(criteria, packages=())
    proofs = newest_proofs(tables)
    data = AuditData(inventory, criteria, recorded, expected, packages, digests, proofs)
    # Parts are sorted one by one and joined in order: sorting the whole would double the memory.
    parts: dict[tuple[int, str], pd.DataFrame] = {}
    for name in chosen:
        part = RULES[name].find(data)
        if not len(part):
            continue
        severity = part["severity"] if "severity" in part else RULES[name].severities[0]
        part = part.assign(rule=name, severity=severity)
        part = part.assign(finding_id=finding_ids(part.reindex(columns=list(IDENTITY))))
        part = _with_types(part.reindex(columns=list(COLUMNS)))
        part = part.sort_values(["account", "region", "resource_id"])
        for one in part["severity"].unique():
            parts[SEVERITIES.index(one), name] = part[part["severity"] == one]
    found = [parts.pop(key) for key in sorted(parts)] or [_with_types(pd.DataFrame(columns=list(COLUMNS)))]
    whole = pd.concat(found, ignore_index=True)
    return whole.assign(severity=history.ordered(whole["severity"], SEVERITIES[::-1]))


def _with_types(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    fixes = [one if isinstance(one, Command) else None for one in frame["remediation"]]
    texts = {name: "str" for name in COLUMNS if name not in ("remediation", "monthly_usd")}
    frame = frame.assign(remediation=pd.Series(fixes, frame.index, "object"))
    return frame.astype({**texts, "monthly_usd": "float64"})


# Sharing, encryption, metadata.

MAX_NAME = 128
COPY = "-encrypted"
MEMBERS = {kind: member for member, kind in PERMISSION_MEMBERS.items()}
"""Members of a launch permission by the type of a reference."""
UNTIL_THEN = "The finding remains until then."


@rule("high")
def public(data: AuditData) -> pd.DataFrame:
    """Find AMIs that everybody may launch."""
    return findings_for(
        data.amis[data.amis["public"].fillna(value=False)],
        "Every AWS account may launch it and read its disk.",
        evidence="Public is true",
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        change="Remove=[{Group=all}]",
    )


@rule("high")
def public_snapshot(data: AuditData) -> pd.DataFrame:
    """Find snapshots that everybody may read, with or without an AMI."""
    rows = data.of_kind("snapshot")
    return findings_for(
        rows[rows["public"].fillna(value=False)],
        "Every AWS account may create volumes from it and read them.",
        evidence="createVolumePermission is all",
        remediation="aws ec2 modify-snapshot-attribute --region {region} --snapshot-id {resource_id} "
        "--attribute createVolumePermission --operation-type remove --group-names all",
    )


@rule("high")
def shared_with_unknown(data: AuditData) -> pd.DataFrame:
    """Find AMIs that are shared with accounts, organizations or units that are not in known_accounts."""
    known = data.criteria.known_accounts | {account for account, _ in data.inventory.regions}
    amis = data.amis
    amis = amis[amis["references"].str.contains('"shared-with"', regex=False)]
    unknown = amis["references"].map(lambda text: _unknown_accounts(text, known))
    some = unknown.map(bool).astype(bool)
    amis, unknown = amis[some], unknown[some]
    return findings_for(
        amis,
        "It is shared with {unknown}, not in known_accounts.",
        evidence="launch permission",
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        subject="{unknown}",
        unknown=unknown.map(lambda some: ", ".join(who for who, _ in some)),
        change=unknown.map(_removal),
    )


def _unknown_accounts(references: str, known: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    shared = [(one.id, one.type) for one in load_references(references) if one.kind == "shared-with"]
    return sorted((who, kind) for who, kind in shared if who != "all" and who not in known)


def _removal(unknown: list[tuple[str, str]]) -> str:
    return "Remove=[" + ",".join(f"{{{MEMBERS.get(kind, kind)}={who}}}" for who, kind in unknown) + "]"


@rule("medium")
def unencrypted(data: AuditData) -> pd.DataFrame:
    """Find AMIs that can be launched and whose disk is not encrypted."""
    amis = data.amis
    some = amis[
        ~amis["encrypted"].fillna(value=False) & (amis["size_gib"] > 0) & (amis["state"] == "available")
    ]
    return findings_for(
        some,
        "Its disk is not encrypted, and neither are volumes created from it, unless the account encrypts by "
        "default. The command creates an encrypted copy. Change all references to the copy and retire this "
        f"AMI. {UNTIL_THEN}",
        evidence="Encrypted is false for a block device",
        remediation="aws ec2 copy-image --region {region} --source-region {region} "
        "--source-image-id {resource_id} --name {copy} --encrypted --copy-image-tags",
        copy=some["name"].fillna("").str.slice(0, MAX_NAME - len(COPY)) + COPY,
    )


@rule("medium")
def no_imdsv2(data: AuditData) -> pd.DataFrame:
    """Find AMIs whose instances answer metadata requests without a session token."""
    amis = data.amis
    some = amis[(amis["imds_support"] != "v2.0") & (amis["state"] == "available")]
    warning = " It is used: test one instance with --metadata-options HttpTokens=required first."
    return findings_for(
        some,
        "Its instances answer metadata requests without a token (IMDSv1), unless the launch forbids it. The "
        "command cannot be undone: instances launched later refuse requests without a token.{warning}",
        evidence="ImdsSupport is not v2.0",
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--imds-support v2.0",
        warning=_is_used(some).map({True: warning, False: ""}),
    )


# Origin, and changes since it was published.


@rule("low")
def untagged(data: AuditData) -> pd.DataFrame:
    """Find AMIs and snapshots without tags."""
    rows = data.of_kind("ami", "snapshot")
    return findings_for(
        rows[rows["tags"] == "{}"],
        "It has no tags that name its owner.",
        evidence="no tags",
        remediation="aws ec2 create-tags --region {region} --resources {resource_id} "
        "--tags Key=owner,Value=<TEAM>",
    )


@rule("info")
def not_published_by_us(data: AuditData) -> pd.DataFrame:
    """Find AMIs that vmsnix did not publish, or that are not in the history."""
    amis = data.amis
    foreign = findings_for(
        amis[amis["digest"].isna()],
        "vmsnix did not publish it. Decide whether it should be there.",
        evidence="no tag vmsnix:digest",
        remediation="aws ec2 describe-images --region {region} --image-ids {resource_id}",
    )
    if not len(data.recorded):
        return foreign
    unrecorded = findings_for(
        amis[amis["digest"].notna() & ~amis["resource_id"].isin(set(data.recorded["ami_id"]))],
        "It has the tags of vmsnix, but is not in the history.",
        evidence="no row in the table amis",
        remediation="vmsnix history sync --region {region}",
    )
    return concat(foreign, unrecorded)


@rule("medium")
def drifted(data: AuditData) -> pd.DataFrame:
    """Find AMIs that differ from the records of their publish, promotions and retirements."""
    expected = {(row["ami_id"], row["region"]): row for row in data.expected}
    amis = data.amis[data.amis["resource_id"].isin({ami_id for ami_id, _ in expected})]
    snapshots = _snapshots(data, amis)
    unreadable = data.inventory.unreadable("snapshots")
    texts = []
    for row in amis.to_dict("records"):
        ami = _ami(row)
        record = dict(expected.get((ami.ami_id, ami.region), {}))
        if (ami.account, ami.region) in unreadable:
            ami = replace(ami, snapshot_ids=())
            record.pop("snapshot_id", None)
        known = {name: value for name, value in record.items() if name not in _NOT_SCANNED}
        found = [*drift.compare_registration(known, ami, snapshots)] if known else []
        found += drift.compare_deprecation(known, ami) if known else []
        words = [f"{one.field} was {one.recorded or 'nothing'}, is {one.found or 'nothing'}" for one in found]
        texts.append("; ".join(words))
    return findings_for(
        amis.assign(difference=texts).query("difference != ''"),
        "It differs from its record: {difference}. The command compares all fields and prints how to restore "
        "the recorded state or to record the current one. Decide which is right.",
        evidence="tables amis, promotions and retirements",
        subject="{difference}",
        remediation="vmsnix verify --regions {region}",
    )


@rule("critical")
def proof_differs(data: AuditData) -> pd.DataFrame:
    """Find AMIs that do not contain the published image, according to their newest proof."""
    proofs = _differing(data)
    amis = data.amis[data.amis["resource_id"].isin(proofs.index)]
    disabled = amis["state"] == "disabled"
    command = "aws ec2 disable-image --region {region} --image-id {resource_id}"
    return findings_for(
        amis,
        "Its newest proof, on {day}, found that it does not contain the published image. {advice} Change "
        f"its references to another AMI, find out who changed it, and delete it. {UNTIL_THEN}",
        evidence="table proofs: {difference}, expected identity {expected}",
        remediation=commands_for(command, amis).mask(disabled, None),
        day=amis["resource_id"].map(proofs["proved_at"].dt.strftime("%Y-%m-%d")),
        difference=amis["resource_id"].map(proofs["reason"]),
        expected=amis["resource_id"].map(proofs["digest"]),
        advice=disabled.map({True: "Do not enable it.", False: "The command disables it."}),
    )


CHANGED = ": a proof found that its content was changed"
"""Why a finding offers no command that lets an AMI be used again."""


def _differing(data: AuditData) -> pd.DataFrame:
    """Return the newest proofs that found a difference, by AMI ID."""
    return data.proofs[data.proofs["verdict"] == "differs"].set_index("ami_id")


_NOT_SCANNED = ("architecture", "ena_support", "tpm_support", "description")
"""Fields that a verification compares and an inventory does not contain."""


def _ami(row: dict[Hashable, Any]) -> Ami:
    import pandas as pd

    given: dict[str, Any] = {str(name): None if pd.isna(one) else one for name, one in row.items()}
    return Ami(
        ami_id=given["resource_id"],
        name=given["name"] or "",
        region=given["region"],
        account=given["account"],
        state=given["state"] or "",
        created_at=given["created_at"],
        architecture="",
        boot_mode=given["boot_mode"] or "",
        root_device=given["root_device"] or "",
        snapshot_ids=tuple(json.loads(given["snapshots"] or "[]")),
        size_gib=int(given["size_gib"] or 0),
        public=bool(given["public"]),
        imds_support=given["imds_support"] or "",
        ena_support=False,
        tpm_support="",
        tags=json.loads(given["tags"] or "{}"),
        deprecated_at=given["deprecated_at"],
    )


def _snapshots(data: AuditData, amis: pd.DataFrame) -> dict[str, Snapshot]:
    wanted = {one for text in amis["snapshots"].fillna("[]") for one in json.loads(text)}
    rows = data.of_kind("snapshot", "direct-upload")
    return {
        row["resource_id"]: Snapshot(
            row["resource_id"], row["state"], row["created_at"], int(row["size_gib"]), json.loads(row["tags"])
        )
        for row in rows[rows["resource_id"].isin(wanted)].to_dict("records")
    }


# Usage, and whether the users can still launch the AMI.


@rule("low")
def unreferenced(data: AuditData) -> pd.DataFrame:
    """Find AMIs that nothing uses and that vmsnix did not publish."""
    amis = data.amis
    return findings_for(
        amis[_is_unused(amis) & (amis["state"] == "available") & amis["digest"].isna()],
        "No instance, launch template, group or parameter references it, no other account may launch it, and "
        "it was not launched recently. A disabled AMI cannot be launched, and can be enabled again.",
        evidence="no reference in any source",
        remediation="aws ec2 disable-image --region {region} --image-id {resource_id}",
    )


@rule("low")
def retirement_due(data: AuditData) -> pd.DataFrame:
    """Find AMIs and snapshots from vmsnix that a retirement would retire or delete now."""
    rows = data.of_kind("ami", "snapshot", "direct-upload")
    fixes, _ = _retirement_fixes(data, rows)
    rows = rows[fixes.notna()]
    rule_results = data.rule_results(rows)
    return findings_for(
        rows,
        "A retirement would {action} it: {reasons}. The command shows the plan; confirm it to proceed.",
        evidence="the retirement policy",
        remediation=fixes,
        action=rule_results.map(lambda one: one.action),
        reasons=rule_results.map(lambda one: "; ".join(one.reasons)),
    )


def _retirement_fixes(data: AuditData, rows: pd.DataFrame) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Return the command that retires or deletes each AMI or snapshot, and a text about it.

    Only a retirement deletes what vmsnix published. There is no command for what it would keep now.
    """
    import pandas as pd

    rule_results = data.rule_results(rows)
    due = rule_results.map(lambda one: one is not None and not one.kept).astype(bool)
    ami = rows["kind"] == "ami"
    numbers = data.inventory.rules.options(load().retirement)
    plan = " ".join(["vmsnix retire --regions {region}", *numbers])
    fixes = [
        commands_for(f"{plan} --amis {{resource_id}}", rows[due & ami]),
        commands_for(plan, rows[due & ~ami]),
    ]
    reasons = rule_results.map(lambda one: "; ".join(one.reasons) if one else "its plan has the reasons")
    texts = fill_template(
        " A retirement keeps it now ({reasons}): decide what to do.", rows.assign(reasons=reasons)
    )
    texts = texts.mask(due, " The command shows the plan of a retirement; confirm it to proceed.")
    return pd.concat(fixes).reindex(rows.index), texts


def _deletion_fixes(
    data: AuditData, rows: pd.DataFrame, template: str
) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Return the command that deletes each row, and a text about it; see `_retirement_fixes`."""
    ours = rows["digest"].notna()
    fixes, texts = _retirement_fixes(data, rows)
    return fixes.where(ours, commands_for(template, rows)), texts.where(ours, "")


@rule("info")
def use_unknown(data: AuditData) -> pd.DataFrame:
    """Find AMIs that nothing references, but that other accounts may use."""
    amis = data.amis
    some = amis[amis["referenced"].isna() & (amis["state"] == "available")]
    young = some["created_at"] > data.now - LAUNCH_REPORT_DELAY
    texts = _reference_texts(some)
    texts = texts.where(texts != "", "a source could not be read")
    return findings_for(
        some,
        "No reference found, but other accounts may use it. Check its launch permissions before deleting it: "
        "the command lists them. Decide whether it is used.",
        evidence=texts.where(
            ~young | (some["references"] != "[]"),
            "younger than two days, and AWS reports launches a day late",
        ),
        remediation="aws ec2 describe-image-attribute --region {region} --image-id {resource_id} "
        "--attribute launchPermission",
    )


def _reference_texts(rows: pd.DataFrame) -> pd.Series[Any]:
    return rows["references"].map(lambda text: "; ".join(map(str, load_references(text)))).astype("str")


def _is_used(rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows["referenced"] == True).fillna(value=False)  # noqa: E712


def _is_unused(rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows["referenced"] == False).fillna(value=False)  # noqa: E712


@rule("high")
def deprecated_in_use(data: AuditData) -> pd.DataFrame:
    """Find deprecated AMIs that are still used."""
    amis = data.amis
    some = amis[(amis["deprecated_at"] < data.now) & _is_used(amis)]
    changed = some["resource_id"].isin(_differing(data).index)
    end = commands_for("aws ec2 disable-image-deprecation --region {region} --image-id {resource_id}", some)
    return findings_for(
        some,
        "It has been deprecated since {since} and is still used. Change its references to a newer "
        "AMI{choice}.",
        evidence=_reference_texts(some),
        remediation=end.mask(changed, None),
        choice=changed.map({True: CHANGED, False: ", or end the deprecation with the command"}),
        since=some["deprecated_at"].dt.strftime("%Y-%m-%d"),
    )


@rule("critical", "low")
def disabled_in_use(data: AuditData) -> pd.DataFrame:
    """Find disabled AMIs that are still referenced (critical if the next launch uses one)."""
    amis = data.amis
    some = amis[(amis["state"] == "disabled") & _is_used(amis)]
    launches = some["references"].map(lambda text: any(one.launches for one in load_references(text)))
    result = {True: "the next launch will fail", False: "it cannot be launched again"}
    changed = some["resource_id"].isin(_differing(data).index)
    enable = commands_for("aws ec2 enable-image --region {region} --image-id {resource_id}", some)
    return findings_for(
        some,
        "It is disabled and still referenced: {result}. Change its references to another AMI{choice}.",
        evidence=_reference_texts(some),
        remediation=enable.mask(changed, None),
        result=launches.map(result),
        choice=changed.map({True: CHANGED, False: ", or enable it"}),
    ).assign(severity=launches.map({True: "critical", False: "low"}))


@rule("low")
def old(data: AuditData) -> pd.DataFrame:
    """Find available AMIs that are older than old_days and have no deprecation date."""
    amis = data.amis
    aged = amis["created_at"] < data.now - timedelta(days=data.criteria.old_days)
    some = amis[aged & amis["deprecated_at"].isna() & (amis["state"] == "available")]
    some = some.assign(age=(data.now - some["created_at"]).dt.days)
    reason = "It is {age} days old, and so are its packages."
    evidence, day, used = "created {day}", some["created_at"].dt.strftime("%Y-%m-%d"), _is_used(some)
    # The users of a deprecated AMI would only get another finding a month later.
    in_use = findings_for(
        some[used],
        f"{reason} It is used: publish a newer one, change its references to it, and retire this AMI. "
        f"{UNTIL_THEN}",
        evidence=evidence,
        remediation=publish_commands(some[used]),
        day=day,
    )
    unused = findings_for(
        some[~used],
        f"{reason} The command deprecates it in 30 days; then it is no longer listed.",
        evidence=evidence,
        remediation="aws ec2 enable-image-deprecation --region {region} --image-id {resource_id} "
        f"--deprecate-at {data.now + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
        day=day,
    )
    return concat(in_use, unused)


# References to AMIs that do not exist, or that belong to other accounts.


@rule("critical", "low", "info")
def reference_to_missing(data: AuditData) -> pd.DataFrame:
    """Find references to a missing AMI (critical if the next launch uses it)."""
    import pandas as pd

    missing = [one for one in data.inventory.foreign_references if not one.owner]
    others: dict[tuple[str, str, str], _OtherReferences] = {}
    for one in missing:
        others.setdefault((one.account, one.region, one.ami_id), _OtherReferences()).add(one)
    settings = load()
    broken = [_BrokenReference(one, others[one.account, one.region, one.ami_id], settings) for one in missing]
    return pd.DataFrame(
        [
            {
                "severity": one.severity,
                "account": one.foreign.account,
                "region": one.foreign.region,
                "kind": one.reference.kind,
                "resource_id": one.reference.id,
                "name": one.foreign.ami_id,
                "subject": one.foreign.ami_id,
                "reason": one.reason,
                "evidence": str(one.reference),
                "remediation": one.remediation,
            }
            for one in broken
        ]
    )


@dataclass(slots=True)
class _OtherReferences:
    """References to the same AMI: groups by what they launch it through, and templates by name."""

    groups: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    templates: dict[str, ForeignReference] = field(default_factory=dict)

    def add(self, foreign: ForeignReference) -> None:
        one = foreign.reference
        if one.kind == "launch-template":
            self.templates[one.name] = foreign
        elif one.kind == "auto-scaling-group":
            for through in one.through:
                self.groups.setdefault((through.kind, through.id), []).append(one.id)


@dataclass(frozen=True, slots=True)
class _BrokenReference:
    """A reference to an AMI that cannot be launched through it, and all others to the same AMI."""

    foreign: ForeignReference
    others: _OtherReferences
    settings: Settings

    @property
    def reference(self) -> Reference:
        return self.foreign.reference

    @property
    def severity(self) -> str:
        if self.reference.kind == "instance":
            return "info"
        return "critical" if self.reference.launches or self._groups() else "low"

    @property
    def reason(self) -> str:
        ami_id, owner = self.foreign.ami_id, self.foreign.unshared
        if self.reference.kind == "instance":
            return (
                f"The instance is running, but its AMI {ami_id} no longer exists or is no longer shared with "
                "this account, so it cannot be launched again. Decide when to replace it."
            )
        if owner:
            return (
                f"It references {ami_id} of account {owner}, which is not shared with this account. The "
                f"command shares it; run it with credentials of account {owner}."
            )
        text = f"It references {ami_id}, which does not exist or is no longer shared with this account."
        if ami_id.startswith(ALIAS):
            text = (
                f"It launches the value of the parameter {ami_id.removeprefix(ALIAS)}, which is not an AMI."
            )
        elif not ami_id.startswith("ami-"):
            text = f"It references {ami_id!r}, which is not an AMI ID."
        return text + self._advice()

    def _advice(self) -> str:
        kind, groups = self.reference.kind, ", ".join(self._groups())
        if kind in ("launch-template", "launch-configuration") and groups and not self.remediation:
            return f" The group {groups} launches through it: fix the group first."
        if kind == "parameter" and not self.reference.launches:
            return " The parameter is a text that contains the AMI ID: decide what it should contain."
        if any(self._channel(self.reference.id)):
            return " If there is no earlier AMI to roll back to, promote another one (vmsnix promote)."
        return "" if self.remediation else " Decide what it should launch."

    @property
    def remediation(self) -> Command | None:
        one = self.reference
        if self.foreign.unshared and one.kind != "instance":
            return self._command(
                "aws ec2 modify-image-attribute --region {region} --image-id {ami_id} "
                "--launch-permission Add=[{UserId={account}}]",
                ami_id=self.foreign.ami_id,
                account=self.foreign.account,
            )
        if one.kind == "parameter":
            return self._set_parameter(one.id) if one.launches else None
        if one.kind == "launch-template":
            return self._fix_template()
        if one.kind == "launch-configuration" and not self._groups():
            return self._command(
                "aws autoscaling delete-launch-configuration --region {region} "
                "--launch-configuration-name={name}",
                name=one.id,
            )
        return self._fix_group() if one.kind == "auto-scaling-group" else None

    def _command(self, template: str, /, *, then: Command | None = None, **values: str | Command) -> Command:
        return Command.of(template, then=then, region=self.foreign.region, **values)

    def _groups(self) -> list[str]:
        """Return the groups that launch through this template (any version) or launch configuration."""
        one = self.reference
        return self.others.groups.get((one.kind, one.name if one.kind == "launch-template" else one.id), [])

    def _fix_template(self) -> Command | None:
        """Return the command that gives a template another AMI, or deletes its old versions."""
        one = self.reference
        if one.through:
            return self._fix_resolved_parameter([through.id for through in one.through])
        if not one.versions:  # only EC2's own search found it
            return None
        numbers = " ".join(str(version.number) for version in one.versions)
        delete = self._command(
            "aws ec2 delete-launch-template-versions --region {region} --launch-template-id {template} "
            f"--versions {numbers}",
            template=one.id,
        )
        launched = [version for version in one.versions if version.default or version.latest]
        if not launched:
            return None if self._groups() else delete
        chosen = next((version for version in launched if version.default), launched[0])
        if not chosen.default:
            return self._new_version("--launch-template-id", one.id, chosen.number, then=delete)
        return self._command(
            "aws ec2 modify-launch-template --region {region} --launch-template-id {template} "
            "--default-version {version}",
            template=one.id,
            version=self._new_version("--launch-template-id", one.id, chosen.number),
            then=delete,
        )

    def _new_version(
        self, option: str, template: str, source: int, *, then: Command | None = None
    ) -> Command:
        """Return the command that copies a version with another AMI, and prints the new number."""
        return self._command(
            f"aws ec2 create-launch-template-version --region {{region}} {option} {{template}} "
            f"--source-version {source} --query LaunchTemplateVersion.VersionNumber --output text "
            "--launch-template-data ImageId=<AMI>",
            template=template,
            then=then,
        )

    def _fix_resolved_parameter(self, names: list[str]) -> Command | None:
        """Return the command that sets the parameter that a template resolves."""
        name = names[0]
        if len(names) > 1 or ":" in name:  # a version or a label, or a parameter of another account
            return None
        if not self.foreign.ami_id.startswith(ALIAS):
            return self._set_parameter(name)
        image, channel = self._channel(name)
        if channel:
            promote = "vmsnix promote --image {image} --channel {channel} --region {region} --no-dry-run"
            return self._command(promote, image=image, channel=channel)
        return self._command(
            "aws ssm put-parameter --region {region} --name {name} --type String --data-type aws:ec2:image "
            "--value <AMI>",
            name=name,
        )

    def _set_parameter(self, parameter: str) -> Command:
        image, channel = self._channel(parameter)
        if channel:
            rollback = "vmsnix rollback --image {image} --channel {channel} --region {region}"
            return self._command(
                f"{rollback} --regions {{region}} --no-dry-run", image=image, channel=channel
            )
        return self._command(
            "aws ssm put-parameter --region {region} --name {name} --overwrite --value <AMI>", name=parameter
        )

    def _channel(self, parameter: str) -> tuple[str, str]:
        """Return image and channel of a parameter; empty if it is no channel."""
        prefix = f"{self.settings.channel_prefix}/"
        image, _, channel = parameter.removeprefix(prefix).partition("/")
        is_channel = parameter.startswith(prefix) and channel in self.settings.channels
        return (image, channel) if is_channel else ("", "")

    def _fix_group(self) -> Command | None:
        """Return the command that lets a group launch another AMI: it changes its template, or the group."""
        one = self.reference
        update = (
            "aws autoscaling update-auto-scaling-group --region {region} --auto-scaling-group-name={group} "
            "--launch-template "
        )
        (through,) = one.through
        if through.kind == "launch-configuration":
            return self._command(update + "Version=$Default,LaunchTemplateName=<TEMPLATE>", group=one.id)
        template = self.others.templates.get(through.id)
        if template is None:
            return None
        if not through.version.isdecimal() or template.reference.through:
            return _BrokenReference(template, self.others, self.settings).remediation
        if through.mixed:  # the command would replace everything of the group by the template
            return None
        return self._command(
            update + "LaunchTemplateName={template},Version={version}",
            group=one.id,
            template=through.id,
            version=self._new_version("--launch-template-name", through.id, int(through.version)),
        )


@rule("info")
def reference_to_foreign(data: AuditData) -> pd.DataFrame:
    """Find parameters, templates and groups that reference an AMI of another account."""
    import pandas as pd

    command = (
        "aws ec2 copy-image --region {region} --source-region {region} --source-image-id {ami_id} "
        "--name <NAME>"
    )
    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": one.reference.kind,
            "resource_id": one.reference.id,
            "name": one.ami_id,
            "subject": one.ami_id,
            "reason": f"It references {one.ami_id} of account {one.owner}, which may delete it or end the "
            "sharing at any time. The command creates a copy if the account also shares the snapshot. Change "
            f"the reference to the copy. {UNTIL_THEN}",
            "evidence": str(one.reference),
            "remediation": Command.of(command, region=one.region, ami_id=one.ami_id),
        }
        for one in data.inventory.foreign_references
        if one.owner and one.reference.kind != "instance"
    ]
    return pd.DataFrame(rows)


# Orphans, failures and unfinished work.

FAILED = ("failed", "error", "invalid")
OF_AN_IMAGE = (
    r"^(?:Created by CreateImage\(|Copied for (?:Source|Destination)Ami|Created by AWS-VMImport|"
    r"\[Copied |imported from)"
)
"""Descriptions that AWS gives to snapshots that it creates for an AMI."""
IMPORT_RUNS = ("active", "pending", "converting", "updating", "validating")
IMPORT_ENDED = ("deleted", "deleting", "error", "cancelled")
YOUNG = timedelta(minutes=5)
"""AMIs and snapshots are listed one after the other, and clocks differ: a younger AMI is not checked."""
DEREGISTER = "aws ec2 deregister-image --region {region} --image-id {resource_id}"
DELETE_SNAPSHOT = "aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}"


@rule("medium")
def orphan_snapshot(data: AuditData) -> pd.DataFrame:
    """Find snapshots that were created for an AMI, that no AMI uses, and that vmsnix did not publish."""
    rows = data.of_kind("snapshot")
    unused = _is_unused(rows) & (rows["state"] == "completed")
    unused &= ~(rows["created_at"] > data.now - timedelta(days=data.inventory.rules.orphan_days))
    others = rows["digest"].isna() & rows["source"].fillna("").str.contains(OF_AN_IMAGE)
    return findings_for(
        rows[unused & others],
        "It was created for an AMI, and no AMI uses it.",
        evidence="{source}",
        remediation=DELETE_SNAPSHOT,
    )


@rule("medium")
def missing_snapshot(data: AuditData) -> pd.DataFrame:
    """Find AMIs whose snapshot does not exist."""
    amis = data.amis
    amis = amis[~(amis["created_at"] > data.now - YOUNG)]
    present = set(data.of_kind("snapshot", "direct-upload")["resource_id"])
    unreadable = data.inventory.unreadable("snapshots")
    lists = amis["snapshots"].fillna("[]")
    missing = [
        ", ".join(one for one in (json.loads(text) if place not in unreadable else ()) if one not in present)
        for text, place in zip(lists, zip(amis["account"], amis["region"], strict=True), strict=True)
    ]
    some = amis.assign(missing=missing).query("missing != ''")
    unused = _is_unused(some)
    reason = "Its snapshot {missing} is not in this account: it was deleted or belongs to another account."
    evidence = "DescribeSnapshots does not list {missing}"
    fixes, texts = _deletion_fixes(data, some[unused], DEREGISTER)
    return concat(
        findings_for(
            some[unused],
            reason + "{text}",
            evidence=evidence,
            remediation=fixes,
            subject="{missing}",
            text=texts,
        ),
        findings_for(
            some[~unused],
            f"{reason} It is used, or its usage is unknown: change its references to another AMI first. Then "
            "decide whether to deregister it.",
            evidence=evidence,
            subject="{missing}",
        ),
    )


@rule("high")
def failed(data: AuditData) -> pd.DataFrame:
    """Find copies and registrations that failed, and why."""
    import pandas as pd

    amis, rows = data.amis[data.amis["state"].isin(FAILED)], data.of_kind("snapshot")
    rows = rows[rows["state"].isin(FAILED)]
    # The snapshot of a failed copy has the reason that its AMI does not have.
    known = rows[rows["message"].notna()]
    reasons = dict(zip(known["resource_id"], known["message"], strict=True))
    messages = [
        message or "; ".join(reasons[one] for one in json.loads(some) if one in reasons) or "none"
        for message, some in zip(amis["message"].fillna(""), amis["snapshots"].fillna("[]"), strict=True)
    ]
    return concat(
        _failures(data, amis, pd.Series(messages, amis.index, "str"), DEREGISTER),
        _failures(data, rows, rows["message"].fillna("none"), DELETE_SNAPSHOT),
    )


def _failures(data: AuditData, rows: pd.DataFrame, messages: pd.Series[Any], template: str) -> pd.DataFrame:
    fixes, texts = _deletion_fixes(data, rows, template)
    return findings_for(
        rows,
        "Its state is {state}. Message of AWS: {answer}.{text}",
        evidence="state {state}",
        remediation=fixes,
        answer=messages.str.rstrip("."),
        text=texts,
    )


@rule("medium")
def unfinished_upload(data: AuditData) -> pd.DataFrame:
    """Find EBS direct uploads that never completed; they count against the quota of pending snapshots."""
    rows = data.unfinished(data.of_kind("direct-upload"))
    fixes, texts = _deletion_fixes(data, rows, DELETE_SNAPSHOT)
    return findings_for(
        rows,
        "EBS direct upload started {created_at} and never completed.{text}",
        evidence="state pending, no volume, not a copy",
        remediation=fixes,
        text=texts,
    )


@rule("low")
def s3_leftover(data: AuditData) -> pd.DataFrame:
    """Find objects and multipart uploads that publishing left in the bucket."""
    some = data.unfinished(data.of_kind("object", "multipart-upload"))
    uploads = some["kind"] == "multipart-upload"
    bucket = some["source"].str.removeprefix("s3://").str.split("/").str[0].fillna("")
    tasks = data.of_kind("import-task")
    importing = some["source"].isin(tasks.loc[tasks["state"].isin(IMPORT_RUNS), "source"])
    # VM Import reads only from a bucket in its own region, so only the imports of that region count.
    known = set(data.inventory.regions) - data.inventory.unreadable("imports")
    sure = ~uploads & some.index.isin(
        [row for row, *place in some[["account", "region"]].itertuples() if tuple(place) in known]
    )
    unused = findings_for(
        some[sure & ~importing],
        "A publish deletes its upload, but this object was left. No running import reads it.",
        evidence="{source}",
        subject="{source}",
        remediation="aws s3api delete-object --bucket {bucket} --key={name}",
        bucket=bucket,
    )
    unsure = findings_for(
        some[~sure & ~uploads],
        "It is unknown whether an import reads it, because the imports of its region were not read. The "
        "command reads them. Then decide whether to delete it.",
        evidence="{source}",
        subject="{source}",
        remediation="vmsnix audit --regions {region} --buckets {bucket}",
        bucket=bucket,
    )
    multipart = findings_for(
        some[uploads],
        "This multipart upload was started and never completed. AWS bills its parts, and lists no object.",
        evidence="{source}",
        subject="{source}",
        remediation="aws s3api abort-multipart-upload --bucket {bucket} --key={name} --upload-id={upload}",
        bucket=bucket,
        upload=some["resource_id"],
    )
    return concat(unused, unsure, multipart)


@rule("low", "info")
def import_tasks(data: AuditData) -> pd.DataFrame:
    """Find imports that failed in the last week, and imports that are running."""
    tasks = data.of_kind("import-task")
    running = tasks[tasks["state"].isin(IMPORT_RUNS)]
    ended = tasks[tasks["state"].isin(IMPORT_ENDED) & tasks["message"].notna()]
    return concat(
        findings_for(
            running,
            "The import is running. Message of AWS: {answer}. Wait for it, or cancel it with the command.",
            evidence="{source}",
            remediation="aws ec2 cancel-import-task --region {region} --import-task-id {resource_id}",
            answer=running["message"].fillna("none").str.rstrip("."),
        ).assign(severity="info"),
        findings_for(
            ended,
            "The import failed: {message}. There is nothing to delete. AWS lists it for a week, and the "
            "finding remains until then.",
            evidence="{source}",
            remediation=publish_commands(ended),
            message=ended["message"].str.removesuffix("."),
        ).assign(severity="low"),
    )


# Packages of images.


@rule("high")
def contains_package(data: AuditData) -> pd.DataFrame:
    """Find AMIs that contain a package in the parameter packages, such as openssl<3.0.15."""
    parts = []
    for wanted in data.criteria.packages:
        rows = data.packages[data.packages["name"] == wanted.name]
        matches = {version: wanted.matches(version) for version in rows["version"].fillna("").unique()}
        rows = rows[rows["version"].fillna("").map(matches).astype(bool)]
        if not len(rows):
            continue
        versions = rows.groupby("digest")["version"].agg(lambda some: ", ".join(sorted(set(some.dropna()))))
        amis = data.amis[data.amis["digest"].isin(versions.index)]
        parts.append(
            findings_for(
                amis,
                f"It contains {wanted.name} {{versions}} (packages: {wanted}). Publish an image with newer "
                f"packages, promote it, and retire this AMI. {UNTIL_THEN}",
                evidence="table packages",
                remediation=publish_commands(amis),
                subject=str(wanted),
                versions=amis["digest"].map(versions),
            )
        )
    return concat(*parts) if parts else findings_for(data.amis.head(0), "")


@rule("medium")
def contents_unknown(data: AuditData) -> pd.DataFrame:
    """Find AMIs whose packages are not recorded; only with the parameter packages."""
    amis = data.amis
    if not data.criteria.packages:
        return findings_for(amis.head(0), "")
    names = ", ".join(str(wanted) for wanted in data.criteria.packages)
    unknown, ours = ~amis["digest"].isin(data.recorded_digests), amis["digest"].notna()
    reason = f"Its packages are not recorded, so it is unknown whether it contains {names}."
    return concat(
        findings_for(
            amis[unknown & ours],
            f"{reason} Publish the image again, which records its packages, promote it, and retire this AMI. "
            f"{UNTIL_THEN}",
            evidence="no rows in the table packages",
            remediation=publish_commands(amis[unknown & ours]),
        ),
        findings_for(
            amis[unknown & ~ours],
            f"{reason} vmsnix did not publish it: decide how to inspect it.",
            evidence="no tag vmsnix:digest",
        ),
    )


# What the audit could not read.


@rule("high")
def unread(data: AuditData) -> pd.DataFrame:
    """Find accounts, regions and sources that could not be read."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": "region" if one.region else "account",
            "resource_id": one.source,
            "subject": one.bucket,
            "reason": f"{one.error.what} Its resources and their usage are unknown. {one.error.fix}".strip(),
            "evidence": one.error.why,
        }
        for one in data.inventory.unread
    ]
    return pd.DataFrame(rows)


@rule("info")
def not_read_one_by_one(data: AuditData) -> pd.DataFrame:
    """Find regions with so many AMIs that the launch permissions of each one were not read."""
    import pandas as pd

    regions = [
        (account, region, counted(data.inventory.regions.get((account, region), 0), "AMI"))
        for account, region in data.inventory.not_read_one_by_one
    ]
    frame = pd.DataFrame(regions, columns=["account", "region", "name"]).assign(
        kind="region", resource_id=[region for _, region, _ in regions]
    )
    return findings_for(
        frame,
        "{name}: their launch permissions were not read, so it is unknown which other accounts may use them.",
        remediation="vmsnix audit --regions {region} --accounts {account} --one-by-one yes",
    )
