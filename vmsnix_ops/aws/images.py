"""AMIs: find, register, share, deregister."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling, code_of, retrying
from vmsnix_ops.aws.waiting import Pace, Sighting, wait
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmsnix_ops.progress import Step

ARCHITECTURES = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}
AVAILABLE_SECONDS = 15 * 60.0
FILTER_VALUES = 200  # AWS: values of one filter
NAME_LENGTH = range(3, 129)
_REFUSED_IN_NAMES = re.compile(r"[^A-Za-z0-9()\[\] ./'@_-]")  # RegisterImage, parameter Name


@dataclass(frozen=True, slots=True)
class Registration:
    """What an AMI is registered with.

    Attributes
    ----------
    name
        Unique in account and region.
    architecture
        ``"x86_64"`` or ``"arm64"``.
    boot_mode
        ``"legacy-bios"``, ``"uefi"`` or ``"uefi-preferred"``.
    root_device
        Device name of the root volume.
    snapshot_id
        Holds the root volume.
    description
        Shown in AWS's console.
    volume_type
        Of the root volume.
    imds_support
        ``"v2.0"``: instances answer to session tokens only.
    tpm_support
        ``"v2.0"`` or empty; only for UEFI.
    ena_support
        Enhanced networking.
    tags
        Of the AMI, set in the very call that creates it.
    """

    name: str
    architecture: str
    boot_mode: str
    root_device: str
    snapshot_id: str
    description: str = ""
    volume_type: str = "gp3"
    imds_support: str = "v2.0"
    tpm_support: str = ""
    ena_support: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """Return the parameters of ``RegisterImage``."""
        request: dict[str, Any] = {
            "Name": self.name,
            "Description": self.description,
            "Architecture": self.architecture,
            "BootMode": self.boot_mode,
            "RootDeviceName": self.root_device,
            "VirtualizationType": "hvm",
            "SriovNetSupport": "simple",
            "EnaSupport": self.ena_support,
            "BlockDeviceMappings": [
                {
                    "DeviceName": self.root_device,
                    "Ebs": {
                        "SnapshotId": self.snapshot_id,
                        "VolumeType": self.volume_type,
                        "DeleteOnTermination": True,
                    },
                }
            ],
            "TagSpecifications": tagging.specification("image", self.tags),
        }
        if self.imds_support:
            request["ImdsSupport"] = self.imds_support
        if self.tpm_support:
            request["TpmSupport"] = self.tpm_support
        return request


@dataclass(frozen=True, slots=True)
class Ami:
    """An AMI as AWS describes it.

    Attributes
    ----------
    ami_id, name, region, account, state
        Of the AMI; `account` is its owner.
    created_at
        In UTC.
    architecture, boot_mode, root_device
        As registered.
    snapshot_ids
        Of every block device that has one, the root's first.
    size_gib
        Sum over those block devices.
    public
        Whether everybody may launch it.
    imds_support, ena_support, tpm_support
        As registered.
    tags
        All of them, ours and other people's.
    deprecated_at
        From when on it is deprecated, in UTC; ``None`` when nobody set a date.
    protection
        State of its deregistration protection, ``"disabled"`` without.
    source_ami_id, source_region
        Where it was copied from; empty for an original.
    description
        As it was given; empty when there is none.
    launched_at
        When an instance was last launched from it, as AWS reports it a day later; ``None`` when it does not.
    """

    ami_id: str
    name: str
    region: str
    account: str
    state: str
    created_at: datetime
    architecture: str
    boot_mode: str
    root_device: str
    snapshot_ids: tuple[str, ...]
    size_gib: int
    public: bool
    imds_support: str
    ena_support: bool
    tpm_support: str
    tags: Mapping[str, str]
    deprecated_at: datetime | None = None
    protection: str = "disabled"
    source_ami_id: str = ""
    source_region: str = ""
    launched_at: datetime | None = None
    description: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the image that it was made of; empty when we did not make it."""
        return self.tags.get(tagging.DIGEST, "")


