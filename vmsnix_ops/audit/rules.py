"""The rules of an audit, by what they are about. Each is one function: which rows, why, and what fixes it.

A remediation is a command that ends its finding. Where a person has to choose something, the command has a
placeholder such as ``<AMI>``, which every shell refuses until it is replaced; where no command is enough, or
none is right for everybody, the reason says what is left to decide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit.finding import Command, Facts, commands, fill, found, publish_again, rule, together
from vmsnix_ops.aws import drift
from vmsnix_ops.aws.images import Ami
from vmsnix_ops.aws.references import ALIAS, SETTLED
from vmsnix_ops.aws.references import load as load_references
from vmsnix_ops.aws.snapshots import Snapshot
from vmsnix_ops.progress import counted
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Hashable

    import pandas as pd

    from vmsnix_ops.audit.inventory import Pointer
    from vmsnix_ops.settings import Settings


# Who may use it, and how well it is kept: sharing, encryption, metadata.

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
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
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
        remediation="aws ec2 modify-snapshot-attribute --region {region} --snapshot-id {resource_id} "
        "--attribute createVolumePermission --operation-type remove --group-names all",
    )


@rule("high")
def shared_with_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are shared with accounts, organizations or units which nobody declared known."""
    known = facts.measure.known_accounts | {account for account, _ in facts.inventory.places}
    amis = facts.amis
    amis = amis[amis["references"].str.contains('"shared-with"', regex=False)]
    strangers = amis["references"].map(lambda text: _strangers(text, known))
    some = strangers.map(bool).astype(bool)
    amis, strangers = amis[some], strangers[some]
    return found(
        amis,
        "It is shared with {strangers}, which nobody declared known.",
        evidence="launch permission",
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        strangers=strangers.map(lambda some: ", ".join(who for who, _ in some)),
        change=strangers.map(
            lambda some: (
                "Remove=[" + ",".join(f"{{{MEMBERS.get(kind, 'UserId')}={who}}}" for who, kind in some) + "]"
            )
        ),
    )


def _strangers(references: str, known: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    shared = [(one.id, one.type) for one in load_references(references) if one.kind == "shared-with"]
    return [(who, kind) for who, kind in shared if who != "all" and who not in known]


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
        remediation="aws ec2 copy-image --region {region} --source-region {region} "
        "--source-image-id {resource_id} --name {copy} --encrypted --copy-image-tags",
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
        remediation="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--imds-support v2.0",
        warning=used.map({True: warning, False: ""}),
    )


# Whose it is, and whether it is still what was published.


@rule("low")
def untagged(facts: Facts) -> pd.DataFrame:
    """Find AMIs and snapshots without tags: nobody knows whose they are."""
    some = facts.of("ami", "snapshot")
    return found(
        some[some["tags"] == "{}"],
        "It has no tags, so nobody knows whose it is.",
        evidence="no tags",
        remediation="aws ec2 create-tags --region {region} --resources {resource_id} "
        "--tags Key=owner,Value=<TEAM>",
    )


@rule("info")
def not_published_by_us(facts: Facts) -> pd.DataFrame:
    """Find AMIs that something else published, or that this history does not know."""
    amis, recorded = facts.amis, facts.recorded
    foreign = found(
        amis[amis["digest"].isna()],
        "It carries no tag of ours: something else made it. A person knows whether that is as it should be.",
        evidence="no tag vmsnix:digest",
        remediation="aws ec2 describe-images --region {region} --image-ids {resource_id}",
    )
    if not len(recorded):
        return foreign
    known = set(recorded["ami_id"])
    lost = amis[amis["digest"].notna() & ~amis["resource_id"].isin(known)]
    unknown = found(
        lost,
        "It carries our tags, but this history does not know it.",
        evidence="no row in the table amis",
        remediation="vmsnix history sync --region {region}",
    )
    return together(foreign, unknown)


