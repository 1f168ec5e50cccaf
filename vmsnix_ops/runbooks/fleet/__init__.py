"""Run many runbooks at once, as a plan file says, in worker processes of this machine or of a Dask cluster.

>>> from vmsnix_ops import fleet
>>> plan = fleet.plan("nightly.toml", dry_run=False)  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
>>> result.status, result.counts  # doctest: +SKIP
('partial', {'done': 7, 'failed': 1})

To continue a fleet that was killed, or in which targets failed, start it again: it runs what is not done.
Once everything is done, the next start is a new round.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.arguments import check_arguments, check_range
from vmsnix_ops.display import Displayed, Shown, shown
from vmsnix_ops.errors import ConfirmationError, PlanError
from vmsnix_ops.progress import counted
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.fleet.cluster import check_address, need_dask
from vmsnix_ops.runbooks.fleet.engine import Runner, Stop
from vmsnix_ops.runbooks.fleet.ledger import (
    close_round,
    open_ledger,
    open_round,
    states,
    unfinished_round,
    unrun,
)
from vmsnix_ops.runbooks.fleet.report import FleetResult
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from vmsnix_ops.runbooks.fleet.plan_file import PlanFile
    from vmsnix_ops.runbooks.fleet.table import Board

__all__ = ["FleetPlan", "FleetResult", "plan"]


def __dir__() -> list[str]:
    return __all__


MOST_WORKERS = 1000
LEASE_SECONDS = 60.0
"""How long a run elsewhere that gives no sign of life is waited for before it counts as dead."""


@dataclass(frozen=True, slots=True)
class FleetPlan(Displayed):
    """The targets that a fleet will run. Nothing has started.

    Attributes
    ----------
    plan
        The plan file, checked.
    ledger
        Where it is remembered what is done: a folder, or ``s3://bucket/prefix``.
    archive
        Where the evidence goes.
    dry_run
        `apply` runs nothing.
    fresh
        `apply` begins a new round even if the last one is not all done.
    lease_seconds
        As `LEASE_SECONDS`.
    round
        The unfinished round that goes on; empty when a new one begins.
    states
        What the ledger knows of its targets, by key.
    environment
        Variables for the workers of a cluster of this machine; never shown.
    """

    plan: PlanFile
    ledger: str
    archive: str
    dry_run: bool
    fresh: bool
    lease_seconds: float
    round: str
    states: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def frame(self) -> pd.DataFrame:
        """Return the targets as a table: `PlanFile.frame` with ``state``, what the ledger knows of each."""
        frame = self.plan.frame()
        frame.insert(1, "state", [self.states[target.key] for target in self.plan.targets])
        return frame

    @property
    def title(self) -> str:
        """One line."""
        going = f"continues {self.round}" if self.round else "a new round"
        where = self.plan.dask.scheduler or "this machine"
        return f"Fleet {self.plan.name}: {counted(len(self.plan.targets), 'target')} on {where}, {going}"

    def table(self) -> Shown:
        """Return the targets for people."""
        rows = [(self.states[one.key], one.name, one.described()) for one in self.plan.targets]
        return shown(("state", "target", "what"), rows)

    def notes(self) -> list[str]:
        """Return that it is a dry run."""
        return ["Dry run: nothing will be run."] if self.dry_run else []

    def apply(
        self, *, confirmed: bool = False, board: Board | None = None, stop: Stop | None = None
    ) -> FleetResult:
        """Run what is not done yet, and write the report; in a dry run do nothing.

        Safe to do again, also while another start of the same fleet runs: what is done is not run again,
        what runs is waited for. Ctrl-C and SIGTERM ask the runs to stop and clean up.

        Parameters
        ----------
        confirmed
            Whether somebody confirmed that targets which destroy shall do so.
        board
            The live table; by default the one that fits where this process runs.
        stop
            By which another thread can stop the fleet.

        Raises
        ------
        ConfirmationError
            When targets would destroy, and nobody has confirmed it; nothing has run.
        FleetError
            When Dask is missing, no scheduler answers or no worker fits; or when the scheduler went away in
            the middle, after a report of what was done until then.
        ArchiveError
            When the ledger cannot be written.
        """
        if self.dry_run:
            documents = [unrun(target, self.states[target.key]) for target in self.plan.targets]
            return FleetResult(self.plan.name, "", True, tuple(documents), 0.0, "")
        destroying = [target.name for target in self.plan.targets if target.effects == "destroys"]
        if destroying and not confirmed:
            raise ConfirmationError(
                f"{counted(len(destroying), 'target')} would destroy resources. Pass --yes to confirm.",
                why=f"{destroying[0]} has dry_run = false.",
                fix="Check a dry run first, then confirm with --yes (in Python: apply(confirmed=True)).",
            )
        from vmsnix_ops.runbooks.fleet.report import write
        from vmsnix_ops.runbooks.fleet.table import board_for_here

        need_dask()
        ledger = open_ledger(self.ledger)
        fleet = open_round(ledger, self.plan.name, fresh=self.fresh)
        session = secrets.token_hex(6)
        folder = self._folder(fleet)
        clock, started = time.monotonic(), datetime.now(UTC)
        runner = Runner(
            plan=self.plan,
            ledger=ledger,
            ledger_place=self.ledger,
            archive=self.archive,
            round=fleet,
            session=session,
            stop=stop or Stop(),
            lease_seconds=self.lease_seconds,
            environment=self.environment,
        )
        if board is None:
            board = board_for_here()
        trouble = runner.run(board, folder.path(archives.LOG))
        seconds = round(time.monotonic() - clock, 3)
        outcome = FleetResult(self.plan.name, fleet, False, tuple(runner.documents), seconds, session)
        outcome = replace(outcome, values=write(outcome, folder, started, str(trouble) if trouble else None))
        if outcome.status == "done":
            close_round(ledger, self.plan.name, fleet)
        if trouble is not None:
            raise trouble
        return outcome

    def _folder(self, fleet: str) -> archives.RunFolder:
        """Return the round's place in the archive, beside those of its runs."""
        remote = self.archive.rstrip("/") if self.archive.startswith("s3://") else ""
        local = (load().state / "runs" if remote else Path(self.archive).absolute()) / fleet
        return archives.RunFolder(fleet, local, remote, os.environ)


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
    lease_seconds: float = LEASE_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> FleetPlan:
    """Read and check a plan file, and return what a fleet will run. Nothing is started.

    Parameters
    ----------
    file
        The plan; `vmsnix_ops.runbooks.fleet.plan_file` says what stands in it.
    scheduler, workers
        Instead of what the plan says below ``[dask]``.
    ledger
        Where the fleet is remembered: a folder, or ``s3://bucket/prefix``; ``<state>/fleets`` by default.
        With workers on other machines they must reach it, too.
    archive
        Where the evidence goes: the folder of the round with report and result, and beside it those of its
        runs; the setting ``archive`` by default.
    fresh
        Begin a new round also when the last one is not all done.
    dry_run
        Run nothing.
    lease_seconds
        As `LEASE_SECONDS`.
    environment
        Variables for the workers of a cluster of this machine, on top of this process's.

    Raises
    ------
    PlanError
        Says all that is wrong with the plan.
    SettingsError
        When ``vmsnix.toml`` or a variable is wrong.
    """
    from vmsnix_ops.runbooks.fleet.plan_file import read_plan  # imports pydantic

    check_range("workers", workers, 0, MOST_WORKERS)
    read = read_plan(Path(file))
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
    places = settings.allowed_accounts
    for account in read.accounts.values():
        if places and account.id and account.id not in places:
            raise PlanError(
                f"The account {account.name} ({account.id}) is not allowed.",
                why=f"allowed_accounts is {', '.join(places)}.",
                fix="Add it to allowed_accounts in vmsnix.toml, or remove it from the plan.",
            )
    place = ledger or str(settings.state / "fleets")
    unfinished = "" if fresh else unfinished_round(open_ledger(place), read.name)
    return FleetPlan(
        plan=read,
        ledger=place if place.startswith("s3://") else str(Path(place).absolute()),
        archive=archive or str(settings.archive),
        dry_run=dry_run,
        fresh=fresh,
        lease_seconds=lease_seconds,
        round=unfinished,
        states=states(open_ledger(place), read.targets, unfinished),
        environment=environment or {},
    )
