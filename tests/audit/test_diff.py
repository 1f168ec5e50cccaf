"""Compare the packages of two AMIs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.audit.diff import COLUMNS, diff
from vmsnix_ops.cli import main
from vmsnix_ops.errors import ParameterError
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 25, tzinfo=UTC)
OLD = [
    ("openssl", "3.0.9", "a", 100),
    ("openssl", "3.0.9", "a-bin", 10),
    ("curl", "8.9.0", "a", 50),
    ("perl", "5.40", "a", 1000),
    ("bash", "5.2", "a", 20),
    ("zlib", "1.3", "a", 5),
    ("etc", "", "a", 3),
]
NEW = [
    ("openssl", "3.0.15", "b", 140),
    ("openssl", "1.1.1w", "b", 60),
    ("curl", "8.7.1", "b", 40),
    ("nginx", "1.27", "b", 300),
    ("bash", "5.2", "b", 20),
    ("zlib", "1.3", "a", 5),
    ("etc", "", "b", 4),
]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    tables = Tables(tmp_path / "history")
    for number, (digest, packages) in enumerate((("o", OLD), ("n", NEW), ("e", []))):
        ami = {"ami_id": f"ami-{number}", "name": f"web-{number}", "digest": digest * 64}
        tables.append("amis", [{**ami, "region": "us-east-1", "recorded_at": NOW, "source": "publish"}])
        rows = [
            {
                "digest": digest * 64,
                "name": name,
                "version": version or None,
                "store_path": f"/nix/store/{path}-{name}-{version}",
                "bytes": size,
                "recorded_at": NOW,
            }
            for name, version, path, size in packages
        ]
        tables.append("packages", rows)
    return tables


def test_packages_are_added_removed_upgraded_downgraded_and_rebuilt(tables: Tables) -> None:
    found = diff("ami-0", "ami-1", tables=tables)
    rows = found.frame[["change", "name", "before", "after", "bytes"]].itertuples(index=False, name=None)
    assert list(rows) == [
        ("upgraded", "openssl", "3.0.9", "1.1.1w, 3.0.15", 90),
        ("downgraded", "curl", "8.9.0", "8.7.1", -10),
        ("added", "nginx", "", "1.27", 300),
        ("removed", "perl", "5.40", "", -1000),
        ("rebuilt", "etc", "", "", 1),
        ("rebuilt", "bash", "5.2", "5.2", 0),
    ]
    assert list(found.frame.columns) == list(COLUMNS)
    assert found.bytes == sum(size for *_, size in NEW) - sum(size for *_, size in OLD)


def test_swapping_the_amis_reverses_the_changes(tables: Tables) -> None:
    there, back = diff("ami-0", "ami-1", tables=tables), diff("web-1", "o" * 64, tables=tables)
    assert there.bytes == -back.bytes
    assert there.count("added") == back.count("removed") == 1
    assert there.count("upgraded") == back.count("downgraded") == 1


def test_an_ami_does_not_differ_from_itself(tables: Tables) -> None:
    assert len(diff("ami-0", "ami-0", tables=tables).frame) == 0


def test_an_unknown_ami_is_refused_with_the_nearest(tables: Tables) -> None:
    with pytest.raises(ParameterError, match="Did you mean 'web-1'"):
        diff("ami-0", "wbe-1", tables=tables)


def test_an_ami_without_packages_is_refused_with_a_fix(tables: Tables) -> None:
    with pytest.raises(ParameterError, match="The packages of ami-2 are not recorded"):
        diff("ami-0", "ami-2", tables=tables)


def test_the_command_shows_a_table_or_json(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VMSNIX_HISTORY", tables.location)
    assert main(["diff", "ami-0", "ami-1"]) == 0
    out = capsys.readouterr().out
    assert "openssl" in out
    assert "bash" not in out
    assert "1 upgraded, 1 downgraded, 1 added, 1 removed, 2 rebuilt; -619 B" in out
    assert main(["diff", "ami-0", "ami-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["bytes"], found["packages"][0]["name"]) == (-619, "openssl")
    assert main(["diff", "ami-0", "ami-9"]) == 2
