"""The smoke test: it launches, waits, reads, checks, and always terminates its instance."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import HOME, aws, served, session
from tests.support import finish
from vmsnix_ops import errors, publish
from vmsnix_ops.aws import instances
from vmsnix_ops.disk.sample import MESSAGE, make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import smoke
from vmsnix_ops.publish.journal import StepJournal
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox.ec2 import instances as sandbox_instances
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    import boto3

    from vmsnix_ops.sandbox import Sandbox

__all__ = ["aws", "served", "session"]
BOOT = "Starting systemd\r\n<<< Welcome to NixOS 26.11 (x86_64) - ttyS0 >>>\r\nip-10-0-0-1 login: "


@pytest.fixture(autouse=True)
def terminated_instances_stay_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS lists them for an hour, which at this clock's speed is over before a busy machine reads them."""
    monkeypatch.setattr(sandbox_instances, "TERMINATED_SECONDS", 1e9)


def set_console(aws: Sandbox, text: str = BOOT, **outcome: Any) -> None:
    """Set the console output of every instance."""
    aws.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": {"console": text, **outcome}})


def plan(ami: str = "", **params: Any) -> smoke.SmokeTestPlan:
    return smoke.plan(**({"ami": ami, "progress": silent()} | params))


def alive(aws: Sandbox) -> list[str]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = aws.client("ec2").describe_instances(Filters=states)["Reservations"]
    return [one["InstanceId"] for reservation in found for one in reservation["Instances"]]


def launched(aws: Sandbox) -> list[dict[str, Any]]:
    found = aws.client("ec2").describe_instances()["Reservations"]
    return [one for reservation in found for one in reservation["Instances"]]


def test_an_ami_that_boots_passes_and_no_instance_is_left(aws: Sandbox) -> None:
    ami = make_ami(aws)
    set_console(aws)
    result = plan(ami).apply()
    assert result.passed
    assert result.terminated
    assert "Welcome to NixOS" in result.console
    assert alive(aws) == []
    (instance,) = launched(aws)
    assert instance["InstanceType"] == "t3.small"
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert "KeyName" not in instance
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["vmsnix:smoke"] == ami
    steps = open_tables(load()).read("steps")
    assert sorted(steps["step"]) == ["checks", "clear", "console", "launch", "terminate"]
    assert (steps["seconds"] > 0).all()
    assert set(steps["region"]) == {HOME}
    assert list(open_tables(load()).read("runs")["status"]) == ["done"]
    assert "passed" in result._repr_html_()


@pytest.mark.parametrize(
    ("registration", "params", "kind", "spot"),
    [
        ({"Architecture": "arm64", "BootMode": "uefi"}, {}, "t4g.small", False),
        ({}, {"spot": True}, "t3.small", True),
        ({}, {"instance_type": "t2.micro"}, "t2.micro", False),  # not Nitro: no latest console
    ],
)
def test_the_type_follows_the_architecture_and_the_operator(
    aws: Sandbox, registration: dict[str, Any], params: dict[str, Any], kind: str, spot: bool
) -> None:
    set_console(aws)
    extra = {"EnaSupport": False} if kind == "t2.micro" else {}
    ami = make_ami(aws, **registration, **extra)
    assert plan(ami, **params).apply().passed
    (instance,) = launched(aws)
    assert instance["InstanceType"] == kind
    assert (instance.get("InstanceLifecycle") == "spot") is spot


def test_running_it_again_uses_the_next_token(aws: Sandbox) -> None:
    ami = make_ami(aws)
    set_console(aws)
    for _ in range(3):
        assert plan(ami).apply().passed
    calls = list(aws.calls.matching("ec2:RunInstances"))
    assert [call.outcome for call in calls].count("IdempotentInstanceTerminated") == 3  # one, then two
    assert len({call.params["ClientToken"] for call in calls if call.outcome == "ok"}) == 3


