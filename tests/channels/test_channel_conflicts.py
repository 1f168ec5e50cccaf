"""A channel that another writer changes between plan and write: the change is never lost silently."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, WEST, channel_value, outcomes, plan
from tests.support import DEADLINE, finish, join
from vmsnix_ops import errors
from vmsnix_ops.aws import image_copy, parameters, retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.channels import records, rollback
from vmsnix_ops.progress import Progress, silent
from vmsnix_ops.records import acts
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox import Sandbox

NAME = "/vmsnix/ecs-node/stable"
SHUT = "arn:aws:iam::012345678901:user/operator"


def put(aws: Sandbox, value: str, region: str = HOME, *, name: str = NAME) -> int:
    ssm = aws.client("ssm", region)
    wanted = {"Name": name, "Value": value, "Type": "String", "DataType": "aws:ec2:image"}
    version: int = ssm.put_parameter(**wanted, Overwrite=True)["Version"]
    aws.clock.advance(60)
    return version


def history(aws: Sandbox, region: str = HOME) -> list[str]:
    return [one.value for one in parameters.read_history(aws.client("ssm", region), NAME)]


def right_before_the_write(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object], *, reads: int = 2
) -> None:
    """Call `meanwhile` after a job's last read of a channel and before its write.

    A promotion reads the channel in its step and again in the write, a rollback only in the write.
    """
    find, seen = parameters.find_parameter, list[str]()

    def read_then_meanwhile(ssm: Any, name: str) -> Any:
        found = find(ssm, name)
        seen.append(name)
        if len(seen) == reads:
            meanwhile()
        return found

    monkeypatch.setattr(parameters, "find_parameter", read_then_meanwhile)


def result(run_folder: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_folder / "result.json").read_text())
    return found


def test_a_value_set_between_plan_and_write_is_overwritten_and_reported(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, theirs = make_ami(aws, version="26.10"), make_ami(aws, version="26.12")
    put(aws, first)
    made = plan(ami=ami, channel="stable")
    right_before_the_write(monkeypatch, lambda: put(aws, theirs))
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel changed", "conflict failed"]}
    assert found.status == "partial"
    with pytest.raises(errors.PartialError) as caught:
        finish(found)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert f"version 2, {theirs}, set by {SHUT}" in text
    command = (
        f"aws ssm put-parameter --region {HOME} --name {NAME} --type String --data-type aws:ec2:image "
        f"--overwrite --value {theirs}"
    )
    assert command in text
    assert "does what is left" not in text
    assert history(aws) == [first, theirs, ami]  # the run does not restore a value
    (overwritten,) = result(made.run.folder)["overwritten"]
    assert overwritten == {
        "name": NAME,
        "region": HOME,
        "version": 2,
        "value": theirs,
        "writer": SHUT,
        "written": 3,
        "command": command,
    }
    row = open_tables(load()).read("promotions").iloc[-1]
    assert (row["ami_id"], row["previous_ami_id"], row["channel"]) == (ami, theirs, "stable")


def test_a_conflict_in_a_best_effort_region_fails_the_run(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan(ami=ami, channel="stable", regions=[EUROPE]).apply()
    assert first.status == "done"
    there = channel_value(aws, EUROPE)
    newer = make_ami(aws, version="26.12")
    plan(ami=newer, regions=[EUROPE]).apply()
    made = plan(ami=newer, channel="stable", best_effort=[EUROPE])

    def theirs() -> None:
        put(aws, there, EUROPE)
        put(aws, there, EUROPE)

    put_once = parameters._put

    def late(ssm: Any, request: dict[str, Any], tags: Any, **more: Any) -> Any:
        if ssm.meta.region_name == EUROPE:
            theirs()
        return put_once(ssm, request, tags, **more)

    monkeypatch.setattr(parameters, "_put", late)
    found = made.apply()
    assert "conflict failed" in outcomes(found)[EUROPE]
    assert isinstance(found.error, errors.PartialError)


def test_after_a_conflict_nothing_more_is_changed(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second region is not changed, and the topic gets no message."""
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    old, new = make_ami(aws, version="26.11"), make_ami(aws, version="26.12")
    for one in (old, new):
        assert plan(ami=one, channel="stable", regions=[EUROPE]).apply().status == "done"
    there = channel_value(aws, EUROPE)
    request: dict[str, Any] = {"image": "ecs-node", "channel": "stable", "dry_run": False, "topic": topic}
    made = rollback.plan(**request, progress=silent())
    right_before_the_write(monkeypatch, lambda: put(aws, new), reads=1)
    found = made.apply()
    assert outcomes(found)[HOME] == ["set channel changed", "conflict failed", "announce skipped"]
    assert outcomes(found)[EUROPE] == ["set channel skipped"]
    assert channel_value(aws, EUROPE) == there
    assert aws.state.tables.table(aws.account, HOME, "topics")[topic].messages == []
    with pytest.raises(errors.PartialError, match=f"version 3, {new}, set by"):
        finish(found)


