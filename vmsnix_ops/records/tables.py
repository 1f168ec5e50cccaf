"""The Delta tables: append-only, in a local folder or on S3, safe for many writers at once.

Many small appends make many small files, so that reading slows down; every `COMPACT_EVERY` commits the
writer that made the last of them compacts the table, and `Tables.compact` does so at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from vmsnix_ops import credentials as credentials_module
from vmsnix_ops.errors import CommitConflictError, RecordsError, SchemaError
from vmsnix_ops.files import create, make_folder, private_umask
from vmsnix_ops.records import schemas
from vmsnix_ops.records.frames import to_arrow, to_frame
from vmsnix_ops.records.secrets import without_secrets
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as pa_dataset
    import pyarrow.fs as pa_fs
    from deltalake import DeltaTable
    from types_boto3_s3.client import S3Client

    from vmsnix_ops.records.frames import Rows
    from vmsnix_ops.records.schemas import Schema
    from vmsnix_ops.settings import Settings


# How Delta Lake reaches S3: the same environment, profile and endpoint that boto3 would use.

_SIGN_IN = "Sign in (aws sso login), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def storage_options(
    environment: Mapping[str, str] | None = None, *, region: str | None = None
) -> dict[str, str]:
    """Return what ``deltalake`` must be told to work on S3.

    ``deltalake`` has its own S3 client, which does not know everything that boto3 does (SSO,
    ``credential_process``), so botocore finds the credentials wherever the environment does not name them.
    Commits are conditional PUTs (``If-None-Match``), which S3 honours since November 2024: no lock table is
    needed.

    Parameters
    ----------
    environment
        The ``AWS_*`` variables; ``os.environ`` by default.
    region
        Region where the environment names none.

    Raises
    ------
    RecordsError
        When there are no credentials.
    """
    given = os.environ if environment is None else environment
    options = {
        "aws_conditional_put": "etag",
        "AWS_EC2_METADATA_DISABLED": given.get("AWS_EC2_METADATA_DISABLED", "false"),
    }
    endpoint = given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        parts = urlsplit(endpoint)
        # Plain HTTP is for this machine only, unless somebody asks for it by name.
        if parts.scheme == "http" and (parts.hostname in LOOPBACK or given.get("AWS_ALLOW_HTTP") == "true"):
            options["AWS_ALLOW_HTTP"] = "true"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    if given.get("AWS_ACCESS_KEY_ID") and given.get("AWS_SECRET_ACCESS_KEY"):
        options |= {name: given[name] for name in names if given.get(name)}
        found_region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or region
    else:
        credentials, found_region = _from_botocore(given, region)
        options |= credentials
    options["AWS_REGION"] = found_region or "us-east-1"
    return options


def _from_botocore(given: Mapping[str, str], region: str | None) -> tuple[dict[str, str], str | None]:
    import botocore.exceptions
    import botocore.session

    credentials_module.watch_botocore()
    try:
        session = botocore.session.Session(profile=given.get("AWS_PROFILE") or None)
        keys = credentials_module.session_keys(session)
        found_region = given.get("AWS_REGION") or session.get_config_variable("region") or region
    except botocore.exceptions.BotoCoreError as error:
        raise RecordsError(
            "The history on S3 cannot be reached: the AWS configuration has no usable credentials.",
            why=f"{error}.",
            fix=_SIGN_IN,
        ) from error
    if keys is None:
        raise RecordsError(
            "The history on S3 cannot be reached: there are no AWS credentials.",
            why="Found none in the environment, in a profile or in this machine's role.",
            fix=_SIGN_IN,
        )
    access_key, secret_key, token = keys
    options = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    if token:
        options["AWS_SESSION_TOKEN"] = token
    return options, found_region


Result = TypeVar("Result")
Where = Sequence[tuple[str, str, object]]

ATTEMPTS = 12
"""How often an append starts over; deltalake itself tries a commit 15 times within each."""

COMPACT_EVERY = 200
"""Commits after which a table is compacted."""

KEEP_HOURS = 7 * 24
"""Files that no version uses any more are kept so long: a reader or a slow writer may still be at them."""

CHECKPOINT_SECONDS = 60
"""Age from which a checkpoint that newer ones replace is deleted."""

ONCE_DAYS = 30
"""How long the table remembers the names of appends made with `once`."""

CONFIGURATION = {
    "delta.setTransactionRetentionDuration": f"interval {ONCE_DAYS} days",
    # Opening a table reads every commit since the last checkpoint; at 10 an append costs 2.4 times less
    # than at 100.
    "delta.checkpointInterval": "10",
    "delta.logRetentionDuration": f"interval {KEEP_HOURS} hours",
    "delta.deletedFileRetentionDuration": f"interval {KEEP_HOURS} hours",
}


_CHECKPOINT = re.compile(r"\d{20}\.checkpoint(\.\d+\.\d+)?\.parquet")


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting did to one table.

    Attributes
    ----------
    table
        Name of the table.
    files_before, files_after
        How many data files the current version had and has.
    deleted
        How many files were deleted that nothing needed any more.
    """

    table: str
    files_before: int
    files_after: int
    deleted: int