@rule("medium")
def drifted(facts: Facts) -> pd.DataFrame:
    """Find AMIs that differ from what was recorded when they were published and promoted."""
    expected = {(row["ami_id"], row["region"]): row for row in facts.expected}
    amis = facts.amis[facts.amis["resource_id"].isin({ami_id for ami_id, _ in expected})]
    held = _snapshots(facts, amis)
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "snapshots"}
    words = []
    for row in amis.to_dict("records"):
        ami = _seen(row)
        then = dict(expected.get((ami.ami_id, ami.region), {}))
        if (ami.account, ami.region) in blind:
            ami = replace(ami, snapshot_ids=())
            then.pop("snapshot_id", None)
        known = {name: value for name, value in then.items() if name not in _UNSEEN}
        found_ = [*drift.registration(known, ami, held), *drift.dated(known, ami)] if known else []
        words.append("; ".join(_told(one) for one in found_))
    some = amis.assign(difference=words).query("difference != ''")
    return found(
        some,
        "It is not as it was recorded: {difference}. The command compares it in full, and says what puts it "
        "right, and what takes over what AWS has; a person decides.",
        evidence="tables amis, promotions and retirements",
        remediation="vmsnix verify --regions {region}",
    )


_UNSEEN = ("architecture", "ena_support", "tpm_support", "description")
"""What a verification compares and no inventory holds."""


def _seen(row: dict[Hashable, Any]) -> Ami:
    """Return an AMI as the inventory saw it."""
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


def _snapshots(facts: Facts, amis: pd.DataFrame) -> dict[str, Snapshot]:
    """Return the snapshots of some AMIs by id, as the inventory saw them."""
    wanted = {one for text in amis["snapshots"].fillna("[]") for one in json.loads(text)}
    rows = facts.of("snapshot", "direct-upload")
    return {
        row["resource_id"]: Snapshot(
            row["resource_id"],
            row["state"],
            row["created_at"],
            int(row["size_gib"]),
            json.loads(row["tags"]),
        )
        for row in rows[rows["resource_id"].isin(wanted)].to_dict("records")
    }


def _told(one: drift.Difference) -> str:
    return f"{one.field} was {one.recorded or 'nothing'}, is {one.found or 'nothing'}"


# Whether it is used, and whether what uses it can still launch it.


@rule("low")
def unreferenced(facts: Facts) -> pd.DataFrame:
    """Find AMIs of others that nothing uses."""
    amis = facts.amis
    unused = (amis["referenced"] == False).fillna(value=False) & (amis["state"] == "available")  # noqa: E712
    return found(
        amis[unused & amis["digest"].isna()],
        "No instance, launch template, group or parameter names it, nobody else may launch it, and it was "
        "not launched lately. Disabled, it cannot be launched, and can be enabled again.",
        evidence="no reference in any source",
        remediation="aws ec2 disable-image --region {region} --image-id {resource_id}",
    )


@rule("low")
def retirement_due(facts: Facts) -> pd.DataFrame:
    """Find AMIs and snapshots of ours that a retirement would retire or delete now."""
    rows = facts.of("ami", "snapshot", "direct-upload")
    fixes, _ = _by_retirement(facts, rows)
    rows = rows[fixes.notna()]
    verdicts = facts.verdicts(rows)
    return found(
        rows,
        "A retirement would {action} it: {reasons}. The command shows the plan; a person confirms it.",
        evidence="the retirement policy",
        remediation=fixes,
        action=verdicts.map(lambda one: one.action),
        reasons=verdicts.map(lambda one: "; ".join(one.reasons)),
    )


