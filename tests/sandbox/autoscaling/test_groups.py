"""Auto Scaling groups and launch configurations.

Sources: the operations' reference pages; error texts from public transcripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import SandboxClients, refused
from tests.sandbox.ec2.conftest import aws, still_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["aws", "still_sandbox"]
ZONES = ["us-east-1a", "us-east-1b"]


@pytest.fixture
def scaling(aws: SandboxClients) -> Any:
    return aws.client("autoscaling")


@pytest.fixture
def configuration(aws: SandboxClients, scaling: Any) -> Callable[..., str]:
    def make(name: str = "old", **more: Any) -> str:
        image = more.pop("ImageId", None) or aws.image()
        scaling.create_launch_configuration(
            LaunchConfigurationName=name, ImageId=image, InstanceType="t3.micro", **more
        )
        return image

    return make


def template(aws: SandboxClients, image: str) -> str:
    data = {"ImageId": image, "InstanceType": "t3.micro"}
    made = aws.ec2.create_launch_template(LaunchTemplateName="nodes", LaunchTemplateData=data)
    template_id: str = made["LaunchTemplate"]["LaunchTemplateId"]
    return template_id


def group(scaling: Any, name: str = "fleet", **more: Any) -> None:
    sizes = {"MinSize": 1, "MaxSize": 4, "AvailabilityZones": ZONES}
    scaling.create_auto_scaling_group(AutoScalingGroupName=name, **(sizes | more))


def only(scaling: Any) -> dict[str, Any]:
    (found,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    return found


def test_a_group_launches_its_launch_configuration(
    aws: SandboxClients, scaling: Any, configuration: Callable[..., str]
) -> None:
    image = configuration()
    group(scaling, LaunchConfigurationName="old", DesiredCapacity=3)
    shown = only(scaling)
    assert (shown["LaunchConfigurationName"], shown["DesiredCapacity"]) == ("old", 3)
    assert {i["LifecycleState"] for i in shown["Instances"]} == {"Pending"}
    assert {i["AvailabilityZone"] for i in shown["Instances"]} == set(ZONES)
    reservations = aws.ec2.describe_instances()["Reservations"]
    assert [i["ImageId"] for r in reservations for i in r["Instances"]] == [image] * 3
    assert (
        "Instances" not in only_without_instances(scaling) or not only_without_instances(scaling)["Instances"]
    )


def only_without_instances(scaling: Any) -> dict[str, Any]:
    answer = scaling.describe_auto_scaling_groups(IncludeInstances=False)
    return answer["AutoScalingGroups"][0]


def test_a_group_names_its_template_by_id_and_name(aws: SandboxClients, scaling: Any) -> None:
    template_id = template(aws, aws.image())
    group(scaling, LaunchTemplate={"LaunchTemplateName": "nodes", "Version": "$Latest"})
    expected = {"LaunchTemplateId": template_id, "LaunchTemplateName": "nodes", "Version": "$Latest"}
    assert only(scaling)["LaunchTemplate"] == expected
    assert only(scaling)["Instances"][0]["LaunchTemplate"] == expected


def test_a_mixed_group_may_override_the_image(aws: SandboxClients, scaling: Any) -> None:
    template_id, other = template(aws, aws.image()), aws.image()
    mixed = {
        "LaunchTemplateSpecification": {"LaunchTemplateId": template_id, "Version": "1"},
        "Overrides": [{"InstanceType": "t3.small", "ImageId": other}],
    }
    group(scaling, MixedInstancesPolicy={"LaunchTemplate": mixed})
    policy = only(scaling)["MixedInstancesPolicy"]["LaunchTemplate"]
    assert policy["LaunchTemplateSpecification"]["LaunchTemplateName"] == "nodes"
    (reservation,) = aws.ec2.describe_instances()["Reservations"]
    assert reservation["Instances"][0]["ImageId"] == other


def test_a_changed_source_applies_to_new_instances_only(
    aws: SandboxClients, scaling: Any, configuration: Callable[..., str]
) -> None:
    old, new = configuration(), configuration("new")
    group(scaling, LaunchConfigurationName="old")
    scaling.update_auto_scaling_group(
        AutoScalingGroupName="fleet", LaunchConfigurationName="new", DesiredCapacity=2
    )
    made = [i["LaunchConfigurationName"] for i in only(scaling)["Instances"]]
    assert sorted(made) == ["new", "old"]
    reservations = aws.ec2.describe_instances()["Reservations"]
    assert {i["ImageId"] for r in reservations for i in r["Instances"]} == {old, new}


def test_lists_come_in_pages(scaling: Any, configuration: Callable[..., str]) -> None:
    image = configuration("one")
    for name in ("two", "three"):
        configuration(name, ImageId=image)
        group(scaling, name, LaunchConfigurationName=name, MinSize=0)
    pages = scaling.get_paginator("describe_launch_configurations").paginate(PaginationConfig={"PageSize": 2})
    assert [len(page["LaunchConfigurations"]) for page in pages] == [2, 1]
    first = scaling.describe_auto_scaling_groups(MaxRecords=1)
    rest = scaling.describe_auto_scaling_groups(MaxRecords=1, NextToken=first["NextToken"])
    names = [g["AutoScalingGroupName"] for page in (first, rest) for g in page["AutoScalingGroups"]]
    assert (names, "NextToken" in rest) == (["three", "two"], False)
    with refused("InvalidNextToken"):
        scaling.describe_auto_scaling_groups(NextToken="!")


def test_a_launch_configuration_or_group_in_use_is_not_deleted(
    scaling: Any, configuration: Callable[..., str]
) -> None:
    configuration()
    group(scaling, LaunchConfigurationName="old")
    with refused("ResourceInUse", "attached to AutoScalingGroup fleet"):
        scaling.delete_launch_configuration(LaunchConfigurationName="old")
    with refused("ResourceInUse", "still in the group"):
        scaling.delete_auto_scaling_group(AutoScalingGroupName="fleet")
    scaling.delete_auto_scaling_group(AutoScalingGroupName="fleet", ForceDelete=True)
    scaling.delete_launch_configuration(LaunchConfigurationName="old")
    assert scaling.describe_launch_configurations()["LaunchConfigurations"] == []


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "must contain either LaunchTemplate"),
        ({"LaunchConfigurationName": "none"}, "Launch configuration none not found"),
        ({"LaunchTemplate": {"LaunchTemplateName": "none"}}, "fully-formed launch template"),
        ({"LaunchConfigurationName": "old", "AvailabilityZones": []}, "At least one Availability Zone"),
        ({"LaunchConfigurationName": "old", "MinSize": 5}, "Max bound, 4"),
        ({"LaunchConfigurationName": "old", "DesiredCapacity": 9}, "Desired capacity:9"),
    ],
)
def test_an_invalid_group_is_refused(
    scaling: Any, configuration: Callable[..., str], params: dict[str, Any], text: str
) -> None:
    configuration()
    with refused("ValidationError", text):
        group(scaling, **params)


def test_a_name_in_use_is_refused(scaling: Any, configuration: Callable[..., str]) -> None:
    image = configuration()
    with refused("AlreadyExists", "with the name old"):
        configuration("old", ImageId=image)
    with refused("ValidationError", "AMI ami-0123456789abcdef0 is invalid"):
        configuration("bad", ImageId="ami-0123456789abcdef0")
    with refused("ValidationError", "AutoScalingGroup 'gone' not found"):
        scaling.delete_auto_scaling_group(AutoScalingGroupName="gone")
