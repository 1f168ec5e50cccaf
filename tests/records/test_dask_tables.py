"""The tables as Dask frames: the same rows, the same dtypes and the same figures as in memory."""

from __future__ import annotations

import pickle
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import deltalake
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnix_ops.errors import RecordsError, SchemaError, ToolMissingError
from vmsnix_ops.records import dask_tables, schemas, timings
from vmsnix_ops.records.frames import to_arrow
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

START = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = 4_000  # bytes of a partition: the small tables here have several


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def steps(count: int, *, seed: int = 0, first: int = 0) -> pd.DataFrame:
    """Return random rows of the table, some of them with holes."""
    rng = np.random.default_rng(seed)

    def holes(values: Any) -> Any:
        return np.where(rng.random(count) < 0.1, None, np.asarray(values, dtype=object))

    return pd.DataFrame(
        {
            "run_id": [f"run-{first + number}" for number in range(count)],
            "step": rng.choice(["upload", "import", "register"], count),
            "status": rng.choice(["finished", "failed", "reused"], count, p=[0.8, 0.1, 0.1]),
            "started_at": [START + timedelta(minutes=first + number) for number in range(count)],
            "seconds": rng.gamma(2, 30, count),
            "bytes": holes(rng.integers(0, 2**40, count).tolist()),
            "image": holes(rng.choice(["ecs-node", "gc-fwd"], count)),
            "region": rng.choice(["eu-central-1", "us-east-1"], count),
            "via": holes(rng.choice(["import", "direct"], count)),
        }
    )


def packages(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "digest": rng.choice(["d1", "d2", "d3"], count),
            "name": rng.choice(["openssl", "bash", "linux"], count),
            "version": rng.choice(["1", "2", None], count),
            "store_path": [f"/nix/store/{number}" for number in range(count)],
            "bytes": rng.integers(0, 10**9, count),
            "recorded_at": START,
        }
    )


