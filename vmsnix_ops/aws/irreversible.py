"""Which calls cannot be undone, and the line that is written before each; see `vmsnix_ops.records.acts`.

The check hangs on the client, so that no job can forget it. Terminating an instance of a smoke test is not
one of these acts: an instance that runs on because a disk is full costs money, and holds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.records import acts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Asked = Mapping[str, Any]


def _stops_sharing(member: str, name: str) -> Callable[[Asked], str]:
    """Return what tells whether a call takes permissions away; one that gives some can be undone."""

    def resource(asked: Asked) -> str:
        removes = asked.get("OperationType") == "remove" or (asked.get(member) or {}).get("Remove")
        return str(asked[name]) if removes else ""

    return resource


def _object(asked: Asked) -> str:
    return f"s3://{asked['Bucket']}/{asked['Key']}"


IRREVERSIBLE: Mapping[tuple[str, str], Callable[[Asked], str]] = {
    ("ec2", "CancelImportTask"): lambda asked: str(asked["ImportTaskId"]),
    ("ec2", "DeleteSnapshot"): lambda asked: str(asked["SnapshotId"]),
    ("ec2", "DeregisterImage"): lambda asked: str(asked["ImageId"]),
    ("ec2", "DisableImage"): lambda asked: str(asked["ImageId"]),  # AWS forgets with whom it was shared
    ("ec2", "ModifyImageAttribute"): _stops_sharing("LaunchPermission", "ImageId"),
    ("ec2", "ModifySnapshotAttribute"): _stops_sharing("CreateVolumePermission", "SnapshotId"),
    ("iam", "DeletePolicyVersion"): lambda asked: f"{asked['PolicyArn']} {asked['VersionId']}",
    ("s3", "AbortMultipartUpload"): _object,
    ("s3", "DeleteObject"): _object,
    ("ssm", "DeleteParameter"): lambda asked: str(asked["Name"]),
}
"""Each call with the function that names the resource; an empty name means that this call can be undone."""


def announce_before(client: Any) -> None:
    """Let every irreversible call of this client write its line first."""
    service = str(client.meta.service_model.service_name)

    def announce(params: Asked, model: Any, **_more: Any) -> None:
        # Parameters as the caller gave them: later they are a request.
        resource = IRREVERSIBLE[service, str(model.name)](params)
        if resource:
            acts.announce(f"{service}:{model.name}", resource, str(client.meta.region_name or ""))

    for name, operation in IRREVERSIBLE:
        if name == service:
            client.meta.events.register(f"provide-client-params.{service}.{operation}", announce)
