"""The side effects of a notebook are limited to those that it declares."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.session import Session

from tests.support import wait_until
from vmsnix_ops.aws.iam.permissions import PERMISSIONS
from vmsnix_ops.errors import ConfirmationError, SideEffectsError
from vmsnix_ops.runbooks.execution.side_effects import (
    CREATED_IDS,
    DELETED_IDS,
    DELETING_VERBS,
    REFUSALS,
    Guard,
    allowed_effects,
    is_read,
    read_refusal,
)
from vmsnix_ops.runbooks.execution.status import Failure
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

REGION = "us-east-1"
DIGEST = "ab" * 32
DRY = "dry_run: bool = True  # show the plan\n"


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    with sandbox(speed=10_000) as served:
        served.client("s3").create_bucket(Bucket="images")
        yield served


@pytest.fixture
def ec2(aws: Any) -> Any:
    return aws.client("ec2", REGION)


def snapshot(aws: Any, **tags: str) -> str:
    ebs, ec2 = aws.client("ebs", REGION), aws.client("ec2", REGION)
    wanted = [{"Key": key.replace("_", ":"), "Value": value} for key, value in tags.items()]
    made: str = ebs.start_snapshot(VolumeSize=1, Tags=wanted)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=made, ChangedBlocksCount=0)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[made], WaiterConfig={"Delay": 1})
    return made


def image(aws: Any, name: str) -> str:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot(aws)}}
    ec2 = aws.client("ec2", REGION)
    request = {
        "Name": name,
        "Architecture": "x86_64",
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [disk],
    }
    made: str = ec2.register_image(VirtualizationType="hvm", EnaSupport=True, **request)["ImageId"]
    return made


# Calls by their effect


@pytest.mark.parametrize(
    ("call", "reads"),
    [
        ("ec2:DescribeImages", True),
        ("ec2:GetConsoleOutput", True),
        ("s3:HeadObject", True),
        ("s3:ListObjectsV2", True),
        ("iam:SimulatePrincipalPolicy", True),
        ("sts:AssumeRole", True),
        ("ec2:RegisterImage", False),
        ("ec2:CreateTags", False),
        ("ec2:DeregisterImage", False),
        ("s3:PutObject", False),
        ("sns:Publish", False),
        ("lambda:Invoke", False),
        ("sqs:ReceiveMessage", False),
        ("cognito-identity:GetId", False),
        ("ssm:Getaway", False),  # a verb is a whole word
        ("new-service:FrobnicateThing", False),  # an unknown verb does not read
    ],
)
def test_calls_that_read_are_recognized(call: str, reads: bool) -> None:
    assert is_read(*call.split(":")) is reads


def test_dry_run_is_a_read_only_for_ec2() -> None:
    assert is_read("ec2", "RunInstances", {"DryRun": True})
    assert not is_read("ec2", "RunInstances", {"DryRun": False})
    assert not is_read("ssm", "PutParameter", {"DryRun": True})


def test_the_tables_contain_only_existing_operations_and_fields() -> None:
    session = Session()
    for call, path in {**CREATED_IDS, **DELETED_IDS}.items():
        service, operation = call.split(":")
        model = session.get_service_model(service).operation_model(operation)
        shape = model.output_shape if call in CREATED_IDS else model.input_shape
        for name in path.split("."):
            assert name in shape.members, call
            shape = shape.members[name]
            shape = shape.member if shape.type_name == "list" else shape
    assert [call for call in DELETED_IDS if not DELETING_VERBS.match(call.split(":")[1])] == []


def test_no_call_both_reads_and_deletes() -> None:
    operations = [action.split(":")[1] for action in PERMISSIONS]
    assert [name for name in operations if is_read("ec2", name) and DELETING_VERBS.match(name)] == []


@pytest.mark.parametrize(
    ("declared", "parameters", "allowed"),
    [
        ("deletes", {"dry_run": True}, "read_only"),
        ("creates", {"dry_run": True}, "read_only"),
        ("creates", {"dry_run": False}, "creates"),
        ("deletes", {"dry_run": "true"}, "deletes"),
        ("read_only", {"dry_run": False}, "read_only"),
        ("creates", {}, "creates"),
    ],
)
def test_a_dry_run_may_only_read(declared: Any, parameters: dict[str, object], allowed: str) -> None:
    assert allowed_effects(declared, parameters) == allowed


# What a runbook that creates may delete


def refused(guard: Guard, client: Any, service: str, operation: str, **request: Any) -> bool:
    try:
        guard.before(client, service, operation, request)
    except SideEffectsError:
        return True
    return False


def test_a_run_that_creates_may_delete_only_what_it_created(ec2: Any) -> None:
    guard = Guard("creates", "try-this")
    guard.after("ec2", "RunInstances", {"Instances": [{"InstanceId": "i-1", "ImageId": "ami-1"}]})
    guard.after("ec2", "RegisterImage", {"ImageId": "ami-2"})
    assert not refused(guard, ec2, "ec2", "TerminateInstances", InstanceIds=["i-1"])
    assert not refused(guard, ec2, "ec2", "DeregisterImage", ImageId="ami-2")
    assert refused(guard, ec2, "ec2", "DeregisterImage", ImageId="ami-2", DeleteAssociatedSnapshots=True)
    assert refused(
        guard, ec2, "ec2", "DeregisterImage", ImageId="ami-1"
    )  # it started the instance, but did not create it
    assert refused(guard, ec2, "ec2", "DeleteVpc", VpcId="vpc-1")


def test_a_run_that_creates_may_delete_leftovers_of_a_publish(aws: Any, ec2: Any) -> None:
    guard = Guard("creates", "try-this")
    leftover, backup = snapshot(aws, vmsnix_digest=DIGEST), snapshot(aws, Team="payroll")
    assert not refused(guard, ec2, "ec2", "DeleteSnapshot", SnapshotId=leftover)
    assert refused(guard, ec2, "ec2", "DeleteSnapshot", SnapshotId=backup)
    assert not refused(guard, ec2, "s3", "DeleteObject", Bucket="b", Key=f"vmsnix/{DIGEST}-{DIGEST[:32]}.vhd")
    assert not refused(
        guard, ec2, "s3", "DeleteObject", Bucket="b", Key=f"{DIGEST}-{DIGEST[:32]}-0a1b2c3d.raw"
    )
    assert refused(guard, ec2, "s3", "DeleteObject", Bucket="b", Key="payroll.xlsx")
    assert refused(guard, ec2, "s3", "DeleteObject", Bucket="b", Key=f"{DIGEST}.vhd/payroll.xlsx")
    assert refused(guard, ec2, "s3", "DeleteObjects", Bucket="b", Delete={"Objects": [{"Key": "x"}]})
    assert refused(guard, ec2, "s3", "DeleteBucket", Bucket="b")
    assert refused(guard, None, "s3", "DeleteObject")  # a presigned URL, without the parameters
    ours, theirs = "arn:aws:iam::1:policy/vmsnix-publisher-x", "arn:aws:iam::1:policy/admin"
    assert not refused(guard, ec2, "iam", "DeletePolicyVersion", PolicyArn=ours, VersionId="v1")
    assert refused(guard, ec2, "iam", "DeletePolicyVersion", PolicyArn=theirs, VersionId="v1")


def test_a_run_that_creates_may_terminate_only_instances_of_smoke_tests(aws: Any, ec2: Any) -> None:
    guard = Guard("creates", "try-this")
    ami = image(aws, "launched")

    def launch(key: str) -> str:
        tags = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": ami}]}]
        options = {"ImageId": ami, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
        made: str = ec2.run_instances(TagSpecifications=tags, **options)["Instances"][0]["InstanceId"]
        return made

    smoke, other = launch("vmsnix:smoke"), launch("Team")
    assert not refused(guard, ec2, "ec2", "TerminateInstances", InstanceIds=[smoke])
    assert refused(guard, ec2, "ec2", "TerminateInstances", InstanceIds=[smoke, other])
    assert refused(guard, ec2, "ec2", "StopInstances", InstanceIds=[smoke])


def test_the_snapshot_of_an_import_is_recognized_before_it_has_tags(aws: Any, ec2: Any) -> None:
    aws.prepare(bucket="vm-images", region=REGION, key_prefix="")
    aws.client("s3").put_object(Bucket="vm-images", Key="disk.raw", Body=bytes(1 << 20))
    tags = [{"ResourceType": "import-snapshot-task", "Tags": [{"Key": "vmsnix:digest", "Value": DIGEST}]}]
    disk = {"Format": "RAW", "UserBucket": {"S3Bucket": "vm-images", "S3Key": "disk.raw"}}
    for specification, cleaned in ((tags, True), ([], False)):
        task = ec2.import_snapshot(DiskContainer=disk, TagSpecifications=specification)["ImportTaskId"]
        guard = Guard("creates", "try-this")
        assert refused(guard, ec2, "ec2", "CancelImportTask", ImportTaskId=task) is not cleaned
        made = wait_until(lambda task=task: _imported(ec2, task), "the import")
        assert refused(guard, ec2, "ec2", "DeleteSnapshot", SnapshotId=made) is not cleaned


def _imported(ec2: Any, task: str) -> str:
    (found,) = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"]
    return str(found["SnapshotTaskDetail"].get("SnapshotId", ""))


# Notebooks with a wrong declaration


HIDE = """\
import boto3
ec2 = boto3.client("ec2", region_name="us-east-1")
try:
    ec2.deregister_image(ImageId=name)
