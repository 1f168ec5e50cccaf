"""AMIs: find, describe, register, make public, tag."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Unpack, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.error_codes import AMI_NOT_FOUND, SNAPSHOT_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import batches, read_pages
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, code_of, retry
from vmsnix_ops.progress import NO_STEP, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.literals import ArchitectureValuesType, BootModeValuesType
    from types_boto3_ec2.type_defs import (
        BlockDeviceMappingTypeDef,
        DescribeImagesRequestTypeDef,
        EbsBlockDeviceTypeDef,
        ImageTypeDef,
        RegisterImageRequestTypeDef,
    )

    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

ARCHITECTURES: Mapping[str, ArchitectureValuesType] = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}
AVAILABLE_SECONDS = 15 * 60.0
NAME_SECONDS = 30.0  # until an AMI that another process registered is visible
FAILED_STATES = frozenset({"failed", "error", "invalid", "deregistered"})
"""States of AMIs that can never be used; some keep their name until they are deregistered."""

PENDING_STATES = frozenset({"pending", "transient"})
"""States of AMIs that AWS is still creating."""

STUCK = timedelta(hours=48)
"""An AMI that is pending for longer never becomes available: a time-based copy takes at most 48 hours."""

_VOLUME_DEFAULTS: dict[str, dict[str, int]] = {"gp3": {"Iops": 3000, "Throughput": 125}}
ENCRYPTION = "encryption of disk "
"""Prefix of the facts about the encryption of disks without a snapshot."""

PAGE = 1000
UNKNOWN_TIME = datetime.max.replace(tzinfo=UTC)
"""Creation time of an AMI for which AWS reports none: it is never old enough to be retired."""

NAME_LENGTH = range(3, 129)
_SIZE = re.compile(r"(\d+) GiB, ")
_REFUSED_IN_NAMES = re.compile(r"[^A-Za-z0-9()\[\] ./'@_-]")  # RegisterImage, parameter Name


def default_root_volume() -> EbsBlockDeviceTypeDef:
    """Return ``Ebs`` of a root volume with vmsnix's defaults."""
    return {"VolumeType": "gp3", "DeleteOnTermination": True}


@dataclass(frozen=True, slots=True)
class Registration:
    """The parameters of an AMI to register."""

    name: str  # unique in the account and region
    architecture: ArchitectureValuesType  # "x86_64" or "arm64"
    boot_mode: BootModeValuesType | Literal[""]  # "legacy-bios", "uefi" or "uefi-preferred"
    root_device: str  # device name of the root volume
    snapshot_id: str  # snapshot of the root volume
    description: str = ""  # shown in AWS's console
    # `Ebs` of the root volume without its snapshot, in the shape of RegisterImage.
    root_volume: EbsBlockDeviceTypeDef = field(default_factory=default_root_volume)
    # Further block device mappings, in the shape of RegisterImage.
    disks: tuple[BlockDeviceMappingTypeDef, ...] = ()
    imds_support: Literal["v2.0", ""] = "v2.0"  # instances require IMDSv2
    tpm_support: Literal["v2.0", ""] = ""  # only for UEFI
    ena_support: bool = True  # enhanced networking
    sriov_support: str = "simple"  # or empty; enhanced networking of older instance types
    uefi_data: str = ""  # contents of the UEFI variable store, base64; empty for none
    tags: Mapping[str, str] = field(default_factory=dict)  # tags of the AMI, set in the call that creates it

    def request(self, *, snapshot_gib: int = 0) -> RegisterImageRequestTypeDef:
        """Return the parameters of ``RegisterImage``, without empty ones.

        The root volume is at least as large as the root's snapshot (`snapshot_gib`): a container may round
        the disk up.
        """
        root: EbsBlockDeviceTypeDef = {**self.root_volume, "SnapshotId": self.snapshot_id}
        if "VolumeSize" in root:
            root["VolumeSize"] = max(root["VolumeSize"], snapshot_gib)
        tags = {**self.tags, tagging.UEFI_DATA: uefi_digest(self.uefi_data)}
        request: RegisterImageRequestTypeDef = {
            "Name": self.name,
            "Description": self.description,
            "Architecture": self.architecture,
            "RootDeviceName": self.root_device,
            "VirtualizationType": "hvm",
            "EnaSupport": self.ena_support,
            "BlockDeviceMappings": [{"DeviceName": self.root_device, "Ebs": root}, *self.disks],
            "TagSpecifications": tagging.tag_specifications("image", tags),
        }
        optional = {
            "BootMode": self.boot_mode,
            "SriovNetSupport": self.sriov_support,
            "ImdsSupport": self.imds_support,
            "TpmSupport": self.tpm_support,
            "UefiData": self.uefi_data,
        }
        return request | cast("RegisterImageRequestTypeDef", {k: v for k, v in optional.items() if v})

    def facts(self) -> dict[str, str]:
        """Return the same facts as `Ami.facts` of an AMI with this registration."""
        root: BlockDeviceMappingTypeDef = {"DeviceName": self.root_device, "Ebs": {**self.root_volume}}
        return _facts(self, uefi_digest(self.uefi_data), [root, *self.disks])


