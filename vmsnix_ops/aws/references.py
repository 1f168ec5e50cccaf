"""Find what uses an AMI: the references that AWS can list.

Tools that check only instances have deleted AMIs that other resources needed. So references are read from
instances, all versions of all launch templates, launch configurations, Auto Scaling groups, parameters, and
DescribeImageReferences, which also searches Image Builder.

Two more facts hint at users that these sources cannot show: other accounts that may launch the AMI, and the
time of its last launch. `References.unread` contains the sources that could not be read. If it is not empty,
a missing reference proves nothing.
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
from vmsnix_ops.aws.instances import ALIVE, list_instances
from vmsnix_ops.aws.paging import (
    TimeLimit,
    batches,
    call_with_retries,
    read_pages,
    use_fast_time_parser,
    with_time_limit,
)
from vmsnix_ops.aws.parameters import IMAGE_TYPE
from vmsnix_ops.aws.session import calling, client, code_of, if_found
from vmsnix_ops.settings import RetirementPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import boto3
    from types_boto3_autoscaling.client import AutoScalingClient
    from types_boto3_autoscaling.type_defs import (
        AutoScalingGroupTypeDef,
        LaunchConfigurationTypeDef,
        LaunchTemplateSpecificationTypeDef,
    )
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        DescribeLaunchTemplateVersionsRequestTypeDef,
        ImageReferenceTypeDef,
        LaunchTemplateVersionTypeDef,
        ResourceTypeRequestTypeDef,
        ResponseLaunchTemplateDataTypeDef,
    )
    from types_boto3_ssm.client import SSMClient
    from types_boto3_ssm.type_defs import ParameterStringFilterTypeDef, ParameterTypeDef

    from vmsnix_ops.aws.session import Options

AMI_ID = re.compile(r"\bami-(?:[0-9a-f]{17}|[0-9a-f]{8})\b")
ALIAS = "resolve:ssm:"
_PUBLIC_ALIAS = re.compile(rf"{ALIAS}(?:arn:[^:]+:ssm:[^:]*::parameter)?/aws/service/")

Kind = Literal[
    "ami", "instance", "launch-template", "launch-configuration", "auto-scaling-group", "parameter",
    "image-recipe", "container-recipe", "shared-with", "snapshot-shared-with", "snapshot-lock", "launched",
]  # fmt: skip
USE_KINDS = frozenset({
    "instance", "launch-template", "launch-configuration", "auto-scaling-group", "parameter",
    "image-recipe", "container-recipe",
})  # fmt: skip
"""Kinds of references to an AMI in use."""

SOURCES: dict[str, str] = {
    "instance": "instances",
    "launch-template": "launch templates",
    "launch-configuration": "Auto Scaling groups",
    "auto-scaling-group": "Auto Scaling groups",
    "parameter": "parameters",
    "shared-with": "launch permissions",
}
"""The source of each kind of user, by the name that `References.unread` has for it."""

HINT_KINDS = frozenset({"shared-with", "snapshot-shared-with", "snapshot-lock", "launched"})
"""Kinds of hints: the AMI may be in use where these credentials cannot read, or must be kept."""

PARAMETERS_OF_TEMPLATES = "parameters of launch templates"
"""Name of the source of the AMI IDs behind ``resolve:ssm:...`` in launch templates."""

PUBLIC_PARAMETERS_OF_TEMPLATES = "public parameters of launch templates"
"""The same for the public parameters of AWS, which never contain an AMI of this account."""

SEARCH = "DescribeImageReferences"
"""Name of the source of references that EC2's own search found."""

LAUNCH_REPORT_DELAY = timedelta(hours=48)
"""AWS reports launches a day late, so the use of a younger AMI is unknown."""

THREADS = 8  # for calls about single AMIs
_GONE = (AMI_NOT_FOUND, "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed", SNAPSHOT_NOT_FOUND)
_NOT_TERMINATED = (*ALIVE, "shutting-down")