class Tables:
    """The tables below one location.

    Parameters
    ----------
    location
        A local folder, made when first written to, or ``s3://bucket/prefix``.
    storage_options
        The ``AWS_*`` variables for S3; ``os.environ`` by default, looked at anew for every call so that
        credentials may be renewed.

    Examples
    --------
    >>> import tempfile
    >>> tables = Tables(tempfile.mkdtemp())
    >>> len(tables.read("runs"))
    0
    """

    def __init__(
        self,
        location: str | Path,
        *,
        storage_options: Mapping[str, str] | None = None,
        region: str | None = None,
    ) -> None:
        self.remote = isinstance(location, str) and location.startswith("s3://")
        self.location = str(location).rstrip("/") if self.remote else str(Path(location).absolute())
        self._environment = storage_options
        self.region = region

    def __repr__(self) -> str:
        return f"Tables({self.location!r})"

    def append(self, table: str, rows: Rows, *, once: str | None = None, clean: bool = False) -> None:
        """Add rows to a table; all of them or none.

        Parameters
        ----------
        table
            Name of the table.
        rows
            Mappings of column names to values, or a frame. Checked against the schema before anything is
            written.
        once
            A name for this append, such as ``"<run>/upload/1"``. An append whose name the table already has
            does nothing, so that work which was killed after writing may write again. Remembered for 30
            days.
        clean
            Whether the rows fit the schema and contain no secret: they are not searched once more.

        Raises
        ------
        SchemaError
            When a row does not fit the schema.
        CommitConflictError
            When other writers kept winning.
        RecordsError
            When the table cannot be written, or is damaged.
        """
        schema = schemas.schema(table)
        data = to_arrow(schema, rows)
        data = data if clean else without_secrets(data)
        if data.num_rows == 0:
            return
        # A lost answer makes a commit that happened look like a conflict with somebody else. The name tells.
        name = once or uuid.uuid4().hex

        def work(_table: str, attempt: int) -> int | None:
            with self._turn(table):
                return self._append(schema, data, name, look_first=once is not None or attempt > 0)

        version = self._with_retries(table, work)
        if version and version % COMPACT_EVERY == 0:
            self._with_retries(table, self._compact)

    def read(
        self, table: str, *, columns: Sequence[str] | None = None, where: Where | None = None
    ) -> pd.DataFrame:
        """Return a table as a frame, in no particular order.

        Only the columns asked for, and of the files and row groups only those that can hold a matching row,
        are read.

        Parameters
        ----------
        table
            Name of the table.
        columns
            The columns wanted; all by default.
        where
            Conditions that must all hold: ``[("region", "==", "eu-central-1"), ("seconds", ">", 60)]``. The
            operators are ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in`` and ``not in``.

        Returns
        -------
        DataFrame
            With the dtypes of `vmsnix_ops.records.schemas`. Empty when the table does not exist yet.

        Raises
        ------
        SchemaError
            For an unknown table, column or operator.
        RecordsError
            When the table is damaged or cannot be read.
        """
        import pyarrow as pa

        schema = schemas.schema(table)
        wanted = list(schema.names if columns is None else columns)
        arrow = schema.arrow()
        kept = pa.schema([arrow.field(schema.column(name).name) for name in wanted])
        condition = expression(schema, where or ())
        with self.reading(table) as found:
            if found is None:
                return to_frame(kept.empty_table())
            _, dataset = found
            return to_frame(dataset.to_table(columns=wanted, filter=condition))

    def write_object(self, name: str, content: bytes) -> None:
        """Write a file beside the tables, whole or not at all; on S3 with one request.

        Parameters
        ----------
        name
            Relative to the tables, such as ``"manifests/snap-0123456789abcdef0"``.
        content
            Replaces the file.

        Raises
        ------
        RecordsError
            The file cannot be written.
        """
        with self._object_errors(name, "written"):
            if self.remote:
                client, bucket, key = self._object(name)
                client.put_object(Bucket=bucket, Key=key, Body=content)
                return
            path = Path(self.location, name)
            make_folder(path.parent)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                with os.fdopen(create(temporary), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def read_object(self, name: str) -> bytes | None:
        """Return a file beside the tables, read with one request on S3; ``None`` when there is none.

        Raises
        ------
        RecordsError
            The file cannot be read.
        """
        with self._object_errors(name, "read"):
            if self.remote:
                client, bucket, key = self._object(name)
                try:
                    found: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                except client.exceptions.NoSuchKey:
                    return None
                return found
            try:
                return Path(self.location, name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _object(self, name: str) -> tuple[S3Client, str, str]:
        """Return a client, the bucket and the key of a file beside the tables on S3."""
        import boto3
        from botocore.config import Config

        options = self._options() or {}
        endpoint = options.get("AWS_ENDPOINT_URL")
        local = urlsplit(endpoint or "").hostname in LOOPBACK
        client = boto3.client(
            "s3",
            region_name=options["AWS_REGION"],
            endpoint_url=endpoint,
            aws_access_key_id=options["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=options["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=options.get("AWS_SESSION_TOKEN"),
            config=Config(proxies={} if local else None),
        )
        bucket, _, prefix = self.location.removeprefix("s3://").partition("/")
        return client, bucket, f"{prefix}/{name}" if prefix else name

    @contextmanager
    def _object_errors(self, name: str, done: str) -> Iterator[None]:
        """Turn what boto3 and the file system raise into errors that name the file."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, OSError) as error:
            raise RecordsError(
                f"The file {name} beside the tables in {self.location} cannot be {done}.",
                why=f"{_first_line(error)}.",
                fix="Check the location of the tables (the setting history), and that you may read and write "
                "in it.",
            ) from error

    @contextmanager
    def reading(self, table: str) -> Iterator[tuple[DeltaTable, pa_dataset.Dataset] | None]:
        """Yield a table as it is now, and its files as an arrow dataset; ``None`` when there is no table.

        Columns that a file lacks are empty, and those of another version of this package are left out.

        Raises
        ------
        RecordsError
            When the table is damaged or cannot be read, also in the block.
        """
        delta = self._open(table)
        if delta is None:
            yield None
            return
        with self._translated(table, "read"):
            yield delta, delta.to_pyarrow_dataset(schema=schemas.schema(table).arrow())

    def compact(self, table: str | None = None) -> list[Compaction]:
        """Join small files to large ones and delete files that nothing has needed for seven days.

        Safe at any time and any number of times: writers and readers may go on, and no row changes.

        Parameters
        ----------
        table
            Name of the table; all tables by default. Tables that do not exist yet are passed over.
        """
        names = list(schemas.SCHEMAS) if table is None else [schemas.schema(table).name]
        compactions = []
        for name in names:
            compaction = self._with_retries(name, self._compact)
            if compaction is not None:
                compactions.append(compaction)
        return compactions

    @contextmanager
    def replacing(self, table: str) -> Iterator[tuple[pa_fs.FileSystem, bool]]:
        """Yield the files of all tables and whether this one has any, while no writer here may write to it.

        Raises
        ------
        RecordsError
            When the place cannot be read or written, also in the block.
        """
        import pyarrow.fs as pa_fs

        with self._turn(table), self._translated(table, "rebuilt"):
            files = self._files()
            yield files, files.get_file_info(table).type != pa_fs.FileType.NotFound

    def put_in_place(self, files: pa_fs.FileSystem, table: str, data: pa.Table, moment: str) -> None:
        """Write a table beside the old one, then swap them; the old one becomes ``TABLE.damaged-MOMENT``."""
        import deltalake
        import pyarrow.fs as pa_fs

        schema, new = schemas.schema(table), f"{table}.new-{moment}"
        with private_umask():
            deltalake.write_deltalake(
                self._place(new),
                data,
                name=schema.name,
                description=schema.description,
                configuration=CONFIGURATION,
                storage_options=self._options(),
            )
        if files.get_file_info(table).type != pa_fs.FileType.NotFound:
            _move(files, table, f"{table}.damaged-{moment}", whole=not self.remote)
        _move(files, new, table, whole=not self.remote)

    def _files(self) -> pa_fs.FileSystem:
        """Return the files below the location."""
        import pyarrow.fs as pa_fs

        if not self.remote:
            make_folder(Path(self.location))
            return pa_fs.SubTreeFileSystem(self.location, pa_fs.LocalFileSystem())
        options = self._options() or {}
        scheme, _, host = options.get("AWS_ENDPOINT_URL", "").rpartition("://")
        return pa_fs.SubTreeFileSystem(
            self.location.removeprefix("s3://"),
            pa_fs.S3FileSystem(
                access_key=options["AWS_ACCESS_KEY_ID"],
                secret_key=options["AWS_SECRET_ACCESS_KEY"],
                session_token=options.get("AWS_SESSION_TOKEN"),
                region=options["AWS_REGION"],
                scheme=scheme or "https",
                endpoint_override=host.rstrip("/") or None,
            ),
        )

    def _append(self, schema: Schema, data: pa.Table, name: str, *, look_first: bool) -> int | None:
        """Append once; return the version that was made, ``None`` when this append had been made before."""
        import deltalake

        delta = self._open(schema.name)
        if delta is not None and look_first and delta.transaction_version(name) is not None:
            return None
        now = int(time.time() * 1000)
        commit = deltalake.CommitProperties(app_transactions=[deltalake.Transaction(name, 1, now)])
        with self._translated(schema.name, "written"), private_umask():
            if delta is None:
                deltalake.write_deltalake(
                    self._place(schema.name),
                    data,
                    mode="append",
                    name=schema.name,
                    description=schema.description,
                    configuration=CONFIGURATION,
                    storage_options=self._options(),
                    commit_properties=commit,
                )
                return 0
            # A table from an older version of this package gains the columns that it lacks. The others keep
            # their descriptions: Delta Lake refuses to merge fields that are described otherwise.
            known = {field.name: field.metadata for field in delta.schema().fields}
            grown = known.keys() != set(schema.names)
            deltalake.write_deltalake(
                delta,
                _described_as(data, known),
                mode="append",
                schema_mode="merge" if grown else None,
                commit_properties=commit,
            )
            version: int = delta.version()
            return version

    def _compact(self, table: str, _attempt: int) -> Compaction | None:
        delta = self._open(table)
        if delta is None:
            return None
        with self._translated(table, "compacted"), private_umask():
            before = len(delta.file_uris())
            delta.optimize.compact()
            delta.create_checkpoint()
            deleted = delta.vacuum(retention_hours=KEEP_HOURS, dry_run=False)
            delta.cleanup_metadata()
            self._delete_old_checkpoints(table)
            return Compaction(table, before, len(delta.file_uris()), len(deleted))

    def _delete_old_checkpoints(self, table: str) -> None:
        """Delete checkpoints that newer ones replace: each is as large as the whole log, and none is read.

        A reader that has just learnt of a checkpoint must still find it, so the newest two and young ones
        are kept.
        """
        import pyarrow.fs as pa_fs

        files = self._files()
        young = datetime.now(UTC) - timedelta(seconds=CHECKPOINT_SECONDS)
        found = files.get_file_info(pa_fs.FileSelector(f"{table}/_delta_log"))
        checkpoints = [one for one in found if _CHECKPOINT.fullmatch(one.base_name)]
        for one in sorted(checkpoints, key=lambda one: one.path)[:-2]:
            if one.mtime < young:
                with suppress(FileNotFoundError):  # another writer was faster
                    files.delete_file(one.path)

    def _with_retries(self, table: str, work: Callable[[str, int], Result]) -> Result:
        """Do `work` until no other writer is in the way; it is told the table and the attempt, from 0."""
        import deltalake.exceptions

        for attempt in range(ATTEMPTS):
            try:
                return work(table, attempt)
            except deltalake.exceptions.CommitFailedError as error:
                if "Unsupported" in str(error):  # a feature of a newer version: no retry helps
                    raise self._unusable(table, "written", error) from error
                conflict = error
                # Random, so that writers which met once do not meet again.
                time.sleep(random.uniform(0, 0.05 * 2 ** min(attempt, 6)))  # noqa: S311
        raise CommitConflictError(
            f"The table {table!r} in {self.location} was not changed.",
            why=f"Other writers committed first in all {ATTEMPTS} attempts ({_first_line(conflict)}).",
            fix="Run it again when fewer runs write at the same time.",
        ) from conflict

    @contextmanager
    def _turn(self, table: str) -> Iterator[None]:
        """Wait for the other writers on this machine, so that a crowd spends no time on lost commits.

        A courtesy: what keeps the table right is Delta's commit. Where a folder cannot be locked, all go on
        at once, as writers on several machines do.
        """
        lock = self._lock_of(table)
        descriptor = -1
        with self._translated(table, "written"):
            make_folder(lock.parent)
            with suppress(PermissionError):  # another user's
                descriptor = create(lock, os.O_RDWR)
        try:
            with suppress(OSError, ValueError):  # a network file system without locks; no lock of ours
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _lock_of(self, table: str) -> Path:
        """Return the lock's file: beside a local table; for one on S3 in this user's cache folder."""
        if not self.remote:
            return Path(f"{self._place(table)}.lock")
        import platformdirs

        name = hashlib.sha256(self._place(table).encode()).hexdigest()[:16]
        return platformdirs.user_cache_path("vmsnix") / "locks" / f"{name}.lock"

    def _open(self, table: str) -> DeltaTable | None:
        """Return the table as it is now, ``None`` when nothing was ever written to it."""
        import deltalake.exceptions

        with self._translated(table, "read"):
            try:
                return self._opened(table)
            except deltalake.exceptions.TableNotFoundError:
                if self.remote:
                    return None
                if Path(self.location).exists() and not Path(self.location).is_dir():
                    raise RecordsError(
                        f"The tables cannot be read from {self.location}.",
                        why="It is a file; the tables need a folder.",
                        fix="Set history in vmsnix.toml to a folder or to s3://bucket/prefix.",
                    ) from None
                if not self._has_log(table):
                    return None
            # Either another writer has just made the first commit, or the table is damaged.
            return self._opened(table)

    def _opened(self, table: str) -> DeltaTable:
        import deltalake

        return deltalake.DeltaTable(self._place(table), storage_options=self._options())

    def _has_log(self, table: str) -> bool:
        """Tell whether anything was ever committed to a local table, or is left of its log.

        A commit is first written beside its place, as ``00000000000000000000.json#1``; one that is still
        there, or whose writer died, is none.
        """
        log = Path(self._place(table)) / "_delta_log"
        return log.is_dir() and not all(re.search(r"#\d+$", entry.name) for entry in log.iterdir())

    def _place(self, table: str) -> str:
        return f"{self.location}/{table}"

    def _options(self) -> dict[str, str] | None:
        return storage_options(self._environment, region=self.region) if self.remote else None

    @contextmanager
    def _translated(self, table: str, done: str) -> Iterator[None]:
        """Turn what deltalake and pyarrow raise into errors that say where; commit conflicts pass."""
        import deltalake.exceptions
        import pyarrow as pa

        try:
            yield
        except deltalake.exceptions.CommitFailedError:
            raise
        except (deltalake.exceptions.DeltaError, pa.ArrowException, OSError) as error:
            raise self._unusable(table, done, error) from error

    def _unusable(self, table: str, done: str, error: Exception) -> RecordsError:
        refusal = _refusal(error) if self.remote else None
        return RecordsError(
            f"The table {table!r} in {self._place(table)} cannot be {done}.",
            why=refusal or f"{_first_line(error)}.",
            fix="Check the bucket's name and region, and that your credentials may read and write in it."
            if refusal
            else "Check that the location can be reached and written to. If the table is damaged, run vmsnix "
            f"history rebuild {table}: it restores the table from its own files, the archive and AWS.",
        )


def _described_as(data: pa.Table, known: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return the data with the descriptions that a table has for its columns."""
    import pyarrow as pa

    fields = [field.with_metadata(known.get(field.name, field.metadata)) for field in data.schema]
    return data.cast(pa.schema(fields, metadata=data.schema.metadata))


def _move(files: pa_fs.FileSystem, source: str, target: str, *, whole: bool) -> None:
    """Move a folder; on S3, which has none, object by object, the log last: without it there is no table."""
    import pyarrow.fs as pa_fs

    if whole:
        files.move(source, target)
        return
    found = files.get_file_info(pa_fs.FileSelector(source, recursive=True))
    names = [info.path for info in found if info.type == pa_fs.FileType.File]
    for name in sorted(names, key=lambda name: "/_delta_log/" in name):
        files.copy_file(name, f"{target}{name.removeprefix(source)}")
    for name in sorted(names, key=lambda name: "/_delta_log/" not in name):
        files.delete_file(name)


def open_tables(settings: Settings) -> Tables:
    """Return the tables at the place that the setting ``history`` names."""
    return Tables(settings.history, region=settings.region)


def expression(schema: Schema, where: Where) -> pa_dataset.Expression | None:
    """Return conditions as arrow's expression; ``None`` when there are none.

    Raises
    ------
    SchemaError
        For an unknown column or operator.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = None
    for name, operator, value in where:
        field = pc.field(schema.column(name).name)
        if operator not in _OPERATORS:
            raise SchemaError(
                f"{operator!r} is not an operator for {name!r}.",
                why=f"The operators are {', '.join(_OPERATORS)}.",
                fix="Correct the operator.",
            )
        if operator in ("in", "not in") and isinstance(value, Iterable):
            # Of an empty list arrow cannot tell which type its values would have.
            value = pa.array(list(value), type=schemas.arrow_type(schema.column(name).kind))
        condition = _OPERATORS[operator](field, value)
        whole = condition if whole is None else whole & condition
    return whole


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda field, value: field == value,
    "!=": lambda field, value: field != value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
    "in": lambda field, value: field.isin(value),
    "not in": lambda field, value: ~field.isin(value),
}


def _refusal(error: Exception) -> str | None:
    """Return what S3 itself said, where the error holds its answer."""
    found = re.search(
        r"<Code>(?P<code>[^<]+)</Code>.*?<Message>(?P<message>[^<]*)</Message>", str(error), re.DOTALL
    )
    return f"S3 answered {found['code']}: {found['message'].rstrip('.')}." if found else None


def _first_line(error: Exception) -> str:
    # deltalake's texts come with terminal colours, and some with a backtrace below.
    text = plain(str(error))
    lines = [line.strip(" ↳") for line in text.split("\n   0:")[0].splitlines()]
    return ": ".join(line for line in lines if line).rstrip(".")
