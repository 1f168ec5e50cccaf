"""The copies of a promotion: one for each region, also after failures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, KEY, OTHER, WEST, channel_value, copies, outcomes, plan
from vmsnix_ops import errors, publish
from vmsnix_ops.aws import images
from vmsnix_ops.channels import promote
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox import ApiError, Sandbox, limits, sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.sandbox.core import Context, Params


def test_a_failed_copy_reports_the_snapshot_s_message_and_is_copied_again(aws: Sandbox, ami: str) -> None:
    wrong = "11111111-1111-1111-1111-11111111111X"
    found = plan(regions=[EUROPE], kms_keys={EUROPE: wrong}).apply()
    (failed,) = found.failed
    assert "Given key ID is not accessible" in failed.why
    assert "kms:CreateGrant" in failed.why
    again = plan(regions=[EUROPE]).apply()
    assert outcomes(again)[EUROPE] == ["copy created"]
    assert sorted(image["State"] for image in copies(aws, EUROPE)) == ["available", "failed"]


@pytest.mark.parametrize(("source_gib", "copy_gib"), [(5, 4), (4, 5)])
def test_an_ami_of_the_same_disk_in_a_larger_or_smaller_container_is_the_copy(
    aws: Sandbox, source_gib: int, copy_gib: int
) -> None:
    source = make_ami(aws, version="26.12", size_gib=source_gib)
    made = make_ami(aws, version="26.12", region=EUROPE, size_gib=copy_gib)
    found = plan(ami=source, regions=[EUROPE], channel="stable").apply()
    assert not found.failed
    assert channel_value(aws, EUROPE) == made


def test_a_failed_copy_is_retried_with_another_token(aws: Sandbox, ami: str) -> None:
    chance = {
        "op": "ec2:CopyImage",
        "nth": 1,
        "do": "outcome",
        "outcome": {"state_message": "Internal error"},
    }
    aws.faults.add(chance)
    (failed,) = plan(regions=[EUROPE]).apply().failed
    assert "Internal error" in failed.why
    assert outcomes(plan(regions=[EUROPE]).apply())[EUROPE] == ["copy created"]
    tokens = [call.params["ClientToken"] for call in aws.calls.matching("ec2:CopyImage", ran=True)]
    assert len(set(tokens)) == 2  # the failed copy has used the first one


class Refilled(limits.Limits):
    """Limits whose buckets are full after a refused request, as if the client had waited long enough."""

    def check(self, context: Context, params: Params) -> None:
        try:
            super().check(context, params)
        except ApiError:
            self.clear()
            raise


def test_a_promotion_repeats_requests_above_the_limits(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NON_MUTATING", limits.TokenBucket(2, 0))
    monkeypatch.setattr(limits, "EC2_OPERATIONS", {"CreateTags": limits.TokenBucket(1, 0)})
    monkeypatch.setattr(aws.state, "limits", Refilled())
    found = plan(regions=[WEST, EUROPE], channel="stable").apply()
    assert not found.failed
    assert [channel_value(aws, region) != "" for region in (HOME, WEST, EUROPE)] == [True] * 3
    assert "RequestLimitExceeded" in {call.outcome for call in aws.calls}


@pytest.mark.long(seconds=30)
def test_publishing_and_promoting_work_within_the_limits_of_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sandbox(speed=20, limits="aws") as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)
        aws.prepare(bucket="vmsnix-images", region=HOME)
        image = make_sample_image(tmp_path / "image", name="ecs-node")
        params: dict[str, Any] = {"image": str(image), "region": HOME, "progress": silent()}
        imported = publish.plan(**params, bucket="vmsnix-images").apply()
        found = plan(ami=imported.ami_id, regions=[WEST, EUROPE], channel="stable").apply()
        assert not found.failed
        assert channel_value(aws, EUROPE)


def test_a_promotion_waits_at_the_copy_limit(aws: Sandbox, ami: str) -> None:
    limit = {
        "op": "ec2:CopyImage",
        "nth": [1, 2],
        "do": "error",
        "code": "ResourceLimitExceeded",
        "http": 400,
    }
    aws.faults.add(limit)
    assert outcomes(plan(regions=[EUROPE]).apply())[EUROPE] == ["copy created"]
    assert len(list(aws.calls.matching("ec2:CopyImage"))) == 3


def test_a_lost_answer_makes_no_second_copy(aws: Sandbox, ami: str) -> None:
    aws.faults.add({"op": "ec2:CopyImage", "nth": 1, "do": "drop", "when": "after"})
    assert outcomes(plan(regions=[EUROPE]).apply())[EUROPE] == ["copy created"]
    assert len(copies(aws, EUROPE)) == 1


def test_two_promoters_at_once_make_one_copy(aws: Sandbox, ami: str) -> None:
    plans = [plan(channel="stable", regions=[EUROPE]) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(promote.PromotionPlan.apply, plans))
    # In each region one of them sets the channel first; the plan of the other is stale.
    assert {one.status for one in found} <= {"done", "partial"}
    for region in (HOME, EUROPE):
        assert any("set channel changed" in outcomes(one)[region] for one in found)
    (copy,) = copies(aws, EUROPE)
    assert (channel_value(aws, HOME), channel_value(aws, EUROPE)) == (ami, copy["ImageId"])
    assert plan(channel="stable", regions=[EUROPE]).apply().status == "done"


def test_unprotect_turns_protection_off_in_every_region(aws: Sandbox, ami: str) -> None:
    plan(regions=[EUROPE], protect=True).apply()
    request: dict[str, Any] = {"regions": [EUROPE, WEST], "unprotect": True}
    assert "deregistration protection off" in str(plan(**request))
    found = plan(**request).apply()
    assert outcomes(found) == {
        HOME: ["unprotect changed"],
        EUROPE: ["copy reused", "unprotect changed"],
        WEST: ["copy created", "unprotect unchanged"],
    }
    for region in (HOME, EUROPE, WEST):
        (image,) = aws.client("ec2", region).describe_images(Owners=["self"])["Images"]
        assert image["DeregistrationProtection"] == "disabled"
    rows = open_tables(load()).read("promotions").sort_values("promoted_at")
    assert list(rows[rows["region"] == EUROPE]["protected"]) == [True, False]
    with pytest.raises(errors.ParameterError, match="cannot be used together"):
        plan(protect=True, unprotect=True)


def test_a_copy_with_the_name_that_was_just_created_is_found(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(regions=[EUROPE]).apply()
    made = plan(regions=[EUROPE])
    seen, named = [], images.find_all_by_name

    def late(ec2: Any, name: str) -> Any:
        """Return the copy only from the third call, as EC2 may."""
        seen.append(name)
        return named(ec2, name) if len(seen) > 2 else []

    monkeypatch.setattr(images, "find_all_by_name", late)
    taken = {
        "op": "ec2:CopyImage",
        "nth": 1,
        "do": "error",
        "code": "InvalidAMIName.Duplicate",
        "http": 400,
    }
    aws.faults.add(taken)
    assert made.apply().status == "done"
    assert len(copies(aws, EUROPE)) == 1


def test_a_copy_that_is_not_visible_yet_is_not_made_twice(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS copies under a name that is in use, so the ClientToken has to prevent it."""
    plan(regions=[EUROPE]).apply()
    made, seen, named = plan(regions=[EUROPE]), [], images.find_all_by_name

    def late(ec2: Any, name: str) -> Any:
        """Return the copy from the second call: another promotion started it in between."""
        seen.append(name)
        return named(ec2, name) if len(seen) > 1 else []

    monkeypatch.setattr(images, "find_all_by_name", late)
    assert made.apply().status == "done"
    assert len(copies(aws, EUROPE)) == 1


