"""Filters of all Describe operations: one that AWS may have is never refused as invalid."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.core import OPERATIONS, load_operations
from vmsnix_ops.sandbox.ec2.filters import documented_filters

load_operations()
FILTERED = sorted(
    name
    for (service, name), known in OPERATIONS.items()
    if service == "ec2" and "Filters" in known.parameters
)


def describe(aws: SandboxClients, operation: str, name: str, value: str = "no-such-value") -> dict[str, Any]:
    more = {"Versions": ["$Latest"]} if operation == "DescribeLaunchTemplateVersions" else {}
    call = getattr(aws.ec2, xform_name(operation))
    answer: dict[str, Any] = call(Filters=[{"Name": name, "Values": [value]}], **more)
    return answer


def outcome(aws: SandboxClients, operation: str, name: str) -> str:
    try:
        describe(aws, operation, name)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.parametrize("operation", FILTERED)
def test_a_documented_filter_is_emulated_or_refused_as_not_emulated(
    aws: SandboxClients, operation: str
) -> None:
    for name in documented_filters(operation):
        assert outcome(aws, operation, name) in {"", "NotImplemented"}, name


@pytest.mark.parametrize("operation", FILTERED)
def test_a_filter_of_another_operation_is_refused_as_not_emulated(
    aws: SandboxClients, operation: str
) -> None:
    with refused("NotImplemented", "the filter 'spot-price'"):
        describe(aws, operation, "spot-price")
    with refused("NotImplemented", "the filter 'tag-value'"):
        describe(aws, operation, "tag-value")


@pytest.mark.parametrize("operation", FILTERED)
def test_a_filter_that_ec2_does_not_have_is_invalid(aws: SandboxClients, operation: str) -> None:
    with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
        describe(aws, operation, "bogus")