def uefi_digest(uefi_data: str) -> str:
    """Return the digest of UEFI data for a tag; DescribeImages does not return the data."""
    return hashlib.sha256(uefi_data.encode()).hexdigest()[:32] if uefi_data else ""


def _facts(
    wanted: Registration | Ami, uefi: str, mappings: Iterable[BlockDeviceMappingTypeDef]
) -> dict[str, str]:
    facts = {
        "architecture": wanted.architecture,
        "boot mode": wanted.boot_mode or "not set",
        "root device": wanted.root_device,
        "ENA support": "yes" if wanted.ena_support else "no",
        "TPM support": wanted.tpm_support or "none",
        "IMDS support": wanted.imds_support or "v1 and v2",
        "SR-IOV support": wanted.sriov_support or "none",
        "UEFI data": uefi or "none",
    }
    for mapping in mappings:
        name, ebs = mapping["DeviceName"], mapping.get("Ebs")
        if "NoDevice" in mapping:  # DescribeImages does not return these
            continue
        facts[f"disk {name}"] = _disk(mapping)
        if ebs is not None and name != wanted.root_device and not ebs.get("SnapshotId"):
            facts[f"{ENCRYPTION}{name}"] = "yes" if ebs.get("Encrypted") else "no"
    return facts


def _disk(mapping: BlockDeviceMappingTypeDef) -> str:
    if "Ebs" not in mapping:
        return mapping.get("VirtualName", "")
    ebs = mapping["Ebs"]
    kind = ebs.get("VolumeType") or "gp2"  # EC2's default
    parts = [kind, f"{ebs['VolumeSize']} GiB" if ebs.get("VolumeSize") else ""]
    numbers = {**_VOLUME_DEFAULTS.get(kind, {}), **{k: v for k, v in ebs.items() if v is not None}}
    parts += [f"{name} {numbers[name]}" for name in ("Iops", "Throughput") if name in numbers]
    parts.append(
        "kept on termination" if ebs.get("DeleteOnTermination") is False else "deleted on termination"
    )
    return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Ami:
    """An AMI as AWS describes it."""

    ami_id: str
    name: str
    region: str
    account: str  # of its owner
    state: str
    created_at: datetime  # UTC; `UNKNOWN_TIME` if AWS does not report it
    architecture: str
    boot_mode: str
    root_device: str
    snapshot_ids: tuple[str, ...]  # snapshots of its block devices, the root's first
    size_gib: int  # total size of its EBS block devices
    public: bool  # whether every account may launch it
    imds_support: str
    ena_support: bool
    tpm_support: str
    tags: Mapping[str, str]  # all tags, not only those of vmsnix
    deprecated_at: datetime | None = None  # UTC
    protection: str = "disabled"  # state of the deregistration protection
    # The AMI that it was copied from; empty if it is no copy.
    source_ami_id: str = ""
    source_region: str = ""
    # Time of its last launch, which AWS reports a day later; `None` if AWS reports none.
    launched_at: datetime | None = None
    description: str = ""
    sriov_support: str = ""
    # Its block devices as DescribeImages returns them; empty in `list_amis`.
    mappings: tuple[BlockDeviceMappingTypeDef, ...] = ()
    message: str = ""  # why it failed, if AWS reports it
    encrypted: bool = False  # whether all its volumes are encrypted

    def facts(self) -> dict[str, str]:
        """Return the fields in which two AMIs of the same bytes may differ."""
        return _facts(self, self.tags.get(tagging.UEFI_DATA, ""), self.mappings)

    @property
    def deprecated(self) -> bool:
        """Whether its deprecation date has passed."""
        return self.deprecated_at is not None and self.deprecated_at <= datetime.now(UTC)

    @property
    def stuck(self) -> bool:
        """Whether it has been pending for longer than `STUCK`, so it never becomes available."""
        return self.state in PENDING_STATES and datetime.now(UTC) - self.created_at > STUCK

    @property
    def digest(self) -> str:
        """Identity of the disk that it was made of; empty when vmsnix did not make it."""
        return self.tags.get(tagging.DIGEST, "")


