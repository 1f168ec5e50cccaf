"""Who uses an AMI: everything that AWS can show, from every place that can name one.

An AMI that something still names must not go, and public tools have deleted such AMIs because they looked at
instances only. So references are read from instances, every version of every launch template, launch
configurations, Auto Scaling groups, parameters, and DescribeImageReferences, which also knows Image Builder.

That says who *names* an AMI. Two more signs say who *may* need it without naming it where we can look: other
accounts that may launch it, and when it was last launched. A source that cannot be read is kept in
`References.unread`: where it is not empty, finding no reference proves nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from vmsnix_ops import errors
from vmsnix_ops.aws.error_codes import AMI_NOT_FOUND, RETRYABLE, SNAPSHOT_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import (
    TimeLimit,
    call_with_retries,
    read_pages,
    use_fast_time_parser,
    with_time_limit,
)
from vmsnix_ops.aws.parameters import IMAGE_TYPE
from vmsnix_ops.aws.session import calling, client, code_of
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.settings import RetirementPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    import boto3
    from types_boto3_autoscaling.client import AutoScalingClient
    from types_boto3_autoscaling.type_defs import (
        AutoScalingGroupTypeDef,
        LaunchConfigurationTypeDef,
        LaunchTemplateSpecificationTypeDef,
    )
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        CreateVolumePermissionTypeDef,
        DescribeLaunchTemplateVersionsRequestTypeDef,
        FilterTypeDef,
        ImageReferenceTypeDef,
        LaunchPermissionTypeDef,
        LaunchTemplateVersionTypeDef,
        ResourceTypeRequestTypeDef,
        ResponseLaunchTemplateDataTypeDef,
    )
    from types_boto3_ssm.client import SSMClient
    from types_boto3_ssm.type_defs import ParameterStringFilterTypeDef, ParameterTypeDef

    from vmsnix_ops.aws.session import Options


# One sign that an AMI is used, and where ids of AMIs stand in texts.

AMI_ID = re.compile(r"\bami-(?:[0-9a-f]{17}|[0-9a-f]{8})\b")

Kind = Literal[
    "ami",
    "instance",
    "launch-template",
    "launch-configuration",
    "auto-scaling-group",
    "parameter",
    "image-recipe",
    "container-recipe",
    "shared-with",
    "snapshot-shared-with",
    "snapshot-lock",
    "launched",
]


@dataclass(frozen=True, slots=True, order=True)
class TemplateVersion:
    """A version of a launch template.

    Attributes
    ----------
    number
        Its number.
    default, latest
        Whether it is that of the template now.
    """

    number: int
    default: bool = False
    latest: bool = False

    def __str__(self) -> str:
        marks = [name for name in ("default", "latest") if getattr(self, name)]
        return f"{self.number}" + (f" ({' and '.join(marks)})" if marks else "")


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """What stands between an AMI or snapshot and what uses it.

    Attributes
    ----------
    kind
        ``"parameter"``: a launch template resolves it; ``"launch-configuration"``, ``"launch-template"`` and
        ``"override"`` (of a group with mixed instances): the group launches by it; ``"snapshot"``: a snapshot
        of the AMI is shared, not the AMI.
    id
        Name of the parameter (as after ``resolve:ssm:``), configuration or template, instance type of the
        override, or id of the snapshot.
    version
        Version of the template that the group asks for: a number, ``$Default`` or ``$Latest``.
    mixed
        Whether the group has mixed instances.
    """

    kind: Literal["parameter", "launch-configuration", "launch-template", "override", "snapshot"]
    id: str
    version: str = ""
    mixed: bool = False

    def __str__(self) -> str:
        if self.kind == "parameter":
            return f"{ALIAS}{self.id}"
        if self.kind == "snapshot":
            return self.id
        if self.kind == "override":
            return f"override for {self.id or 'its instances'}"
        words = f"{self.kind.replace('-', ' ')} {self.id}" + (
            f", version {self.version}" if self.version else ""
        )
        return f"mixed instances, {words}" if self.mixed else words


@dataclass(frozen=True, slots=True)
class Reference:
    """One sign that an AMI or snapshot is used, or shall be kept; `str` makes a sentence of it.

    Attributes
    ----------
    kind
        One of `USE_KINDS` or `HINT_KINDS`; ``"ami"`` for what has a snapshot.
    id
        What uses it: an instance, a template, the name of a parameter, an account; the locked snapshot; the
        time of the last launch.
    versions
        The versions of a launch template or parameter that name it.
    through
        By what it is named, where that is something else.
    source
        `SEARCH` for what only EC2's own search found.
    name
        Name of a launch template.
    type
        State of an instance, data type of a parameter, with whom it is shared (``"account"``,
        ``"organization"``, ``"organizational unit"`` or ``"everybody"``), mode and end of a lock.
    capacity
        How many instances a group wants.
    account
        Account that uses it, where that is not its owner.
    """

    kind: Kind
    id: str
    versions: tuple[TemplateVersion, ...] = ()
    through: tuple[Link, ...] = ()
    source: str = ""
    name: str = ""
    type: str = ""
    capacity: int | None = None
    account: str = ""

    def __str__(self) -> str:
        plural = "s" if len(self.versions) > 1 else ""
        words = [
            self.name,
            self.type,
            f"version{plural} {', '.join(map(str, self.versions))}" if self.versions else "",
            *map(str, self.through),
            f"{self.capacity} wanted" if self.capacity is not None else "",
            "last launch" if self.kind == "launched" else "",
            self.source,
            f"account {self.account}" if self.account else "",
        ]
        told = ", ".join(filter(None, words))
        return f"{self.kind} {self.id}" + (f" ({told})" if told else "")

    @property
    def launches(self) -> bool:
        """Whether the next launch may take it.

        An old version of a launch template does not (a group that is pinned to it is a reference of its own),
        nor does a launch configuration by itself, nor a text that mentions an AMI.
        """
        if self.kind == "launch-template":
            return any(one.default or one.latest for one in self.versions)
        if self.kind == "parameter":
            return self.type == IMAGE_TYPE
        return self.kind in ("auto-scaling-group", "image-recipe", "container-recipe")

    def plain(self) -> dict[str, Any]:
        """Return it for JSON, without what is empty; `from_plain` reads it."""
        found: dict[str, Any] = _plain(self)
        return found

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Reference:
        """Return what `plain` made."""
        versions = tuple(TemplateVersion(**one) for one in found.get("versions", ()))
        through = tuple(Link(**one) for one in found.get("through", ()))
        return cls(**{**found, "versions": versions, "through": through})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, TemplateVersion | Link | Reference):
        return value
    found = {name: getattr(value, name) for name in value.__slots__}
    return {name: _plain(one) for name, one in found.items() if one or type(one) is int}


def references_to_json(references: Iterable[Reference]) -> str:
    """Return references as JSON, which the column ``references`` of an inventory holds."""
    found = [one.plain() for one in references]
    return json.dumps(found) if found else "[]"


def references_from_json(text: str) -> tuple[Reference, ...]:
    """Return the references that `references_to_json` wrote."""
    return tuple(map(Reference.from_plain, json.loads(text))) if text != "[]" else ()


# What launches instances, and of which AMI: launch templates, launch configurations, Auto Scaling groups.


FoundReferences = Iterator[tuple[str, Reference]]
ALIAS = "resolve:ssm:"
_PUBLIC = re.compile(rf"{ALIAS}(?:arn:[^:]+:ssm:[^:]*::parameter)?/aws/service/")


@dataclass(slots=True)
class LaunchTemplates:
    """Launch templates with their versions, kept for the groups that use them."""

    names: dict[str, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    default: dict[str, int] = field(default_factory=dict)
    images: dict[str, dict[int, str]] = field(default_factory=dict)
    snapshots: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    unresolved: dict[str, Exception] = field(default_factory=dict)

    @needs("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions", "ssm:GetParameters")
    def read(self, ec2: EC2Client, ssm: SSMClient) -> FoundReferences:
        """Yield the templates of each AMI, with the versions that name it.

        The newest and the default versions of all templates come in few pages; only templates that have more
        are asked one by one.
        """
        for page in read_pages(ec2.describe_launch_templates, MaxResults=200):
            for template in page["LaunchTemplates"]:
                template_id = template["LaunchTemplateId"]
                self.names[template_id] = template["LaunchTemplateName"]
                self.newest[template_id] = template["LatestVersionNumber"]
                self.default[template_id] = template["DefaultVersionNumber"]
        if self.names:
            self._take(self._versions(ec2, {"Versions": ["$Latest", "$Default"], "MaxResults": 200}))
        for template_id, newest in self.newest.items():
            if {self.default[template_id], newest} != set(range(1, newest + 1)):
                self._take(self._versions(ec2, {"LaunchTemplateId": template_id, "MaxResults": 200}))
        asked = {image for versions in self.images.values() for image in versions.values()}
        aliases = [image for image in asked if image.startswith(ALIAS)]
        self.aliases |= resolve_aliases(ssm, aliases, self.unresolved)
        for template_id, versions in self.images.items():
            yield from self._found(template_id, versions)
        for template_id, snapshots in self.snapshots.items():
            for snapshot_id in snapshots:
                name = self.names.get(template_id, "")
                yield snapshot_id, Reference("launch-template", template_id, name=name)

    def lost(self, *, public: bool) -> FoundReferences:
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
    def _versions(
        ec2: EC2Client, which: DescribeLaunchTemplateVersionsRequestTypeDef
    ) -> Iterator[LaunchTemplateVersionTypeDef]:
        try:
            for page in read_pages(ec2.describe_launch_template_versions, **which):
                yield from page["LaunchTemplateVersions"]
        except ec2.exceptions.ClientError as error:
            if not code_of(error).startswith("InvalidLaunchTemplateId.NotFound"):
                raise  # else somebody deleted it meanwhile

    def _take(self, versions: Iterable[LaunchTemplateVersionTypeDef]) -> None:
        for version in versions:
            template_id, data = version["LaunchTemplateId"], version["LaunchTemplateData"]
            if data.get("ImageId"):
                self.images.setdefault(template_id, {})[version["VersionNumber"]] = data["ImageId"]
            self.snapshots.setdefault(template_id, set()).update(_volumes(data))

    def _found(self, template_id: str, versions: Mapping[int, str]) -> FoundReferences:
        by_image: dict[str, list[int]] = {}
        through: dict[str, set[Link]] = {}
        for number, image in sorted(versions.items()):
            ami_id = self.ami(image)
            if not ami_id:
                continue
            by_image.setdefault(ami_id, []).append(number)
            alias = [Link("parameter", image.removeprefix(ALIAS))] if image.startswith(ALIAS) else []
            through.setdefault(ami_id, set()).update(alias)
        default, newest = self.default.get(template_id), self.newest.get(template_id)
        for ami_id, numbers in by_image.items():
            yield (
                ami_id,
                Reference(
                    "launch-template",
                    template_id,
                    tuple(TemplateVersion(number, number == default, number == newest) for number in numbers),
                    tuple(sorted(through[ami_id])),
                    name=self.names.get(template_id, ""),
                ),
            )

    def ami(self, image: str) -> str:
        """Return the AMI id that an ``ImageId`` stands for; itself when it stands for none.

        So what launches nothing (``resolve:ssm:`` of a parameter that is gone) is not lost. It is empty where
        nobody could tell what it stands for.
        """
        return "" if image in self.unresolved else self.aliases.get(image, image)

    def of_specification(
        self, asked: LaunchTemplateSpecificationTypeDef, *, mixed: bool = False
    ) -> tuple[str, Link]:
        """Return the AMI of a template as a group names it, empty when it is unknown, and the template."""
        by_name = {name: template_id for template_id, name in self.names.items()}
        template_id = asked.get("LaunchTemplateId") or by_name.get(asked.get("LaunchTemplateName", ""), "")
        wanted = asked.get("Version") or "$Default"
        number = {"$Default": self.default, "$Latest": self.newest}.get(wanted, {}).get(template_id)
        if number is None and wanted.isdecimal():
            number = int(wanted)
        image = self.images.get(template_id, {}).get(number or 0, "")
        name = self.names.get(template_id, template_id)
        return self.ami(image), Link("launch-template", name, wanted, mixed)


def _volumes(asked: ResponseLaunchTemplateDataTypeDef | LaunchConfigurationTypeDef) -> list[str]:
    """Return the snapshots that a launch makes volumes of, besides those of its AMI."""
    devices = asked.get("BlockDeviceMappings") or ()
    return [device["Ebs"]["SnapshotId"] for device in devices if (device.get("Ebs") or {}).get("SnapshotId")]


@needs("ssm:GetParameters")
def resolve_aliases(ssm: SSMClient, aliases: Iterable[str], refused: dict[str, Exception]) -> dict[str, str]:
    """Return the AMI id behind each ``resolve:ssm:name``, with version or label, where there is one.

    Those that could not be read are put into `refused`, each with the error.
    """
    wanted = sorted({alias.removeprefix(ALIAS) for alias in aliases})
    found: dict[str, str] = {}
    hidden: dict[str, Exception] = {}
    for parameter in read_parameters(ssm, wanted, hidden):
        match = AMI_ID.search(parameter["Value"])
        if match:
            for name in (parameter["Name"], parameter.get("ARN", "")):
                found[f"{ALIAS}{name}{parameter.get('Selector', '')}"] = match[0]
    refused |= {f"{ALIAS}{name}": error for name, error in hidden.items()}
    return found


@needs("ssm:GetParameters")
def read_parameters(
    ssm: SSMClient, names: Sequence[str], refused: dict[str, Exception]
) -> Iterator[ParameterTypeDef]:
    """Yield parameters by name; those that could not be read are put into `refused`, each with the error.

    AWS refuses ten at once when it refuses one of them (a shared parameter, one that a policy leaves out, a
    name that cannot be), so the others are asked for again.
    """
    for start in range(0, len(names), 10):
        asked = names[start : start + 10]
        try:
            answer = call_with_retries(ssm.get_parameters, Names=asked)
        except ssm.exceptions.ClientError as error:
            if code_of(error) in RETRYABLE:
                raise
            if len(asked) == 1:
                refused[asked[0]] = error
            else:
                for name in asked:
                    yield from read_parameters(ssm, [name], refused)
        else:
            yield from answer["Parameters"]


@needs("autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeAutoScalingGroups")
def scaling_references(autoscaling: AutoScalingClient, templates: LaunchTemplates) -> FoundReferences:
    """Yield the launch configurations of each AMI, and the groups that launch it by whatever way."""
    by_configuration: dict[str, str] = {}
    for configurations in read_pages(autoscaling.describe_launch_configurations, MaxRecords=100):
        for one in configurations["LaunchConfigurations"]:
            by_configuration[one["LaunchConfigurationName"]] = one["ImageId"]
            for named in (one["ImageId"], *_volumes(one)):
                yield named, Reference("launch-configuration", one["LaunchConfigurationName"])
    groups = read_pages(autoscaling.describe_auto_scaling_groups, MaxRecords=100)
    for group in (group for page in groups for group in page["AutoScalingGroups"]):
        for ami_id, through in _launches(group, by_configuration, templates):
            if ami_id:
                name, capacity = group["AutoScalingGroupName"], group["DesiredCapacity"]
                yield ami_id, Reference("auto-scaling-group", name, through=(through,), capacity=capacity)


def _launches(
    group: AutoScalingGroupTypeDef, by_configuration: Mapping[str, str], templates: LaunchTemplates
) -> Iterator[tuple[str, Link]]:
    configuration = group.get("LaunchConfigurationName")
    if configuration:
        yield by_configuration.get(configuration, ""), Link("launch-configuration", configuration)
    if group.get("LaunchTemplate"):
        yield templates.of_specification(group["LaunchTemplate"])
    mixed = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate") or {}
    specifications = [mixed, *(mixed.get("Overrides") or ())]
    for asked in filter(None, (one.get("LaunchTemplateSpecification") for one in specifications)):
        yield templates.of_specification(asked, mixed=True)
    for override in mixed.get("Overrides") or ():
        if override.get("ImageId"):
            yield override["ImageId"], Link("override", override.get("InstanceType", ""))


__all__ = [
    "AMI_ID",
    "HINT_KINDS",
    "LAUNCH_REPORT_DELAY",
    "USE_KINDS",
    "LaunchTemplates",
    "Link",
    "Reference",
    "References",
    "RegionClients",
    "TemplateVersion",
    "add_last_launches",
    "find_references",
    "image_references",
    "instance_references",
    "is_used",
    "last_launch_references",
    "launch_permission_references",
    "merge_references",
    "parameter_references",
    "read_references",
    "references_from_json",
    "references_to_json",
    "scaling_references",
    "search_references",
    "snapshot_permission_references",
]

USE_KINDS = frozenset(
    {
        "instance",
        "launch-template",
        "launch-configuration",
        "auto-scaling-group",
        "parameter",
        "image-recipe",
        "container-recipe",
    }
)
"""Kinds of references that name the AMI: it is in use."""

HINT_KINDS = frozenset({"shared-with", "snapshot-shared-with", "snapshot-lock", "launched"})
"""Kinds that say that it may be in use where we cannot look, or shall be kept."""

PARAMETERS_OF_TEMPLATES = "parameters of launch templates"
"""Source of what ``resolve:ssm:...`` in launch templates stands for."""

PUBLIC_PARAMETERS_OF_TEMPLATES = "public parameters of launch templates"
"""The same of the parameters that AWS publishes, which never name an AMI of this account."""

LAUNCH_REPORT_DELAY = timedelta(hours=48)
"""AWS tells launches a day late, so that nothing is known of the use of an AMI that is younger."""

AT_ONCE = 8  # calls about single AMIs
PAGE = 1000
_GONE = (AMI_NOT_FOUND, "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed")
_LIVE = ("pending", "running", "shutting-down", "stopping", "stopped")


@dataclass(frozen=True, slots=True)
class References:
    """What uses the AMIs and snapshots of one region.

    Attributes
    ----------
    region
        Where was looked.
    by_ami
        By AMI id: of every AMI that anything names, ours or not. Also by snapshot id, of snapshots that a
        launch makes volumes of, or that are shared and were asked about.
    unread
        Sources that could not be read, each with the error.
    aliases
        What ``resolve:ssm:...`` in launch templates stands for; empty where it stands for nothing.
    """

    region: str
    by_ami: Mapping[str, tuple[Reference, ...]]
    unread: Mapping[str, errors.AwsError] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every source could be read."""
        return not self.unread

    def of(self, ami_id: str) -> tuple[Reference, ...]:
        """Return all references to one AMI, what names it first."""
        return self.by_ami.get(ami_id, ())

    def names(self, ami_id: str) -> tuple[Reference, ...]:
        """Return what names one AMI."""
        return tuple(one for one in self.of(ami_id) if one.kind in USE_KINDS)

    def use(self, ami_id: str) -> bool | None:
        """Tell whether an AMI is used; None where nothing names it and that is not the whole truth.

        It is not where a source could not be read, another account may launch it, or it was launched in the
        days of the retirement policy and we do not see by whom.
        """
        return is_used(self.of(ami_id), complete=self.complete)