except Exception as error:
    print("never mind:", type(error).__name__)
"""
TAG = """\
import boto3
ec2 = boto3.client("ec2", region_name="us-east-1")
ec2.create_tags(Resources=[name], Tags=[{"Key": "a", "Value": "b"}])
"""
SIGN = """\
import boto3
boto3.client("s3").generate_presigned_url("delete_object", Params={"Bucket": "images", "Key": "x"})
"""


@pytest.mark.parametrize("line", ["{", '"text"', "7", "{}", '{"what": "x"}', "[" * 100_000])
def test_a_line_that_is_no_refusal_hides_no_later_one(tmp_path: Path, line: str) -> None:
    refusal = {"what": "Refused.", "why": "It only reads.", "fix": "Do not.", "exit_code": 0}
    (tmp_path / REFUSALS).write_text(f"{line}\n{json.dumps(refusal)}\n")
    assert read_refusal(tmp_path) == Failure("SideEffectsError", "Refused.", "It only reads.", "Do not.")
    assert read_refusal(tmp_path) is None  # the file is deleted


def test_a_read_only_notebook_cannot_deregister(shelf: Shelf, aws: Any, ec2: Any) -> None:
    ami = image(aws, "kept")
    outcome = shelf.run(HIDE, given={"name": ami}, environment=aws.environment)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)  # although the notebook suppressed the error
    assert outcome.error is not None
    assert outcome.error.type == "SideEffectsError"
    assert outcome.error.what == "try-this may not call ec2:DeregisterImage."
    assert "never mind: SideEffectsError" in shelf.screen.getvalue()
    assert ec2.describe_images(ImageIds=[ami])["Images"]


@pytest.mark.parametrize(
    ("cells", "kept_from"),
    [
        ((SIGN,), "s3:DeleteObject"),
        (
            ("import boto3\nboto3.client('s3').put_object(Bucket='images', Key='x', Body=b'')",),
            "s3:PutObject",
        ),
        (
            ("import boto3\nboto3.resource('s3').Bucket('images').upload_file('/etc/hostname', 'x')",),
            "s3:PutObject",
        ),
    ],
    ids=["presigned", "client", "transfer"],
)
@pytest.mark.variants
def test_all_kinds_of_boto3_calls_are_checked(
    shelf: Shelf, aws: Any, cells: tuple[str, ...], kept_from: str
) -> None:
    outcome = shelf.run(*cells, environment=aws.environment)
    assert outcome.error is not None
    assert kept_from in outcome.error.what
    assert "Contents" not in aws.client("s3").list_objects_v2(Bucket="images")


def test_a_notebook_that_creates_cannot_delete_and_a_dry_run_cannot_create(
    shelf: Shelf, aws: Any, ec2: Any
) -> None:
    ami = image(aws, "kept too")
    parameters = 'name: str = ""  # the AMI\n'
    options: dict[str, Any] = {"folder": shelf.folder, "archive": shelf.archive, "record": False}
    from vmsnix_ops.runbooks.execution.execute import run

    options |= {"environment": aws.environment}
    shelf.put("10-make-things.ipynb", HIDE, parameters=parameters, side_effects="creates")
    outcome = run("make-things", {"name": ami}, **options)
    assert outcome.error is not None
    assert "would delete what it did not create" in outcome.error.why
    assert ec2.describe_images(ImageIds=[ami])["Images"]

    shelf.put("20-tag-things.ipynb", TAG, parameters=parameters + DRY, side_effects="creates")
    outcome = run("tag-things", {"name": ami}, **options)
    assert outcome.error is not None
    assert "it is a dry run" in outcome.error.why
    assert run("tag-things", {"name": ami, "dry_run": False}, **options).status == "done"
    (found,) = ec2.describe_images(ImageIds=[ami])["Images"]
    assert found["Tags"] == [{"Key": "a", "Value": "b"}]


def test_a_notebook_that_deletes_must_be_confirmed(shelf: Shelf, aws: Any, ec2: Any) -> None:
    from vmsnix_ops.runbooks.execution.execute import run

    ami = image(aws, "going")
    shelf.put("10-end-things.ipynb", HIDE, parameters='name: str = ""  # AMI\n' + DRY, side_effects="deletes")
    options: dict[str, Any] = {"folder": shelf.folder, "archive": shelf.archive, "record": False}
    options |= {"environment": aws.environment}
    with pytest.raises(ConfirmationError, match=r"Pass --yes"):
        run("end-things", {"name": ami, "dry_run": False}, **options)
    assert not shelf.archive.exists()
    assert ec2.describe_images(ImageIds=[ami])["Images"]
    assert run("end-things", {"name": ami, "dry_run": False}, confirmed=True, **options).status == "done"
    assert ami not in [one["ImageId"] for one in ec2.describe_images(Owners=["self"])["Images"]]
