"""The members of the sandbox's answers compared with those of recorded answers of AWS.

``recorded_fields.json`` has the members of the answers in the examples of the AWS CLI, by operation. An
answer of the sandbox has all of them, apart from `OPTIONAL`, which AWS sends in some cases only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import SandboxClients
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "recorded_fields.json").read_text("utf-8")
)
QUOTA_USAGE = {
    f"Quota.UsageMetric{member}"
    for member in (
        "",
        ".MetricDimensions",
        ".MetricDimensions.Class",
        ".MetricDimensions.Resource",
        ".MetricDimensions.Service",
        ".MetricDimensions.Type",
        ".MetricName",
        ".MetricNamespace",
        ".MetricStatisticRecommendation",
    )
}
OPTIONAL: dict[str, set[str]] = {
    "autoscaling:DescribeLaunchConfigurations": {"LaunchConfigurations.AssociatePublicIpAddress"},
    "ec2:DescribeInstanceTypes": {
        "InstanceTypes.NetworkInfo.Ipv4AddressesPerInterface",
        "InstanceTypes.NetworkInfo.Ipv6AddressesPerInterface",
        "InstanceTypes.NetworkInfo.Ipv6Supported",
        "InstanceTypes.NetworkInfo.MaximumNetworkInterfaces",
        "InstanceTypes.NetworkInfo.NetworkPerformance",
        "InstanceTypes.ProcessorInfo.SustainedClockSpeedInGhz",
        "InstanceTypes.VCpuInfo.ValidCores",
        "InstanceTypes.VCpuInfo.ValidThreadsPerCore",
    },
    "ec2:DescribeInstanceImageMetadata": {
        "InstanceImageMetadata.ImageMetadata.DeprecationTime",
        "InstanceImageMetadata.ImageMetadata.ImageOwnerAlias",
    },
    "ec2:DescribeInstances": {
        "Reservations.Instances.IamInstanceProfile",
        "Reservations.Instances.IamInstanceProfile.Arn",
        "Reservations.Instances.IamInstanceProfile.Id",
        "Reservations.Instances.KeyName",
    },
    "ec2:DescribeSecurityGroups": {"SecurityGroups.IpPermissions.IpRanges.Description"},
    "ec2:GetConsoleOutput": {"Output"},
    "ec2:RunInstances": {"Instances.KeyName"},
    "service-quotas:GetAWSDefaultServiceQuota": QUOTA_USAGE,
    "service-quotas:GetServiceQuota": QUOTA_USAGE,
}
"""By operation: members of its examples that an answer has in some cases only, or that are not emulated."""


def member_paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every member, such as ``Images.BlockDeviceMappings.DeviceName``."""
    if isinstance(value, dict):
        for name, item in value.items():
            below = f"{path}.{name}" if path else name
            yield below
            yield from member_paths(item, below)
    elif isinstance(value, list):
        for item in value:
            yield from member_paths(item, path)


class Recorder:
    """Clients whose answers are recorded: the member paths by operation."""

    def __init__(self, aws: SandboxClients) -> None:
        self.aws = aws
        self.paths: dict[str, set[str]] = {}

    def __getattr__(self, service: str) -> Any:
        name = service.replace("_", "-")
        client = self.aws.other_client(name)
        client.meta.events.register("after-call", lambda model, parsed, **_: self.add(name, model, parsed))
        setattr(self, service, client)
        return client

    def add(self, service: str, model: Any, parsed: dict[str, Any]) -> None:
        content = {name: value for name, value in parsed.items() if name != "ResponseMetadata"}
        self.paths.setdefault(f"{service}:{model.name}", set()).update(member_paths(content))


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, set[str]]]:
    """Call every operation of the examples once, in a sandbox of an account in use."""
    with sandbox() as started:
        recorder = Recorder(SandboxClients(started))
        call_everything(recorder)
        yield recorder.paths


