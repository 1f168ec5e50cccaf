"""rclone copies, compares, lists and deletes files on the sandbox's S3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from tests.foreign.conftest import REGION, Program, environment
from tests.support import require

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

LIST = ("lsf", "--recursive", "--files-only", "--format", "psh")


@pytest.fixture
def rclone(aws: Sandbox, tmp_path: Path) -> Program:
    # Provider AWS would use the host names of buckets, which 127.0.0.1 does not have.
    options = {
        "CONFIG": str(tmp_path / "rclone.conf"),
        "S3_ENDPOINT": aws.url,
        "S3_PROVIDER": "Other",
        "S3_ACCESS_KEY_ID": aws.access_key,
        "S3_SECRET_ACCESS_KEY": aws.secret_key,
        "S3_REGION": REGION,
        "S3_CHUNK_SIZE": "5M",
        "S3_UPLOAD_CUTOFF": "5M",
        "S3_COPY_CUTOFF": "5M",
        "RETRIES": "1",
    }
    settings = {f"RCLONE_{name}": value for name, value in options.items()}
    return Program(Path(require("rclone")), {**environment(aws, tmp_path), **settings}, tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with names that need escapes, an empty file, and a file of three parts."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a b.txt").write_text("one")
    (tree / "empty").touch()
    (tree / "large").write_bytes(os.urandom(12 * 2**20))
    (tree / "sub" / "ü+c%41.txt").write_text("two")
    return tree


def test_rclone_copies_syncs_and_deletes(rclone: Program, aws: Sandbox, tree: Path) -> None:
    def operations() -> set[str]:
        return {call.operation for call in aws.calls if call.service == "s3"}

    remote = ":s3:from-rclone"
    rclone.run("mkdir", remote)
    rclone.run("copy", str(tree), f"{remote}/tree")
    assert "UploadPart" in operations()
    rclone.run("check", "--download", str(tree), f"{remote}/tree")
    rclone.run("check", str(tree), f"{remote}/tree")
    listed = rclone.run(*LIST, f"{remote}/tree")
    assert listed == rclone.run(*LIST, str(tree))  # names, sizes and MD5

    rclone.run("copyto", f"{remote}/tree/large", f"{remote}/copy")
    assert "UploadPartCopy" in operations()
    (tree / "a b.txt").unlink()
    (tree / "new").write_text("new")
    rclone.run("sync", str(tree), f"{remote}/tree")
    assert rclone.run(*LIST, f"{remote}/tree") == rclone.run(*LIST, str(tree))
    url = rclone.run("link", "--expire", "1h", f"{remote}/tree/new").strip()
    with urlopen(url, timeout=60) as answer:
        assert answer.read() == b"new"

    rclone.run("move", f"{remote}/copy", str(tree / "back"))
    assert (tree / "back" / "copy").read_bytes() == (tree / "large").read_bytes()
    rclone.run("delete", f"{remote}/tree")
    assert rclone.run(*LIST, remote) == ""
    rclone.run("purge", remote)
    assert rclone.run("lsd", ":s3:").split()[-1] == "acme-images"
    assert {call.outcome for call in aws.calls if call.status >= 400} == {"NoSuchKey"}


def test_rclone_may_sign_with_version_2(rclone: Program, tree: Path) -> None:
    remote = ":s3:acme-images/tree"
    for command in (["copy"], ["check", "--download"]):
        rclone.run(*command, "--s3-v2-auth", str(tree), remote)
