"""Limit what a notebook may do in AWS to the side effects that it declares.

The metadata of a notebook declare whether it only reads (``read_only``), ``creates``, ``changes`` or
``deletes``. With ``dry_run`` it may only read. `Guard` checks every call that boto3 sends from the kernel:

``read_only``
    Only calls that read, and calls with ``DryRun=True``.
``creates``, ``changes``
    All calls, but a run may delete only resources that it created, and leftovers of a publish (`CLEAN_UPS`).
``deletes``
    All calls. The runner starts such a run only after a confirmation
    (`vmsnix_ops.runbooks.execution.execute.run`).

This protects against mistakes, not against attacks: a notebook can start another program, whose calls are not
checked. To make something impossible, limit the credentials: `vmsnix iam-policy` prints the smallest policy
of each job.
"""

from __future__ import annotations

import functools
import json
import re
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.errors import ConfirmationError, SideEffectsError
from vmsnix_ops.import_hooks import after_import
from vmsnix_ops.runbooks.execution import lease
from vmsnix_ops.runbooks.execution.status import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from vmsnix_ops.runbooks.catalog import SideEffects

READING_VERBS = re.compile(
    r"(BatchDescribe|BatchGet|Describe|Get|Head|List|Lookup|Search|Simulate)(?=[A-Z]|$)"
)
"""Verbs of operations that read."""

READING_CALLS = frozenset(
    {
        "s3:SelectObjectContent",
        # These return credentials. Every call that is made with them is checked too.
        "sts:AssumeRole",
        "sts:AssumeRoleWithSAML",
        "sts:AssumeRoleWithWebIdentity",
        "sts:DecodeAuthorizationMessage",
    }
)
CREATING_GETS = frozenset({"cognito-identity:GetId"})
"""Calls that create something, although their verb is one of `READING_VERBS`."""

DELETING_VERBS = re.compile(
    r"(Abort|BatchDelete|Cancel|Clear|Delete|Deregister|Destroy|Detach|Disable|Disassociate|Purge|Reject|Release|Remove"
    r"|Reset|Revoke|Schedule[A-Z]\w*Deletion|Stop|Terminate|Unsubscribe|Untag|Withdraw)(?=[A-Z]|$)"
)
"""Verbs of operations that delete or disable."""

CREATED_IDS: Mapping[str, str] = {
    "ebs:StartSnapshot": "SnapshotId",
    "ec2:CopyImage": "ImageId",
    "ec2:CopySnapshot": "SnapshotId",
    "ec2:CreateImage": "ImageId",
    "ec2:CreateSecurityGroup": "GroupId",
    "ec2:CreateSnapshot": "SnapshotId",
    "ec2:CreateVolume": "VolumeId",
    "ec2:ImportSnapshot": "ImportTaskId",
    "ec2:RegisterImage": "ImageId",
    "ec2:RunInstances": "Instances.InstanceId",
    "sns:CreateTopic": "TopicArn",
    "sns:Subscribe": "SubscriptionArn",
}
"""Field of a response that contains the ID of the created resource."""

DELETED_IDS: Mapping[str, str] = {
    "ec2:CancelImportTask": "ImportTaskId",
    "ec2:DeleteSecurityGroup": "GroupId",
    "ec2:DeleteSnapshot": "SnapshotId",
    "ec2:DeleteVolume": "VolumeId",
    "ec2:DeregisterImage": "ImageId",
    "ec2:StopInstances": "InstanceIds",
    "ec2:TerminateInstances": "InstanceIds",
    "sns:DeleteTopic": "TopicArn",
    "sns:Unsubscribe": "SubscriptionArn",
}
"""Parameter of a call that contains the ID of the resource to delete."""

CONTENT_KEY = re.compile(r"(.*/)?[0-9a-f]{64}(-[0-9a-f]+)+\.[a-z0-9]+")  # an upload of a publish


def _is_publish_snapshot(client: Any, request: Mapping[str, Any]) -> bool:
    """Whether a publish created a snapshot, by the tags of the snapshot or of its import.

    AWS refuses to delete a snapshot that an AMI uses.
    """
    found = client.describe_snapshots(SnapshotIds=[request["SnapshotId"]])["Snapshots"]
    if any(tagging.DIGEST in tagging.to_dict(one.get("Tags")) for one in found):
        return True
    tasks = [word for one in found for word in re.findall(r"import-snap-\w+", one.get("Description", ""))]
    return any(_is_publish_import(client, {"ImportTaskId": task}) for task in tasks)


