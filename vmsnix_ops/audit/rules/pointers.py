"""What names AMIs that are not there, or that others may take away."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, rule
from vmsnix_ops.aws.references import ALIAS
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.audit.values import Pointer
    from vmsnix_ops.settings import Settings

_THROUGH_CONFIGURATION = re.compile(r"launch configuration (.+), \d+ wanted")
_THROUGH_TEMPLATE = re.compile(r"(mixed instances, )?launch template (\S+), version (\S+), \d+ wanted")


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
                "kind": one.pointer.evidence.kind,
                "resource_id": one.pointer.evidence.id,
                "name": one.pointer.ami_id,
                "reason": one.reason,
                "evidence": str(one.pointer.evidence),
                "cure": one.cure,
            }
            for one in judged
        ]
    )


@dataclass(slots=True)
class _Beside:
    """What names the same AMI: the groups by what they launch it through, and templates by name."""

    configurations: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    templates: dict[str, Pointer] = field(default_factory=dict)

    def add(self, pointer: Pointer) -> None:
        one = pointer.evidence
        if one.kind == "launch-template":
            self.templates[_template_name(pointer)] = pointer
        elif one.kind == "auto-scaling-group":
            configuration = _THROUGH_CONFIGURATION.fullmatch(one.detail)
            template = _THROUGH_TEMPLATE.fullmatch(one.detail)
            if configuration:
                self.configurations.setdefault(configuration[1], []).append(one.id)
            if template:
                self.groups.setdefault(template[2], []).append(one.id)


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
        if self.pointer.evidence.kind == "instance":
            return "info"
        return "critical" if self.pointer.evidence.launches or self._groups() else "low"

    @property
    def reason(self) -> str:
        evidence, name = self.pointer.evidence, self.pointer.ami_id
        if evidence.kind == "instance":
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
        kind, groups = self.pointer.evidence.kind, ", ".join(self._groups())
        if kind in ("launch-template", "launch-configuration") and groups and not self.cure:
            return f" The group {groups} launches it by this: cure that first."
        if kind == "parameter" and not self.pointer.evidence.launches:
            return " It is a text that mentions the AMI; a person knows what it shall say."
        if self._channel(self.pointer.evidence.id):
            return " If no earlier AMI is left to go back to, promote another one (vmsnix promote-ami)."
        return "" if self.cure else " A person decides what it shall launch."

    @property
    def cure(self) -> str:
        one = self.pointer.evidence
        if self.pointer.unshared and one.kind != "instance":
            return (
                f"aws ec2 modify-image-attribute --region {self.pointer.region} --image-id "
                f"{self.pointer.ami_id} --launch-permission 'Add=[{{UserId={self.pointer.account}}}]'"
            )
        if one.kind == "parameter":
            return self._move(one.id) if one.launches else ""
        if one.kind == "launch-template":
            return self._template()
        if one.kind == "launch-configuration" and not self._groups():
            return (
                f"aws autoscaling delete-launch-configuration {self._where} "
                f"--launch-configuration-name={shlex.quote(one.id)}"
            )
        return self._group() if one.kind == "auto-scaling-group" else ""

    @property
    def _where(self) -> str:
        return f"--region {self.pointer.region}"

    def _groups(self) -> list[str]:
        """Return the groups that launch it by this template or launch configuration, whatever its version."""
        one = self.pointer.evidence
        if one.kind == "launch-configuration":
            return self.beside.configurations.get(one.id, [])
        if one.kind == "launch-template":
            return self.beside.groups.get(_template_name(self.pointer), [])
        return []

    def _template(self) -> str:
        """Return what gives a template another AMI, where a launch takes it, or removes old versions."""
        one = self.pointer.evidence
        aliases = [word for word in one.detail.split(", ") if word.startswith(ALIAS)]
        if aliases:
            return self._parameter(aliases)
        template, versions = f"{self._where} --launch-template-id {one.id}", one.versions
        remove = f"aws ec2 delete-launch-template-versions {template} --versions "
        remove += " ".join(str(number) for number in versions)
        launched = {what: number for number, what in versions.items() if what}
        if not launched:
            return "" if self._groups() else remove
        default = next((number for what, number in launched.items() if "default" in what), None)
        make = _new_version(template, default or launched["latest"])
        if default:
            make = f'aws ec2 modify-launch-template {template} --default-version "$({make})"'
        return f"{make} && {remove}"

    def _parameter(self, aliases: list[str]) -> str:
        """Return what lets the parameter that templates resolve hold an AMI."""
        name = aliases[0].removeprefix(ALIAS)
        if len(aliases) > 1 or ":" in name:  # a version or a label of it, or another account's
            return ""
        if not self.pointer.ami_id.startswith(ALIAS):
            return self._move(name)
        channel = self._channel(name)
        if channel:
            return _vmsnix("promote-ami", *channel, self.pointer.region)
        return (
            f"aws ssm put-parameter {self._where} --name {shlex.quote(name)} --type String "
            "--data-type aws:ec2:image --value <AMI>"
        )

    def _move(self, parameter: str) -> str:
        channel = self._channel(parameter)
        if channel:
            return _vmsnix("rollback", *channel, self.pointer.region)
        return (
            f"aws ssm put-parameter {self._where} --name {shlex.quote(parameter)} --overwrite --value <AMI>"
        )

    def _channel(self, parameter: str) -> tuple[str, str] | None:
        """Return image and channel of a parameter of ours."""
        rest = parameter.removeprefix(f"{self.settings.pointer_prefix}/").split("/")
        ours = parameter.startswith(f"{self.settings.pointer_prefix}/") and len(rest) == 2
        return (rest[0], rest[1]) if ours and rest[1] in self.settings.channels else None

    def _group(self) -> str:
        """Return what lets a group launch another AMI: a change of its template, or of the group."""
        one = self.pointer.evidence
        group = (
            f"aws autoscaling update-auto-scaling-group {self._where} "
            f"--auto-scaling-group-name={shlex.quote(one.id)} --launch-template "
        )
        if one.detail.startswith("launch configuration "):
            return f"{group}Version='$Default',LaunchTemplateName=<TEMPLATE>"
        match = _THROUGH_TEMPLATE.fullmatch(one.detail)
        if match is None:
            return ""
        mixed, name, version = match.groups()
        named = self.beside.templates.get(name)
        if named is None:
            return ""
        template = _Lost(named, self.beside, self.settings)
        if not version.isdecimal() or ALIAS in template.pointer.evidence.detail:
            return template.cure
        # Of a group with mixed instances, the same command would drop everything but the template.
        make = _new_version(f"{self._where} --launch-template-name {name}", int(version))
        return "" if mixed else f'{group}LaunchTemplateName={name},Version="$({make})"'


def _template_name(pointer: Pointer) -> str:
    return pointer.evidence.detail.split(", version")[0]


def _new_version(template: str, source: int) -> str:
    """Return what makes a version like another but for its AMI, and prints its number."""
    return (
        f"aws ec2 create-launch-template-version {template} --source-version {source} "
        "--query LaunchTemplateVersion.VersionNumber --output text --launch-template-data ImageId=<AMI>"
    )


def _vmsnix(runbook: str, image: str, channel: str, region: str) -> str:
    return (
        f"vmsnix {runbook} --image {shlex.quote(image)} --channel {channel} --region {region} "
        f"{f'--regions {region} ' if runbook == 'rollback' else ''}--no-dry-run"
    )


@rule("info")
def pointer_to_others(facts: Facts) -> pd.DataFrame:
    """Find parameters, templates and groups that name an AMI of another account."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": one.evidence.kind,
            "resource_id": one.evidence.id,
            "name": one.ami_id,
            "reason": f"It names {one.ami_id} of account {one.owner}, which may take it away at any time. "
            "The command makes a copy, where that account shares the snapshot, too: point there; until then "
            "this stays.",
            "evidence": str(one.evidence),
            "cure": f"aws ec2 copy-image --region {one.region} --source-region {one.region} "
            f"--source-image-id {one.ami_id} --name <NAME>",
        }
        for one in facts.inventory.pointers
        if one.owner and one.evidence.kind != "instance"
    ]
    return pd.DataFrame(rows)