@dataclass(frozen=True, slots=True, order=True)
class ResourceVersion:
    """A version of a launch template or parameter."""

    number: int
    # Whether it is the template's default or latest version.
    default: bool = False
    latest: bool = False

    def __str__(self) -> str:
        marks = [name for name in ("default", "latest") if getattr(self, name)]
        return f"{self.number}" + (f" ({' and '.join(marks)})" if marks else "")


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """A resource between the AMI or snapshot and its user, such as a group's launch template."""

    # "parameter": a launch template resolves it. "launch-configuration", "launch-template", "override" (of a
    # group with mixed instances): a group launches with it. "snapshot": the snapshot of the AMI is shared,
    # not the AMI.
    kind: Literal["parameter", "launch-configuration", "launch-template", "override", "snapshot"]
    # Name of the parameter (as after `resolve:ssm:`), configuration or template, instance type of the
    # override, or ID of the snapshot.
    id: str
    version: str = ""  # version of the template that the group uses: a number, `$Default` or `$Latest`
    mixed: bool = False  # whether the group has mixed instances

    def __str__(self) -> str:
        if self.kind == "parameter":
            return f"{ALIAS}{self.id}"
        if self.kind == "snapshot":
            return self.id
        if self.kind == "override":
            return f"override for {self.id or 'its instances'}"
        version = f", version {self.version}" if self.version else ""
        text = f"{self.kind.replace('-', ' ')} {self.id}{version}"
        return f"mixed instances, {text}" if self.mixed else text


@dataclass(frozen=True, slots=True)
class Reference:
    """A user of an AMI or snapshot, or a hint at one; `str` returns it as text."""

    kind: Kind  # one of `USE_KINDS` or `HINT_KINDS`; "ami" for the AMI of a snapshot
    # The user: ID of an instance, template or account, or name of a parameter. For a lock the snapshot, for a
    # launch its time.
    id: str
    # The versions of a launch template or parameter that contain the AMI.
    versions: tuple[ResourceVersion, ...] = ()
    through: tuple[Link, ...] = ()  # resources between the user and the AMI
    source: str = ""  # `SEARCH` if only EC2's own search found it
    name: str = ""  # of a launch template
    # State of an instance; data type of a parameter; type of the user that it is shared with ("account",
    # "organization", "organizational unit" or "everybody"); mode and end of a lock.
    type: str = ""
    capacity: int | None = None  # desired capacity of a group
    account: str = ""  # account of the user, if it is not the owner of the AMI

    def __str__(self) -> str:
        account = f"account {self.account}" if self.account else ""
        text = ", ".join(filter(None, [self.detail, self.source, account]))
        return f"{self.kind} {self.id}" + (f" ({text})" if text else "")

    @property
    def detail(self) -> str:
        """Name, type, versions, resources between, and capacity as text; empty if there are none."""
        plural = "s" if len(self.versions) > 1 else ""
        details = [
            self.name,
            self.type,
            f"version{plural} {', '.join(map(str, self.versions))}" if self.versions else "",
            *map(str, self.through),
            f"{self.capacity} wanted" if self.capacity is not None else "",
            "last launch" if self.kind == "launched" else "",
        ]
        return ", ".join(filter(None, details))

    @property
    def launches(self) -> bool:
        """Whether the next launch may use the AMI.

        False for old versions of a launch template (a group that uses one is another reference), for a launch
        configuration without a group, and for a parameter with other text than an AMI ID.
        """
        if self.kind == "launch-template":
            return any(one.default or one.latest for one in self.versions)
        if self.kind == "parameter":
            return self.type == IMAGE_TYPE
        return self.kind in ("auto-scaling-group", "image-recipe", "container-recipe")

    def plain(self) -> dict[str, Any]:
        """Return the reference as data for JSON, without empty fields; `from_plain` reads it."""
        found: dict[str, Any] = _plain(self)
        return found

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Reference:
        """Return the reference of the data from `plain`."""
        versions = tuple(ResourceVersion(**one) for one in found.get("versions", ()))
        through = tuple(Link(**one) for one in found.get("through", ()))
        return cls(**{**found, "versions": versions, "through": through})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, ResourceVersion | Link | Reference):
        return value
    found = {name: getattr(value, name) for name in value.__slots__}
    return {name: _plain(one) for name, one in found.items() if one or type(one) is int}


