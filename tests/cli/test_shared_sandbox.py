"""All commands of a user share one sandbox, whose account is kept."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.command_line import run_vmsnix
from tests.support import join, kill, read_line, wait_until
from vmsnix_ops.cli import sandbox, shared_sandbox
from vmsnix_ops.cli.sandbox import run_sandbox
from vmsnix_ops.errors import RunError, UsageError
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.access import Access

__all__ = ["run_vmsnix"]
RunVmsnix = Any


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "state"
    monkeypatch.setenv("VMSNIX_STATE", str(folder))
    yield folder
    wait_until(lambda: not (folder / "sandbox-server" / "address.json").exists())


def pid(state: Path) -> int:
    found: int = json.loads((state / "sandbox-server" / "address.json").read_text())["pid"]
    return found


def buckets(aws: Access) -> list[str]:
    return [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]]


def test_two_commands_that_start_at_the_same_moment_share_one_sandbox(state: Path) -> None:
    both, found = threading.Barrier(2), list[str]()

    def use() -> None:
        with shared_sandbox.shared(state) as aws:
            both.wait(60)
            found.append(aws.url)
            both.wait(60)

    threads = [threading.Thread(target=use, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert len(found) == 2
    assert len(set(found)) == 1


def test_the_account_is_kept_and_its_address_is_private(state: Path) -> None:
    with shared_sandbox.shared(state) as aws:
        address = state / "sandbox-server" / "address.json"
        assert address.stat().st_mode & 0o777 == 0o600
        assert aws.url.startswith("http://127.0.0.1:")
        aws.client("s3").create_bucket(Bucket="kept")
        with shared_sandbox.shared(state) as again:
            assert again.url == aws.url
        assert buckets(aws) == ["kept"]  # the end of one command does not end it for the others
        with pytest.raises(UsageError, match="The sandbox is in use"):
            shared_sandbox.start_anew(state)
    wait_until(lambda: not address.exists())
    with shared_sandbox.shared(state) as aws:
        assert buckets(aws) == ["kept"]
    kept = shared_sandbox.start_anew(state)
    assert kept is not None
    assert (kept / "aws").is_dir()
    with shared_sandbox.shared(state) as aws:
        assert buckets(aws) == []


def test_reset_empties_the_account_and_says_where_the_old_one_is(state: Path, run_vmsnix: RunVmsnix) -> None:
    with run_sandbox() as served:
        served.aws.client("s3").create_bucket(Bucket="kept")
        assert run_vmsnix("sandbox", "--reset")[0] == 2  # it is in use
    wait_until(lambda: not (state / "sandbox-server" / "address.json").exists(), deadline=20)
    code, _, said = run_vmsnix("sandbox", "--reset")
    assert (code, said.startswith("The account is empty now. The old one is kept in ")) == (0, True)
    assert (Path(said.split(" in ")[-1].strip().removesuffix(".")) / "aws").is_dir()
    assert run_vmsnix("sandbox", "--reset")[::2] == (0, "The account is empty.\n")
    with run_sandbox() as served:
        assert "kept" not in buckets(served.aws)


def test_the_seed_fills_the_shared_account_and_its_tables_once(
    state: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_serve_shared", lambda: None)
    with run_sandbox():  # creates a bucket and a role
        code, _, complaint = run_vmsnix("sandbox", "--seed", "demo")
        assert (code, "The sandbox is in use." in complaint) == (2, True)
    assert run_vmsnix("sandbox", "--seed", "demo")[0] == 0
    with run_sandbox() as served:
        assert run_vmsnix("sandbox", "--seed", "demo")[0] == 0
        published = served.aws.client("ec2", "us-east-1").describe_images(Owners=["self"])["Images"]
        (state / "sandbox" / "seeded").unlink()
        code, _, complaint = run_vmsnix("sandbox", "--seed", "demo")
        assert (code, "The sandbox is in use." in complaint) == (2, True)
    recorded = json.loads(run_vmsnix("history", "amis", "--sandbox", "--json")[1])
    assert len({one["ImageId"] for one in published} & {one["ami_id"] for one in recorded}) > 20
    code, _, complaint = run_vmsnix("sandbox", "--seed", "demo")  # as if the AMIs were of the user
    assert (code, "vmsnix sandbox --reset" in complaint) == (2, True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", served.url)
    assert json.loads(run_vmsnix("history", "amis", "--json")[1]) == recorded


def test_a_shell_with_the_exported_lines_has_the_settings_and_records_of_the_account(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMSNIX_BUCKET", "acme-production")
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "999999999999")
    with run_sandbox() as served:
        lines = io.StringIO()
        sandbox.print_exports(served, lines)
    for name, value in re.findall(r"^export (\w+)=(.*)$", lines.getvalue(), re.MULTILINE):
        monkeypatch.setenv(name, value)
    here, with_option = load(), sandbox.load_settings(sandbox=True)
    assert (here.history, here.archive) == (with_option.history, with_option.archive)
    assert (here.bucket, here.allowed_accounts) == (sandbox.BUCKET, (served.aws.account,))
    assert here.state == state  # so that --sandbox in this shell is the same account


def test_the_address_of_a_killed_sandbox_or_of_another_program_is_not_used(state: Path) -> None:
    with shared_sandbox.shared(state) as aws:
        first, url = pid(state), aws.url
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not shared_sandbox._is_served(state))
        address = state / "sandbox-server" / "address.json"
        assert address.exists()
        with shared_sandbox.shared(state) as again:
            assert pid(state) != first
            assert buckets(again) == []
            values = json.loads(address.read_text())
            address.chmod(0o644)
            assert shared_sandbox._read_address(address) is None  # another user may have written it
            address.chmod(0o600)
            for changed in (
                {"url": "http://10.0.0.1:80"},
                {"url": "http://127.0.0.1:80/x"},
                {"account": None},
            ):
                (state / "other.json").write_text(json.dumps(values | changed))
                (state / "other.json").chmod(0o600)
                if "url" in changed:
                    assert shared_sandbox._read_address(state / "other.json") is None
            (state / "link.json").symlink_to(address)
            assert shared_sandbox._read_address(state / "link.json") is None
        assert url


def test_a_sandbox_that_cannot_start_reports_the_reason(state: Path) -> None:
    folder = state / "sandbox" / "aws"
    folder.mkdir(parents=True)
    (folder / "tables.json").write_text("damaged")
    words = r"is not a state file of this version.*vmsnix sandbox --reset"
    with pytest.raises(RunError, match=words), shared_sandbox.shared(state):
        pass


def test_a_killed_command_leaves_no_sandbox_running(state: Path) -> None:
    code = "import sys\nfrom vmsnix_ops.cli.sandbox import run_sandbox\n"
    code += "with run_sandbox() as served:\n    print(served.url, flush=True)\n    sys.stdin.read()\n"
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert read_line(command).startswith("http://127.0.0.1:")
        kill(command)
    finally:
        command.communicate(timeout=60)
    wait_until(lambda: not shared_sandbox._is_served(state))


@pytest.mark.long(seconds=25)
def test_runs_and_audits_on_the_sandbox_find_what_the_demo_made(
    state: Path, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with run_sandbox():  # so that it starts once
        code, printed, _ = run_vmsnix("demo", "--json")
        assert code == 0
        made = json.loads(printed)
        listed = json.loads(run_vmsnix("runs", "--sandbox", "--json")[1])
        assert [row["run_id"] for row in listed] == [made["run_id"]]
        audit = json.loads(run_vmsnix("audit", "--regions", made["region"], "--sandbox", "--json")[1])
        assert audit["amis"] == 1
        assert made["ami_id"] in Path(audit["inventory"]).read_text()
    wait_until(lambda: not (state / "sandbox-server" / "address.json").exists(), deadline=20)
    fresh = json.loads(run_vmsnix("demo", "--fresh", "--json")[1])
    listed = json.loads(run_vmsnix("runs", "--sandbox", "--json")[1])
    assert [row["run_id"] for row in listed] == [fresh["run_id"]]
