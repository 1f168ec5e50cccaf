"""Resume a run: run its archived notebook again as the next attempt of the same run.

The notebook starts at its first cell, because a step that is done finds its result. The evidence of earlier
attempts is kept in the folder of the run, in ``attempt-1`` and so on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import __version__, files
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.errors import ArchiveError, UnknownRunbookError, UsageError, VmsnixError
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import verification

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.evidence.runs import Archive, ArchivedRun
    from vmsnix_ops.settings import Settings

RESUMABLE = ("failed", "partial", "cancelled", "lost")
EXPECTED_PLAN = "expect_plan"  # the parameter with the fingerprint of the plan that a run may apply
ENDPOINTS = {"aws": "AWS", "sandbox": "a sandbox", "custom": "another endpoint"}
REMOVED = "[secret removed"  # in a recorded value


def check_resumable(run: ArchivedRun, *, anyway: bool = False) -> None:
    """Refuse a run that cannot be resumed, with the reason; `anyway` accepts another package version.

    Refused (UsageError) are runs that are running or done, were recorded by a kernel, or lack only evidence.
    """
    if run.status == "running":
        host = run.values.get("host")
        why = f"It is running on {host}." if host else "It is running."
        fix = "Wait for its end. If its process is gone, run this on its machine: "
        raise _refusal(run, why, f"{fix}{run.command('runs repair')}")
    if run.status not in RESUMABLE:
        raise _refusal(run, f"It is {run.status}.", f"Repeat it: {run.command('rerun')}")
    if run.status == "partial" and not run.values.get("failure"):
        why = "All its cells ran, and only evidence is missing."
        raise _refusal(run, why, f"Save the evidence: {run.command('runs repair')}")
    if run.values.get("interactive"):
        why = "A kernel of JupyterLab or of another program ran its cells."
        raise _refusal(run, why, f"Continue there, or repeat it as a new run: {run.command('rerun')}")
    version = run.values.get("package_version")
    if version != __version__ and not anyway:
        why = f"It ran with vmsnix {version}, and this is {__version__}."
        fix = "Install that version, repeat it as a new run (vmsnix rerun), or add --anyway."
        raise _refusal(run, why, fix)


def _refusal(run: ArchivedRun, why: str, fix: str) -> UsageError:
    return UsageError(f"The run {run.run_id} cannot be resumed.", why=why, fix=fix)


def check_account(run: ArchivedRun, environment: Mapping[str, str]) -> None:
    """Refuse to resume a run at another endpoint, or with the credentials of another account (UsageError).

    A run that failed before it had read its account passes.
    """
    before, now = run.values.get("endpoint"), endpoint_kind(environment)
    if before and before != now:
        why = f"The run used {ENDPOINTS[before]}, but this command would use {ENDPOINTS[now]}."
        raise _refusal(run, why, "Set or unset AWS_ENDPOINT_URL as in that run, or add --anyway.")
    account = run.values.get("account")
    if not account:
        return
    from vmsnix_ops.aws.identity import read_caller
    from vmsnix_ops.aws.session import session_of

    session = session_of(dict(environment))
    caller = read_caller(session, run.values.get("region") or session.region_name or "us-east-1")
    if caller.account != account:
        why = f"It ran in the account {account}, and these are the credentials of {caller.account}."
        raise _refusal(run, why, "Use the credentials of that account, or add --anyway.")


def check_unchanged(archive: Archive, settings: Settings, run: ArchivedRun) -> None:
    """Refuse to resume a run whose evidence was changed: it would run with other parameters or cells."""
    found = verification.verify(archive, settings, run)
    bad = [check for check in found.checks if check.finding in ("changed", "removed", "cut off")]
    if bad:
        why = f"Its evidence is not as the run left it: {bad[0].name}. {bad[0].detail}"
        fix = f"Check it: {run.command('runs verify')}. To resume it despite the changes, add --anyway."
        raise _refusal(run, why, fix)


def archived_runbook(archive: Archive, run: ArchivedRun, folder: Path) -> Runbook:
    """Write the archived notebook of a run without outputs into a folder, and return its runbook.

    A run that was killed before its first cell ended has no notebook; its runbook is that of the package, or
    an `UnknownRunbookError`. A notebook that was changed or cannot be read is an `ArchiveError`.
    """
    try:
        known: Runbook | None = catalog.find(run.runbook, start=run.cwd)
    except VmsnixError:
        known = None
    content = archive.notebook(run)
    if content is None:
        if known is None:
            raise UnknownRunbookError(
                f"The run {run.run_id} cannot be resumed.",
                why=f"It has no notebook in the archive, and there is no runbook {run.runbook!r}.",
                fix="Restore the runbook's notebook.",
            )
        return known
    try:
        notebook = catalog.without_injected(json.loads(content))
        notebook["cells"] = [_clean(cell) for cell in notebook["cells"]]
        for key in ("papermill", "vmsnix_run"):
            notebook["metadata"].pop(key, None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            f"The notebook of the run {run.run_id} is damaged.",
            why=f"{type(error).__name__}: {error}.",
            fix=f"Repeat the run: {run.command('rerun')}",
        ) from error
    path = folder / f"{known.slug if known is not None else f'10-{run.runbook}'}.ipynb"
    files.write(path, json.dumps(notebook))
    return catalog.read(path)


def _clean(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell without outputs, and without what papermill and nbclient recorded."""
    metadata = {
        key: value for key, value in cell["metadata"].items() if key not in ("papermill", "execution")
    }
    clean = {**cell, "metadata": metadata}
    return clean | ({"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {})


def secret_parameters(run: ArchivedRun) -> list[str]:
    """Return the parameters whose recorded values had secrets, which were removed."""
    return [name for name, value in run.parameters.items() if REMOVED in json.dumps(value, default=str)]


def expected_plan(run: ArchivedRun, runbook: Runbook, *, anyway: bool) -> dict[str, object]:
    """Return the parameter that makes the run refuse a plan other than that of its last attempt."""
    fingerprint = run.values.get("plan_fingerprint")
    declared = any(parameter.name == EXPECTED_PLAN for parameter in runbook.parameters)
    if not declared or not fingerprint:
        return {}
    return {EXPECTED_PLAN: "" if anyway else fingerprint}


@dataclass(frozen=True, slots=True)
class Resumed:
    """A past run that is resumed; `anyway` accepts another version, account and plan."""

    archive: Archive
    past: ArchivedRun
    anyway: bool = False

    def reopen(
        self, entry: Mapping[str, object], environment: Mapping[str, str], settings: Settings
    ) -> archives.RunFolder:
        """Open the folder of the run for the next attempt, with its first ``result.json``.

        A `UsageError` if the endpoint or the account is another one, the evidence was changed, or another
        process has just resumed the run. An `ArchiveError` if the archive cannot be read or written.
        """
        if not self.anyway:
            check_account(self.past, environment)
            check_unchanged(self.archive, settings, self.past)
        stored = self.past.values.get("files") or {} if self.archive.remote else {}
        return archives.reopen_folder(
            self.archive.location,
            self.past.run_id,
            {**entry, "status": "running"},
            evidence={name: self.archive.read_file(self.past, name) for name in stored},
            before=self.past.values,
            work=settings.state / "runs",
            environment=environment,
        )