def age_key(ami: Ami) -> tuple[datetime, str, str]:
    """Return a key that sorts AMIs by age, the oldest first.

    AWS reports whole seconds. AMIs of the same second are sorted by name, which is the same in every region.
    """
    return ami.created_at, ami.name, ami.ami_id


def clean_name(name: str) -> str:
    """Return a name that RegisterImage accepts: other characters become ``-``.

    >>> clean_name("altf4llc-ecs-node-26.11+git-x86_64-linux-0a1b2c3d")
    'altf4llc-ecs-node-26.11-git-x86_64-linux-0a1b2c3d'
    """
    cleaned = _REFUSED_IN_NAMES.sub("-", name)
    if len(cleaned) not in NAME_LENGTH:
        raise errors.ParameterError(
            f"The AMI name {cleaned!r} has {counted(len(cleaned), 'character')}.",
            why="AWS allows 3 to 128.",
            fix="Use a shorter prefix or image name.",
        )
    return cleaned


def is_usable(ami: Ami) -> bool:
    """Return whether an AMI can be launched, now or once AWS has created it."""
    return ami.state in {"available", *PENDING_STATES} and not ami.stuck


def usable_ami(found: Iterable[Ami]) -> Ami | None:
    """Return the usable AMI among those of one name; ``None`` if the name is free.

    Failed AMIs are ignored: AWS allows another AMI with their name. A name that belongs to an AMI that is
    disabled, or has been pending for too long, is refused.
    """
    found = list(found)
    for ami in found:
        if is_usable(ami):
            return ami
    for ami in found:
        if ami.state == "disabled":
            raise disabled_error(ami)
        if ami.stuck:
            raise errors.RegistrationError(
                f"The AMI {ami.ami_id} in {ami.region} never became available.",
                why=f"It has the name {ami.name} and has been {ami.state} since "
                f"{ami.created_at:%Y-%m-%d %H:%M} UTC.",
                fix=f"Deregister it ({deregister_command(ami)}), then run the same command again.",
            )
    return None


def disabled_error(ami: Ami) -> errors.RegistrationError:
    """Return the error for a disabled AMI of the image."""
    return errors.RegistrationError(
        f"The AMI {ami.ami_id} of this image exists, but it is disabled.",
        why="It was retired or disabled.",
        fix=f"Restore it: {restore_command(ami)}",
    )


