"""``vmsnix fleet PLAN``; ``vmsnix run fleet PLAN`` is the same command."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import click

from vmsnix_ops.runbooks.execution.status import PARTIAL
from vmsnix_ops.text import echo, json, line

FILE = click.Path(path_type=Path, dir_okay=False)
DEFAULT_PLAN = "fleet.toml"


@click.command()
@click.argument("plan_file", metavar="[PLAN]", required=False, type=FILE)
@click.option(
    "--plan",
    "named",
    metavar="PLAN",
    type=FILE,
    help="Plan file; the same as PLAN.  [default: fleet.toml]",
)
@click.option(
    "--dry-run/--no-dry-run", default=True, show_default=True, help="Show the targets, and run nothing."
)
@click.option(
    "--expect-plan",
    metavar="FINGERPRINT",
    help="Run only the plan with this fingerprint, which the dry run prints.",
)
@click.option(
    "--scheduler",
    default="",
    metavar="ADDRESS",
    help="Dask scheduler (tls://HOST:PORT).  [default: from the plan, or workers on this machine]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Worker processes on this machine; 0 is the plan's number, or one per core.",
)
@click.option(
    "--ledger",
    default="",
    metavar="PLACE",
    help="Location of the ledger, which records each target: a folder, or s3://bucket/prefix.  [default: "
    "<state>/fleets]",
)
@click.option(
    "--archive",
    default="",
    metavar="PLACE",
    help="Location of the evidence: a folder, or s3://bucket/prefix.  [default: the setting archive]",
)
@click.option("--fresh", is_flag=True, help="Also run the targets that are done.")
@click.option("--yes", is_flag=True, help="Confirm targets that delete, with --no-dry-run.")
@click.option("--sandbox", is_flag=True, help="Use a local sandbox instead of AWS.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json; in a dry run, the plan.")
def fleet(
    plan_file: Path | None,
    named: Path | None,
    dry_run: bool,
    expect_plan: str | None,
    scheduler: str,
    workers: int,
    ledger: str,
    archive: str,
    fresh: bool,
    yes: bool,
    sandbox: bool,
    as_json: bool,
) -> int:
    """Run many runbooks from a plan file, and write one report of all runs.

    PLAN is a TOML file with runbooks, images, regions, accounts, parameters, order and retries. vmsnix checks
    and shows the plan. With --no-dry-run, it runs the targets that are not done. Run it again to continue.
    """
    import sys

    if plan_file is not None and named is not None:
        raise click.UsageError("Two plan files given: use PLAN or --plan, not both.")
    if expect_plan is not None and not expect_plan.strip():
        from vmsnix_ops.cli.options import no_fingerprint

        raise no_fingerprint()
    from vmsnix_ops.cli.output import echo_or_discard, is_unattended, show_error
    from vmsnix_ops.cli.sandbox import run_sandbox
    from vmsnix_ops.progress import LogLines, Progress, on_screen
    from vmsnix_ops.runbooks import fleet as fleets
    from vmsnix_ops.runbooks.execution import notices
    from vmsnix_ops.settings import load

    with run_sandbox() if sandbox else nullcontext() as served:
        ready = fleets.plan(
            plan_file or named or Path(DEFAULT_PLAN),
            scheduler=scheduler,
            workers=workers,
            ledger=ledger or (str(served.state / "fleets") if served else ""),
            archive=archive or (served.environment["VMSNIX_ARCHIVE"] if served else ""),
            fresh=fresh,
            dry_run=dry_run,
            expect_plan=expect_plan or "",
            environment=served.environment if served else None,
        )
        written = echo_or_discard(ready, err=as_json)
        if dry_run:
            ready.apply()  # records the plan
            if as_json:
                plan = {"fleet": ready.file.name, "dry_run": True, "plan_fingerprint": ready.fingerprint}
                plan |= {"targets": ready.frame().to_dict("records")}
                written = echo_or_discard(json(plan, indent=2))
            return 0 if written else 1
        outcome = ready.apply(
            confirmed=yes, progress=Progress(LogLines(sys.stderr)) if as_json else on_screen()
        )
    where = f"report    {line(outcome.values['report'])}\nresult    {line(outcome.values['result'])}"
    written = echo_or_discard(json(outcome.values, indent=2) if as_json else where) and written
    if not written:
        echo(where, err=True)
    error, unsent = outcome.error, []
    if is_unattended():
        failure = {"what": error.what, "why": error.why, "fix": error.fix} if error else None
        values = {**outcome.values, "status": outcome.status, "failure": failure}
        environment = served.environment if served else os.environ
        unsent = notices.send(values, load(environment=environment), environment)
    for problem in (*outcome.values["problems"], *unsent):
        echo(line(problem), err=True)
    if error is not None:
        show_error(error.what, error.why, error.fix)
    return outcome.exit_code or (0 if written else PARTIAL)
