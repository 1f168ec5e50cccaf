"""The examples of the page of the tables, run on the records of one AMI."""

from __future__ import annotations

import ast
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from docs.records_pages import JOINS, RECIPES
from vmsnix_ops import history
from vmsnix_ops.records.tables import Tables

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"
EXAMPLES = re.findall(r"^##+ ([^\n]+)\n\n```python\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NOW = datetime.now(UTC)
WHERE = {"region": "eu-west-1", "account": "012345678901"}


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with an AMI that was published, promoted, proven, audited twice and retired."""
    folder = tmp_path_factory.mktemp("history")
    tables = Tables(folder, storage_options={})
    run = {"runbook": "publish-ami", "status": "done", "started_at": NOW, "parameters": {"image": "web"}}
    tables.append("runs", [run | WHERE | {"run_id": name} for name in ("publish", "audit", "later")])
    step = {"run_id": "publish", "step": "register", "status": "created", "started_at": NOW}
    tables.append("steps", [step | WHERE])
    ami = {"ami_id": "ami-1", "name": "web-1", "digest": "d1", "run_id": "publish", "source": "publish"}
    tables.append("amis", [ami | WHERE | {"recorded_at": NOW}])
    act = {"run_id": "publish", "ami_id": "ami-1"} | WHERE
    tables.append("promotions", [act | {"promoted_at": NOW, "how": "promote", "channel": "stable"}])
    tables.append("proofs", [act | {"proved_at": NOW, "verdict": "proven", "extent": "whole"}])
    tables.append(
        "packages", [{"digest": "d1", "name": "curl", "store_path": "/nix/store/1", "recorded_at": NOW}]
    )
    retired = {
        "run_id": "publish",
        "done_at": NOW,
        "kind": "ami",
        "resource_id": "ami-1",
        "action": "retired",
    }
    tables.append("retirements", [retired | WHERE])
    for name, moment, rule in (("audit", NOW - timedelta(days=6), "public"), ("later", NOW, "old")):
        scan = {"run_id": name, "scanned_at": moment} | WHERE
        references = json.dumps([{"kind": "instance", "id": "i-1"}])
        found = {"kind": "ami", "resource_id": "ami-1", "monthly_usd": 2.0, "cost_basis": "snapshots"}
        disk = {"kind": "snapshot", "resource_id": "snap-1", "monthly_usd": 2.0, "cost_basis": "stored"}
        more = {"snapshots": ["snap-1"], "references": references}
        tables.append("inventory", [scan | found | more, scan | disk])
        tables.append("findings", [scan | found | {"severity": "high", "rule": rule}])
    return folder


def test_the_page_has_an_example_for_each_pair_and_task() -> None:
    titles = [title for title, _ in EXAMPLES]
    assert titles == [*(f"{one} and {other}" for one, other in JOINS), *RECIPES]


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_of_the_page_finds_rows(
    title: str, code: str, location: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMSNIX_HISTORY", str(location))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://ec2.eu-west-1.amazonaws.com")
    *first, last = ast.parse(code).body
    names: dict[str, Any] = {"history": history}
    exec(compile(ast.Module(first, []), str(PAGE), "exec"), names)
    assert isinstance(last, ast.Expr)
    found = eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)
    assert len(found) > 0
    if isinstance(found, pd.DataFrame):
        assert found.columns.is_unique
    if title.startswith("Sum"):
        assert list(found) == [2.0]
    if title.startswith("Compare"):
        assert sorted(found["rule"]) == ["old", "public"]