def _is_publish_import(client: Any, request: Mapping[str, Any]) -> bool:
    """Whether a publish started an import, by its tags."""
    answer = client.describe_import_snapshot_tasks(ImportTaskIds=[request["ImportTaskId"]])
    return any(tagging.DIGEST in tagging.to_dict(task.get("Tags")) for task in answer["ImportSnapshotTasks"])


def _are_smoke_test_instances(client: Any, request: Mapping[str, Any]) -> bool:
    """Whether smoke tests launched all of these instances, by their tags."""
    answer = client.describe_instances(InstanceIds=request["InstanceIds"])
    found = [one for group in answer["Reservations"] for one in group["Instances"]]
    return bool(found) and all(tagging.SMOKE in tagging.to_dict(one.get("Tags")) for one in found)


def _has_one_value(client: Any, request: Mapping[str, Any]) -> bool:
    """Whether a parameter has only ever had one value: a promotion may delete a channel that it created."""
    pages = client.get_paginator("get_parameter_history").paginate(Name=request["Name"])
    return sum(len(page["Parameters"]) for page in pages) == 1


CLEAN_UPS: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "ec2:CancelImportTask": _is_publish_import,
    "ec2:DeleteSnapshot": _is_publish_snapshot,
    "ec2:DisableImageDeprecation": lambda _client, _request: True,  # only removes a date
    "ec2:DisableImageDeregistrationProtection": lambda _client, _request: True,  # deletes no resource
    "ec2:TerminateInstances": _are_smoke_test_instances,
    "iam:DeletePolicyVersion": lambda _client, request: ":policy/vmsnix" in request["PolicyArn"],
    "s3:AbortMultipartUpload": lambda _client, _request: True,  # an unfinished upload cannot be read
    "s3:DeleteObject": lambda _client, request: bool(CONTENT_KEY.fullmatch(request["Key"])),
    "ssm:DeleteParameter": _has_one_value,
}
"""Calls with which a run that creates may delete leftovers of another run, and the check for each."""


def is_read(service: str, operation: str, request: Mapping[str, Any] | None = None) -> bool:
    """Return whether a call only reads.

    >>> is_read("ec2", "DescribeImages"), is_read("ec2", "DeregisterImage")
    (True, False)
    """
    name = f"{service}:{operation}"
    if service == "ec2" and (request or {}).get("DryRun") is True:
        return True
    return name in READING_CALLS or (name not in CREATING_GETS and READING_VERBS.match(operation) is not None)


def allowed_effects(declared: SideEffects, parameters: Mapping[str, object]) -> SideEffects:
    """Return the allowed side effects of a run: those of its runbook, or ``read_only`` in a dry run."""
    return "read_only" if parameters.get("dry_run") is True else declared


@dataclass
class Guard:
    """Checks every call of a run."""

    allowed: SideEffects
    runbook: str  # its name, for the error
    # Called with every refusal, so that the run fails even if the notebook suppresses the error.
    report: Callable[[SideEffectsError], None] = lambda _error: None
    lease: Path | None = None  # file of the lease that the run needs to change something, if any
    unconfirmed: str = ""  # how the cells of the run differ from the runbook, if this is not confirmed
    _created: set[str] = field(default_factory=set)

    def restart(self, allowed: SideEffects, runbook: str, folder: Path) -> None:
        """Check the calls of another run from now on; the arguments are as for `install`."""
        self.allowed, self.runbook = allowed, runbook
        self.report = functools.partial(_append_refusal, folder / REFUSALS)
        self._created.clear()

    def before(self, client: Any, service: str, operation: str, request: Mapping[str, Any]) -> None:
        """Check a call before it is sent; `service` and `operation` are botocore's names.

        `client`, the caller's, may be used to read the resource; it is ``None`` for a presigned URL. A
        `SideEffectsError` if the run may not make this call, a `ConfirmationError` if its cells were
        modified, and a `FleetError` if another process may run the same target of a fleet.
        """
        if _saving.get() or is_read(service, operation, request):
            return
        if not (
            self.allowed == "deletes"
            or (self.allowed != "read_only" and not DELETING_VERBS.match(operation))
            or (self.allowed != "read_only" and self._may_delete(client, f"{service}:{operation}", request))
        ):
            self._refuse(f"{service}:{operation}")
        if self.unconfirmed:
            raise ConfirmationError(
                f"{self.runbook} may not call {service}:{operation}: {self.unconfirmed}",
                why=f"{self.runbook} {self.allowed} resources, so a modified notebook needs a confirmation.",
                fix="Execute the cells of the runbook as they are. To allow the modified ones, change its "
                f'first call: check_parameters("{self.runbook}", globals(), modified=True)',
            )
        if self.lease is not None:
            lease.check(self.lease)

    def after(self, service: str, operation: str, answer: Mapping[str, Any]) -> None:
        """Record the resources that a call has created."""
        path = CREATED_IDS.get(f"{service}:{operation}")
        if path:
            self._created.update(_values(answer, path.split(".")))

    def _may_delete(self, client: Any, call: str, request: Mapping[str, Any]) -> bool:
        """Whether a call deletes only resources that this run created, or leftovers of a publish."""
        deleted = set(_values(request, [DELETED_IDS[call]])) if call in DELETED_IDS else set()
        if deleted and deleted <= self._created and not request.get("DeleteAssociatedSnapshots"):
            return True
        clean_up = CLEAN_UPS.get(call)
        return clean_up is not None and client is not None and clean_up(client, request)

    def _refuse(self, call: str) -> None:
        why = f"Its side_effects are {self.allowed}, and the call would delete what it did not create."
        if self.allowed == "read_only":
            why = "Its side_effects are read_only, or it is a dry run."
        error = SideEffectsError(
            f"{self.runbook} may not call {call}.",
            why=why,
            fix="Nothing was sent to AWS. Correct the notebook, or the side_effects in its metadata.",
        )
        self.report(error)
        raise error


