"""What a runbook may do to AWS, held to what it declares.

A notebook says in its metadata whether it only looks (``read_only``), adds (``creates``) or takes away
(``destroys``); one that takes a parameter ``dry_run`` only looks while that is true. The runner's kernel asks
`Guard` before every call that boto3 sends:

``read_only``
    Only calls that read. Calls with ``DryRun=True`` change nothing and pass, too.
``creates``
    Everything but taking away: what this run made itself may go, and what a publish cleans up behind itself
    or a run that died (`CLEAN_UPS`).
``destroys``
    Everything; the runner starts it only when somebody confirmed
    (`vmsnix_ops.runbooks.execution.execute.run`).

This holds whoever makes a mistake in a notebook, and makes a declaration true of every call that goes through
boto3 in the notebook's own process. It is no jail: a notebook that sets out to escape can start another
program. What must be impossible is a matter of the credentials, for which `vmsnix iam-policy` prints the
smallest policy of each job.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import files
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.errors import SideEffectsError
from vmsnix_ops.runbooks.execution import lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType


Level = Literal["read_only", "creates", "destroys"]

READS = re.compile(r"(BatchDescribe|BatchGet|Describe|Get|Head|List|Lookup|Search|Simulate)(?=[A-Z]|$)")
"""AWS's verbs for looking."""

ALSO_READS = frozenset(
    {
        "s3:SelectObjectContent",
        # They hand out credentials, with which every further call is looked at again.
        "sts:AssumeRole",
        "sts:AssumeRoleWithSAML",
        "sts:AssumeRoleWithWebIdentity",
        "sts:DecodeAuthorizationMessage",
    }
)
NO_READS = frozenset({"cognito-identity:GetId"})
"""Calls that are called like looking, and make something."""

TAKES_AWAY = re.compile(
    r"(Abort|BatchDelete|Cancel|Clear|Delete|Deregister|Destroy|Detach|Disable|Disassociate|Purge|Reject|Release|Remove"
    r"|Reset|Revoke|Schedule[A-Z]\w*Deletion|Stop|Terminate|Unsubscribe|Untag|Withdraw)(?=[A-Z]|$)"
)
"""AWS's verbs for taking away."""

