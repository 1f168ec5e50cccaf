"""All waiters of botocore for emulated operations, with their own delays, at several speeds of the clock."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore import xform_name
from botocore.exceptions import DataNotFoundError

from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.sandbox.core import OPERATIONS, load_operations
from vmsnix_ops.sandbox.wire.models import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.waiter import WaiterModel

    from vmsnix_ops.sandbox import Sandbox

load_operations()


def waiters(*, emulated: bool) -> Iterator[tuple[str, str]]:
    """Yield service and name of botocore's waiters whose operation is emulated, or is not."""
    session = botocore.session.get_session()
    for service in SERVICES:
        with contextlib.suppress(DataNotFoundError):
            model: WaiterModel = session.get_waiter_model(service)
            for name in model.waiter_names:
                if ((service, model.get_waiter(name).operation) in OPERATIONS) is emulated:
                    yield service, name


class Resources:
    """Creates what each waiter waits for."""

    def __init__(self, aws: Sandbox) -> None:
        self.ec2, self.s3, self.iam = (aws.client(service, "us-east-1") for service in ("ec2", "s3", "iam"))
        aws.prepare("images", role="vmimport", key_prefix="")
        self.s3.put_object(Bucket="images", Key="disk.raw", Body=bytes(512))
        self.imported = self.task()
        self.ec2.get_waiter("snapshot_imported").wait(
            ImportTaskIds=[self.imported], WaiterConfig={"Delay": 2, "MaxAttempts": 200}
        )
        detail = self.ec2.describe_import_snapshot_tasks(ImportTaskIds=[self.imported])
        self.snapshot = detail["ImportSnapshotTasks"][0]["SnapshotTaskDetail"]["SnapshotId"]
        self.image = self.ec2.register_image(
            Name="web",
            Architecture="x86_64",
            RootDeviceName="/dev/sda1",
            VirtualizationType="hvm",
            EnaSupport=True,
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": self.snapshot}}],
        )["ImageId"]

    def task(self) -> str:
        source = {"Format": "RAW", "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"}}
        task_id: str = self.ec2.import_snapshot(DiskContainer=source)["ImportTaskId"]
        return task_id

    def instance(self) -> str:
        params = {"ImageId": self.image, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
        instance_id: str = self.ec2.run_instances(**params)["Instances"][0]["InstanceId"]
        return instance_id

    def instances(self) -> dict[str, Any]:
        return {"InstanceIds": [self.instance()]}

    def volumes(self) -> dict[str, Any]:
        return {"VolumeIds": [self.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]]}

    def stopped(self) -> dict[str, Any]:
        params = self.instances()
        self.ec2.get_waiter("instance_running").wait(**params, WaiterConfig={"Delay": 2, "MaxAttempts": 50})
        self.ec2.stop_instances(**params)
        return params

    def terminated(self) -> dict[str, Any]:
        params = self.instances()
        self.ec2.terminate_instances(**params)
        return params

    def root_volume(self) -> dict[str, Any]:
        found = self.ec2.describe_instances(**self.instances())["Reservations"][0]["Instances"][0]
        return {"VolumeIds": [found["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]]}

    def deleted_volume(self) -> dict[str, Any]:
        params = self.volumes()
        self.ec2.get_waiter("volume_available").wait(**params, WaiterConfig={"Delay": 1, "MaxAttempts": 50})
        self.ec2.delete_volume(VolumeId=params["VolumeIds"][0])
        return params

    def copied_image(self) -> dict[str, Any]:
        params = {"Name": "copy", "SourceImageId": self.image, "SourceRegion": "us-east-1"}
        return {"ImageIds": [self.ec2.copy_image(**params)["ImageId"]]}

    def copied_snapshot(self) -> dict[str, Any]:
        params = {"SourceSnapshotId": self.snapshot, "SourceRegion": "us-east-1"}
        return {"SnapshotIds": [self.ec2.copy_snapshot(**params)["SnapshotId"]]}

    def policy(self) -> dict[str, Any]:
        deny = {"Effect": "Deny", "Action": "*", "Resource": "*"}
        document = {"Version": "2012-10-17", "Statement": [deny]}
        made = self.iam.create_policy(PolicyName="p", PolicyDocument=json.dumps(document))
        return {"PolicyArn": made["Policy"]["Arn"]}

    def profile(self) -> dict[str, Any]:
        self.iam.create_instance_profile(InstanceProfileName="i")
        return {"InstanceProfileName": "i"}

    def role(self) -> dict[str, Any]:
        return {"RoleName": "vmimport"}

    def user(self) -> dict[str, Any]:
        self.iam.create_user(UserName="u")
        return {"UserName": "u"}

    def vpcs(self) -> dict[str, Any]:
        return {"VpcIds": [vpc["VpcId"] for vpc in self.ec2.describe_vpcs()["Vpcs"]]}

    def of_each_waiter(self) -> dict[tuple[str, str], Callable[[], dict[str, Any]]]:
        return {
            ("ec2", "ImageAvailable"): self.copied_image,
            ("ec2", "ImageExists"): lambda: {"ImageIds": [self.image]},
            ("ec2", "InstanceExists"): self.instances,
            ("ec2", "InstanceRunning"): self.instances,
            ("ec2", "InstanceStatusOk"): self.instances,
            ("ec2", "InstanceStopped"): self.stopped,
            ("ec2", "InstanceTerminated"): self.terminated,
            ("ec2", "SecurityGroupExists"): dict,
            ("ec2", "SnapshotCompleted"): self.copied_snapshot,
            ("ec2", "SnapshotImported"): lambda: {"ImportTaskIds": [self.task()]},
            ("ec2", "SubnetAvailable"): dict,
            ("ec2", "SystemStatusOk"): self.instances,
            ("ec2", "VolumeAvailable"): self.volumes,
            ("ec2", "VolumeDeleted"): self.deleted_volume,
            ("ec2", "VolumeInUse"): self.root_volume,
            ("ec2", "VpcAvailable"): self.vpcs,
            ("ec2", "VpcExists"): self.vpcs,
            ("iam", "InstanceProfileExists"): self.profile,
            ("iam", "PolicyExists"): self.policy,
            ("iam", "RoleExists"): self.role,
            ("iam", "UserExists"): self.user,
            ("s3", "BucketExists"): lambda: {"Bucket": "images"},
            ("s3", "BucketNotExists"): lambda: {"Bucket": "no-such-bucket"},
            ("s3", "ObjectExists"): lambda: {"Bucket": "images", "Key": "disk.raw"},
            ("s3", "ObjectNotExists"): lambda: {"Bucket": "images", "Key": "no-such-key"},
        }


def check_all_waiters(speed: float) -> None:
    with sandbox(speed=speed) as aws:
        resources = Resources(aws)
        starts = resources.of_each_waiter()
        assert starts.keys() == set(waiters(emulated=True))

        def wait(waiter: tuple[str, str]) -> None:
            service, name = waiter
            params = starts[waiter]()
            aws.client(service, "us-east-1").get_waiter(xform_name(name)).wait(**params)

        with ThreadPoolExecutor(len(starts)) as pool:
            list(pool.map(wait, starts))


def test_all_waiters_of_botocore_succeed_at_speed_1000() -> None:
    check_all_waiters(1000)


@pytest.mark.long(seconds=40)
def test_all_waiters_of_botocore_succeed_at_speed_50() -> None:
    check_all_waiters(50)


@pytest.mark.long(seconds=700)
def test_all_waiters_of_botocore_succeed_at_speed_1() -> None:
    check_all_waiters(1)


@pytest.mark.parametrize(("service", "name"), sorted(set(waiters(emulated=False))))
def test_a_waiter_of_an_operation_that_is_not_emulated_fails(service: str, name: str) -> None:
    """Such a waiter must fail at once: an error of AWS could mean success to it."""
    model = botocore.session.get_session().get_waiter_model(service).get_waiter(name)
    expected = {str(acceptor.expected) for acceptor in model.acceptors if acceptor.matcher == "error"}
    assert "NotImplemented" not in expected