def call_everything(aws: Recorder) -> None:
    ec2, later = aws.ec2, aws.aws.pass_time
    tags = [{"Key": "Name", "Value": "web"}]

    def tagged(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": tags}]

    started = aws.aws.sandbox
    started.prepare("images", role="vmimport", key_prefix="")
    aws.aws.s3.put_object(Bucket="images", Key="disk.raw", Body=bytes(512))
    container = {
        "Format": "RAW",
        "Description": "root",
        "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"},
    }
    task = ec2.import_snapshot(DiskContainer=container, Description="d")["ImportTaskId"]
    ec2.describe_import_snapshot_tasks()
    later(50)
    ec2.describe_import_snapshot_tasks()
    later(900)
    ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])
    cancelled = ec2.import_snapshot(DiskContainer=container)["ImportTaskId"]
    ec2.cancel_import_task(ImportTaskId=cancelled)
    volume = ec2.create_volume(
        Size=8, AvailabilityZone="us-east-1a", TagSpecifications=tagged("volume"), Encrypted=True
    )["VolumeId"]
    snapshot = ec2.create_snapshot(VolumeId=volume, Description="d", TagSpecifications=tagged("snapshot"))[
        "SnapshotId"
    ]
    later(60)
    plain = aws.aws.snapshot()
    ec2.describe_snapshots(OwnerIds=["self"])
    copied = ec2.copy_snapshot(
        SourceRegion="us-east-1", SourceSnapshotId=snapshot, TagSpecifications=tagged("snapshot")
    )["SnapshotId"]
    later(120)
    ec2.modify_snapshot_attribute(
        SnapshotId=plain, Attribute="createVolumePermission", OperationType="add", UserIds=["123456789012"]
    )
    ec2.describe_snapshot_attribute(SnapshotId=plain, Attribute="createVolumePermission")
    ec2.reset_snapshot_attribute(SnapshotId=plain, Attribute="createVolumePermission")
    ec2.lock_snapshot(SnapshotId=copied, LockMode="compliance", LockDuration=30, CoolOffPeriod=8)
    ec2.describe_locked_snapshots()
    ec2.unlock_snapshot(SnapshotId=copied)
    ec2.modify_snapshot_tier(SnapshotId=copied, StorageTier="archive")
    later(3600)
    ec2.describe_snapshot_tier_status()
    ec2.restore_snapshot_tier(SnapshotId=copied, TemporaryRestoreDays=5)
    rules = [
        aws.aws.rbin.create_rule(
            ResourceType=kind, RetentionPeriod={"RetentionPeriodValue": 1, "RetentionPeriodUnit": "DAYS"}
        )["Identifier"]
        for kind in ("EBS_SNAPSHOT", "EC2_IMAGE")
    ]
    later(3)
    ec2.delete_snapshot(SnapshotId=copied)
    ec2.list_snapshots_in_recycle_bin()
    ec2.restore_snapshot_from_recycle_bin(SnapshotId=copied)
    root = {"SnapshotId": plain, "VolumeType": "gp3"}
    image = ec2.register_image(
        Name="web", Architecture="x86_64", RootDeviceName="/dev/sda1", VirtualizationType="hvm",
        EnaSupport=True, SriovNetSupport="simple", Description="d", BootMode="uefi", ImdsSupport="v2.0",
        TpmSupport="v2.0", TagSpecifications=tagged("image"),
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": root}],
    )["ImageId"]  # fmt: skip
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": "123456789012"}]})
    ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")
    ec2.enable_image_deprecation(ImageId=image, DeprecateAt="2035-01-01T00:00:00Z")
    ec2.describe_images(Owners=["self"])
    ec2.disable_image_deprecation(ImageId=image)
    ec2.enable_image_deregistration_protection(ImageId=image)
    ec2.disable_image_deregistration_protection(ImageId=image)
    ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    ec2.get_image_block_public_access_state()
    ec2.disable_image_block_public_access()
    ec2.enable_snapshot_block_public_access(State="block-all-sharing")
    ec2.get_snapshot_block_public_access_state()
    ec2.disable_snapshot_block_public_access()
    other = ec2.copy_image(Name="copy", SourceImageId=image, SourceRegion="us-east-1")["ImageId"]
    later(600)
    ec2.disable_image(ImageId=other)
    ec2.enable_image(ImageId=other)
    ec2.deregister_image(ImageId=other)
    ec2.list_images_in_recycle_bin()
    ec2.restore_image_from_recycle_bin(ImageId=other)
    for rule in rules:
        aws.aws.rbin.delete_rule(Identifier=rule)
    ec2.enable_ebs_encryption_by_default()
    ec2.get_ebs_encryption_by_default()
    ec2.disable_ebs_encryption_by_default()
    ec2.get_ebs_default_kms_key_id()
    key = "00000000-0000-4000-8000-000000000000"
    ec2.modify_ebs_default_kms_key_id(KmsKeyId=key)
    ec2.reset_ebs_default_kms_key_id()
    data = {"ImageId": image, "InstanceType": "t3.micro"}
    template = ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData=data, TagSpecifications=tagged("launch-template")
    )["LaunchTemplate"]["LaunchTemplateId"]
    named = {"LaunchTemplateId": template}
    ec2.create_launch_template_version(LaunchTemplateData=data, VersionDescription="v2", **named)
    ec2.modify_launch_template(DefaultVersion="2", **named)
    ec2.describe_launch_templates()
    ec2.describe_launch_template_versions(**named)
    ec2.delete_launch_template_versions(Versions=["1"], **named)
    later(20)
    instance = ec2.run_instances(
        LaunchTemplate=named, MinCount=1, MaxCount=1, TagSpecifications=tagged("instance")
    )["Instances"][0]["InstanceId"]
    later(400)
    ec2.describe_instances()
    ec2.describe_instance_status()
    ec2.describe_instance_image_metadata()
    ec2.describe_volumes()
    ec2.describe_instance_attribute(InstanceId=instance, Attribute="instanceType")
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
    ec2.get_console_output(InstanceId=instance)
    ec2.stop_instances(InstanceIds=[instance])
    later(60)
    ec2.start_instances(InstanceIds=[instance])
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.create_tags(Resources=[volume], Tags=tags)
    ec2.describe_tags()
    ec2.delete_tags(Resources=[volume])
    ec2.describe_regions()
    ec2.describe_availability_zones()
    ec2.describe_instance_types(InstanceTypes=["m5.large"])
    ec2.describe_instance_type_offerings()
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_tags(Resources=[vpc, subnet], Tags=tags)
    ec2.describe_vpcs()
    ec2.describe_subnets()
    group = ec2.create_security_group(
        GroupName="web", Description="d", TagSpecifications=tagged("security-group")
    )
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], CidrIp="192.0.2.0/24", IpProtocol="tcp",
                                         FromPort=22, ToPort=22)  # fmt: skip
    ec2.describe_security_groups()
    ec2.delete_security_group(GroupId=group["GroupId"])
    scaling = aws.autoscaling
    extra = {"DeleteOnTermination": True, "Encrypted": False, "SnapshotId": plain, "VolumeSize": 9}
    extra |= {"VolumeType": "gp3", "Iops": 3000}
    scaling.create_launch_configuration(
        LaunchConfigurationName="old",
        ImageId=image,
        InstanceType="t3.micro",
        BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": extra}],
        MetadataOptions={
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1,
            "HttpTokens": "required",
        },
    )
    scaling.describe_launch_configurations()
    template_2 = named | {"Version": "2"}
    size = {"Tags": tags, "MinSize": 1, "MaxSize": 2, "AvailabilityZones": ["us-east-1a"]}
    scaling.create_auto_scaling_group(AutoScalingGroupName="web", LaunchTemplate=template_2, **size)
    scaling.describe_auto_scaling_groups()
    scaling.update_auto_scaling_group(AutoScalingGroupName="web", MaxSize=3)
    scaling.delete_auto_scaling_group(AutoScalingGroupName="web", ForceDelete=True)
    scaling.delete_launch_configuration(LaunchConfigurationName="old")
    ec2.delete_launch_template(**named)
    ec2.delete_volume(VolumeId=volume)
    ssm = aws.ssm
    ssm.put_parameter(Name="/a/b", Value="1", Type="String", Description="d", Tags=tags)
    ssm.label_parameter_version(Name="/a/b", Labels=["one"])
    ssm.get_parameter(Name="/a/b:1")
    ssm.get_parameters(Names=["/a/b:1"])
    ssm.get_parameters_by_path(Path="/a")
    ssm.get_parameter_history(Name="/a/b")
    ssm.describe_parameters()
    ssm.add_tags_to_resource(ResourceType="Parameter", ResourceId="/a/b", Tags=tags)
    ssm.list_tags_for_resource(ResourceType="Parameter", ResourceId="/a/b")
    ssm.unlabel_parameter_version(Name="/a/b", ParameterVersion=1, Labels=["one"])
    ssm.delete_parameters(Names=["/a/b", "/a/c"])
    quotas = aws.service_quotas
    quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-B665C33B")
    quotas.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode="L-B665C33B")
    topic = aws.sns.create_topic(Name="amis")["TopicArn"]
    tagging, arn = aws.resourcegroupstaggingapi, {"ResourceARNList": [topic]}
    tagging.tag_resources(Tags={"a": "b"}, **arn)
    tagging.get_resources()
    tagging.get_tag_keys()
    tagging.get_tag_values(Key="a")
    tagging.untag_resources(TagKeys=["a"], **arn)
    aws.sns.publish(TopicArn=topic, Message="m")
    aws.sns.list_topics()
    aws.sns.get_topic_attributes(TopicArn=topic)
    queue = "arn:aws:sqs:us-east-1:012345678901:amis"
    subscribed = aws.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)["SubscriptionArn"]
    aws.sns.list_subscriptions()
    aws.sns.list_subscriptions_by_topic(TopicArn=topic)
    aws.sns.get_subscription_attributes(SubscriptionArn=subscribed)
    aws.sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="a@example.org")
    (table,) = started.state.tables.of_kind("subscriptions").values()
    token = next(one.token for one in table.values() if one.token)
    aws.sns.confirm_subscription(TopicArn=topic, Token=token)


@pytest.mark.parametrize("operation", sorted(RECORDED))
def test_an_answer_has_every_member_of_recorded_answers(answers: dict[str, set[str]], operation: str) -> None:
    assert operation in answers, "call_everything does not call it"
    missing = set(RECORDED[operation]) - answers[operation] - OPTIONAL.get(operation, set())
    assert not missing
