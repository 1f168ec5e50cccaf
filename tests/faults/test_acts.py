"""An irreversible act is announced on the disk first; if that fails, the act is not done."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore import xform_name

from tests.audit.retirement.fleet import OTHER_ACCOUNT, REGION, Fleet, fleet, fleet_sandbox
from tests.faults.account import BUCKET
from tests.faults.publishers import Kill
from tests.support import finish
from vmsnix_ops import errors, files, publish
from vmsnix_ops.aws import session
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.session import client
from vmsnix_ops.channels import promote
from vmsnix_ops.progress import silent
from vmsnix_ops.publish.undo import plan_undo
from vmsnix_ops.records import acts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.crash_sweep import Sweep

__all__ = ["fleet", "fleet_sandbox"]
ROOT = Path(__file__).parents[2]


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / acts.FILE_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def irreversible_calls(fleet: Fleet) -> list[str]:
    """Return the irreversible calls that the sandbox ran."""
    found = []
    for (service, operation), resource_of in session.IRREVERSIBLE.items():
        for call in fleet.aws.calls.matching(f"{service}:{operation}", ran=True):
            if resource_of(call.params):
                found.append(f"{service}:{operation} {resource_of(call.params)}")
    return sorted(found)


# How the disk fails


def folder_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def folder_is_gone(folder: Path) -> None:
    shutil.rmtree(folder)


def file_is_a_folder(folder: Path) -> None:
    (folder / acts.FILE_NAME).unlink(missing_ok=True)
    (folder / acts.FILE_NAME).mkdir()


@contextmanager
def files_may_not_grow(beyond: int = 1) -> Iterator[None]:
    """Let writes fail beyond this size of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


BROKEN = [folder_is_a_file, folder_is_gone, file_is_a_folder]


def test_each_act_has_a_complete_and_private_line(tmp_path: Path) -> None:
    with acts.recording(tmp_path, "run-1"):
        acts.announce("ec2:DeleteSnapshot", "snap-1", REGION)
        acts.announce("ec2:DeregisterImage", "ami-1", REGION)
    first, second = lines(tmp_path)
    assert (first["act"], first["resource"], first["region"], first["run_id"]) == (
        "ec2:DeleteSnapshot",
        "snap-1",
        REGION,
        "run-1",
    )
    assert second["resource"] == "ami-1"
    assert (tmp_path / acts.FILE_NAME).stat().st_mode & 0o077 == 0


def test_a_line_and_its_new_file_are_synchronised_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised, fsync = list[tuple[int, int]](), os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        file = os.fstat(descriptor)
        synchronised.append((file.st_ino, file.st_size if stat.S_ISREG(file.st_mode) else 0))

    monkeypatch.setattr(os, "fsync", record)
    with acts.recording(tmp_path, "run-1"):
        acts.announce("ec2:DeleteSnapshot", "snap-1", REGION)
        path = tmp_path / acts.FILE_NAME
        assert synchronised == [(path.stat().st_ino, path.stat().st_size), (tmp_path.stat().st_ino, 0)]
        acts.announce("ec2:DeleteSnapshot", "snap-2", REGION)
        assert synchronised[2:] == [(path.stat().st_ino, path.stat().st_size)]


def test_a_secret_in_the_name_of_a_resource_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "horse-battery-staple")
    with acts.recording(tmp_path, "run-1"):
        acts.announce("delete file", "/srv/horse-battery-staple/image.vhd")
    (line,) = lines(tmp_path)
    assert "horse" not in (tmp_path / acts.FILE_NAME).read_text()
    assert line["resource"].endswith("/image.vhd")


def test_a_full_disk_refuses_the_act_and_leaves_no_incomplete_line(tmp_path: Path) -> None:
    with acts.recording(tmp_path, "run-1"), files_may_not_grow():
        with pytest.raises(errors.UnrecordedActError) as caught:
            acts.announce("ec2:DeleteSnapshot", "snap-1", REGION)
        assert caught.value.exit_code == 3
    assert "ec2:DeleteSnapshot of snap-1 was not done" in str(caught.value)


