"""Who uses an AMI: everything that AWS can show, from every place that can name one.

An AMI that something still names must not go, and public tools have deleted such AMIs because they looked at
instances only. So evidence is gathered from instances, every version of every launch template, launch
configurations, Auto Scaling groups, parameters, and DescribeImageReferences, which also knows Image Builder.

That says who *names* an AMI. Two more signs say who *may* need it without naming it where we can look: other
accounts that may launch it, and when it was last launched. A source that cannot be read is kept in
`References.unread`: where it is not empty, the absence of evidence proves nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.evidence import AMI_ID, Evidence
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.launch_sources import Found, Templates, scaling, values
from vmsnix_ops.aws.paging import Limit, items, limited, patiently, quick_times
from vmsnix_ops.aws.session import Client, calling, client, code_of
from vmsnix_ops.aws.session import session as default_session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    import boto3


__all__ = [
    "AMI_ID",
    "HINTS",
    "NAMES",
    "RECENT_DAYS",
    "SETTLED",
    "Clients",
    "Evidence",
    "References",
    "Templates",
    "gather",
    "image_references",
    "instances",
    "judge",
    "last_launches",
    "launch_permissions",
    "parameters",
    "references",
    "scaling",
    "snapshot_permissions",
    "with_launches",
]

NAMES = frozenset(
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
"""Kinds of evidence that name the AMI: it is in use."""

HINTS = frozenset({"shared-with", "snapshot-shared-with", "snapshot-lock", "launched"})
"""Kinds of evidence that it may be in use where we cannot look, or shall be kept."""

RECENT_DAYS = 90
"""A launch so long ago says nothing about today's use."""

PARAMETERS_OF_TEMPLATES = "parameters of launch templates"
"""Source of what ``resolve:ssm:...`` in launch templates stands for."""

PUBLIC_PARAMETERS_OF_TEMPLATES = "public parameters of launch templates"
"""The same of the parameters that AWS publishes, which never name an AMI of this account."""

SETTLED = timedelta(hours=48)
"""AWS tells launches a day late, so that nothing is known of the use of an AMI that is younger."""

AT_ONCE = 8  # calls about single AMIs
PAGE = 1000
_GONE = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed")
_LIVE = ("pending", "running", "shutting-down", "stopping", "stopped")


@dataclass(frozen=True, slots=True)
class References:
    """The evidence of one region.

    Attributes
    ----------
    region
        Where was looked.
    by_ami
        Evidence by AMI id: of every AMI that anything names, ours or not. Also by snapshot id, of snapshots
        that a launch makes volumes of, or that are shared and were asked about.
    unread
        Sources that could not be read, each with the error.
    aliases
        What ``resolve:ssm:...`` in launch templates stands for; empty where it stands for nothing.
    """

    region: str
    by_ami: Mapping[str, tuple[Evidence, ...]]
    unread: Mapping[str, errors.AwsError] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every source could be read."""
        return not self.unread

    def of(self, ami_id: str) -> tuple[Evidence, ...]:
        """Return all evidence for one AMI, what names it first."""
        return self.by_ami.get(ami_id, ())

    def names(self, ami_id: str) -> tuple[Evidence, ...]:
        """Return what names one AMI."""
        return tuple(one for one in self.of(ami_id) if one.kind in NAMES)

    def use(self, ami_id: str) -> bool | None:
        """Tell whether an AMI is used; None where nothing names it and that is not the whole truth.

        It is not where a source could not be read, another account may launch it, or it was launched in the
        last `RECENT_DAYS` days and we do not see by whom.
        """
        return judge(self.of(ami_id), complete=self.complete)


def judge(found: Iterable[Evidence], *, complete: bool = True, now: datetime | None = None) -> bool | None:
    """Tell whether evidence means use; `References.use` says when it is None."""
    some = list(found)
    if any(one.kind in NAMES for one in some):
        return True
    since = (now or datetime.now(UTC)) - timedelta(days=RECENT_DAYS)
    hints = [one for one in some if one.kind != "launched" or datetime.fromisoformat(one.id) >= since]
    return None if hints or not complete else False


def references(
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
    return gather(Clients.of(session, region), images)


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of one account and region; they are made by one thread and used by another."""

    region: str
    ec2: Client
    autoscaling: Client
    ssm: Client

    @classmethod
    def of(cls, session: boto3.Session, region: str, limit: Limit | None = None) -> Clients:
        """Return clients with few attempts of their own: `paging` tries again, for longer, within a limit."""
        limit = limit or Limit()
        made = (
            client(session, service, region, attempts=2, connections=AT_ONCE + 2)
            for service in ("ec2", "autoscaling", "ssm")
        )
        return cls(region, *(limited(quick_times(one), limit) for one in made))


