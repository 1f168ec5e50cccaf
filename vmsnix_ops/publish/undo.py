"""Undo an unfinished publish: find its resources by its journal and its tags, and delete them.

An unfinished publish can also be continued: run the same command again. A run that has registered its AMI
cannot be undone, because the AMI may be in use.

Resources of other runs of the same image are kept. A resource is deleted only if its tag ``vmsnix:run`` is
this run, or if it has no such tag yet and belongs to an import or a direct upload of this run's image.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, files, outcomes
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import buckets, images, imports, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.identity import read_caller
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.records import acts
from vmsnix_ops.settings import load
from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import boto3

    from vmsnix_ops.settings import Settings


@dataclass(frozen=True, slots=True)
class UndoItem:
    """A resource that a run left."""

    # "import", "snapshot", "upload" (the object and unfinished uploads of its key) or "journal".
    kind: str
    name: str  # its ID, URL or path

    def __str__(self) -> str:
        return f"{self.kind:<8} {line(self.name)}"


@dataclass(frozen=True, slots=True)
class Undo:
    """The plan of an undo; `str` lists the leftovers, `apply` deletes them."""

    run_id: str
    region: str
    digest: str
    leftovers: tuple[UndoItem, ...]  # the resources, in the order of their deletion
    path: Path = field(repr=False)
    session: boto3.Session = field(repr=False, compare=False)
    # Searches the leftovers again.
    find: Callable[[], tuple[UndoItem, ...]] = field(default=tuple, repr=False, compare=False)

    def __str__(self) -> str:
        if not self.leftovers:
            return f"Nothing to undo: {line(self.run_id)} left nothing in {self.region or 'AWS'}."
        return "\n".join(
            [f"{line(self.run_id)} left these resources in {self.region}:", *map(str, self.leftovers)]
        )

    def apply(self) -> tuple[UndoItem, ...]:
        """Delete the leftovers and return them. Safe to run twice: a missing resource is not an error.

        The leftovers are searched again first, so that resources which another run uses meanwhile are kept.
        Each deletion is recorded on the disk before it is done (`vmsnix_ops.records.acts`); if it cannot be,
        an UnrecordedActError lists the earlier deletions.

        Leftovers that the caller may not delete are kept, and the others deleted: after a publish by import,
        a publisher may delete the object, and a retirer the snapshot. The journal lists the deleted ones, so
        that the next caller needs no permission for them. The AccessDeniedError has the required policies.

        A run that is running, or has registered its AMI, is a RunError.
        """
        removed: list[UndoItem] = []
        refused: list[tuple[UndoItem, errors.AccessDeniedError]] = []
        with _locked_journal(self.path, self.run_id), acts.recording(self.path.parent, self.run_id):
            current = self.find()
            try:
                for leftover in self.leftovers:
                    if leftover not in current:
                        continue
                    try:
                        _remove(self, leftover)
                    except errors.AccessDeniedError as error:
                        refused.append((leftover, error))
                    except errors.UnrecordedActError as error:
                        done = ", ".join(one.name for one in removed) or "nothing"
                        raise errors.UnrecordedActError(
                            f"The undo of {self.run_id} stopped early. Deleted: {done}.",
                            why=f"{error.what} {error.why}",
                            fix=error.fix,
                        ) from error
                    else:
                        removed.append(leftover)
            finally:
                unsaved = self._record(removed)
        if refused:
            raise _not_allowed(self.run_id, refused)
        if unsaved is not None:
            raise unsaved
        return tuple(removed)

    def _record(self, removed: list[UndoItem]) -> errors.PartialError | None:
        """Add the deleted leftovers to the journal; return the error if that fails."""
        texts = [str(leftover) for leftover in removed]
        line = {"run_id": self.run_id, "step": "rollback", "status": "done", "removed": texts}
        try:
            files.append_line(self.path, json.dumps(line))
        except OSError as error:
            return errors.PartialError(
                f"Deleted: {', '.join(one.name for one in removed) or 'nothing'}.",
                why=f"Could not record it in {self.path}: {error.strerror}.",
                fix="Free disk space; vmsnix undo lists what is left.",
            )
        return None


@check_arguments
def plan_undo(run_id: str, *, settings: Settings | None = None, session: boto3.Session | None = None) -> Undo:
    """Find the leftovers of an unfinished publish, by the ID from ``vmsnix history steps``.

    Nothing is changed. Refuse a run without a journal on this machine, one that is finished or running or has
    registered its AMI, and the credentials of another account.
    """
    settings = settings or load()
    path = _journal(settings, run_id)
    with _locked_journal(path, run_id):
        lines = _read(path)
    known: dict[str, Any] = {}
    removed: set[str] = set()
    for row in lines:
        removed.update(row.get("removed", ()))
        known |= {key: row[key] for key in ("region", "account", "via") if key in row}
        known |= {key: value for key, value in (row.get("detail") or {}).items() if key in ("digest", "url")}
        if row["step"] == "finish" and row["status"] in outcomes.SUCCEEDED:
            raise errors.RunError(
                f"Nothing to undo: the run {run_id} finished.",
                fix="To take its AMI out of service, retire it: vmsnix retire",
            )
    session = session or default_session()
    digest, region = str(known.get("digest", "")), str(known.get("region", ""))
    if not digest:  # it was killed before it created anything
        return Undo(run_id, region, digest, (), path, session)
    found = read_caller(session, region)
    if found.account != known["account"]:
        raise errors.CredentialsError(
            f"The run {run_id} used the account {known['account']}.",
            why=f"These are the credentials of {found.account}.",
            fix="Use credentials of that account.",
        )

    def find() -> tuple[UndoItem, ...]:
        found_now = _leftovers(session, settings, run_id, digest, known)
        return tuple(leftover for leftover in found_now if str(leftover) not in removed)

    return Undo(run_id, region, digest, find(), path, session, find)


_POLICIES = {
    "import": "vmsnix iam-policy publisher",
    "snapshot": "vmsnix iam-policy retirer",
    "upload": "vmsnix iam-policy publisher",
}
"""The commands that print the policies for deleting each kind of leftover."""


def _not_allowed(
    run_id: str, refused: list[tuple[UndoItem, errors.AccessDeniedError]]
) -> errors.AccessDeniedError:
    first = refused[0][1]
    policies = dict.fromkeys(_POLICIES[leftover.kind] for leftover, _ in refused)
    return first.restated(
        errors.AccessDeniedError,
        f"Not deleted: {', '.join(' '.join(str(leftover).split()) for leftover, _ in refused)}.",
        why=first.why,
        fix=f"Run vmsnix undo {run_id} again with the policy of {' and of '.join(policies)}. That policy "
        "covers only snapshots with the tag vmsnix:digest; others need an administrator.",
    )


def _leftovers(
    session: boto3.Session, settings: Settings, run_id: str, digest: str, known: dict[str, Any]
) -> Iterator[UndoItem]:
    region, direct = str(known["region"]), known.get("via") == "direct"
    ec2 = client(session, "ec2", region)
    amis = [ami for ami in images.list_published_amis(ec2) if ami.digest == digest]
    for ami in amis:
        if ami.tags.get(tagging.RUN) == run_id:
            raise errors.RunError(
                f"The run {run_id} registered {ami.ami_id}.",
                why="It ended after that, and the AMI may already be in use.",
                fix="To finish the publish, run the same command again. Otherwise retire the AMI.",
            )
    tasks = imports.find_tasks(ec2, digest)
    ours = [task for task in tasks if task.tags.get(tagging.RUN) == run_id]
    running = [task for task in tasks if task.running]
    for task in running:
        if task in ours:
            yield UndoItem("import", task.task_id)
    used = {snapshot for ami in amis for snapshot in ami.snapshot_ids}
    made = {task.snapshot_id for task in ours if task.snapshot_id}
    found = {one.snapshot_id: one for one in snapshots.find_snapshots_by_digest(ec2, digest)}
    if made:  # these may have no tags yet
        found |= snapshots.list_snapshots(ec2, sorted(made))
    for snapshot_id, snapshot in found.items():
        run = snapshot.tags.get(tagging.RUN, "")
        if snapshot_id not in used and (run == run_id or (not run and (direct or snapshot_id in made))):
            yield UndoItem("snapshot", snapshot_id)
    # Another run or tool may be importing the object.
    url = str(known.get("url") or "")
    if url and all(task in ours for task in (*running, *imports.find_readers(ec2, url, digest=digest))):
        yield UndoItem("upload", url)
    if direct:
        # With a KMS key, the name has a suffix. Lock files are empty and kept.
        for blocks in sorted((settings.state / "blocks").glob(f"{known['account']}-{region}-{digest}*")):
            if blocks.suffix != ".lock":
                yield UndoItem("journal", str(blocks))


def _remove(undo: Undo, leftover: UndoItem) -> None:
    if leftover.kind == "journal":
        acts.announce("delete file", leftover.name)
        os.unlink(leftover.name)  # noqa: PTH108 (the path as it was shown)
        return
    if leftover.kind == "upload":
        bucket, _, key = leftover.name.removeprefix("s3://").partition("/")
        buckets.delete_object(client(undo.session, "s3", undo.region), bucket=bucket, key=key)
        return
    ec2 = client(undo.session, "ec2", undo.region)
    if leftover.kind == "snapshot":
        snapshots.delete_snapshot(ec2, leftover.name)
    else:
        imports.cancel_imports(ec2, undo.digest, run_id=undo.run_id)


def _journal(settings: Settings, run_id: str) -> Path:
    """Return the run's journal: in the archive, or in the state folder for interactive runs."""
    # With an archive on S3, all runs have their journals in the state folder.
    folders = [settings.state / "runs"]
    if not settings.archive.startswith("s3://"):
        folders.append(Path(settings.archive))
    if run_id and "/" not in run_id and not run_id.startswith("."):
        for folder in folders:
            path = folder / run_id / "journal.jsonl"
            if path.is_file():
                return path
    raise errors.ParameterError(
        f"No journal of a run {run_id!r} on this machine.",
        why=f"Searched {', '.join(map(str, folders))}.",
        fix="Copy the run ID from vmsnix history runs, on the machine that ran it.",
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the journal's lines, without incomplete ones."""
    lines = []
    for text in files.read(path).split(b"\n"):
        with suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line and "status" in line]


@contextmanager
def _locked_journal(path: Path, run_id: str) -> Iterator[None]:
    """Lock the journal; refuse a running run, whose process has locked it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.RunError(
                f"The run {run_id} is still running.",
                why="A process has locked its journal.",
                fix="Stop it with Ctrl-C, or wait until it ends.",
            ) from error
        yield