def is_used(
    found: Iterable[Reference],
    *,
    complete: bool = True,
    now: datetime | None = None,
    launched_days: float = RetirementPolicy().launched_days,
) -> bool | None:
    """Return whether references mean use; `References.use` says when it is None."""
    some = list(found)
    if any(one.kind in USE_KINDS for one in some):
        return True
    since = (now or datetime.now(UTC)) - timedelta(days=launched_days)
    hints = [one for one in some if one.kind != "launched" or datetime.fromisoformat(one.id) >= since]
    return None if hints or not complete else False


def find_references(
    *, region: str, images: Collection[str] = (), session: boto3.Session | None = None
) -> References:
    """Return who uses the AMIs of a region.

    Parameters
    ----------
    region
        Where to look.
    images
        AMIs of this account for which AWS is also asked one by one: who else may launch them, when they were
        last launched, and what DescribeImageReferences knows. Without any, only what names AMIs is read,
        which costs the same number of calls for ten AMIs as for ten thousand.
    session
        Whose account.

    Notes
    -----
    A source that cannot be read does not end the search; look at `References.unread`.
    """
    session = session or default_session()
    clients, chosen = RegionClients.of(session, region), sorted(images)
    found = read_references(clients)
    return merge_references(found, search_references(clients, chosen, launched=True)) if chosen else found


