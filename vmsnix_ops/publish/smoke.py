"""Smoke-test an AMI: launch an instance, wait for its checks, read its console, terminate it.

>>> from vmsnix_ops import smoke_test
>>> tested = smoke_test.plan(image="ecs-node", region="eu-central-1").apply()  # doctest: +SKIP
>>> tested.raise_for_status()  # doctest: +SKIP

One call does it all, because an instance that was launched must be terminated whatever happens: after a
failure, after Ctrl-C, and, by the next test, after the machine that tested it died.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import channels, instances, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.display import Displayed, DisplayTable, make_table, seconds
from vmsnix_ops.interrupts import stopping
from vmsnix_ops.progress import Progress, current
from vmsnix_ops.publish.home import checked_home
from vmsnix_ops.publish.journal import Entry, Journal, record_run
from vmsnix_ops.records.result import Result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.publish.values import StepTiming
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.settings import Settings

__all__ = ["SmokeTestPlan", "SmokeTestResult", "plan"]


def __dir__() -> list[str]:
    return __all__


# How a smoke test ends: its instance goes before anything is written down, and one that runs on is told.
#
# Between a failure and the call that terminates the instance stands only one look at its console. A journal,
# a table or a face of the progress may hang or fail (a full disk, an unreachable bucket): they come after.


@dataclass
class Seen:
    """What a test saw so far; kept also when it fails.

    Attributes
    ----------
    asked
        Whether AWS was asked for an instance: from then on there may be one whose id is not known.
    instance_id
        The instance; empty before AWS told it.
    console
        What it said, without secrets.
    passed
        Whether all that was tested was as it should be.
    ended
        Whether AWS was asked to terminate what there is.
    others
        Instances of this AMI's tests that were terminated because the id of ours was not known.
    refused
        By id, or an empty one for the look for it: why an instance may run on.
    gone
        Whether nothing is known to run.
    """

    asked: bool = False
    instance_id: str = ""
    console: str = ""
    passed: bool = False
    ended: bool = False
    others: list[str] = field(default_factory=list)
    refused: dict[str, errors.AwsError] = field(default_factory=dict)
    gone: bool = False

    def read(self, ec2: EC2Client) -> None:
        """Read the console once more, if there is an instance; what it said before is kept."""
        if self.instance_id:
            text = instances.read_console(ec2, self.instance_id).replace("\r\n", "\n")
            self.console = Redactor(secret_values()).text(text) or self.console


def end(ec2: EC2Client, ami_id: str, seen: Seen) -> None:
    """Ask AWS to terminate the instance of a test, once; what AWS refuses is kept in `Seen.refused`.

    Where AWS was asked for an instance and its answer was lost, every instance of the AMI's tests goes.

    Raises
    ------
    KeyboardInterrupt
        It came meanwhile; AWS was asked nevertheless.
    """
    if seen.ended:
        return
    try:
        if not seen.passed:
            with suppress(errors.AwsError):
                seen.read(ec2)  # what it said tells most about why
    finally:
        try:
            _terminate(ec2, ami_id, seen)
        except KeyboardInterrupt:  # maybe before AWS was asked; one more ends the process, see `stopping`
            _terminate(ec2, ami_id, seen)
            raise
        finally:
            seen.ended = True


def _terminate(ec2: EC2Client, ami_id: str, seen: Seen) -> None:
    seen.refused.clear()
    ids = [seen.instance_id] if seen.instance_id else []
    if seen.asked and not ids:
        try:
            seen.others = ids = [one.instance_id for one in instances.find_leftover_instances(ec2, ami_id)]
        except errors.AwsError as error:
            seen.refused[""] = error
    for instance_id in ids:
        try:
            instances.terminate_instances(ec2, [instance_id])
        except errors.AwsError as error:
            seen.refused[instance_id] = error


def outcome(caught: BaseException | None, seen: Seen, *, region: str) -> BaseException | None:
    """Return what a test that ended so is told as; ``None`` when it passed.

    Parameters
    ----------
    caught
        What ended it; ``None`` when nothing did.
    seen
        What it saw: an instance that may run on is told whatever else failed, with the command that ends it.
    region
        Where.
    """
    told, runs_on = caught, _runs_on(seen, region)
    if isinstance(caught, KeyboardInterrupt):
        told = errors.InterruptedRunError(
            "The smoke test was interrupted.", why=_fate(seen), fix="Run the same command again."
        )
    elif isinstance(caught, OSError):
        told = errors.RecordsError(
            "The record of the smoke test could not be written.",
            why=f"{caught}. {_fate(seen)}".strip(),
            fix="Free disk space in vmsnix's state folder, then run the same command again.",
        )
    if runs_on is not None:
        if told is None or told in seen.refused.values():
            told = runs_on
        elif isinstance(told, errors.VmsnixError):
            told = _both(told, runs_on)
        else:  # a mistake of ours, which is shown with its traceback
            told.add_note(str(runs_on))
    if told is not None and told is not caught:
        told.__cause__ = caught
    return told


def _runs_on(seen: Seen, region: str) -> errors.SmokeTestError | None:
    """Return which instance AWS refused to terminate, why, and the command that does it."""
    if not seen.refused:
        return None
    ids = [name for name in seen.refused if name]
    what, fix = (
        f"An instance of the test may still run in {region}.",
        f"Check for one: aws ec2 describe-instances --region {region} --filters "
        f"Name=tag-key,Values={tagging.SMOKE}",
    )
    if ids:
        what = f"{', '.join(ids)} still runs in {region}."
        fix = f"Terminate it: aws ec2 terminate-instances --region {region} --instance-ids {' '.join(ids)}"
    refused = list(seen.refused.values())
    why = " ".join(f"{error.what} {error.why}".strip() for error in refused)
    first = refused[0]
    return errors.SmokeTestError(
        what, why=why, fix=fix, code=first.code, operation=first.operation, request_id=first.request_id
    )


def _both(told: errors.VmsnixError, runs_on: errors.SmokeTestError) -> errors.VmsnixError:
    """Return one error that says both; an interrupt stays one."""
    kind = type(told) if isinstance(told, errors.InterruptedRunError) else errors.SmokeTestError
    what = " ".join(part for part in (told.what, told.why, runs_on.what) if part)
    return kind(what, why=runs_on.why, fix=f"{runs_on.fix} {told.fix}".strip())


def _fate(seen: Seen) -> str:
    """Return what became of the instance; one that AWS refused to terminate is told by `_runs_on`."""
    if seen.refused:
        return ""
    names = [seen.instance_id] if seen.instance_id else seen.others
    if not names:
        return "No test instance is running."
    return f"{', '.join(names)} {'was terminated' if seen.gone else 'is being terminated'}."


CONSOLE_SECONDS = 10 * 60.0
SHOWN_LINES = 40


@dataclass(frozen=True, slots=True)
class SmokeTestPlan(Displayed):
    """A checked smoke test that has not started. Make it with `plan`.

    Attributes
    ----------
    ami
        What is tested.
    wanted
        The instance that will be launched.
    pattern
        Regular expression that its console must hold; empty: it is only read.
    checks
        What was checked of credentials, account and region.
    dry_run
        `run` launches nothing.
    """

    ami: Ami
    wanted: instances.InstanceLaunch
    pattern: str
    checks: tuple[Check, ...]
    dry_run: bool
    ec2: EC2Client = field(repr=False, compare=False)
    journal: Journal = field(repr=False, compare=False)

    def facts(self) -> list[tuple[str, str]]:
        """Return what will happen, step by step."""
        wanted = self.wanted
        how = f"{wanted.instance_type}{', spot' if wanted.spot else ''}, IMDSv2 only, no key"
        said = f"wait until the console matches {self.pattern!r}" if self.pattern else "read the console"
        lines = [
            ("clear", "terminate instances of earlier tests"),
            ("launch", f"an instance of {self.ami.ami_id} ({self.ami.name}): {how}"),
            ("checks", "wait until both status checks are ok"),
            ("console", said),
            ("terminate", "also after a failure"),
        ]
        lines += [(one.name, f"{one.found} {one.fix}") for one in self.checks if one.outcome == "warn"]
        return [*lines, *([("dry run", "nothing will be launched")] if self.dry_run else [])]

    @property
    def title(self) -> str:
        """One line."""
        return f"Smoke test of {self.ami.name} in {self.ami.region}, account {self.ami.account}"

    def apply(self) -> SmokeTestResult:
        """Launch, check, read and terminate an instance; the result of a test that failed has an `error`.

        Safe to run twice, and after a crash at any point: instances are found again by their tag and
        terminated, and the token of a launch carries the attempt. SIGINT and SIGTERM terminate the instance
        first; the second one ends the process at once, and the next test terminates it.

        Raises
        ------
        vmsnix_ops.errors.InterruptedRunError
            The operator asked to stop; it says what became of the instance.
        """
        return _apply(self)


@dataclass(frozen=True, slots=True)
class SmokeTestResult(Result):
    """The result of a smoke test.

    Attributes
    ----------
    plan
        What was tested, and how.
    instance_id
        The instance, which is gone; empty in a dry run.
    console
        What it said, without secrets.
    terminated
        Whether it is known to be terminated.
    steps
        Each step's timing.
    error
        Why the test failed; ``None`` when it passed.
    """

    plan: SmokeTestPlan
    instance_id: str
    console: str
    terminated: bool
    steps: tuple[StepTiming, ...]
    error: errors.VmsnixError | None = None

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.journal.run

    @property
    def passed(self) -> bool:
        """Whether everything went as it should."""
        return self.error is None

    def frame(self) -> pd.DataFrame:
        """Return the steps: ``step``, ``status``, ``seconds``."""
        import pandas as pd

        rows = [(one.step, one.status, round(one.seconds, 2)) for one in self.steps]
        return pd.DataFrame(rows, columns=["step", "status", "seconds"])

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        said = plain(self.console).splitlines()[-SHOWN_LINES:]
        rows = [("outcome", "passed" if self.passed else "failed"), ("instance_id", self.instance_id)]
        rows += [("why", str(self.error))] if self.error else []
        return [*rows, ("terminated", str(self.terminated)), ("console", "\n".join(said) or "(nothing)")]

    def table(self) -> DisplayTable:
        """Return how long each step took, for people."""
        rows = [(one.step, one.status, seconds(one.seconds)) for one in self.steps]
        return make_table(("step", "status", "took"), rows, right=("took",))

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        plan = self.plan
        return {
            "status": "done" if self.passed else "failed",
            "dry_run": plan.dry_run,
            "ami_id": plan.ami.ami_id,
            "image_name": plan.ami.name,
            "region": plan.ami.region,
            "account": plan.ami.account,
            "image": plan.journal.image,
            "digest": plan.ami.digest,
            "instance_id": self.instance_id or None,
            "instance_type": plan.wanted.instance_type,
            "spot": plan.wanted.spot,
            "terminated": self.terminated,
            "console": self.console[-10_000:],
            "seconds": round(sum(one.seconds for one in self.steps), 3),
            "steps": [asdict(one) for one in self.steps],
        }


@check_arguments
def plan(
    *,
    ami: str = "",
    image: str = "",
    region: str = "",
    instance_type: str = "",
    spot: bool = False,
    subnet: str = "",
    pattern: str = "NixOS",
    dry_run: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> SmokeTestPlan:
    """Check the AMI, and return what will happen. Nothing is launched.

    Parameters
    ----------
    ami, image
        What to test: as for `vmsnix_ops.channels.promote.plan`.
    region
        Where; by default the settings' region, else AWS's own.
    instance_type
        By default the smallest that does for the AMI's architecture.
    spot
        Run it on spare capacity.
    subnet
        Where the account has no default one.
    pattern
        Regular expression that the console must hold; empty reads it and judges nothing.
    dry_run
        `run` launches nothing.
    settings, progress, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        A parameter is missing or cannot be right.
    vmsnix_ops.errors.AwsError
        Credentials, account or region would not do, or nothing can be launched from the AMI.
    """
    _check_pattern(pattern)
    if not ami and not image:
        raise errors.ParameterError("No AMI given.", fix="Add --ami, or --image for the image's newest AMI.")
    home = checked_home(region, settings=settings, session=session)
    ec2 = home.ec2
    found = channels.find_ami(ec2, home.ssm, ami, image=image, settings=home.settings)
    tested = channels.check_usable(found, owner=home.account, now=datetime.now(UTC))
    snapshots.check_snapshots_of(ec2, tested)
    kind = instance_type or instances.INSTANCE_TYPES.get(tested.architecture, "")
    if not kind:
        raise errors.ParameterError(
            f"No instance type for the architecture {tested.architecture!r}.",
            fix="Add --instance-type TYPE.",
        )
    tags = {
        tagging.NAME: f"smoke test of {tested.name}",
        tagging.SMOKE: tested.ami_id,
        tagging.IMAGE: tested.tags[tagging.IMAGE],
    }
    this_run = current_run("smoke-test", settings=home.settings)
    journal = Journal(
        this_run,
        RunTables(home.settings, this_run),
        progress or current(),
        region=home.region,
        account=home.account,
        via="",
    )
    journal.image, journal.digest = tested.tags[tagging.IMAGE], tested.digest
    wanted = instances.InstanceLaunch(tested.ami_id, kind, spot, subnet, tags)
    return SmokeTestPlan(tested, wanted, pattern, home.checks, dry_run, ec2, journal)


def _apply(plan: SmokeTestPlan) -> SmokeTestResult:
    if plan.dry_run:
        return SmokeTestResult(plan, "", "", terminated=True, steps=())
    journal, seen = plan.journal, Seen()
    caught: BaseException | None = None
    with stopping():
        for part in (_test, _end, _wait_for_the_end):  # each whatever became of those before
            try:
                part(plan, seen)
            except BaseException as failure:  # noqa: BLE001 (it is told below, once nothing runs any more)
                caught = caught or failure
    error = outcome(caught, seen, region=plan.ami.region)
    if error is not None and not isinstance(error, errors.VmsnixError):
        raise error
    if isinstance(error, errors.InterruptedRunError):
        raise error
    if error is None:
        record_run(
            journal.run, journal.tables, "done", journal.started_at,
            region=plan.ami.region, account=plan.ami.account, image=journal.image, ami_id=plan.ami.ami_id,
        )  # fmt: skip
    return SmokeTestResult(plan, seen.instance_id, seen.console, seen.gone, tuple(journal.timings), error)


@contextmanager
def _step(plan: SmokeTestPlan, seen: Seen, name: str) -> Iterator[Entry]:
    """Run the block as a step of the journal; one that fails ends the instance before it is written down."""
    with plan.journal.step(name) as entry:
        try:
            yield entry
        except BaseException:
            _end(plan, seen)
            raise


def _test(plan: SmokeTestPlan, seen: Seen) -> None:
    ec2 = plan.ec2
    with plan.journal.step("clear") as entry:
        left = instances.find_leftover_instances(ec2, plan.ami.ami_id)
        instances.terminate_instances(ec2, [one.instance_id for one in left])
        entry.outcome = "created" if left else "reused"
        entry.detail.update(terminated=[one.instance_id for one in left])
    with _step(plan, seen, "launch") as entry:
        # A notebook's plan may be hours old.
        channels.check_still_usable(ec2, plan.ami.ami_id, owner=plan.ami.account)
        seen.asked = True
        seen.instance_id = instances.launch_instance(ec2, plan.wanted)
        entry.detail.update(instance_id=seen.instance_id, instance_type=plan.wanted.instance_type)
        # A retirement that marked the AMI in between may not have seen the instance; see aws.retiring.
        channels.check_repeatedly(ec2, plan.ami.ami_id, owner=plan.ami.account)
        instances.wait_running(ec2, seen.instance_id, step=entry.step)
    with _step(plan, seen, "checks") as entry:
        instances.wait_checks(ec2, seen.instance_id, step=entry.step)
    with _step(plan, seen, "console") as entry:
        _read_console(plan, seen)
        entry.detail.update(pattern=plan.pattern, characters=len(seen.console))
    seen.passed = True


def _end(plan: SmokeTestPlan, seen: Seen) -> None:
    end(plan.ec2, plan.ami.ami_id, seen)


def _wait_for_the_end(plan: SmokeTestPlan, seen: Seen) -> None:
    """Wait until the instance is terminated, and write down when that was, or why it is not."""
    with plan.journal.step("terminate") as entry:
        entry.detail.update(instance_id=seen.instance_id or None, others=seen.others)
        if seen.refused:
            raise next(iter(seen.refused.values()))
        if seen.instance_id:
            instances.wait_terminated(plan.ec2, seen.instance_id, step=entry.step)
        seen.gone = True


def _read_console(plan: SmokeTestPlan, seen: Seen) -> None:
    """Wait until the console holds the pattern; without one, until it holds anything."""
    pattern = re.compile(plan.pattern or r"\S", re.MULTILINE)

    def read() -> PollResult[str]:
        seen.read(plan.ec2)
        return PollResult("done" if pattern.search(seen.console) else "waiting", seen.console)

    try:
        poll(read, what="the console", deadline=CONSOLE_SECONDS, interval=PollInterval(longest=10.0))
    except errors.DeadlineError as error:
        if not plan.pattern:
            return  # it was only to be read, and an image may be silent
        said = (
            f"Its last line is {seen.console.splitlines()[-1]!r}."
            if seen.console.strip()
            else "The console is empty."
        )
        raise errors.SmokeTestError(
            f"The console of {seen.instance_id} never matched {plan.pattern!r}.",
            why=said,
            fix="Check the console output. If it is empty, add console=ttyS0 to the image's kernel "
            "parameters.",
        ) from error


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise errors.ParameterError(
            f"The pattern {pattern!r} is not a regular expression.",
            why=f"{error}.",
            fix="Put a backslash before literal characters such as ( [ + * ?.",
        ) from error
