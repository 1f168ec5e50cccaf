"""Share AMIs and snapshots with accounts, organizations, organizational units or the public.

Launch permissions share an AMI. An account also needs its snapshots to copy the AMI. AWS shares snapshots
with accounts only, not with organizations or units.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import images
from vmsnix_ops.aws.error_codes import AMI_NOT_FOUND, SNAPSHOT_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        CreateVolumePermissionModificationsTypeDef,
        CreateVolumePermissionTypeDef,
        LaunchPermissionModificationsTypeDef,
        LaunchPermissionTypeDef,
    )

PUBLIC = "public"
AWS_KEY = "alias/aws/ebs"
_SHAPES = {
    "accounts": re.compile(r"\d{12}"),
    "organizations": re.compile(r"arn:aws[a-z-]*:organizations::\d{12}:organization/o-[a-z0-9]{10,32}"),
    "units": re.compile(
        r"arn:aws[a-z-]*:organizations::\d{12}:ou/o-[a-z0-9]{10,32}/ou-[a-z0-9]{4,32}-[a-z0-9]{8,32}"
    ),
}

_MEMBERS = ("UserId", "OrganizationArn", "OrganizationalUnitArn")


@dataclass(frozen=True, slots=True)
class Audience:
    """The accounts and organizations with which an AMI or snapshot is shared."""

    accounts: tuple[str, ...] = ()  # account IDs of 12 digits
    # ARNs of organizations and of organizational units.
    organizations: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    public: bool = False  # whether every account may use it

    def __bool__(self) -> bool:
        return bool(self.accounts or self.organizations or self.units or self.public)

    def __str__(self) -> str:
        return ", ".join(self.names()) or "no account"

    def names(self) -> tuple[str, ...]:
        """Return all members as text; ``public`` stands for every account."""
        return (*self.accounts, *self.organizations, *self.units, *((PUBLIC,) if self.public else ()))

    def minus(self, other: Audience) -> Audience:
        """Return the members that are not in the other audience."""
        return _audience([name for name in self.names() if name not in other.names()])

    def within(self, other: Audience) -> Audience:
        """Return the members that are also in the other audience."""
        return _audience([name for name in self.names() if name in other.names()])

    def launch_permissions(self) -> list[LaunchPermissionTypeDef]:
        """Return the members in the shape of ModifyImageAttribute's ``LaunchPermission``."""
        entries: list[LaunchPermissionTypeDef] = [{"UserId": name} for name in self.accounts]
        entries += [{"OrganizationArn": name} for name in self.organizations]
        entries += [{"OrganizationalUnitArn": name} for name in self.units]
        return entries + ([{"Group": "all"}] if self.public else [])

    def volume_permissions(self) -> list[CreateVolumePermissionTypeDef]:
        """Return accounts and ``public`` in the shape of ``CreateVolumePermission``."""
        entries: list[CreateVolumePermissionTypeDef] = [{"UserId": name} for name in self.accounts]
        return entries + ([{"Group": "all"}] if self.public else [])


def parse_audience(names: Iterable[str]) -> Audience:
    """Return an audience; refuse a name that is not an account ID, an ARN in Organizations or ``public``.

    >>> parse_audience(["public", "012345678901"]).accounts
    ('012345678901',)
    """
    names = tuple(names)
    for name in names:
        if name != PUBLIC and not any(shape.fullmatch(name) for shape in _SHAPES.values()):
            raise errors.ParameterError(
                f"{name!r} is not an account or an organization.",
                why="Use an account ID of 12 digits, or the ARN of an organization or organizational unit.",
                fix="To find the ARN of your organization, run aws organizations describe-organization",
            )
    return _audience(names)


def _audience(names: Iterable[str]) -> Audience:
    known = set(names)
    members = {kind: tuple(sorted(filter(shape.fullmatch, known))) for kind, shape in _SHAPES.items()}
    return Audience(**members, public=PUBLIC in known)


def _read(entries: Iterable[Mapping[str, Any]]) -> Audience:
    names = []
    for entry in entries:
        names += [str(who) for member, who in entry.items() if member in _MEMBERS]
        names += [PUBLIC] if entry.get("Group") == "all" else []
    return _audience(names)


@needs("ec2:DescribeImageAttribute")
def read_launch_permissions(ec2: EC2Client, ami_id: str) -> Audience:
    """Return the audience of an AMI of this account."""
    with calling(f"read the launch permissions of {ami_id}"):
        answer = retry(
            lambda: ec2.describe_image_attribute(ImageId=ami_id, Attribute="launchPermission"), AMI_NOT_FOUND
        )
    return _read(answer.get("LaunchPermissions") or ())


