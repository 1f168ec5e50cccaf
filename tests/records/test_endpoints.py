"""Rows of a sandbox and of AWS in the same tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import deltalake
import pyarrow as pa
import pytest

from vmsnix_ops.endpoints import endpoint_kind, endpoint_url, sandbox_url
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SANDBOX = {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}


def run(run_id: str, **more: object) -> dict[str, object]:
    return {"run_id": run_id, "runbook": "publish-ami", "status": "done", "started_at": NOON} | more


def ids(tables: Tables, endpoint: str = "") -> set[str]:
    return set(tables.read("runs", endpoint=endpoint)["run_id"])


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, "aws"),
        ({"AWS_ENDPOINT_URL": ""}, "aws"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}, "sandbox"),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566"}, "sandbox"),
        ({"AWS_ENDPOINT_URL": "http://[::1]:4566"}, "sandbox"),
        ({"AWS_ENDPOINT_URL_EC2": "http://127.0.0.1:4566"}, "sandbox"),
        ({"VMSNIX_SANDBOX": "http://127.0.0.1:4566"}, "sandbox"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_EC2": "https://ec2.example.com"},
            "custom",
        ),
        ({"AWS_ENDPOINT_URL_EC2": "https://vpce-1.ec2.eu-west-1.vpce.amazonaws.com"}, "aws"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1.example.com"}, "sandbox"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "aws"),
        ({"AWS_ENDPOINT_URL": "http://[broken"}, "custom"),
    ],
)
def test_the_variables_of_the_aws_tools_decide(environment: dict[str, str], kind: str) -> None:
    assert endpoint_kind(environment) == kind
    assert sandbox_url(environment) == (endpoint_url(environment) if kind == "sandbox" else "")


def test_a_rehearsal_with_exported_variables_stays_out_of_the_history_of_aws(tmp_path: Path) -> None:
    aws, rehearsal = Tables(tmp_path, storage_options={}), Tables(tmp_path, storage_options=SANDBOX)
    aws.append("runs", [run("real")])
    rehearsal.append("runs", [run("rehearsal")])
    assert (ids(aws), ids(rehearsal)) == ({"real"}, {"rehearsal"})
    assert ids(aws, "sandbox") == {"rehearsal"}
    assert ids(rehearsal, "all") == {"real", "rehearsal"}


def test_a_given_endpoint_is_kept(tmp_path: Path) -> None:
    aws = Tables(tmp_path, storage_options={})
    aws.append("runs", [run("rehearsal", endpoint="sandbox"), run("real")])
    assert (ids(aws), ids(aws, "sandbox")) == ({"real"}, {"rehearsal"})


def test_rows_of_older_versions_count_as_aws(tmp_path: Path) -> None:
    old = pa.table({"run_id": ["old"], "runbook": ["publish-ami"], "status": ["done"]})
    deltalake.write_deltalake(str(tmp_path / "runs"), old)
    assert ids(Tables(tmp_path, storage_options={})) == {"old"}
    assert ids(Tables(tmp_path, storage_options=SANDBOX)) == set()
    own = SANDBOX | {"VMSNIX_SANDBOX": SANDBOX["AWS_ENDPOINT_URL"]}  # --sandbox has tables of its own
    assert ids(Tables(tmp_path, storage_options=own)) == {"old"}
    Tables(tmp_path, storage_options={}).append("runs", [run("new")])
    assert ids(Tables(tmp_path, storage_options={})) == {"old", "new"}
