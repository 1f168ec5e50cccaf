"""Rows of a sandbox and of AWS in the same tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import botocore.session
import deltalake
import pyarrow as pa
import pytest

from vmsnix_ops.endpoints import endpoint_kind, endpoint_url, sandbox_url
from vmsnix_ops.records.rebuild import rebuild
from vmsnix_ops.records.result import runs_row
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.records.timings import slow_steps

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
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1.example.com"}, "custom"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "aws"),
        ({"AWS_ENDPOINT_URL": "http://[broken"}, "custom"),
    ],
)
def test_the_variables_of_the_aws_tools_decide(environment: dict[str, str], kind: str) -> None:
    assert endpoint_kind(environment) == kind
    assert sandbox_url(environment) == (endpoint_url(environment) if kind == "sandbox" else "")


PROFILES = """\
[default]
region = eu-west-1
[profile local]
endpoint_url = http://127.0.0.1:4566
[profile "night shift"]
services = here
endpoint_url = https://aws.example.com
[profile ignored]
endpoint_url = http://127.0.0.1:4566
ignore_configured_endpoint_urls = true
[services here]
s3 =
  endpoint_url = https://s3.example.com
ec2 =
  endpoint_url = http://[::1]:4566
  retries = 3
"""


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, ""),
        ({"AWS_PROFILE": "local"}, "http://127.0.0.1:4566"),
        ({"AWS_DEFAULT_PROFILE": "local"}, "http://127.0.0.1:4566"),
        ({"AWS_PROFILE": "night shift"}, "http://[::1]:4566"),
        ({"AWS_PROFILE": "ignored"}, ""),
        ({"AWS_PROFILE": "missing"}, ""),
        ({"AWS_PROFILE": "local", "AWS_ENDPOINT_URL": "https://x.example.com"}, "https://x.example.com"),
        ({"AWS_PROFILE": "local", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, ""),
    ],
)
def test_the_endpoint_of_a_profile_is_the_one_of_botocore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(PROFILES)
    assert endpoint_url({"HOME": str(tmp_path), **environment}) == url
    assert endpoint_kind({"HOME": str(tmp_path), **environment}) == (
        "aws" if not url else "custom" if "example" in url else "sandbox"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    if environment.get("AWS_PROFILE") != "missing":
        made = botocore.session.Session().create_client("ec2", "eu-west-1")
        assert made.meta.endpoint_url == (url or "https://ec2.eu-west-1.amazonaws.com")


@pytest.mark.parametrize("content", ["no section", "[default\n", "\0", "[profile x]\nservices"])
def test_a_damaged_configuration_is_left_to_botocore(tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content)
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "x"}
    assert endpoint_kind(environment) == "aws"


def test_a_sandbox_run_with_exported_variables_is_not_in_the_history_of_aws(tmp_path: Path) -> None:
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


def test_a_rebuild_gives_rows_of_older_versions_the_endpoint_of_their_run(tmp_path: Path) -> None:
    steps = [{"run_id": name, "step": "upload", "status": "created"} for name in ("old", "rehearsal", "lost")]
    deltalake.write_deltalake(str(tmp_path / "steps"), pa.Table.from_pylist(steps))
    entry = {"status": "done", "runbook": "publish-ami"}
    entry |= dict.fromkeys(("started_at", "finished_at"), NOON.isoformat())
    runs = [
        runs_row(entry | {"run_id": "old", "sandbox": None, "account": "012345678901"}),
        runs_row(entry | {"run_id": "rehearsal", "sandbox": "http://127.0.0.1:1"}),
    ]
    tables = Tables(tmp_path, storage_options={})
    assert rebuild(tables, "steps", [], runs=runs).filled == 2
    assert rebuild(tables, "steps", [], runs=runs).filled == 0
    assert set(tables.read("steps")["run_id"]) == {"old", "lost"}
    assert set(tables.read("steps", endpoint="sandbox")["run_id"]) == {"rehearsal"}
    assert list(tables.read("steps", where=[("run_id", "==", "old")])["account"]) == ["012345678901"]
    assert rebuild(tables, "steps", [], endpoint="sandbox").filled == 2  # the history of --sandbox
    assert len(tables.read("steps", endpoint="sandbox")) == 3


def test_the_steps_of_a_sandbox_do_not_make_a_step_of_aws_slow(tmp_path: Path) -> None:
    aws, rehearsal = Tables(tmp_path, storage_options={}), Tables(tmp_path, storage_options=SANDBOX)
    alike = {"step": "import", "status": "created", "image": "web", "region": "eu-west-1", "via": "import"}

    def rows(name: str, count: int, seconds: float) -> list[dict[str, object]]:
        return [
            alike | {"run_id": f"{name}{n}", "seconds": seconds, "started_at": NOON + timedelta(minutes=n)}
            for n in range(count)
        ]

    rehearsal.append("steps", rows("fast", 20, 1.0))
    aws.append("steps", [row | {"started_at": NOON + timedelta(days=1)} for row in rows("real", 1, 300.0)])
    where = {"image": "web", "region": "eu-west-1", "via": "import"}
    assert slow_steps(aws, "real0", **where) == ()
    aws.append("steps", rows("usual", 20, 1.0))
    assert [one.step for one in slow_steps(aws, "real0", **where)] == ["import"]