def _by_retirement(facts: Facts, rows: pd.DataFrame) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Return, for AMIs and snapshots, the command that retires or deletes each, and what to say of it.

    Of ours nothing else decides that. There is no command for what a retirement would keep now.
    """
    import pandas as pd

    verdicts = facts.verdicts(rows)
    goes = verdicts.map(lambda one: one is not None and not one.kept).astype(bool)
    ami = rows["kind"] == "ami"
    numbers = facts.inventory.rules.options(load().retirement)
    plan = " ".join(["vmsnix retire --regions {region}", *numbers])
    parts = [
        commands(f"{plan} --amis {{resource_id}}", rows[goes & ami]),
        commands(plan, rows[goes & ~ami]),
    ]
    reasons = verdicts.map(lambda one: "; ".join(one.reasons) if one else "its plan says why")
    words = fill(" A retirement keeps it now: {reasons}; a person decides.", rows.assign(reasons=reasons))
    words = words.mask(goes, " The command shows how a retirement ends it; a person confirms it.")
    return pd.concat(parts).reindex(rows.index), words


def _removal(facts: Facts, rows: pd.DataFrame, template: str) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Return the command that removes each row, and what to say of it: ours by a retirement alone."""
    ours = rows["digest"].notna()
    fixes, words = _by_retirement(facts, rows)
    return fixes.where(ours, commands(template, rows)), words.where(ours, "")


@rule("info")
def use_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that nothing we see names, but that others may use."""
    amis = facts.amis
    some = amis[amis["referenced"].isna() & (amis["state"] == "available")]
    young = some["created_at"] > facts.now - SETTLED
    words = some["references"].map(_words).astype("str")
    words = words.where(words != "", "a source could not be read")
    return found(
        some,
        "Nothing that we can see names it, but that is not the whole truth: do not remove it by this alone. "
        "The command shows who may launch it; a person decides.",
        evidence=words.where(
            ~young | (some["references"] != "[]"), "younger than two days, and AWS tells launches a day late"
        ),
        remediation="aws ec2 describe-image-attribute --region {region} --image-id {resource_id} "
        "--attribute launchPermission",
    )


def _words(references: str) -> str:
    return "; ".join(map(str, load_references(references)))


@rule("high")
def deprecated_in_use(facts: Facts) -> pd.DataFrame:
    """Find deprecated AMIs that are still used."""
    amis = facts.amis
    some = amis[(amis["deprecated_at"] < facts.now) & _used(amis)]
    return found(
        some,
        "It is deprecated since {since}, and is still used: move its users to a newer one, or keep it, with "
        "the command.",
        evidence=some["references"].map(_words).astype("str"),
        remediation="aws ec2 disable-image-deprecation --region {region} --image-id {resource_id}",
        since=some["deprecated_at"].dt.strftime("%Y-%m-%d"),
    )


@rule("critical", "low")
def disabled_in_use(facts: Facts) -> pd.DataFrame:
    """Find disabled AMIs that are still used; critical where the next launch takes one, and fails."""
    amis = facts.amis
    some = amis[(amis["state"] == "disabled") & _used(amis)]
    launches = some["references"].map(lambda text: any(one.launches for one in load_references(text)))
    result = {True: "the next launch takes it, and fails", False: "it cannot be launched again"}
    return found(
        some,
        "It is disabled, and is still named: {result}. Move what names it to another one, or enable it.",
        evidence=some["references"].map(_words).astype("str"),
        remediation="aws ec2 enable-image --region {region} --image-id {resource_id}",
        result=launches.map(result),
    ).assign(severity=launches.map({True: "critical", False: "low"}))


@rule("low")
def old(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are older than images should become, and that nobody said will go."""
    amis = facts.amis
    aged = amis["created_at"] < facts.now - timedelta(days=facts.measure.old_days)
    some = amis[aged & amis["deprecated_at"].isna() & (amis["state"] == "available")]
    some = some.assign(age=(facts.now - some["created_at"]).dt.days)
    reason = "It is {age} days old; its packages are as old."
    evidence, day, used = "created {day}", some["created_at"].dt.strftime("%Y-%m-%d"), _used(some)
    # Who uses it would be told a month later that it is deprecated, and would be no further.
    one = found(
        some[used],
        reason + " It is used: publish a newer one, move its users there, and retire this one; until then "
        "this stays.",
        evidence=evidence,
        remediation=publish_again(some[used]),
        day=day,
    )
    other = found(
        some[~used],
        reason + " The command lets it go out of the lists in 30 days.",
        evidence=evidence,
        remediation="aws ec2 enable-image-deprecation --region {region} --image-id {resource_id} "
        f"--deprecate-at {facts.now + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
        day=day,
    )
    return together(one, other)