@dataclass(frozen=True, slots=True)
class RegionClients:
    """The clients of one account and region; they are made by one thread and used by another."""

    region: str
    ec2: EC2Client
    autoscaling: AutoScalingClient
    ssm: SSMClient

    @classmethod
    def of(cls, session: boto3.Session, region: str, limit: TimeLimit | None = None) -> RegionClients:
        """Return clients with few attempts of their own: `paging` tries again, for longer, within a limit."""
        limit = limit or TimeLimit()
        how: Options = {"attempts": 2, "connections": AT_ONCE + 2}
        return cls(
            region,
            with_time_limit(use_fast_time_parser(client(session, "ec2", region, **how)), limit),
            with_time_limit(use_fast_time_parser(client(session, "autoscaling", region, **how)), limit),
            with_time_limit(use_fast_time_parser(client(session, "ssm", region, **how)), limit),
        )


def read_references(clients: RegionClients) -> References:
    """Return what names the AMIs of one account and region, in the same number of calls for any of them."""
    templates = LaunchTemplates()
    ec2, ssm = clients.ec2, clients.ssm
    found = _taken(
        clients.region,
        {
            "instances": lambda: instance_references(ec2),
            "launch templates": lambda: templates.read(ec2, ssm),
            PARAMETERS_OF_TEMPLATES: lambda: templates.lost(public=False),
            PUBLIC_PARAMETERS_OF_TEMPLATES: lambda: templates.lost(public=True),
            "Auto Scaling groups": lambda: scaling_references(clients.autoscaling, templates),
            "parameters": lambda: parameter_references(ssm),
        },
    )
    return replace(found, aliases=templates.aliases)


