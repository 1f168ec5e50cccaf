"""What one policy may not do, another one does: a publish with the policies of several people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.privileges.account import BUCKET, REGION, Account
from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.cli.policies import JOBS
from vmsnix_ops.publish.undo import plan_undo

if TYPE_CHECKING:
    from vmsnix_ops.publish.undo import Undo

IMPORTING, DIRECT = JOBS["import"].actions(), JOBS["direct"].actions()


def test_a_publisher_via_import_learns_which_policy_makes_its_ami_public(account: Account) -> None:
    with pytest.raises(errors.AccessDeniedError, match="iam-policy promoter --public") as caught:
        account.plan(IMPORTING, public=True).apply()
    (image,) = account.aws.client("ec2").describe_images(Owners=["self"])["Images"]
    assert f"vmsnix promote --ami {image['ImageId']} --region {REGION} --public" in str(caught.value)
    assert not image["Public"]


def test_a_publisher_via_import_learns_which_policy_compares_snapshots(account: Account) -> None:
    with pytest.raises(errors.AccessDeniedError, match="iam-policy verifier --blocks") as caught:
        account.plan(IMPORTING, verify="whole").apply()
    text = re.search(r"vmsnix publish --image \S+ --region \S+ (.*)$", str(caught.value))
    assert text is not None
    assert text[1] == "--via direct --verify whole --dry-run"
    account.plan(IMPORTING).apply()
    verifier = account.plan(JOBS["verify blocks"].actions(), via="direct", verify="whole", dry_run=True)
    verifier.apply()
    compared = verifier.import_snapshot(verifier.upload(verifier.build())).verified
    assert "match the image" in compared


def test_a_verifier_reports_a_snapshot_with_other_bytes(account: Account) -> None:
    plan = account.plan(IMPORTING)
    plan.apply()
    ec2 = account.aws.client("ec2")
    (image,) = ec2.describe_images(Owners=["self"])["Images"]
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    content = account.aws.state.tables.table(account.aws.account, REGION, "snapshots")[snapshot].blocks
    content.clear()
    verifier = account.plan(JOBS["verify blocks"].actions(), via="direct", verify="whole", dry_run=True)
    with pytest.raises(errors.SnapshotFailedError, match="does not match the image"):
        verifier.apply()
    assert ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"], "a verifier deletes nothing"


def unfinished(account: Account) -> tuple[str, str]:
    """Publish by import up to the snapshot; return the run and the snapshot."""
    plan = account.plan(IMPORTING)
    snapshot = plan.import_snapshot(plan.upload(plan.build()))
    return plan.run_id, snapshot.snapshot_id


def undo_by(account: Account, run_id: str, job: str) -> Undo:
    return plan_undo(run_id, session=account.session(JOBS[job].actions()))


def test_an_import_is_undone_by_its_publisher_and_the_retirer(account: Account) -> None:
    run_id, snapshot = unfinished(account)
    with pytest.raises(errors.AccessDeniedError, match="iam-policy retirer") as caught:
        undo_by(account, run_id, "import").apply()
    assert f"Not deleted: snapshot {snapshot}." in str(caught.value)
    assert f"vmsnix undo {run_id}" in str(caught.value)
    assert not account.aws.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents")
    left = undo_by(account, run_id, "retire")
    assert [leftover.kind for leftover in left.leftovers] == ["snapshot"]
    left.apply()
    assert account.aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    assert undo_by(account, run_id, "retire").leftovers == ()


def test_undo_works_in_either_order(account: Account) -> None:
    run_id, _ = unfinished(account)
    with pytest.raises(errors.AccessDeniedError, match="policy of vmsnix iam-policy publisher"):
        undo_by(account, run_id, "retire").apply()
    assert account.aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    undo_by(account, run_id, "import").apply()
    assert not account.aws.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents")


def test_a_lost_name_is_reported_with_the_snapshot_that_is_kept(account: Account) -> None:
    plan = account.plan(IMPORTING)
    snapshot = plan.import_snapshot(plan.upload(plan.build()))
    account.aws.client("ec2").register_image(
        Name=snapshot.built.ami_name,
        RootDeviceName="/dev/sda1",
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": account.snapshot()}}],
        VirtualizationType="hvm",
    )
    with pytest.raises(errors.NameTakenError) as caught:
        plan.register(snapshot)
    (note,) = caught.value.__notes__
    assert f"The snapshot {snapshot.snapshot_id} is kept" in note
    assert f"vmsnix undo {plan.run_id}" in note


def test_a_snapshot_that_another_publisher_tagged_first_is_used(account: Account) -> None:
    """Two publishers wait for one import: the second finds the tags that the first one set."""
    first, second = account.plan(IMPORTING), account.plan(IMPORTING, tags={"team": "web"})
    built = first.build()
    made = first.import_snapshot(first.upload(built))
    second.apply()
    (snapshot,) = account.aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert snapshot["SnapshotId"] == made.snapshot_id


def refuse_tags(account: Account) -> None:
    """Let StartSnapshot refuse tags, as AWS may where it does not set ec2:CreateAction."""
    message = (
        f"User: arn:aws:iam::{account.aws.account}:user/ci is not authorized to perform: ec2:CreateTags on "
        f"resource: arn:aws:ec2:{REGION}::snapshot/* because no identity-based policy allows it"
    )
    rule = {"op": "ebs:StartSnapshot", "do": "error", "code": "AccessDeniedException", "http": 403}
    account.aws.faults.add({**rule, "message": message})


def test_a_direct_upload_whose_tags_aws_refuses_names_the_policy_and_the_other_method(
    account: Account,
) -> None:
    refuse_tags(account)
    with pytest.raises(errors.AccessDeniedError) as caught:
        account.plan(DIRECT, via="direct").apply()
    text = str(caught.value)
    assert "ec2:CreateTags" in text
    assert "vmsnix iam-policy publisher --via direct" in text
    assert "--via import" in text


@pytest.mark.parametrize("job", ["direct", "verify", "public", "import"])
def test_only_an_incremental_publisher_starts_from_another_snapshot(account: Account, job: str) -> None:
    parent = account.snapshot()
    ebs = account.session(JOBS[job].actions()).client("ebs")
    with pytest.raises(ebs.exceptions.AccessDeniedException, match="ebs:StartSnapshot"):
        ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent, Tags=[{"Key": "a", "Value": "b"}])


def test_a_full_upload_names_the_policy_for_incremental_uploads(account: Account) -> None:
    account.plan(JOBS["incremental"].actions(), via="direct").apply()
    newer = _newer(account)
    plan = account.plan((*JOBS["public"].actions(), "ebs:ListSnapshotBlocks"), via="direct", image=newer)
    sent = plan.upload(plan.build())
    assert sent.direct is not None
    assert sent.direct.parent_id == ""
    assert "vmsnix iam-policy publisher --via direct --incremental" in sent.direct.why_full


def _newer(account: Account) -> str:
    from vmsnix_ops.disk.sample import make_sample_image

    return str(make_sample_image(account.image.parent / "newer", seed="newer"))


@pytest.mark.parametrize("tags", [{}, {"Name": "backup"}, {"aws:dlm:lifecycle-policy-id": "policy-1"}])
def test_a_publisher_via_import_tags_only_snapshots_without_tags(
    account: Account, tags: dict[str, str]
) -> None:
    ec2 = account.aws.client("ec2")
    copied = ec2.copy_snapshot(SourceSnapshotId=account.snapshot(), SourceRegion=REGION)["SnapshotId"]
    account.aws.clock.advance(3600)
    account.aws.state.tables.table(account.aws.account, REGION, "snapshots")[copied].tags.update(tags)
    publisher = account.session(IMPORTING).client("ec2")
    ours: dict[str, Any] = {"Resources": [copied], "Tags": [{"Key": tagging.DIGEST, "Value": "0" * 64}]}
    for foreign in ([{"Key": "team", "Value": "x"}], [{"Key": tagging.SMOKE, "Value": "x"}]):
        with pytest.raises(publisher.exceptions.ClientError, match="ec2:CreateTags"):
            publisher.create_tags(Resources=[copied], Tags=foreign)
    if tags:
        with pytest.raises(publisher.exceptions.ClientError, match="ec2:CreateTags"):
            publisher.create_tags(**ours)
        return
    publisher.create_tags(**ours)  # the tag is allowed, but gives no further access
    for call, request in (
        ("delete_snapshot", {}),
        ("modify_snapshot_attribute", {"CreateVolumePermission": {"Add": [{"Group": "all"}]}}),
    ):
        with pytest.raises(publisher.exceptions.ClientError, match="UnauthorizedOperation"):
            getattr(publisher, call)(SnapshotId=copied, **request)


@pytest.mark.parametrize(
    "tags",
    [
        {"name": "lower", "team": "", "Größe/é 100%": "ä@=:+"},
        {"Digest": "0" * 64, "vmsnix": "x", "digest": "1"},
        {f"key-{number:02}": str(number) for number in range(tagging.MOST - len(tagging.OWN) - 1)},
    ],
    ids=["odd characters", "nearly ours", "many"],
)
@pytest.mark.variants
def test_a_publisher_via_import_may_set_the_operator_s_tags(account: Account, tags: dict[str, str]) -> None:
    account.plan(IMPORTING, tags=tags).apply()
    account.plan(IMPORTING, tags=tags | {"later": "yes"}).apply()
    ec2 = account.aws.client("ec2")
    (snapshot,) = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    (image,) = ec2.describe_images(Owners=["self"])["Images"]
    assert tags.items() <= tagging.to_dict(snapshot["Tags"]).items()
    assert (tags | {"later": "yes"}).items() <= tagging.to_dict(image["Tags"]).items()


def test_a_policy_that_changes_tags_excludes_the_digest(account: Account) -> None:
    ami = make_ami(account.aws)
    retirer = account.session(JOBS["retire"].actions()).client("ec2")
    retirer.create_tags(Resources=[ami], Tags=[{"Key": tagging.RETIRED, "Value": "2026-11-28T00:00:00Z"}])
    retirer.delete_tags(Resources=[ami], Tags=[{"Key": tagging.RETIRED}])
    for key in (tagging.DIGEST, "VMSNIX:Digest"):
        with pytest.raises(retirer.exceptions.ClientError, match="ec2:CreateTags"):
            retirer.create_tags(Resources=[ami], Tags=[{"Key": key, "Value": "1" * 64}])
    for tags in ([{"Key": tagging.DIGEST}], []):
        with pytest.raises(retirer.exceptions.ClientError, match="ec2:DeleteTags"):
            retirer.delete_tags(Resources=[ami], Tags=tags)
