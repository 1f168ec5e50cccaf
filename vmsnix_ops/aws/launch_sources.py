"""What launches instances, and of which AMI: launch templates, launch configurations, Auto Scaling groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmsnix_ops.aws.error_codes import RETRYABLE
from vmsnix_ops.aws.evidence import AMI_ID, Evidence
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import items, patiently
from vmsnix_ops.aws.session import Client, code_of

Found = Iterator[tuple[str, Evidence]]
ALIAS = "resolve:ssm:"
_PUBLIC = re.compile(rf"{ALIAS}(?:arn:[^:]+:ssm:[^:]*::parameter)?/aws/service/")


@dataclass(slots=True)
class Templates:
    """Launch templates with their versions, kept for the groups that use them."""

    names: dict[str, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    default: dict[str, int] = field(default_factory=dict)
    images: dict[str, dict[int, str]] = field(default_factory=dict)
    snapshots: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    unresolved: dict[str, Exception] = field(default_factory=dict)

    @needs("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions", "ssm:GetParameters")
    def read(self, ec2: Client, ssm: Client) -> Found:
        """Yield the templates of each AMI, with the versions that name it.

        The newest and the default versions of all templates come in few pages; only templates that have more
        are asked one by one.
        """
        for template in items(ec2, "describe_launch_templates", "LaunchTemplates", MaxResults=200):
            template_id = template["LaunchTemplateId"]
            self.names[template_id] = template["LaunchTemplateName"]
            self.newest[template_id] = template["LatestVersionNumber"]
            self.default[template_id] = template["DefaultVersionNumber"]
        if self.names:
            self._take(self._versions(ec2, Versions=["$Latest", "$Default"]))
        for template_id, newest in self.newest.items():
            if {self.default[template_id], newest} != set(range(1, newest + 1)):
                self._take(self._versions(ec2, LaunchTemplateId=template_id))
        asked = {image for versions in self.images.values() for image in versions.values()}
        aliases = [image for image in asked if image.startswith(ALIAS)]
        self.aliases |= resolve(ssm, aliases, self.unresolved)
        for template_id, versions in self.images.items():
            yield from self._found(template_id, versions)
        for template_id, snapshots in self.snapshots.items():
            for snapshot_id in snapshots:
                yield snapshot_id, Evidence("launch-template", template_id, self.names.get(template_id, ""))

    def lost(self, *, public: bool) -> Found:
        """Raise why a parameter could not be read that a template names; yields nothing.

        Parameters
        ----------
        public
            Whether to look at the parameters that AWS publishes, or at all others.
        """
        yield from ()
        for alias, error in self.unresolved.items():
            if _PUBLIC.match(alias) is not None if public else _PUBLIC.match(alias) is None:
                raise error

    @staticmethod
    def _versions(ec2: Client, **which: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from items(
                ec2, "describe_launch_template_versions", "LaunchTemplateVersions", MaxResults=200, **which
            )
        except ec2.exceptions.ClientError as error:
            if not code_of(error).startswith("InvalidLaunchTemplateId.NotFound"):
                raise  # else somebody deleted it meanwhile

    def _take(self, versions: Iterable[Mapping[str, Any]]) -> None:
        for version in versions:
            template_id, data = version["LaunchTemplateId"], version["LaunchTemplateData"]
            if data.get("ImageId"):
                self.images.setdefault(template_id, {})[version["VersionNumber"]] = data["ImageId"]
            self.snapshots.setdefault(template_id, set()).update(_volumes(data))

    def _found(self, template_id: str, versions: Mapping[int, str]) -> Found:
        by_image: dict[str, list[int]] = {}
        through: dict[str, set[str]] = {}
        for number, image in sorted(versions.items()):
            ami_id = self.ami(image)
            if not ami_id:
                continue
            by_image.setdefault(ami_id, []).append(number)
            through.setdefault(ami_id, set()).update([image] if image.startswith(ALIAS) else [])
        for ami_id, numbers in by_image.items():
            words = [self._word(template_id, number) for number in numbers]
            plural = "s" if len(words) > 1 else ""
            detail = f"{self.names.get(template_id, '')}, version{plural} {', '.join(words)}"
            detail += "".join(f", {alias}" for alias in sorted(through[ami_id]))
            yield ami_id, Evidence("launch-template", template_id, detail)

    def _word(self, template_id: str, number: int) -> str:
        marks = [
            mark
            for mark, marked in (("default", self.default), ("latest", self.newest))
            if marked.get(template_id) == number
        ]
        return f"{number}" + (f" ({' and '.join(marks)})" if marks else "")

    def ami(self, image: str) -> str:
        """Return the AMI id that an ``ImageId`` stands for; itself when it stands for none.

        So what launches nothing (``resolve:ssm:`` of a parameter that is gone) is not lost. It is empty where
        nobody could tell what it stands for.
        """
        return "" if image in self.unresolved else self.aliases.get(image, image)

    def of_specification(self, asked: Mapping[str, Any]) -> tuple[str, str]:
        """Return AMI and words of a template as a group names it; both empty when we do not know it."""
        by_name = {name: template_id for template_id, name in self.names.items()}
        template_id = asked.get("LaunchTemplateId") or by_name.get(asked.get("LaunchTemplateName", ""), "")
        wanted = str(asked.get("Version") or "$Default")
        number = {"$Default": self.default, "$Latest": self.newest}.get(wanted, {}).get(template_id)
        if number is None and wanted.isdecimal():
            number = int(wanted)
        image = self.images.get(template_id, {}).get(number or 0, "")
        return self.ami(
            image
        ), f"launch template {self.names.get(template_id, template_id)}, version {wanted}"


def _volumes(asked: Mapping[str, Any]) -> list[str]:
    """Return the snapshots that a launch makes volumes of, besides those of its AMI."""
    devices = asked.get("BlockDeviceMappings") or ()
    return [device["Ebs"]["SnapshotId"] for device in devices if (device.get("Ebs") or {}).get("SnapshotId")]


@needs("ssm:GetParameters")
def resolve(ssm: Client, aliases: Iterable[str], refused: dict[str, Exception]) -> dict[str, str]:
    """Return the AMI id behind each ``resolve:ssm:name``, with version or label, where there is one.

    Those that could not be read are put into `refused`, each with the error.
    """
    wanted = sorted({alias.removeprefix(ALIAS) for alias in aliases})
    found: dict[str, str] = {}
    hidden: dict[str, Exception] = {}
    for parameter in values(ssm, wanted, hidden):
        match = AMI_ID.search(parameter["Value"])
        if match:
            for name in (parameter["Name"], parameter.get("ARN", "")):
                found[f"{ALIAS}{name}{parameter.get('Selector', '')}"] = match[0]
    refused |= {f"{ALIAS}{name}": error for name, error in hidden.items()}
    return found


@needs("ssm:GetParameters")
def values(ssm: Client, names: Sequence[str], refused: dict[str, Exception]) -> Iterator[dict[str, Any]]:
    """Yield parameters by name; those that could not be read are put into `refused`, each with the error.

    AWS refuses ten at once when it refuses one of them (a shared parameter, one that a policy leaves out, a
    name that cannot be), so the others are asked for again.
    """
    for start in range(0, len(names), 10):
        asked = names[start : start + 10]
        try:
            answer = patiently(ssm, "get_parameters", Names=asked)
        except ssm.exceptions.ClientError as error:
            if code_of(error) in RETRYABLE:
                raise
            if len(asked) == 1:
                refused[asked[0]] = error
            else:
                for name in asked:
                    yield from values(ssm, [name], refused)
        else:
            yield from answer["Parameters"]


@needs("autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeAutoScalingGroups")
def scaling(autoscaling: Client, templates: Templates) -> Found:
    """Yield the launch configurations of each AMI, and the groups that launch it by whatever way."""
    by_configuration: dict[str, str] = {}
    for one in items(autoscaling, "describe_launch_configurations", "LaunchConfigurations", MaxRecords=100):
        by_configuration[one["LaunchConfigurationName"]] = one["ImageId"]
        for named in (one["ImageId"], *_volumes(one)):
            yield named, Evidence("launch-configuration", one["LaunchConfigurationName"])
    groups = items(autoscaling, "describe_auto_scaling_groups", "AutoScalingGroups", MaxRecords=100)
    for group in groups:
        for ami_id, through in _launches(group, by_configuration, templates):
            if ami_id:
                detail = f"{through}, {group['DesiredCapacity']} wanted"
                yield ami_id, Evidence("auto-scaling-group", group["AutoScalingGroupName"], detail)


def _launches(
    group: Mapping[str, Any], by_configuration: Mapping[str, str], templates: Templates
) -> Iterator[tuple[str, str]]:
    configuration = group.get("LaunchConfigurationName")
    if configuration:
        yield by_configuration.get(configuration, ""), f"launch configuration {configuration}"
    if group.get("LaunchTemplate"):
        yield templates.of_specification(group["LaunchTemplate"])
    mixed = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate") or {}
    specifications = [mixed, *(mixed.get("Overrides") or ())]
    for asked in filter(None, (one.get("LaunchTemplateSpecification") for one in specifications)):
        ami_id, through = templates.of_specification(asked)
        yield ami_id, f"mixed instances, {through}"
    for override in mixed.get("Overrides") or ():
        if override.get("ImageId"):
            yield override["ImageId"], f"override for {override.get('InstanceType', 'its instances')}"