@needs("ec2:DescribeImages")
def find_all_by_name(ec2: EC2Client, name: str) -> list[Ami]:
    """Return the account's AMIs of exactly this name: usable, then disabled, then failed ones.

    Several failed AMIs can have the same name.
    """
    with calling(f"find the AMI {name}"):
        # Brackets in a name are wildcards in a filter, so the name is compared too.
        found = [image for image in _find_images(ec2, "name", name) if image["Name"] == name]
    order = ("available", "pending", "transient", "disabled")
    ranks = {state: rank for rank, state in enumerate(order)}
    amis = [parse_ami(image, ec2.meta.region_name) for image in found]
    return sorted(amis, key=lambda ami: (ranks.get(ami.state, len(order)), *age_key(ami)))


@needs("ec2:DescribeImages")
def find_amis_of_snapshot(ec2: EC2Client, snapshot_id: str) -> list[str]:
    """Return the IDs of the account's AMIs that contain a snapshot, in any state."""
    with calling(f"find AMIs of {snapshot_id}"):
        images = _find_images(ec2, "block-device-mapping.snapshot-id", snapshot_id)
        return [image["ImageId"] for image in images]


def _find_images(
    ec2: EC2Client, name: str, *values: str, owners: Sequence[str] = ("self",)
) -> Iterator[ImageTypeDef]:
    """Yield the images in any state that match a filter, by default of the account."""
    pages = ec2.get_paginator("describe_images").paginate(
        Owners=owners,
        Filters=[{"Name": name, "Values": values}],
        IncludeDeprecated=True,
        IncludeDisabled=True,
        PaginationConfig={"PageSize": 500},
    )
    for page in pages:
        yield from page["Images"]


@needs("ec2:DescribeImages")
def find_amis(ec2: EC2Client, ami_ids: Iterable[str]) -> dict[str, Ami]:
    """Return the AMIs that exist and are visible to the caller, by ID."""
    wanted, found = list(dict.fromkeys(ami_ids)), {}
    with calling(f"read {', '.join(wanted[:3])}{' ...' if len(wanted) > 3 else ''}"):
        for batch in batches(wanted):
            for image in _find_images(ec2, "image-id", *batch, owners=()):
                found[image["ImageId"]] = parse_ami(image, ec2.meta.region_name)
    return found


@needs("ec2:DescribeImages")
def find_ami(ec2: EC2Client, ami_id: str) -> Ami | None:
    """Return an AMI as it is now; ``None`` if it does not exist or is not visible to the caller."""
    return find_amis(ec2, [ami_id]).get(ami_id)


@needs("ec2:DescribeImages")
def describe_ami(ec2: EC2Client, ami_id: str) -> Ami:
    """Return one AMI; retry while a new AMI is not visible yet."""
    with calling(f"read the AMI {ami_id}"):
        answer = retry(
            lambda: ec2.describe_images(ImageIds=[ami_id], IncludeDisabled=True), AMI_NOT_FOUND, seconds=60
        )
        if not answer["Images"]:
            raise errors.RegistrationError(
                f"No AMI {ami_id} in {ec2.meta.region_name}.", fix="Check the AMI ID and the region."
            )
    return parse_ami(answer["Images"][0], ec2.meta.region_name)


@needs("ec2:DescribeImages")
def list_published_amis(ec2: EC2Client) -> list[Ami]:
    """Return the AMIs of this account and region that vmsnix published, oldest first."""
    with calling("list our AMIs"):
        images = _find_images(ec2, "tag-key", tagging.DIGEST)
        found = [parse_ami(image, ec2.meta.region_name) for image in images]
    return sorted(found, key=age_key)


def read_images(ec2: EC2Client, **request: Unpack[DescribeImagesRequestTypeDef]) -> Iterator[ImageTypeDef]:
    """Yield the images of a request in any state, over all pages; throttled calls are retried."""
    request |= {"IncludeDeprecated": True, "IncludeDisabled": True, "MaxResults": PAGE}
    for page in read_pages(ec2.describe_images, **request):
        yield from page["Images"]


@needs("ec2:DescribeImages")
def list_amis(ec2: EC2Client) -> tuple[Ami, ...]:
    """Return all AMIs of the account and region, in any state, oldest first."""
    with calling(f"list the AMIs of {ec2.meta.region_name}"):
        # There may be a hundred thousand AMIs, and mappings need half of their memory.
        amis = [
            parse_ami(image, ec2.meta.region_name, mappings=False)
            for image in read_images(ec2, Owners=["self"])
        ]
    return tuple(sorted(amis, key=age_key))