def references_to_json(references: Iterable[Reference]) -> str:
    """Return references as JSON, for the column ``references`` of an inventory."""
    found = [one.plain() for one in references]
    return json.dumps(found) if found else "[]"


def references_from_json(text: str) -> tuple[Reference, ...]:
    """Return the references of the JSON from `references_to_json`."""
    return tuple(map(Reference.from_plain, json.loads(text))) if text != "[]" else ()


FoundReferences = Iterator[tuple[str, Reference]]
"""Pairs of an AMI or snapshot ID and a reference to it."""


@dataclass(frozen=True, slots=True)
class References:
    """The references to the AMIs and snapshots of one region."""

    region: str
    # References by AMI ID, for all referenced AMIs, also of other accounts. Also by snapshot ID, for
    # snapshots from which a launch creates volumes, and for shared snapshots that were checked.
    by_ami: Mapping[str, tuple[Reference, ...]]
    # Sources that could not be read, each with the error.
    unread: Mapping[str, errors.AwsError] = field(default_factory=dict)
    # The AMI ID behind each `resolve:ssm:...` in launch templates, if there is one.
    aliases: Mapping[str, str] = field(default_factory=dict)

    def of(self, ami_id: str) -> tuple[Reference, ...]:
        """Return all references to an AMI, hints last."""
        return self.by_ami.get(ami_id, ())

    def names(self, ami_id: str) -> tuple[Reference, ...]:
        """Return the references to an AMI without hints."""
        return tuple(one for one in self.of(ami_id) if one.kind in USE_KINDS)


def is_used(
    found: Iterable[Reference],
    *,
    complete: bool = True,
    now: datetime | None = None,
    launched_days: float = RetirementPolicy().launched_days,
) -> bool | None:
    """Return whether these references mean use; ``None`` if that is unknown.

    It is unknown without a reference if a source could not be read, another account may launch the AMI, or
    the AMI was launched within the days of the retirement policy.
    """
    some = list(found)
    if any(one.kind in USE_KINDS for one in some):
        return True
    since = (now or datetime.now(UTC)) - timedelta(days=launched_days)
    hints = [one for one in some if one.kind != "launched" or datetime.fromisoformat(one.id) >= since]
    return None if hints or not complete else False


@dataclass(frozen=True, slots=True)
class RegionClients:
    """The clients of one account and region; another thread than their creator may use them."""

    region: str
    ec2: EC2Client
    autoscaling: AutoScalingClient
    ssm: SSMClient

    @classmethod
    def of(cls, session: boto3.Session, region: str, limit: TimeLimit | None = None) -> RegionClients:
        """Return clients that make few attempts themselves, because `paging` retries within the limit."""
        limit = limit or TimeLimit()
        options: Options = {"attempts": 2, "connections": THREADS + 2}
        return cls(
            region,
            with_time_limit(use_fast_time_parser(client(session, "ec2", region, **options)), limit),
            with_time_limit(use_fast_time_parser(client(session, "autoscaling", region, **options)), limit),
            with_time_limit(use_fast_time_parser(client(session, "ssm", region, **options)), limit),
        )


def read_references(clients: RegionClients) -> References:
    """Return the references to the AMIs of one account and region, without checks of single AMIs."""
    templates = LaunchTemplates()
    ec2, ssm = clients.ec2, clients.ssm
    found = _read_sources(
        clients.region,
        {
            "instances": lambda: instance_references(ec2),
            "launch templates": lambda: templates.read(ec2, ssm),
            PARAMETERS_OF_TEMPLATES: lambda: templates.raise_unresolved(public=False),
            PUBLIC_PARAMETERS_OF_TEMPLATES: lambda: templates.raise_unresolved(public=True),
            "Auto Scaling groups": lambda: scaling_references(clients.autoscaling, templates),
            "parameters": lambda: parameter_references(ssm),
        },
    )
    return replace(found, aliases=templates.aliases)


