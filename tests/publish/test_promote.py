"""Promotion: what is wanted of every region comes to be, once, and what does not is told."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.publish.promoting import (
    EUROPE,
    HOME,
    OTHER,
    WEST,
    ami,
    aws,
    outcomes,
    pointed,
    served,
    session,
)
from vmsnix_ops import errors
from vmsnix_ops.aws import images, sharing, snapshots
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import promote, promote_apply
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.sandbox import Access, Sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["ami", "aws", "served", "session"]
ORGANIZATION = "arn:aws:organizations::012345678901:organization/o-abcdefghij"
KEY = "arn:aws:kms:eu-west-1:012345678901:key/0123abcd-0123-0123-0123-0123456789ab"
READS = ("Describe", "Get", "List")


def plan(**asked: Any) -> promote.Plan:
    usual = {"image": "ecs-node", "dry_run": False, "progress": silent()}
    return promote.plan(**(usual | asked))


def changes(aws: Sandbox) -> list[str]:
    made = [c for c in aws.calls if c.ran and c.outcome == "ok" and not c.operation.startswith(READS)]
    return sorted(f"{call.operation} {call.region}" for call in made)


def copies(aws: Sandbox, region: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = aws.client("ec2", region).describe_images(Owners=["self"])["Images"]
    return found


EVERYTHING = {
    "channel": "stable",
    "regions": [WEST, EUROPE],
    "kms_keys": {EUROPE: KEY},
    "share_with": [OTHER, ORGANIZATION],
    "revoke_from": ["109876543210"],
    "deprecate_days": 365,
    "protect": True,
}


def test_everything_at_once_and_once_only(aws: Sandbox, ami: str) -> None:
    shown = str(plan(**EVERYTHING))
    assert "  copy       to do" in shown
    assert changes(aws)[-1].startswith(("CreateVolume", "RegisterImage")) or "CopyImage" not in changes(aws)
    found = promote.apply(plan(**EVERYTHING))
    per_region = ["share done", "revoke already so", "deprecate done", "protect done", "point done"]
    assert outcomes(found) == {
        HOME: per_region,
        WEST: ["copy done", *per_region],
        EUROPE: ["copy done", *per_region],
    }
    assert found.status == "done"
    source = images.describe(aws.client("ec2", HOME), ami)
    for region in (HOME, WEST, EUROPE):
        ec2 = aws.client("ec2", region)
        (image,) = copies(aws, region)
        one = images.read(image, region)
        assert pointed(aws, region) == one.ami_id
        assert dict(one.tags) == dict(source.tags)  # carried, the run that published among them
        assert sharing.of_image(ec2, one.ami_id) == sharing.audience([OTHER, ORGANIZATION])
        assert sharing.of_snapshot(ec2, one.snapshot_ids[0]) == sharing.audience([OTHER])
        assert one.deprecated_at is not None
        assert abs(one.deprecated_at - source.created_at - timedelta(days=365)) <= timedelta(seconds=31)
        assert one.protection.startswith("enabled")
        (snapshot,) = ec2.describe_snapshots(SnapshotIds=list(one.snapshot_ids))["Snapshots"]
        assert {tag["Key"] for tag in snapshot["Tags"]} >= {"vmsnix:digest", "vmsnix:image"}
        held = snapshots.find(ec2, one.snapshot_ids)[one.snapshot_ids[0]]
        assert (held.encrypted, held.kms_key) == ((True, KEY) if region == EUROPE else (False, ""))

    before = changes(aws)
    again = promote.apply(plan(**EVERYTHING))
    assert {row.outcome for row in again.rows} == {"already so"}
    assert changes(aws) == before

    tables = open_tables(load())
    rows = tables.read("promotions")
    assert sorted(rows["region"]) == sorted([HOME, WEST, EUROPE])  # the second run had nothing new to say
    assert set(rows["channel"]) == {"stable"}
    assert {json.dumps(sorted(json.loads(one))) for one in rows["shared_with"]} == {
        json.dumps(sorted([OTHER, ORGANIZATION]))
    }
    amis = tables.read("amis")
    assert set(amis["source"]) == {"promote"}
    steps = tables.read("steps")
    assert set(steps[steps["run_id"] == found.run_id]["status"]) == {"finished", "reused"}
    assert set(steps[steps["run_id"] == again.run_id]["status"]) == {"reused"}
    assert list(tables.read("runs")["status"]) == ["done", "done"]


def test_a_dry_run_shows_the_plan_and_changes_nothing(aws: Sandbox, ami: str) -> None:
    before = changes(aws)
    found = promote.apply(plan(**EVERYTHING, dry_run=True))
    assert changes(aws) == before
    assert {row.outcome for row in found.rows} == {"planned", "already so"}
    assert found.error() is None
    assert "Nothing of this will be done" in str(plan(**EVERYTHING, dry_run=True))
    assert open_tables(load()).read("steps").empty


def test_the_plan_and_the_outcome_are_tables_in_a_notebook(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable", regions=[WEST])
    assert f"/vmsnix/ecs-node/stable, a new pointer, to {ami}" in made._repr_html_()
    done = promote.apply(made)
    assert "✓ done" in done._repr_html_()
    frame = done.regions()
    assert list(frame.columns) == ["region", "ami_id", "copy", "point", "why"]
    assert len(done.frame()) == 3


# One of many regions


def test_one_dead_region_does_not_stop_the_others(aws: Sandbox, ami: str) -> None:
    broken = {"op": "ec2:CopyImage", "where": {"region": EUROPE}, "do": "error", "code": "InternalError",
              "message": "dead", "http": 400}  # fmt: skip
    aws.faults.add(broken)
    found = promote.apply(plan(channel="stable", regions=[WEST, EUROPE]))
    assert outcomes(found)[EUROPE] == ["copy failed", "point skipped"]
    assert outcomes(found)[WEST] == ["copy done", "point done"]
    error = found.error()
    assert isinstance(error, errors.PartlyDoneError)
    assert error.exit_code == 3
    assert "2 of 3 regions" in error.what
    assert "dead" in error.why
    aws.faults.clear()
    again = promote.apply(plan(channel="stable", regions=[WEST, EUROPE]))
    assert outcomes(again)[WEST] == ["copy already so", "point already so"]
    assert outcomes(again)[EUROPE] == ["copy done", "point done"]
    assert again.error() is None


def test_what_cannot_be_recorded_of_a_region_does_not_stop_the_others(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Tables.append

    def taken(tables: Tables, table: str, rows: Any, **more: Any) -> None:
        if table == "promotions" and rows[0]["region"] == HOME:  # which ends first
            raise errors.CommitConflictError("Others were faster.")
        append(tables, table, rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "append", taken)
        found = promote.apply(plan(channel="stable", regions=[WEST]))
    assert outcomes(found) == {HOME: ["point done", "record failed"], WEST: ["copy done", "point done"]}
    assert isinstance(found.error(), errors.PartlyDoneError)
    again = promote.apply(plan(channel="stable", regions=[WEST]))
    assert again.error() is None
    assert set(open_tables(load()).read("promotions")["region"]) == {HOME, WEST}


def test_a_best_effort_region_is_told_and_does_not_count(aws: Sandbox, ami: str) -> None:
    aws.faults.add(
        {"op": "ec2:CopyImage", "where": {"region": EUROPE}, "do": "error", "code": "Dead", "http": 400}
    )
    made = plan(channel="stable", regions=[WEST], best_effort=[EUROPE, WEST])
    assert [(t.region, t.best_effort) for t in made.targets] == [(HOME, False), (WEST, False), (EUROPE, True)]
    found = promote.apply(made)
    assert outcomes(found)[EUROPE] == ["copy failed", "point skipped"]
    assert found.status == "done"


def test_a_region_that_is_not_enabled_is_refused_in_the_plan_and_fails_alone(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable", regions=["af-south-1"])
    assert [step.verdict for step in made.targets[1].steps] == ["refused", "not looked at"]
    assert "not enabled" in made.targets[1].steps[0].what
    found = promote.apply(made)
    assert outcomes(found)[HOME] == ["point done"]
    assert outcomes(found)["af-south-1"] == ["copy failed", "point skipped"]
    assert isinstance(found.error(), errors.PartlyDoneError)


def test_a_denied_region_fails_with_the_action_and_the_others_go_on(aws: Sandbox, ami: str) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="promoter")
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": "ec2:CopyImage", "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": EUROPE}}}  # fmt: skip
    document = json.dumps({"Version": "2012-10-17", "Statement": [allow, deny]})
    iam.put_user_policy(UserName="promoter", PolicyName="only", PolicyDocument=document)
    key = iam.create_access_key(UserName="promoter")["AccessKey"]
    session = Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], aws.account).session(HOME)
    found = promote.apply(plan(channel="stable", regions=[WEST, EUROPE], session=session))
    assert outcomes(found)[EUROPE] == ["copy failed", "point skipped"]
    assert "ec2:CopyImage" in found.failed[0].why
    assert outcomes(found)[WEST] == ["copy done", "point done"]


def test_what_fails_everywhere_is_a_failure_and_not_partly_done(aws: Sandbox, ami: str) -> None:
    aws.faults.add(
        {
            "op": "ssm:PutParameter",
            "do": "error",
            "code": "ParameterLimitExceeded",
            "message": "busy",
            "http": 400,
        }
    )
    found = promote.apply(plan(channel="stable"))
    assert found.status == "failed"
    error = found.error()
    assert isinstance(error, errors.AwsError)
    assert error.exit_code == 1
    with pytest.raises(errors.AwsError, match="ParameterLimitExceeded"):
        promote_apply.finish(plan(channel="stable"), found)


# Copies


def test_a_failed_copy_tells_its_snapshot_s_message_and_the_next_try_is_a_new_one(
    aws: Sandbox, ami: str
) -> None:
    wrong = "11111111-1111-1111-1111-11111111111X"
    found = promote.apply(plan(regions=[EUROPE], kms_keys={EUROPE: wrong}))
    (failed,) = found.failed
    assert "Given key ID is not accessible" in failed.why
    assert "kms:CreateGrant" in failed.why
    again = promote.apply(plan(regions=[EUROPE]))
    assert outcomes(again)[EUROPE] == ["copy done"]
    assert sorted(image["State"] for image in copies(aws, EUROPE)) == ["available", "failed"]


def test_a_copy_that_failed_by_chance_is_made_anew_with_another_token(aws: Sandbox, ami: str) -> None:
    chance = {
        "op": "ec2:CopyImage",
        "nth": 1,
        "do": "outcome",
        "outcome": {"state_message": "Internal error"},
    }
    aws.faults.add(chance)
    (failed,) = promote.apply(plan(regions=[EUROPE])).failed
    assert "Internal error" in failed.why
    assert outcomes(promote.apply(plan(regions=[EUROPE])))[EUROPE] == ["copy done"]
    tokens = [call.params["ClientToken"] for call in aws.calls.of("ec2:CopyImage", ran=True)]
    assert len(set(tokens)) == 2  # the first one was used up by the copy that failed


def test_the_copy_limit_is_waited_out(aws: Sandbox, ami: str) -> None:
    limit = {
        "op": "ec2:CopyImage",
        "nth": [1, 2],
        "do": "error",
        "code": "ResourceLimitExceeded",
        "http": 400,
    }
    aws.faults.add(limit)
    assert outcomes(promote.apply(plan(regions=[EUROPE])))[EUROPE] == ["copy done"]
    assert len(list(aws.calls.of("ec2:CopyImage"))) == 3


def test_a_lost_answer_makes_no_second_copy(aws: Sandbox, ami: str) -> None:
    aws.faults.add({"op": "ec2:CopyImage", "nth": 1, "do": "drop", "when": "after"})
    assert outcomes(promote.apply(plan(regions=[EUROPE])))[EUROPE] == ["copy done"]
    assert len(copies(aws, EUROPE)) == 1


def test_two_promoters_at_once_make_one_copy(aws: Sandbox, ami: str) -> None:
    plans = [plan(channel="stable", regions=[EUROPE]) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(promote.apply, plans))
    assert [one.status for one in found] == ["done", "done"]
    assert len(copies(aws, EUROPE)) == 1


def test_a_name_that_was_taken_a_moment_ago_is_looked_for(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote.apply(plan(regions=[EUROPE]))
    made = plan(regions=[EUROPE])
    seen, named = [], images.named

    def late(ec2: Any, name: str) -> Any:
        """Show the copy only from the third look on, as EC2 may."""
        seen.append(name)
        return named(ec2, name) if len(seen) > 2 else []

    monkeypatch.setattr(images, "named", late)
    aws.world.tables.table(aws.account, EUROPE, "ec2_tokens").clear()  # somebody else's copy
    assert promote.apply(made).status == "done"
    assert len(copies(aws, EUROPE)) == 1


def test_what_was_just_copied_and_is_not_seen_is_waited_for(aws: Sandbox, ami: str) -> None:
    for operation in ("ModifyImageAttribute", "ModifySnapshotAttribute", "EnableImageDeprecation"):
        code = "InvalidSnapshot.NotFound" if "Snapshot" in operation else "InvalidAMIID.NotFound"
        aws.faults.add({"op": f"ec2:{operation}", "nth": [1, 2], "do": "error", "code": code, "http": 400})
    found = promote.apply(plan(regions=[EUROPE], share_with=[OTHER], deprecate_days=30))
    assert found.status == "done", found


def test_a_name_with_other_bytes_is_refused_in_the_plan(aws: Sandbox, ami: str) -> None:
    make_ami(aws, region=EUROPE, digest="f" * 64)
    made = plan(channel="stable", regions=[EUROPE])
    assert [step.verdict for step in made.targets[1].steps] == ["refused", "not looked at"]
    assert "is taken" in made.targets[1].steps[0].what


def test_a_copy_that_is_encrypted_otherwise_is_not_taken_for_the_one_that_is_wanted(
    aws: Sandbox, ami: str
) -> None:
    promote.apply(plan(regions=[EUROPE]))
    found = promote.apply(plan(regions=[EUROPE], kms_keys={EUROPE: KEY}))
    assert "encrypted otherwise" in found.failed[0].why


# Who may launch it


def test_accounts_get_the_snapshots_too_and_lose_both(aws: Sandbox, ami: str) -> None:
    ec2 = aws.client("ec2")
    (snapshot,) = images.describe(ec2, ami).snapshot_ids
    promote.apply(plan(share_with=[OTHER, ORGANIZATION]))
    assert sharing.of_snapshot(ec2, snapshot).accounts == (OTHER,)
    found = promote.apply(plan(revoke_from=[OTHER]))
    assert outcomes(found)[HOME] == ["revoke done"]
    assert sharing.of_image(ec2, ami) == sharing.audience([ORGANIZATION])
    assert not sharing.of_snapshot(ec2, snapshot)


def test_public_needs_the_account_once_more_and_respects_the_block(aws: Sandbox, ami: str) -> None:
    for wrong in (
        {"public": True},
        {"confirm_public": aws.account},
        {"public": True, "confirm_public": OTHER},
    ):
        with pytest.raises(errors.ParameterError):
            plan(**wrong)
    agreed = {"public": True, "confirm_public": aws.account}
    ec2 = aws.client("ec2")
    ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    made = plan(**agreed, channel="stable")
    assert [step.verdict for step in made.targets[0].steps] == ["refused", "not looked at"]
    found = promote.apply(made)
    assert "disable-image-block-public-access" in found.failed[0].why
    assert pointed(aws, HOME) == ""  # nobody is pointed to what could not be shared
    ec2.disable_image_block_public_access()
    assert promote.apply(plan(**agreed)).status == "done"
    assert sharing.of_image(ec2, ami).public
    assert promote.apply(plan(revoke_from=["public"])).status == "done"
    assert not sharing.of_image(ec2, ami)


def test_a_public_ami_cannot_be_encrypted(aws: Sandbox, ami: str) -> None:
    agreed = {"public": True, "confirm_public": aws.account}
    with pytest.raises(errors.ParameterError, match="cannot be public"):
        plan(**agreed, regions=[EUROPE], kms_keys={EUROPE: KEY})


# Telling a topic


def test_a_topic_is_told_once_for_the_same_content(aws: Sandbox, ami: str) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    asked = {"channel": "stable", "regions": [WEST], "topic": topic}
    assert outcomes(promote.apply(plan(**asked)))[HOME][-1] == "announce done"
    assert outcomes(promote.apply(plan(**asked)))[HOME][-1] == "announce already so"
    (message,) = aws.world.tables.table(aws.account, HOME, "topics")[topic].messages
    told = json.loads(message.text)
    assert (told["channel"], told["amis"][HOME]) == ("stable", ami)
    assert set(told["amis"]) == {HOME, WEST}


def test_a_topic_that_is_not_there_leaves_the_rest_done(aws: Sandbox, ami: str) -> None:
    topic = f"arn:aws:sns:{HOME}:{aws.account}:nowhere"
    found = promote.apply(plan(channel="stable", topic=topic))
    assert outcomes(found)[HOME] == ["point done", "announce failed"]
    assert isinstance(found.error(), errors.PartlyDoneError)


# Bad input


def another_accounts_ami(aws: Sandbox) -> str:
    ec2 = aws.client("ec2")
    ami = make_ami(aws, version="theirs")
    table = aws.world.tables.table(aws.account, HOME, "images")
    image = table.pop(ami)
    image.owner = OTHER
    image.permissions.append({"UserId": aws.account})
    aws.world.tables.table(OTHER, HOME, "images")[ami] = image
    assert ec2.describe_images(ImageIds=[ami])["Images"]
    return ami


def half_deleted(aws: Sandbox) -> str:
    ami = make_ami(aws, version="half")
    aws.world.tables.table(aws.account, HOME, "snapshots").clear()
    return ami


def disabled(aws: Sandbox) -> str:
    ami = make_ami(aws, version="disabled")
    aws.client("ec2").disable_image(ImageId=ami)
    return ami


def deprecated(aws: Sandbox) -> str:
    ami = make_ami(aws, version="deprecated")
    moment = datetime.now(UTC) + timedelta(minutes=2)
    aws.client("ec2").enable_image_deprecation(ImageId=ami, DeprecateAt=moment)
    image = aws.world.tables.table(aws.account, HOME, "images")[ami]
    image.deprecate_at = moment - timedelta(hours=1)
    return ami


def not_ours(aws: Sandbox) -> str:
    ami = make_ami(aws, version="foreign")
    aws.client("ec2").delete_tags(Resources=[ami], Tags=[{"Key": "vmsnix:digest"}])
    return ami


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (another_accounts_ami, "belongs to the account 210987654321"),
        (half_deleted, "half deleted"),
        (disabled, "is disabled"),
        (deprecated, "is deprecated since"),
        (not_ours, "was not published by us"),
        (lambda _aws: "ami-0123456789abcdef0", "There is no AMI"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("<>"),
)
def test_an_ami_that_is_not_one_to_promote_is_refused(
    aws: Sandbox, make: Callable[[Sandbox], str], text: str
) -> None:
    before = len(changes(aws))
    wrong = make(aws)
    made = len(changes(aws)) - before
    with pytest.raises(errors.RegistrationError, match=text):
        plan(ami=wrong, image="", channel="stable")
    assert len(changes(aws)) == before + made


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"channel": "stabel"}, "Did you mean 'stable'"),
        ({"channel": "stable", "regions": ["eu-west-7"]}, "There is no AWS region"),
        ({"share_with": ["12"]}, "Nobody is called"),
        ({"share_with": ["public"]}, "nobody to share with"),
        ({"share_with": [OTHER], "revoke_from": [OTHER]}, "given and taken away"),
        ({"regions": [EUROPE], "kms_keys": {HOME: KEY}}, "AMI's own region"),
        ({"regions": [WEST], "kms_keys": {WEST: KEY}}, "of another region"),
        ({"deprecate_days": 5000}, "too far away"),
        ({"channel": "stable", "topic": "images"}, "no ARN"),
        ({}, "nothing to do"),
        ({"image": "other-node", "ami": "altf4llc-ecs-node-26.11", "channel": "stable"}, "one of the image"),
        ({"image": "", "channel": "stable"}, "No AMI was named"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_looked_at(
    aws: Sandbox, ami: str, wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises((errors.UsageError, errors.RegionError), match=text):
        plan(**wrong)


def test_an_ami_that_was_disabled_after_the_plan_is_not_promoted(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable")
    aws.client("ec2").disable_image(ImageId=ami)
    found = promote.apply(made)
    assert "is disabled" in found.failed[0].why
    assert pointed(aws, HOME) == ""


def test_the_ami_is_found_by_name_by_channel_and_by_being_the_newest(aws: Sandbox, ami: str) -> None:
    newer = make_ami(aws, version="26.12")
    promote.apply(plan(ami="altf4llc-ecs-node-26.11", channel="candidate"))
    assert pointed(aws, HOME, "candidate") == ami
    promote.apply(plan(ami="candidate", channel="stable"))
    assert pointed(aws, HOME) == ami
    promote.apply(plan(channel="stable"))
    assert pointed(aws, HOME) == newer
    with pytest.raises(errors.PointerError, match="points to nothing"):
        plan(ami="candidate", image="other-node", channel="stable")


def test_an_interrupt_ends_it_and_the_same_command_goes_on(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.clock.speed = 1.0
    try:

        def interrupt(_running: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(promote_apply, "as_completed", interrupt)
        with pytest.raises(errors.InterruptedRunError, match="go on in AWS"):
            promote.apply(plan(channel="stable", regions=[EUROPE]))
        monkeypatch.undo()
    finally:
        aws.clock.speed = 20000