@needs("ec2:DescribeImages", "ec2:RegisterImage", "ec2:CreateTags")
def register_ami(
    ec2: EC2Client,
    registration: Registration,
    *,
    digest: str,
    snapshot_gib: int = 0,
    step: Step = NO_STEP,
) -> tuple[Ami, StepOutcome]:
    """Register an AMI, or find it, and wait until it is available.

    Safe to run twice, although RegisterImage has no ClientToken: the name is derived from the image's digest,
    so AWS refuses a second registration, and the digest tag identifies the existing AMI. An AMI of this name
    with other bytes or another registration is a NameTakenError.
    """
    existing = usable_ami(find_all_by_name(ec2, registration.name))
    outcome: StepOutcome = "reused"
    if existing is None:
        with calling(f"register the AMI {registration.name}"):
            try:
                answer = retry(
                    lambda: ec2.register_image(**registration.request(snapshot_gib=snapshot_gib)),
                    SNAPSHOT_NOT_FOUND,
                )
                ami_id, outcome = answer["ImageId"], "created"
            except ec2.exceptions.ClientError as error:
                if code_of(error) != "InvalidAMIName.Duplicate":
                    raise
                # Another process was faster, or the answer to an earlier attempt was lost.
                existing = retry(
                    lambda: _must_find(ec2, registration.name), "NotYetVisible", seconds=NAME_SECONDS
                )
    wanted = registration.facts()
    if existing is not None:
        check_same_registration(existing, digest=digest, facts=wanted)
        ami_id = existing.ami_id
    made = wait_available(ec2, ami_id, step=step)
    if existing is not None and existing.state != "available":
        check_same_registration(made, digest=digest, facts=wanted)
    return made, outcome


def check_same_registration(existing: Ami, *, digest: str, facts: Mapping[str, str]) -> None:
    """Raise `NameTakenError` unless an AMI of the same name has the same disk and registration.

    Disks are compared only if it is available: AWS may not list the disks of a pending AMI.
    """
    if existing.digest != digest:
        has = f"digest {existing.digest[:12]}" if existing.digest else "no vmsnix digest tag"
        raise errors.NameTakenError(
            f"The AMI name {existing.name} is in use.",
            why=f"{existing.ami_id} in {existing.region} has this name and {has}; this image's digest is "
            f"{digest[:12]}.",
            fix="Use another prefix, or deregister that AMI if nothing needs it: "
            f"{deregister_command(existing)}",
            code="InvalidAMIName.Duplicate",
        )
    there, different = existing.facts(), []
    for name in dict.fromkeys([*facts, *there]):
        wanted, found = facts.get(name, "none"), there.get(name, "none")
        disk = name.startswith(("disk ", ENCRYPTION))
        if (disk and existing.state in PENDING_STATES) or (name.startswith(ENCRYPTION) and name not in facts):
            continue
        if name == f"disk {existing.root_device}" and _gib(wanted) <= _gib(found):
            # The size is not part of the disk: a container may round it up. Only a larger one that was
            # requested makes another AMI.
            wanted, found = without_size(wanted), without_size(found)
        if wanted != found:
            different.append((name, wanted, found))
    if different:
        listed = "; ".join(
            f"{name} is {found} and {wanted} is requested" for name, wanted, found in different
        )
        raise errors.NameTakenError(
            f"The AMI {existing.name} exists with another {' and '.join(name for name, _, _ in different)}.",
            why=f"{existing.ami_id} in {existing.region} has the same bytes, but {listed}.",
            fix="Use another prefix, request the AMI's own values, or deregister it if nothing needs it: "
            f"{deregister_command(existing)}",
            code="InvalidAMIName.Duplicate",
        )


