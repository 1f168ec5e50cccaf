"""How the EBS direct APIs say no, and how they find a snapshot.

Source: "Errors" of the six operations' reference pages; the reasons are the enumerations of botocore's model.
The texts are from memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Snapshot

SNAPSHOT_ID = re.compile(r"snap-([0-9a-f]{8}|[0-9a-f]{17})")


def invalid(reason: str, text: str) -> AwsError:
    """Return a ValidationException with its reason."""
    return AwsError("ValidationException", text, status=400, Reason=reason)


def missing(snapshot_id: str) -> AwsError:
    """Return a ResourceNotFoundException for a snapshot."""
    text = f"The snapshot '{snapshot_id}' does not exist."
    return AwsError("ResourceNotFoundException", text, status=404, Reason="SNAPSHOT_NOT_FOUND")


def own(context: Context, snapshot_id: str) -> Snapshot:
    """Return a snapshot of the caller's account in this region."""
    found: Snapshot | None = context.table("snapshots").get(snapshot_id)
    if found is None:
        if not SNAPSHOT_ID.fullmatch(snapshot_id):
            raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot ID '{snapshot_id}' is not valid.")
        raise missing(snapshot_id)
    return found


def readable(context: Context, snapshot_id: str) -> Snapshot:
    """Return a completed snapshot that the caller owns or that was shared with it."""
    if not SNAPSHOT_ID.fullmatch(snapshot_id):
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot ID '{snapshot_id}' is not valid.")
    for (_, region), table in context.tables.everywhere("snapshots").items():
        if region == context.region and snapshot_id in table:
            found: Snapshot = table[snapshot_id]
            break
    else:
        raise missing(snapshot_id)
    if not found.readable_by(context.account):
        text = f"You are not allowed to read the snapshot '{snapshot_id}'."
        raise AwsError("AccessDeniedException", text, status=403, Reason="UNAUTHORIZED_ACCOUNT")
    state = found.state(context.clock)
    if state != "completed":
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot '{snapshot_id}' is not completed: it is {state}.")
    return found
