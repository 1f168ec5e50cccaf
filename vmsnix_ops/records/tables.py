"""The Delta tables: append-only, in a local folder or on S3, for several writers at once.

Many small appends create many small files, which slow down reading. So every `COMPACT_EVERY` commits the
writer compacts the table. `Tables.compact` does the same at any time.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops import credentials as credentials_module
from vmsnix_ops.endpoints import endpoint_kind, is_loopback
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

    from vmsnix_ops.endpoints import EndpointKind
    from vmsnix_ops.records.frames import Rows
    from vmsnix_ops.records.schemas import Schema
    from vmsnix_ops.settings import Settings


# Access to S3, with the same environment, profile and endpoint as boto3.

_SIGN_IN = "Sign in (aws sso login), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."


def storage_options(
    environment: Mapping[str, str] | None = None, *, region: str | None = None
) -> dict[str, str]:
    """Return the options of ``deltalake`` for S3, from ``AWS_*`` variables (by default ``os.environ``).

    The S3 client of ``deltalake`` does not support all sources of credentials (SSO, ``credential_process``),
    so botocore finds those that are not in the environment; without any, this is a `RecordsError`. Commits
    are conditional PUTs (``If-None-Match``), which S3 supports since November 2024, so no lock table is
    needed.
    """
    given = os.environ if environment is None else environment
    options = {
        "aws_conditional_put": "etag",
        "AWS_EC2_METADATA_DISABLED": given.get("AWS_EC2_METADATA_DISABLED", "false"),
    }
    endpoint = given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        # Plain HTTP is allowed only on this machine, or with AWS_ALLOW_HTTP.
        if endpoint.startswith("http:") and (is_loopback(endpoint) or given.get("AWS_ALLOW_HTTP") == "true"):
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
"""Maximum number of attempts of an append; deltalake tries a commit 15 times in each."""

COMPACT_EVERY = 200
"""Commits after which a table is compacted."""

KEEP_HOURS = 7 * 24
"""Hours after which unused files are deleted: a reader or a slow writer may still use them."""

CHECKPOINT_SECONDS = 60
"""Seconds after which a replaced checkpoint is deleted."""

ONCE_DAYS = 30
"""Days for which a table remembers the names of appends."""

CONFIGURATION = {
    "delta.setTransactionRetentionDuration": f"interval {ONCE_DAYS} days",
    # Opening a table reads all commits since the last checkpoint. With 10, an append takes 2.4 times less
    # time than with 100.
    "delta.checkpointInterval": "10",
    "delta.logRetentionDuration": f"interval {KEEP_HOURS} hours",
    "delta.deletedFileRetentionDuration": f"interval {KEEP_HOURS} hours",
}


ENDPOINT, ALL_ENDPOINTS = "endpoint", "all"

_CHECKPOINT = re.compile(r"\d{20}\.checkpoint(\.\d+\.\d+)?\.parquet")


class Tables:
    """The tables below one location: a local folder, created by the first write, or ``s3://bucket/prefix``.

    `storage_options` are the ``AWS_*`` variables for S3, by default ``os.environ``. Every call reads them,
    because credentials may be renewed.

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
        """Append rows to a table, all of them or none. They are checked before anything is written.

        `once` is a name for this append, such as ``"<run>/upload/1"``: an append with a name that the table
        has does nothing, so a killed job can repeat it. The table remembers names for 30 days. Rows that are
        known to contain no secrets are `clean`.

        Raises a `SchemaError` for a row that does not fit the schema, a `CommitConflictError` if other
        writers committed first in all attempts, and a `RecordsError` if the table cannot be written or is
        damaged.
        """
        schema, data = schemas.schema(table), self._checked(table, rows, clean=clean)
        if data.num_rows == 0:
            return
        # After a lost answer, the repeated commit conflicts with the first one. The name identifies it.
        name = once or uuid.uuid4().hex

        def work(_table: str, attempt: int) -> int | None:
            with self._lock(table):
                return self._append(schema, data, name, check_name=once is not None or attempt > 0)

        version = self._with_retries(table, work)
        if version and version % COMPACT_EVERY == 0:
            self.compact(table)

    @property
    def endpoint(self) -> EndpointKind:
        """Where requests are sent: the endpoint of new rows, and by default of those that are read."""
        return endpoint_kind(self._environment)

    def _checked(self, table: str, rows: Rows, *, clean: bool) -> pa.Table:
        """Return rows as an arrow table without secrets; rows without an endpoint get this one."""
        schema = schemas.schema(table)
        data = to_arrow(schema, rows)
        data = data if clean else without_secrets(data)
        if ENDPOINT in schema.names:
            number = data.schema.get_field_index(ENDPOINT)
            filled = data.column(number).fill_null(self.endpoint)
            data = data.set_column(number, data.schema.field(number), filled)
        return data

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        endpoint: str = "",
    ) -> pd.DataFrame:
        """Return a table as a frame, in no particular order; empty if the table does not exist yet.

        Only the requested columns are read, and only the files and row groups that may contain a matching
        row. The conditions of `where` are combined with *and*: ``[("region", "==", "eu-central-1"),
        ("seconds", ">", 60)]``. The operators are ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in`` and
        ``not in``.

        Rows of a sandbox never mix with those of AWS: `endpoint` is ``aws``, ``sandbox``, ``custom`` or
        ``all``, by default that of this process. Rows of older versions have no endpoint, and count as those
        of AWS, or of the sandbox of ``--sandbox``.

        Raises a `SchemaError` for an unknown table, column or operator, and a `RecordsError` if the table is
        damaged or cannot be read.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = schemas.schema(table)
        wanted = list(schema.names if columns is None else columns)
        arrow = schema.arrow()
        kept = pa.schema([arrow.field(schema.column(name).name) for name in wanted])
        condition = expression(schema, where or ())
        kinds = self._kinds(endpoint) if ENDPOINT in schema.names else None
        with self.reading(table) as found:
            if found is None:
                return to_frame(kept.empty_table())
            _, dataset = found
            if kinds is None:
                return to_frame(dataset.to_table(columns=wanted, filter=condition))
            # Not a part of the condition: for files of older versions, deltalake 1.6 reports that a missing
            # column is greater than null, so arrow would skip their rows.
            rows = dataset.to_table(columns=list(dict.fromkeys([*wanted, ENDPOINT])), filter=condition)
            return to_frame(rows.filter(pc.is_in(rows[ENDPOINT], pa.array(kinds))).select(wanted))

    def _kinds(self, endpoint: str) -> list[str | None] | None:
        """Return the values of rows of an endpoint; ``None`` for all rows."""
        kind = endpoint or self.endpoint
        if kind == ALL_ENDPOINTS:
            return None
        environment = os.environ if self._environment is None else self._environment
        # A command with --sandbox has tables of its own.
        of_older = "sandbox" if environment.get("VMSNIX_SANDBOX") else "aws"
        return [kind, None] if kind == of_older else [kind]

    def write_object(self, name: str, content: bytes) -> None:
        """Write a file beside the tables atomically; on S3 with one request.

        `name` is its path relative to the tables, such as ``manifests/snap-0123456789abcdef0``.
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
        """Return a file beside the tables; on S3 with one request. ``None`` if it does not exist."""
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
        local = is_loopback(endpoint or "")
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
        """Turn errors of boto3 and the file system into a `RecordsError` with the name of the file."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, OSError) as error:
            raise RecordsError(
                f"The file {name} beside the tables in {self.location} cannot be {done}.",
                why=f"{_first_line(error)}.",
                fix="Check the setting history, and your permissions to read and write there.",
            ) from error

    @contextmanager
    def reading(self, table: str) -> Iterator[tuple[DeltaTable, pa_dataset.Dataset] | None]:
        """Yield a table and its files as an arrow dataset; ``None`` if there is no table.

        Missing columns are empty; columns that the schema lacks are ignored. Raises a `RecordsError` if the
        table is damaged or cannot be read, also in the block.
        """
        delta = self._open(table)
        if delta is None:
            yield None
            return
        with self._records_errors(table, "read"):
            yield delta, delta.to_pyarrow_dataset(schema=schemas.schema(table).arrow())

    def compact(self, table: str) -> None:
        """Merge small files into large ones, and delete files that were not used for seven days.

        Safe at any time, also beside readers and writers, and safe to repeat. No row changes.
        """
        self._with_retries(schemas.schema(table).name, self._compact)

    @contextmanager
    def locked_files(self, table: str) -> Iterator[tuple[pa_fs.FileSystem, bool]]:
        """Lock a table against writers on this machine; yield the file system, and whether the table exists.

        Raises a `RecordsError` if the location cannot be read or written, also in the block.
        """
        import pyarrow.fs as pa_fs

        with self._lock(table), self._records_errors(table, "rebuilt"):
            files = self._files()
            yield files, files.get_file_info(table).type != pa_fs.FileType.NotFound

    def replace(self, files: pa_fs.FileSystem, table: str, data: pa.Table, moment: str) -> None:
        """Write a new table, and rename the old one to ``TABLE.damaged-MOMENT``."""
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
        """Return the file system of the location."""
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

    def _append(self, schema: Schema, data: pa.Table, name: str, *, check_name: bool) -> int | None:
        """Append once; return the new version, or ``None`` if the table already has this append."""
        import deltalake

        delta = self._open(schema.name)
        if delta is not None and check_name and delta.transaction_version(name) is not None:
            return None
        now = int(time.time() * 1000)
        commit = deltalake.CommitProperties(app_transactions=[deltalake.Transaction(name, 1, now)])
        with self._records_errors(schema.name, "written"), private_umask():
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
            # A table of an older version of this package gets the missing columns. The others keep their
            # descriptions: Delta Lake refuses to merge fields with different descriptions.
            known = {field.name: field.metadata for field in delta.schema().fields}
            deltalake.write_deltalake(
                delta,
                _with_descriptions(data, known),
                mode="append",
                schema_mode="merge" if known.keys() != set(schema.names) else None,
                commit_properties=commit,
            )
            version: int = delta.version()
            return version

    def _compact(self, table: str, _attempt: int) -> None:
        delta = self._open(table)
        if delta is None:
            return
        with self._records_errors(table, "compacted"), private_umask():
            delta.optimize.compact()
            delta.create_checkpoint()
            delta.vacuum(retention_hours=KEEP_HOURS, dry_run=False)
            delta.cleanup_metadata()
            self._delete_old_checkpoints(table)

    def _delete_old_checkpoints(self, table: str) -> None:
        """Delete replaced checkpoints, because each is as large as the whole log.

        The newest two and young ones are kept: a reader may be about to read one.
        """
        import pyarrow.fs as pa_fs

        files = self._files()
        young = datetime.now(UTC) - timedelta(seconds=CHECKPOINT_SECONDS)
        found = files.get_file_info(pa_fs.FileSelector(f"{table}/_delta_log"))
        checkpoints = [one for one in found if _CHECKPOINT.fullmatch(one.base_name)]
        for one in sorted(checkpoints, key=lambda one: one.path)[:-2]:
            if one.mtime < young:
                with suppress(FileNotFoundError):  # another writer deleted it
                    files.delete_file(one.path)

    def _with_retries(self, table: str, work: Callable[[str, int], Result]) -> Result:
        """Call `work` with the table and the attempt (from 0) until no other writer conflicts."""
        import deltalake.exceptions

        for attempt in range(ATTEMPTS):
            try:
                return work(table, attempt)
            except deltalake.exceptions.CommitFailedError as error:
                if "Unsupported" in str(error):  # the table uses a feature of a newer version
                    raise self._error(table, "written", error) from error
                conflict = error
                # Random, so that two writers do not conflict again.
                time.sleep(random.uniform(0, 0.05 * 2 ** min(attempt, 6)))  # noqa: S311
        raise CommitConflictError(
            f"The table {table!r} in {self.location} was not changed.",
            why=f"Other writers committed first in all {ATTEMPTS} attempts ({_first_line(conflict)}).",
            fix="Run it again when fewer runs write at the same time.",
        ) from conflict

    @contextmanager
    def _lock(self, table: str) -> Iterator[None]:
        """Wait for the other writers on this machine, to avoid conflicts of their commits.

        The lock only saves time. Delta's commits keep the table consistent, also without a lock and with
        writers on several machines.
        """
        path = self._lock_path(table)
        descriptor = -1
        with self._records_errors(table, "written"):
            make_folder(path.parent)
            with suppress(PermissionError):  # the lock of another user
                descriptor = create(path, os.O_RDWR)
        try:
            with suppress(OSError, ValueError):  # a file system without locks, or no descriptor
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _lock_path(self, table: str) -> Path:
        """Return the path of the lock: beside a local table, or in the user's cache folder for S3."""
        if not self.remote:
            return Path(f"{self._place(table)}.lock")
        import platformdirs

        name = hashlib.sha256(self._place(table).encode()).hexdigest()[:16]
        return platformdirs.user_cache_path("vmsnix") / "locks" / f"{name}.lock"

    def _open(self, table: str) -> DeltaTable | None:
        """Return the current table; ``None`` if it does not exist."""
        import deltalake.exceptions

        with self._records_errors(table, "read"):
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
            # Another writer has just made the first commit, or the table is damaged.
            return self._opened(table)

    def _opened(self, table: str) -> DeltaTable:
        """Open a table, again if a compaction deleted a checkpoint between listing and reading it."""
        import deltalake
        import deltalake.exceptions

        for pause in (0.05, 0.2):
            try:
                return deltalake.DeltaTable(self._place(table), storage_options=self._options())
            except deltalake.exceptions.TableNotFoundError:
                raise
            except (deltalake.exceptions.DeltaError, OSError):
                time.sleep(pause)
        return deltalake.DeltaTable(self._place(table), storage_options=self._options())

    def _has_log(self, table: str) -> bool:
        """Return whether the log of a local table contains a commit.

        A commit is first written as ``00000000000000000000.json#1``, which does not count.
        """
        log = Path(self._place(table)) / "_delta_log"
        return log.is_dir() and not all(re.search(r"#\d+$", entry.name) for entry in log.iterdir())

    def _place(self, table: str) -> str:
        return f"{self.location}/{table}"

    def _options(self) -> dict[str, str] | None:
        return storage_options(self._environment, region=self.region) if self.remote else None

    @contextmanager
    def _records_errors(self, table: str, done: str) -> Iterator[None]:
        """Turn errors of deltalake and pyarrow, except commit conflicts, into a `RecordsError`."""
        import deltalake.exceptions
        import pyarrow as pa

        try:
            yield
        except deltalake.exceptions.CommitFailedError:
            raise
        except (deltalake.exceptions.DeltaError, pa.ArrowException, OSError) as error:
            raise self._error(table, done, error) from error

    def _error(self, table: str, done: str, error: Exception) -> RecordsError:
        refusal = _refusal(error) if self.remote else None
        return RecordsError(
            f"The table {table!r} in {self._place(table)} cannot be {done}.",
            why=refusal or f"{_first_line(error)}.",
            fix="Check the bucket's name and region, and that your credentials may read and write in it."
            if refusal
            else "Check that the location can be reached and written to. If the table is damaged, run vmsnix "
            f"history rebuild {table}: it restores the table from its own files, the archive and AWS.",
        )


