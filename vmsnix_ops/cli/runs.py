"""``vmsnix runs`` and ``vmsnix rerun``: list, open, repair and repeat past runs."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmsnix_ops.cli.options import archive_option, complete_runbooks, json_option
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.outcomes import RUN_STATUSES
from vmsnix_ops.text import echo, json, line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem

    from vmsnix_ops.runbooks.evidence.runs import Archive, ArchivedRun

Result = TypeVar("Result")
STATUSES = (*RUN_STATUSES, "unreadable")
SHOWN = 20
FACTS = (
    ("started_at", "started"),
    ("user", "by"),
    ("host", "on"),
    ("cwd", "in"),
    ("region", "region"),
    ("account", "account"),
    ("image_name", "image"),
    ("ami_id", "AMI"),
    ("snapshot_id", "snapshot"),
    ("sandbox", "sandbox"),
    ("attempt", "attempt"),
)
MODIFIED = "modified  The cells of the notebook differed from those of the package."
sandbox_option = click.option("--sandbox", is_flag=True, help="Use the archive of runs with --sandbox.")


def archive_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """Add --sandbox and --archive to a subcommand; both can also be given before its name."""

    @click.pass_obj
    def call(parent: tuple[str, bool], /, *, archive: str, sandbox: bool, **given: Any) -> Result:
        return command(archive=archive or parent[0], sandbox=sandbox or parent[1], **given)

    return sandbox_option(archive_option(functools.update_wrapper(call, command)))


def _ids(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a run ID from an archive on this machine; an archive on S3 would be too slow."""
    from vmsnix_ops.cli import completion

    sandbox = any(level.params.get("sandbox") for level in (ctx, ctx.parent) if level is not None)
    archive = open_archive("", sandbox=sandbox)
    return [] if archive.remote else completion.items(archive.ids()[:SHOWN], incomplete)


@click.group(invoke_without_command=True)
@click.option(
    "--runbook", default="", shell_complete=complete_runbooks, help="Show only runs of this runbook."
)
@click.option("--image", default="", help="Show only runs for this image.")
@click.option(
    "--status",
    type=click.Choice(STATUSES),
    metavar="STATUS",
    help="Show only runs with this status: " + ", ".join(STATUSES) + ".",
)
@click.option("--ami", default="", metavar="AMI", help="Show only runs that published or found this AMI.")
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=SHOWN,
    show_default=True,
    metavar="N",
    help="Show only the newest N runs.",
)
@click.option("--all", "everything", is_flag=True, help="Show all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the result.json of each run.")
@sandbox_option
@archive_option
@click.pass_context
def runs(
    ctx: click.Context,
    runbook: str,
    image: str,
    status: str | None,
    ami: str,
    last: int,
    everything: bool,
    as_json: bool,
    archive: str,
    sandbox: bool,
) -> None:
    """List past runs with their evidence, newest first; `vmsnix runs show ID` opens one.

    This lists the archive: runs that you can open (`vmsnix runs show`) and repeat (`vmsnix rerun`). To query
    many runs, steps and AMIs, use `vmsnix history`, which reads the tables.
    """
    ctx.obj = (archive, sandbox)
    if ctx.invoked_subcommand is not None:
        return
    from vmsnix_ops.cli.output import show_json
    from vmsnix_ops.runbooks import catalog

    runbook = catalog.full_name(runbook) if runbook else ""
    found = open_archive(archive, sandbox=sandbox).runs(
        runbook=runbook, image=image, status=status or "", ami=ami, last=None if everything else last
    )
    if as_json:
        show_json([{**one.values, "status": one.status} for one in found])
    elif found:
        _list(found)
    else:
        echo("No matching runs." if runbook or image or status or ami else "No runs yet.")


@runs.command()
@click.argument("run_id", metavar="ID", shell_complete=_ids)
@click.option("--open", "in_browser", is_flag=True, help="Open the report in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's result.json.")
@archive_options
def show(run_id: str, in_browser: bool, as_json: bool, archive: str, sandbox: bool) -> None:
    """Show a run: its parameters, outcome, step times and evidence.

    ID can be any unique beginning of the run ID, or its last six digits.
    """
    from vmsnix_ops.cli.output import show_json

    opened = open_archive(archive, sandbox=sandbox)
    found = opened.find(run_id)
    if as_json:
        show_json({**found.values, "status": found.status})
    else:
        _show(found)
    if in_browser:
        _open_report(opened, found)


