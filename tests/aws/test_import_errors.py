"""The error of a failed import contains a fix for AWS's message."""

from __future__ import annotations

import pytest

from vmsnix_ops.aws.imports import ImportTask, Source, import_error

NO_ACCESS = "ClientError: Disk validation failed [We do not have access to the given resource. Reason {}]"


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        (NO_ACCESS.format("403 Forbidden"), "Let the role vmimport read s3://images/key"),
        (NO_ACCESS.format("404 Not Found"), "Run the same command again: s3://images/key was deleted"),
        ("ClientError: Disk validation failed [Unsupported specified file format]", "is a valid vhd disk"),
        ("ServerError: an internal error has occurred during conversion.", "Run the same command again."),
        ("", "Run the same command again."),
    ],
)
def test_the_fix_of_a_failed_import_fits_the_message(message: str, fix: str) -> None:
    task = ImportTask("import-snap-0123456789abcdef0", "deleted", message, None, "", {})
    assert fix in str(import_error(task, Source("images", "key", "vhd", "vmimport")).fix)
