"""Delta tables: rows are checked, stored once, and read unchanged, with several writers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import deltalake
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.records_pages import tables_page
from tests.support import DEADLINE, wait_until
from vmsnix_ops.errors import CommitConflictError, RecordsError, SchemaError
from vmsnix_ops.records import tables as tables_module
from vmsnix_ops.records.frames import to_arrow, to_frame
from vmsnix_ops.records.schemas import SCHEMAS, Schema, schema
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
STEP = {
    "run_id": "r1",
    "step": "upload",
    "status": "created",
    "started_at": NOON,
    "seconds": 2.5,
    "bytes": 2**40,
}
VALUES = {
    "text": st.text(st.characters(exclude_categories=["Cs"])),
    "json": st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
    "time": st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    "count": st.integers(-(2**63), 2**63 - 1),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
}


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "history")


def rows_of(table: Schema) -> st.SearchStrategy[list[dict[str, object]]]:
    columns = {
        column.name: (st.sampled_from(column.values) if column.values else VALUES[column.kind])
        for column in table.columns
    }
    required = {column.name: columns[column.name] for column in table.columns if column.required}
    optional = {name: value | st.none() for name, value in columns.items() if name not in required}
    return st.lists(st.fixed_dictionaries(required, optional=optional), max_size=4)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SCHEMAS)))
def test_every_valid_row_is_read_unchanged(data: st.DataObject, name: str) -> None:
    rows = data.draw(rows_of(schema(name)))
    table = to_arrow(schema(name), rows)
    for row, back in zip(rows, table.to_pylist(), strict=True):
        for column in schema(name).columns:
            given_value = row.get(column.name)
            if column.kind == "json" and given_value is not None:
                import json

                assert json.loads(back[column.name]) == given_value
            else:
                assert back[column.name] == given_value
    # A frame from a table can be appended again unchanged.
    assert to_arrow(schema(name), to_frame(table)).equals(table)


def test_rows_are_read_as_they_were_appended(tables: Tables) -> None:
    tables.append("steps", [STEP, STEP | {"step": "import", "seconds": None, "detail": {"task": "t-1"}}])
    tables.append("steps", pd.DataFrame([STEP | {"step": "register"}]))
    frame = tables.read("steps").set_index("step")
    assert set(frame.index) == {"upload", "import", "register"}
    assert frame.loc["upload", "started_at"] == pd.Timestamp(NOON)
    assert frame.loc["upload", "bytes"] == 2**40
    assert np.isnan(frame.loc["import", "seconds"])
    assert frame.loc["import", "detail"] == '{"task": "t-1"}'


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_a_table_that_does_not_exist_is_an_empty_frame_with_the_documented_dtypes(
    tables: Tables, table: str
) -> None:
    dtypes = {
        "text": "str",
        "json": "str",
        "time": "datetime64[us, UTC]",
        "count": "Int64",
        "number": "float64",
        "flag": "boolean",
    }
    frame = tables.read(table)
    assert frame.empty
    assert list(frame.columns) == list(schema(table).names)
    assert {c.name: str(frame[c.name].dtype) for c in schema(table).columns} == {
        c.name: dtypes[c.kind] for c in schema(table).columns
    }
    assert not Path(tables.location).exists()


def test_a_table_with_rows_has_the_same_dtypes_as_an_empty_one(tables: Tables) -> None:
    empty = tables.read("steps").dtypes
    tables.append("steps", [STEP])
    assert tables.read("steps").dtypes.equals(empty)


def test_columns_and_conditions_are_pushed_down(tables: Tables) -> None:
    tables.append(
        "steps", [STEP | {"run_id": f"r{n}", "seconds": n, "region": None if n else "x"} for n in range(5)]
    )
    frame = tables.read("steps", columns=["run_id"], where=[("seconds", ">=", 2), ("run_id", "!=", "r3")])
    assert list(frame.columns) == ["run_id"]
    assert sorted(frame["run_id"]) == ["r2", "r4"]
    assert len(tables.read("steps", where=[("run_id", "in", ["r0", "r1"])])) == 2
    assert len(tables.read("steps", where=[("run_id", "not in", ["r0", "r1"])])) == 3
    assert len(tables.read("steps", where=[("run_id", "in", [])])) == 0
    assert len(tables.read("steps", where=[("run_id", "not in", [])])) == 5
    assert len(tables.read("steps", where=[("started_at", "<", NOON)])) == 0
    assert len(tables.read("steps", where=[("region", "==", "x")])) == 1


def test_a_misspelt_table_column_or_operator_is_refused(tables: Tables) -> None:
    with pytest.raises(SchemaError, match="Did you mean 'steps'"):
        tables.read("step")
    with pytest.raises(SchemaError, match="Did you mean 'seconds'"):
        tables.read("steps", columns=["secnds"])
    with pytest.raises(SchemaError, match="Did you mean 'seconds'"):
        tables.read("steps", where=[("secnds", ">", 1)])
    with pytest.raises(SchemaError, match="not an operator"):
        tables.read("steps", where=[("seconds", "=>", 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secnds": 1}, "no column 'secnds'. Did you mean 'seconds'"),
        ({"seconds": "2"}, r"'seconds'.*row 1 contains '2' \(str\).*finite number in s"),
        ({"seconds": float("inf")}, "row 1 contains inf"),
        ({"bytes": 1.5}, "whole number in B"),
        ({"bytes": True}, r"row 1 contains True \(bool\)"),
        ({"bytes": 2**63}, "cannot be stored"),
        ({"run_id": None}, "row 1 contains nothing"),
        ({"run_id": Path("/x")}, "PosixPath.*Expected: text"),
        ({"image": "\udcff"}, "'image'.*cannot be stored"),
        ({"status": "creatd"}, "one of created, changed, .*Did you mean 'created'"),
        ({"started_at": NOON.replace(tzinfo=None)}, "which has no time zone"),
        ({"started_at": "2026-11-22T12:00:00Z"}, "Expected: a datetime with a time zone"),
        ({"detail": "{no json"}, "text that is not JSON"),
        ({"detail": {"when": NOON}}, "a value that JSON cannot represent"),
        ({"detail": {"x": float("nan")}}, "a value that JSON cannot represent"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    tables: Tables, change: dict[str, object], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        tables.append("steps", [STEP, STEP | change])
    assert tables.read("steps").empty


def test_a_frame_is_checked_like_rows(tables: Tables) -> None:
    with pytest.raises(SchemaError, match="no time zone"):
        tables.append("steps", pd.DataFrame([STEP | {"started_at": pd.Timestamp("2026-11-22")}]))
    with pytest.raises(SchemaError, match="Did you mean 'seconds'"):
        tables.append("steps", pd.DataFrame([STEP | {"secnds": 1}]))


def test_pandas_missing_values_are_empty(tables: Tables) -> None:
    frame = pd.DataFrame([STEP, STEP | {"bytes": None, "finished_at": pd.NaT, "image": pd.NA}])
    assert frame["bytes"].dtype == "float64"
    tables.append("steps", frame)
    assert tables.read("steps")["bytes"].tolist() == [2**40, pd.NA]


def test_a_time_of_another_zone_is_stored_as_the_same_moment(tables: Tables) -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))
    tables.append("steps", [STEP | {"started_at": local}, STEP | {"started_at": pd.Timestamp(local)}])
    assert set(tables.read("steps")["started_at"]) == {pd.Timestamp(NOON)}


def test_no_rows_write_nothing(tables: Tables) -> None:
    tables.append("steps", [])
    tables.append("steps", tables.read("steps"))
    assert not (Path(tables.location) / "steps").exists()


def test_a_named_append_is_not_repeated(tables: Tables) -> None:
    for _ in range(3):
        tables.append("steps", [STEP], once="r1/upload/1")
    tables.append("steps", [STEP], once="r1/upload/2")
    assert len(tables.read("steps")) == 2
    tables.compact("steps")
    tables.append("steps", [STEP], once="r1/upload/1")
    assert len(tables.read("steps")) == 2


def test_a_commit_with_a_lost_answer_is_not_repeated(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.append("steps", [STEP])
    write = deltalake.write_deltalake
    lost = []

    def write_and_lose_the_answer(*arguments: object, **options: object) -> None:
        write(*arguments, **options)  # type: ignore[arg-type, call-overload]
        if not lost:
            lost.append(True)
            raise deltalake.exceptions.CommitFailedError("version exists")

    monkeypatch.setattr(deltalake, "write_deltalake", write_and_lose_the_answer)
    tables.append("steps", [STEP | {"step": "import"}])
    assert lost
    assert sorted(tables.read("steps")["step"]) == ["import", "upload"]


def test_a_writer_without_success_reports_the_conflict(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_arguments: object, **_options: object) -> None:
        raise deltalake.exceptions.CommitFailedError("version 7 exists")

    monkeypatch.setattr(deltalake, "write_deltalake", lose)
    monkeypatch.setattr(tables_module, "ATTEMPTS", 2)
    with pytest.raises(CommitConflictError, match=r"committed first in all 2 attempts \(version 7 exists\)"):
        tables.append("steps", [STEP])


def test_a_table_gains_the_columns_that_an_older_version_lacks(tables: Tables) -> None:
    place = f"{tables.location}/steps"
    old = to_arrow(schema("steps"), [STEP]).drop_columns(["via", "detail"])
    deltalake.write_deltalake(place, old, mode="append")
    frame = tables.read("steps", where=[("seconds", ">", 1)], endpoint="all")
    assert frame["via"].isna().all()
    tables.append("steps", [STEP | {"via": "direct"}])
    assert sorted(tables.read("steps", endpoint="all")["via"].fillna("")) == ["", "direct"]


@pytest.mark.parametrize("lacks", [[], ["via", "detail"]])
def test_a_table_with_other_descriptions_can_be_appended_to(tables: Tables, lacks: list[str]) -> None:
    old = to_arrow(schema("steps"), [STEP]).drop_columns(lacks)
    fields = [field.with_metadata({"comment": "as it was", "unit": "?"}) for field in old.schema]
    place = f"{tables.location}/steps"
    deltalake.write_deltalake(place, old.cast(pa.schema(fields)), mode="append")
    tables.append("steps", [STEP | {"via": "direct"}])
    assert len(tables.read("steps", endpoint="all")) == 2
    fields = deltalake.DeltaTable(place).schema().fields
    described = {field.name: field.metadata["comment"] for field in fields}
    assert described["step"] == "as it was"
    assert described["via"] == ("as it was" if not lacks else schema("steps").column("via").description)


def test_columns_of_a_newer_version_are_kept_and_hidden(tables: Tables) -> None:
    place = f"{tables.location}/steps"
    new = to_arrow(schema("steps"), [STEP]).append_column("future", pa.array(["x"]))
    deltalake.write_deltalake(place, new, mode="append")
    tables.append("steps", [STEP])
    assert list(tables.read("steps").columns) == list(schema("steps").names)
    assert deltalake.DeltaTable(place).to_pyarrow_table()["future"].null_count == 1


def test_the_table_contains_its_documentation(tables: Tables) -> None:
    tables.append("steps", [STEP])
    delta = deltalake.DeltaTable(f"{tables.location}/steps")
    assert delta.metadata().description == schema("steps").description
    seconds = next(field for field in delta.schema().fields if field.name == "seconds")
    assert seconds.metadata == {"comment": "Duration of the step.", "unit": "s"}


def damage_log(folder: Path) -> None:
    (folder / "_delta_log" / "00000000000000000000.json").write_text("{garbage")


def lose_first_commit(folder: Path) -> None:
    (folder / "_delta_log" / "00000000000000000000.json").unlink()


def lose_every_commit(folder: Path) -> None:
    lose_first_commit(folder)
    (folder / "_delta_log" / "00000000000000000001.json").unlink()
    (folder / "_delta_log" / "README").write_text("something else")


def lose_data(folder: Path) -> None:
    next(folder.glob("*.parquet")).unlink()


def cut_data(folder: Path) -> None:
    path = next(folder.glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])


def be_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "damage", [damage_log, lose_first_commit, lose_every_commit, lose_data, cut_data, be_a_file]
)
def test_the_error_of_a_damaged_table_has_its_location(tables: Tables, damage: object) -> None:
    tables.append("steps", [STEP])
    tables.append("steps", [STEP])
    folder = Path(tables.location) / "steps"
    damage(folder)  # type: ignore[operator]
    with pytest.raises(RecordsError) as caught:
        tables.read("steps")
    assert str(folder) in caught.value.what
    assert "\x1b" not in str(caught.value)
    assert "<unknown>" not in str(caught.value)
    assert tables.read("runs").empty


def test_a_table_without_a_finished_commit_does_not_exist(tables: Tables) -> None:
    log = Path(tables.location) / "steps" / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json#1").write_text("")
    assert tables.read("steps").empty
    tables.append("steps", [STEP])
    assert len(tables.read("steps")) == 1


def test_readers_never_fail_during_the_first_commit(tmp_path: Path) -> None:
    """Earlier, one of two promotions that created a history reported a damaged table."""
    for attempt in range(20):
        tables = Tables(tmp_path / str(attempt))
        written = threading.Event()

        def read(tables: Tables = tables, written: threading.Event = written) -> None:
            wait_until(
                lambda: tables.read("steps", columns=["step"]) is not None and written.is_set(),
                "the first commit",
                pause=0,
            )

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            tables.append("steps", [STEP])
            written.set()
        for reader in readers:
            reader.result(DEADLINE)
        assert len(tables.read("steps")) == 1


def test_an_unwritable_location_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match=r"file/history/steps cannot be written"):
        Tables(tmp_path / "file" / "history").append("steps", [STEP])


def test_compacting_merges_files_and_changes_no_row(tables: Tables) -> None:
    for number in range(12):
        tables.append("steps", [STEP | {"seconds": number}])
    before = sorted(tables.read("steps")["seconds"])
    for files in (12, 1):
        assert len(deltalake.DeltaTable(f"{tables.location}/steps").file_uris()) == files
        tables.compact("steps")
    assert sorted(tables.read("steps")["seconds"]) == before
    tables.compact("runs")
    assert tables.read("runs").empty


def test_a_table_compacts_itself(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "COMPACT_EVERY", 5)
    for _ in range(6):
        tables.append("steps", [STEP])
    assert len(deltalake.DeltaTable(f"{tables.location}/steps").file_uris()) == 1
    assert len(tables.read("steps")) == 6


@pytest.mark.parametrize(
    ("writers", "count"), [(3, 10), pytest.param(16, 200, marks=pytest.mark.long(seconds=300))]
)
def test_simultaneous_writers_lose_and_duplicate_nothing(tables: Tables, writers: int, count: int) -> None:
    program = [sys.executable, str(ROOT / "tests" / "records" / "writer.py"), tables.location]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*program, f"w{number}", str(count)], env=environment) for number in range(writers)
    ]
    assert [process.wait(writers * count) for process in running] == [0] * writers
    frame = tables.read("steps", columns=["run_id", "step"])
    expected = {(f"w{writer}", f"step-{number}") for writer in range(writers) for number in range(count)}
    assert len(frame) == writers * count
    assert set(frame.itertuples(index=False, name=None)) == expected


def test_one_run_is_read_from_a_hundred_thousand_rows(tables: Tables) -> None:
    rows = 100_000
    frame = pd.DataFrame(
        {
            "run_id": [f"r{number // 10}" for number in range(rows)],
            "step": "upload",
            "status": "created",
            "started_at": pd.Timestamp(NOON) + pd.to_timedelta(np.arange(rows), "s"),
        }
    )
    tables.append("steps", frame)
    assert len(tables.read("steps", columns=["step"])) == rows
    assert len(tables.read("steps", where=[("run_id", "==", "r77")])) == 10


def test_the_setting_history_is_the_location_of_the_tables(tmp_path: Path) -> None:
    given_settings = load(
        tmp_path, {"VMSNIX_HISTORY": "s3://acme-records/history/", "VMSNIX_REGION": "eu-west-1"}
    )
    tables = open_tables(given_settings)
    assert (tables.location, tables.remote) == ("s3://acme-records/history", True)


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "tables.md").read_text()
    assert page == tables_page(), "run python -m docs.records_pages"


def test_a_file_instead_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("something else")
    with pytest.raises(RecordsError, match="It is a file"):
        Tables(tmp_path / "history").read("runs")
