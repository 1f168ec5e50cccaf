"""Ids of the right shape, and how EC2 says that one is malformed or unknown.

Sources: the client error codes of the Amazon EC2 developer guide; texts as public transcripts show them.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource: its id prefix, its table, its name in tags, its error codes and texts."""

    prefix: str
    table: str
    resource_type: str
    malformed: str
    malformed_text: str
    not_found: str
    not_found_text: str


IMAGE = Kind(
    "ami",
    "images",
    "image",
    "InvalidAMIID.Malformed",
    'Invalid id: "{id}" (expecting "ami-...")',
    "InvalidAMIID.NotFound",
    "The image id '[{id}]' does not exist",
)
SNAPSHOT = Kind(
    "snap",
    "snapshots",
    "snapshot",
    "InvalidSnapshotID.Malformed",
    "Value ({id}) for parameter snapshotId is invalid. Expected: 'snap-...'.",
    "InvalidSnapshot.NotFound",
    "The snapshot '{id}' does not exist.",
)
VOLUME = Kind(
    "vol",
    "volumes",
    "volume",
    "InvalidParameterValue",
    "Value ({id}) for parameter volumeId is invalid. Expected: 'vol-...'.",
    "InvalidVolume.NotFound",
    "The volume '{id}' does not exist.",
)
INSTANCE = Kind(
    "i",
    "instances",
    "instance",
    "InvalidInstanceID.Malformed",
    'Invalid id: "{id}"',
    "InvalidInstanceID.NotFound",
    "The instance ID '{id}' does not exist",
)
IMPORT_TASK = Kind(
    "import-snap",
    "import_tasks",
    "import-snapshot-task",
    "InvalidConversionTaskId.Malformed",
    "The conversion task id '{id}' is malformed",  # text from memory; the code is documented
    "InvalidConversionTaskId",
    "The conversion task '{id}' does not exist",  # text from memory; the code is documented
)
LAUNCH_TEMPLATE = Kind(
    "lt",
    "launch_templates",
    "launch-template",
    "InvalidLaunchTemplateId.Malformed",
    'Invalid id: "{id}" (expecting "lt-...")',
    "InvalidLaunchTemplateId.NotFound",
    "The specified launch template, with template ID {id}, does not exist.",
)
KINDS = (IMAGE, SNAPSHOT, VOLUME, INSTANCE, IMPORT_TASK, LAUNCH_TEMPLATE)

Resource = TypeVar("Resource")


def new_id(prefix: str) -> str:
    """Return a fresh id: the prefix, a dash and 17 hexadecimal digits."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def check_id(kind: Kind, resource_id: str) -> None:
    """Refuse an id that cannot be one of this kind.

    Raises
    ------
    AwsError
        The kind's own ``Malformed`` code.
    """
    if not re.fullmatch(rf"{kind.prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", resource_id):
        raise AwsError(kind.malformed, kind.malformed_text.format(id=resource_id))


def not_found(kind: Kind, resource_id: str) -> AwsError:
    """Return the error that says that there is no such resource."""
    return AwsError(kind.not_found, kind.not_found_text.format(id=resource_id))


def find_own(context: Context, kind: Kind, resource_id: str, *, region: str | None = None) -> Any:
    """Return the caller's resource of this id.

    Raises
    ------
    AwsError
        The id is malformed, or the account has no such resource in the region.
    """
    check_id(kind, resource_id)
    found = context.table(kind.table, region=region).get(resource_id)
    if found is None:
        raise not_found(kind, resource_id)
    return found


def everywhere(context: Context, kind: Kind, *, region: str | None = None) -> list[Any]:
    """Return the resources of this kind of all accounts in one region."""
    where = context.region if region is None else region
    tables = context.tables.everywhere(kind.table)
    return [
        resource
        for (_, place), table in tables.items()
        if place == where
        for resource in list(table.values())
    ]


def find_anywhere(context: Context, kind: Kind, resource_id: str, *, region: str | None = None) -> Any | None:
    """Return the resource of this id whoever owns it, or None."""
    check_id(kind, resource_id)
    where = context.region if region is None else region
    for (_, place), table in context.tables.everywhere(kind.table).items():
        if place == where and resource_id in table:
            return table[resource_id]
    return None
