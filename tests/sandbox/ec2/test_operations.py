"""The emulated operations of EC2 and EBS compared with botocore's model; the size of the state file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.sandbox.core import OPERATIONS, Operation, load_operations
from vmsnix_ops.sandbox.state import dump_tables, load_tables
from vmsnix_ops.sandbox.wire.models import service_model

if TYPE_CHECKING:
    from tests.sandbox.clients import SandboxClients

load_operations()
EMULATED = [op for (name, _), op in sorted(OPERATIONS.items()) if name in {"ec2", "ebs"}]


@pytest.mark.parametrize("operation", EMULATED, ids=lambda op: f"{op.service}:{op.name}")
def test_an_operation_uses_only_parameters_that_aws_has(operation: Operation) -> None:
    shape = service_model(operation.service).model.operation_model(operation.name).input_shape
    assert operation.parameters <= set(shape.members)
    assert set(shape.required_members) - {"DryRun"} <= operation.parameters


@pytest.mark.parametrize("operation", EMULATED, ids=lambda op: f"{op.service}:{op.name}")
def test_an_operation_accepts_the_client_token_that_boto3_adds(operation: Operation) -> None:
    shape = service_model(operation.service).model.operation_model(operation.name).input_shape
    automatic = {name for name, member in shape.members.items() if member.metadata.get("idempotencyToken")}
    assert automatic <= operation.parameters


def test_all_six_ebs_direct_operations_are_emulated() -> None:
    assert {op.name for op in EMULATED if op.service == "ebs"} == set(
        service_model("ebs").model.operation_names
    )


def test_the_state_file_is_small(aws: SandboxClients) -> None:
    """A hundred images with their snapshot need less than 100 kB."""
    snapshot = aws.snapshot()
    for _ in range(100):
        aws.image(snapshot)
    tables = aws.sandbox.state.tables
    kept = {key: table for key, table in tables.items() if key[2] != "credentials"}
    content = dump_tables(kept)
    assert len(content) < 100_000
    assert load_tables(content) == kept
