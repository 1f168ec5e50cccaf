"""Launching images.

Sources: the operations' reference pages; "Instance launch behavior with Amazon EC2 boot modes"; "Configure
instance metadata options"; texts of errors from public transcripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sandbox.clients import SandboxClients, refused

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3600


def run(aws: SandboxClients, image: str, **more: Any) -> str:
    params = {"ImageId": image, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    instance_id: str = aws.ec2.run_instances(**params)["Instances"][0]["InstanceId"]
    return instance_id


def shown(aws: SandboxClients, instance: str) -> dict[str, Any]:
    answer = aws.ec2.describe_instances(InstanceIds=[instance])
    found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
    return found


def status(aws: SandboxClients, instance: str) -> list[str]:
    answer = aws.ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    return [entry["InstanceStatus"]["Status"] for entry in answer]


def test_an_instance_runs_after_a_while_and_its_checks_pass_later(aws: SandboxClients) -> None:
    instance = run(aws, aws.image())
    assert (shown(aws, instance)["State"]["Name"], status(aws, instance)) == ("pending", [])
    aws.pass_time(20)
    assert (shown(aws, instance)["State"]["Name"], status(aws, instance)) == ("running", ["initializing"])
    aws.pass_time(300)
    assert status(aws, instance) == ["ok"]


def test_the_root_volume_comes_from_the_images_snapshot(aws: SandboxClients) -> None:
    snapshot = aws.snapshot(size=3)
    instance = run(aws, aws.image(snapshot))
    device = shown(aws, instance)["BlockDeviceMappings"][0]
    volume = aws.ec2.describe_volumes(VolumeIds=[device["Ebs"]["VolumeId"]])["Volumes"][0]
    assert (device["DeviceName"], volume["Size"], volume["SnapshotId"]) == ("/dev/sda1", 3, snapshot)
    assert volume["Attachments"][0]["InstanceId"] == instance


def test_the_launch_can_enlarge_the_root_volume(aws: SandboxClients) -> None:
    devices = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 20}}]
    instance = run(aws, aws.image(), BlockDeviceMappings=devices)
    volume = shown(aws, instance)["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    assert aws.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Size"] == 20


def test_a_terminated_instance_loses_its_volume_and_is_listed_for_an_hour(aws: SandboxClients) -> None:
    instance = run(aws, aws.image())
    volume = shown(aws, instance)["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    change = aws.ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"][0]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("pending", "shutting-down")
    aws.pass_time(60)
    assert shown(aws, instance)["State"]["Name"] == "terminated"
    with refused("InvalidVolume.NotFound"):
        aws.ec2.describe_volumes(VolumeIds=[volume])
    aws.pass_time(2 * HOUR)
    with refused("InvalidInstanceID.NotFound"):
        shown(aws, instance)


def test_a_client_token_launches_once_and_is_refused_after_termination(aws: SandboxClients) -> None:
    image = aws.image()
    instance = run(aws, image, ClientToken="once")
    assert run(aws, image, ClientToken="once") == instance
    with refused("IdempotentParameterMismatch"):
        run(aws, image, ClientToken="once", InstanceType="t3.small")
    aws.ec2.terminate_instances(InstanceIds=[instance])
    with refused("IdempotentInstanceTerminated"):
        run(aws, image, ClientToken="once")


def test_an_image_that_does_not_fit_the_type_is_refused(aws: SandboxClients) -> None:
    arm, plain = aws.image(Architecture="arm64"), aws.image(EnaSupport=False)
    with refused("InvalidParameterValue", "does not match the architecture 'arm64' of the specified AMI"):
        run(aws, arm)
    with refused("InvalidParameterCombination", "Enhanced networking with the Elastic Network Adapter (ENA)"):
        run(aws, plain)
    with refused("InvalidParameterValue"):
        run(aws, aws.image(BootMode="uefi"), InstanceType="t2.micro")
    with refused("InvalidInstanceType"):
        run(aws, arm, InstanceType="x99.mega")
    with refused("InvalidAMIID.NotFound"):
        run(aws, "ami-0123456789abcdef0")
    run(aws, arm, InstanceType="t4g.micro")


def test_an_image_that_requires_imds_v2_sets_it(aws: SandboxClients) -> None:
    options = shown(aws, run(aws, aws.image(ImdsSupport="v2.0")))["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 2)
    options = shown(aws, run(aws, aws.image(), MetadataOptions={"HttpTokens": "required"}))["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)


def test_the_boot_mode_follows_from_image_and_type(aws: SandboxClients) -> None:
    image = aws.image(BootMode="uefi-preferred")
    assert shown(aws, run(aws, image))["CurrentInstanceBootMode"] == "uefi"
    assert shown(aws, run(aws, image, InstanceType="t2.micro"))["CurrentInstanceBootMode"] == "legacy-bios"


def test_a_spot_instance_has_its_lifecycle(aws: SandboxClients) -> None:
    instance = shown(aws, run(aws, aws.image(), InstanceMarketOptions={"MarketType": "spot"}))
    assert instance["InstanceLifecycle"] == "spot"


def test_a_launch_is_reported_a_day_later(aws: SandboxClients) -> None:
    """Documented: LastLaunchedTime has a delay of 24 hours."""
    image = aws.image()
    run(aws, image)
    assert "LastLaunchedTime" not in aws.describe(image)
    aws.pass_time(25 * HOUR)
    assert "LastLaunchedTime" in aws.describe(image)


def test_a_protected_instance_is_not_terminated(aws: SandboxClients) -> None:
    instance = run(aws, aws.image(), DisableApiTermination=True)
    with refused("OperationNotPermitted", "may not be terminated"):
        aws.ec2.terminate_instances(InstanceIds=[instance])
    aws.ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
    aws.ec2.terminate_instances(InstanceIds=[instance])


def test_the_console_is_empty_for_a_disk_without_message(aws: SandboxClients) -> None:
    instance = run(aws, aws.image())
    aws.pass_time(HOUR)
    assert "Output" not in aws.ec2.get_console_output(InstanceId=instance)


def test_the_console_shows_what_a_sample_image_prints(aws: SandboxClients, tmp_path: Path) -> None:
    from vmsnix_ops.disk.sample import make_sample_image

    aws.prepare("vmsnix-images")
    make_sample_image(tmp_path, message="hello from the sample image", name="sample")
    aws.s3.put_object(Bucket="vmsnix-images", Key="s", Body=next(tmp_path.rglob("*.vhd")).read_bytes())
    container = {"Format": "VHD", "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "s"}}
    aws.ec2.import_snapshot(DiskContainer=container)
    aws.pass_time(900)
    snapshot = aws.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"][0]["SnapshotId"]
    instance = run(aws, aws.image(snapshot))
    assert "Output" not in aws.ec2.get_console_output(InstanceId=instance)
    aws.pass_time(120)
    assert "hello from the sample image\r\n" in aws.ec2.get_console_output(InstanceId=instance)["Output"]


def test_the_latest_console_grows_and_only_nitro_has_it(aws: SandboxClients) -> None:
    outcome = {"console": "".join(f"line {number}\r\n" for number in range(6))}
    aws.sandbox.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": outcome})
    image, advance = aws.image(), aws.sandbox.clock.advance
    params = {"ImageId": image, "MinCount": 1, "MaxCount": 1}
    (launched,) = aws.ec2.run_instances(**params, InstanceType="t3.micro")["Instances"]
    latest = {"InstanceId": launched["InstanceId"], "Latest": True}
    advance(31)
    assert aws.ec2.get_console_output(**latest)["Output"].splitlines() == ["line 0", "line 1", "line 2"]
    assert "Output" not in aws.ec2.get_console_output(InstanceId=latest["InstanceId"])  # not posted yet
    advance(30)
    assert len(aws.ec2.get_console_output(**latest)["Output"].splitlines()) == 6
    assert len(aws.ec2.get_console_output(InstanceId=latest["InstanceId"])["Output"].splitlines()) == 6


def test_a_fault_rule_sets_the_console_output_and_fails_the_checks(aws: SandboxClients) -> None:
    outcome = {"console": "Kernel panic", "impaired": True}
    aws.sandbox.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": outcome})
    instance = run(aws, aws.image())
    aws.pass_time(HOUR)
    assert aws.ec2.get_console_output(InstanceId=instance)["Output"] == "Kernel panic"
    assert status(aws, instance) == ["impaired"]


def test_instances_are_filtered_and_paged(aws: SandboxClients) -> None:
    image = aws.image()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "a"}]}]
    first, second = run(aws, image, TagSpecifications=tags), run(aws, image)
    for name, value, expected in (
        ("image-id", image, {first, second}),
        ("tag:Name", "a", {first}),
        ("instance-state-name", "running", set()),
    ):
        pages = aws.ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])["Reservations"]
        assert {i["InstanceId"] for r in pages for i in r["Instances"]} == expected, name
    with refused("NotImplemented", "outpost-arn"):
        aws.ec2.describe_instances(Filters=[{"Name": "outpost-arn", "Values": ["x"]}])


def test_fixed_addresses_are_refused_as_not_emulated(aws: SandboxClients) -> None:
    with refused("NotImplemented", "PrivateIpAddress"):
        run(aws, aws.image(), PrivateIpAddress="172.31.0.9")


def test_an_instance_of_a_template_or_group_has_the_tags_of_aws(aws: SandboxClients) -> None:
    """Sources: "Launch an instance from a launch template"; "Tag Auto Scaling groups and instances"."""
    data = {"ImageId": aws.image(), "InstanceType": "t3.micro"}
    template = aws.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    template_id = template["LaunchTemplate"]["LaunchTemplateId"]
    named = {"LaunchTemplateId": template_id, "Version": "$Latest"}
    launched = aws.ec2.run_instances(LaunchTemplate=named, MinCount=1, MaxCount=1)["Instances"][0]
    tags = {tag["Key"]: tag["Value"] for tag in launched["Tags"]}
    of_template = {"aws:ec2launchtemplate:id": template_id, "aws:ec2launchtemplate:version": "1"}
    assert tags == of_template
    aws.ec2.create_tags(Resources=[launched["InstanceId"]], Tags=[{"Key": "a", "Value": "b"}])
    aws.ec2.delete_tags(Resources=[launched["InstanceId"]])
    assert {tag["Key"]: tag["Value"] for tag in shown(aws, launched["InstanceId"])["Tags"]} == of_template
    propagated = {"Key": "role", "Value": "web", "PropagateAtLaunch": True}
    kept = {"Key": "owner", "Value": "ops", "PropagateAtLaunch": False}
    aws.autoscaling.create_auto_scaling_group(
        AutoScalingGroupName="web",
        LaunchTemplate=named,
        MinSize=1,
        MaxSize=1,
        AvailabilityZones=["us-east-1a"],
        Tags=[propagated, kept],
    )
    (group,) = aws.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    instance = shown(aws, group["Instances"][0]["InstanceId"])
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags == of_template | {"aws:autoscaling:groupName": "web", "role": "web"}


def test_an_instance_stops_and_starts_again(aws: SandboxClients) -> None:
    """Source: "Amazon EC2 instance state changes"."""
    instance = run(aws, aws.image())
    aws.pass_time(20)
    before = shown(aws, instance)
    (change,) = aws.ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("running", "stopping")
    with refused("IncorrectInstanceState", "is not in a state from which it can be started"):
        aws.ec2.start_instances(InstanceIds=[instance])
    aws.pass_time(60)
    stopped = shown(aws, instance)
    assert (stopped["State"]["Name"], stopped["State"]["Code"]) == ("stopped", 80)
    assert stopped["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "PublicIpAddress" not in stopped
    assert stopped["BlockDeviceMappings"] == before["BlockDeviceMappings"]
    aws.ec2.start_instances(InstanceIds=[instance])
    assert shown(aws, instance)["State"]["Name"] == "pending"
    aws.pass_time(20)
    assert shown(aws, instance)["State"]["Name"] == "running"
    aws.ec2.terminate_instances(InstanceIds=[instance])
    with refused("IncorrectInstanceState", "is not in a state from which it can be stopped"):
        aws.ec2.stop_instances(InstanceIds=[instance])


def test_a_member_of_a_template_that_is_not_emulated_is_refused_at_the_launch(aws: SandboxClients) -> None:
    data = {"ImageId": aws.image(), "InstanceType": "t3.micro", "RamDiskId": "ari-0"}
    aws.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    with refused("NotImplemented", "the member 'RamDiskId' of a launch template"):
        aws.ec2.run_instances(LaunchTemplate={"LaunchTemplateName": "web"}, MinCount=1, MaxCount=1)


def test_an_instance_has_the_profile_of_its_launch(aws: SandboxClients) -> None:
    made = aws.iam.create_instance_profile(InstanceProfileName="web")["InstanceProfile"]
    instance = shown(aws, run(aws, aws.image(), IamInstanceProfile={"Name": "web"}))
    expected = {"Arn": made["Arn"], "Id": made["InstanceProfileId"]}
    assert instance["IamInstanceProfile"] == expected
    with refused("InvalidParameterValue", "Invalid IAM Instance Profile name"):
        run(aws, aws.image(), IamInstanceProfile={"Name": "none"})
