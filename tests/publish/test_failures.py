"""Real failures: one clear error, no leftovers, and the next run continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.aws.account import make_ami
from vmsnix_ops import errors
from vmsnix_ops.aws import buckets, imports
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.session import client
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.publish import identity
from vmsnix_ops.publish.undo import plan_undo
from vmsnix_ops.settings import load

BUCKET, REGION = "vmsnix-images", "us-east-1"


def calls(aws, operation: str) -> int:
    return sum(call.operation == operation and call.ran for call in aws.calls)


# Before the upload


@pytest.mark.parametrize("named", ["not-there.vhd", "a-directory", "empty.vhd"])
def test_a_file_that_is_no_image_is_refused_before_any_call_of_aws(aws, plan, tmp_path, named):
    (tmp_path / "a-directory").mkdir()
    (tmp_path / "empty.vhd").touch()
    before = len(aws.calls)
    with pytest.raises(errors.ImageError, match=named):
        plan(image=f"./{named}")
    assert len(aws.calls) == before


def test_an_unknown_image_of_a_flake_is_refused_before_any_call_of_aws(aws, plan, tmp_path):
    before = len(aws.calls)
    with pytest.raises(errors.VmsnixError):
        plan(image=f"{tmp_path}#no-such-image", dry_run=True)
    assert len(aws.calls) == before


def test_a_truncated_vhd_is_refused(plan, image, tmp_path, left):
    broken = tmp_path / "broken.vhd"
    data = next(image.glob("*.vhd")).read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(errors.ImageFormatError):
        plan(image=str(broken)).apply()
    assert left().nothing


def test_a_vhd_with_a_wrong_checksum_names_the_field(plan, image, tmp_path):
    broken = tmp_path / "broken.vhd"
    data = bytearray(next(image.glob("*.vhd")).read_bytes())
    data[-512 + 64] ^= 0xFF
    broken.write_bytes(data)
    with pytest.raises(errors.ImageFormatError) as caught:
        plan(image=str(broken)).apply()
    assert caught.value.offset is not None
    assert caught.value.field


@pytest.mark.parametrize(("made", "named"), [("raw", "disk.vhd"), ("vhd", "disk.raw")])
def test_row_23_a_wrong_name_does_not_mislead(aws, plan, tmp_path, made, named):
    output = make_sample_image(tmp_path / "x", name="x", format=made, data_bytes=2**20)
    source = next(path for path in output.iterdir() if path.is_file())
    shutil.copy(source, tmp_path / named)
    plan(image=str(tmp_path / named)).apply()
    task = aws.client("ec2", REGION).describe_import_snapshot_tasks()["ImportSnapshotTasks"][0]
    assert task["SnapshotTaskDetail"]["Format"] == made.upper()


def test_a_missing_bucket_is_reported(plan, left):
    with pytest.raises(errors.BucketError, match="does not exist") as caught:
        plan(bucket="no-such-bucket-of-ours")
    assert "aws s3 mb" in caught.value.fix
    assert left().nothing


def test_row_03_a_bucket_in_another_region(aws, plan):
    aws.client("s3", "eu-west-1").create_bucket(
        Bucket="in-ireland", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with pytest.raises(errors.BucketError, match="eu-west-1, not in us-east-1"):
        plan(bucket="in-ireland")


def test_a_bucket_in_another_region_is_reported_by_the_import(aws):
    aws.prepare(bucket="in-ireland", region="eu-west-1")
    aws.client("s3", "eu-west-1").put_object(Bucket="in-ireland", Key="disk.vhd", Body=b"")
    source = imports.Source("in-ireland", "disk.vhd", "vhd", "vmimport")
    with pytest.raises(errors.BucketError, match="in-ireland is in another region") as caught:
        imports.import_snapshot(aws.client("ec2", REGION), source, digest="0" * 64, tags={"Name": "disk"})
    assert "region that you publish to" in caught.value.fix
    assert caught.value.status_message == "The given S3 object is not local to the region"


def test_row_02_a_missing_role(plan, left):
    with pytest.raises(errors.RoleError, match="does not exist"):
        plan(role_name="no-such-role")
    assert left().nothing


def test_row_02_a_role_that_does_not_trust_vm_import(aws, plan):
    service = {"Service": "ec2.amazonaws.com"}
    statement = {"Effect": "Allow", "Principal": service, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.client("iam", REGION).create_role(RoleName="wrong-trust", AssumeRolePolicyDocument=trust)
    with pytest.raises(errors.RoleError, match="does not trust VM Import"):
        plan(role_name="wrong-trust")


def test_an_unknown_region_is_refused_with_the_nearest_name(plan):
    with pytest.raises(errors.RegionError, match="eu-west-1"):
        plan(region="eu-wset-1")


def test_a_region_that_is_not_enabled_is_reported(aws, plan):
    with pytest.raises(errors.RegionError, match="not enabled"):
        plan(region="ap-east-1")


def test_empty_credentials(aws, plan, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(errors.CredentialsError) as caught:
        plan()
    assert "AWS_PROFILE" in caught.value.fix


def test_unknown_credentials(plan, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONGWRONGWRONG1")
    with pytest.raises(errors.CredentialsError, match="InvalidClientTokenId"):
        plan()


def test_an_account_that_is_not_allowed(plan, monkeypatch):
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "999999999999")
    with pytest.raises(errors.CredentialsError, match="999999999999"):
        plan()


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("image", ""),
        ("via", "pigeon"),
        ("bucket", "No_Bucket"),
        ("role_name", "arn:aws:iam::012345678901:role/x"),
        ("root_device", "sda1"),
        ("prefix", "a*b"),
        ("tags", {"vmsnix:digest": "x"}),
        ("tags", {"aws:thing": "x"}),
        ("tags", {"k" * 129: "x"}),
    ],
)
def test_an_invalid_parameter_is_refused(plan, parameter, value):
    with pytest.raises(errors.ParameterError) as caught:
        plan(**{parameter: value})
    assert caught.value.exit_code == 2


def test_row_11_a_name_that_belongs_to_other_bytes(aws, plan, left):
    result = plan().apply()
    ec2 = aws.client("ec2", REGION)
    ec2.create_tags(Resources=[result.ami_id], Tags=[{"Key": "vmsnix:digest", "Value": "f" * 64}])
    ec2.create_tags(Resources=[result.snapshot_id], Tags=[{"Key": "vmsnix:digest", "Value": "f" * 64}])
    before = left()
    with pytest.raises(errors.NameTakenError, match=result.ami_id):
        plan().apply()
    assert left() == before


# During the upload


def test_an_interrupted_upload_is_continued(aws, plan, image, left):
    aws.faults.add(
        {
            "op": "s3:UploadPart",
            "where": {"PartNumber": "2"},
            "do": "error",
            "code": "ExpiredToken",
            "http": 400,
        }
    )
    with pytest.raises(errors.CredentialsError):
        plan().apply()
    assert len(left().uploads) == 1
    aws.faults.clear()
    sent = calls(aws, "UploadPart")
    wanted = plan()
    wanted.apply()
    size = next(image.glob("*.vhd")).stat().st_size
    upload = next(timing for timing in wanted.journal.timings if timing.step == "upload")
    assert upload.bytes < size
    assert calls(aws, "UploadPart") - sent < -(-size // (8 * 2**20))
    assert calls(aws, "CreateMultipartUpload") == 1
    assert left().uploads == []


def test_row_05_an_object_with_other_bytes_under_our_key_is_replaced(aws, plan, image):
    wanted = plan()
    built = wanted.build()
    key = identity.key(wanted, built)
    aws.client("s3", REGION).put_object(
        Bucket=BUCKET, Key=key, Body=b"x" * built.file_bytes, ChecksumAlgorithm="SHA256"
    )
    assert wanted.upload(built).outcome == "created"


def test_an_object_with_our_bytes_is_not_sent_again(aws, plan):
    first = plan()
    first.upload(first.build())
    sent = calls(aws, "UploadPart")
    second = plan()
    assert second.upload(second.build()).outcome == "reused"
    assert calls(aws, "UploadPart") == sent


@pytest.mark.parametrize("ended", ["completed", "aborted", "completed and imported"])
@pytest.mark.variants
def test_an_upload_that_another_publisher_ends_is_found_or_made_again(aws, plan, left, ended):
    first, second = plan(), plan()
    built, others = first.build(), second.build()
    key = identity.key(first, built)

    events = client(first.session, "s3", REGION, connections=buckets.THREADS + 2).meta.events

    def end_once(**_event):
        events.unregister("after-call.s3.CreateMultipartUpload", end_once)
        if ended == "aborted":
            (upload,) = left().uploads
            aws.client("s3", REGION).abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
            return
        uploaded = second.upload(others)
        if ended == "completed and imported":
            second.finish(second.register(second.import_snapshot(uploaded)))

    events.register("after-call.s3.CreateMultipartUpload", end_once)
    source = first.upload(built)
    assert source.outcome == ("reused" if ended == "completed" else "created")
    done = first.finish(first.register(first.import_snapshot(source)))
    assert left().amis == [done.ami_id]
    assert left().objects == left().uploads == []


def test_a_publisher_whose_upload_is_always_ended_keeps_the_object_of_the_other(aws, plan, left):
    wanted = plan()
    built = wanted.build()
    aws.faults.add({"op": "s3:UploadPart", "do": "error", "code": "NoSuchUpload", "http": 404})
    with pytest.raises(errors.AwsError, match="ended 3 times by another process") as caught:
        wanted.upload(built)
    assert "Run the same command again" in caught.value.fix
    assert calls(aws, "DeleteObject") == 0


def test_a_denied_upload_names_the_action_and_leaves_nothing(aws, plan, left):
    aws.faults.add({"op": "s3:UploadPart", "do": "error", "code": "AccessDenied", "http": 403})
    with pytest.raises(errors.AccessDeniedError, match="UploadPart"):
        plan().apply()
    aws.faults.clear()
    assert left().nothing


def test_throttled_requests_are_retried(aws, plan):
    aws.faults.add({"op": "s3:UploadPart", "nth": [1, 2], "do": "error", "code": "SlowDown", "http": 503})
    aws.faults.add(
        {"op": "ec2:DescribeSnapshots", "nth": 1, "do": "error", "code": "RequestLimitExceeded", "http": 503}
    )
    assert plan().apply().ami_id


# During the import


def test_a_failed_import_ends_at_once_with_the_message(aws, plan, left):
    aws.faults.add(
        {
            "op": "ec2:ImportSnapshot",
            "do": "outcome",
            "outcome": {
                "status_message": "ClientError: Disk validation failed [Unsupported specified file format]"
            },
        }
    )
    with pytest.raises(errors.ImportFailedError, match="Disk validation failed") as caught:
        plan().apply()
    assert "Unsupported" in caught.value.status_message
    assert left().nothing


def test_an_import_whose_object_was_missing_deletes_no_object_that_is_there_now(aws, plan, left):
    gone = "Disk validation failed [We do not have access to the given resource. Reason 404 Not Found]"
    aws.faults.add({"op": "ec2:ImportSnapshot", "do": "outcome", "outcome": {"status_message": gone}})
    with pytest.raises(errors.ImportFailedError, match="deleted before AWS read it"):
        plan().apply()
    assert len(left().objects) == 1


def test_an_import_that_aws_cancelled_is_started_again_without_an_upload(aws, plan):
    aws.faults.add(
        {
            "op": "ec2:ImportSnapshot",
            "nth": 1,
            "do": "outcome",
            "outcome": {"status_message": "SERVER_ERROR : conversion : AWS initiated task cancellation"},
        }
    )
    assert plan().apply().ami_id
    assert calls(aws, "ImportSnapshot") == 2
    assert calls(aws, "CompleteMultipartUpload") == 1


def test_row_07_fields_that_are_empty_while_pending_are_not_trusted(aws, plan):
    aws.faults.add(
        {
            "op": "ec2:DescribeImportSnapshotTasks",
            "nth": [1, 2],
            "do": "blank",
            "fields": ["Progress", "StatusMessage"],
        }
    )
    assert plan().apply().snapshot_id.startswith("snap-")


def test_row_02_a_role_that_lost_its_rights_is_named_and_nothing_is_left(aws, plan, left):
    aws.faults.add(
        {
            "op": "ec2:ImportSnapshot",
            "do": "error",
            "code": "InvalidParameter",
            "http": 400,
            "message": "The service role vmimport provided does not exist or does not have sufficient "
            "permissions",
        }
    )
    wanted = plan()
    object.__setattr__(wanted, "checks", ())  # as if the role were old, so that no check waits for it
    with pytest.raises(errors.RoleError, match="iam:PassRole"):
        wanted.apply()
    assert left().nothing


def test_row_02_a_role_made_a_moment_ago_is_waited_for(aws, plan):
    aws.faults.add(
        {
            "op": "ec2:ImportSnapshot",
            "nth": [1, 2],
            "do": "error",
            "code": "InvalidParameter",
            "http": 400,
            "message": "The service role vmimport provided does not exist or does not have sufficient "
            "permissions",
        }
    )
    assert plan().apply().ami_id


def test_row_09_a_crash_before_the_snapshot_was_tagged_finds_it_through_the_task(aws, plan, left):
    aws.faults.add({"op": "ec2:CreateTags", "do": "error", "code": "ExpiredToken", "http": 400})
    with pytest.raises(errors.CredentialsError):
        plan().apply()
    aws.faults.clear()
    plan().apply()
    assert calls(aws, "ImportSnapshot") == 1
    assert len(left().snapshots) == 1


def test_a_lost_response_to_the_import_starts_no_second_import(aws, plan, left):
    aws.faults.add({"op": "ec2:ImportSnapshot", "nth": 1, "do": "drop", "when": "after"})
    plan().apply()
    assert len(left().snapshots) == 1


# During the registration


def test_row_12_a_lost_answer_to_the_registration_makes_no_second_ami(aws, plan, left):
    aws.faults.add({"op": "ec2:RegisterImage", "nth": 1, "do": "drop", "when": "after"})
    result = plan().apply()
    assert left().amis == [result.ami_id]


def test_row_10_a_snapshot_that_is_not_yet_visible_is_waited_for(aws, plan):
    aws.faults.add(
        {
            "op": "ec2:RegisterImage",
            "nth": [1, 2],
            "do": "error",
            "code": "InvalidSnapshot.NotFound",
            "http": 400,
        }
    )
    assert plan().apply().ami_id


def test_row_10_an_ami_that_is_not_yet_visible_is_waited_for(aws, plan):
    aws.faults.add(
        {
            "op": "ec2:DescribeImages",
            "where": {"ImageIds.0": "ami-*"},
            "nth": [1, 2],
            "do": "error",
            "code": "InvalidAMIID.NotFound",
            "http": 400,
        }
    )
    assert plan().apply().ami_id


def test_row_13_a_quota_at_the_last_step_keeps_the_snapshot_for_the_next_run(aws, plan, left):
    aws.faults.add({"op": "ec2:RegisterImage", "do": "error", "code": "AMIQuotaExceeded", "http": 400})
    with pytest.raises(errors.QuotaError):
        plan().apply()
    assert len(left().snapshots) == 1
    aws.faults.clear()
    plan().apply()
    assert calls(aws, "ImportSnapshot") == 1
    assert left().objects == []


def test_a_failed_run_is_recorded(aws, plan, image):
    from vmsnix_ops.records import history
    from vmsnix_ops.records.tables import open_tables
    from vmsnix_ops.settings import load

    checked = plan()
    shutil.rmtree(image)
    with pytest.raises(errors.ImageNotFoundError):
        checked.apply()
    run = history.runs(open_tables(load())).iloc[0]
    assert run["status"] == "failed"
    assert image.name in run["error"]


def test_a_wrong_path_in_the_description_of_an_image_is_corrected(plan, image):
    described = image / "nix-support" / "image-info.json"
    described.write_text(described.read_text().replace(".vhd", ".gone"))
    with pytest.raises(errors.ImageError):
        plan(image=str(Path(image))).apply()


def test_an_undo_with_the_credentials_of_another_account_is_refused(aws):
    folder = load().state / "runs" / "20261128T100000242Z-publish-ami-0a1b2c"
    folder.mkdir(parents=True)
    row = {"step": "upload", "status": "done", "region": REGION, "account": "111122223333"}
    (folder / "journal.jsonl").write_text(json.dumps(row | {"detail": {"digest": "d" * 64}}) + "\n")
    with pytest.raises(errors.CredentialsError, match="used the account 111122223333") as caught:
        plan_undo(folder.name)
    assert aws.account in caught.value.why


RUN, OTHER = "20261128T100000242Z-publish-ami-0a1b2c", "20261128T100100743Z-publish-ami-3d4e5f"
DIGEST = "d" * 64
KEY = f"vmsnix/{DIGEST}-{'f' * 32}.vhd"


@pytest.fixture
def died(aws):
    """A run of the import method that has uploaded its image, and its journal."""
    folder = load().state / "runs" / RUN
    folder.mkdir(parents=True)
    row = {"step": "upload", "status": "done", "region": REGION, "account": aws.account, "via": "import"}
    detail = {"digest": DIGEST, "url": f"s3://{BUCKET}/{KEY}"}
    (folder / "journal.jsonl").write_text(json.dumps(row | {"detail": detail}) + "\n")
    aws.client("s3").put_object(Bucket=BUCKET, Key=KEY, Body=bytes(2**20))


def start_import(aws, run: str) -> str:
    """Start an import of the upload that ends in an hour of real time; return its task."""
    aws.clock.speed = 1.0
    source = {"Format": "RAW", "UserBucket": {"S3Bucket": BUCKET, "S3Key": KEY}}
    tags = tagging.tag_specifications("import-snapshot-task", {tagging.DIGEST: DIGEST, tagging.RUN: run})
    params = {"DiskContainer": source, "TagSpecifications": tags}
    return aws.client("ec2").import_snapshot(**params)["ImportTaskId"]


@pytest.mark.parametrize(
    ("importing", "kinds"),
    [((), {"upload"}), ((RUN,), {"import", "upload"}), ((OTHER,), set()), ((RUN, OTHER), {"import"})],
    ids=["no import", "its own", "of another run", "both"],
)
def test_an_undo_keeps_the_object_of_another_runs_import(aws, died, left, importing, kinds):
    tasks = {run: start_import(aws, run) for run in importing}
    plan = plan_undo(RUN)
    assert {leftover.kind for leftover in plan.leftovers} == kinds
    plan.apply()
    assert left().running == [task for run, task in tasks.items() if run == OTHER]
    assert bool(left().objects) == (OTHER in importing)


def test_an_undo_removes_the_journals_of_a_direct_upload_also_with_a_key(aws, died):
    journal = load().state / "runs" / RUN / "journal.jsonl"
    row = json.loads(journal.read_text())
    del row["detail"]["url"]
    journal.write_text(json.dumps(row | {"via": "direct"}) + "\n")
    blocks = load().state / "blocks"
    blocks.mkdir()
    name = f"{aws.account}-{REGION}-{DIGEST}"
    for suffix in ("", "-0a1b2c3d", ".lock"):
        (blocks / f"{name}{suffix}").touch()
    (blocks / f"{aws.account}-{REGION}-{'e' * 64}").touch()
    assert len(plan_undo(RUN).apply()) == 2
    assert sorted(path.name for path in blocks.iterdir()) == [
        f"{name}.lock",
        f"{aws.account}-{REGION}-{'e' * 64}",
    ]


def test_an_import_that_began_after_the_plan_of_an_undo_keeps_its_upload(aws, died, left):
    plan = plan_undo(RUN)
    assert [leftover.kind for leftover in plan.leftovers] == ["upload"]
    start_import(aws, OTHER)
    assert plan.apply() == ()
    assert left().objects == [KEY]


def test_an_undo_keeps_a_snapshot_of_its_run_that_another_run_registered(aws, died, left):
    ami = make_ami(aws, digest=DIGEST, tags={tagging.RUN: RUN})
    aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": tagging.RUN, "Value": OTHER}])
    plan = plan_undo(RUN)
    assert [leftover.kind for leftover in plan.leftovers] == ["upload"]
    aws.calls.clear()
    plan.apply()
    assert calls(aws, "DeleteSnapshot") == 0
    assert (left().amis, len(left().snapshots)) == ([ami], 1)


def test_a_snapshot_that_was_registered_after_the_plan_of_an_undo_is_kept(aws, died, left):
    ami = make_ami(aws, digest=DIGEST, tags={tagging.RUN: RUN})
    ec2 = aws.client("ec2")
    (image,) = ec2.describe_images(ImageIds=[ami])["Images"]
    ec2.deregister_image(ImageId=ami)
    plan = plan_undo(RUN)
    assert [leftover.kind for leftover in plan.leftovers] == ["snapshot", "upload"]
    tags = tagging.tag_specifications("image", {tagging.DIGEST: DIGEST, tagging.RUN: OTHER})
    params = {
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "RootDeviceName": image["RootDeviceName"],
    }
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    devices = [{"DeviceName": image["RootDeviceName"], "Ebs": {"SnapshotId": snapshot}}]
    ec2.register_image(Name="taken", BlockDeviceMappings=devices, TagSpecifications=tags, **params)
    assert [leftover.kind for leftover in plan.apply()] == ["upload"]
    assert left().snapshots == [snapshot]