def gather(
    clients: Clients,
    images: Collection[str] = (),
    *,
    guests: Collection[str] = (),
    launched: bool = True,
) -> References:
    """Return the evidence of one account and region; `references` says what of.

    Parameters
    ----------
    clients
        Of the account and region.
    images
        AMIs to ask about one by one.
    guests
        AMIs of other accounts, of which AWS is asked what names them here.
    launched
        Whether to ask when they were last launched; an inventory knows that already.
    """
    found: dict[str, set[Evidence]] = {}
    unread: dict[str, errors.AwsError] = {}

    def take(source: str, read: Callable[[], Iterable[tuple[str, Evidence]]]) -> None:
        try:
            with calling(f"read the {source} of {clients.region}"):
                for ami_id, evidence in read():
                    found.setdefault(ami_id, set()).add(evidence)
        except errors.AwsError as error:
            unread[source] = error

    templates = Templates()
    take("instances", lambda: instances(clients.ec2))
    take("launch templates", lambda: templates.read(clients.ec2, clients.ssm))
    take(PARAMETERS_OF_TEMPLATES, lambda: templates.lost(public=False))
    take(PUBLIC_PARAMETERS_OF_TEMPLATES, lambda: templates.lost(public=True))
    take("Auto Scaling groups", lambda: scaling(clients.autoscaling, templates))
    take("parameters", lambda: parameters(clients.ssm))
    chosen = sorted(images)
    if images or guests:
        take("image references", lambda: image_references(clients.ec2, [*chosen, *sorted(guests)]))
    if images:
        take("launch permissions", lambda: launch_permissions(clients.ec2, chosen))
        if launched:
            take("last launches", lambda: last_launches(clients.ec2, chosen))
    return References(
        clients.region,
        {ami_id: tuple(sorted(_once(some), key=_order)) for ami_id, some in found.items()},
        unread,
        templates.aliases,
    )


def with_launches(found: References, launched: Mapping[str, str]) -> References:
    """Return the evidence with the last launch of each AMI, as an inventory knows it; empty for never."""
    by_ami = dict(found.by_ami)
    for ami_id, moment in launched.items():
        if moment:
            by_ami[ami_id] = (*by_ami.get(ami_id, ()), Evidence("launched", moment, "last launch"))
    return References(found.region, by_ami, found.unread, found.aliases)


def _once(found: set[Evidence]) -> Iterator[Evidence]:
    """Yield evidence without what EC2's search found as well: its second word adds nothing."""
    known = {(one.kind, one.id.strip("/")) for one in found if one.detail != SEARCH}
    for one in found:
        if one.detail != SEARCH or (one.kind, one.id.strip("/")) not in known:
            yield one


SEARCH = "DescribeImageReferences"
"""Detail of evidence that EC2's own search found."""


def _order(evidence: Evidence) -> tuple[bool, str, str]:
    return (evidence.kind in HINTS, evidence.kind, evidence.id)


@needs("ec2:DescribeInstances")
def instances(ec2: Client) -> Found:
    """Yield the instances of each AMI; terminated ones need it no more."""
    states = [{"Name": "instance-state-name", "Values": list(_LIVE)}]
    for reservation in items(ec2, "describe_instances", "Reservations", Filters=states, MaxResults=PAGE):
        for instance in reservation["Instances"]:
            state = instance["State"]["Name"]
            yield instance["ImageId"], Evidence("instance", instance["InstanceId"], state)


