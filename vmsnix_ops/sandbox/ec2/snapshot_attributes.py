"""Who may use a snapshot, and the account's block on public snapshots.

Sources: the reference pages of the operations; "Block public access for Amazon EBS snapshots".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, encryption, ids
from vmsnix_ops.sandbox.ec2.sharing import check_grantee

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Snapshot

ATTRIBUTES = ("createVolumePermission", "productCodes")


def _permissions(params: Params) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    structure = params.get("CreateVolumePermission") or {}
    added = [dict(entry) for entry in structure.get("Add") or []]
    removed = [dict(entry) for entry in structure.get("Remove") or []]
    flat = [{"UserId": user} for user in params.get("UserIds") or []]
    flat += [{"Group": group} for group in params.get("GroupNames") or []]
    if flat:
        checks.one_of("operationType", params.get("OperationType", ""), ("add", "remove"))
        (added if params["OperationType"] == "add" else removed).extend(flat)
    for entry in added + removed:
        for item, value in entry.items():
            check_grantee(item, value)
    return added, removed


@operation(
    "ec2",
    "ModifySnapshotAttribute",
    honours=("Attribute", "CreateVolumePermission", "GroupNames", "OperationType", "SnapshotId", "UserIds"),
)
def modify_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Share a snapshot with accounts or with everybody, or stop sharing it."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    checks.one_of("attribute", params.get("Attribute"), ATTRIBUTES[:1])
    added, removed = _permissions(params)
    if not added and not removed:
        raise AwsError("InvalidParameterCombination", "No attributes specified.")
    if {"Group": "all"} in added and not snapshot.public:
        _check_public(context, snapshot)
    if added and snapshot.encrypted and encryption.managed(context, snapshot.kms_key):
        # Code and text: public transcripts, of Packer among others.
        raise AwsError("OperationNotPermitted", "Encrypted snapshots with EBS default key cannot be shared")
    for entry in removed:
        if "Group" in entry:
            snapshot.public = False
        elif entry.get("UserId") in snapshot.users:
            snapshot.users.remove(entry["UserId"])
    for entry in added:
        if "Group" in entry:
            snapshot.public = True
        elif entry["UserId"] not in snapshot.users:
            snapshot.users.append(entry["UserId"])
    return {}


def _check_public(context: Context, snapshot: Snapshot) -> None:
    if _blocked(context) != "unblocked":
        # The code is documented, the text is from memory.
        text = "You can't publicly share this snapshot because block public access for snapshots is enabled."
        raise AwsError("OperationNotPermitted", text)
    if snapshot.encrypted:
        # Documented: encrypted snapshots cannot be public; text from memory.
        text = f"The snapshot {snapshot.snapshot_id} is encrypted and cannot be shared publicly."
        raise AwsError("OperationNotPermitted", text)


@operation("ec2", "ResetSnapshotAttribute", honours=("Attribute", "SnapshotId"))
def reset_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Make a snapshot private again."""
    checks.one_of("attribute", params["Attribute"], ATTRIBUTES[:1])
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    snapshot.users.clear()
    snapshot.public = False
    return {}


@operation("ec2", "DescribeSnapshotAttribute", honours=("Attribute", "SnapshotId"))
def describe_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return with whom a snapshot of this account is shared."""
    checks.one_of("attribute", params["Attribute"], ATTRIBUTES)
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    answer: dict[str, Any] = {"SnapshotId": snapshot.snapshot_id}
    if params["Attribute"] == "productCodes":
        return answer | {"ProductCodes": []}
    permissions = [{"UserId": user} for user in snapshot.users]
    return answer | {"CreateVolumePermissions": permissions + ([{"Group": "all"}] if snapshot.public else [])}


def _blocked(context: Context) -> str:
    return str(context.table("ec2_settings").get("snapshot_block", "unblocked"))


@operation("ec2", "EnableSnapshotBlockPublicAccess", honours=("State",))
def enable_snapshot_block_public_access(context: Context, params: Params) -> dict[str, Any]:
    """Refuse to make snapshots public; with ``block-all-sharing``, those that are become private as well."""
    checks.one_of("state", params["State"], ("block-all-sharing", "block-new-sharing"))
    context.table("ec2_settings")["snapshot_block"] = params["State"]
    return {"State": params["State"]}


@operation("ec2", "DisableSnapshotBlockPublicAccess")
def disable_snapshot_block_public_access(context: Context, _params: Params) -> dict[str, Any]:
    """Allow snapshots to be made public."""
    context.table("ec2_settings")["snapshot_block"] = "unblocked"
    return {"State": "unblocked"}


@operation("ec2", "GetSnapshotBlockPublicAccessState")
def get_snapshot_block_public_access_state(context: Context, _params: Params) -> dict[str, Any]:
    """Tell whether snapshots may be made public."""
    return {"State": _blocked(context), "ManagedBy": "account"}
