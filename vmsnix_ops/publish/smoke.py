"""Smoke-test an AMI: launch an instance, wait for its checks, read its console, terminate it.

>>> from vmsnix_ops import smoke_test
>>> tested = smoke_test.plan(image="ecs-node", region="eu-central-1").apply()  # doctest: +SKIP
>>> tested.raise_for_status()  # doctest: +SKIP

A test is one call, so that its instance is always terminated: after a failure, after Ctrl-C, and by the next
test if the process was killed.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.aws import channels, instances, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.display import DisplayTable, make_table, seconds
from vmsnix_ops.interrupts import stopping
from vmsnix_ops.progress import Progress, current
from vmsnix_ops.publish.home import check_home
from vmsnix_ops.publish.journal import JournalEntry, StepJournal, record_run
from vmsnix_ops.records.fingerprints import FingerprintedPlan, check_plan, record_plan
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

    from vmsnix_ops.aws.checks import CheckResult
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.publish.values import StepTiming
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.settings import Settings

__all__ = ["SmokeTestPlan", "SmokeTestResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


# The end of a smoke test. Its instance is terminated before anything is recorded, because records may fail or
# hang (a full disk, an unreachable bucket). Before that, only the console is read.


@dataclass
class SmokeTestState:
    """The progress of a test."""

    # Whether an instance was requested. From then on there may be one with an unknown ID.
    requested: bool = False
    instance_id: str = ""  # the instance; empty until AWS has returned its ID
    console: str = ""  # the console, without secrets
    passed: bool = False  # whether all checks passed
    ended: bool = False  # whether AWS was requested to terminate the instances
    # Instances of this AMI's tests that were terminated because the ID of the own one is unknown.
    others: list[str] = field(default_factory=list)
    # AWS's errors by instance ID (empty for the search for instances); such an instance may still run.
    refused: dict[str, errors.AwsError] = field(default_factory=dict)
    terminated: bool = False  # whether no instance is known to run

    def read(self, ec2: EC2Client) -> None:
        """Read the console of the instance; an empty answer does not replace an earlier one."""
        if self.instance_id:
            text = instances.read_console(ec2, self.instance_id).replace("\r\n", "\n")
            self.console = Redactor(secret_values()).text(text) or self.console


def _end(plan: SmokeTestPlan, state: SmokeTestState) -> None:
    """Terminate the instance of a test, once; AWS's errors are in `SmokeTestState.refused`.

    If the ID of the instance is unknown, all instances of this AMI's tests are terminated. After Ctrl-C the
    instances are terminated nevertheless.
    """
    if state.ended:
        return
    try:
        if not state.passed:
            with suppress(errors.AwsError):
                state.read(plan.ec2)  # for the reason of the failure
    finally:
        try:
            _terminate(plan.ec2, plan.ami.ami_id, state)
        except KeyboardInterrupt:  # perhaps before the request; a second one ends the process, see `stopping`
            _terminate(plan.ec2, plan.ami.ami_id, state)
            raise
        finally:
            state.ended = True


def _terminate(ec2: EC2Client, ami_id: str, state: SmokeTestState) -> None:
    state.refused.clear()
    ids = [state.instance_id] if state.instance_id else []
    if state.requested and not ids:
        try:
            state.others = ids = [one.instance_id for one in instances.find_leftover_instances(ec2, ami_id)]
        except errors.AwsError as error:
            state.refused[""] = error
    for instance_id in ids:
        try:
            instances.terminate_instances(ec2, [instance_id])
        except errors.AwsError as error:
            state.refused[instance_id] = error


def _final_error(caught: BaseException | None, state: SmokeTestState, *, region: str) -> BaseException | None:
    """Return the error of a test whose first exception is `caught`, with any instance that may still run."""
    error, running = caught, _still_running(state, region)
    if isinstance(caught, KeyboardInterrupt):
        error = errors.InterruptedRunError(
            "The smoke test was interrupted.", why=_instances_text(state), fix="Run the same command again."
        )
    elif isinstance(caught, OSError):
        error = errors.RecordsError(
            "The record of the smoke test could not be written.",
            why=f"{caught}. {_instances_text(state)}".strip(),
            fix="Free disk space in vmsnix's state folder, then run the same command again.",
        )
    if running is not None:
        if error is None or error in state.refused.values():
            error = running
        elif isinstance(error, errors.VmsnixError):
            error = _both(error, running)
        else:  # a bug, which is shown with its traceback
            error.add_note(str(running))
    if error is not None and error is not caught:
        error.__cause__ = caught
    return error


def _still_running(state: SmokeTestState, region: str) -> errors.SmokeTestError | None:
    """Return the error for instances that AWS refused to terminate, with the command to terminate them."""
    if not state.refused:
        return None
    ids = [name for name in state.refused if name]
    what, fix = (
        f"An instance of the test may still run in {region}.",
        f"Check for one: aws ec2 describe-instances --region {region} --filters "
        f"Name=tag-key,Values={tagging.SMOKE}",
    )
    if ids:
        what = f"{', '.join(ids)} still runs in {region}."
        fix = f"Terminate it: aws ec2 terminate-instances --region {region} --instance-ids {' '.join(ids)}"
    refused = list(state.refused.values())
    why = " ".join(f"{error.what} {error.why}".strip() for error in refused)
    return refused[0].restated(errors.SmokeTestError, what, why=why, fix=fix)


def _both(error: errors.VmsnixError, running: errors.SmokeTestError) -> errors.VmsnixError:
    """Return one error for both; the error of an interrupt keeps its class."""
    kind = type(error) if isinstance(error, errors.InterruptedRunError) else errors.SmokeTestError
    what = " ".join(part for part in (error.what, error.why, running.what) if part)
    return kind(what, why=running.why, fix=f"{running.fix} {error.fix}".strip())


def _instances_text(state: SmokeTestState) -> str:
    """Return a sentence about the instances of the test; empty if AWS refused to terminate one."""
    if state.refused:
        return ""
    names = [state.instance_id] if state.instance_id else state.others
    if not names:
        return "No test instance is running."
    return f"{', '.join(names)} {'was terminated' if state.terminated else 'is being terminated'}."


CONSOLE_SECONDS = 10 * 60.0
SHOWN_LINES = 40


@dataclass(frozen=True, slots=True)
class SmokeTestPlan(FingerprintedPlan):
    """A checked smoke test that has not started. Make it with `plan`."""

    ami: Ami
    wanted: instances.InstanceLaunch  # the parameters of the instance
    pattern: str  # regular expression that the console must match; empty to only read it
    checks: tuple[CheckResult, ...]  # the checks of credentials, account and region
    dry_run: bool  # whether `apply` launches nothing
    expect_plan: str  # fingerprint of the plan that `apply` may carry out; empty for any
    ec2: EC2Client = field(repr=False, compare=False)
    journal: StepJournal = field(repr=False, compare=False)

    def facts(self) -> list[tuple[str, str]]:
        """Return what each step will do."""
        wanted = self.wanted
        how = f"{wanted.instance_type}{', spot' if wanted.spot else ''}, IMDSv2 only, no key"
        console = f"wait until the console matches {self.pattern!r}" if self.pattern else "read the console"
        lines = [
            ("clear", "terminate instances of earlier tests"),
            ("launch", f"an instance of {self.ami.ami_id} ({self.ami.name}): {how}"),
            ("checks", "wait until both status checks are ok"),
            ("console", console),
            ("terminate", "also after a failure"),
        ]
        lines += [(one.name, f"{one.found} {one.fix}") for one in self.checks if one.outcome == "warn"]
        if self.dry_run:
            lines.append(("dry run", f"nothing will be launched. {self.how_to_apply}"))
        return lines

    def content(self) -> dict[str, str]:
        """Return the facts of the plan by their names."""
        ami, wanted = self.ami, self.wanted
        return {
            "account": ami.account,
            "region": ami.region,
            "AMI": f"{ami.ami_id} ({ami.name}), {ami.digest}",
            "instance type": wanted.instance_type,
            "spot": "yes" if wanted.spot else "",
            "subnet": wanted.subnet,
            "pattern": self.pattern,
        }

    @property
    def title(self) -> str:
        """One line."""
        return f"Smoke test of {self.ami.name} in {self.ami.region}, account {self.ami.account}"

    def apply(self) -> SmokeTestResult:
        """Launch, check, read and terminate an instance; the result of a failed test has an `error`.

        Safe to run twice, also after a crash: the next test finds the instances by their tag and terminates
        them. After SIGINT or SIGTERM the instance is terminated first; a second signal ends the process at
        once.

        Raises
        ------
        vmsnix_ops.errors.StalePlanError
            It is not the expected plan; nothing was done.
        vmsnix_ops.errors.InterruptedRunError
            The test was interrupted; has the state of the instance.
        """
        facts, journal = self.content(), self.journal
        check_plan(facts, self.expect_plan, journal.tables)
        if self.dry_run:
            record_plan(facts, journal.tables, runbook=journal.run.runbook, run_id=journal.run.run_id)
        return _apply(self)


@dataclass(frozen=True, slots=True)
class SmokeTestResult(Result):
    """The result of a smoke test."""

    plan: SmokeTestPlan
    instance_id: str
    console: str  # its console, without secrets
    terminated: bool  # whether it is known to be terminated; true also if none was launched
    steps: tuple[StepTiming, ...]
    error: errors.VmsnixError | None = None  # the error of a failed test

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.journal.run

    @property
    def passed(self) -> bool:
        """Whether the test passed."""
        return self.error is None

    def frame(self) -> pd.DataFrame:
        """Return the steps: ``step``, ``status``, ``seconds``."""
        import pandas as pd

        rows = [(one.step, one.status, round(one.seconds, 2)) for one in self.steps]
        return pd.DataFrame(rows, columns=["step", "status", "seconds"])

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        if self.plan.dry_run:
            return self.plan.facts()
        lines = plain(self.console).splitlines()[-SHOWN_LINES:]
        rows = [("outcome", "passed" if self.passed else "failed"), ("instance_id", self.instance_id)]
        rows += [("why", str(self.error))] if self.error else []
        return [*rows, ("terminated", str(self.terminated)), ("console", "\n".join(lines) or "(nothing)")]

    @property
    def title(self) -> str:
        """The title of the plan."""
        return f"{self.plan.title} (dry run)" if self.plan.dry_run else ""

    def table(self) -> DisplayTable | None:
        """Return the duration of each step; no table after a dry run."""
        if self.plan.dry_run:
            return None
        rows = [(one.step, one.status, seconds(one.seconds)) for one in self.steps]
        return make_table(("step", "status", "took"), rows, right=("took",))

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        plan = self.plan
        return {
            "status": "done" if self.passed else "failed",
            "dry_run": plan.dry_run,
            "plan_fingerprint": plan.fingerprint,
            "ami_id": plan.ami.ami_id,
            "image_name": plan.ami.name,
            "region": plan.ami.region,
            "account": plan.ami.account,
            "image": plan.journal.image,
            "digest": plan.ami.digest,
            "instance_id": self.instance_id or None,
            "instance_type": plan.wanted.instance_type,
            "spot": plan.wanted.spot,
            "terminated": None if plan.dry_run else self.terminated,
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
    expect_plan: str = "",
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> SmokeTestPlan:
    """Check the AMI, and return the plan of a test. Nothing is launched.

    Parameters
    ----------
    ami, image
        The AMI: as for `vmsnix_ops.channels.promote.plan`.
    region
        By default the region of the settings, else of AWS.
    instance_type
        By default a small type with the AMI's architecture.
    spot
        Launch a spot instance.
    subnet
        Subnet, if the account has no default one.
    pattern
        Regular expression that the console must match; empty to only read it.
    dry_run
        Launch nothing.
    expect_plan
        Fingerprint of the dry run that was checked: `apply` refuses another plan.
    settings, progress, session
        Override the defaults from vmsnix.toml and the AWS environment.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        A parameter is missing or invalid.
    vmsnix_ops.errors.AwsError
        Credentials, account, region or AMI are unusable.
    """
    _check_pattern(pattern)
    if not ami and not image:
        raise errors.ParameterError("No AMI given.", fix="Add --ami, or --image for the image's newest AMI.")
    home = check_home(region, settings=settings, session=session)
    ec2 = home.ec2
    found = channels.find_ami(ec2, home.ssm, ami, image=image, settings=home.settings)
    tested = channels.check_usable(found, owner=home.account)
    snapshots.check_snapshots_of(ec2, tested)
    kind = instance_type or instances.INSTANCE_TYPES.get(tested.architecture, "")
    if not kind:
        raise errors.ParameterError(
            f"No instance type for the architecture {tested.architecture!r}.", fix="Add --instance-type TYPE."
        )
    tags = {
        tagging.NAME: f"smoke test of {tested.name}",
        tagging.SMOKE: tested.ami_id,
        tagging.IMAGE: tested.tags[tagging.IMAGE],
    }
    this_run = current_run("smoke-test", settings=home.settings)
    journal = StepJournal(
        this_run,
        RunTables(home.settings, this_run),
        progress or current(),
        region=home.region,
        account=home.account,
        via="",
    )
    journal.image, journal.digest = tested.tags[tagging.IMAGE], tested.digest
    journal.dry_run = dry_run
    wanted = instances.InstanceLaunch(tested.ami_id, kind, spot, subnet, tags)
    return SmokeTestPlan(tested, wanted, pattern, home.checks, dry_run, expect_plan, ec2, journal)


def _apply(plan: SmokeTestPlan) -> SmokeTestResult:
    if plan.dry_run:
        return SmokeTestResult(plan, "", "", terminated=True, steps=())
    journal, state = plan.journal, SmokeTestState()
    caught: BaseException | None = None
    with stopping():
        for part in (_test, _end, _wait_until_terminated):  # all of them, also after a failure
            try:
                part(plan, state)
            except BaseException as failure:  # noqa: BLE001 (raised after the instance is terminated)
                caught = caught or failure
    error = _final_error(caught, state, region=plan.ami.region)
    if error is not None and not isinstance(error, errors.VmsnixError):
        raise error
    if isinstance(error, errors.InterruptedRunError):
        raise error
    if error is None:
        record_run(
            journal.run, journal.tables, "done", journal.started_at,
            region=plan.ami.region, account=plan.ami.account, image=journal.image, ami_id=plan.ami.ami_id,
        )  # fmt: skip
    return SmokeTestResult(
        plan, state.instance_id, state.console, state.terminated, tuple(journal.timings), error
    )


@contextmanager
def _step(plan: SmokeTestPlan, state: SmokeTestState, name: str) -> Iterator[JournalEntry]:
    """Run the block as a step of the journal; terminate the instance before a failure is recorded."""
    with plan.journal.step(name) as entry:
        try:
            yield entry
        except BaseException:
            _end(plan, state)
            raise


def _test(plan: SmokeTestPlan, state: SmokeTestState) -> None:
    ec2 = plan.ec2
    with plan.journal.step("clear") as entry:
        left = instances.find_leftover_instances(ec2, plan.ami.ami_id)
        instances.terminate_instances(ec2, [one.instance_id for one in left])
        entry.outcome = "created" if left else "reused"
        entry.detail.update(terminated=[one.instance_id for one in left])
    with _step(plan, state, "launch") as entry:
        # In a notebook the plan may be hours old.
        channels.check_still_usable(ec2, plan.ami.ami_id, owner=plan.ami.account)
        state.requested = True
        state.instance_id = instances.launch_instance(ec2, plan.wanted)
        entry.detail.update(instance_id=state.instance_id, instance_type=plan.wanted.instance_type)
        # A concurrent retirement may not have found the new instance; see `vmsnix_ops.aws.retiring`.
        channels.check_repeatedly(ec2, plan.ami.ami_id, owner=plan.ami.account)
        instances.wait_running(ec2, state.instance_id, step=entry.step)
    with _step(plan, state, "checks") as entry:
        instances.wait_checks(ec2, state.instance_id, step=entry.step)
    with _step(plan, state, "console") as entry:
        _read_console(plan, state)
        entry.detail.update(pattern=plan.pattern, characters=len(state.console))
    state.passed = True


def _wait_until_terminated(plan: SmokeTestPlan, state: SmokeTestState) -> None:
    """Wait until the instance is terminated, and record this as a step."""
    with plan.journal.step("terminate") as entry:
        entry.detail.update(instance_id=state.instance_id or None, others=state.others)
        if state.refused:
            raise next(iter(state.refused.values()))
        if state.instance_id:
            instances.wait_terminated(plan.ec2, state.instance_id, step=entry.step)
        state.terminated = True


def _read_console(plan: SmokeTestPlan, state: SmokeTestState) -> None:
    """Wait until the console matches the pattern; without a pattern, until it is not empty."""
    pattern = re.compile(plan.pattern or r"\S", re.MULTILINE)

    def read() -> PollResult[str]:
        state.read(plan.ec2)
        return PollResult("done" if pattern.search(state.console) else "waiting", state.console)

    try:
        poll(read, what="the console", deadline=CONSOLE_SECONDS, interval=PollInterval(longest=10.0))
    except errors.DeadlineError as error:
        if not plan.pattern:
            return  # an image may print nothing
        last = state.console.splitlines()[-1:]
        raise errors.SmokeTestError(
            f"The console of {state.instance_id} never matched {plan.pattern!r}.",
            why=f"Its last line is {last[0]!r}." if state.console.strip() else "The console is empty.",
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
