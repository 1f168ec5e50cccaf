"""Carrying a promotion out: all regions at once, each by itself, and everything written down.

A region ends at its first failure and the others go on. What a region came to is recorded as soon as it ends.

A channel that somebody changed between plan and write ends the promotion everywhere: nothing more is changed,
and a person decides which value is right.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import images
from vmsnix_ops.channels import announcements, promote_records, promote_steps
from vmsnix_ops.progress import Step as Shown
from vmsnix_ops.publish import served
from vmsnix_ops.publish.interrupts import stopping
from vmsnix_ops.publish.journal import record_outcomes, record_run
from vmsnix_ops.publish.outcomes import ANNOUNCE, CONFLICT, Outcomes, StepOutcome, recorded
from vmsnix_ops.records import acts
from vmsnix_ops.records.result import write_then_raise

if TYPE_CHECKING:
    from concurrent.futures import Future

    from vmsnix_ops.channels.promote import Plan, Target, Verdict
    from vmsnix_ops.channels.promote_steps import Spot
    from vmsnix_ops.publish.outcomes import Outcome

JOB = "The promotion"
HALTED = "a channel was changed between plan and write; nothing more is changed"
UNRECORDED = "an act that cannot be undone could not be announced on the disk; nothing more is changed"
PLANNED: dict[Verdict, Outcome] = {
    "to do": "planned",
    "already so": "already so",
    "refused": "failed",
    "not looked at": "skipped",
}
"""What a dry run comes to."""


def apply(plan: Plan) -> Outcomes:
    """Do everything that the plan lists, and return what became of it. In a dry run nothing is done.

    Safe to run twice, and after a crash at any point: every step looks first, copies have ClientTokens of
    their content, and a message goes out once the tables do not know it. SIGINT and SIGTERM end it between
    two looks; the second one at once.

    Raises
    ------
    vmsnix_ops.errors.InterruptedRunError
        The operator asked to stop.
    """
    if plan.dry_run:
        return Outcomes(JOB, tuple(_planned(plan)), plan.run.run_id, dry_run=True)
    stop, halted = threading.Event(), list[str]()
    spots = [replace(each, ami=None, still_wanted=lambda: _stop_if(stop)) for each in plan.spots]
    done: dict[str, list[StepOutcome]] = {}
    with stopping(), ThreadPoolExecutor(len(spots), thread_name_prefix="promote") as pool:
        running = {
            pool.submit(_region, plan, target, each, halted): each
            for target, each in zip(plan.targets, spots, strict=True)
        }
        try:
            for future in as_completed(running):
                each = running[future]
                done[each.region] = _record(plan, each, future)
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, each in running.items():
                if each.region not in done and not future.cancelled() and future.exception() is None:
                    done[each.region] = _record(plan, each, future)
            interrupted = isinstance(error, KeyboardInterrupt)
            record_run(
                plan.run, plan.tables, "interrupted" if interrupted else "failed", plan.started_at,
                **_run_columns(plan), error=str(error) or type(error).__name__,
            )  # fmt: skip
            if interrupted:
                raise _interrupted() from error
            raise
    rows = [row for target in plan.targets for row in done[target.region]]
    if plan.topic and halted:
        rows.append(StepOutcome(plan.topic.split(":")[3], ANNOUNCE, "skipped", why=halted[0]))
    elif plan.topic:
        rows += _announce(plan, spots, rows)
    outcomes = Outcomes(JOB, tuple(rows), plan.run.run_id)
    return record_outcomes(plan.run, plan.tables, outcomes, plan.started_at, **_run_columns(plan))


def finish(plan: Plan, outcomes: Outcomes) -> None:
    """Write ``result.json``, and end the run as it deserves.

    Raises
    ------
    vmsnix_ops.errors.PartlyDoneError
        Something is as wanted and something is not: exit code 3.
    vmsnix_ops.errors.VmsnixError
        Nothing is as wanted.
    """
    source = plan.wanted.source
    amis = {row.region: row.ami_id for row in outcomes.rows if row.ami_id}
    write_then_raise(
        plan.run,
        {
            "status": outcomes.status,
            "dry_run": plan.dry_run,
            "ami_id": source.ami_id,
            "image_name": source.name,
            "region": source.region,
            "account": plan.account,
            "image": plan.image,
            "digest": source.digest,
            "channel": plan.channel or None,
            "pointer": plan.wanted.pointer or None,
            "amis": amis,
            "outcomes": [outcomes.plain(row) for row in outcomes.rows],
            "overwritten": [error.overwritten for error in outcomes.conflicts],
            "seconds": round(sum(row.seconds for row in outcomes.rows), 3),
        },
        outcomes.error(),
    )


def _planned(plan: Plan) -> list[StepOutcome]:
    """Return what a dry run comes to: what would be done, and what would be refused."""
    rows = []
    for target in plan.targets:
        for step in target.steps:
            row = StepOutcome(
                target.region,
                step.step,
                PLANNED[step.verdict],
                ami_id=target.ami_id,
                best_effort=target.best_effort,
                error=step.problem,
            )
            sound = step.verdict in ("to do", "already so")
            rows.append(replace(row, what=step.what) if sound else replace(row, why=step.what))
    return rows + announcements.planned(plan.topic)


def _region(plan: Plan, target: Target, spot: Spot, halted: list[str]) -> list[StepOutcome]:
    """Carry out the steps of one region, up to the first that fails, or that ends the whole promotion.

    `halted` says why nothing more is changed anywhere; it is empty as long as the promotion goes on.
    """
    rows: list[StepOutcome] = []
    failed = ""
    with (
        acts.recording(plan.run.folder, plan.run.run_id),
        plan.progress.step(spot.region, total=100, unit="percent") as shown,
    ):
        spot.shown = shown
        steps = promote_steps.steps(plan.wanted, home=spot.is_home)
        for step in steps:
            row = StepOutcome(spot.region, step.name, "skipped", best_effort=target.best_effort)
            if failed or halted:
                why = f"after the failed {failed}" if failed else halted[0]
                rows.append(replace(row, why=why, ami_id=spot.ami_id))
                continue
            started = time.monotonic()
            try:
                spot.still_wanted()
                if not rows:
                    spot.check_region()
                if spot.is_home:
                    _look_again(plan, spot)
                row = _step(step, spot, row)
                if step is steps[-1] and "done" in {row.outcome, *(one.outcome for one in rows)}:
                    _check_again(plan, spot, step)
            except errors.InterruptedRunError:
                raise
            except errors.VmsnixError as error:
                row, failed = replace(row, outcome="failed", why=str(error), error=error), step.name
                if isinstance(error, errors.UnrecordedActError):
                    halted.append(UNRECORDED)
                shown.message(f"{step.name} failed: {error}")
            rows.append(replace(row, ami_id=spot.ami_id, seconds=round(time.monotonic() - started, 3)))
            if spot.moved is not None and spot.moved.overwritten is not None:
                halted.append(HALTED)
                overwrote = spot.moved.overwritten.error()
                spot.pointed_to = spot.moved.overwritten.value
                # It counts also where a failure would not: somebody else's value was replaced.
                rows.append(
                    StepOutcome(
                        spot.region,
                        CONFLICT,
                        "failed",
                        why=str(overwrote),
                        ami_id=spot.ami_id,
                        error=overwrote,
                    )
                )
    return rows


def _step(step: promote_steps.Step, spot: Spot, row: StepOutcome) -> StepOutcome:
    looked = step.look(spot)
    if looked.so:
        return replace(row, outcome="already so", what=looked.what)
    if isinstance(spot.shown, Shown):
        spot.shown.message(f"{step.name}: {looked.what}")
    step.do(spot)
    return replace(row, outcome="done", what=looked.what)


def _check_again(plan: Plan, spot: Spot, step: promote_steps.Step) -> None:
    """Check once more that nobody retires the AMI of a region, after everything there was written.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        Somebody does; the channel has its earlier value again, if we set it and nobody else did since.
    vmsnix_ops.errors.UnrecordedActError
        The AMI is being retired, and the channel that this run made could not be deleted again.
    """
    try:
        served.check_again(spot.ec2, spot.ami_id, owner=plan.account)
    except errors.VmsnixError as error:
        if not isinstance(step, promote_steps.Point) or spot.moved is None:
            raise
        kind: type[errors.VmsnixError] = errors.RegistrationError
        fix = error.cure
        if spot.moved.overwritten is not None:
            what = f"{plan.wanted.pointer} in {spot.region} still names it."  # nothing more is changed
        else:
            try:
                what = step.give_back(spot)
            except errors.VmsnixError as second:
                what = f"{plan.wanted.pointer} in {spot.region} still names it. {second.what} {second.why}"
                if isinstance(second, errors.UnrecordedActError):
                    kind = errors.UnrecordedActError  # which ends the promotion in every region
                    where = f"--region {spot.region} --name {plan.wanted.pointer}"
                    fix = f"{error.cure} Delete the channel: aws ssm delete-parameter {where}"
        raise kind(error.what, why=f"{error.why} {what}".strip(), cure=fix) from error


def _look_again(plan: Plan, spot: Spot) -> None:
    """See whether the AMI is still one to promote: the plan may be hours old."""
    source = plan.wanted.source
    found = images.find(spot.ec2, [source.ami_id]).get(source.ami_id)
    if found is None:
        raise errors.RegistrationError(
            f"The AMI {source.ami_id} in {source.region} is gone.",
            why="Somebody deregistered it after the plan was made.",
            cure="Make a new plan.",
        )
    spot.ami = served.check_usable(found, owner=plan.account, now=datetime.now(UTC))


def _record(plan: Plan, spot: Spot, future: Future[list[StepOutcome]]) -> list[StepOutcome]:
    """Write down what a region came to; where that fails, what was done is done, and the others go on."""
    rows = future.result()
    failed = any(row.outcome in ("failed", "skipped") for row in rows if row.step != CONFLICT)

    def look_back() -> None:
        if spot.ami is not None:
            promote_records.write(plan, spot, pointed=not failed)

    return recorded(rows, spot.region, look_back, lambda: _write_steps(plan, rows))


def _announce(plan: Plan, spots: list[Spot], rows: list[StepOutcome]) -> list[StepOutcome]:
    """Tell the topic of every region that is as wanted."""
    failed = {row.region for row in rows if row.outcome == "failed" and row.step != "record"}
    amis = {spot.region: spot.ami_id for spot in spots if spot.ami_id and spot.region not in failed}
    source = plan.wanted.source
    content = {
        "image": plan.image,
        "channel": plan.channel,
        "name": source.name,
        "digest": source.digest,
        "account": plan.account,
        "amis": dict(sorted(amis.items())),
    }
    return announcements.announce(plan.topic, content, run=plan.run, tables=plan.tables, session=plan.session)


def _write_steps(plan: Plan, rows: list[StepOutcome]) -> None:
    digest = plan.wanted.source.digest
    promote_records.write_rows(plan.tables, plan.run, rows, image=plan.image, digest=digest)


def _run_columns(plan: Plan) -> dict[str, Any]:
    source = plan.wanted.source
    return {
        "region": source.region,
        "account": plan.account,
        "image": plan.image,
        "image_name": source.name,
        "ami_id": source.ami_id,
    }


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise _interrupted()


def _interrupted() -> errors.InterruptedRunError:
    return errors.InterruptedRunError(
        "The promotion was interrupted.",
        why="Copies that run go on in AWS; what was done stays.",
        cure="Run the same command again to go on.",
    )