def test_a_dry_run_launches_nothing(aws: Sandbox) -> None:
    made = plan(make_ami(aws), dry_run=True)
    assert made.apply().instance_id == ""
    assert launched(aws) == []
    assert "nothing will be launched" in str(made)


def test_a_published_image_passes_all_steps(
    aws: Sandbox, session: boto3.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = make_sample_image(tmp_path / "image", data_bytes=2**20)
    monkeypatch.setattr(aws.clock, "speed", 500.0)  # a direct upload has an hour between two blocks
    made = publish.plan(image=str(image), via="direct", progress=silent(), session=session).apply()
    aws.clock.speed = 20000
    result = plan(made.ami_id, pattern="sample image: ok$").apply()
    assert result.passed, result.error
    assert result.console.strip() == MESSAGE  # the message in its boot sector


# How it fails, and that it cleans up


def fail(aws: Sandbox, **params: Any) -> errors.VmsnixError:
    ami = make_ami(aws)
    result = plan(ami, **params).apply()
    assert not result.passed
    assert alive(aws) == []
    assert result.error is not None
    with pytest.raises(type(result.error)):
        finish(result)
    return result.error


def test_failed_checks_are_reported_with_the_console(aws: Sandbox) -> None:
    set_console(aws, "Kernel panic - not syncing: VFS: Unable to mount root fs", impaired=True)
    error = fail(aws)
    assert "failed its status checks" in error.what
    assert "impaired" in error.why


def test_a_console_without_the_pattern_shows_its_last_line(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "CONSOLE_SECONDS", 0.5)
    set_console(aws, "GRUB\r\nerror: no such device\r\n")
    error = fail(aws, pattern="NixOS")
    assert "'error: no such device'" in error.why


def test_an_empty_console_is_reported(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "CONSOLE_SECONDS", 0.5)
    assert "The console is empty." in fail(aws).why
    result = plan(make_ami(aws, version="other"), pattern="").apply()
    assert result.passed  # without a pattern, the console is only read


def test_missing_capacity_is_reported_with_a_fix(aws: Sandbox) -> None:
    full = {"op": "ec2:RunInstances", "do": "error", "code": "InsufficientInstanceCapacity", "http": 400}
    aws.faults.add(full)
    error = fail(aws, spot=True)
    assert isinstance(error, errors.SmokeTestError)
    assert "without spot" in error.fix


def test_the_first_spot_instance_of_an_account_needs_its_service_role(aws: Sandbox) -> None:
    code = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    aws.faults.add({"op": "ec2:RunInstances", "do": "error", "code": code, "http": 403})
    error = fail(aws, spot=True)
    assert isinstance(error, errors.AccessDeniedError)
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in error.fix


def test_a_reclaimed_instance_is_reported_with_the_reason_of_aws(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_console(aws)
    wait = instances.wait_running

    def taken_away(ec2: Any, instance_id: str, **more: Any) -> Any:
        found = wait(ec2, instance_id, **more)
        ec2.terminate_instances(InstanceIds=[instance_id])
        return found

    monkeypatch.setattr(instances, "wait_running", taken_away)
    assert "Client.UserInitiatedShutdown" in fail(aws).why


def test_an_empty_response_of_the_checks_is_retried(aws: Sandbox) -> None:
    set_console(aws)
    empty = {"op": "ec2:DescribeInstanceStatus", "nth": [1, 2], "do": "set"}
    aws.faults.add({**empty, "values": {"InstanceStatuses": []}})
    result = plan(make_ami(aws)).apply()
    assert result.passed, result.error


def interrupted(*_given: Any, **_more: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_terminates_the_instance(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "wait_checks", interrupted)
    with pytest.raises(errors.InterruptedRunError) as caught:
        plan(make_ami(aws)).apply()
    (instance,) = launched(aws)
    assert f"{instance['InstanceId']} was terminated." in caught.value.why
    assert alive(aws) == []


def test_ctrl_c_before_the_launch_reports_that_no_instance_runs(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "find_leftover_instances", interrupted)
    with pytest.raises(errors.InterruptedRunError, match="No test instance is running"):
        plan(make_ami(aws)).apply()


def test_ctrl_c_during_the_termination_requests_it_again(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_console(aws)
    terminate, terminated = instances.terminate_instances, []

    def at_first_interrupted(ec2: Any, ids: Any) -> None:
        terminated.append(list(ids))
        if len(terminated) == 2:  # the first one clears
            raise KeyboardInterrupt
        terminate(ec2, terminated[-1])

    monkeypatch.setattr(instances, "terminate_instances", at_first_interrupted)
    with pytest.raises(errors.InterruptedRunError, match="was terminated"):
        plan(make_ami(aws)).apply()
    assert alive(aws) == []


@pytest.mark.parametrize("second", ["read_console", "terminate_instances", "both"])
def test_a_second_ctrl_c_during_the_clean_up_terminates_the_instance(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """The first one comes during the wait for the checks, the second one before TerminateInstances."""
    monkeypatch.setattr(instances, "wait_checks", interrupted)
    hit: set[str] = set()
    calls = {name: getattr(instances, name) for name in ("read_console", "terminate_instances")}
    for name in calls if second == "both" else (second,):

        def once(*given: Any, _name: str = name, _call: Any = calls[name], **more: Any) -> Any:
            if launched(aws) and _name not in hit:
                hit.add(_name)
                raise KeyboardInterrupt
            return _call(*given, **more)

        monkeypatch.setattr(instances, name, once)
    with pytest.raises(errors.InterruptedRunError) as caught:
        plan(make_ami(aws)).apply()
    assert hit == (set(calls) if second == "both" else {second})
    (instance,) = launched(aws)
    assert instance["InstanceId"] in caught.value.why
    assert alive(aws) == []


def refuse_to_terminate(aws: Sandbox) -> None:
    words = "You are not authorized to perform: ec2:TerminateInstances"
    denied = {"op": "ec2:TerminateInstances", "do": "error", "http": 403, "message": words}
    aws.faults.add({**denied, "code": "UnauthorizedOperation"})


def still_running(aws: Sandbox, error: errors.VmsnixError) -> str:
    """Return the instance that still runs, after checking that the error names it with reason and fix."""
    (instance_id,) = alive(aws)
    assert f"{instance_id} still runs in {HOME}." in error.what
    assert "ec2:TerminateInstances" in error.why
    assert f"aws ec2 terminate-instances --region {HOME} --instance-ids {instance_id}" in error.fix
    return instance_id


def test_ctrl_c_and_a_refused_termination_report_the_instance_and_the_command(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "wait_checks", interrupted)
    made = plan(make_ami(aws))
    refuse_to_terminate(aws)
    with pytest.raises(errors.InterruptedRunError, match="was interrupted") as caught:
        made.apply()
    still_running(aws, caught.value)
    assert "being terminated" not in str(caught.value)


@pytest.mark.parametrize(("outcome", "words"), [({}, ""), ({"impaired": True}, "failed its status checks")])
def test_an_instance_that_still_runs_is_reported_after_any_failure(
    aws: Sandbox, outcome: dict[str, Any], words: str
) -> None:
    set_console(aws, **outcome)
    made = plan(make_ami(aws))
    refuse_to_terminate(aws)
    result = made.apply()
    assert result.error is not None
    assert not result.terminated
    assert result.instance_id == still_running(aws, result.error)
    assert words in result.error.what


def test_a_bug_is_raised_with_a_note_about_the_running_instance(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_given: Any, **_more: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(instances, "wait_checks", mistaken)
    made = plan(make_ami(aws))
    refuse_to_terminate(aws)
    with pytest.raises(ZeroDivisionError) as caught:
        made.apply()
    assert f"--instance-ids {alive(aws)[0]}" in caught.value.__notes__[0]


def test_a_launch_without_a_response_leaves_no_instance(aws: Sandbox) -> None:
    made = plan(make_ami(aws))
    aws.faults.add({"op": "ec2:RunInstances", "do": "error", "when": "after", "http": 400, "code": "Odd"})
    result = made.apply()
    assert not result.passed
    assert len(launched(aws)) == 1
    assert alive(aws) == []


def test_a_failed_search_for_instances_is_reported(aws: Sandbox) -> None:
    made = plan(make_ami(aws))
    aws.faults.add({"op": "ec2:RunInstances", "do": "error", "when": "after", "http": 400, "code": "Odd"})
    aws.faults.add({"op": "ec2:DescribeInstances", "do": "error", "nth": 2, "http": 400, "code": "Other"})
    error = made.apply().error
    assert error is not None
    assert "An instance of the test may still run" in error.what
    assert "Name=tag-key,Values=vmsnix:smoke" in error.fix


@pytest.mark.parametrize("full_at", ["checks", "terminate"])
def test_a_full_disk_does_not_keep_the_instance_running(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    set_console(aws)
    made, write = plan(make_ami(aws)), StepJournal._write
    full = False

    def out_of_space(journal: StepJournal, name: str, status: str, **more: Any) -> None:
        nonlocal full
        full = full or name == full_at
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(journal, name, status, **more)

    monkeypatch.setattr(StepJournal, "_write", out_of_space)
    result = made.apply()
    assert isinstance(result.error, errors.RecordsError)
    assert "No space left on device" in result.error.why
    assert f"{result.instance_id} is being terminated" in result.error.why
    assert alive(aws) == []
    made.journal.run.folder.joinpath("result.json").mkdir()  # so that the result cannot be written
    with pytest.raises(errors.RecordsError, match=result.instance_id):
        finish(result)


def test_the_instance_is_terminated_before_anything_is_recorded(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_console(aws, impaired=True)
    made, close, running = plan(make_ami(aws)), StepJournal._close, {}

    def close_journal(journal: StepJournal, name: str, status: str, *more: Any) -> None:
        if status == "failed":
            running[name] = alive(aws)
        close(journal, name, status, *more)

    monkeypatch.setattr(StepJournal, "_close", close_journal)
    assert not made.apply().passed
    assert running == {"checks": []}


def test_the_next_test_terminates_the_instance_of_a_killed_one(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami, other = make_ami(aws), make_ami(aws, version="26.12")
    set_console(aws)
    ec2 = aws.client("ec2")
    left = instances.launch_instance(ec2, plan(ami).wanted)
    busy = instances.launch_instance(ec2, plan(other).wanted)  # a test of another AMI that is under way
    result = plan(ami).apply()
    assert result.passed
    assert result.instance_id != left
    assert alive(aws) == [busy]
    monkeypatch.setattr(instances, "OVERDUE", -instances.OVERDUE)  # an hour later
    assert plan(ami).apply().passed
    assert alive(aws) == []


def test_a_lost_response_launches_no_second_instance(aws: Sandbox) -> None:
    ami = make_ami(aws)
    set_console(aws)
    aws.faults.add({"op": "ec2:RunInstances", "nth": 1, "do": "drop", "when": "after"})
    assert plan(ami).apply().passed
    assert len(launched(aws)) == 1


# What cannot be tested


@pytest.mark.parametrize(
    ("params", "kind", "text"),
    [
        ({"pattern": "("}, errors.ParameterError, "not a regular expression"),
        ({"ami": ""}, errors.ParameterError, "No AMI given"),
        ({"ami": "ami-0123456789abcdef0"}, errors.RegistrationError, "No AMI"),
        ({"region": "eu-west-7"}, errors.RegionError, "is not an AWS region"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_ami_is_refused(aws: Sandbox, params: dict[str, Any], kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        plan(**({"ami": make_ami(aws)} | params))


def test_a_subnet_reaches_aws(aws: Sandbox) -> None:
    assert "subnet-0123456789abcdef0" in fail(aws, subnet="subnet-0123456789abcdef0").why  # does not exist
