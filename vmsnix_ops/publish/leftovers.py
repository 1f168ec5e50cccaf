"""What a publish leaves behind: nothing, unless another try can use it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets, error_codes, images, imports, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.publish import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.progress import Step
    from vmsnix_ops.publish.plan import Plan
    from vmsnix_ops.publish.values import Built, SnapshotStep


@contextmanager
def clean_failure(plan: Plan, built: Built) -> Iterator[None]:
    """Leave nothing in the bucket when the same call would fail again."""
    try:
        yield
    except errors.VmsnixError as error:
        if not may_pass_later(error):
            try:
                buckets.delete(plan.client("s3"), bucket=plan.bucket, key=identity.key(plan, built))
            except errors.AwsError as second:
                error.add_note(f"What was uploaded could not be removed either. {second}")
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
    plan: Plan, snapshot: SnapshotStep, step: Step, error: errors.VmsnixError | None = None
) -> None:
    """Delete the snapshot of this run that no AMI will use; name it where it may be another's.

    It is dropped after another publisher's AMI won, and after a comparison that found other bytes in it.

    A snapshot is this run's own when this run made it and it carries this run's tag. AWS refuses to delete
    one that an AMI uses. Two publishers of different AMIs may share an import: the other one finds the
    winner's snapshot when it is run again.

    A publisher via import may not delete snapshots (`vmsnix_ops.aws.iam.policies.publisher_actions`): the
    message, and a note on `error`, the reason for which the snapshot is dropped, then name the policy.
    """
    ec2 = plan.client("ec2")
    found = snapshots.find(ec2, [snapshot.snapshot_id]).get(snapshot.snapshot_id)
    if found is None or plan.dry_run or images.of_snapshot(ec2, snapshot.snapshot_id):
        return
    problem = "this run did not make it"
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
            step.message(f"{snapshot.snapshot_id} of this run is deleted: no AMI uses it")
            return
    contains = "does not contain" if isinstance(error, errors.SnapshotFailedError) else "contains"
    step.message(
        f"{snapshot.snapshot_id} {contains} the image, no AMI uses it, and "
        f"it was not deleted ({problem}). To delete it: "
        f"{snapshots.deleting(snapshot.snapshot_id, plan.region)}"
    )


def clean_bucket(plan: Plan, built: Built) -> None:
    """Remove the uploaded object, unless an import still reads it."""
    running = [
        task
        for task in imports.tasks(plan.client("ec2"), built.digest)
        if task.status not in imports.FAILED | {"completed"}
    ]
    if not running:
        buckets.delete(plan.client("s3"), bucket=plan.bucket, key=identity.key(plan, built))