def _used(amis: pd.DataFrame) -> pd.Series[bool]:
    return (amis["referenced"] == True).fillna(value=False)  # noqa: E712


# What names AMIs that are not there, or that others may take away.


@rule("critical", "low", "info")
def pointer_to_missing(facts: Facts) -> pd.DataFrame:
    """Find what names an AMI that is not there; critical where the next launch takes it, and fails."""
    import pandas as pd

    lost = [one for one in facts.inventory.pointers if not one.owner]
    beside: dict[tuple[str, str, str], _Beside] = {}
    for one in lost:
        beside.setdefault((one.account, one.region, one.ami_id), _Beside()).add(one)
    settings = load()
    judged = [_Lost(one, beside[one.account, one.region, one.ami_id], settings) for one in lost]
    return pd.DataFrame(
        [
            {
                "severity": one.severity,
                "account": one.pointer.account,
                "region": one.pointer.region,
                "kind": one.pointer.reference.kind,
                "resource_id": one.pointer.reference.id,
                "name": one.pointer.ami_id,
                "reason": one.reason,
                "evidence": str(one.pointer.reference),
                "remediation": one.remediation,
            }
            for one in judged
        ]
    )


@dataclass(slots=True)
class _Beside:
    """What names the same AMI: the groups by what they launch it through, and templates by name."""

    groups: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    templates: dict[str, Pointer] = field(default_factory=dict)

    def add(self, pointer: Pointer) -> None:
        one = pointer.reference
        if one.kind == "launch-template":
            self.templates[one.name] = pointer
        elif one.kind == "auto-scaling-group":
            for through in one.through:
                self.groups.setdefault((through.kind, through.id), []).append(one.id)