def _values(tree: Any, path: list[str]) -> Iterator[str]:
    """Yield the texts at a path in a request or response; lists on the path are searched too."""
    if isinstance(tree, list | tuple):
        for one in tree:
            yield from _values(one, path)
    elif isinstance(tree, dict) and path:
        yield from _values(tree.get(path[0]), path[1:])
    elif isinstance(tree, str) and not path:
        yield tree


REFUSALS = ".side-effects.jsonl"
_saving: ContextVar[bool] = ContextVar("vmsnix_saving", default=False)


@contextmanager
def saving_evidence() -> Iterator[None]:
    """Allow all calls of the block in this thread: a kernel that records itself writes into the archive."""
    token = _saving.set(True)
    try:
        yield
    finally:
        _saving.reset(token)


def install(allowed: SideEffects, runbook: str, folder: Path, lease_file: Path | None = None) -> Guard:
    """Check every call that botocore makes in this process, and record refusals in the run's folder.

    The arguments are as for `Guard`.
    """
    guard = Guard(allowed, runbook, functools.partial(_append_refusal, folder / REFUSALS), lease_file)
    after_import(
        {
            "botocore.client": functools.partial(_hook_calls, guard=guard),
            "botocore.signers": functools.partial(_hook_presigned_urls, guard=guard),
        }
    )
    return guard


def read_refusal(folder: Path) -> Failure | None:
    """Return the first call that was refused in a run, as its failure, and delete the file of refusals."""
    path = folder / REFUSALS
    try:
        lines = files.read(path).split(b"\n")
    except OSError:
        return None
    with suppress(OSError):
        path.unlink()
    for line in lines:
        with suppress(ValueError, RecursionError, TypeError, KeyError):  # a full disk can cut a line
            refused = json.loads(line)
            return Failure("SideEffectsError", refused["what"], refused["why"], refused["fix"])
    return None


def _append_refusal(path: Path, error: SideEffectsError) -> None:
    files.append_line(path, json.dumps({"what": error.what, "why": error.why, "fix": error.fix}))


def _hook_calls(module: ModuleType, guard: Guard) -> None:
    original = module.BaseClient._make_api_call

    @functools.wraps(original)
    def call(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        service = self.meta.service_model.service_name
        guard.before(self, service, operation_name, api_params)
        answer = original(self, operation_name, api_params)
        guard.after(service, operation_name, answer)
        return answer

    module.BaseClient._make_api_call = call


def _hook_presigned_urls(module: ModuleType, guard: Guard) -> None:
    """Check presigned URLs too: with one, the call can be made later."""
    original = module.RequestSigner.generate_presigned_url

    @functools.wraps(original)
    def sign(self: Any, request_dict: Any, operation_name: str, *more: Any, **options: Any) -> Any:
        guard.before(None, self._service_id.hyphenize(), operation_name, {})
        return original(self, request_dict, operation_name, *more, **options)

    module.RequestSigner.generate_presigned_url = sign