def clean_name(name: str) -> str:
    """Return a name that RegisterImage accepts: other characters become ``-``.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        When it is shorter than 3 or longer than 128 characters.

    Examples
    --------
    >>> clean_name("altf4llc-ecs-node-26.11+git-x86_64-linux-0a1b2c3d")
    'altf4llc-ecs-node-26.11-git-x86_64-linux-0a1b2c3d'
    """
    cleaned = _REFUSED_IN_NAMES.sub("-", name)
    if len(cleaned) not in NAME_LENGTH:
        raise errors.ParameterError(
            f"The AMI name {cleaned!r} has {counted(len(cleaned), 'character')}.",
            why="AWS allows 3 to 128.",
            cure="Choose a shorter prefix or image name.",
        )
    return cleaned


@needs("ec2:DescribeImages")
def find_by_name(ec2: Client, name: str) -> Ami | None:
    """Return our account's AMI of exactly this name, or ``None``."""
    return next(iter(named(ec2, name)), None)


@needs("ec2:DescribeImages")
def named(ec2: Client, name: str) -> list[Ami]:
    """Return our account's AMIs of exactly this name: one, and those that failed, which do not hold it."""
    with calling(f"look for the AMI {name}"):
        # Filter values have wildcards; names may hold none of them, save brackets, so the name is compared
        # too.
        pages = ec2.get_paginator("describe_images").paginate(
            Owners=["self"],
            Filters=[{"Name": "name", "Values": [name]}],
            IncludeDeprecated=True,
            IncludeDisabled=True,
        )
        found = [image for page in pages for image in page["Images"] if image["Name"] == name]
    return [read(image, ec2.meta.region_name) for image in found]


@needs("ec2:DescribeImages")
def find(ec2: Client, ami_ids: Iterable[str]) -> dict[str, Ami]:
    """Return those of these AMIs that the caller sees, by id. What is gone is left out and no error."""
    wanted, found = list(dict.fromkeys(ami_ids)), {}
    with calling(f"look at {', '.join(wanted[:3])}{' ...' if len(wanted) > 3 else ''}"):
        for start in range(0, len(wanted), FILTER_VALUES):
            pages = ec2.get_paginator("describe_images").paginate(
                Filters=[{"Name": "image-id", "Values": wanted[start : start + FILTER_VALUES]}],
                IncludeDeprecated=True,
                IncludeDisabled=True,
            )
            for image in (image for page in pages for image in page["Images"]):
                found[str(image["ImageId"])] = read(image, ec2.meta.region_name)
    return found


@needs("ec2:DescribeImages")
def describe(ec2: Client, ami_id: str) -> Ami:
    """Return one AMI; a moment after its registration too, when AWS does not yet see it."""
    with calling(f"look at the AMI {ami_id}"):
        answer = retrying(
            lambda: ec2.describe_images(ImageIds=[ami_id], IncludeDisabled=True),
            "InvalidAMIID.NotFound",
            seconds=60,
        )
        if not answer["Images"]:
            raise errors.RegistrationError(
                f"There is no AMI {ami_id} in {ec2.meta.region_name}.", cure="Check the id and the region."
            )
    return read(answer["Images"][0], ec2.meta.region_name)


@needs("ec2:DescribeImages")
def ours(ec2: Client) -> list[Ami]:
    """Return every AMI of this account and region that carries a digest tag, oldest first."""
    with calling("list our AMIs"):
        pages = ec2.get_paginator("describe_images").paginate(
            Owners=["self"],
            Filters=[{"Name": "tag-key", "Values": [tagging.DIGEST]}],
            IncludeDeprecated=True,
            IncludeDisabled=True,
            PaginationConfig={"PageSize": 500},
        )
        found = [read(image, ec2.meta.region_name) for page in pages for image in page["Images"]]
    return sorted(found, key=lambda ami: (ami.created_at, ami.ami_id))