def test_a_copy_has_the_description_of_its_source(aws: Sandbox) -> None:
    ami_id = make_ami(aws, Description="ecs-node 26.11, built from main")
    assert plan(ami=ami_id, regions=[EUROPE]).apply().status == "done"
    assert copies(aws, EUROPE)[0]["Description"] == "ecs-node 26.11, built from main"


def test_later_tags_of_the_source_are_copied(aws: Sandbox, ami: str) -> None:
    plan(regions=[EUROPE]).apply()
    aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "team", "Value": "platform"}])
    made = plan(regions=[EUROPE])
    assert "the tags team" in made.targets[1].steps[0].what
    assert outcomes(made.apply())[EUROPE] == ["copy created"]
    (image,) = copies(aws, EUROPE)
    assert {"Key": "team", "Value": "platform"} in image["Tags"]
    snapshot_id = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    (snapshot,) = aws.client("ec2", EUROPE).describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert {"Key": "team", "Value": "platform"} in snapshot["Tags"]
    assert outcomes(plan(regions=[EUROPE]).apply())[EUROPE] == ["copy reused"]


def test_a_channel_is_not_set_to_a_deprecated_copy(aws: Sandbox, ami: str) -> None:
    plan(regions=[EUROPE]).apply()
    (image,) = copies(aws, EUROPE)
    there = aws.state.tables.table(aws.account, EUROPE, "images")[image["ImageId"]]
    there.deprecate_at = datetime.now(UTC) - timedelta(days=1)
    found = plan(channel="stable", regions=[EUROPE]).apply()
    assert outcomes(found)[EUROPE] == ["copy failed", "set channel skipped"]
    assert "has been deprecated since" in found.failed[0].why
    assert not channel_value(aws, EUROPE)