def without_size(disk: str) -> str:
    """Return the text of a disk without its size."""
    return _SIZE.sub("", disk)


def _gib(disk: str) -> int:
    """Return the size in the text of a disk; 0 when it has none."""
    size = _SIZE.search(disk)
    return int(size[1]) if size else 0


@needs("ec2:ModifyImageAttribute")
def make_public(ec2: EC2Client, ami_id: str) -> None:
    """Let every AWS account launch the AMI. Safe to run twice: the permission is the same."""
    try:
        with calling(f"make {ami_id} public"):
            ec2.modify_image_attribute(ImageId=ami_id, LaunchPermission={"Add": [{"Group": "all"}]})
    except errors.AwsError as error:
        if error.code != "OperationNotPermitted":
            raise
        raise error.with_fix(
            "Turn off block public access for AMIs in this region (aws ec2 "
            "disable-image-block-public-access), or leave public out. The AMI is registered and private."
        ) from error


@needs("ec2:CreateTags of our resources")
def tag_ami(ec2: EC2Client, ami_id: str, tags: Mapping[str, str]) -> None:
    """Add or change tags of an AMI. Safe to run twice."""
    with calling(f"tag {ami_id}"):
        retry(lambda: ec2.create_tags(Resources=[ami_id], Tags=tagging.to_list(tags)), AMI_NOT_FOUND)