def search_references(
    clients: RegionClients, images: Collection[str], *, guests: Collection[str] = (), launched: bool = False
) -> References:
    """Return what AWS tells about single AMIs.

    Parameters
    ----------
    clients
        Of the account and region.
    images
        AMIs of the account: what EC2's own search finds, and who may launch them.
    guests
        AMIs of other accounts: what EC2's own search finds here.
    launched
        Whether to ask when they were last launched, too.
    """
    ec2, chosen = clients.ec2, sorted(images)
    sources: dict[str, Callable[[], FoundReferences]] = {}
    if chosen or guests:
        sources["image references"] = lambda: image_references(ec2, [*chosen, *sorted(guests)])
    if chosen:
        sources["launch permissions"] = lambda: launch_permission_references(ec2, chosen)
    if chosen and launched:
        sources["last launches"] = lambda: last_launch_references(ec2, chosen)
    return _taken(clients.region, sources)


def _taken(region: str, sources: Mapping[str, Callable[[], FoundReferences]]) -> References:
    """Return what some sources tell, one after the other; one that cannot be read ends none of the others."""
    found: dict[str, set[Reference]] = {}
    unread: dict[str, errors.AwsError] = {}
    for source, read in sources.items():
        try:
            with calling(f"read the {source} of {region}"):
                for ami_id, one in read():
                    found.setdefault(ami_id, set()).add(one)
        except errors.AwsError as error:
            unread[source] = error
    return References(region, {ami_id: _sorted(some) for ami_id, some in found.items()}, unread)