def test_a_copy_that_could_not_be_shared_is_not_made(aws: Sandbox, ami: str) -> None:
    ec2 = aws.client("ec2", EUROPE)
    ec2.enable_ebs_encryption_by_default()
    made = plan(regions=[EUROPE], share_with=[OTHER])
    assert [step.outcome for step in made.targets[1].steps] == ["failed", "skipped"]
    assert "--kms-keys eu-west-1=KEY" in made.targets[1].steps[0].why
    assert outcomes(made.apply())[EUROPE] == ["copy failed", "share skipped"]
    assert not copies(aws, EUROPE)
    ec2.modify_ebs_default_kms_key_id(KmsKeyId=KEY)  # a key of the account, which it can share
    assert plan(regions=[EUROPE], share_with=[OTHER]).apply().status == "done"


def test_an_existing_encrypted_copy_is_refused_with_the_reason(aws: Sandbox, ami: str) -> None:
    aws.client("ec2", EUROPE).enable_ebs_encryption_by_default()
    plan(regions=[EUROPE]).apply()
    (failed,) = plan(regions=[EUROPE], share_with=[OTHER]).apply().failed
    assert "EBS default key cannot be shared" in failed.why
    assert "promote it again with --kms-keys" in failed.why


def test_a_promotion_waits_for_a_new_copy_to_become_visible(aws: Sandbox, ami: str) -> None:
    for operation in ("ModifyImageAttribute", "ModifySnapshotAttribute", "EnableImageDeprecation"):
        code = "InvalidSnapshot.NotFound" if "Snapshot" in operation else "InvalidAMIID.NotFound"
        aws.faults.add({"op": f"ec2:{operation}", "nth": [1, 2], "do": "error", "code": code, "http": 400})
    found = plan(regions=[EUROPE], share_with=[OTHER], deprecate_days=30).apply()
    assert found.status == "done", found


def test_a_name_with_other_bytes_is_refused_in_the_plan(aws: Sandbox, ami: str) -> None:
    make_ami(aws, region=EUROPE, digest="f" * 64)
    made = plan(channel="stable", regions=[EUROPE])
    assert [step.outcome for step in made.targets[1].steps] == ["failed", "skipped"]
    assert "is in use" in made.targets[1].steps[0].why


def test_a_copy_with_another_key_is_not_reused(aws: Sandbox, ami: str) -> None:
    plan(regions=[EUROPE]).apply()
    found = plan(regions=[EUROPE], kms_keys={EUROPE: KEY}).apply()
    assert "another encryption" in found.failed[0].why
