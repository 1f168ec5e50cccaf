"""Other people's tools on the sandbox's S3: the AWS CLI, Delta Lake, pandas."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.command_line import aws_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sandbox.clients import SandboxClients

__all__ = ["aws_program"]


def environment(aws: SandboxClients) -> dict[str, str]:
    return os.environ | aws.sandbox.environment | {"AWS_PAGER": ""}


def test_the_aws_cli_copies_syncs_and_lists(aws: SandboxClients, aws_program: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [aws_program, *arguments],
            env=environment(aws),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return done.stdout

    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a b.txt").write_text("one")
    (tree / "sub" / "ü+c.txt").write_text("two")
    (tree / "large").write_bytes(b"x" * 9 * 2**20)
    run("s3", "mb", "s3://from-cli")
    run("s3", "sync", str(tree), "s3://from-cli/tree", "--no-progress")
    assert run("s3", "sync", str(tree), "s3://from-cli/tree", "--no-progress") == ""
    listed = [
        line.split(maxsplit=3)[3] for line in run("s3", "ls", "s3://from-cli", "--recursive").splitlines()
    ]
    assert listed == ["tree/a b.txt", "tree/large", "tree/sub/ü+c.txt"]
    run("s3", "mv", "s3://from-cli/tree/large", "s3://from-cli/moved", "--no-progress")
    run("s3", "cp", "s3://from-cli/moved", str(tmp_path / "back"), "--no-progress")
    assert (tmp_path / "back").read_bytes() == (tree / "large").read_bytes()
    run("s3", "rb", "s3://from-cli", "--force")
    assert run("s3", "ls") == ""


def test_delta_lake_keeps_every_commit_of_several_writers(aws: SandboxClients) -> None:
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    aws.bucket("tables")
    options = aws.sandbox.environment | {"AWS_CONDITIONAL_PUT": "etag"}

    def write(number: int) -> None:
        rows = pa.table({"writer": pa.array([number] * 5, pa.int64())})
        write_deltalake("s3://tables/runs", rows, mode="append", storage_options=options)

    write(0)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(1, 7)))
    rows: Any = DeltaTable("s3://tables/runs", storage_options=options).to_pyarrow_table()
    assert sorted(rows["writer"].to_pylist()) == sorted([n for n in range(7) for _ in range(5)])