MADE: Mapping[str, str] = {
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
"""Where an answer names what was made."""

TAKEN: Mapping[str, str] = {
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
"""Where a call names what it takes away, for calls that may take away what the run itself made."""

CONTENT_KEY = re.compile(
    r"(.*/)?[0-9a-f]{64}(-[0-9a-f]+)+\.[a-z0-9]+"
)  # an upload of a publish: its bytes are on a disk


def _our_snapshot(client: Any, asked: Mapping[str, Any]) -> bool:
    """Whether a snapshot is a publish's: by its tags, or by those of the import that made it.

    AWS itself refuses to delete a snapshot that an AMI uses.
    """
    found = client.describe_snapshots(SnapshotIds=[asked["SnapshotId"]])["Snapshots"]
    if any(tagging.DIGEST in tagging.to_dict(one.get("Tags")) for one in found):
        return True
    tasks = [word for one in found for word in re.findall(r"import-snap-\w+", one.get("Description", ""))]
    return any(_our_import(client, {"ImportTaskId": task}) for task in tasks)


def _our_import(client: Any, asked: Mapping[str, Any]) -> bool:
    """Whether an import is a publish's, by its tags."""
    answer = client.describe_import_snapshot_tasks(ImportTaskIds=[asked["ImportTaskId"]])
    return any(tagging.DIGEST in tagging.to_dict(task.get("Tags")) for task in answer["ImportSnapshotTasks"])


def _our_instances(client: Any, asked: Mapping[str, Any]) -> bool:
    """Whether instances are those of smoke tests, by their tags."""
    answer = client.describe_instances(InstanceIds=asked["InstanceIds"])
    found = [one for group in answer["Reservations"] for one in group["Instances"]]
    return bool(found) and all(tagging.SMOKE in tagging.to_dict(one.get("Tags")) for one in found)


def _first_value(client: Any, asked: Mapping[str, Any]) -> bool:
    """Whether a parameter has had one value only: a promotion takes back the channel that it made."""
    pages = client.get_paginator("get_parameter_history").paginate(Name=asked["Name"])
    return sum(len(page["Parameters"]) for page in pages) == 1


CLEAN_UPS: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "ec2:CancelImportTask": _our_import,
    "ec2:DeleteSnapshot": _our_snapshot,
    "ec2:DisableImageDeprecation": lambda _client, _asked: True,  # takes a date away, and nothing else
    "ec2:DisableImageDeregistrationProtection": lambda _client, _asked: True,  # removes nothing by itself
    "ec2:TerminateInstances": _our_instances,
    "iam:DeletePolicyVersion": lambda _client, asked: ":policy/vmsnix" in asked["PolicyArn"],
    "s3:AbortMultipartUpload": lambda _client, _asked: True,  # nobody can read an unfinished upload
    "s3:DeleteObject": lambda _client, asked: bool(CONTENT_KEY.fullmatch(asked["Key"])),
    "ssm:DeleteParameter": _first_value,
}
"""What a runbook that creates may take away although another run made it, and when."""


def is_read(service: str, operation: str, asked: Mapping[str, Any] | None = None) -> bool:
    """Whether a call only looks.

    Examples
    --------
    >>> is_read("ec2", "DescribeImages"), is_read("ec2", "DeregisterImage")
    (True, False)
    """
    name = f"{service}:{operation}"
    if service == "ec2" and (asked or {}).get("DryRun") is True:
        return True
    return name in ALSO_READS or (name not in NO_READS and READS.match(operation) is not None)


def level(side_effects: Level, parameters: Mapping[str, object]) -> Level:
    """Return what a run may do: what its runbook declares, and no more than looking in a dry run."""
    return "read_only" if parameters.get("dry_run") is True else side_effects


@dataclass
class Guard:
    """Looks at every call of one run.

    Parameters
    ----------
    level
        What the run may do.
    runbook
        For the error.
    report
        Told of every refusal, so that a notebook which swallows the error is judged all the same.
    lease
        File of the lease that the run needs to change something; `None` if it needs none.
    """

    level: Level
    runbook: str
    report: Callable[[SideEffectsError], None] = lambda _error: None
    lease: Path | None = None
    _made: set[str] = field(default_factory=set)

    def before(self, client: Any, service: str, operation: str, asked: Mapping[str, Any]) -> None:
        """Let a call pass, or refuse it before anything is sent.

        Parameters
        ----------
        client
            With which it would be made, and with which the guard may look at what the call is about; ``None``
            for a presigned URL.
        service, operation
            As botocore calls them: ``"ec2"``, ``"DeregisterImage"``.
        asked
            Parameters of the call.

        Raises
        ------
        SideEffectsError
            When the run may not do that.
        FleetError
            When the run is part of a fleet, and another process may run its target.
        """
        if is_read(service, operation, asked):
            return
        if not (
            self.level == "destroys"
            or (self.level == "creates" and not TAKES_AWAY.match(operation))
            or (self.level == "creates" and self._may_take_away(client, f"{service}:{operation}", asked))
        ):
            self._refuse(f"{service}:{operation}")
        if self.lease is not None:
            lease.check(self.lease)

    def after(self, service: str, operation: str, answer: Mapping[str, Any]) -> None:
        """Remember what a call has made."""
        path = MADE.get(f"{service}:{operation}")
        if path:
            self._made.update(_values(answer, path.split(".")))

    def _may_take_away(self, client: Any, call: str, asked: Mapping[str, Any]) -> bool:
        """Whether what a call takes away is this run's own, or a leftover."""
        named = set(_values(asked, [TAKEN[call]])) if call in TAKEN else set()
        if named and named <= self._made and not asked.get("DeleteAssociatedSnapshots"):
            return True
        clean_up = CLEAN_UPS.get(call)
        return clean_up is not None and client is not None and clean_up(client, asked)

    def _refuse(self, call: str) -> None:
        allowed = {
            "read_only": "Its side_effects are read_only, or it is a dry run.",
            "creates": "Its side_effects are creates, and the call would delete something that it did not "
            "create.",
        }
        error = SideEffectsError(
            f"{self.runbook} may not call {call}.",
            why=allowed[self.level],
            fix="Nothing was sent to AWS. Correct the notebook, or the side_effects in its metadata.",
        )
        self.report(error)
        raise error


def _values(tree: Any, path: list[str]) -> Iterator[str]:
    """Yield the texts at a path of a call or an answer, through lists."""
    if isinstance(tree, list | tuple):
        for one in tree:
            yield from _values(one, path)
    elif isinstance(tree, dict) and path:
        yield from _values(tree.get(path[0]), path[1:])
    elif isinstance(tree, str) and not path:
        yield tree


# Puts a `side_effects.Guard` before every call that botocore makes in this process.

REFUSALS = ".side-effects.jsonl"
HOOKED = "botocore.client", "botocore.signers"


def install(level: Level, runbook: str, folder: Path, lease_file: Path | None = None) -> None:
    """Guard this process; what is refused is also noted in the run's folder.

    botocore is heavy, and most cells never import it, so the guard waits for its import.

    Parameters
    ----------
    level, runbook
        What may be done, and by whom.
    folder
        Of the run.
    lease_file
        As `Guard.lease`.
    """
    found: list[Guard] = []

    def guard() -> Guard:
        if not found:
            found.append(Guard(level, runbook, functools.partial(_note, folder / REFUSALS), lease_file))
        return found[0]

    for name in HOOKED:
        if name in sys.modules:
            _hook(sys.modules[name], guard)
    sys.meta_path.insert(0, _Finder(guard))


def refusals(folder: Path) -> list[dict[str, str]]:
    """Return what was refused in a run, and remove the note."""
    path = folder / REFUSALS
    try:
        lines = files.read(path).split(b"\n")
    except OSError:
        return []
    with suppress(OSError):
        path.unlink()
    refused = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # cut by a full disk
            refused.append(json.loads(line))
    return refused


def _note(path: Path, error: SideEffectsError) -> None:
    files.append_line(path, json.dumps({"what": error.what, "why": error.why, "fix": error.fix}))


def _hook(module: ModuleType, guard: Callable[[], Guard]) -> None:
    if module.__name__ == "botocore.client":
        _hook_calls(module, guard)
    else:
        _hook_signatures(module, guard)


def _hook_calls(module: ModuleType, guard: Callable[[], Guard]) -> None:
    original = module.BaseClient._make_api_call

    @functools.wraps(original)
    def call(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        service = self.meta.service_model.service_name
        guard().before(self, service, operation_name, api_params)
        answer = original(self, operation_name, api_params)
        guard().after(service, operation_name, answer)
        return answer

    module.BaseClient._make_api_call = call


def _hook_signatures(module: ModuleType, guard: Callable[[], Guard]) -> None:
    """Guard presigned URLs, too: whoever has one can make the call later."""
    original = module.RequestSigner.generate_presigned_url

    @functools.wraps(original)
    def sign(self: Any, request_dict: Any, operation_name: str, *more: Any, **options: Any) -> Any:
        guard().before(None, self._service_id.hyphenize(), operation_name, {})
        return original(self, request_dict, operation_name, *more, **options)

    module.RequestSigner.generate_presigned_url = sign


class _Finder(importlib.abc.MetaPathFinder):
    """Hooks botocore's modules when they have been imported."""

    def __init__(self, guard: Callable[[], Guard]) -> None:
        self._guard = guard

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in HOOKED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._guard)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and hooks it."""

    def __init__(self, original: Any, guard: Callable[[], Guard]) -> None:
        self._original, self._guard = original, guard

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._original.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._original.exec_module(module)
        _hook(module, self._guard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
