"""The steps of a publish.

Each step finds what it would create, and creates it only when it does not exist. Identity is content: the S3
key, the snapshot's and the AMI's tags and every ClientToken derive from the identity of the disk, so a run
that died is continued by running it again, on any machine.

What an error leaves behind depends on what fixes it. When the same call would fail again, the uploaded object
is removed with it. When another try may go through (credentials expired, a quota, a deadline, the network)
the work is kept, and the next run continues.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING

from vmsnix_ops import errors, outcomes
from vmsnix_ops.aws import buckets, error_codes, images, imports, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import manifests, reading, writing
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.session import client
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity_cache import IdentityCache
from vmsnix_ops.disk.image import BLOCK_BYTES
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.survey import changed, still_identified, survey
from vmsnix_ops.errors import NixError, RecordsError, ToolMissingError
from vmsnix_ops.interrupts import interruptible
from vmsnix_ops.nix.closure import closure
from vmsnix_ops.nix.command import nar_hash
from vmsnix_ops.nix.image import store_object
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.publish import identity
from vmsnix_ops.publish.values import Built, PublishResult, RegisteredAmi, SnapshotStep, UploadStep
from vmsnix_ops.records import history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step
    from vmsnix_ops.publish.journal import Entry
    from vmsnix_ops.publish.wanted import Wanted
    from vmsnix_ops.records.run_tables import RunTables
    from vmsnix_ops.records.tables import Tables


# How long a step will take, by the records of earlier runs with images of about the same size.

ALIKE = 1.5  # sizes that differ by no more than this factor are about the same
FEWEST = 3  # earlier steps that an expectation needs
LATEST = 50


@dataclass(frozen=True, slots=True)
class Expectation:
    """Durations of earlier steps of the same kind and size.

    Attributes
    ----------
    seconds
        Of each, in ascending order.
    """

    seconds: tuple[float, ...]

    @property
    def usual(self) -> float:
        """The median, in seconds."""
        return median(self.seconds)

    def remaining(self, elapsed: float) -> float | None:
        """Return how many seconds are to go after so many.

        The median of those earlier steps that had not ended by then either; ``None`` when this one is slower
        than all of them, so that nothing is known.

        Examples
        --------
        >>> Expectation((60.0, 100.0, 300.0)).remaining(20)
        80.0
        >>> Expectation((60.0, 100.0, 300.0)).remaining(150)
        150.0
        """
        slower = self.seconds[bisect_right(self.seconds, elapsed) :]
        return median(slower) - elapsed if slower else None


def expected(tables: Tables, *, step: str, via: str, region: str, size: int) -> Expectation | None:
    """Return what the latest finished steps of this kind and size took.

    ``None`` when there are too few, or the table cannot be read.

    Parameters
    ----------
    tables
        Where the steps are recorded.
    step, via, region
        Which steps count.
    size
        Bytes of the image's file.
    """
    kinds = [
        ("step", "==", step),
        ("via", "==", via),
        ("region", "==", region),
        ("status", "in", outcomes.WORKED),
    ]
    sizes = [("bytes", ">=", int(size / ALIKE)), ("bytes", "<=", int(size * ALIKE))]
    try:
        found = tables.read("steps", columns=["started_at", "seconds"], where=[*kinds, *sizes])
    except RecordsError:
        return None
    if len(found) < FEWEST:
        return None
    latest = found.sort_values("started_at")["seconds"].tail(LATEST)
    return Expectation(tuple(sorted(float(seconds) for seconds in latest)))


# What is inside a published image, for questions such as "which AMIs contain openssl older than 3.0.15".


def record(tables: RunTables, built: Built, *, run_id: str, step: Step) -> int:
    """Write the packages of an image to the table ``packages``, and return how many.

    Safe to run twice: the packages of a digest are written once. A file that Nix did not build here has
    none to tell, and an image whose contents Nix cannot list is published all the same: the step says why.
    """
    if not built.derivation:
        return 0
    if len(tables.read_or_empty("packages", columns=["name"], where=[("digest", "==", built.digest)])):
        return 0
    try:
        inside = closure(built.store_path or str(built.path))
    except (NixError, ToolMissingError) as error:
        step.message(f"its packages are not recorded: {error.what} {error.why}")
        return 0
    facts = {
        "digest": built.digest,
        "image": built.name,
        "image_version": built.version or None,
        "system": built.system,
        "run_id": run_id,
        "recorded_at": datetime.now(UTC),
    }
    tables.append("packages", inside.assign(**facts), once=f"{built.digest}/packages")
    return len(inside)


# Clean-up after a failure: only what another try can use is kept.


@contextmanager
def clean_failure(plan: Wanted, built: Built) -> Iterator[None]:
    """Leave nothing in the bucket when the same call would fail again, except what an import is reading."""
    try:
        yield
    except errors.VmsnixError as error:
        if not may_pass_later(error):
            try:
                clean_bucket(plan, built)
            except errors.AwsError as second:
                error.add_note(f"The uploaded object could not be deleted either. {second}")
        raise


def may_pass_later(error: errors.VmsnixError) -> bool:
    """Whether another try of the same call may go through, so that what was done is worth keeping."""
    if isinstance(
        error, errors.CredentialsError | errors.DeadlineError | errors.QuotaError | errors.InterruptedRunError
    ):
        return True
    kinds = (errors.BucketError, errors.RoleError, errors.ImportFailedError, errors.UploadError)
    if isinstance(error, errors.AwsError) and not isinstance(error, kinds):
        return error.code in error_codes.RETRYABLE or not error.code
    return False


def drop_snapshot(
    plan: Wanted, snapshot: SnapshotStep, step: Step, error: errors.VmsnixError | None = None
) -> None:
    """Delete the snapshot of this run that no AMI will use; name it where it may be another's.

    It is dropped after another publisher's AMI won, and after a comparison that found other bytes in it.

    A snapshot is this run's own when this run made it and it carries this run's tag. AWS refuses to delete
    one that an AMI uses. Two publishers of different AMIs may share an import: the other one finds the
    winner's snapshot when it is run again.

    A publisher via import may not delete snapshots (`vmsnix_ops.aws.iam.policies.publisher_actions`): the
    message, and a note on `error`, the reason for which the snapshot is dropped, then name the policy.
    """
    ec2 = plan.ec2
    found = snapshots.find_snapshots(ec2, [snapshot.snapshot_id]).get(snapshot.snapshot_id)
    if found is None or plan.dry_run or images.find_amis_of_snapshot(ec2, snapshot.snapshot_id):
        return
    problem = "another run created it"
    if snapshot.outcome == "created" and found.tags.get(tagging.RUN) == plan.run_id:
        try:
            imports.delete_snapshot(ec2, snapshot.snapshot_id)
        except errors.AccessDeniedError as refused:
            problem = refused.why
            if error is not None:
                error.add_note(
                    f"The snapshot {snapshot.snapshot_id} is kept. {refused.why} Delete it with the policy "
                    f"of vmsnix iam-policy retirer: vmsnix undo {plan.run_id}."
                )
        except errors.AwsError as refused:
            problem = refused.why or refused.what
        else:
            step.message(f"{snapshot.snapshot_id} of this run was deleted: no AMI uses it")
            return
    contains = "does not contain" if isinstance(error, errors.SnapshotFailedError) else "contains"
    step.message(
        f"{snapshot.snapshot_id} {contains} the image and no AMI uses it, but it was not deleted "
        f"({problem}). To delete it: {snapshots.delete_command(snapshot.snapshot_id, plan.region)}"
    )


def clean_bucket(plan: Wanted, built: Built) -> None:
    """Delete the uploaded object, unless an import is still reading it."""
    if not _readers(plan, built):
        buckets.delete_object(plan.s3, bucket=plan.bucket, key=identity.key(plan, built))


def _readers(plan: Wanted, built: Built) -> list[imports.ImportTask]:
    return imports.find_readers(plan.ec2, identity.url(plan, built), digest=built.digest)


def build(plan: Wanted) -> Built:
    """Build the image or find it, read it, and find out what AWS already has of it.

    Safe to run twice: Nix builds nothing twice, and reading changes nothing. A damaged image ends here,
    before a byte moves.

    Raises
    ------
    vmsnix_ops.errors.ImageError
        The image is missing, damaged, or of a format that VM Import does not take.
    vmsnix_ops.errors.NameTakenError
        The name that the AMI would get belongs to other bytes.
    """
    image = _image(plan)
    if image is None:
        return Built("planned", name=plan.image.rpartition("#")[2], flake=plan.image)
    whole = image.path.stat().st_size
    with (
        plan.journal.step("digest", total=whole, unit="bytes") as entry,
        interruptible("digest", "Nothing was changed."),
    ):
        with open_image(image.path) as disk:
            seen, read = _survey(plan, image, disk, entry.step)
            built = identity.describe(plan, image, disk, seen)
        plan.journal.image, plan.journal.digest = built.name, built.digest
        outcome: StepOutcome = "created" if read else "reused"
        entry.outcome, entry.bytes = "planned" if plan.dry_run else outcome, read
        entry.detail.update(digest=built.digest, path=str(built.path), ami_name=built.ami_name)
        if plan.bucket:
            entry.detail["url"] = identity.url(plan, built)  # a rollback finds it by this
        ec2 = plan.ec2
        there = images.find_all_by_name(ec2, built.ami_name)
        for ami in there:
            if ami.state in images.FAILED_STATES:
                entry.step.message(
                    f"{ami.ami_id} has this name but is {ami.state}; it is not used. To deregister it: "
                    f"{images.deregister_command(ami)}"
                )
        existing = images.usable_ami(there)
        if existing is None:
            return built
        _check_existing(plan, built, existing)
        if existing.state != "disabled":  # a retired one is refused with its own words when it is registered
            retiring.check_not_retired(existing)
        if existing.deprecated:
            entry.step.message(images.deprecation_note(existing))
        return replace(built, ami_id=existing.ami_id, snapshot_id=next(iter(existing.snapshot_ids), ""))


def _survey(plan: Wanted, image: BuiltImage, disk: DiskImage, step: Step) -> tuple[Survey, int]:
    """Return the identity of an image, and how many bytes were read: none when it is remembered."""
    parts, store, cache = plan.via == "import", _in_store(image.path), _identities(plan)
    known = cache.find(image.path, parts=parts, store=store)
    if known is not None:
        step.message("the identity is remembered from an earlier run; the image is not read")
        return known, 0
    started = time.time()
    if not parts:
        step.update(0, disk.size)
    seen = survey(disk, parts=parts, on_progress=step.advance)
    if not still_identified(image.path, seen):  # it was written, and its time was set back
        raise changed(str(image.path))
    cache.save(image.path, seen, started=started, store=store)
    return seen, seen.file_bytes


def _identities(plan: Wanted) -> IdentityCache:
    return IdentityCache(plan.settings.state / "identities")


def _in_store(path: Path) -> str:
    """Return store path, NAR hash and place in it of an image in the Nix store; empty for any other."""
    # An output can link to an image in another one, whose NAR hash is the one that covers the image's bytes.
    store_path = store_object(path)
    content = nar_hash(store_path) if store_path else ""
    return f"store {store_path} {content} {path.relative_to(store_path)}" if store_path and content else ""


def _check_existing(plan: Wanted, built: Built, existing: Ami) -> None:
    """Refuse an AMI of our name that is not what this publish would make, or cannot be launched."""
    wanted, ec2 = identity.registration(plan, built), plan.ec2
    images.check_same_registration(existing, digest=built.digest, facts=wanted.facts())
    if existing.state != "available":
        return
    root = snapshots.check_snapshots_of(ec2, existing)[0]
    if plan.kms_key and root.kms_key != plan.kms_key:
        raise errors.NameTakenError(
            f"The AMI {existing.name} exists with another encryption key.",
            why=f"{root.snapshot_id} of {existing.ami_id} is "
            f"{f'encrypted with {root.kms_key}' if root.encrypted else 'not encrypted'}, but kms_key is "
            f"{plan.kms_key}.",
            fix="Use another prefix, or deregister that AMI if nothing needs it: "
            f"{images.deregister_command(existing)}",
            code="InvalidAMIName.Duplicate",
        )


def _image(plan: Wanted) -> BuiltImage | None:
    """Return the image, built; in a dry run ``None`` for one that a build would have to make."""
    from vmsnix_ops.nix import build as nix

    with plan.journal.step("build", shown=False) as entry, interruptible("build", "Nothing was changed."):
        if not nix.is_path(plan.image):
            plan.journal.image = nix.split_image(plan.image)[
                1
            ]  # also a build that fails is one of this image
        if nix.is_path(plan.image):
            entry.outcome = "planned" if plan.dry_run else "reused"
            image = nix.resolve_image(
                plan.image, system=plan.system or None, boot_mode=plan.boot_mode or None
            )
        elif plan.dry_run:
            entry.outcome = "planned"  # that there is such an image, the plan has seen
            return None
        else:
            image = nix.resolve_image(
                plan.image,
                system=plan.system or None,
                flake=plan.settings.flake,
                progress=plan.journal.progress,
            )
        plan.journal.image, entry.items = image.name, image.items
        entry.detail.update(path=str(image.path), derivation=image.derivation)
        return image


@contextmanager
def _forgotten_when_changed(plan: Wanted, built: Built) -> Iterator[None]:
    """Forget a remembered identity that is not that of the file, so that the next run reads the file."""
    try:
        yield
    except errors.ImageChangedError:
        if built.path is not None:
            _identities(plan).forget(built.path, store=_in_store(built.path))
        raise


def upload(plan: Wanted, built: Built) -> UploadStep:
    """Put the image's bytes where VM Import reads them, or (direct) straight into a snapshot.

    Safe to run twice: nothing is sent when an AMI, a snapshot or a running import already has these bytes; an
    object is used again only when its checksum is the image's; an upload that was cut off is continued. For
    blocks see `vmsnix_ops.aws.ebs_direct.writing.upload`. What is sent are the bytes that `build` identified,
    however long ago: the buffer that is sent is compared with their digests.

    Raises
    ------
    vmsnix_ops.errors.ImageChangedError
        The image file contains other bytes than those that `build` identified. The upload is deleted.
    vmsnix_ops.errors.BucketError, vmsnix_ops.errors.UploadError
        And nothing is left in the bucket.
    """
    with (
        plan.journal.step("upload", total=built.file_bytes or None, unit="bytes") as entry,
        interruptible("upload", "The uploaded parts are kept, and the next run sends only the missing ones."),
        _forgotten_when_changed(plan, built),
    ):
        if not built.digest or (plan.dry_run and not _held(plan, built)):
            entry.outcome = "planned"
            return UploadStep(
                "planned", built, identity.url(plan, built) if built.digest and plan.bucket else ""
            )
        if _held(plan, built):
            entry.outcome = "reused"
            return UploadStep("reused", built)
        if plan.via == "direct":
            made = writing.upload(
                plan.session,
                identity.block_upload(plan, built),
                tables=plan.journal.tables,
                step=entry.step,
                config=_transfer_config(plan),
            )
            entry.outcome, entry.bytes = made.outcome, made.sent_bytes
            entry.detail.update(
                snapshot_id=made.snapshot_id,
                parent_id=made.parent_id,
                why_full=made.why_full,
                blocks=made.compared,
                sent_blocks=made.sent,
                throttled=made.throttled,
            )
            return UploadStep(made.outcome, built, "", made.sent_bytes, made)
        with clean_failure(plan, built):
            stored = buckets.upload_file(
                client(plan.session, "s3", plan.region, connections=buckets.THREADS + 2),
                built.path,  # type: ignore[arg-type]  # a built image with a digest has a path
                survey=built.seen,  # type: ignore[arg-type]  # and an identity
                bucket=plan.bucket,
                key=identity.key(plan, built),
                tags=identity.tags(plan, built),
                kms_key=plan.kms_key,
                in_use=lambda: _readers(plan, built) != [],
                step=entry.step,
            )
        entry.outcome, entry.bytes = stored.outcome, stored.sent_bytes
        entry.detail.update(url=stored.url, checksum=stored.checksum, object_bytes=stored.bytes)
        return UploadStep(stored.outcome, built, stored.url, stored.sent_bytes)


def import_snapshot(plan: Wanted, source: UploadStep) -> SnapshotStep:
    """Make a snapshot of the uploaded image with VM Import, or (direct) wait for the one that was uploaded.

    Safe to run twice: see `vmsnix_ops.aws.imports.import_snapshot` and
    `vmsnix_ops.aws.ebs_direct.writing.finish`. An interrupt cancels an import. When the plan wants it, the
    snapshot is then read back and compared.

    Raises
    ------
    vmsnix_ops.errors.ImportFailedError, vmsnix_ops.errors.RoleError
        And nothing is left in the bucket.
    vmsnix_ops.errors.SnapshotFailedError
        The snapshot failed, or does not contain the image; one that this run created is deleted.
    """
    snapshot = _snapshot(plan, source)
    if plan.verify == "none" or snapshot.outcome == "planned":
        return snapshot
    return _verify(plan, snapshot)


def _snapshot(plan: Wanted, source: UploadStep) -> SnapshotStep:
    built = source.built
    with plan.journal.step("import", total=100, unit="percent") as entry:
        if source.outcome == "planned":
            entry.outcome = "planned"
            return SnapshotStep("planned", built)
        ec2 = plan.ec2
        snapshot_id = built.snapshot_id
        if built.ami_id and not snapshot_id:
            # AWS still makes it, for a promotion or another publisher, and does not show its snapshot yet.
            existing = images.wait_available(ec2, built.ami_id, step=entry.step)
            _check_existing(plan, built, existing)
            snapshot_id = existing.snapshot_ids[0]
        if snapshot_id:
            entry.outcome = "reused"
            size = imports.wait_for_snapshot(ec2, snapshot_id)
            _report_size(built, snapshot_id, size, entry.step)
            return SnapshotStep("reused", built, snapshot_id, size)
        _expect(plan, built, entry)
        if source.direct is not None:
            kept = "The snapshot is complete or will be; the next run uses it."
            with interruptible("wait for the snapshot", kept):
                done = writing.finish(
                    plan.session,
                    identity.block_upload(plan, built),
                    source.direct,
                    tables=plan.journal.tables,
                    step=entry.step,
                )
            entry.outcome, entry.bytes = done.outcome, built.file_bytes
            entry.detail.update(snapshot_id=done.snapshot_id)
            _report_size(built, done.snapshot_id, done.size_gib, entry.step)
            return SnapshotStep(done.outcome, built, done.snapshot_id, done.size_gib)
        wanted = imports.Source(
            plan.bucket,
            identity.key(plan, built),
            built.format,
            plan.role_name,
            _role_wait_seconds(plan),
            plan.kms_key,
        )
        with (
            interruptible("import", "Its import was cancelled; the uploaded image is kept for the next run."),
            clean_failure(plan, built),
        ):
            try:
                made = imports.import_snapshot(
                    ec2,
                    wanted,
                    digest=built.digest,
                    tags=identity.tags(plan, built),
                    check=lambda: _check_stored(plan, source),
                    step=entry.step,
                )
            except KeyboardInterrupt:
                # One that another publisher started is that publisher's to cancel.
                imports.cancel_imports(ec2, built.digest, run_id=plan.run_id)
                raise
        if built.seen is not None and made.outcome == "created":
            manifest = Manifest(
                built.digest, built.disk_bytes, made.snapshot_id, plan.region, built.seen.blocks
            )
            manifests.save(plan.journal.tables, manifest)
        entry.outcome, entry.bytes = made.outcome, built.file_bytes
        entry.detail.update(snapshot_id=made.snapshot_id, task_id=made.task_id)
        _report_size(built, made.snapshot_id, made.size_gib, entry.step)
        return SnapshotStep(made.outcome, built, made.snapshot_id, made.size_gib, made.task_id)


def _report_size(built: Built, snapshot_id: str, size_gib: int, step: Step) -> None:
    """Report that a snapshot of the same disk has another size than this file's disk."""
    own = -(-built.disk_bytes // identity.GIB)
    if size_gib != own:
        step.message(
            f"{snapshot_id} has {size_gib} GiB and the disk in {built.path} has {own} GiB; the content is "
            "the same, because one of their containers rounds the size up"
        )


def _check_stored(plan: Wanted, source: UploadStep) -> None:
    """Refuse an uploaded object that was replaced: hours may lie between two cells of a notebook."""
    built = source.built
    if source.url and built.seen is not None:
        buckets.check_object(plan.s3, survey=built.seen, bucket=plan.bucket, key=identity.key(plan, built))


def _expect(plan: Wanted, built: Built, entry: Entry) -> None:
    """Show how long the step usually takes, and the remaining time."""
    known = expected(
        plan.journal.tables, step="import", via=plan.via, region=plan.region, size=built.file_bytes
    )
    if known is not None:
        entry.step.message(f"an image of this size usually takes {human_seconds(known.usual)}")
        entry.step.forecast = known.remaining


def register(plan: Wanted, snapshot: SnapshotStep) -> RegisteredAmi:
    """Register the AMI as the image requests it, and wait until it is available.

    Safe to run twice: see `vmsnix_ops.aws.images.register_ami`.

    Raises
    ------
    vmsnix_ops.errors.NameTakenError
        Another publisher took the name for other bytes, or registered these ones otherwise, in the meantime;
        the snapshot of this run is removed again.
    """
    built = snapshot.built
    with (
        plan.journal.step("register") as entry,
        interruptible(
            "registration", "The snapshot is kept, and the next run registers it or finds the AMI."
        ),
    ):
        if snapshot.outcome == "planned":
            entry.outcome = "planned"
            return RegisteredAmi("planned", built, snapshot, public=plan.public)
        ec2, wanted = plan.ec2, identity.registration(plan, built, snapshot.snapshot_id)
        try:
            ami, outcome = images.register_ami(
                ec2, wanted, digest=built.digest, snapshot_gib=snapshot.size_gib, step=entry.step
            )
        except errors.NameTakenError as error:
            drop_snapshot(plan, snapshot, entry.step, error)
            if plan.via == "import":
                clean_bucket(plan, built)
            raise
        retiring.check_not_retired(ami)
        if ami.snapshot_ids and snapshot.snapshot_id not in ami.snapshot_ids:
            # Another publisher of these bytes was faster: its snapshot is the AMI's, and what is reported.
            _check_existing(plan, built, ami)
            drop_snapshot(plan, snapshot, entry.step)
            size = imports.wait_for_snapshot(ec2, ami.snapshot_ids[0])
            _report_size(built, ami.snapshot_ids[0], size, entry.step)
            snapshot = SnapshotStep("reused", built, ami.snapshot_ids[0], size)
        missing = {key: value for key, value in plan.tags.items() if ami.tags.get(key) != value}
        if missing and not plan.dry_run:
            images.tag_ami(ec2, ami.ami_id, missing)
        if plan.public and not ami.public and not plan.dry_run:
            _share_with_everybody(plan, ami.ami_id)
        entry.outcome = "planned" if plan.dry_run else outcome
        entry.detail.update(ami_id=ami.ami_id, name=ami.name, snapshot_id=snapshot.snapshot_id)
        registered = RegisteredAmi(
            outcome,
            built,
            snapshot,
            ami.ami_id,
            ami.state,
            ami.public or plan.public,
            f"{ami.deprecated_at:%Y-%m-%dT%H:%M:%SZ}" if ami.deprecated and ami.deprecated_at else "",
        )
    if plan.verify != "none" and not snapshot.verified and outcome == "reused" and not plan.dry_run:
        # The snapshot that was compared is not the AMI's.
        registered = replace(registered, snapshot=_verify(plan, snapshot))
    return registered


def finish(plan: Wanted, ami: RegisteredAmi) -> PublishResult:
    """Remove the uploaded object, record the AMI, write ``result.json``.

    Safe to run twice: what is gone is no error, and an AMI that the tables know is recorded again only where
    they lack what was asked for. The object stays while an import of these bytes still runs, since it would
    fail without it.

    Raises
    ------
    vmsnix_ops.errors.UnrecordedActError
        The AMI is registered and recorded; the object was not deleted, because that could not be announced on
        the disk.
    """
    built = ami.built
    planned = plan.dry_run or not ami.ami_id
    unrecorded: errors.UnrecordedActError | None = None
    kept = "The AMI is registered; the next run deletes the uploaded object and records the AMI."
    with plan.journal.step("finish") as entry, interruptible("last step", kept):
        entry.outcome = "planned"
        if not planned:
            entry.outcome = ami.outcome
            if plan.via == "import":
                try:
                    clean_bucket(plan, built)
                except errors.UnrecordedActError as error:
                    unrecorded = error
            with plan.journal.saving():
                _record(plan, ami)
            with plan.journal.saving():
                record(plan.journal.tables, built, run_id=plan.run_id, step=entry.step)
    result = PublishResult(
        dry_run=plan.dry_run,
        ami_id=ami.ami_id,
        snapshot_id=ami.snapshot.snapshot_id,
        image_name=built.ami_name,
        region=plan.region,
        account=plan.account,
        image=built.name,
        version=built.version,
        system=built.system,
        digest=built.digest,
        via=plan.via,
        outcome=ami.outcome,
        public=ami.public,
        size_gib=ami.snapshot.size_gib,
        disk_bytes=built.disk_bytes,
        seconds=round(sum(timing.seconds for timing in plan.journal.timings), 3),
        steps=tuple(plan.journal.timings),
        run=plan.journal.run,
        slow=None if plan.dry_run else plan.journal.slow(),
        deprecated_at=ami.deprecated_at,
        problems=plan.journal.save_again(),
    )
    plan.journal.finish(result)
    if unrecorded is not None:
        raise errors.UnrecordedActError(
            f"The AMI {ami.ami_id} is registered. {unrecorded.what}", why=unrecorded.why, fix=unrecorded.fix
        ) from unrecorded
    return replace(result, problems=plan.journal.problems)


def _held(plan: Wanted, built: Built) -> bool:
    """Whether an AMI, a snapshot or a running import already has these bytes, so that no upload is needed."""
    if built.ami_id:
        return True
    if plan.via == "direct":
        # The upload itself searches for a snapshot, because it may have to write its manifest.
        return plan.dry_run and bool(
            writing.find(plan.session, plan.region, built.digest, kms_key=plan.kms_key)
        )
    ec2 = plan.ec2
    if imports.find_snapshot(ec2, built.digest, kms_key=plan.kms_key):
        return True
    return imports.find_usable_task(ec2, built.digest, kms_key=plan.kms_key)[0] is not None


def _share_with_everybody(plan: Wanted, ami_id: str) -> None:
    """Make the AMI public. A publisher via import may not; the error then names who may."""
    try:
        images.make_public(plan.ec2, ami_id)
    except errors.AccessDeniedError as error:
        if plan.via != "import":
            raise
        raise error.with_fix(
            "A publisher via import may not share AMIs. The AMI is registered and private. To make it "
            "public, use the policy of vmsnix iam-policy promoter --public and run: vmsnix promote --ami "
            f"{ami_id} --region {plan.region} --public --confirm-public {plan.account} --no-dry-run"
        ) from error


def _transfer_config(plan: Wanted) -> TransferConfig:
    return TransferConfig(ceiling=plan.settings.put_ceiling)


def _verify(plan: Wanted, snapshot: SnapshotStep) -> SnapshotStep:
    """Read the snapshot back and compare it with the image as it was identified."""
    built = snapshot.built
    if built.path is None or built.seen is None:
        raise RuntimeError("a snapshot is made of an image that was identified")
    with (
        plan.journal.step("verify", unit="bytes") as entry,
        interruptible("comparison", "The snapshot is kept, and the next run uses it."),
    ):
        try:
            compared = reading.verify(
                plan.session,
                region=plan.region,
                snapshot_id=snapshot.snapshot_id,
                blocks=built.seen.blocks,
                how=plan.verify,
                step=entry.step,
                config=_transfer_config(plan),
            )
        except errors.SnapshotFailedError as error:
            if snapshot.outcome == "created":
                drop_snapshot(plan, snapshot, entry.step, error)
            raise
        except errors.AccessDeniedError as error:
            if plan.via != "import":
                raise
            raise error.with_fix(
                "A publisher via import may not read snapshots. Publish without --verify, then compare with "
                f"the policy of vmsnix iam-policy verifier --blocks: vmsnix publish --image {built.path} "
                f"--region {plan.region} --via direct --verify {plan.verify} --dry-run"
            ) from error
        entry.bytes = compared.blocks * BLOCK_BYTES
        text = f"{compared.blocks} of {compared.of} blocks were read back and match the image"
        if not still_identified(built.path, built.seen):
            text += (
                f"; {built.path.name} changed after it was identified, and its current content was not "
                "compared"
            )
            entry.step.message(text)
        entry.detail.update(verified=text)
    return replace(snapshot, verified=text)


def _role_wait_seconds(plan: Wanted) -> float:
    """Return how long to retry with the role, which EC2 may not find if it is new."""
    return 30.0 if any(check.facts.get("new") for check in plan.checks) else 0.0


def _record(plan: Wanted, ami: RegisteredAmi) -> None:
    """Record the AMI, unless the tables have it with all that this run was told to give it.

    A run that was told nothing new takes nothing over that somebody else changed: a verification finds it.
    """
    tags = tagging.to_dict(tagging.to_list(plan.tags))
    try:
        known = history.amis(plan.journal.tables, ami_id=ami.ami_id, region=plan.region)
    except errors.RecordsError:
        known = None  # recorded once more: the newest row counts
    if known is not None and len(known):
        newest = known.fillna({"public": False, "tags": "{}"}).iloc[0]
        if tags.items() <= json.loads(newest["tags"]).items() and (newest["public"] or not plan.public):
            return
    described = images.describe_ami(plan.ec2, ami.ami_id)
    row = images.ami_row(described, recorded_at=datetime.now(UTC), source="publish", via=plan.via)
    # What this run changed a moment ago, AWS may not show yet.
    row |= {"public": described.public or plan.public, "tags": {**described.tags, **tags}}
    plan.journal.tables.append("amis", [row])