def merge_references(one: References, other: References) -> References:
    """Return what two readings of a region tell together."""
    by_ami = dict(one.by_ami)
    for ami_id, some in other.by_ami.items():
        by_ami[ami_id] = _sorted({*by_ami.get(ami_id, ()), *some})
    aliases = {**one.aliases, **other.aliases}
    return References(one.region, by_ami, {**one.unread, **other.unread}, aliases)


def _sorted(found: set[Reference]) -> tuple[Reference, ...]:
    return tuple(sorted(_once(found), key=_order))


def add_last_launches(found: References, launched: Mapping[str, datetime]) -> References:
    """Return references with the last launch of each AMI, as an inventory knows it."""
    by_ami = dict(found.by_ami)
    for ami_id, moment in launched.items():
        by_ami[ami_id] = (*by_ami.get(ami_id, ()), Reference("launched", moment.isoformat()))
    return References(found.region, by_ami, found.unread, found.aliases)


def _once(found: set[Reference]) -> Iterator[Reference]:
    """Yield references, those that EC2's search found as well only as we found them, who know more."""
    known = {(one.kind, one.id.strip("/")) for one in found if one.source != SEARCH}
    for one in found:
        if one.source != SEARCH or (one.kind, one.id.strip("/")) not in known:
            yield one