def test_an_incomplete_line_does_not_damage_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / acts.FILE_NAME
    with acts.recording(tmp_path, "run-1"):
        acts.announce("ec2:DeleteSnapshot", "snap-1", REGION)
        with files_may_not_grow(path.stat().st_size + 40), pytest.raises(errors.UnrecordedActError):
            acts.announce("ec2:DeleteSnapshot", "snap-2", REGION)
        acts.announce("ec2:DeleteSnapshot", "snap-3", REGION)
    first, half, last = path.read_text().splitlines()
    assert len(half) == 40
    assert [json.loads(line)["resource"] for line in (first, last)] == ["snap-1", "snap-3"]


def test_every_irreversible_call_of_our_clients_is_announced(fleet: Fleet, tmp_path: Path) -> None:
    ami, snapshot = fleet.ami(), fleet.snapshot()
    ec2 = client(fleet.aws.session(REGION), "ec2")
    removed = {"Remove": [{"UserId": OTHER_ACCOUNT}]}
    with acts.recording(tmp_path, "run-1"):
        ec2.modify_image_attribute(ImageId=ami, LaunchPermission={"Add": [{"UserId": OTHER_ACCOUNT}]})
        assert lines(tmp_path) == []  # can be undone
        ec2.modify_image_attribute(ImageId=ami, LaunchPermission=removed)
        ec2.modify_snapshot_attribute(
            SnapshotId=snapshot, Attribute="createVolumePermission", CreateVolumePermission=removed
        )
        ec2.modify_snapshot_attribute(
            SnapshotId=snapshot,
            Attribute="createVolumePermission",
            OperationType="remove",
            UserIds=[OTHER_ACCOUNT],
        )
        ec2.disable_image(ImageId=ami)
        ec2.deregister_image(ImageId=ami)
        ec2.delete_snapshot(SnapshotId=snapshot)
    assert [f"{one['act']} {one['resource']}" for one in lines(tmp_path)] == [
        f"ec2:ModifyImageAttribute {ami}",
        f"ec2:ModifySnapshotAttribute {snapshot}",
        f"ec2:ModifySnapshotAttribute {snapshot}",
        f"ec2:DisableImage {ami}",
        f"ec2:DeregisterImage {ami}",
        f"ec2:DeleteSnapshot {snapshot}",
    ]


IRREVERSIBLE_CALLS = [
    ("ec2", "CancelImportTask", {"ImportTaskId": "import-snap-0123456789abcdef0"}),
    ("ec2", "DeleteSnapshot", {"SnapshotId": "snap-0123456789abcdef0"}),
    ("ec2", "DeregisterImage", {"ImageId": "ami-0123456789abcdef0"}),
    ("ec2", "DisableImage", {"ImageId": "ami-0123456789abcdef0"}),
    (
        "ec2",
        "ModifyImageAttribute",
        {"ImageId": "ami-0123456789abcdef0", "OperationType": "remove", "UserGroups": ["all"]},
    ),
    (
        "ec2",
        "ModifyImageAttribute",
        {"ImageId": "ami-0123456789abcdef0", "LaunchPermission": {"Remove": [{"Group": "all"}]}},
    ),
    (
        "ec2",
        "ModifySnapshotAttribute",
        {"SnapshotId": "snap-0123456789abcdef0", "OperationType": "remove", "GroupNames": ["all"]},
    ),
    ("iam", "DeletePolicyVersion", {"PolicyArn": "arn:aws:iam::012345678901:policy/one", "VersionId": "v1"}),
    ("s3", "AbortMultipartUpload", {"Bucket": "bucket", "Key": "image.vhd", "UploadId": "1"}),
    ("s3", "DeleteObject", {"Bucket": "bucket", "Key": "image.vhd"}),
    ("ssm", "DeleteParameter", {"Name": "/vmsnix/web/stable"}),
]
CAN_BE_UNDONE = {"DeleteTags", "DisableImageDeprecation", "DisableImageDeregistrationProtection"}
NEVER_PREVENTED = {"TerminateInstances"}  # an instance that keeps running costs money
DESTRUCTIVE = (
    r"(Abort|Cancel|Delete|Deregister|Detach|Disable|Purge|Release|Remove|Reset|Revoke|Terminate)\w+"
)