@runs.command()
@click.argument("run_id", metavar="ID", shell_complete=_ids)
@json_option
@archive_options
def verify(run_id: str, as_json: bool, archive: str, sandbox: bool) -> int:
    """Check that the evidence of a run was not changed, removed or cut off.

    Compares the run's journal with the copies of its last SHA-256 (in the history, in an archive on S3, and
    on this machine), and every file of the run with its SHA-256.

    Exit codes: 0 intact; 1 changed, removed, cut off or unreadable; 3 consistent, but not anchored: there is
    no copy of the journal's SHA-256 to compare with.
    """
    from vmsnix_ops.cli.output import COLOURS, cell, console, show_json, show_table
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.display import make_table
    from vmsnix_ops.runbooks.evidence import verification

    opened = open_archive(archive, sandbox=sandbox)
    found = verification.verify(opened, load_settings(sandbox=sandbox), opened.find(run_id))
    if as_json:
        show_json(found.to_json())
        return found.exit_code
    colours = {"intact": COLOURS["done"], "not anchored": COLOURS["partial"]}
    rows = [[one.name, one.finding, one.detail] for one in found.checks]
    table = make_table(("evidence", "finding", "detail"), rows)
    show_table(table, lambda finding: colours.get(finding, COLOURS["failed"]), of="finding")
    for text in found.problems:
        console().print(cell(text, "yellow"), soft_wrap=True)
    anchored = f"Anchored in {', '.join(found.anchors)}." if found.anchors else "Not anchored."
    console().print(cell(f"{found.run_id}: {found.finding}. {anchored}"), soft_wrap=True)
    return found.exit_code


