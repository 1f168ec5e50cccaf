"""The steps of a publish.

Each step finds its result, or creates it. S3 key, tags and ClientTokens derive from the identity of the disk,
so that an interrupted run is continued by running it again, on any machine.

After an error that another run may not have (expired credentials, a quota, a deadline, the network), the
uploaded object is kept, and the next run continues. After other errors it is deleted.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
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
from vmsnix_ops.disk.image import BLOCK_BYTES, volume_gib
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.qemu import delete_copy
from vmsnix_ops.disk.survey import changed, still_identified, survey
from vmsnix_ops.errors import NixError, RecordsError, ToolMissingError
from vmsnix_ops.interrupts import interruptible
from vmsnix_ops.nix.closure import add_facts, closure, describe_facts, read_facts
from vmsnix_ops.nix.command import nar_hash
from vmsnix_ops.nix.image import store_object
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.publish import identity
from vmsnix_ops.publish.parameters import confirmation
from vmsnix_ops.publish.values import Built, PublishResult, RegisteredAmi, SnapshotStep, UploadStep
from vmsnix_ops.records import history
from vmsnix_ops.records.fingerprints import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step
    from vmsnix_ops.publish.journal import JournalEntry
    from vmsnix_ops.publish.parameters import PublishParameters
    from vmsnix_ops.records.run_tables import RunTables
    from vmsnix_ops.records.tables import Tables


# The expected duration of a step, from earlier runs with images of similar size.

SIMILAR_FACTOR = 1.5  # maximum ratio of similar sizes
MIN_STEPS, MAX_STEPS = 3, 50  # earlier steps for a forecast


@dataclass(frozen=True, slots=True)
class Forecast:
    """The durations of earlier steps of the same kind and size, ascending, in seconds."""

    seconds: tuple[float, ...]

    @property
    def usual(self) -> float:
        """The median, in seconds."""
        return median(self.seconds)

    def remaining(self, elapsed: float) -> float | None:
        """Return the remaining seconds of a step, from the median of the earlier steps that took longer.

        ``None`` if all earlier steps were faster.

        >>> Forecast((60.0, 100.0, 300.0)).remaining(20)
        80.0
        >>> Forecast((60.0, 100.0, 300.0)).remaining(150)
        150.0
        """
        slower = self.seconds[bisect_right(self.seconds, elapsed) :]
        return median(slower) - elapsed if slower else None


def forecast(tables: Tables, *, step: str, via: str, region: str, size: int) -> Forecast | None:
    """Return the durations of the latest steps of this kind and similar size (bytes of the image's file).

    ``None`` if there are too few, or the table cannot be read.
    """
    same = [("step", "==", step), ("via", "==", via), ("region", "==", region)]
    similar = [("bytes", ">=", int(size / SIMILAR_FACTOR)), ("bytes", "<=", int(size * SIMILAR_FACTOR))]
    where = [*same, ("status", "in", outcomes.WORKED), *similar]
    try:
        found = tables.read("steps", columns=["started_at", "seconds"], where=where)
    except RecordsError:
        return None
    if len(found) < MIN_STEPS:
        return None
    latest = found.sort_values("started_at")["seconds"].tail(MAX_STEPS)
    return Forecast(tuple(sorted(float(seconds) for seconds in latest)))


def record_packages(tables: RunTables, built: Built, *, run_id: str, step: Step) -> int:
    """Write the packages of an image to the table ``packages``, and return their number.

    Safe to run twice: the packages of a digest are written once. Nothing is written for an image that Nix did
    not build on this machine. If Nix cannot list the packages, the step shows the reason.
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
    try:
        found = read_facts(built)
    except NixError as error:
        step.message(f"its packages are recorded without licences and CPE: {error.what} {error.why}")
        found = {}
    inside = add_facts(inside, found)
    if found:
        without = ", ".join(inside["store_path"][inside["pname"].isna()])
        step.message(f"{describe_facts(inside)}{f'; without: {without}' if without else ''}")
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


# Clean-up after a failure.


@contextmanager
def delete_upload_on_failure(plan: PublishParameters, built: Built) -> Iterator[None]:
    """Delete the uploaded object after an error that another run would also have."""
    try:
        yield
    except errors.VmsnixError as error:
        if not is_retryable(error):
            try:
                delete_upload(plan, built)
            except errors.AwsError as second:
                error.add_note(f"The uploaded object could not be deleted either. {second}")
        raise


def is_retryable(error: errors.VmsnixError) -> bool:
    """Return whether another run may succeed, so that the finished work is kept."""
    if isinstance(
        error, errors.CredentialsError | errors.DeadlineError | errors.QuotaError | errors.InterruptedRunError
    ):
        return True
    if isinstance(error, errors.AwsError) and (
        error.code == "NoSuchUpload" or "404 Not Found" in error.status_message
    ):
        return True  # another publisher ended the upload: what is stored now is its object
    kinds = (errors.BucketError, errors.RoleError, errors.ImportFailedError, errors.UploadError)
    if isinstance(error, errors.AwsError) and not isinstance(error, kinds):
        return error.code in error_codes.RETRYABLE or not error.code
    return False


def delete_unused_snapshot(
    plan: PublishParameters, snapshot: SnapshotStep, step: Step, error: errors.VmsnixError | None = None
) -> None:
    """Delete a snapshot that no AMI will use, or show the command that deletes it.

    It is called if another publisher has registered the AMI, and if the snapshot does not match the image.
    Only a snapshot that this run created and tagged is deleted; AWS refuses to delete a snapshot of an AMI.
    Two publishers of different AMIs may share an import; then the other one finds the AMI's snapshot in its
    next run.

    A publisher by import may not delete snapshots (`vmsnix_ops.aws.iam.policies.publisher_actions`). Then
    the message and a note on `error`, the reason for the deletion, contain the policy that allows it.
    """
    ec2 = plan.ec2
    found = snapshots.find_snapshots(ec2, [snapshot.snapshot_id]).get(snapshot.snapshot_id)
    if found is None or plan.dry_run or images.find_amis_of_snapshot(ec2, snapshot.snapshot_id):
        return
    problem = "another run created it"
    if snapshot.outcome == "created" and found.tags.get(tagging.RUN) == plan.run_id:
        try:
            snapshots.delete_snapshot(ec2, snapshot.snapshot_id)
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


def delete_upload(plan: PublishParameters, built: Built) -> None:
    """Delete the uploaded object, unless a running import may read it."""
    if not _imports_of(plan, built):
        buckets.delete_object(plan.s3, bucket=plan.bucket, key=identity.key(plan, built))


def _imports_of(plan: PublishParameters, built: Built) -> list[imports.ImportTask]:
    return imports.find_readers(plan.ec2, identity.url(plan, built), digest=built.digest)


def build(plan: PublishParameters) -> Built:
    """Build or find the image, compute its identity, and search for an AMI of it.

    Safe to run twice: Nix does not build store paths again, and everything else only reads. A damaged image,
    and a name that an AMI with other bytes has, are refused here, before the upload.
    """
    image = _image(plan)
    if image is None:
        name = plan.image.rpartition("#")[2]
        return Built(
            path=Path(), name=name, version="", system="", boot_mode="", format="", logical_bytes=0,
            flake=plan.image, outcome="planned",
        )  # fmt: skip
    whole = image.path.stat().st_size
    with (
        plan.journal.step("digest", total=whole, unit="bytes") as entry,
        interruptible("digest", "Nothing was changed."),
    ):
        with open_image(image.path) as disk:
            surveyed, read = _survey(plan, image, disk, entry.step)
            built = identity.describe(plan, image, disk, surveyed)
        plan.journal.image, plan.journal.digest = built.name, built.digest
        outcome: StepOutcome = "created" if read else "reused"
        entry.outcome, entry.bytes = "planned" if plan.dry_run else outcome, read
        entry.detail.update(digest=built.digest, path=str(built.path), ami_name=built.ami_name)
        if plan.bucket:
            entry.detail["url"] = identity.url(plan, built)  # for `vmsnix undo`
        ec2 = plan.ec2
        amis = images.find_all_by_name(ec2, built.ami_name)
        for ami in amis:
            if ami.state in images.FAILED_STATES:
                entry.step.message(
                    f"{ami.ami_id} has this name but is {ami.state}; it is not used. To deregister it: "
                    f"{images.deregister_command(ami)}"
                )
        existing = images.usable_ami(amis)
        if existing is None:
            return built
        _check_existing(plan, built, existing)
        if existing.state != "disabled":  # `register` refuses a retired AMI with a more specific error
            retiring.check_not_retired(existing)
        if existing.deprecated:
            entry.step.message(images.deprecation_note(existing))
        return replace(built, ami_id=existing.ami_id, snapshot_id=next(iter(existing.snapshot_ids), ""))


def _survey(plan: PublishParameters, image: BuiltImage, disk: DiskImage, step: Step) -> tuple[Survey, int]:
    """Return the digests of an image, and the number of bytes that were read; 0 for a cached identity."""
    parts, store, cache = plan.via == "import", _store_key(image.path), _identity_cache(plan)
    known = cache.find(image.path, parts=parts, store=store)
    if known is not None:
        step.message("the identity is known from an earlier run; the image is not read")
        return known, 0
    started = time.time()
    if not parts:
        step.update(0, disk.size)
    surveyed = survey(disk, parts=parts, on_progress=step.advance)
    if not still_identified(image.path, surveyed):  # it was written, and its time was set back
        raise changed(str(image.path))
    cache.save(image.path, surveyed, started=started, store=store)
    return surveyed, surveyed.file_bytes


def _identity_cache(plan: PublishParameters) -> IdentityCache:
    return IdentityCache(plan.settings.state / "identities")


def _store_key(path: Path) -> str:
    """Return the key in the cache of an image in the Nix store; empty for any other image."""
    # An output may link to an image in another one, whose NAR hash covers the image's bytes.
    store_path = store_object(path)
    content = nar_hash(store_path) if store_path else ""
    return f"store {store_path} {content} {path.relative_to(store_path)}" if store_path and content else ""


def _check_existing(plan: PublishParameters, built: Built, existing: Ami) -> None:
    """Refuse an existing AMI that differs from the one that this publish would create, or is unusable."""
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


def _image(plan: PublishParameters) -> BuiltImage | None:
    """Read or build the image; ``None`` in a dry run that would build it."""
    from vmsnix_ops.nix import build as nix

    with plan.journal.step("build", shown=False) as entry, interruptible("build", "Nothing was changed."):
        entry.outcome = "planned" if plan.dry_run else "reused" if nix.is_path(plan.image) else "created"
        if not nix.is_path(plan.image):
            plan.journal.image = nix.split_image(plan.image)[1]  # for the record of a failed build
            if plan.dry_run:
                return None
        image = nix.resolve_image(
            plan.image,
            system=plan.system or None,
            boot_mode=plan.boot_mode or None,
            flake=plan.settings.flake,
            progress=plan.journal.progress,
        )
        plan.journal.image, entry.items = image.name, image.items
        entry.detail.update(path=str(image.path), derivation=image.derivation)
        return image


@contextmanager
def _deleted_from_cache_when_changed(plan: PublishParameters, built: Built) -> Iterator[None]:
    """Delete a cached identity that is not that of the file, so that the next run reads the file."""
    try:
        yield
    except errors.ImageChangedError:
        _identity_cache(plan).delete(built.path, store=_store_key(built.path))
        raise


def content(plan: PublishParameters, built: Built) -> dict[str, str]:
    """Return the facts of a plan by their names: the disk, where it will be published, and how.

    They are the same after a crash in any step, because every step finds what exists.
    """
    how = {name: getattr(plan, name) for name in ("via", "incremental", "verify", "boot_test", "public")}
    where = {name: getattr(plan, name) for name in ("account", "region", "bucket", "role_name", "kms_key")}
    image = {name: getattr(built, name) for name in ("name", "version", "system", "digest", "ami_name")}
    wanted = built.registration
    image |= {name: getattr(wanted, name, "") for name in ("boot_mode", "root_device", "tpm_support")}
    tags = {f"tag {key}": value for key, value in plan.tags.items()}
    return {name: str(value) for name, value in {**where, **how, **image, **tags}.items()}


def upload(plan: PublishParameters, built: Built) -> UploadStep:
    """Upload the image to the bucket, or (direct) to a snapshot.

    Safe to run twice: nothing is sent if an AMI, a snapshot or a running import has the image, or if the
    object exists with the image's checksum. An interrupted upload is continued; for the direct method see
    `vmsnix_ops.aws.ebs_direct.writing.upload`. Only bytes with the digests from `build` are accepted; other
    bytes delete the upload, as a failure of the bucket does.
    """
    with (
        plan.journal.step("upload", total=built.file_bytes or None, unit="bytes") as entry,
        interruptible("upload", "The uploaded parts are kept, and the next run sends only the missing ones."),
        _deleted_from_cache_when_changed(plan, built),
        ExitStack() as after,
    ):
        after.callback(delete_copy)  # of an image that was converted
        exists = bool(built.digest) and _is_in_aws(plan, built)
        if not exists and (plan.dry_run or not built.digest):
            entry.outcome = "planned"
            url = identity.url(plan, built) if built.digest and plan.bucket else ""
            return UploadStep("planned", built, url)
        if exists:
            entry.outcome = "reused"
            return UploadStep("reused", built)
        if plan.via == "direct":
            made = writing.upload(
                plan.session,
                identity.block_upload(plan, built),
                tables=plan.journal.tables,
                step=entry.step,
                config=TransferConfig(ceiling=plan.settings.put_ceiling),
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
        with delete_upload_on_failure(plan, built):
            stored = buckets.upload_file(
                client(plan.session, "s3", plan.region, connections=buckets.THREADS + 2),
                built.path,
                survey=built.survey,  # type: ignore[arg-type]  # a built image has an identity
                bucket=plan.bucket,
                key=identity.key(plan, built),
                tags=identity.tags(plan, built),
                kms_key=plan.kms_key,
                in_use=lambda: _imports_of(plan, built) != [],
                step=entry.step,
            )
        entry.outcome, entry.bytes = stored.outcome, stored.sent_bytes
        entry.detail.update(url=stored.url, checksum=stored.checksum, object_bytes=stored.bytes)
        return UploadStep(stored.outcome, built, stored.url, stored.sent_bytes)


def import_snapshot(plan: PublishParameters, source: UploadStep) -> SnapshotStep:
    """Import the uploaded image as a snapshot, or (direct) wait for its snapshot; compare it if requested.

    Safe to run twice: see `vmsnix_ops.aws.imports.import_snapshot` and
    `vmsnix_ops.aws.ebs_direct.writing.finish`. Ctrl-C cancels the import. If the import fails, the object is
    deleted; a snapshot of this run that does not match the image, too.
    """
    snapshot = _snapshot(plan, source)
    if plan.verify == "none" or snapshot.outcome == "planned":
        return snapshot
    return _verify(plan, snapshot)


def _snapshot(plan: PublishParameters, source: UploadStep) -> SnapshotStep:
    built = source.built
    with plan.journal.step("import", total=100, unit="percent") as entry:
        if source.outcome == "planned":
            entry.outcome = "planned"
            return SnapshotStep("planned", built)
        ec2 = plan.ec2
        snapshot_id = built.snapshot_id
        if built.ami_id and not snapshot_id:
            # The AMI is pending, and AWS does not report its snapshot yet.
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
            kept = "AWS completes the snapshot, and the next run uses it."
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
        # EC2 may not find a new role yet.
        role_wait_seconds = 30.0 if any(check.facts.get("new") for check in plan.checks) else 0.0
        wanted = imports.Source(
            plan.bucket,
            identity.key(plan, built),
            built.format,
            plan.role_name,
            role_wait_seconds,
            plan.kms_key,
        )
        with (
            interruptible("import", "Its import was cancelled; the uploaded image is kept for the next run."),
            delete_upload_on_failure(plan, built),
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
                # An import of another run is not cancelled.
                imports.cancel_imports(ec2, built.digest, run_id=plan.run_id)
                raise
        if built.survey is not None and made.outcome == "created":
            manifest = Manifest(
                built.digest, built.logical_bytes, made.snapshot_id, plan.region, built.survey.blocks
            )
            manifests.save(plan.journal.tables, manifest)
        entry.outcome, entry.bytes = made.outcome, built.file_bytes
        entry.detail.update(snapshot_id=made.snapshot_id, task_id=made.task_id)
        _report_size(built, made.snapshot_id, made.size_gib, entry.step)
        return SnapshotStep(made.outcome, built, made.snapshot_id, made.size_gib, made.task_id)


def _report_size(built: Built, snapshot_id: str, size_gib: int, step: Step) -> None:
    """Show a message if an existing snapshot of the disk has another size."""
    own = volume_gib(built.logical_bytes)
    if size_gib != own:
        step.message(
            f"{snapshot_id} has {size_gib} GiB and the disk in {built.path} has {own} GiB; the content is "
            "the same, because one of their formats rounds the size up"
        )


def _check_stored(plan: PublishParameters, source: UploadStep) -> None:
    """Refuse an uploaded object that was replaced, for example between two cells of a notebook."""
    built = source.built
    if source.url and built.survey is not None:
        buckets.check_object(plan.s3, survey=built.survey, bucket=plan.bucket, key=identity.key(plan, built))


def _expect(plan: PublishParameters, built: Built, entry: JournalEntry) -> None:
    """Show the usual duration of the step, and the remaining time."""
    known = forecast(
        plan.journal.tables, step="import", via=plan.via, region=plan.region, size=built.file_bytes
    )
    if known is not None:
        entry.step.message(f"an image of this size usually takes {human_seconds(known.usual)}")
        entry.step.forecast = known.remaining


def register(plan: PublishParameters, snapshot: SnapshotStep) -> RegisteredAmi:
    """Register the AMI, and wait until it is available.

    Safe to run twice: see `vmsnix_ops.aws.images.register_ami`. If another publisher has registered an AMI of
    this name with other bytes or parameters, the snapshot of this run is deleted.
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
            delete_unused_snapshot(plan, snapshot, entry.step, error)
            if plan.via == "import":
                delete_upload(plan, built)
            raise
        retiring.check_not_retired(ami)
        if ami.snapshot_ids and snapshot.snapshot_id not in ami.snapshot_ids:
            # Another publisher of the image has registered the AMI, with its own snapshot.
            _check_existing(plan, built, ami)
            delete_unused_snapshot(plan, snapshot, entry.step)
            size = imports.wait_for_snapshot(ec2, ami.snapshot_ids[0])
            _report_size(built, ami.snapshot_ids[0], size, entry.step)
            snapshot = SnapshotStep("reused", built, ami.snapshot_ids[0], size)
        missing = {key: value for key, value in plan.tags.items() if ami.tags.get(key) != value}
        if missing and not plan.dry_run:
            images.tag_ami(ec2, ami.ami_id, missing)
        if plan.public and not ami.public and not plan.dry_run:
            _make_public(plan, built, ami.ami_id)
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
        # The AMI has another snapshot than the one that was compared.
        registered = replace(registered, snapshot=_verify(plan, snapshot))
    return registered


def finish(
    plan: PublishParameters, ami: RegisteredAmi, *, planned: tuple[tuple[str, str], ...] = ()
) -> PublishResult:
    """Delete the uploaded object, record the AMI, and write ``result.json``.

    `planned` are the lines of the plan, which the result of a dry run contains.

    Safe to run twice: a missing object is not an error, and an AMI is recorded again only if its row lacks
    something that this run set. The object is kept while an import of it is running, and if its deletion
    could not be recorded first (an UnrecordedActError, after the AMI is recorded).
    """
    built = ami.built
    only_planned = plan.dry_run or not ami.ami_id
    unrecorded: errors.UnrecordedActError | None = None
    kept = "The AMI is registered; the next run deletes the uploaded object and records the AMI."
    with plan.journal.step("finish") as entry, interruptible("last step", kept):
        entry.outcome = "planned"
        if not only_planned:
            entry.outcome = ami.outcome
            if plan.via == "import":
                try:
                    delete_upload(plan, built)
                except errors.UnrecordedActError as error:
                    unrecorded = error
            with plan.journal.saving():
                _record_ami(plan, ami)
            with plan.journal.saving():
                record_packages(plan.journal.tables, built, run_id=plan.run_id, step=entry.step)
    result = PublishResult(
        dry_run=plan.dry_run,
        plan_fingerprint=fingerprint(content(plan, built)) if built.digest else None,
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
        disk_bytes=built.logical_bytes,
        seconds=round(sum(timing.seconds for timing in plan.journal.timings), 3),
        steps=tuple(plan.journal.timings),
        run=plan.journal.run,
        planned=planned if plan.dry_run else (),
        slow=None if plan.dry_run else plan.journal.slow(),
        deprecated_at=ami.deprecated_at,
        measurements=built.measurements,
        problems=plan.journal.save_again(),
    )
    plan.journal.finish(result)
    if unrecorded is not None:
        raise errors.UnrecordedActError(
            f"The AMI {ami.ami_id} is registered. {unrecorded.what}", why=unrecorded.why, fix=unrecorded.fix
        ) from unrecorded
    return replace(result, problems=plan.journal.problems)


def _is_in_aws(plan: PublishParameters, built: Built) -> bool:
    """Return whether an AMI, a snapshot or a running import has the image, so that no upload is needed."""
    if built.ami_id:
        return True
    if plan.via == "direct":
        # A direct upload searches for the snapshot itself, because it may have to write its manifest.
        return plan.dry_run and bool(
            writing.find(plan.session, plan.region, built.digest, kms_key=plan.kms_key)
        )
    ec2 = plan.ec2
    if imports.find_snapshot(ec2, built.digest, kms_key=plan.kms_key):
        return True
    return imports.find_usable_task(ec2, built.digest, kms_key=plan.kms_key)[0] is not None


def _make_public(plan: PublishParameters, built: Built, ami_id: str) -> None:
    """Make the AMI public. A publisher by import may not; then the error contains the required policy."""
    try:
        images.make_public(plan.ec2, ami_id)
    except errors.AccessDeniedError as error:
        if plan.via != "import":
            raise
        raise error.with_fix(
            "A publisher with --via import may not share AMIs. The AMI is registered and private. To make it "
            "public, use the policy of vmsnix iam-policy promoter --public and run: vmsnix promote --ami "
            f"{ami_id} --region {plan.region} --public --confirm-public "
            f"{confirmation(plan.account, built.keys)} --no-dry-run"
        ) from error


def _verify(plan: PublishParameters, snapshot: SnapshotStep) -> SnapshotStep:
    built = snapshot.built
    if built.survey is None:
        raise RuntimeError("the image of a snapshot has digests")
    with (
        plan.journal.step("verify", unit="bytes") as entry,
        interruptible("comparison", "The snapshot is kept, and the next run uses it."),
    ):
        try:
            compared = reading.verify(
                plan.session,
                region=plan.region,
                snapshot_id=snapshot.snapshot_id,
                blocks=built.survey.blocks,
                how=plan.verify,
                step=entry.step,
                config=TransferConfig(ceiling=plan.settings.put_ceiling),
            )
        except errors.SnapshotFailedError as error:
            if snapshot.outcome == "created":
                delete_unused_snapshot(plan, snapshot, entry.step, error)
            raise
        except errors.AccessDeniedError as error:
            if plan.via != "import":
                raise
            raise error.with_fix(
                "A publisher with --via import may not read snapshots. Publish without --verify, then "
                "compare with the policy of vmsnix iam-policy verifier --blocks: "
                f"vmsnix publish --image {built.path} --region {plan.region} --via direct "
                f"--verify {plan.verify} --dry-run"
            ) from error
        entry.bytes = compared.blocks * BLOCK_BYTES
        text = f"{compared.blocks} of {compared.of} blocks were read back and match the image"
        if not still_identified(built.path, built.survey):
            text += (
                f"; {built.path.name} changed after it was identified, and its current content was not "
                "compared"
            )
            entry.step.message(text)
        entry.detail.update(verified=text)
    return replace(snapshot, verified=text)


def _record_ami(plan: PublishParameters, ami: RegisteredAmi) -> None:
    """Record the AMI, unless its row has all tags of this run and its public access.

    Changes by others are not recorded here, so that `vmsnix verify` reports them.
    """
    tags = tagging.to_dict(tagging.to_list(plan.tags))
    try:
        known = history.amis(plan.journal.tables, ami_id=ami.ami_id, region=plan.region)
    except errors.RecordsError:
        known = None  # a second row does no harm: the newest one counts
    if known is not None and len(known):
        newest = known.fillna({"public": False, "tags": "{}"}).iloc[0]
        if tags.items() <= json.loads(newest["tags"]).items() and (newest["public"] or not plan.public):
            return
    described = images.describe_ami(plan.ec2, ami.ami_id)
    row = images.ami_row(described, recorded_at=datetime.now(UTC), source="publish", via=plan.via)
    # AWS may not show the changes of this run yet.
    row |= {"public": described.public or plan.public, "tags": {**described.tags, **tags}}
    plan.journal.tables.append("amis", [row])