@dataclass(frozen=True, slots=True)
class _Lost:
    """Something that names an AMI which it cannot launch.

    Attributes
    ----------
    pointer
        It.
    beside
        All that name the same in its account and region.
    settings
        Which parameters are channels.
    """

    pointer: Pointer
    beside: _Beside
    settings: Settings

    @property
    def severity(self) -> str:
        if self.pointer.reference.kind == "instance":
            return "info"
        return "critical" if self.pointer.reference.launches or self._groups() else "low"

    @property
    def reason(self) -> str:
        reference, name = self.pointer.reference, self.pointer.ami_id
        if reference.kind == "instance":
            return (
                f"It runs on, but its AMI {name} is gone, or is not shared with this account any more: it "
                "cannot be launched again. A person decides when it is replaced."
            )
        if self.pointer.unshared:
            return (
                f"It names {name} of account {self.pointer.unshared}, which is not shared with this account. "
                f"The command shares it, and is for account {self.pointer.unshared}."
            )
        words = f"It names {name}, which does not exist here, or is not shared with this account any more."
        if name.startswith(ALIAS):
            words = f"It launches what the parameter {name.removeprefix(ALIAS)} holds, and that is no AMI."
        elif not name.startswith("ami-"):
            words = f"It names {name!r}, which is no AMI id."
        return words + self._advice()

    def _advice(self) -> str:
        kind, groups = self.pointer.reference.kind, ", ".join(self._groups())
        if kind in ("launch-template", "launch-configuration") and groups and not self.remediation:
            return f" The group {groups} launches it by this: fix that first."
        if kind == "parameter" and not self.pointer.reference.launches:
            return " It is a text that mentions the AMI; a person knows what it shall say."
        if self._channel(self.pointer.reference.id):
            return " If no earlier AMI is left to go back to, promote another one (vmsnix promote)."
        return "" if self.remediation else " A person decides what it shall launch."

    @property
    def remediation(self) -> Command | None:
        one = self.pointer.reference
        if self.pointer.unshared and one.kind != "instance":
            return self._command(
                "aws ec2 modify-image-attribute --region {region} --image-id {ami_id} "
                "--launch-permission Add=[{UserId={account}}]",
                ami_id=self.pointer.ami_id,
                account=self.pointer.account,
            )
        if one.kind == "parameter":
            return self._move(one.id) if one.launches else None
        if one.kind == "launch-template":
            return self._template()
        if one.kind == "launch-configuration" and not self._groups():
            return self._command(
                "aws autoscaling delete-launch-configuration --region {region} "
                "--launch-configuration-name={name}",
                name=one.id,
            )
        return self._group() if one.kind == "auto-scaling-group" else None

    def _command(self, template: str, /, *, then: Command | None = None, **values: str | Command) -> Command:
        return Command.of(template, then=then, region=self.pointer.region, **values)

    def _groups(self) -> list[str]:
        """Return the groups that launch it by this template or launch configuration, whatever its version."""
        one = self.pointer.reference
        name = one.name if one.kind == "launch-template" else one.id
        return self.beside.groups.get((one.kind, name), [])

    def _template(self) -> Command | None:
        """Return what gives a template another AMI, where a launch takes it, or removes old versions."""
        one = self.pointer.reference
        if one.through:
            return self._parameter([through.id for through in one.through])
        if not one.versions:  # only EC2's own search found it
            return None
        numbers = " ".join(str(version.number) for version in one.versions)
        remove = self._command(
            "aws ec2 delete-launch-template-versions --region {region} --launch-template-id {template} "
            f"--versions {numbers}",
            template=one.id,
        )
        launched = [version for version in one.versions if version.default or version.latest]
        if not launched:
            return None if self._groups() else remove
        chosen = next((version for version in launched if version.default), launched[0])
        if not chosen.default:
            return self._new_version("--launch-template-id", one.id, chosen.number, then=remove)
        return self._command(
            "aws ec2 modify-launch-template --region {region} --launch-template-id {template} "
            "--default-version {version}",
            template=one.id,
            version=self._new_version("--launch-template-id", one.id, chosen.number),
            then=remove,
        )

    def _new_version(
        self, option: str, template: str, source: int, *, then: Command | None = None
    ) -> Command:
        """Return what makes a version like another but for its AMI, and prints its number."""
        return self._command(
            f"aws ec2 create-launch-template-version --region {{region}} {option} {{template}} "
            f"--source-version {source} --query LaunchTemplateVersion.VersionNumber --output text "
            "--launch-template-data ImageId=<AMI>",
            template=template,
            then=then,
        )

    def _parameter(self, names: list[str]) -> Command | None:
        """Return what lets the parameter that templates resolve hold an AMI."""
        name = names[0]
        if len(names) > 1 or ":" in name:  # a version or a label of it, or another account's
            return None
        if not self.pointer.ami_id.startswith(ALIAS):
            return self._move(name)
        channel = self._channel(name)
        if channel:
            return self._command(
                "vmsnix promote --image {image} --channel {channel} --region {region} --no-dry-run",
                image=channel[0],
                channel=channel[1],
            )
        return self._command(
            "aws ssm put-parameter --region {region} --name {name} --type String --data-type aws:ec2:image "
            "--value <AMI>",
            name=name,
        )

    def _move(self, parameter: str) -> Command:
        channel = self._channel(parameter)
        if channel:
            return self._command(
                "vmsnix rollback --image {image} --channel {channel} --region {region} --regions {region} "
                "--no-dry-run",
                image=channel[0],
                channel=channel[1],
            )
        return self._command(
            "aws ssm put-parameter --region {region} --name {name} --overwrite --value <AMI>", name=parameter
        )

    def _channel(self, parameter: str) -> tuple[str, str] | None:
        """Return image and channel of a parameter of ours."""
        rest = parameter.removeprefix(f"{self.settings.channel_prefix}/").split("/")
        ours = parameter.startswith(f"{self.settings.channel_prefix}/") and len(rest) == 2
        return (rest[0], rest[1]) if ours and rest[1] in self.settings.channels else None

    def _group(self) -> Command | None:
        """Return what lets a group launch another AMI: a change of its template, or of the group."""
        one = self.pointer.reference
        group = (
            "aws autoscaling update-auto-scaling-group --region {region} --auto-scaling-group-name={group} "
            "--launch-template "
        )
        (through,) = one.through
        if through.kind == "launch-configuration":
            return self._command(group + "Version=$Default,LaunchTemplateName=<TEMPLATE>", group=one.id)
        named = self.beside.templates.get(through.id)
        if named is None:
            return None
        if not through.version.isdecimal() or named.reference.through:
            return _Lost(named, self.beside, self.settings).remediation
        if through.mixed:  # the same command would drop everything of the group but the template
            return None
        return self._command(
            group + "LaunchTemplateName={template},Version={version}",
            group=one.id,
            template=through.id,
            version=self._new_version("--launch-template-name", through.id, int(through.version)),
        )


