"""The state file is data: reading it runs no code, and an invalid file is refused and not changed."""

from __future__ import annotations

import ast
import base64
import json
import os
import pickle
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.sandbox.ec2.resources import DirectUpload, EmulatedSnapshot
from vmsnix_ops.sandbox.faults import Fault
from vmsnix_ops.sandbox.state import dump_tables, load_tables

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(__file__).parents[2] / "vmsnix_ops"
ONCE = Config(retries={"total_max_attempts": 1})
RUN_CODE = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
}
RUN_CODE_CALLS = {"read_pickle", "to_pickle", "allow_pickle", "UnsafeLoader", "unsafe_load"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_reads_files_that_can_run_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0], *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            names = [str(node.args[0].value)] if ast.unparse(node.func).endswith("import_module") else []
        assert not (RUN_CODE | RUN_CODE_CALLS).intersection(names), f"line {getattr(node, 'lineno', '?')}"


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["tables.pickle", "tables.json"])
def test_a_pickle_in_the_state_folder_is_not_run(name: str, tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "state"
    folder.mkdir()
    content = pickle.dumps(_Evil(mark))
    (folder / name).write_bytes(content)
    with pytest.raises(OSError, match="not a state file of this version of the sandbox"):
        sandbox(state=folder)
    assert not mark.exists()
    assert (folder / name).read_bytes() == content


def kept_by_a_sandbox(folder: Path) -> bytes:
    with sandbox(state=folder, speed=1000) as aws:
        aws.prepare(bucket="images")
        aws.client("s3").put_object(Bucket="images", Key="k", Body=b"kept")
        aws.client("ssm").put_parameter(Name="/pointer", Value="v", Type="String")
    return (folder / "tables.json").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_an_incomplete_state_file_is_refused_and_not_changed(keep: int, tmp_path: Path) -> None:
    torn = kept_by_a_sandbox(tmp_path)[:keep]
    (tmp_path / "tables.json").write_bytes(torn)
    for _ in range(2):  # the failed start does not keep the folder locked
        with pytest.raises(
            OSError, match=r"tables\.json is not a state file of this version .* Choose another folder"
        ):
            sandbox(state=tmp_path)
    assert (tmp_path / "tables.json").read_bytes() == torn


def with_value(value: object) -> Callable[[Any], Any]:
    """Return a change that makes one value the only content of a state."""
    return lambda state: state | {"tables": [["", "", "k", {"x": value}]]}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"version": 1},
        lambda state: state | {"version": None},
        lambda state: {},
        lambda state: [state],
        lambda state: state | {"tables": 5},
        lambda state: state | {"tables": [["a", "b", "c"]]},
        with_value({"$type": ["os.system", {}]}),
        with_value({"$type": ["storage.BlockStore", {}]}),
        with_value({"$type": ["state.os.system", {}]}),
        with_value({"$type": ["ec2.resources.Image", {}]}),
        with_value({"$type": ["ec2.resources.SnapshotLock", {"a": 1}]}),
        with_value({"$run": "it"}),
        with_value({"$blocks": "AAAA"}),
        with_value({"$bytes": "%"}),
    ],
)
def test_another_state_file_is_refused_and_not_changed(change: Any, tmp_path: Path) -> None:
    foreign = json.dumps(change(json.loads(kept_by_a_sandbox(tmp_path)))).encode()
    (tmp_path / "tables.json").write_bytes(foreign)
    with pytest.raises(OSError, match=r"tables\.json is not a state file of this version of the sandbox: "):
        sandbox(state=tmp_path)
    assert (tmp_path / "tables.json").read_bytes() == foreign


def test_a_state_cannot_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not an object")
    folder = tmp_path / "state"
    state = json.loads(kept_by_a_sandbox(folder))
    text = json.dumps(state)
    (file,) = {path.name for path in (folder / "objects").rglob("*") if path.is_file()}
    (folder / "tables.json").write_text(text.replace(file, "../outside"))
    with sandbox(state=folder) as aws, pytest.raises(ClientError, match="InternalError"):
        aws.client("s3", config=ONCE).get_object(Bucket="images", Key="k")
    assert outside.read_text() == "not an object"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
    | st.timedeltas(timedelta(-1000), timedelta(1000)),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text(), st.text()), inner)
        | st.sets(st.text())
        | st.frozensets(st.integers())
        | st.builds(
            EmulatedSnapshot,
            st.text(),
            st.text(),
            st.text(),
            st.integers(),
            st.just(datetime(2026, 1, 1, tzinfo=UTC)),
            tags=st.dictionaries(st.text(), st.text()),
            blocks=st.dictionaries(st.integers(0, 2**40), st.binary(min_size=32, max_size=32)),
            upload=st.none()
            | st.builds(
                DirectUpload,
                st.none(),
                st.integers(),
                st.just(datetime(2026, 1, 1, tzinfo=UTC)),
                st.just({}),
                st.just(3),
            ),
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_every_value_is_read_as_it_was_written(value: Any) -> None:
    tables = {("012345678901", "us-east-1", "k"): {"x": value}}
    back = load_tables(dump_tables(tables))
    assert back == tables
    assert dump_tables(back) == dump_tables(tables)  # True is not 1, a tuple is not a list


def test_a_value_that_is_not_data_is_not_written(tmp_path: Path) -> None:
    for value in (object(), lambda: None, Fault, tmp_path, ast.parse("1")):
        with pytest.raises(TypeError, match="a state cannot contain"):
            dump_tables({("", "", "k"): {"x": value}})


def test_a_large_disk_has_a_small_state_file() -> None:
    blocks = {index: index.to_bytes(32, "big") for index in range(0, 200_000, 2)}
    started = datetime(2026, 1, 1, tzinfo=UTC)
    snapshot = EmulatedSnapshot("snap-1", "0", "r", 100, started, blocks=blocks)
    content = dump_tables({("", "", "snapshots"): {"snap-1": snapshot}})
    assert len(content) < 60 * len(blocks)
    assert load_tables(content)["", "", "snapshots"]["snap-1"] == snapshot


def test_only_the_owner_can_read_the_state_file(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    before = os.umask(0o022)
    try:
        kept_by_a_sandbox(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "tables.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "objects").stat().st_mode) == 0o700


def test_the_command_reports_an_unreadable_state_file(tmp_path: Path) -> None:
    (tmp_path / "tables.pickle").write_bytes(base64.b64decode("gASVCwAAAAAAAAA="))
    command = [sys.executable, "-m", "vmsnix_ops", "sandbox", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Choose another folder" in done.stderr
    assert "Traceback" not in done.stderr
