"""What a publish leaves behind: nothing, unless another try can use it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets, error_codes, imports
from vmsnix_ops.publish import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.publish.plan import Plan
    from vmsnix_ops.publish.values import Built


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


def clean_bucket(plan: Plan, built: Built) -> None:
    """Remove the uploaded object, unless an import still reads it."""
    running = [
        task
        for task in imports.tasks(plan.client("ec2"), built.digest)
        if task.status not in imports.FAILED | {"completed"}
    ]
    if not running:
        buckets.delete(plan.client("s3"), bucket=plan.bucket, key=identity.key(plan, built))