SEARCH = "DescribeImageReferences"
"""Source of references that EC2's own search found."""


def _order(one: Reference) -> tuple[bool, str, str, str]:
    return (one.kind in HINT_KINDS, one.kind, one.id, str(one))


@needs("ec2:DescribeInstances")
def instance_references(ec2: EC2Client) -> FoundReferences:
    """Yield the instances of each AMI; terminated ones need it no more."""
    states: list[FilterTypeDef] = [{"Name": "instance-state-name", "Values": list(_LIVE)}]
    found = read_pages(ec2.describe_instances, Filters=states, MaxResults=PAGE)
    for reservation in (reservation for page in found for reservation in page["Reservations"]):
        for instance in reservation["Instances"]:
            state = instance["State"]["Name"]
            yield instance["ImageId"], Reference("instance", instance["InstanceId"], type=state)


@needs("ssm:DescribeParameters", "ssm:GetParameters")
def parameter_references(ssm: SSMClient) -> FoundReferences:
    """Yield the parameters that name each AMI: those of the data type of images, and any other plain text.

    Secure strings are not read: their text is nobody's business, and no launch can use one.
    """
    plain: list[ParameterStringFilterTypeDef] = [
        {"Key": "Type", "Option": "Equals", "Values": ["String", "StringList"]}
    ]
    names = [
        one["Name"]
        for page in read_pages(ssm.describe_parameters, ParameterFilters=plain, MaxResults=50)
        for one in page["Parameters"]
    ]
    refused: dict[str, Exception] = {}
    for parameter in read_parameters(ssm, names, refused):
        kind, versions = parameter.get("DataType", "text"), (TemplateVersion(parameter["Version"]),)
        for ami_id in set(AMI_ID.findall(parameter["Value"])):
            yield ami_id, Reference("parameter", parameter["Name"], versions, type=kind)
    for error in refused.values():
        raise error