def search_references(
    clients: RegionClients, images: Collection[str], *, foreign_images: Collection[str] = ()
) -> References:
    """Return the references that AWS reports for single AMIs.

    For AMIs of other accounts (`foreign_images`) only the references in this account are read.
    """
    ec2, chosen = clients.ec2, sorted(images)
    sources: dict[str, Callable[[], FoundReferences]] = {}
    if chosen or foreign_images:
        sources["image references"] = lambda: image_references(ec2, [*chosen, *sorted(foreign_images)])
    if chosen:
        sources["launch permissions"] = lambda: launch_permission_references(ec2, chosen)
    return _read_sources(clients.region, sources)


def _read_sources(region: str, sources: Mapping[str, Callable[[], FoundReferences]]) -> References:
    """Return the references of all sources that can be read, and the errors of the others."""
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
    """Return the references of two reads of one region."""
    by_ami = dict(one.by_ami)
    for ami_id, some in other.by_ami.items():
        by_ami[ami_id] = _sorted({*by_ami.get(ami_id, ()), *some})
    aliases = {**one.aliases, **other.aliases}
    return References(one.region, by_ami, {**one.unread, **other.unread}, aliases)


def _sorted(found: set[Reference]) -> tuple[Reference, ...]:
    """Return references, hints last, without results of EC2's search that another source has in detail."""
    detailed = {(one.kind, one.id.strip("/")) for one in found if one.source != SEARCH}
    unique = [one for one in found if one.source != SEARCH or (one.kind, one.id.strip("/")) not in detailed]
    return tuple(sorted(unique, key=lambda one: (one.kind in HINT_KINDS, one.kind, one.id, str(one))))


def add_last_launches(found: References, launched: Mapping[str, datetime]) -> References:
    """Return the references with the last launch of each AMI as a hint."""
    by_ami = dict(found.by_ami)
    for ami_id, moment in launched.items():
        by_ami[ami_id] = (*by_ami.get(ami_id, ()), Reference("launched", moment.isoformat()))
    return References(found.region, by_ami, found.unread, found.aliases)


# Sources that list the references to all AMIs.


@needs("ec2:DescribeInstances")
def instance_references(ec2: EC2Client) -> FoundReferences:
    """Yield the AMIs of the instances that are not terminated."""
    for one in list_instances(ec2, {"instance-state-name": _NOT_TERMINATED}):
        yield one["ImageId"], Reference("instance", one["InstanceId"], type=one["State"]["Name"])