@needs("ec2:DescribeImages", "ec2:RegisterImage", "ec2:CreateTags")
def register(
    ec2: Client,
    registration: Registration,
    *,
    digest: str,
    step: Step | None = None,
    pace: Pace | None = None,
) -> tuple[Ami, Literal["created", "reused"]]:
    """Register an AMI, or find it, and wait until it is available.

    Safe to run twice, although RegisterImage has no ClientToken: the name derives from the image's digest, so
    a second registration is refused by AWS, and the AMI that has the name is ours when its digest tag is the
    same.

    Raises
    ------
    vmsnix_ops.errors.NameTakenError
        The name belongs to an AMI with other bytes, or to one registered otherwise.
    vmsnix_ops.errors.RegistrationError
        The AMI turned ``failed``.
    """
    existing = find_by_name(ec2, registration.name)
    outcome: Literal["created", "reused"] = "reused"
    if existing is None:
        with calling(f"register the AMI {registration.name}"):
            try:
                answer = retrying(
                    lambda: ec2.register_image(**registration.request()), "InvalidSnapshot.NotFound"
                )
                ami_id, outcome = str(answer["ImageId"]), "created"
            except ec2.exceptions.ClientError as error:
                if code_of(error) != "InvalidAMIName.Duplicate":
                    raise
                # Somebody was faster, or the answer to our own first try was lost.
                existing = retrying(lambda: _must_find(ec2, registration.name), "NotYetVisible", seconds=30)
                ami_id = existing.ami_id
    if existing is not None:
        check_same(existing, digest=digest, root_device=registration.root_device)
        ami_id = existing.ami_id
    return _available(ec2, ami_id, step, pace or Pace()), outcome


def check_same(existing: Ami, *, digest: str, root_device: str) -> None:
    """Raise `NameTakenError` unless the AMI of our name holds the same bytes behind the same root device."""
    if existing.digest != digest:
        held = f"digest {existing.digest[:12]}" if existing.digest else "no digest tag of ours"
        raise errors.NameTakenError(
            f"The AMI name {existing.name} is taken.",
            why=f"{existing.ami_id} in {existing.region} has it, with {held}; this image's digest is "
            f"{digest[:12]}.",
            cure="Give another prefix, or deregister that AMI if nobody needs it.",
            code="InvalidAMIName.Duplicate",
        )
    if existing.root_device != root_device:
        raise errors.NameTakenError(
            f"The AMI {existing.name} exists with another root device.",
            why=f"{existing.ami_id} has {existing.root_device}; {root_device} was asked for.",
            cure="Give another prefix, or the same root device.",
            code="InvalidAMIName.Duplicate",
        )


@needs("ec2:ModifyImageAttribute")
def share_with_everybody(ec2: Client, ami_id: str) -> None:
    """Let every AWS account launch the AMI. Safe to run twice: a permission is there or not.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        Block public access for AMIs is on; the error names the cure.
    """
    try:
        with calling(f"make {ami_id} public"):
            ec2.modify_image_attribute(ImageId=ami_id, LaunchPermission={"Add": [{"Group": "all"}]})
    except errors.AwsError as error:
        if error.code != "OperationNotPermitted":
            raise
        raise error.with_cure(
            "Turn off block public access for AMIs in this region (aws ec2 "
            "disable-image-block-public-access), or leave public out. The AMI itself is registered and "
            "private."
        ) from error


@needs("ec2:CreateTags")
def add_tags(ec2: Client, ami_id: str, tags: Mapping[str, str]) -> None:
    """Add or change tags of an AMI. Safe to run twice."""
    with calling(f"tag {ami_id}"):
        retrying(
            lambda: ec2.create_tags(Resources=[ami_id], Tags=tagging.to_list(tags)), "InvalidAMIID.NotFound"
        )


def read(image: Mapping[str, Any], region: str) -> Ami:
    """Return an image of DescribeImages as an `Ami`."""
    devices = sorted(
        (mapping for mapping in image.get("BlockDeviceMappings", ()) if "Ebs" in mapping),
        key=lambda mapping: mapping["DeviceName"] != image.get("RootDeviceName"),
    )
    return Ami(
        ami_id=str(image["ImageId"]),
        name=str(image.get("Name", "")),
        region=region,
        account=str(image.get("OwnerId", "")),
        state=str(image.get("State", "")),
        created_at=datetime.fromisoformat(str(image["CreationDate"])),
        architecture=str(image.get("Architecture", "")),
        boot_mode=str(image.get("BootMode", "")),
        root_device=str(image.get("RootDeviceName", "")),
        snapshot_ids=tuple(str(d["Ebs"]["SnapshotId"]) for d in devices if d["Ebs"].get("SnapshotId")),
        size_gib=sum(int(d["Ebs"].get("VolumeSize") or 0) for d in devices),
        public=bool(image.get("Public")),
        imds_support=str(image.get("ImdsSupport", "")),
        ena_support=bool(image.get("EnaSupport")),
        tpm_support=str(image.get("TpmSupport", "")),
        tags=tagging.to_dict(image.get("Tags")),
        deprecated_at=_moment(image.get("DeprecationTime")),
        protection=str(image.get("DeregistrationProtection") or "disabled"),
        source_ami_id=str(image.get("SourceImageId", "")),
        source_region=str(image.get("SourceImageRegion", "")),
        launched_at=_moment(image.get("LastLaunchedTime")),
        description=str(image.get("Description", "")),
    )


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None