def test_a_conflict_of_a_promotion_stops_the_other_regions_too(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    theirs, ended = make_ami(aws, version="26.12"), threading.Event()
    put(aws, make_ami(aws, version="26.10"))
    copy, write = image_copy.copy_ami, records.write_steps

    def copy_late(*words: Any, **more: Any) -> Any:
        assert ended.wait(60)
        return copy(*words, **more)

    def written(*words: Any, **more: Any) -> None:
        write(*words, **more)
        ended.set()  # the first region is finished

    made = plan(ami=ami, channel="stable", regions=[EUROPE], topic=topic)
    monkeypatch.setattr(image_copy, "copy_ami", copy_late)
    monkeypatch.setattr(records, "write_steps", written)
    right_before_the_write(monkeypatch, lambda: put(aws, theirs))
    found = made.apply()
    assert outcomes(found)[HOME] == ["set channel changed", "conflict failed", "announce skipped"]
    assert outcomes(found)[EUROPE] == ["copy created", "set channel skipped"]
    assert channel_value(aws, EUROPE) == ""
    assert aws.state.tables.table(aws.account, HOME, "topics")[topic].messages == []


def test_of_two_simultaneous_promotions_one_is_done_and_one_reports_the_conflict(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_ami(aws, version="26.10"), make_ami(aws, version="26.12")
    put(aws, first)
    ours, theirs = plan(ami=ami, channel="stable"), plan(ami=other, channel="stable")
    ended: list[Any] = []
    right_before_the_write(monkeypatch, lambda: ended.append(theirs.apply()))
    ended.append(ours.apply())
    assert [one.status for one in ended] == ["done", "partial"]
    assert history(aws) == [first, other, ami]


@pytest.mark.parametrize("seconds", [0.0, 0.2])
@pytest.mark.variants(seconds=5)
def test_a_simultaneous_promotion_and_rollback_lose_no_change(aws: Sandbox, seconds: float) -> None:
    """In each written region exactly one is done without a warning, and the history has every value."""
    regions = [HOME, WEST, EUROPE]
    old, now, new = (make_ami(aws, version=f"26.{number}") for number in (10, 11, 12))
    for value in (old, now):
        assert plan(ami=value, channel="stable", regions=regions).apply().status == "done"
    assert plan(ami=new, channel="candidate", regions=regions).apply().status == "done"  # copies it
    forward = plan(ami=new, channel="stable", regions=regions)
    request = {"image": "ecs-node", "channel": "stable", "regions": regions, "dry_run": False}
    back = rollback.plan(**request, progress=silent())
    if seconds:  # both have read the channel before either of them writes
        aws.faults.add({"op": "ssm:PutParameter", "do": "delay", "when": "before", "seconds": seconds})
    both, found = threading.Barrier(2, timeout=60), dict[str, Any]()

    def act(name: str, job: Callable[[], Any]) -> None:
        both.wait(DEADLINE)
        found[name] = job()

    jobs = {"forward": lambda: forward.apply(), "back": lambda: back.apply()}
    threads = [threading.Thread(target=act, args=one) for one in jobs.items()]
    for thread in threads:
        thread.start()
    join(*threads)
    somewhere = 0
    for region in regions:
        values = history(aws, region)[2:]
        text = {name: outcomes(one).get(region, []) for name, one in found.items()}
        wrote = [name for name, rows in text.items() if "set channel changed" in rows]
        clean = [name for name in wrote if not any("failed" in row for row in text[name])]
        assert len(values) == len(wrote), (region, text, values)
        assert len(clean) == bool(wrote), (region, text)
        somewhere += len(wrote)
    assert somewhere


def test_a_promotion_that_is_overwritten_after_its_write_is_done(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_ami(aws, version="26.10"), make_ami(aws, version="26.12")
    put(aws, first)
    put_once = parameters._put

    def early(ssm: Any, request: dict[str, Any], tags: Any, **more: Any) -> Any:
        answer = put_once(ssm, request, tags, **more)
        put(aws, other)
        return answer

    made = plan(ami=ami, channel="stable")
    monkeypatch.setattr(parameters, "_put", early)
    assert made.apply().status == "done"
    assert history(aws) == [first, ami, other]


def test_a_new_channel_that_another_writer_created_is_kept(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_ami(aws, version="26.12")
    made = plan(ami=ami, channel="stable")
    right_before_the_write(monkeypatch, lambda: put(aws, theirs))
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel failed"]}
    assert f"It is now {theirs}" in found.failed[0].why
    assert history(aws) == [theirs]


def test_a_channel_deleted_after_the_plan_is_reported(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, make_ami(aws, version="26.10"))
    made = plan(ami=ami, channel="stable")
    right_before_the_write(monkeypatch, lambda: aws.client("ssm").delete_parameter(Name=NAME))
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel changed", "conflict failed"]}
    assert "was deleted after the plan was made" in found.failed[0].why
    assert f"aws ssm delete-parameter --region {HOME} --name {NAME}" in found.failed[0].why


@pytest.mark.parametrize("again", [1, 2, 3])
def test_a_channel_deleted_and_created_again_is_reported_for_any_version(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """Its versions start at 1 again, so its version may be equal to the planned one."""
    first, theirs = make_ami(aws, version="26.10"), make_ami(aws, version="26.12")
    put(aws, first)
    put(aws, make_ami(aws, version="26.09"))
    made = plan(ami=ami, channel="stable")

    def meanwhile() -> None:
        aws.client("ssm").delete_parameter(Name=NAME)
        for _ in range(again):
            put(aws, theirs)

    right_before_the_write(monkeypatch, meanwhile)
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel changed", "conflict failed"]}
    assert f"version {again}, {theirs}" in found.failed[0].why


def test_a_retry_after_a_lost_answer_is_not_a_conflict(aws: Sandbox, ami: str) -> None:
    put(aws, make_ami(aws, version="26.10"))
    made = plan(ami=ami, channel="stable", regions=[WEST])
    lost = aws.faults.add({"op": "ssm:PutParameter", "nth": [1, 2], "do": "drop", "when": "after"})
    try:
        found = made.apply()
    finally:
        aws.faults.clear()
    assert lost.applied
    assert found.status == "done"
    assert (channel_value(aws, HOME), len(channel_value(aws, WEST))) == (ami, 21)


def test_without_a_history_the_version_number_shows_a_conflict(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, make_ami(aws, version="26.10"))
    made = plan(ami=ami, channel="stable")
    denied = {"op": "ssm:GetParameterHistory", "do": "error", "code": "AccessDeniedException", "http": 400}
    aws.faults.add(denied)
    right_before_the_write(monkeypatch, lambda: put(aws, make_ami(aws, version="26.12")))
    try:
        found = made.apply()
    finally:
        aws.faults.clear()
    assert outcomes(found) == {HOME: ["set channel changed", "conflict failed"]}
    assert "version 2, which is not in the parameter's history" in found.failed[0].why


# Channels that are restored because the AMI is being retired


def right_after_the_write(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Mark the AMI as retired, and call `meanwhile`, right after the channel was set to it."""
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0,))
    write = parameters.set_channel
    mark = {tagging.RETIRED: "2026-01-01T00:00:00Z", tagging.RETIRED_BY: "another-run"}

    def write_and_mark(ssm: Any, *words: Any, **more: Any) -> parameters.ChannelWrite:
        moved = write(ssm, *words, **more)
        aws.client("ec2").create_tags(Resources=[ami], Tags=tagging.to_list(mark))
        meanwhile()
        return moved

    monkeypatch.setattr(parameters, "set_channel", write_and_mark)


@pytest.mark.parametrize("again", [1, 2, 3, 4])
def test_a_channel_deleted_and_created_again_is_not_restored(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """This run wrote version 3; the new parameter may have any version."""
    monkeypatch.setattr(parameters, "LOST_SECONDS", 0.5)
    first, theirs = make_ami(aws, version="26.10"), make_ami(aws, version="26.12")
    put(aws, theirs)
    put(aws, first)
    made = plan(ami=ami, channel="stable")

    def meanwhile() -> None:
        aws.client("ssm").delete_parameter(Name=NAME)
        for _ in range(again):
            put(aws, theirs)

    right_after_the_write(aws, ami, monkeypatch, meanwhile)
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel failed"]}
    assert f"is now {theirs}" in found.failed[0].why
    assert history(aws) == [theirs] * again


def test_a_new_channel_that_another_writer_created_again_is_not_deleted(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_ami(aws, version="26.12")
    made = plan(ami=ami, channel="stable")

    def meanwhile() -> None:
        aws.client("ssm").delete_parameter(Name=NAME)
        put(aws, theirs)

    right_after_the_write(aws, ami, monkeypatch, meanwhile)
    assert f"is now {theirs}" in made.apply().failed[0].why
    assert history(aws) == [theirs]


def test_a_full_disk_while_deleting_a_channel_stops_the_promotion_in_all_regions(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    copy = image_copy.copy_ami

    def copy_late(*words: Any, **more: Any) -> Any:
        assert ended.wait(60)
        return copy(*words, **more)

    progress = Progress(lambda event: ended.set() if "set channel failed" in event.message else None)
    made = plan(ami=ami, channel="stable", regions=[EUROPE], progress=progress)
    monkeypatch.setattr(image_copy, "copy_ami", copy_late)
    right_after_the_write(aws, ami, monkeypatch, (made.run.folder / acts.FILE_NAME).mkdir)
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel failed"], EUROPE: ["copy created", "set channel skipped"]}
    with pytest.raises(errors.UnrecordedActError) as caught:
        finish(found)
    assert caught.value.exit_code == 3
    assert f"{NAME} in {HOME} still contains it" in str(caught.value)
    assert f"aws ssm delete-parameter --region {HOME} --name {NAME}" in str(caught.value)
    assert channel_value(aws, HOME) == ami


# Problems in the plan


@pytest.mark.parametrize(
    ("until", "fix"),
    [
        ("2026-02-01T00:00:00Z", "vmsnix retire --action restore --amis {ami} --regions {region}"),
        ("soon", "aws ec2 delete-tags --region {region} --resources {ami} --tags Key=vmsnix:retired"),
    ],
)
def test_an_ami_being_retired_is_refused_with_the_command_that_restores_it(
    aws: Sandbox, ami: str, until: str, fix: str
) -> None:
    mark = {
        tagging.RETIRED: "2026-01-01T00:00:00Z",
        tagging.RETAINED_UNTIL: until,
        tagging.RETIRED_BY: "a-run",
    }
    aws.client("ec2").create_tags(Resources=[ami], Tags=tagging.to_list(mark))
    with pytest.raises(errors.RegistrationError, match=r"is being retired.*set by the run a-run") as caught:
        plan(ami=ami, channel="stable")
    assert fix.format(ami=ami, region=HOME) in caught.value.fix


def kind_of(aws: Sandbox, **changes: str) -> None:
    assert channel_value(aws, HOME)  # Parameter Store has checked the value
    parameter = aws.state.tables.table(aws.account, HOME, "parameters")[NAME]
    for name, value in changes.items():
        setattr(parameter.newest, name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameter_type": "StringList", "data_type": "text"}, "is of type StringList"),
        ({"parameter_type": "SecureString", "data_type": "text"}, "is of type SecureString"),
        ({"data_type": "text"}, "has the data type text"),
        ({"data_type": "aws:ssm:integration"}, "has the data type aws:ssm:integration"),
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_the_plan_refuses_a_parameter_of_another_type_with_a_fix(
    aws: Sandbox, ami: str, changes: dict[str, str], message: str, same: bool
) -> None:
    put(aws, ami if same else make_ami(aws, version="26.10"))
    kind_of(aws, **changes)
    (step,) = plan(ami=ami, channel="stable").targets[0].steps
    assert step.outcome == "failed"
    assert message in step.why
    assert f"aws ssm delete-parameter --region {HOME} --name {NAME}" in step.why
    found = plan(ami=ami, channel="stable", dry_run=True).apply()
    assert isinstance(found.error, errors.ChannelError)


def test_a_rollback_plan_refuses_a_parameter_of_another_type(aws: Sandbox) -> None:
    for version in ("26.10", "26.11"):
        put(aws, make_ami(aws, version=version))
    kind_of(aws, data_type="text")
    (target,) = rollback.plan(image="ecs-node", channel="stable", progress=silent()).targets
    assert "has the data type text" in str(target.problem)


def test_aws_does_not_change_the_data_type_of_a_parameter(aws: Sandbox, ami: str) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name=NAME, Value=ami, Type="String")
    with pytest.raises(ssm.exceptions.ClientError, match="data type"):
        put(aws, ami)


def test_the_plan_refuses_a_channel_that_accepts_no_more_values(aws: Sandbox, ami: str) -> None:
    put(aws, make_ami(aws, version="26.10"))
    ssm = aws.client("ssm")
    ssm.label_parameter_version(Name=NAME, ParameterVersion=1, Labels=["known-good"])
    assert channel_value(aws, HOME)
    parameter = aws.state.tables.table(aws.account, HOME, "parameters")[NAME]
    parameter.versions += [parameter.versions[0].__class__(**fields(parameter, n)) for n in range(2, 101)]
    (step,) = plan(ami=ami, channel="stable").targets[0].steps
    assert step.outcome == "failed"
    assert "accepts no more values" in step.why
    assert "--parameter-version 1 --labels known-good" in step.why


def fields(parameter: Any, number: int) -> dict[str, Any]:
    first = parameter.versions[0]
    names = [name for name in first.__slots__ if name not in ("number", "labels")]
    return {name: getattr(first, name) for name in names} | {"number": number}


def test_an_advanced_parameter_stays_advanced(aws: Sandbox, ami: str) -> None:
    """AWS refuses a request without a tier, because it would make the parameter a standard one."""
    ssm, first = aws.client("ssm"), make_ami(aws, version="26.10")
    wanted = {"Name": NAME, "Value": first, "Type": "String", "DataType": "aws:ec2:image"}
    ssm.put_parameter(**wanted, Tier="Advanced")
    aws.clock.advance(60)
    with pytest.raises(ssm.exceptions.ClientError, match="can't downgrade"):
        ssm.put_parameter(**wanted, Overwrite=True)
    made = plan(ami=ami, channel="stable")
    assert made.apply().status == "done"
    back = rollback.plan(image="ecs-node", channel="stable", dry_run=False, progress=silent())
    assert back.apply().status == "done"
    assert history(aws) == [first, ami, first]
    tiers = [one["Tier"] for one in ssm.get_parameter_history(Name=NAME)["Parameters"]]
    assert tiers == ["Advanced"] * 3


@pytest.mark.parametrize(
    ("prefix", "image", "message"),
    [
        ("/vmsnix", "a/b", "letters, digits, dots"),
        ("/vmsnix", "ä", "letters, digits, dots"),
        ("/aws/vmsnix", "web", "aws or ssm"),
        ("/AWS-images", "web", "aws or ssm"),
        ("/ssm", "web", "aws or ssm"),
        ("/Ssmages", "web", "aws or ssm"),
        ("/a" * 14, "web", "16 levels, but AWS allows 15"),
        ("/" + "a" * 950, "web", "AWS allows 1011"),
        ("/with space", "web", "use levels"),
        ("vmsnix", "web", "use levels"),
        ("/vmsnix/", "web", "use levels"),
    ],
)
def test_an_invalid_parameter_name_is_refused_before_any_call(prefix: str, image: str, message: str) -> None:
    with pytest.raises(errors.ParameterError, match=message):
        parameters.parameter_name(prefix, image, "stable")


def test_the_longest_and_deepest_valid_name_is_accepted(aws: Sandbox) -> None:
    assert parameters.parameter_name("/a" * 13, "web", "stable").count("/") == 15
    most = parameters.MOST_CHARACTERS - parameters.BEFORE_THE_NAME
    longest = parameters.parameter_name("/" + "a" * (most - len("//web/stable")), "web", "stable")
    assert len(longest) == most
