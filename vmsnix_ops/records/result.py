"""``result.json``: the result of a run, for programs.

Every documented key is always present, and ``null`` if it does not apply. A runbook may add keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vmsnix_ops import files, outcomes
from vmsnix_ops.display import Displayed, make_table
from vmsnix_ops.endpoints import endpoint_kind, sandbox_url
from vmsnix_ops.errors import RecordsError, SchemaError, UnsavedError, VmsnixError
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.text import json_text

if TYPE_CHECKING:
    from vmsnix_ops.display import DisplayTable
    from vmsnix_ops.records.run_context import RunContext

FILE_NAME = "result.json"

KEYS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "run_id": (str, "Run ID."),
    "runbook": (str, "Name of the runbook."),
    "status": (str, "done, failed, cancelled, partial (work or evidence is missing); running until the end."),
    "interactive": (bool, "Whether a program other than vmsnix executed the cells, such as JupyterLab."),
    "exit_code": (int, "0 done, 1 failed, 2 usage error, 3 partial."),
    "ami_id": (str, "AMI that was published or found."),
    "snapshot_id": (str, "Snapshot of its root device."),
    "image_name": (str, "Name of the AMI."),
    "image": (str, "Short name of the image."),
    "region": (str, "AWS region."),
    "account": (str, "AWS account ID, 12 digits."),
    "digest": (str, "Identity of the disk, in hexadecimal."),
    "parameters": (dict, "Every parameter with its value."),
    "modified": (
        bool,
        "Whether the cells of the notebook differed from those of the package; null for your own runbooks.",
    ),
    "dry_run": (bool, "Whether the run only planned and changed nothing."),
    "plan_fingerprint": (
        str,
        "Fingerprint of the plan, which `expect_plan` takes; null for a runbook without a plan, and for a "
        "plan that is not complete or changes nothing.",
    ),
    "side_effects": (str, "Effect that the runbook declares: read_only, creates, changes or deletes."),
    "endpoint": (str, "Where the requests were sent: aws, sandbox or custom."),
    "sandbox": (str, "Address of the sandbox; null for a run in AWS."),
    "started_at": (str, "Start of the run, ISO 8601, UTC."),
    "finished_at": (str, "End of the run, ISO 8601, UTC."),
    "seconds": ((int, float), "Duration of the run."),
    "attempt": (int, "Number of the attempt: 1, and one more each time the run was resumed."),
    "steps": (list, "One object per step: step, status, seconds, bytes."),
    "slow": (
        list,
        "Steps that were slower than usual: objects with step, seconds, usual_seconds, limit_seconds, "
        "earlier (number of earlier steps compared) and text (the same as a sentence). Empty if none was "
        "slow; null if the history was not or could not be read.",
    ),
    "tables": (
        list,
        "Tables of the CI job summary: objects with title, columns, rows. Those of `history.keep` also have "
        "name and file, the CSV file with all rows.",
    ),
    "error": (str, "Error that ended the run, as text."),
    "failure": (dict, "The same error as an object: type, what, why, fix, exit_code, cell, detail."),
    "problems": (list, "Problems after the last cell, such as a history that could not be written."),
    "notebook": (str, "Location of the executed notebook: a path or an s3:// URL."),
    "report": (str, "Location of the HTML report."),
    "log": (str, "Location of the log."),
    "result": (str, "Location of this file."),
    "files": (dict, "Files of the run by name: place, sha256, bytes."),
    "journal_entries": (int, "Number of entries of journal `evidence.jsonl`."),
    "journal_sha256": (str, "SHA-256 of its last entry, in hexadecimal."),
    "secrets_removed": (dict, "Number of secrets removed from the evidence, by kind."),
    "user": (str, "Operating system user that ran it."),
    "host": (str, "Host name of the machine that ran it."),
    "cwd": (str, "Working directory; relative paths in the parameters start there."),
    "package_version": (str, "Version of vmsnix_ops."),
}
"""Documented keys: the type of a value that is not ``null``, and its meaning."""


def runs_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of the table ``runs`` from the ``result.json`` of a finished run."""
    given = result.get("parameters") or {}
    names = ("run_id", "runbook", "status", "account", "image_name", "ami_id", "notebook", "report")
    return {
        **{name: result.get(name) or None for name in names},
        "modified": result.get("modified"),
        "seconds": result.get("seconds"),
        "started_at": datetime.fromisoformat(result["started_at"]),
        "finished_at": datetime.fromisoformat(result["finished_at"]),
        "region": result.get("region") or given.get("region") or None,
        "image": result.get("image") or given.get("image") or None,
        "parameters": given,
        "endpoint": result.get("endpoint") or ("sandbox" if result.get("sandbox") else None),
        "dry_run": is_dry_run(result),
        "error": result.get("error"),
        "user": result.get("user"),
        "host": result.get("host"),
        "version": result.get("package_version"),
        "attempt": result.get("attempt") or 1,
        **{name: result.get(name) for name in ("interactive", "journal_entries", "journal_sha256")},
    }