def inventory(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    return pd.DataFrame(
        {
            "run_id": "scan",
            "scanned_at": START,
            "account": rng.choice(["000000000001", "000000000002"], count),
            "region": rng.choice(["eu-central-1", "us-east-1"], count),
            "kind": rng.choice(["ami", "snapshot"], count),
            "resource_id": [f"id-{number}" for number in range(count)],
            "size_gib": rng.integers(1, 64, count),
            "referenced": rng.choice([True, False, None], count),
        }
    )


def filled(tables: Tables, files: int = 5) -> Tables:
    for number in range(files):
        tables.append("steps", steps(40, seed=number, first=40 * number))
    tables.append("packages", packages(100))
    tables.append("inventory", inventory(100))
    return tables


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return filled(Tables(tmp_path_factory.mktemp("history")))


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Compare frames whose rows have no order."""
    by = list(wanted.columns)[:6]
    pd.testing.assert_frame_equal(
        found.sort_values(by, ignore_index=True), wanted.sort_values(by, ignore_index=True)
    )


@pytest.mark.parametrize("table", ["steps", "packages", "inventory", "runs"])
def test_rows_and_dtypes_are_those_of_a_plain_read(local: Tables, table: str) -> None:
    frame = dask_tables.read(local, table, partition_bytes=SMALL)
    assert list(frame.columns) == list(schemas.schema(table).names)
    assert frame.dtypes.equals(local.read(table).dtypes)
    same(frame.compute(), local.read(table))
    assert frame.npartitions == {"steps": 5}.get(table, frame.npartitions)


def test_on_s3_it_is_the_same_and_no_key_is_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    with sandbox() as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        aws.client("s3").create_bucket(Bucket="acme-records")
        tables = Tables("s3://acme-records/history")
        for number in range(2):
            tables.append("steps", steps(40, seed=number))
        frame = dask_tables.read(tables, "steps", partition_bytes=SMALL)
        assert frame.npartitions == 2
        assert [call for call in aws.calls if call.name == "s3:HeadObject"] == []
        same(frame.compute(), tables.read("steps"))
        sent = pickle.dumps(frame)
        assert b"acme-records" in sent
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert aws.environment[name].encode() not in sent


# Delta's log says what counts


def test_only_files_that_the_log_names_are_read(tmp_path: Path) -> None:
    tables = filled(Tables(tmp_path))
    before = tables.read("steps")
    (stray,) = list(Path(tmp_path, "steps").glob("*.parquet"))[:1]
    shutil.copy(stray, stray.with_name("part-stray.parquet"))
    same(dask_tables.read(tables, "steps").compute(), before)
    tables.compact("steps")  # the old files stay in the folder, beside the new one
    assert len(list(Path(tmp_path, "steps").glob("*.parquet"))) == 7
    frame = dask_tables.read(tables, "steps", partition_bytes=SMALL)
    same(frame.compute(), before)


def test_a_frame_is_the_table_of_its_time(tmp_path: Path) -> None:
    tables = filled(Tables(tmp_path))
    before, frame = tables.read("steps"), dask_tables.read(tables, "steps")
    tables.append("steps", steps(10, first=1000))
    same(frame.compute(), before)


def test_columns_that_older_files_lack_are_empty_and_newer_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tables = schemas.STEPS, Tables(tmp_path)
    older = tuple(column for column in now.columns if column.name not in ("via", "bytes"))
    newer = (*now.columns, schemas.Column("mood", "text", "How it felt."))
    for columns, more in ((older, {}), (now.columns, {}), (newer, {"mood": "fine"})):
        monkeypatch.setitem(schemas.SCHEMAS, "steps", schemas.Schema("steps", "", columns))
        names = [column.name for column in columns]
        rows = steps(10).assign(**more)
        tables.append("steps", rows[[name for name in rows if name in names]])
    monkeypatch.setitem(schemas.SCHEMAS, "steps", now)
    found = dask_tables.read(tables, "steps", partition_bytes=SMALL).compute()
    assert list(found.columns) == list(now.names)
    assert found["via"].isna().sum() >= 10
    same(found, tables.read("steps"))


def test_a_table_that_is_damaged_says_where(tmp_path: Path) -> None:
    tables = filled(Tables(tmp_path))
    (tmp_path / "steps" / "_delta_log" / "00000000000000000000.json").write_text("{")
    with pytest.raises(RecordsError, match="cannot be read"):
        dask_tables.read(tables, "steps")


# What is read


def test_only_used_columns_are_read(local: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    original = dask_tables._Reader.__call__

    def spy(self: Any, pieces: Any, columns: Any = None) -> Any:
        asked.append(list(columns))
        return original(self, pieces, columns)

    monkeypatch.setattr(dask_tables._Reader, "__call__", spy)
    frame = dask_tables.read(local, "steps", partition_bytes=SMALL)
    assert frame["seconds"].sum().compute() == pytest.approx(local.read("steps")["seconds"].sum())
    assert {tuple(columns) for columns in asked} == {("seconds",)}


def test_files_without_a_matching_row_are_not_read(local: Tables) -> None:
    where = [("started_at", ">=", START + timedelta(minutes=170)), ("status", "==", "finished")]
    frame = dask_tables.read(local, "steps", where=where, partition_bytes=SMALL)
    assert frame.npartitions == 1
    same(frame.compute(), local.read("steps", where=where))
    nothing = dask_tables.read(local, "steps", where=[("started_at", ">", START + timedelta(days=999))])
    assert nothing.npartitions == 1
    assert nothing.compute().empty


def test_conditions_and_columns_are_those_of_a_plain_read(local: Tables) -> None:
    where = [("region", "in", ["us-east-1"]), ("seconds", "<", 40.0)]
    found = dask_tables.read(local, "steps", columns=["step", "seconds"], where=where).compute()
    same(found, local.read("steps", columns=["step", "seconds"], where=where))
    with pytest.raises(SchemaError, match="Did you mean 'region'"):
        dask_tables.read(local, "steps", where=[("regoin", "==", "x")])


def test_large_files_are_read_by_row_groups(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    deltalake.write_deltalake(
        str(tmp_path / "steps"),
        to_arrow(schemas.STEPS, steps(3000).sort_values("started_at")),
        writer_properties=deltalake.WriterProperties(max_row_group_size=500, write_batch_size=500),
    )
    frame = dask_tables.read(tables, "steps", partition_bytes=30_000)
    assert frame.npartitions > 2
    same(frame.compute(), tables.read("steps"))
    late = [("started_at", ">=", START + timedelta(minutes=2900))]
    assert dask_tables.read(tables, "steps", where=late, partition_bytes=30_000).npartitions == 1


# What is computed


def test_the_summary_of_steps_is_figure_by_figure_that_of_pandas(local: Tables) -> None:
    frame = dask_tables.read(local, "steps", partition_bytes=SMALL)
    pd.testing.assert_frame_equal(dask_tables.summary(frame), timings.summary(local.read("steps")))


def test_percentiles_of_packages_and_sums_of_the_inventory_are_those_of_pandas(local: Tables) -> None:
    def spread(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.groupby("name")["bytes"].quantile([0.5, 0.9, 0.99]).unstack().reset_index()

    found = dask_tables.by_group(dask_tables.read(local, "packages")[["name", "bytes"]], ["name"], spread)
    same(found, spread(local.read("packages")))

    keys = ["account", "region", "kind"]
    sums = dask_tables.read(local, "inventory").groupby(keys)["size_gib"].agg(["count", "sum", "max"])
    wanted = local.read("inventory").groupby(keys)["size_gib"].agg(["count", "sum", "max"])
    pd.testing.assert_frame_equal(sums.compute().sort_index(), wanted.sort_index(), check_dtype=False)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["upload", "import"]),
            st.sampled_from([None, "direct"]),
            st.sampled_from(["finished", "finished", "failed", "reused"]),
            st.floats(0, 1e6, allow_nan=False),
            st.none() | st.integers(0, 2**50),
        ),
        min_size=1,
        max_size=60,
    ),
    parts=st.integers(1, 5),
)
def test_any_steps_in_any_parts_have_the_same_summary(rows: list[tuple[Any, ...]], parts: int) -> None:
    import dask.dataframe as dd

    whole = Tables("/nowhere").read("steps")
    made = pd.DataFrame(rows, columns=["step", "via", "status", "seconds", "bytes"])
    made["started_at"] = [START + timedelta(seconds=number) for number in range(len(rows))]
    made = made.reindex(columns=whole.columns).astype(whole.dtypes)
    with dask.config.set({"dataframe.convert-string": False}):
        found = dask_tables.summary(dd.from_pandas(made, npartitions=parts, sort=False))
    pd.testing.assert_frame_equal(found, timings.summary(made))


def test_without_dask_the_cure_is_one_line(local: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    with pytest.raises(ToolMissingError, match=r"pip install vmsnix-ops\[fleet\]"):
        dask_tables.read(local, "steps")
