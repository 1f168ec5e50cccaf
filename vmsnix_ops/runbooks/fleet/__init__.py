"""Run many runbooks from a plan file, in worker processes of this machine or of a Dask cluster.

>>> from vmsnix_ops import fleet
>>> plan = fleet.plan("nightly.toml", dry_run=False)  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
>>> result.status, result.counts  # doctest: +SKIP
('partial', {'done': 7, 'failed': 1})

To continue a fleet that was killed, or in which targets failed, start it again: it runs the targets that are
not done. With ``fresh`` it runs all targets again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.arguments import check_arguments, check_parameters, check_range
from vmsnix_ops.display import DisplayTable, make_table
from vmsnix_ops.errors import ConfirmationError, PlanError
from vmsnix_ops.progress import counted, current
from vmsnix_ops.records.fingerprints import FingerprintedPlan, check_plan, record_plan
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.fleet.engine import Runner, check_address, need_dask
from vmsnix_ops.runbooks.fleet.ledger import Ledger, change, ledger_id
from vmsnix_ops.runbooks.fleet.report import FleetResult, write
from vmsnix_ops.runbooks.fleet.worker import FleetSession, nix_config, state_of
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from vmsnix_ops.progress import Progress
    from vmsnix_ops.runbooks.fleet.ledger import Document
    from vmsnix_ops.runbooks.fleet.plan_file import PlanFile

__all__ = ["FleetPlan", "FleetResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


LEASE_SECONDS = 60.0
"""Seconds after which another machine may take over a target whose run no longer updates the ledger."""


@dataclass(frozen=True, slots=True)
class FleetPlan(FingerprintedPlan):
    """The targets that a fleet will run. Nothing has started.

    Attributes
    ----------
    file
        The content of the plan file.
    ledger, archive, dry_run, expect_plan, fresh, lease_seconds, environment
        As for `plan`.
    states
        The state of each target in the ledger, by name; ``planned`` for a target that must run.
    """

    file: PlanFile
    ledger: str
    archive: str
    dry_run: bool
    expect_plan: str
    fresh: bool
    lease_seconds: float
    states: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def frame(self) -> pd.DataFrame:
        """Return one row per target: ``target``, ``state``, ``runbook``, and `FleetTarget.described`."""
        import pandas as pd

        return pd.DataFrame(
            {"target": one.name, "state": self.states[one.name], "runbook": one.runbook, **one.described()}
            for one in self.file.targets
        )

    @property
    def title(self) -> str:
        """One line."""
        where = self.file.dask.scheduler or "this machine"
        return f"Fleet {self.file.name}: {counted(len(self.file.targets), 'target')} on {where}"

    def table(self) -> DisplayTable:
        """Return the targets with their states."""
        rows = [(self.states[one.name], one.name, str(one)) for one in self.file.targets]
        return make_table(("state", "target", "what"), rows)

    def notes(self) -> list[str]:
        """Return the number of targets that will not run, and why."""
        counts = Counter(self.states.values())
        texts = {
            "done": "done already: skipped. --fresh runs all targets again.",
            "running": "running in another process: this fleet will wait for the result.",
        }
        notes = [f"{counted(counts[one], 'target')} {text}" for one, text in texts.items() if counts[one]]
        return [*notes, "Dry run: nothing will be run.", self.how_to_apply] if self.dry_run else notes

    def content(self) -> dict[str, str]:
        """Return what each target is. Its state in the ledger may change: what is done is not run again."""
        facts = {"run targets that are done": "yes" if self.fresh else ""}
        for one in self.file.targets:
            account = one.account.id or one.account.role or one.account.profile
            facts[one.name] = f"{one}; {account or 'default account'}; content {one.key}"
        return facts

    def apply(
        self, *, confirmed: bool = False, progress: Progress | None = None, stop: Interrupter | None = None
    ) -> FleetResult:
        """Run the targets that are not done, and write the report; do nothing in a dry run.

        Safe to run twice, also at the same time: a target that is done is skipped, and the second fleet waits
        for a target that is running. Ctrl-C and SIGTERM interrupt the runs, which then clean up.

        Parameters
        ----------
        confirmed
            Whether the targets that delete are confirmed.
        progress
            Shows the progress; `vmsnix_ops.progress.current` by default.
        stop
            Stops the fleet from another thread.

        Raises
        ------
        StalePlanError
            It is not the expected plan; nothing has run.
        ConfirmationError
            Targets would delete resources, and they are not confirmed; nothing has run.
        FleetError
            Dask, the scheduler or a suitable worker is missing. Or the connection to the scheduler was lost;
            the report was written before.
        ArchiveError
            The ledger cannot be written.
        """
        targets, facts = self.file.targets, self.content()
        tables = open_tables(load(environment={**os.environ, **self.environment}))
        check_plan(facts, self.expect_plan, tables)
        if self.dry_run:
            record_plan(facts, tables, runbook="fleet")
            documents = tuple(one.document(self.states[one.name]) for one in targets)
            return FleetResult(self.file.name, "", True, documents, 0.0, plan=self)
        deleting = [one.name for one in targets if one.effects == "deletes"]
        if deleting and not confirmed:
            raise ConfirmationError(
                f"{counted(len(deleting), 'target')} would delete resources. Pass --yes to confirm.",
                why=f"{deleting[0]} has dry_run = false.",
                fix="Check a dry run first, then confirm with --yes (in Python: apply(confirmed=True)).",
            )
        need_dask()
        ledger, run_id = Ledger(self.ledger), new_run_id(f"fleet-{self.file.name}")
        for target in targets if self.fresh else ():
            change(ledger, target.claim, _forgotten)
        remote = self.archive.rstrip("/") if self.archive.startswith("s3://") else ""
        local = load().state / "runs" if remote else Path(self.archive).absolute()
        folder = archives.RunFolder(run_id, local / run_id, remote, os.environ)
        config = nix_config(self.file.nix)
        session = FleetSession(
            id=secrets.token_hex(6),
            ledger=self.ledger,
            ledger_id=ledger_id(ledger),
            archive=self.archive,
            folder=str(self.file.folder),
            notebooks=str(self.file.notebooks or ""),
            environment={"NIX_CONFIG": config} if config else {},
            lease_seconds=self.lease_seconds,
        )
        runner = Runner(self.file, session, self.environment, progress or current(), stop or Interrupter())
        clock, started = time.monotonic(), datetime.now(UTC)
        trouble = runner.run(folder.path(archives.LOG))
        seconds = round(time.monotonic() - clock, 3)
        result = FleetResult(self.file.name, run_id, False, tuple(runner.documents), seconds, plan=self)
        result = replace(result, values=write(result, folder, started, str(trouble) if trouble else None))
        if trouble is not None:
            raise trouble
        return result


def _forgotten(document: Document | None) -> Document | None:
    """Return a document whose result is no longer valid for any plan; a running target is not changed."""
    if document is None or document["state"] == "running":
        return None
    return document | {"fingerprint": ""}


@check_arguments
def plan(
    file: str | Path,
    *,
    scheduler: str = "",
    workers: int = 0,
    ledger: str = "",
    archive: str = "",
    fresh: bool = False,
    dry_run: bool = True,
    expect_plan: str = "",
    lease_seconds: float = LEASE_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> FleetPlan:
    """Read and check a plan file, and return what a fleet will run. Nothing is started.

    Parameters
    ----------
    file
        The plan file; `vmsnix_ops.runbooks.fleet.plan_file` describes its content.
    scheduler, workers
        Override ``[dask]`` of the plan.
    ledger
        Location of the ledger: a folder, or ``s3://bucket/prefix``; ``<state>/fleets`` by default. Workers of
        other machines need access to it too.
    archive
        Location of the evidence of the fleet and of its runs; the setting ``archive`` by default.
    fresh
        Also run the targets that are done.
    dry_run
        Run nothing.
    expect_plan
        Fingerprint of the dry run that was checked: `apply` refuses another plan.
    lease_seconds
        See `LEASE_SECONDS`.
    environment
        Variables for the workers of this machine, in addition to those of this process; never shown.

    Raises
    ------
    PlanError
        The plan is invalid; the error lists all problems.
    SettingsError
        A setting is invalid.
    """
    from vmsnix_ops.runbooks.fleet.plan_file import read_plan  # imports pydantic

    check_range("workers", workers)
    read = read_plan(Path(file), scheduler=scheduler, environment=environment)
    given = {"scheduler": scheduler or read.dask.scheduler, "workers": workers or read.dask.workers}
    read = replace(read, dask=read.dask.model_copy(update=given))
    check_address(read.dask)
    if read.dask.scheduler and environment:
        raise PlanError(
            "Workers of a scheduler do not accept an environment.",
            why="It can contain credentials, which vmsnix never sends; the workers have their own.",
            fix="Start the workers with these variables, or leave scheduler out.",
        )
    settings = load()
    allowed = settings.allowed_accounts
    for account in read.accounts.values():
        if allowed and account.id and account.id not in allowed:
            raise PlanError(
                f"The account {account.name} ({account.id}) is not allowed.",
                why=f"allowed_accounts is {', '.join(allowed)}.",
                fix="Add it to allowed_accounts in vmsnix.toml, or remove it from the plan.",
            )
    place = ledger or str(settings.state / "fleets")
    place = place.rstrip("/") if place.startswith("s3://") else str(Path(place).absolute())
    states = {one.name: state_of(one, Ledger(place))["state"] for one in read.targets}
    if fresh:
        states = {name: state if state == "running" else "planned" for name, state in states.items()}
    return FleetPlan(
        file=read,
        ledger=place,
        archive=archive or str(settings.archive),
        dry_run=dry_run,
        expect_plan=expect_plan,
        fresh=fresh,
        lease_seconds=lease_seconds,
        states=states,
        environment=environment or {},
    )