@needs(
    "ec2:DescribeImageReferences",
    # EC2 looks as its caller, who must be allowed to see what it looks at.
    "ec2:DescribeInstances",
    "ec2:DescribeLaunchTemplates",
    "ec2:DescribeLaunchTemplateVersions",
    "ssm:DescribeParameters",
    "ssm:GetParameters",
    "imagebuilder:ListImageRecipes",
    "imagebuilder:ListContainerRecipes",
    "imagebuilder:GetContainerRecipe",
)
def image_references(ec2: EC2Client, images: Collection[str]) -> FoundReferences:
    """Yield what EC2's own search finds; it alone knows the recipes of Image Builder.

    It is asked for ten AMIs at once, the most that it takes. An AMI that went meanwhile is passed over.
    """
    wanted: list[ResourceTypeRequestTypeDef] = [
        _kind("ec2:Instance", "state-name", list(_LIVE)),
        _kind("ec2:LaunchTemplate", "version-depth", ["10000"]),
        {"ResourceType": "ssm:Parameter"},
        {"ResourceType": "imagebuilder:ImageRecipe"},
        {"ResourceType": "imagebuilder:ContainerRecipe"},
    ]
    ids = list(images)
    batches = [ids[start : start + 10] for start in range(0, len(ids), 10)]

    def ask(batch: list[str]) -> list[ImageReferenceTypeDef]:
        try:
            answers = read_pages(ec2.describe_image_references, ImageIds=batch, ResourceTypes=wanted)
            return [found for answer in answers for found in answer["ImageReferences"]]
        except ec2.exceptions.ClientError as error:
            if code_of(error) not in _GONE:
                raise
            return [] if len(batch) == 1 else [found for one in batch for found in ask([one])]

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="references") as pool:
        for answers in pool.map(ask, batches):
            for found in answers:
                kind, _, name = found["Arn"].split(":", 5)[5].partition("/")
                if kind == "parameter" and "/" in name:
                    name = f"/{name}"
                yield found["ImageId"], Reference(cast("Kind", kind), name, source=SEARCH)