@rule("info")
def pointer_to_others(facts: Facts) -> pd.DataFrame:
    """Find parameters, templates and groups that name an AMI of another account."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": one.reference.kind,
            "resource_id": one.reference.id,
            "name": one.ami_id,
            "reason": f"It names {one.ami_id} of account {one.owner}, which may take it away at any time. "
            "The command makes a copy, where that account shares the snapshot, too: point there; until then "
            "this stays.",
            "evidence": str(one.reference),
            "remediation": Command.of(
                "aws ec2 copy-image --region {region} --source-region {region} --source-image-id {ami_id} "
                "--name <NAME>",
                region=one.region,
                ami_id=one.ami_id,
            ),
        }
        for one in facts.inventory.pointers
        if one.owner and one.reference.kind != "instance"
    ]
    return pd.DataFrame(rows)


# What is left behind: orphans, halves, failures, unfinished work.

FAILED = ("failed", "error", "invalid")
OF_AN_IMAGE = (
    r"^(?:Created by CreateImage\(|Copied for (?:Source|Destination)Ami|Created by AWS-VMImport|"
    r"\[Copied |imported from)"
)
"""How AWS describes snapshots that it made for an AMI."""
IMPORT_RUNS = ("active", "pending", "converting", "updating", "validating")
IMPORT_ENDED = ("deleted", "deleting", "error", "cancelled")
YOUNG = timedelta(minutes=5)
"""Snapshots and AMIs are listed one after the other, and clocks differ: what came between proves nothing."""


@rule("medium")
def orphan_snapshot(facts: Facts) -> pd.DataFrame:
    """Find snapshots of others that were made for an AMI and that no AMI has any more."""
    held = facts.of("snapshot")
    unused = (held["referenced"] == False).fillna(value=False) & (held["state"] == "completed")  # noqa: E712
    unused &= ~(held["created_at"] > facts.now - timedelta(days=facts.inventory.rules.orphan_days))
    others = held["digest"].isna() & held["source"].fillna("").str.contains(OF_AN_IMAGE)
    return found(
        held[unused & others],
        "It was made for an AMI, and no AMI has it.",
        evidence="{source}",
        remediation="aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}",
    )


@rule("medium")
def half_deleted(facts: Facts) -> pd.DataFrame:
    """Find AMIs that name a snapshot which is not there."""
    amis = facts.amis
    amis = amis[~(amis["created_at"] > facts.now - YOUNG)]
    present = set(facts.of("snapshot", "direct-upload")["resource_id"])
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "snapshots"}
    lists = amis["snapshots"].fillna("[]")
    lost = [
        ", ".join(one for one in (json.loads(text) if place not in blind else ()) if one not in present)
        for text, place in zip(lists, zip(amis["account"], amis["region"], strict=True), strict=True)
    ]
    some = amis.assign(lost=lost).query("lost != ''")
    free = (some["referenced"] == False).fillna(value=False)  # noqa: E712
    reason = "Its snapshot {lost} is not in this account: it is deleted, or another account's."
    evidence = "DescribeSnapshots does not list {lost}"
    fixes, words = _removal(
        facts, some[free], "aws ec2 deregister-image --region {region} --image-id {resource_id}"
    )
    one = found(some[free], reason + "{words}", evidence=evidence, remediation=fixes, words=words)
    other = found(
        some[~free],
        reason + " It is used, or nobody can tell: move its users to another AMI first; a person decides.",
        evidence=evidence,
    )
    return together(one, other)


@rule("high")
def failed(facts: Facts) -> pd.DataFrame:
    """Find copies and registrations that failed, and why."""
    reasons = _failures(facts)
    amis = facts.amis[facts.amis["state"].isin(FAILED)]
    held = facts.of("snapshot")
    held = held[held["state"].isin(FAILED)]
    said = [
        message or "; ".join(reasons[one] for one in json.loads(some) if one in reasons) or "nothing"
        for message, some in zip(amis["message"].fillna(""), amis["snapshots"].fillna("[]"), strict=True)
    ]
    fixes, words = _removal(
        facts, amis, "aws ec2 deregister-image --region {region} --image-id {resource_id}"
    )
    one = found(
        amis,
        "It is {state}; AWS says: {said}.{words}",
        evidence="state {state}",
        remediation=fixes,
        said=[text.rstrip(".") for text in said],
        words=words,
    )
    fixes, words = _removal(
        facts, held, "aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}"
    )
    other = found(
        held,
        "It is in state {state}; AWS says: {said}.{words}",
        evidence="state {state}",
        remediation=fixes,
        said=held["message"].fillna("nothing").str.rstrip("."),
        words=words,
    )
    return together(one, other)


def _failures(facts: Facts) -> dict[str, str]:
    """Return why snapshots failed: that of a failed copy tells what the AMI does not."""
    held = facts.of("snapshot")
    some = held[held["state"].isin(FAILED) & held["message"].notna()]
    return dict(zip(some["resource_id"], some["message"], strict=True))


@rule("medium")
def dead_upload(facts: Facts) -> pd.DataFrame:
    """Find direct uploads that nobody finished; they count against the account's pending snapshots."""
    rows = facts.unfinished(facts.of("direct-upload"))
    template = "aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}"
    fixes, words = _removal(facts, rows, template)
    return found(
        rows,
        "It is written through the EBS direct APIs since {created_at}, and is not finished.{words}",
        evidence="state pending, from no volume and no copy",
        remediation=fixes,
        words=words,
    )