def _with_descriptions(data: pa.Table, known: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return data with the descriptions of an existing table's columns."""
    import pyarrow as pa

    fields = [field.with_metadata(known.get(field.name, field.metadata)) for field in data.schema]
    return data.cast(pa.schema(fields, metadata=data.schema.metadata))


def _move(files: pa_fs.FileSystem, source: str, target: str, *, whole: bool) -> None:
    """Move a folder. On S3 move object by object, the log last: without a log there is no table."""
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
    """Return the tables at the location of the setting ``history``."""
    return Tables(settings.history, region=settings.region)


def expression(schema: Schema, where: Where) -> pa_dataset.Expression | None:
    """Return conditions as an arrow expression; ``None`` without conditions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    combined = None
    for name, operator, value in where:
        field = pc.field(schema.column(name).name)
        if operator not in _OPERATORS:
            raise SchemaError(
                f"{operator!r} is not an operator for {name!r}.",
                why=f"The operators are {', '.join(_OPERATORS)}.",
                fix="Correct the operator.",
            )
        if operator in ("in", "not in") and isinstance(value, Iterable):
            # arrow cannot infer the type of an empty list.
            value = pa.array(list(value), type=schemas.arrow_type(schema.column(name).kind))
        condition = _OPERATORS[operator](field, value)
        combined = condition if combined is None else combined & condition
    return combined


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
    """Return the code and message of S3 in an error, if any."""
    found = re.search(
        r"<Code>(?P<code>[^<]+)</Code>.*?<Message>(?P<message>[^<]*)</Message>", str(error), re.DOTALL
    )
    return f"S3 answered {found['code']}: {found['message'].rstrip('.')}." if found else None


def _first_line(error: Exception) -> str:
    # deltalake's texts have terminal colours, and some have a backtrace.
    text = plain(str(error))
    lines = [line.strip(" ↳") for line in text.split("\n   0:")[0].splitlines()]
    return ": ".join(line for line in lines if line).rstrip(".")
