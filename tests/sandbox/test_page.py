"""The page docs/reference/sandbox.md is up to date, and lists what the code refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from botocore import xform_name

from docs.sandbox_page import IMAGE_OPERATION, PAGE, page, refused_values
from vmsnix_ops.sandbox import tagging
from vmsnix_ops.sandbox.core import OPERATIONS, load_operations
from vmsnix_ops.sandbox.limits import DEFAULTS
from vmsnix_ops.sandbox.wire.models import service_model

load_operations()


def row(operation: str) -> str:
    return next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"| {operation} |" in line)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m docs.sandbox_page"


@pytest.mark.parametrize(
    ("operation", "texts"),
    [
        ("DeregisterImage", ["yes"]),
        ("ImportImage", ["no"]),
        ("ExportImage", ["no"]),
        ("CreateSnapshots", ["no"]),
        ("RunInstances", ["partial", "several network interfaces", "`host` of `tenancy`"]),
        ("DescribeVolumes", ["partial", "`IncludeManagedResources`", "filters: ", "`operator.managed`"]),
        ("DescribeImageAttribute", ["partial", "`launchPermission`"]),
        ("DeleteObject", ["partial", "`MFA`", "IfMatch with VersionId"]),
        ("ListSnapshotBlocks", ["yes"]),
    ],
)
def test_a_row_lists_what_is_refused(operation: str, texts: list[str]) -> None:
    assert [text for text in texts if text not in row(operation)] == []


def test_the_page_names_the_lists_that_are_shorter_than_on_aws() -> None:
    shorter = PAGE.read_text(encoding="utf-8").partition("shorter than on AWS")[2].partition("## ")[0]
    names = [
        "ListServiceQuotas",
        "DescribeInstanceTypes",
        "DescribeImages",
        "GetParametersByPath",
        "ListPolicies",
    ]
    assert [name for name in names if name not in shorter] == []
    assert [code for _, code in DEFAULTS if code not in shorter] == []


def test_every_operation_on_images_and_snapshots_has_a_row() -> None:
    names = [name for name in service_model("ec2").model.operation_names if IMAGE_OPERATION.search(name)]
    assert {"ImportImage", "ImportSnapshot", "CancelConversionTask", "CreateStoreImageTask"} < set(names)
    assert [name for name in names if not row(name)] == []


def test_every_operation_is_used_by_a_test_or_by_another_operation() -> None:
    tests = [path for path in Path(__file__).parent.parent.rglob("*") if path.suffix in (".py", ".yml")]
    texts = [path.read_text(encoding="utf-8") for path in (*tests, Path(tagging.__file__))]
    words = set(re.findall(r"[A-Za-z][\w-]+", "\n".join(texts)))
    spellings = {name: {name, xform_name(name), xform_name(name, "-")} for _, name in OPERATIONS}
    assert [name for name, written in spellings.items() if not written & words] == []


def test_refusals_in_shared_functions_are_found_too() -> None:
    assert "the member … of Placement of ec2:RunInstances" in refused_values(
        OPERATIONS["ec2", "RunInstances"]
    )