@runs.command()
@click.argument("run_id", metavar="ID", shell_complete=_ids)
@click.option("-p", "--param", "pairs", multiple=True, metavar="NAME=VALUE", help="Set a removed secret.")
@click.option("--anyway", is_flag=True, help="Resume although version, account or plan are different now.")
@click.option("--yes", is_flag=True, help="Confirm that the run may delete, if it was not a dry run.")
@json_option
@archive_options
def resume(
    run_id: str, pairs: tuple[str, ...], anyway: bool, yes: bool, as_json: bool, archive: str, sandbox: bool
) -> int:
    """Run the notebook of a failed run again, as the next attempt of the same run.

    The archived notebook runs from its first cell with the run's parameters; steps that are done are reused.
    The evidence of earlier attempts is kept. To start a new run with the same parameters, use `vmsnix rerun`.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from vmsnix_ops.cli.run import execute
    from vmsnix_ops.runbooks import parameters
    from vmsnix_ops.runbooks.execution import resume as resuming
    from vmsnix_ops.runbooks.execution.execute import same_parameters

    found = _past_run(run_id, archive, sandbox=sandbox, elsewhere=False)
    resuming.check_resumable(found, anyway=anyway)
    opened = open_archive(archive, sandbox=sandbox)
    secrets = _ask_for_secrets(resuming.secret_parameters(found), parameters.split(pairs))
    with TemporaryDirectory(prefix="vmsnix-resume-") as folder:
        runbook = resuming.archived_runbook(opened, found, Path(folder))
        secrets |= resuming.expected_plan(found, runbook, anyway=anyway)
        return execute(
            runbook,
            same_parameters(runbook, found.parameters, secrets),
            sandbox=sandbox,
            archive=opened.location,
            as_json=as_json,
            yes=yes,
            cwd=found.cwd,
            resumed=resuming.Resumed(opened, found, anyway),
        )


def _ask_for_secrets(names: list[str], given: Mapping[str, str]) -> dict[str, object]:
    """Return the values of parameters whose secrets were removed; prompt on a terminal."""
    from vmsnix_ops.errors import UsageError

    missing = [name for name in names if name not in given]
    if missing and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"The run needs a value for {', '.join(missing)}.",
            why="Its secret was removed from the evidence.",
            fix=f"Add -p {missing[0]}=VALUE, or run this on a terminal, which prompts for it.",
        )
    return {**given, **{name: click.prompt(name, hide_input=True, err=True) for name in missing}}


@runs.command()
@click.argument("run_id", metavar="[ID]", default="", shell_complete=_ids)
@json_option
@archive_options
def repair(run_id: str, as_json: bool, archive: str, sandbox: bool) -> int:
    """Save the rows and evidence that runs on this machine could not save.

    Without ID, repair all runs. A run whose process ended without a result is marked "lost"; a running run is
    not changed. Exit code 3: something could still not be saved.
    """
    from dataclasses import asdict

    from vmsnix_ops.cli.output import show_json
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.runbooks.evidence import index
    from vmsnix_ops.runbooks.evidence.runs import repair as repair_runs

    settings = load_settings(sandbox=sandbox)
    opened = open_archive(archive, sandbox=sandbox)
    wanted = opened.full_id(run_id) if run_id else ""
    found = list(repair_runs(opened, settings, run_id=wanted))
    if found and (problem := index.update(opened, again=[one.run_id for one in found])):
        echo(line(problem), err=True)
    if as_json:
        show_json([asdict(one) for one in found])
    elif not found:
        echo("No runs to repair.")
    else:
        for one in found:
            echo(line(f"{one.run_id}  {one.status}"))
            for problem in one.problems:
                echo(line(f"  {problem}"))
    return 3 if any(one.problems for one in found) else 0


@runs.command()
@archive_options
def index(archive: str, sandbox: bool) -> None:
    """Rebuild index.html in the archive, the page that lists all runs.

    Each run updates index.html in the archive when it ends. Use this for runs of earlier versions.
    """
    from vmsnix_ops.runbooks.evidence import index as lists

    echo(lists.rebuild(open_archive(archive, sandbox=sandbox), most=None))


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--sandbox", is_flag=True, help="Use a local sandbox instead of AWS.")
@click.option(
    "--from",
    "archive",
    default="",
    metavar="FOLDER",
    help="Archive that contains the run.  [default: the setting archive]",
)
@click.argument("run_id", metavar="ID", shell_complete=_ids)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[PARAMETERS]...")
@click.pass_context
def rerun(ctx: click.Context, run_id: str, words: tuple[str, ...], archive: str, sandbox: bool) -> int:
    """Run a runbook again with the parameters of a past run.

    ID can be shortened, as for `vmsnix runs show`. Options after it replace single parameters, as in
    `vmsnix NAME`. The run starts in the working directory of the past run, if that still exists.
    """
    from vmsnix_ops.cli.run import runbook_command

    arguments = ["--sandbox", *words] if sandbox else [*words]
    found = _past_run(run_id, archive, sandbox="--sandbox" in arguments)
    command = runbook_command(found.runbook, found)
    with command.make_context(f"{ctx.command_path} {run_id}", arguments) as inner:
        code: int = command.invoke(inner)
    return code


def _past_run(run_id: str, archive: str, *, sandbox: bool, elsewhere: bool = True) -> ArchivedRun:
    """Return the run to repeat; refuse to repeat a run on a sandbox in AWS."""
    from vmsnix_ops.errors import ArchiveError, UnknownRunError, UsageError

    try:
        found = open_archive(archive, sandbox=sandbox).find(run_id)
    except UnknownRunError:
        if archive or not sandbox or not elsewhere:
            raise
        found = open_archive("", sandbox=False).find(run_id)  # repeat a run in AWS on the sandbox
    if not found.repeatable:
        raise ArchiveError(
            f"The run {found.run_id} cannot be repeated.",
            why="Its result.json is missing or has no parameters.",
            fix="Restore it from the tables, on the machine of the run: "
            f"{found.command('runs repair')}. Or run {found.runbook} by its name.",
        )
    if found.values.get("sandbox") and not sandbox and endpoint_kind() != "sandbox":
        raise UsageError(
            f"The run {found.run_id} ran on a sandbox.",
            why="Repeated without --sandbox, it would run in AWS.",
            fix="Add --sandbox, or run the runbook by its name in AWS.",
        )
    return found


def open_archive(location: str, *, sandbox: bool) -> Archive:
    """Return the archive at a location; by default that of the settings, or of the sandbox."""
    from vmsnix_ops.cli.sandbox import load_settings
    from vmsnix_ops.runbooks.evidence import runs as evidence

    return evidence.open_archive(load_settings(sandbox=sandbox), location=location)


def _list(entries: list[ArchivedRun]) -> None:
    from vmsnix_ops.cli.output import COLOURS, show_table
    from vmsnix_ops.display import make_table
    from vmsnix_ops.progress import human_seconds
    from vmsnix_ops.records.result import marked

    rows = []
    for one in entries:
        seconds = one.values.get("seconds")
        failure = one.values.get("failure")
        rows.append(
            [
                str(one.values.get("started_at") or "")[:19].replace("T", " "),
                one.runbook,
                _status(one),
                human_seconds(seconds) if isinstance(seconds, int | float) else "",
                one.image,
                marked(one.values).get("ami_id") or (failure or {}).get("what") or "",
                one.run_id,
            ]
        )
    columns = ("started", "runbook", "status", "took", "image", "result", "run")
    colours = {_status(one): COLOURS.get(one.status, "") for one in entries}
    table = make_table(columns, rows, right=("took",))
    show_table(table, lambda status: colours.get(status, ""), of="status")


def _show(entry: ArchivedRun) -> None:
    from rich.table import Table
    from rich.text import Text

    from vmsnix_ops.cli.output import COLOURS, EVIDENCE, cell, console, show_slow
    from vmsnix_ops.display import steps_table
    from vmsnix_ops.progress import human_seconds
    from vmsnix_ops.records.result import marked

    values, screen = marked(entry.values), console()
    seconds = values.get("seconds")
    took = f" in {human_seconds(seconds)}" if isinstance(seconds, int | float) else ""
    status = (line(_status(entry)), COLOURS.get(entry.status, ""))
    screen.print(Text.assemble(f"{line(entry.runbook)} ", status, took))
    _show_failure(entry)
    facts: list[tuple[str, object]] = [(name, values[key]) for key, name in FACTS if values.get(key)]
    for title, rows in (("", facts), ("parameters", list(entry.parameters.items()))):
        if not rows:
            continue
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            show_header=False,
            title=title,
            title_justify="left",
            title_style="dim",
        )
        for name, value in rows:
            table.add_row(cell(name), cell(value if isinstance(value, str) else json(value)))
        screen.print(table)
    steps = values.get("steps")
    if isinstance(steps, list) and steps:
        screen.print(str(steps_table(steps)), soft_wrap=True)
    show_slow(values)
    for problem in values.get("problems") or []:
        screen.print(cell(problem, "yellow"), soft_wrap=True)
    for name in EVIDENCE:
        if values.get(name):
            screen.print(cell(f"{name:<9} {values[name]}"), soft_wrap=True)
    for number in range(1, entry.attempt):
        earlier = (values.get("files") or {}).get(f"attempt-{number}/report.html") or {}
        screen.print(cell(f"attempt {number} {earlier.get('place', '')}"), soft_wrap=True)
    _show_how_to_apply(entry)
    if values.get("modified"):
        screen.print(cell(MODIFIED, "yellow"), soft_wrap=True)
    if entry.repeatable:
        again = Text.assemble(("again     ", "dim"), line(entry.command("rerun")))
        screen.print(again, soft_wrap=True)


def _status(entry: ArchivedRun) -> str:
    """Return the status, marked for a dry run, an interactive run and a run of a modified notebook."""
    from vmsnix_ops.records.result import is_dry_run

    marks = [name for name in ("interactive", "modified") if entry.values.get(name)]
    status = ", ".join([entry.status, *marks])
    return f"{status} (dry run)" if is_dry_run(entry.values) else status


def _show_how_to_apply(entry: ArchivedRun) -> None:
    """Write the command that applies exactly the plan of a dry run."""
    from vmsnix_ops.cli.output import cell, console
    from vmsnix_ops.records.result import is_dry_run

    values = entry.values
    fingerprint = values.get("plan_fingerprint")
    if not fingerprint or not is_dry_run(values):
        return
    words = [entry.command("rerun"), "--no-dry-run", "--expect-plan", fingerprint]
    words += ["--yes"] if values.get("side_effects") == "deletes" else []
    console().print(cell(f"{'apply':<9} {' '.join(words)}"), soft_wrap=True)


def _show_failure(entry: ArchivedRun) -> None:
    """Write the error of a failed or lost run."""
    from vmsnix_ops.cli.output import cell, console

    failure: Mapping[str, Any] = entry.values.get("failure") or {}
    if entry.status == "lost" and not failure:
        by_kernel = entry.values.get("interactive")  # cannot be resumed
        failure = {
            "what": "Its process ended without a result.",
            "why": "It was killed, or its machine stopped.",
            "fix": f"Save its notebook and report: {entry.command('runs repair')}"
            if by_kernel
            else f"Continue it: {entry.command('runs resume')}",
        }
    for part, style in (("what", "bold"), ("why", ""), ("fix", "")):
        if failure.get(part):
            console().print(cell(f"  {failure[part]}", style), soft_wrap=True)


def _open_report(archive: Archive, entry: ArchivedRun) -> None:
    """Open a run's report in the browser; a report on S3 is copied first."""
    import webbrowser
    from pathlib import Path

    from vmsnix_ops import files
    from vmsnix_ops.errors import ToolMissingError
    from vmsnix_ops.runbooks.evidence.archive import REPORT

    content = archive.read_file(entry, REPORT)
    path = Path(str(entry.values["files"][REPORT]["place"]))
    if archive.remote:
        path = archive.work.parent / "opened" / f"{entry.run_id}.html"
        files.make_folder(path.parent)
        files.write(path, content)
    sys.stdout.flush()
    if not webbrowser.open(path.as_uri()):
        raise ToolMissingError("No browser found for the report.", fix=f"Set BROWSER, or open {path}")