@pytest.mark.parametrize(("service", "operation", "parameters"), IRREVERSIBLE_CALLS)
def test_a_call_that_cannot_be_announced_is_not_made(
    fleet: Fleet, tmp_path: Path, service: str, operation: str, parameters: dict[str, Any]
) -> None:
    method = getattr(client(fleet.aws.session(REGION), service), xform_name(operation))
    before = len(list(fleet.aws.calls))
    with (
        acts.recording(tmp_path / "gone", "run-1"),
        pytest.raises(errors.UnrecordedActError, match=f"{service}:{operation} of .* was not done"),
    ):
        method(**parameters)
    assert len(list(fleet.aws.calls)) == before


def test_every_destructive_call_of_the_package_is_announced() -> None:
    models = botocore.session.get_session()
    known = {
        xform_name(name): name
        for service in ("autoscaling", "ebs", "ec2", "iam", "s3", "sns", "ssm")
        for name in models.get_service_model(service).operation_names
        if re.fullmatch(DESTRUCTIVE, name)
    }
    package = ROOT / "vmsnix_ops"
    used = {
        known[node.attr]
        for path in package.rglob("*.py")
        if package / "sandbox" not in path.parents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in known
    }
    announced = {operation for _, operation in session.IRREVERSIBLE}
    assert used - announced == CAN_BE_UNDONE | NEVER_PREVENTED
    assert announced == {operation for _, operation, _ in IRREVERSIBLE_CALLS}


@pytest.mark.parametrize("breaks", BROKEN)
@pytest.mark.parametrize("days", [0, 20])
@pytest.mark.variants(seconds=1)
def test_a_retirement_that_can_announce_nothing_does_nothing_and_ends_with_3(
    fleet: Fleet, breaks: Callable[[Path], None], days: int
) -> None:
    first, second = fleet.ami(days=90), fleet.ami(days=80)
    if days:
        fleet.apply()
    plan = fleet.plan(now=fleet.later(days))
    breaks(plan.run.folder)
    before, states = irreversible_calls(fleet), fleet.amis()
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["failed", "skipped"]
    with pytest.raises(errors.PartialError, match="Done: nothing") as caught:
        finish(result)
    assert caught.value.exit_code == 3
    assert "Could not record it first in" in str(caught.value)
    assert (irreversible_calls(fleet), fleet.amis()) == (before, states)
    assert all("vmsnix:deleting" not in fleet.tags(one) for one in (first, second))


