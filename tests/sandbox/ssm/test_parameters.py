"""Parameter Store.

Sources: the operations' pages in the AWS Systems Manager API Reference; "Using native parameter support in
Parameter Store for Amazon Machine Image IDs" in its User Guide.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused, user_access
from vmsnix_ops.sandbox.ssm import IMAGE_CHECK_SECONDS


def put(aws: SandboxClients, name: str, value: str = "v", **more: Any) -> int:
    version: int = aws.ssm.put_parameter(Name=name, Value=value, **({"Type": "String"} | more))["Version"]
    return version


def test_versions_and_history(aws: SandboxClients) -> None:
    assert put(aws, "/nixos/web", "one", Description="the pointer") == 1
    with refused("ParameterAlreadyExists"):
        put(aws, "/nixos/web", "two")
    assert put(aws, "/nixos/web", "two", Overwrite=True) == 2
    found = aws.ssm.get_parameter(Name="/nixos/web")["Parameter"]
    assert (found["Value"], found["Version"], found["DataType"], found["Type"]) == (
        "two",
        2,
        "text",
        "String",
    )
    assert found["ARN"] == f"arn:aws:ssm:us-east-1:{aws.sandbox.account}:parameter/nixos/web"
    assert aws.ssm.get_parameter(Name="/nixos/web:1")["Parameter"]["Value"] == "one"
    assert aws.ssm.get_parameter(Name=found["ARN"])["Parameter"]["Value"] == "two"
    with refused("ParameterVersionNotFound"):
        aws.ssm.get_parameter(Name="/nixos/web:3")
    history = aws.ssm.get_parameter_history(Name="/nixos/web")["Parameters"]
    assert [(one["Version"], one["Value"]) for one in history] == [(1, "one"), (2, "two")]
    assert history[0]["LastModifiedUser"].endswith(":user/operator")


def test_each_region_has_its_own_parameters(aws: SandboxClients) -> None:
    put(aws, "/x")
    with refused("ParameterNotFound"):
        aws.client("ssm", "eu-west-1").get_parameter(Name="/x")


def make_image(aws: SandboxClients) -> str:
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    snapshot = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    aws.sandbox.clock.advance(3600)
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}
    image: str = aws.ec2.register_image(
        Name="img", RootDeviceName="/dev/sda1", Architecture="x86_64", BlockDeviceMappings=[mapping]
    )["ImageId"]
    return image


def test_an_image_parameter_is_validated(aws: SandboxClients) -> None:
    image = make_image(aws)
    put(aws, "/nixos/web", image, DataType="aws:ec2:image")
    aws.sandbox.clock.advance(IMAGE_CHECK_SECONDS)
    assert aws.ssm.get_parameter(Name="/nixos/web")["Parameter"]["DataType"] == "aws:ec2:image"
    with refused("ValidationException"):
        put(aws, "/nixos/other", "not-an-ami", DataType="aws:ec2:image")
    put(aws, "/nixos/web", "ami-0123456789abcdef0", DataType="aws:ec2:image", Overwrite=True)
    aws.sandbox.clock.advance(IMAGE_CHECK_SECONDS)
    found = aws.ssm.get_parameter(Name="/nixos/web")["Parameter"]
    assert (found["Value"], found["Version"]) == (
        image,
        1,
    )  # a value without its image is dropped


def test_an_image_parameter_appears_after_the_check_of_its_image(
    aws: SandboxClients, monkeypatch: Any
) -> None:
    image = make_image(aws)
    monkeypatch.setattr(aws.sandbox.clock, "speed", 1.0)
    assert put(aws, "/nixos/web", image, DataType="aws:ec2:image", Tags=[{"Key": "a", "Value": "b"}]) == 1
    assert put(aws, "/nixos/web", image, DataType="aws:ec2:image", Overwrite=True) == 2
    with refused("ParameterNotFound"):
        aws.ssm.get_parameter(Name="/nixos/web")
    aws.sandbox.clock.advance(IMAGE_CHECK_SECONDS)
    assert [one["Version"] for one in aws.ssm.get_parameter_history(Name="/nixos/web")["Parameters"]] == [
        1,
        2,
    ]
    tags = aws.ssm.list_tags_for_resource(ResourceType="Parameter", ResourceId="/nixos/web")["TagList"]
    assert tags == [{"Key": "a", "Value": "b"}]


@pytest.mark.parametrize(
    "name", ["no spaces", "a/b", "/a//b", "/a/", "/aws/x", "ssm-x", "/" + "a/" * 16 + "b"]
)
def test_invalid_names_are_refused(aws: SandboxClients, name: str) -> None:
    with pytest.raises(aws.ssm.exceptions.ClientError) as caught:
        put(aws, name)
    allowed = {"ValidationException", "AccessDeniedException", "HierarchyLevelLimitExceededException"}
    assert caught.value.response["Error"]["Code"] in allowed


def test_invalid_values_are_refused(aws: SandboxClients) -> None:
    with refused("ValidationException", "4096"):
        put(aws, "/x", "v" * 4097)
    with refused("ParameterPatternMismatchException"):
        put(aws, "/x", "blue", AllowedPattern="^ami-")
    with refused("ValidationException", "data type is not supported"):
        put(aws, "/x", "v", DataType="aws:ec2:picture")


def test_several_parameters_in_one_call(aws: SandboxClients) -> None:
    put(aws, "/a", "1")
    put(aws, "/b", "2")
    answer = aws.ssm.get_parameters(Names=["/b", "/none", "/a"])
    assert [one["Value"] for one in answer["Parameters"]] == ["2", "1"]
    assert answer["InvalidParameters"] == ["/none"]
    answer = aws.ssm.delete_parameters(Names=["/a", "/none"])
    assert (answer["DeletedParameters"], answer["InvalidParameters"]) == (["/a"], ["/none"])
    with refused("ParameterNotFound"):
        aws.ssm.delete_parameter(Name="/a")


def test_parameters_by_path_have_pages(aws: SandboxClients) -> None:
    for number in range(12):
        put(aws, f"/fleet/{number:02}")
    put(aws, "/fleet/deep/er")
    put(aws, "/other")
    pages = list(aws.ssm.get_paginator("get_parameters_by_path").paginate(Path="/fleet"))
    assert [len(page["Parameters"]) for page in pages] == [10, 2]
    deep = aws.ssm.get_paginator("get_parameters_by_path").paginate(Path="/fleet/", Recursive=True)
    assert sum(len(page["Parameters"]) for page in deep) == 13


def test_labels_move(aws: SandboxClients) -> None:
    put(aws, "/x", "one")
    put(aws, "/x", "two", Overwrite=True)
    aws.ssm.label_parameter_version(Name="/x", ParameterVersion=1, Labels=["stable"])
    assert aws.ssm.get_parameter(Name="/x:stable")["Parameter"]["Value"] == "one"
    answer = aws.ssm.label_parameter_version(Name="/x", Labels=["stable", "9bad"])
    assert (answer["InvalidLabels"], answer["ParameterVersion"]) == (["9bad"], 2)
    assert aws.ssm.get_parameter(Name="/x:stable")["Parameter"]["Value"] == "two"


def test_descriptions_and_tags(aws: SandboxClients) -> None:
    put(aws, "/x", "one", Tags=[{"Key": "a", "Value": "1"}])
    put(aws, "/y", "two")
    aws.ssm.add_tags_to_resource(ResourceType="Parameter", ResourceId="/y", Tags=[{"Key": "b", "Value": "2"}])
    found = aws.ssm.describe_parameters(ParameterFilters=[{"Key": "tag:a", "Values": ["1"]}])["Parameters"]
    assert [one["Name"] for one in found] == ["/x"]
    assert aws.ssm.list_tags_for_resource(ResourceType="Parameter", ResourceId="/y")["TagList"] == [
        {"Key": "b", "Value": "2"}
    ]
    with refused("NotImplemented", "the filter Tier"):
        aws.ssm.describe_parameters(ParameterFilters=[{"Key": "Tier", "Values": ["Standard"]}])


@pytest.mark.parametrize("may_describe", [True, False])
def test_an_image_is_written_only_for_callers_that_may_describe_images(
    aws: SandboxClients, may_describe: bool
) -> None:
    """Source: "Using native parameter support in Parameter Store for Amazon Machine Image IDs"."""
    image = make_image(aws)
    actions = ["ssm:PutParameter", "ec2:DescribeImages"] if may_describe else ["ssm:PutParameter"]
    user = user_access(aws.sandbox, {"Effect": "Allow", "Action": actions, "Resource": "*"})
    params = {"Name": "/nixos/web", "Value": image, "Type": "String", "DataType": "aws:ec2:image"}
    assert user.client("ssm", "us-east-1").put_parameter(**params)["Version"] == 1
    aws.sandbox.clock.advance(IMAGE_CHECK_SECONDS + 1)
    found = aws.ssm.get_parameters(Names=["/nixos/web"])["Parameters"]
    assert [one["Value"] for one in found] == ([image] if may_describe else [])


def test_intelligent_tiering_chooses_the_tier_by_the_size(aws: SandboxClients) -> None:
    """Source: "Tier" of PutParameter in the Systems Manager API Reference."""
    for size, tier in ((4096, "Standard"), (4097, "Advanced"), (1, "Advanced")):
        answer = aws.ssm.put_parameter(
            Name="p", Value="v" * size, Type="String", Tier="Intelligent-Tiering", Overwrite=True
        )
        assert answer["Tier"] == aws.ssm.describe_parameters()["Parameters"][0]["Tier"] == tier
