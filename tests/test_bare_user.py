"""A user without a name, a home folder, or the right to read others' runs, as in many containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops import cli
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.settings import user_name

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
UNNAMED = ("unshare", "--user", "--map-user=54321", "--map-group=54321")


def as_unnamed(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``vmsnix`` as a user without a name and without HOME."""
    unset = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "VMSNIX_STATE", "XDG_STATE_HOME")
    kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [*UNNAMED, sys.executable, "-m", "vmsnix_ops", *words],
        env={**kept, **variables, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def _can_be_unnamed() -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run([*UNNAMED, "true"], check=False, timeout=120).returncode
    ):
        pytest.skip("this machine allows no user namespaces")


@pytest.mark.usefixtures("_can_be_unnamed")
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="no HOME"),
        pytest.param({"HOME": "/proc"}, id="HOME cannot be written", marks=pytest.mark.long(seconds=10)),
    ],
)
def test_a_user_without_name_and_home_runs_a_runbook(tmp_path: Path, variables: dict[str, str]) -> None:
    done = as_unnamed(tmp_path, "run", "import-timings", **variables)
    assert done.returncode == 0, done.stderr
    assert "No writable home folder" in done.stderr
    listed = as_unnamed(tmp_path, "runs", **variables)
    assert "import-timings" in listed.stdout
    assert "Traceback" not in done.stderr + listed.stderr
    assert not (tmp_path / "~").exists()


def test_a_user_without_a_name_is_recorded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_uid: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert user_name() == f"uid {os.getuid()}"


def test_a_home_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tmp_path / f"vmsnix-home-{os.getuid()}"
    prepared.mkdir(mode=0o777)
    prepared.chmod(0o777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    cli._ensure_home()
    assert os.environ["HOME"] == str(tmp_path / "nowhere")


@pytest.mark.usefixtures("_can_be_unnamed")
def test_a_lock_of_another_user_stops_no_writer(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    row = "{'run_id': 'r', 'step': 'x', 'status': 'created', 'started_at': datetime.now(UTC)}"
    program = f"""
import os, sys
from datetime import UTC, datetime
from vmsnix_ops.records.tables import Tables
Tables({str(tmp_path)!r}).append("steps", [{row}])
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    (tmp_path / "steps.lock").chmod(0)
    if os.access(tmp_path / "steps.lock", os.R_OK):  # root reads all
        without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        subprocess.run([*without, sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    else:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    assert len(tables.read("steps")) == 2