@needs("ssm:DescribeParameters", "ssm:GetParameters")
def parameters(ssm: Client) -> Found:
    """Yield the parameters that name each AMI: those of the data type of images, and any other plain text.

    Secure strings are not read: their text is nobody's business, and no launch can use one.
    """
    plain = [{"Key": "Type", "Option": "Equals", "Values": ["String", "StringList"]}]
    names = [
        one["Name"]
        for one in items(ssm, "describe_parameters", "Parameters", ParameterFilters=plain, MaxResults=50)
    ]
    refused: dict[str, Exception] = {}
    for parameter in values(ssm, names, refused):
        kind = parameter.get("DataType", "text")
        detail = f"{kind}, version {parameter['Version']}"
        for ami_id in set(AMI_ID.findall(parameter["Value"])):
            yield ami_id, Evidence("parameter", parameter["Name"], detail)
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
def image_references(ec2: Client, images: Collection[str]) -> Found:
    """Yield what EC2's own search finds; it alone knows the recipes of Image Builder.

    It is asked for ten AMIs at once, the most that it takes. An AMI that went meanwhile is passed over.
    """
    wanted = [
        _kind("ec2:Instance", "state-name", list(_LIVE)),
        _kind("ec2:LaunchTemplate", "version-depth", ["10000"]),
        {"ResourceType": "ssm:Parameter"},
        {"ResourceType": "imagebuilder:ImageRecipe"},
        {"ResourceType": "imagebuilder:ContainerRecipe"},
    ]
    ids = list(images)
    batches = [ids[start : start + 10] for start in range(0, len(ids), 10)]

    def ask(batch: list[str]) -> list[dict[str, Any]]:
        try:
            return list(
                items(
                    ec2, "describe_image_references", "ImageReferences", ImageIds=batch, ResourceTypes=wanted
                )
            )
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
                yield found["ImageId"], Evidence(kind, name, SEARCH)


def _kind(kind: str, option: str, values: list[str]) -> dict[str, Any]:
    return {
        "ResourceType": kind,
        "ResourceTypeOptions": [{"OptionName": option, "OptionValues": values}],
    }


@needs("ec2:DescribeImageAttribute")
def launch_permissions(ec2: Client, images: Collection[str]) -> Found:
    """Yield the accounts, organizations and units that may launch each AMI; ``all`` is everybody.

    AWS answers this for one AMI a call. One that went meanwhile is passed over.
    """

    def ask(ami_id: str) -> tuple[str, list[dict[str, str]]]:
        try:
            answer = patiently(ec2, "describe_image_attribute", ImageId=ami_id, Attribute="launchPermission")
        except ec2.exceptions.ClientError as error:
            if code_of(error) not in _GONE:
                raise
            return ami_id, []
        return ami_id, answer.get("LaunchPermissions") or []

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="permissions") as pool:
        for ami_id, permissions in pool.map(ask, images):
            for permission in permissions:
                for member, who in permission.items():
                    yield ami_id, Evidence("shared-with", who, _MEMBERS.get(member, member))


@needs("ec2:DescribeSnapshotAttribute")
def snapshot_permissions(ec2: Client, snapshot_ids: Collection[str]) -> Found:
    """Yield the accounts that may use each snapshot of this account; ``all`` is everybody.

    AWS answers this for one snapshot a call. One that went meanwhile is passed over.
    """

    def ask(snapshot_id: str) -> tuple[str, list[dict[str, str]]]:
        try:
            answer = patiently(
                ec2,
                "describe_snapshot_attribute",
                SnapshotId=snapshot_id,
                Attribute="createVolumePermission",
            )
        except ec2.exceptions.ClientError as error:
            if code_of(error) != "InvalidSnapshot.NotFound":
                raise
            return snapshot_id, []
        return snapshot_id, answer.get("CreateVolumePermissions") or []

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="permissions") as pool:
        for snapshot_id, permissions in pool.map(ask, snapshot_ids):
            for permission in permissions:
                for member, who in permission.items():
                    yield snapshot_id, Evidence("shared-with", who, _MEMBERS.get(member, member))


_MEMBERS = {
    "UserId": "account",
    "Group": "everybody",
    "OrganizationArn": "organization",
    "OrganizationalUnitArn": "organizational unit",
}


@needs("ec2:DescribeImages")
def last_launches(ec2: Client, images: Collection[str]) -> Found:
    """Yield when each AMI was last launched, by whomever; AWS tells it a day later and keeps it."""
    ids = list(images)
    for start in range(0, len(ids), 200):  # AWS: values of a filter
        chosen = [{"Name": "image-id", "Values": ids[start : start + 200]}]
        shown = items(
            ec2,
            "describe_images",
            "Images",
            Owners=["self"],
            Filters=chosen,
            IncludeDeprecated=True,
            IncludeDisabled=True,
        )
        for image in shown:
            if image.get("LastLaunchedTime"):
                yield image["ImageId"], Evidence("launched", image["LastLaunchedTime"], "last launch")