def is_dry_run(values: Mapping[str, Any]) -> bool:
    """Return whether a run was a dry run, by its ``result.json`` or its row of the table ``runs``.

    >>> is_dry_run({"dry_run": True}), is_dry_run({"parameters": {"dry_run": True}}), is_dry_run({})
    (True, True, False)
    """
    known = values.get("dry_run")
    if isinstance(known, bool):
        return known
    given = values.get("parameters")  # runs of earlier versions have only the parameter
    return isinstance(given, Mapping) and given.get("dry_run") is True


def where(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the places of a run, accounts with regions, as ``result.json`` contains them."""
    found = sorted(set(pairs))
    texts = [{text for text in several if text} for several in zip(*found, strict=True)] or [set(), set()]
    account, region = (min(one) if len(one) == 1 else None for one in texts)
    listed = [{"account": one, "region": other} for one, other in found]
    return {"account": account, "region": region, "places": listed}


def places(values: Mapping[str, Any]) -> dict[str, str]:
    """Return account and region of a run for people; without a result, those of its parameters.

    >>> places({"account": "012345678901", "regions": ["eu-west-1", "us-east-1"]})
    {'account': '012345678901', 'region': 'eu-west-1, us-east-1'}
    """
    given = values.get("parameters") or {}
    listed = [one for one in values.get("places") or () if isinstance(one, Mapping)]
    return {
        name: _joined(values.get(name), [one.get(name) for one in listed], values.get(f"{name}s"))
        or _joined(given.get(name), given.get(f"{name}s"))
        for name in ("account", "region")
    }


def _joined(*sources: object) -> str:
    """Return the first text, or the first list of texts with commas; empty if there is none."""
    lists = ([one] if isinstance(one, str) else one for one in sources if isinstance(one, str | list))
    return next(filter(None, (", ".join(dict.fromkeys(filter(None, one))) for one in lists)), "")


def marked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values for people: the AMI of a dry run, which was not created, is marked.

    >>> marked({"ami_id": "ami-1", "dry_run": True})["ami_id"]
    'ami-1 (dry run)'
    """
    if not values.get("ami_id") or not is_dry_run(values):
        return values
    return {**values, "ami_id": f"{values['ami_id']} (dry run)"}


def once_of(result: Mapping[str, Any]) -> str:
    """Return the name under which the row of a run is appended once: each attempt has its own row."""
    attempt = result.get("attempt") or 1
    return str(result["run_id"]) if attempt == 1 else f"{result['run_id']}/attempt-{attempt}"


def write_result(run: RunContext, result: Mapping[str, object]) -> Path:
    """Write ``result.json`` into the folder of a run, and return its path.

    `result` contains documented keys (`KEYS`) and others; run ID and runbook are added. Times become ISO 8601
    text, paths become text. Safe to run twice: the file is replaced atomically. Raises a `SchemaError` for a
    value of another type or one that is not JSON, and an `UnsavedError` if the file cannot be written.
    """
    where = {"endpoint": endpoint_kind(), "sandbox": sandbox_url() or None}
    values = {**dict.fromkeys(KEYS), **where, "run_id": run.run_id, "runbook": run.runbook, **result}
    values |= run.known
    given: Any = values["tables"] or []
    named = {one.get("name") for one in given if isinstance(one, Mapping)}
    if kept := [table for name, table in kept_tables(run).items() if name not in named]:
        values["tables"] = [*given, *kept]
    values = Redactor(secret_values()).value(values)
    for key, (kind, _) in KEYS.items():
        _check(key, kind, values[key])
    try:
        text = json.dumps(values, indent=2, allow_nan=False, default=_plain, ensure_ascii=False)
        text = json_text(text) + "\n"
    except (TypeError, ValueError) as error:
        raise SchemaError(
            "Could not write the result of the run as JSON.",
            why=f"{error}.",
            fix="Use plain values: text, finite numbers, lists, mappings, times and paths.",
        ) from error
    path = run.folder / FILE_NAME
    with saving(path):
        files.make_folder(run.folder)
        files.write(path, text)
    return path


def keep_table(run: RunContext, table: Mapping[str, Any]) -> None:
    """Add a table with a name to ``result.json``, or replace the one of this name."""
    written = _written(run)
    others = [one for one in written.get("tables") or [] if one.get("name") != table["name"]]
    write_result(run, {**written, "tables": [*others, table]})


def kept_tables(run: RunContext) -> dict[str, dict[str, Any]]:
    """Return the tables in ``result.json`` that have a name."""
    return {one["name"]: one for one in _written(run).get("tables") or [] if one.get("name")}


def _written(run: RunContext) -> dict[str, Any]:
    try:
        return parse(files.read(run.folder / FILE_NAME))
    except OSError:
        return {}


@contextmanager
def saving(place: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into an `UnsavedError`: the job is done, its record is not saved."""
    try:
        yield
    except OSError as error:
        raise UnsavedError(
            f"The job completed, but its record could not be saved in {place}.",
            why=f"{error.strerror or error}.",
            fix="Free disk space or correct the folder's permissions, then run the same command again: it "
            "keeps completed work and saves the record.",
        ) from error


MOST_ROWS = 200
"""Maximum number of rows of the table in the summary of a CI job."""


def plain_table(table: DisplayTable, *, title: str) -> dict[str, Any]:
    """Return the first `MOST_ROWS` rows of a table as ``result.json`` contains them."""
    rows = [list(row) for row in table.rows[:MOST_ROWS]]
    return {"title": title, "columns": list(table.columns), "rows": rows}


class Result(Displayed):
    """The base of the results of all jobs.

    A subclass overrides `as_dict`, `frame` if its table has fewer columns, and `error` if its job can fail.
    """

    __slots__ = ()
    runbook: ClassVar[str] = "interactive"

    @property
    def run(self) -> RunContext:
        """The run of the job."""
        return current_run(self.runbook)

    @property
    def run_id(self) -> str:
        """ID of the run, its key in the tables."""
        return self.run.run_id

    @property
    def error(self) -> VmsnixError | None:
        """The error of a failed or partial job; ``None`` if it is done."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        raise NotImplementedError

    def raise_for_status(self) -> None:
        """Raise the error of a failed or partial job; `exit_code` is 3 for a partial job."""
        if (error := self.error) is not None:
            raise error

    def save(self) -> Path:
        """Write ``result.json`` into the folder of the run, and return its path. Safe to run twice.

        Raises
        ------
        vmsnix_ops.errors.VmsnixError
            The file cannot be written. After a failed job, this is the job's error, with a note about the
            file.
        """
        run = self.run
        try:
            try:
                self._write_files(run.folder)
            finally:  # result.json is written also if another file cannot be written
                path = write_result(run, self._values())
        except RecordsError as unsaved:
            if (error := self.error) is None:
                raise
            error.add_note(str(unsaved))
            raise error from None
        return path

    def _values(self) -> dict[str, Any]:
        """Return `as_dict`, with the table for the summary of a CI job if it has no other table.

        That of a dry run is the plan.
        """
        values, table, title = self.as_dict(), self.table(), self.title
        plan = getattr(self, "plan", None) if values.get("dry_run") else None
        if isinstance(plan, Displayed):
            table, title = plan.table() or make_table(("step", "what"), plan.facts()), plan.title
        elif {"steps", "tables"} & values.keys():
            return values
        if table is not None:
            values["tables"] = [plain_table(table, title=title)]
        return values

    def _write_files(self, folder: Path) -> None:
        """Write further files of a subclass."""


def parse(content: bytes | None) -> dict[str, Any]:
    """Return the values of a ``result.json``; an empty mapping if it is missing or not a JSON object.

    A documented key whose value has the wrong type is ``null``.
    """
    try:
        values = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: _as_documented(key, value) for key, value in values.items()}


def _as_documented(key: str, value: Any) -> Any:
    kind: Any = KEYS[key][0] if key in KEYS else object
    if value is None or not isinstance(value, kind):
        return None
    if isinstance(value, bool) and key in KEYS and kind is not bool:
        return None
    if isinstance(value, float) and not isfinite(value):
        return None
    if key in ("steps", "slow", "tables"):
        return [one for one in value if isinstance(one, dict)]
    if key == "problems":
        return [str(one) for one in value]
    if key == "files":
        texts = ("place", "sha256")
        return {
            name: one
            for name, one in value.items()
            if isinstance(one, dict) and all(isinstance(one.get(text), str) for text in texts)
        }
    return value


def _check(key: str, kind: type | tuple[type, ...], value: object) -> None:
    valid = value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
    if key in {"report", "notebook", "log", "result", "cwd"} and isinstance(value, Path):
        valid = True
    if not valid:
        expected = kind.__name__ if isinstance(kind, type) else " or ".join(each.__name__ for each in kind)
        raise SchemaError(
            f"Invalid {key!r} in the result: {value!r}.",
            why=f"It is a {type(value).__name__}, but {expected} is expected ({KEYS[key][1]})",
            fix="Correct the values that the runbook returns.",
        )
    statuses = ("running", *outcomes.FINAL_STATUSES)
    if key == "status" and value is not None and value not in statuses:
        raise SchemaError(
            f"Invalid status in the result: {value!r}.",
            why=f"The statuses are {', '.join(statuses)}.",
            fix="Correct the values that the runbook returns.",
        )


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            message = f"the time {value.isoformat()} has no time zone"
            raise ValueError(message)
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # NumPy's numbers
    if callable(item):
        return item()
    message = f"{value!r} is a {type(value).__name__}"
    raise TypeError(message)