def row(ami: Ami, *, recorded_at: datetime, source: str, via: str | None = None) -> dict[str, object]:
    """Return an AMI as a row of the ``amis`` table; all of it is AWS's word, so a sync gives the same row."""
    return {
        "ami_id": ami.ami_id,
        "name": ami.name,
        "image": ami.tags.get(tagging.IMAGE),
        "version": ami.tags.get(tagging.VERSION),
        "system": {"x86_64": "x86_64-linux", "arm64": "aarch64-linux"}.get(
            ami.architecture, ami.architecture
        ),
        "digest": ami.digest,
        "region": ami.region,
        "account": ami.account,
        "snapshot_id": ami.snapshot_ids[0] if ami.snapshot_ids else None,
        "run_id": ami.tags.get(tagging.RUN),
        "created_at": ami.created_at,
        "recorded_at": recorded_at,
        "size_gib": ami.size_gib,
        "boot_mode": ami.boot_mode or None,  # AWS tells none of an AMI registered without
        "root_device": ami.root_device,
        "imds_support": ami.imds_support,
        "tpm_support": ami.tpm_support,
        "ena_support": ami.ena_support,
        "via": via,
        "public": ami.public,
        "deprecated_at": ami.deprecated_at,
        "protected": ami.protection.startswith("enabled"),
        "description": ami.description,
        "state": ami.state,
        "flake": ami.tags.get(tagging.FLAKE),
        "drv": ami.tags.get(tagging.DERIVATION),
        "source": source,
        "tags": dict(ami.tags),
    }


def _must_find(ec2: Client, name: str) -> Ami:
    found = find_by_name(ec2, name)
    if found is None:
        raise errors.RegistrationError(
            f"The AMI name {name} is taken, but no AMI of this account has it.",
            why="It was registered a moment ago, or it is being removed.",
            cure="Run the same command again.",
            code="NotYetVisible",
        )
    return found


def restoring(ami: Ami) -> str:
    """Return the command that enables an AMI again, and shares it as it was if we retired it."""
    return f"vmsnix retire-amis --action restore --amis {ami.ami_id} --regions {ami.region}"


def _available(ec2: Client, ami_id: str, step: Step | None, pace: Pace) -> Ami:
    def look() -> Sighting[Ami]:
        ami = describe(ec2, ami_id)
        outcome: Literal["waiting", "done", "failed"] = "waiting"
        if ami.state == "available":
            outcome = "done"
        elif ami.state in ("failed", "error", "invalid", "deregistered", "disabled"):
            outcome = "failed"
        return Sighting(outcome, ami, None, ami.state)

    seen = wait(look, what=f"the AMI {ami_id}", deadline=AVAILABLE_SECONDS, step=step, pace=pace)
    if seen.state == "disabled":
        raise errors.RegistrationError(
            f"The AMI {ami_id} holds these bytes, and it is disabled.",
            why="It was retired, or somebody disabled it.",
            cure=f"Bring it back: {restoring(seen.value)}.",
        )
    if seen.outcome == "failed":
        raise errors.RegistrationError(
            f"The AMI {ami_id} is {seen.state}.",
            why="AWS gives the reason, if any, as the StateMessage of its snapshot.",
            cure=f"Look at {', '.join(seen.value.snapshot_ids) or 'its snapshot'}, deregister the AMI and "
            "publish again.",
        )
    return seen.value