@rule("low")
def s3_leftover(facts: Facts) -> pd.DataFrame:
    """Find objects and multipart uploads that publishing left in the bucket."""
    some = facts.unfinished(facts.of("object", "multipart-upload"))
    uploads = some["kind"] == "multipart-upload"
    bucket = some["source"].str.removeprefix("s3://").str.split("/").str[0].fillna("")
    tasks = facts.of("import-task")
    read_now = some["source"].isin(tasks.loc[tasks["state"].isin(IMPORT_RUNS), "source"])
    # VM Import reads only from a bucket of its own region, so the imports there are all that count.
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "imports"}
    looked = set(facts.inventory.places) - blind
    sure = ~uploads & some.index.isin(
        [row for row, *place in some[["account", "region"]].itertuples() if tuple(place) in looked]
    )
    one = found(
        some[sure & ~read_now],
        "No import that runs reads it; publishing removes what it uploaded.",
        evidence="{source}",
        remediation="aws s3api delete-object --bucket {bucket} --key={name}",
        bucket=bucket,
    )
    unsure = found(
        some[~sure & ~uploads],
        "Whether an import reads it is unknown: the imports of its region were not read. The command reads "
        "them; a person decides.",
        evidence="{source}",
        remediation="vmsnix audit --regions {region} --buckets {bucket}",
        bucket=bucket,
    )
    other = found(
        some[uploads],
        "This multipart upload was begun and not ended; its parts are billed and are in no listing.",
        evidence="{source}",
        remediation="aws s3api abort-multipart-upload --bucket {bucket} --key={name} --upload-id={upload}",
        bucket=bucket,
        upload=some["resource_id"],
    )
    return together(one, unsure, other)