@needs("ec2:DescribeSnapshotAttribute")
def read_snapshot_permissions(ec2: EC2Client, snapshot_id: str) -> Audience:
    """Return the audience of a snapshot of this account."""
    with calling(f"read the permissions of {snapshot_id}"):
        answer = retry(
            lambda: ec2.describe_snapshot_attribute(
                SnapshotId=snapshot_id, Attribute="createVolumePermission"
            ),
            SNAPSHOT_NOT_FOUND,
        )
    return _read(answer.get("CreateVolumePermissions") or ())


@needs("ec2:GetEbsEncryptionByDefault", "ec2:GetEbsDefaultKmsKeyId")
def check_copy_key(ec2: EC2Client, *, kms_key: str, encrypted: bool) -> None:
    """Refuse a copy that will be shared but would be encrypted with AWS's own key.

    Source: "Share an Amazon EBS snapshot" in the EBS user guide: snapshots that are encrypted with
    ``aws/ebs`` cannot be shared.
    """
    if kms_key:
        return
    region = ec2.meta.region_name
    with calling("read the encryption default for copies"):
        by_default = ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]
        key = ec2.get_ebs_default_kms_key_id()["KmsKeyId"] if by_default or encrypted else ""
    if key.endswith(AWS_KEY):
        because = "snapshots are encrypted by default there" if by_default else "the AMI's snapshots are"
        raise errors.ParameterError(
            f"A copy in {region} could not be shared.",
            why=f"It would be encrypted with {AWS_KEY}, because {because}. AWS cannot share snapshots that "
            "are encrypted with its own key.",
            fix=f"Use one of your keys that the other accounts may use: --kms-keys {region}=KEY",
        )


@needs("ec2:ModifyImageAttribute")
def share_ami(ec2: EC2Client, ami_id: str, who: Audience) -> None:
    """Add launch permissions to an AMI. Safe to run twice: the permissions are the same."""
    entries = Audience(who.accounts, who.organizations, who.units).launch_permissions()
    if entries:
        _modify(ec2, ami_id, f"share {ami_id} with {', '.join(who.names())}", {"Add": entries})
    if who.public:
        images.make_public(ec2, ami_id)


@needs("ec2:ModifyImageAttribute")
def revoke_ami(ec2: EC2Client, ami_id: str, who: Audience) -> None:
    """Remove launch permissions from an AMI. Safe to run twice: missing permissions are no error."""
    if who:
        _modify(ec2, ami_id, f"stop sharing {ami_id} with {who}", {"Remove": who.launch_permissions()})


@contextmanager
def _explain_aws_key() -> Iterator[None]:
    try:
        yield
    except errors.AwsError as error:
        if not re.search("AWS Managed CMK|EBS default key", error.why):
            raise
        raise error.with_fix(
            "Deregister this copy if nothing uses it, then promote it again with --kms-keys REGION=KEY."
        ) from error


def _modify(ec2: EC2Client, ami_id: str, doing: str, change: LaunchPermissionModificationsTypeDef) -> None:
    with _explain_aws_key(), calling(doing):
        retry(lambda: ec2.modify_image_attribute(ImageId=ami_id, LaunchPermission=change), AMI_NOT_FOUND)


@needs("ec2:ModifySnapshotAttribute")
def share_snapshot(ec2: EC2Client, snapshot_id: str, accounts: Iterable[str]) -> None:
    """Allow accounts to create volumes and copies from a snapshot. Safe to run twice."""
    entries = Audience(tuple(accounts)).volume_permissions()
    if entries:
        _modify_snapshot(ec2, snapshot_id, f"share {snapshot_id}", {"Add": entries})


@needs("ec2:ModifySnapshotAttribute")
def revoke_snapshot(ec2: EC2Client, snapshot_id: str, who: Audience) -> None:
    """Stop sharing a snapshot. Safe to run twice."""
    entries = who.volume_permissions()
    if entries:
        _modify_snapshot(ec2, snapshot_id, f"stop sharing {snapshot_id} with {who}", {"Remove": entries})


def _modify_snapshot(
    ec2: EC2Client, snapshot_id: str, doing: str, change: CreateVolumePermissionModificationsTypeDef
) -> None:
    with _explain_aws_key(), calling(doing):
        retry(
            lambda: ec2.modify_snapshot_attribute(
                SnapshotId=snapshot_id, Attribute="createVolumePermission", CreateVolumePermission=change
            ),
            SNAPSHOT_NOT_FOUND,
        )