def test_a_retirement_stops_when_the_disk_is_full_and_lists_what_was_done(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet.ami(days=90), fleet.ami(days=80)
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    announce, snapshots = acts.announce, fleet.snapshots_of(first)

    def full(act: str, resource: str, region: str = "") -> None:
        if act == "ec2:DeleteSnapshot":
            raise errors.UnrecordedActError(f"{act} of {resource} was not done.", why="No space left.")
        announce(act, resource, region)

    monkeypatch.setattr(acts, "announce", full)
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["deleted", "skipped"]
    with pytest.raises(errors.PartialError, match=f"Done: {first} deleted") as caught:
        finish(result)
    assert caught.value.exit_code == 3
    assert fleet.amis() == {second: "disabled"}
    assert set(snapshots) <= fleet.snapshots()
    monkeypatch.setattr(acts, "announce", announce)
    again = fleet.apply(now=fleet.later())
    assert {one.outcome for one in again.outcomes} == {"deleted"}
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def full_at(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Let the disk be full when this act is announced."""
    append = files.append_line

    def full(path: Path, line: str, **options: bool) -> None:
        if json.loads(line).get("act") == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, line, **options)

    monkeypatch.setattr(files, "append_line", full)


@pytest.mark.parametrize(
    ("at", "before"),
    [
        ("ec2:ModifySnapshotAttribute", []),
        ("ec2:ModifyImageAttribute", ["ModifySnapshotAttribute"]),
        ("ec2:DisableImage", ["ModifySnapshotAttribute", "ModifyImageAttribute"]),
    ],
)
@pytest.mark.variants(seconds=1)
def test_a_retirement_that_stops_in_the_middle_of_an_ami_lists_its_changes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, at: str, before: list[str]
) -> None:
    first, second = fleet.ami(days=90, devices=2), fleet.ami(days=80)
    fleet.share(first, OTHER_ACCOUNT)
    for snapshot in fleet.snapshots_of(first):
        fleet.share_snapshot(snapshot)
    plan = fleet.plan(allow_shared=True)
    with monkeypatch.context() as patch:
        full_at(patch, at)
        result = plan.apply()
    with pytest.raises(errors.UnrecordedActError) as caught:
        finish(result)
    assert caught.value.exit_code == 3
    assert f"Done: {first} retired in part." in caught.value.what
    done = {"ModifySnapshotAttribute": fleet.snapshots_of(first), "ModifyImageAttribute": [first]}
    for act, resources in done.items():
        for name in resources:
            listed = f"ec2:{act} of {name}" in caught.value.why.partition("Done before it")[2]
            assert listed == (act in before)
    assert tagging.RETIRED not in fleet.tags(second)
    assert [one.outcome for one in fleet.apply(allow_shared=True).outcomes] == ["changed", "changed"]
    fleet.apply(action="restore")
    assert fleet.permissions(first) == [{"UserId": OTHER_ACCOUNT}]


def test_a_promotion_that_stops_in_the_middle_of_a_revocation_lists_what_it_revoked(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    fleet.share_snapshot(*fleet.snapshots_of(ami))
    plan = promote.plan(
        ami=ami,
        revoke_from=[OTHER_ACCOUNT],
        region=REGION,
        dry_run=False,
        progress=silent(),
        session=fleet.session,
    )
    full_at(monkeypatch, "ec2:ModifySnapshotAttribute")
    with pytest.raises(errors.PartialError) as caught:
        finish(plan.apply())
    assert caught.value.exit_code == 3
    assert f"Done before it: ec2:ModifyImageAttribute of {ami}." in str(caught.value)


@pytest.mark.parametrize("breaks", BROKEN)
def test_a_promotion_that_cannot_announce_a_revocation_changes_nothing_more(
    fleet: Fleet, breaks: Callable[[Path], None]
) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    plan = promote.plan(
        ami=ami,
        channel="stable",
        revoke_from=[OTHER_ACCOUNT],
        region=REGION,
        dry_run=False,
        progress=silent(),
        session=fleet.session,
    )
    breaks(plan.run.folder)
    found = plan.apply()
    assert {row.step: row.outcome for row in found.rows if row.step != "record"} == {
        "revoke": "failed",
        "set channel": "skipped",
    }
    with pytest.raises(errors.PartialError) as caught:
        finish(found)
    assert caught.value.exit_code == 3
    assert "Could not record it first in" in str(caught.value)
    assert fleet.permissions(ami) == [{"UserId": OTHER_ACCOUNT}]


KILLED = """
import os, signal, sys
from datetime import datetime
from vmsnix_ops.audit import retirement
from vmsnix_ops.progress import silent
from vmsnix_ops.records import acts

announce = acts.announce

def announce_and_die(act, resource, region=""):
    announce(act, resource, region)
    if act == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

acts.announce = announce_and_die
plan = retirement.plan(
    regions=["us-east-1"], keep_last=0, dry_run=False, confirm=sys.argv[2], progress=silent(),
    now=datetime.fromisoformat(sys.argv[3]), allow_shared=True,
)
plan.apply()
"""


@pytest.mark.parametrize(
    ("act", "days"),
    [
        ("ec2:DisableImage", 0),
        ("retire-amis:delete", 20),
        ("ec2:DeleteSnapshot", 20),
        ("retire-amis:retire", 0),
        ("ec2:ModifyImageAttribute", 0),
        ("ec2:DeregisterImage", 20),
    ],
)
@pytest.mark.variants(seconds=5)
def test_a_run_killed_after_the_line_is_completed_by_the_same_command(
    fleet: Fleet, tmp_path: Path, act: str, days: int
) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    if days:
        fleet.apply(allow_shared=True)
    before = irreversible_calls(fleet)
    now = fleet.later(days)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, act, fleet.aws.account, now.isoformat()]
    ended = subprocess.run(command, env=environment, timeout=120, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (journal,) = (path for path in (tmp_path / "state").rglob(acts.FILE_NAME) if act in path.read_text())
    last = lines(journal.parent)[-1]
    assert last["act"] == act
    assert f"{act} {last['resource']}" not in set(irreversible_calls(fleet)) - set(
        before
    )  # announced, not done
    fleet.apply(now=now, allow_shared=True)
    if days:
        assert (fleet.amis(), fleet.snapshots()) == ({}, set())
    else:
        assert fleet.amis() == {ami: "disabled"}
        fleet.apply(action="restore")
        assert fleet.permissions(ami) == [{"UserId": OTHER_ACCOUNT}]


def test_a_publish_that_cannot_announce_its_clean_up_keeps_the_object(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent())
    announce = acts.announce

    def full(act: str, resource: str, region: str = "") -> None:
        file_is_a_folder(plan.journal.run.folder)
        announce(act, resource, region)

    monkeypatch.setattr(acts, "announce", full)
    with pytest.raises(errors.PartialError) as caught:
        plan.apply()
    assert caught.value.exit_code == 3
    account = sweep.account()
    (ami,) = account.amis
    assert f"The AMI {ami} is registered." in str(caught.value)
    assert len(account.objects) == 1
    monkeypatch.setattr(acts, "announce", announce)
    again = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert again.ami_id == ami
    assert sweep.problems() == []


def test_an_undo_that_can_announce_nothing_deletes_nothing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.publishers.run(sweep.job(sweep.state, "import", Kill("ec2:RegisterImage", 1, "before")))
    (journal,) = (sweep.state / "runs").glob("*/journal.jsonl")
    undo = plan_undo(journal.parent.name)
    assert undo.leftovers
    file_is_a_folder(journal.parent)
    before = sweep.account()
    with pytest.raises(errors.PartialError, match="Deleted: nothing") as caught:
        undo.apply()
    assert caught.value.exit_code == 3
    assert sweep.account() == before
    (journal.parent / acts.FILE_NAME).rmdir()
    assert undo.apply() == undo.leftovers
    assert sweep.account().empty
    assert {one["act"] for one in lines(journal.parent)} >= {"ec2:DeleteSnapshot", "s3:DeleteObject"}


def test_an_undo_keeps_resources_that_another_run_used_after_the_plan(sweep: Sweep) -> None:
    sweep.publishers.run(sweep.job(sweep.state, "import", Kill("ec2:RegisterImage", 1, "before")))
    (journal,) = (sweep.state / "runs").glob("*/journal.jsonl")
    undo = plan_undo(journal.parent.name)
    (snapshot,) = (one.name for one in undo.leftovers if one.kind == "snapshot")
    made = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert made.snapshot_id == snapshot
    assert snapshot not in [one.name for one in undo.apply()]
    assert sweep.problems() == []