def _kind(
    kind: Literal["ec2:Instance", "ec2:LaunchTemplate"],
    option: Literal["state-name", "version-depth"],
    values: list[str],
) -> ResourceTypeRequestTypeDef:
    return {
        "ResourceType": kind,
        "ResourceTypeOptions": [{"OptionName": option, "OptionValues": values}],
    }


@needs("ec2:DescribeImageAttribute")
def launch_permission_references(ec2: EC2Client, images: Collection[str]) -> FoundReferences:
    """Yield the accounts, organizations and units that may launch each AMI; ``all`` is everybody.

    AWS answers this for one AMI a call. One that went meanwhile is passed over.
    """

    def ask(ami_id: str) -> tuple[str, list[LaunchPermissionTypeDef]]:
        try:
            answer = call_with_retries(
                ec2.describe_image_attribute, ImageId=ami_id, Attribute="launchPermission"
            )
        except ec2.exceptions.ClientError as error:
            if code_of(error) not in _GONE:
                raise
            return ami_id, []
        return ami_id, answer.get("LaunchPermissions") or []

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="permissions") as pool:
        for ami_id, permissions in pool.map(ask, images):
            for permission in permissions:
                for member, who in permission.items():
                    yield ami_id, Reference("shared-with", str(who), type=_MEMBERS.get(member, member))


@needs("ec2:DescribeSnapshotAttribute")
def snapshot_permission_references(ec2: EC2Client, snapshot_ids: Collection[str]) -> FoundReferences:
    """Yield the accounts that may use each snapshot of this account; ``all`` is everybody.

    AWS answers this for one snapshot a call. One that went meanwhile is passed over.
    """

    def ask(snapshot_id: str) -> tuple[str, list[CreateVolumePermissionTypeDef]]:
        try:
            answer = call_with_retries(
                ec2.describe_snapshot_attribute, SnapshotId=snapshot_id, Attribute="createVolumePermission"
            )
        except ec2.exceptions.ClientError as error:
            if code_of(error) != SNAPSHOT_NOT_FOUND:
                raise
            return snapshot_id, []
        return snapshot_id, answer.get("CreateVolumePermissions") or []

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="permissions") as pool:
        for snapshot_id, permissions in pool.map(ask, snapshot_ids):
            for permission in permissions:
                for member, who in permission.items():
                    yield snapshot_id, Reference("shared-with", str(who), type=_MEMBERS.get(member, member))


_MEMBERS = {
    "UserId": "account",
    "Group": "everybody",
    "OrganizationArn": "organization",
    "OrganizationalUnitArn": "organizational unit",
}


@needs("ec2:DescribeImages")
def last_launch_references(ec2: EC2Client, images: Collection[str]) -> FoundReferences:
    """Yield when each AMI was last launched, by whomever; AWS tells it a day later and keeps it."""
    ids = list(images)
    for start in range(0, len(ids), 200):  # AWS: values of a filter
        shown = read_pages(
            ec2.describe_images,
            Owners=["self"],
            Filters=[{"Name": "image-id", "Values": ids[start : start + 200]}],
            IncludeDeprecated=True,
            IncludeDisabled=True,
        )
        for image in (image for page in shown for image in page["Images"]):
            if image.get("LastLaunchedTime"):
                yield image["ImageId"], Reference("launched", image["LastLaunchedTime"])
