"""The tables as Dask frames: for years of rows that do not fit into memory, or scans by many workers.

>>> from vmsnix_ops.records import dask_tables
>>> steps = dask_tables.read(tables, "steps", where=[("status", "==", "finished")])  # doctest: +SKIP
>>> steps.groupby("region")["bytes"].sum().compute()  # doctest: +SKIP

What is read is what `Tables.read` reads: the files that Delta's log names in one version, and nothing else
that lies in the folder; columns that older files lack are empty. A partition is some files or row groups;
those that no row of can match are left out before anything is read, and only the columns that are used are
read. Credentials are never part of the graph: each worker finds its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ToolMissingError
from vmsnix_ops.records import schemas
from vmsnix_ops.records.frames import to_frame
from vmsnix_ops.records.tables import expression, storage_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from vmsnix_ops.records.tables import Tables, Where

PARTITION_BYTES = 16 * 2**20
"""Bytes of Parquet in a partition, about; in memory they are several times as many."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Attributes
    ----------
    path
        The file, relative to the table.
    size
        Bytes of the file; who knows it need not ask S3.
    groups
        Its row groups, by number; ``None``: all.
    """

    path: str
    size: int
    groups: tuple[int, ...] | None


def need_dask() -> None:
    """Raise `ToolMissingError` when Dask's frames are not installed."""
    try:
        import dask.dataframe  # noqa: F401 - to see whether it is there
    except ImportError as error:
        raise ToolMissingError(
            "Dask is not installed.",
            why="Tables larger than memory are read through Dask, which is an extra of this package.",
            cure="pip install vmsnix-ops[fleet]",
        ) from error


def read(
    tables: Tables,
    table: str,
    *,
    columns: Sequence[str] | None = None,
    where: Where | None = None,
    partition_bytes: int = PARTITION_BYTES,
) -> Any:
    """Return a table as a Dask frame, as it is now; rows that come later are not in it.

    Parameters
    ----------
    tables
        Where the tables are. Workers on other machines must reach that place, too.
    table
        Name of the table.
    columns, where
        As for `Tables.read`.
    partition_bytes
        Bytes of Parquet in a partition, about.

    Returns
    -------
    dask.dataframe.DataFrame
        With the dtypes of `Tables.read`, in no particular order.

    Raises
    ------
    ToolMissingError
        When Dask is not installed.
    SchemaError
        For an unknown table, column or operator.
    RecordsError
        When the table is damaged or cannot be read.
    """
    need_dask()
    import dask
    import dask.dataframe as dd

    schema = schemas.schema(table)
    names = [schema.column(name).name for name in (schema.names if columns is None else columns)]
    reader = _Reader(tables.location, tables.remote, tables.region, table, tuple(where or ()))
    # Strings stay what Tables.read gives.
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(  # type: ignore[no-untyped-call]
            reader,
            _partitions(tables, table, where or (), partition_bytes) or [()],
            columns=names,
            meta=to_frame(schema.arrow().empty_table()),
            label=f"read-{table}",
        )


def by_group(
    frame: Any, keys: Sequence[str], summarize: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Return what a function says of each group, computed group by group and put together.

    For what cannot be added up from parts, such as percentiles: all rows of a group come together on one
    worker, which calls the same function that would be called with the whole frame in memory. Groups must fit
    into memory, one by one.

    Parameters
    ----------
    frame
        A Dask frame, best with no more columns than `summarize` uses.
    keys
        What tells the groups.
    summarize
        From a frame with all rows of some groups to one with a row or more a group.
    """
    shuffled = frame.shuffle(list(keys), ignore_index=True)
    meta = summarize(frame._meta)
    found: pd.DataFrame = shuffled.map_partitions(summarize, meta=meta, enforce_metadata=False).compute()
    return found.reset_index(drop=True)


def summary(steps: Any) -> pd.DataFrame:
    """Return `vmsnix_ops.records.timings.summary` of a Dask frame of steps, figure by figure the same.

    Parameters
    ----------
    steps
        Of `read`.
    """
    from vmsnix_ops.records import timings

    keys = list(timings.GROUP)
    used = steps[[*keys, "status", "seconds", "bytes", "items", "started_at"]]
    first = used.groupby(keys, dropna=False)["started_at"].min().reset_index()
    figures = by_group(used, keys, timings.summary)
    begun: pd.DataFrame = first.compute().sort_values("started_at", kind="stable", ignore_index=True)
    return begun[keys].merge(figures, on=keys, how="left")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads partitions where it is called; has what any machine needs to find the table, and no secrets."""

    location: str
    remote: bool
    region: str | None
    table: str
    where: tuple[tuple[str, str, object], ...]

    def __call__(self, pieces: Sequence[Piece], columns: Sequence[str] | None = None) -> pd.DataFrame:
        import pyarrow as pa
        import pyarrow.dataset as ds

        schema = schemas.schema(self.table)
        arrow, names = schema.arrow(), list(schema.names if columns is None else columns)
        filesystem = self._filesystem({piece.path: piece.size for piece in pieces})
        parquet, condition = ds.ParquetFileFormat(), expression(schema, self.where)
        parts = [pa.schema([arrow.field(name) for name in names]).empty_table()]
        for piece in pieces:
            fragment = parquet.make_fragment(piece.path, filesystem, row_groups=piece.groups)
            parts.append(fragment.to_table(schema=arrow, columns=names, filter=condition))
        return to_frame(pa.concat_tables(parts))

    def _filesystem(self, sizes: dict[str, int]) -> Any:
        from pyarrow import fs

        place = f"{self.location}/{self.table}"
        if not self.remote:
            return fs.SubTreeFileSystem(place, fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return fs.PyFileSystem(DeltaStorageHandler(place, storage_options(region=self.region), sizes))


def _partitions(tables: Tables, table: str, where: Where, limit: int) -> list[tuple[Piece, ...]]:
    """Return the pieces that may hold a matching row, put together to partitions of about `limit` bytes."""
    condition = expression(schemas.schema(table), where)
    partitions: list[list[Piece]] = []
    room = 0.0
    with tables.reading(table) as found:
        for piece, size in _pieces(*found, condition, limit) if found is not None else ():
            if size > room:
                partitions.append([])
                room = limit
            partitions[-1].append(piece)
            room -= size
    return [tuple(partition) for partition in partitions]


def _pieces(delta: Any, dataset: Any, condition: Any, limit: int) -> Iterator[tuple[Piece, float]]:
    """Yield pieces with their sizes: small files whole, large ones by row groups."""
    import pyarrow as pa

    files = pa.table(delta.get_add_actions(flatten=True))
    sizes = dict(zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True))
    for fragment in dataset.get_fragments(filter=condition):
        size = sizes[fragment.path]
        if size <= limit:
            yield Piece(fragment.path, size, None), size
            continue
        whole = fragment.metadata.num_row_groups
        for part in fragment.split_by_row_group(filter=condition, schema=dataset.schema):
            yield Piece(fragment.path, size, tuple(group.id for group in part.row_groups)), size / whole