def parse_ami(image: ImageTypeDef, region: str, *, mappings: bool = True) -> Ami:
    """Return an entry of DescribeImages as an `Ami`, with or without its mappings."""
    devices = sorted(
        (mapping for mapping in image.get("BlockDeviceMappings", ()) if "Ebs" in mapping),
        key=lambda mapping: mapping["DeviceName"] != image.get("RootDeviceName"),
    )
    same = sys.intern  # equal texts of many AMIs share memory
    return Ami(
        ami_id=image["ImageId"],
        name=image.get("Name", ""),
        region=region,
        account=same(image.get("OwnerId", "")),
        state=same(image.get("State", "")),
        created_at=_moment(image.get("CreationDate")) or UNKNOWN_TIME,
        architecture=same(image.get("Architecture", "")),
        boot_mode=same(image.get("BootMode", "")),
        root_device=same(image.get("RootDeviceName", "")),
        snapshot_ids=tuple(d["Ebs"]["SnapshotId"] for d in devices if d["Ebs"].get("SnapshotId")),
        size_gib=sum((d["Ebs"].get("VolumeSize") or 0) for d in devices),
        public=bool(image.get("Public")),
        imds_support=same(image.get("ImdsSupport", "")),
        ena_support=bool(image.get("EnaSupport")),
        tpm_support=same(image.get("TpmSupport", "")),
        tags=tagging.to_dict(image.get("Tags")),
        deprecated_at=_moment(image.get("DeprecationTime")),
        protection=same(image.get("DeregistrationProtection") or "disabled"),
        source_ami_id=image.get("SourceImageId", ""),
        source_region=same(image.get("SourceImageRegion", "")),
        launched_at=_moment(image.get("LastLaunchedTime")),
        description=same(image.get("Description", "")),
        sriov_support=same(image.get("SriovNetSupport", "")),
        mappings=tuple(image.get("BlockDeviceMappings", ())) if mappings else (),
        encrypted=bool(devices) and all(d["Ebs"].get("Encrypted") for d in devices),
        message=str((image.get("StateReason") or {}).get("Message") or ""),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


_SAME_COLUMNS = (
    *("ami_id", "name", "digest", "region", "account", "created_at", "size_gib", "root_device", "state"),
    *("imds_support", "tpm_support", "ena_support", "public", "deprecated_at", "description"),
)
"""Columns of the table ``amis`` that are fields of `Ami`."""


def ami_row(ami: Ami, *, recorded_at: datetime, source: str, via: str | None = None) -> dict[str, object]:
    """Return an AMI as a row of the ``amis`` table, from AWS's data only, so a sync returns the same row."""
    systems = {"x86_64": "x86_64-linux", "arm64": "aarch64-linux"}
    return {
        **{name: getattr(ami, name) for name in _SAME_COLUMNS},
        "image": ami.tags.get(tagging.IMAGE),
        "version": ami.tags.get(tagging.VERSION),
        "system": systems.get(ami.architecture, ami.architecture),
        "snapshot_id": ami.snapshot_ids[0] if ami.snapshot_ids else None,
        "run_id": ami.tags.get(tagging.RUN),
        "recorded_at": recorded_at,
        "boot_mode": ami.boot_mode or None,  # empty if the AMI was registered without one
        "via": via,
        "protected": ami.protection.startswith("enabled"),
        "flake": ami.tags.get(tagging.FLAKE),
        "derivation": ami.tags.get(tagging.DERIVATION),
        "root_hash": ami.tags.get(tagging.ROOT_HASH),
        "uki_sha384": ami.tags.get(tagging.UKI),
        "pcr4_sha384": ami.tags.get(tagging.PCR4),
        "pcr12_sha384": ami.tags.get(tagging.PCR12),
        "source": source,
        "tags": dict(ami.tags),
    }


def _must_find(ec2: EC2Client, name: str) -> Ami:
    there = find_all_by_name(ec2, name)
    found = usable_ami(there)
    if found is None:
        failed = " ".join(deregister_command(ami) for ami in there[:1])
        raise errors.RegistrationError(
            f"The AMI name {name} is in use, but this account has no usable AMI of this name.",
            why=", ".join(f"{ami.ami_id} of this name is {ami.state}" for ami in there)
            or "It was registered a moment ago, or it is being deregistered",
            fix=f"Deregister it ({failed}), then run the same command again."
            if failed
            else "Run the same command again.",
            code="NotYetVisible",
        )
    return found


def deprecation_note(ami: Ami) -> str:
    """Return a sentence about a deprecated AMI, with the command that removes its deprecation date."""
    return (
        f"{ami.ami_id} is deprecated since {ami.deprecated_at:%Y-%m-%d %H:%M} UTC (to undo: aws ec2 "
        f"disable-image-deprecation --image-id {ami.ami_id} --region {ami.region})"
    )


def deregister_command(ami: Ami) -> str:
    """Return the command that deregisters an AMI."""
    return f"aws ec2 deregister-image --image-id {ami.ami_id} --region {ami.region}"


def restore_command(ami: Ami) -> str:
    """Return the command that restores a retired or disabled AMI."""
    return f"vmsnix retire --action restore --amis {ami.ami_id} --regions {ami.region}"


@needs("ec2:DescribeImages")
def wait_available(ec2: EC2Client, ami_id: str, *, step: Step = NO_STEP) -> Ami:
    """Wait until an AMI is available, and return it; a RegistrationError if it failed or is disabled."""

    def read() -> PollResult[Ami]:
        ami = describe_ami(ec2, ami_id)
        failed = ami.state in FAILED_STATES | {"disabled"}
        done = ami.state == "available"
        return PollResult("done" if done else "failed" if failed else "waiting", ami, None, ami.state)

    try:
        result = poll(read, what=f"the AMI {ami_id}", deadline=AVAILABLE_SECONDS, step=step)
    except errors.DeadlineError as error:
        command = f"aws ec2 deregister-image --image-id {ami_id} --region {ec2.meta.region_name}"
        raise errors.DeadlineError(
            error.what,
            why=error.why,
            fix=f"Run the same command again. If it is then still pending, deregister it ({command}) and "
            "publish again.",
        ) from error
    if result.state == "disabled":
        raise disabled_error(result.value)
    if result.outcome == "failed":
        raise errors.RegistrationError(
            f"The AMI {ami_id} is {result.state}.",
            why="The StateMessage of its snapshot can have the reason.",
            fix=f"Check {', '.join(result.value.snapshot_ids) or 'its snapshot'}, deregister the AMI "
            f"({deregister_command(result.value)}), and publish again.",
        )
    return result.value