@rule("low", "info")
def import_tasks(facts: Facts) -> pd.DataFrame:
    """Find imports that failed in the last week, and imports that run."""
    tasks = facts.of("import-task")
    running = tasks[tasks["state"].isin(IMPORT_RUNS)]
    ended = tasks[tasks["state"].isin(IMPORT_ENDED) & tasks["message"].notna()]
    one = found(
        running,
        "It runs; a publish that waits for it shows it too. AWS says: {said}",
        evidence="{source}",
        remediation="aws ec2 cancel-import-task --region {region} --import-task-id {resource_id}",
        said=running["message"].fillna("nothing"),
    ).assign(severity="info")
    other = found(
        ended,
        "It failed: {message} Nothing has to be removed: AWS lists it for a week; until then this stays.",
        evidence="{source}",
        remediation=publish_again(ended),
        message=ended["message"].str.removesuffix(".") + ".",
    ).assign(severity="low")
    return together(one, other)


# What is inside: images with a package that was asked for, and images of which nobody knows.


@rule("high")
def contains_package(facts: Facts) -> pd.DataFrame:
    """Find AMIs that contain a package which was asked for, such as openssl older than 3.0.15."""
    packages, parts = facts.packages, []
    for wanted in facts.measure.packages:
        rows = packages[packages["name"] == wanted.name]
        versions = {version: wanted.matches(version) for version in rows["version"].fillna("").unique()}
        rows = rows[rows["version"].fillna("").map(versions).astype(bool)]
        if not len(rows):
            continue
        inside = rows.groupby("digest")["version"].agg(lambda some: ", ".join(sorted(set(some.dropna()))))
        amis = facts.amis[facts.amis["digest"].isin(inside.index)]
        parts.append(
            found(
                amis,
                f"It contains {wanted.name} {{versions}} ({wanted} was asked for). Publish one that is built "
                "of newer packages, promote it, and retire this one; until then this stays.",
                evidence="table packages",
                remediation=publish_again(amis),
                versions=amis["digest"].map(inside),
            )
        )
    return together(*parts) if parts else found(facts.amis.head(0), "")


@rule("medium")
def contents_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs of which nobody recorded what is inside, when packages were asked for."""
    amis = facts.amis
    if not facts.measure.packages:
        return found(amis.head(0), "")
    asked = ", ".join(str(wanted) for wanted in facts.measure.packages)
    unknown, ours = ~amis["digest"].isin(facts.known_digests), amis["digest"].notna()
    reason = f"Nobody recorded what is inside it, so it cannot be said whether it contains {asked}."
    one = found(
        amis[unknown & ours],
        reason + " What is published now is recorded: promote that, and retire this one; until then this "
        "stays.",
        evidence="no rows in the table packages",
        remediation=publish_again(amis[unknown & ours]),
    )
    other = found(
        amis[unknown & ~ours],
        reason + " Something else made it: a person must look inside.",
        evidence="no tag vmsnix:digest",
    )
    return together(one, other)


# What an audit does not know.


@rule("high")
def unread(facts: Facts) -> pd.DataFrame:
    """Find accounts, regions and sources that could not be read."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": "region" if one.region else "account",
            "resource_id": one.source,
            "reason": f"{one.error.what} What is there, and what uses it, is unknown. "
            f"{one.error.fix}".strip(),
            "evidence": one.error.why,
        }
        for one in facts.inventory.unread
    ]
    return pd.DataFrame(rows)


@rule("info")
def not_asked_one_by_one(facts: Facts) -> pd.DataFrame:
    """Find regions with so many AMIs that AWS was not asked, for each, who else may launch it."""
    import pandas as pd

    places = [
        (account, region, counted(facts.inventory.places.get((account, region), 0), "AMI"))
        for account, region in facts.inventory.hurried
    ]
    frame = pd.DataFrame(places, columns=["account", "region", "name"]).assign(
        kind="region", resource_id=[region for _, region, _ in places]
    )
    return found(
        frame,
        "{name}: AWS was not asked for each which other accounts may launch it.",
        remediation="vmsnix audit --regions {region} --accounts {account} --one-by-one yes",
    )