@dataclass(slots=True)
class LaunchTemplates:
    """The launch templates of a region with their versions, also for the groups that use them."""

    names: dict[str, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    default: dict[str, int] = field(default_factory=dict)
    images: dict[str, dict[int, str]] = field(default_factory=dict)
    snapshots: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    unresolved: dict[str, Exception] = field(default_factory=dict)

    @needs("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions", "ssm:GetParameters")
    def read(self, ec2: EC2Client, ssm: SSMClient) -> FoundReferences:
        """Yield the AMIs of the templates, with the versions that contain them.

        One list has the latest and default versions of all templates; only templates with more versions need
        a call of their own.
        """
        for page in read_pages(ec2.describe_launch_templates, MaxResults=200):
            for template in page["LaunchTemplates"]:
                template_id = template["LaunchTemplateId"]
                self.names[template_id] = template["LaunchTemplateName"]
                self.newest[template_id] = template["LatestVersionNumber"]
                self.default[template_id] = template["DefaultVersionNumber"]
        if self.names:
            self._add(self._versions(ec2, {"Versions": ["$Latest", "$Default"], "MaxResults": 200}))
        for template_id, newest in self.newest.items():
            if {self.default[template_id], newest} != set(range(1, newest + 1)):
                self._add(self._versions(ec2, {"LaunchTemplateId": template_id, "MaxResults": 200}))
        images = {image for versions in self.images.values() for image in versions.values()}
        aliases = [image for image in images if image.startswith(ALIAS)]
        self.aliases |= resolve_aliases(ssm, aliases, self.unresolved)
        for template_id, versions in self.images.items():
            yield from self._references(template_id, versions)
        for template_id, snapshots in self.snapshots.items():
            for snapshot_id in snapshots:
                name = self.names.get(template_id, "")
                yield snapshot_id, Reference("launch-template", template_id, name=name)

    def raise_unresolved(self, *, public: bool) -> FoundReferences:
        """Raise the error of a parameter, public or not, that could not be read; yield nothing."""
        yield from ()
        for alias, error in self.unresolved.items():
            if bool(_PUBLIC_ALIAS.match(alias)) is public:
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
                raise  # not a template that was deleted in the meantime

    def _add(self, versions: Iterable[LaunchTemplateVersionTypeDef]) -> None:
        for version in versions:
            template_id, data = version["LaunchTemplateId"], version["LaunchTemplateData"]
            if data.get("ImageId"):
                self.images.setdefault(template_id, {})[version["VersionNumber"]] = data["ImageId"]
            self.snapshots.setdefault(template_id, set()).update(_volume_snapshots(data))

    def _references(self, template_id: str, versions: Mapping[int, str]) -> FoundReferences:
        by_image: dict[str, list[int]] = {}
        through: dict[str, set[Link]] = {}
        for number, image in sorted(versions.items()):
            ami_id = self.resolve(image)
            if not ami_id:
                continue
            by_image.setdefault(ami_id, []).append(number)
            alias = [Link("parameter", image.removeprefix(ALIAS))] if image.startswith(ALIAS) else []
            through.setdefault(ami_id, set()).update(alias)
        default, newest = self.default.get(template_id), self.newest.get(template_id)
        name = self.names.get(template_id, "")
        for ami_id, numbers in by_image.items():
            marked = tuple(ResourceVersion(number, number == default, number == newest) for number in numbers)
            links = tuple(sorted(through[ami_id]))
            yield ami_id, Reference("launch-template", template_id, marked, links, name=name)

    def resolve(self, image: str) -> str:
        """Return the AMI ID of an ``ImageId``, or the ``ImageId`` itself if nothing is behind it.

        So a reference to a deleted parameter (``resolve:ssm:...``) is kept. The result is empty if the
        parameter could not be read.
        """
        return "" if image in self.unresolved else self.aliases.get(image, image)

    def of_specification(
        self, specification: LaunchTemplateSpecificationTypeDef, *, mixed: bool = False
    ) -> tuple[str, Link]:
        """Return the AMI of the template that a group specifies, empty if unknown, and the template."""
        by_name = {name: template_id for template_id, name in self.names.items()}
        template_id = specification.get("LaunchTemplateId") or by_name.get(
            specification.get("LaunchTemplateName", ""), ""
        )
        wanted = specification.get("Version") or "$Default"
        number = {"$Default": self.default, "$Latest": self.newest}.get(wanted, {}).get(template_id)
        if number is None and wanted.isdecimal():
            number = int(wanted)
        image = self.images.get(template_id, {}).get(number or 0, "")
        name = self.names.get(template_id, template_id)
        return self.resolve(image), Link("launch-template", name, wanted, mixed)


def _volume_snapshots(data: ResponseLaunchTemplateDataTypeDef | LaunchConfigurationTypeDef) -> list[str]:
    """Return the snapshots from which a launch creates volumes, in addition to those of its AMI."""
    devices = data.get("BlockDeviceMappings") or ()
    return [device["Ebs"]["SnapshotId"] for device in devices if (device.get("Ebs") or {}).get("SnapshotId")]


@needs("ssm:GetParameters")
def resolve_aliases(
    ssm: SSMClient, aliases: Iterable[str], unreadable: dict[str, Exception]
) -> dict[str, str]:
    """Return the AMI ID behind each ``resolve:ssm:name``, with version or label, if there is one.

    Adds the aliases that could not be read to `unreadable`, each with its error.
    """
    wanted = sorted({alias.removeprefix(ALIAS) for alias in aliases})
    found: dict[str, str] = {}
    names: dict[str, Exception] = {}
    for parameter in read_parameters(ssm, wanted, names):
        match = AMI_ID.search(parameter["Value"])
        if match:
            for name in (parameter["Name"], parameter.get("ARN", "")):
                found[f"{ALIAS}{name}{parameter.get('Selector', '')}"] = match[0]
    unreadable |= {f"{ALIAS}{name}": error for name, error in names.items()}
    return found


@needs("ssm:GetParameters")
def read_parameters(
    ssm: SSMClient, names: Sequence[str], unreadable: dict[str, Exception]
) -> Iterator[ParameterTypeDef]:
    """Yield parameters by name; add those that could not be read to `unreadable`, each with its error.

    AWS refuses a batch of ten if it refuses one of its parameters (a shared one, one that the policy
    excludes, an invalid name). So the others are read one by one.
    """
    for batch in batches(names, 10):
        try:
            answer = call_with_retries(ssm.get_parameters, Names=batch)
        except ssm.exceptions.ClientError as error:
            if code_of(error) in RETRYABLE:
                raise
            if len(batch) == 1:
                unreadable[batch[0]] = error
            else:
                for name in batch:
                    yield from read_parameters(ssm, [name], unreadable)
        else:
            yield from answer["Parameters"]


@needs("autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeAutoScalingGroups")
def scaling_references(autoscaling: AutoScalingClient, templates: LaunchTemplates) -> FoundReferences:
    """Yield the AMIs of launch configurations, and those that Auto Scaling groups launch."""
    by_configuration: dict[str, str] = {}
    for configurations in read_pages(autoscaling.describe_launch_configurations, MaxRecords=100):
        for one in configurations["LaunchConfigurations"]:
            by_configuration[one["LaunchConfigurationName"]] = one["ImageId"]
            for resource_id in (one["ImageId"], *_volume_snapshots(one)):
                yield resource_id, Reference("launch-configuration", one["LaunchConfigurationName"])
    groups = read_pages(autoscaling.describe_auto_scaling_groups, MaxRecords=100)
    for group in (group for page in groups for group in page["AutoScalingGroups"]):
        for ami_id, through in _images_of_group(group, by_configuration, templates):
            if ami_id:
                name, capacity = group["AutoScalingGroupName"], group["DesiredCapacity"]
                yield ami_id, Reference("auto-scaling-group", name, through=(through,), capacity=capacity)


def _images_of_group(
    group: AutoScalingGroupTypeDef, by_configuration: Mapping[str, str], templates: LaunchTemplates
) -> Iterator[tuple[str, Link]]:
    configuration = group.get("LaunchConfigurationName")
    if configuration:
        yield by_configuration.get(configuration, ""), Link("launch-configuration", configuration)
    if group.get("LaunchTemplate"):
        yield templates.of_specification(group["LaunchTemplate"])
    mixed = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate") or {}
    overrides = mixed.get("Overrides") or ()
    for one in filter(None, (part.get("LaunchTemplateSpecification") for part in [mixed, *overrides])):
        yield templates.of_specification(one, mixed=True)
    for override in overrides:
        if override.get("ImageId"):
            yield override["ImageId"], Link("override", override.get("InstanceType", ""))


@needs("ssm:DescribeParameters", "ssm:GetParameters")
def parameter_references(ssm: SSMClient) -> FoundReferences:
    """Yield the AMI IDs in the values of parameters of the types ``String`` and ``StringList``.

    Secure strings are not read: they are secrets, and no launch can use them.
    """
    plain: list[ParameterStringFilterTypeDef] = [
        {"Key": "Type", "Option": "Equals", "Values": ["String", "StringList"]}
    ]
    names = [
        one["Name"]
        for page in read_pages(ssm.describe_parameters, ParameterFilters=plain, MaxResults=50)
        for one in page["Parameters"]
    ]
    unreadable: dict[str, Exception] = {}
    for parameter in read_parameters(ssm, names, unreadable):
        kind, versions = parameter.get("DataType", "text"), (ResourceVersion(parameter["Version"]),)
        for ami_id in set(AMI_ID.findall(parameter["Value"])):
            yield ami_id, Reference("parameter", parameter["Name"], versions, type=kind)
    for error in unreadable.values():
        raise error


# Sources that are read for single AMIs and snapshots. Those that were deleted in the meantime are skipped.


@needs(
    "ec2:DescribeImageReferences",
    # EC2 searches with the caller's permissions.
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
    """Yield the results of EC2's own search, the only source for recipes of Image Builder."""
    wanted: list[ResourceTypeRequestTypeDef] = [
        {
            "ResourceType": "ec2:Instance",
            "ResourceTypeOptions": [{"OptionName": "state-name", "OptionValues": _NOT_TERMINATED}],
        },
        {
            "ResourceType": "ec2:LaunchTemplate",
            "ResourceTypeOptions": [{"OptionName": "version-depth", "OptionValues": ["10000"]}],
        },
        {"ResourceType": "ssm:Parameter"},
        {"ResourceType": "imagebuilder:ImageRecipe"},
        {"ResourceType": "imagebuilder:ContainerRecipe"},
    ]

    def search(batch: list[str]) -> list[ImageReferenceTypeDef]:
        try:
            answers = read_pages(ec2.describe_image_references, ImageIds=batch, ResourceTypes=wanted)
            return [found for answer in answers for found in answer["ImageReferences"]]
        except ec2.exceptions.ClientError as error:
            if code_of(error) not in _GONE:
                raise
            return [] if len(batch) == 1 else [found for one in batch for found in search([one])]

    with ThreadPoolExecutor(THREADS, thread_name_prefix="references") as pool:
        for answers in pool.map(search, batches(images, 10)):  # AWS accepts ten AMIs in a call
            for found in answers:
                kind, _, name = found["Arn"].split(":", 5)[5].partition("/")
                if kind == "parameter" and "/" in name:
                    name = f"/{name}"
                yield found["ImageId"], Reference(cast("Kind", kind), name, source=SEARCH)


@needs("ec2:DescribeImageAttribute")
def launch_permission_references(ec2: EC2Client, images: Collection[str]) -> FoundReferences:
    """Yield who may launch each AMI: accounts, organizations and units, or ``all``."""

    def read(ami_id: str) -> Iterable[Mapping[str, str]]:
        answer = call_with_retries(ec2.describe_image_attribute, ImageId=ami_id, Attribute="launchPermission")
        return cast("Iterable[Mapping[str, str]]", answer.get("LaunchPermissions") or ())

    return _permission_references(read, images)


@needs("ec2:DescribeSnapshotAttribute")
def snapshot_permission_references(ec2: EC2Client, snapshot_ids: Collection[str]) -> FoundReferences:
    """Yield the accounts that may use each snapshot of this account, or ``all``."""

    def read(snapshot_id: str) -> Iterable[Mapping[str, str]]:
        answer = call_with_retries(
            ec2.describe_snapshot_attribute, SnapshotId=snapshot_id, Attribute="createVolumePermission"
        )
        return cast("Iterable[Mapping[str, str]]", answer.get("CreateVolumePermissions") or ())

    return _permission_references(read, snapshot_ids)


PERMISSION_MEMBERS = {
    "UserId": "account",
    "Group": "everybody",
    "OrganizationArn": "organization",
    "OrganizationalUnitArn": "organizational unit",
}
"""Types of references by the member of AWS's permission."""


def _permission_references(
    read: Callable[[str], Iterable[Mapping[str, str]]], ids: Collection[str]
) -> FoundReferences:
    """Yield the permissions of each AMI or snapshot; AWS returns those of one resource in a call."""

    def permissions(resource_id: str) -> tuple[str, Iterable[Mapping[str, str]]]:
        return resource_id, if_found(lambda: read(resource_id), *_GONE) or ()

    with ThreadPoolExecutor(THREADS, thread_name_prefix="permissions") as pool:
        for resource_id, found in pool.map(permissions, ids):
            for permission in found:
                for member, who in permission.items():
                    yield (
                        resource_id,
                        Reference("shared-with", str(who), type=PERMISSION_MEMBERS.get(member, member)),
                    )
