"""Amazon's public AMIs and parameters.

Sources: "Calling AMI public parameters in Parameter Store"; recorded answers of DescribeImages.
"""

from __future__ import annotations

import pytest

from tests.sandbox.clients import SandboxClients, refused

LATEST = "/aws/service/ami-amazon-linux-latest"


def test_a_public_parameter_names_an_image_of_amazon(aws: SandboxClients) -> None:
    parameter = aws.ssm.get_parameter(Name=f"{LATEST}/al2023-ami-kernel-default-x86_64")["Parameter"]
    assert parameter["ARN"].startswith(f"arn:aws:ssm:us-east-1::parameter{LATEST}/")
    (image,) = aws.ec2.describe_images(ImageIds=[parameter["Value"]])["Images"]
    assert (image["ImageOwnerAlias"], image["OwnerId"]) == ("amazon", "137112412989")
    assert image["Name"] == "al2023-ami-2023.12.20260930.0-kernel-6.18-x86_64"
    assert image["ImageLocation"] == f"amazon/{image['Name']}"
    assert (image["Public"], image["BootMode"], image["ImdsSupport"]) == (True, "uefi-preferred", "v2.0")


@pytest.mark.parametrize("reference", ["value", "resolve"])
def test_an_image_of_amazon_can_be_launched_and_copied(aws: SandboxClients, reference: str) -> None:
    name = f"{LATEST}/amzn2-ami-hvm-arm64-gp2"
    image = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
    launched = aws.ec2.run_instances(
        ImageId=image if reference == "value" else f"resolve:ssm:{name}",
        InstanceType="t4g.nano",
        MinCount=1,
        MaxCount=1,
    )["Instances"][0]
    assert launched["ImageId"] == image
    with refused("AuthFailure"):
        aws.ec2.deregister_image(ImageId=image)
    copy = aws.client("ec2", "eu-west-1").copy_image(
        Name="copy", SourceImageId=image, SourceRegion="us-east-1"
    )["ImageId"]
    aws.pass_time(600)
    assert aws.describe(copy, "eu-west-1")["State"] == "available"


def test_the_newest_image_of_amazon_is_found_by_name(aws: SandboxClients) -> None:
    own = aws.image()
    filters = [{"Name": "name", "Values": ["al2023-ami-2023.*-arm64"]}]
    found = aws.ec2.describe_images(Owners=["amazon"], Filters=filters)["Images"]
    assert {image["Architecture"] for image in found} == {"arm64"}
    alias = [{"Name": "owner-alias", "Values": ["amazon"]}]
    ids = {image["ImageId"] for image in aws.ec2.describe_images(Filters=alias)["Images"]}
    assert own not in ids
    assert {image["ImageId"] for image in found} <= ids
    with refused("NotImplemented", "the owner 'aws-marketplace'"):
        aws.ec2.describe_images(Owners=["aws-marketplace"])


@pytest.mark.parametrize("name", ["/aws/service/ecs/optimized-ami/amazon-linux-2/recommended", f"{LATEST}/x"])
def test_other_parameters_of_aws_are_not_emulated(aws: SandboxClients, name: str) -> None:
    """Source: "Discovering public parameters in Parameter Store" lists many more."""
    with refused("NotImplemented", name):
        aws.ssm.get_parameter(Name=name)
    with refused("NotImplemented", name):
        aws.ssm.get_parameters(Names=["/none", f"arn:aws:ssm:us-east-1::parameter{name}"])
    with refused("NotImplemented", name):
        aws.ec2.run_instances(ImageId=f"resolve:ssm:{name}", MinCount=1, MaxCount=1)


def test_the_parameters_of_aws_are_found_by_their_own_paths_only(aws: SandboxClients) -> None:
    aws.ssm.put_parameter(Name="/own/a", Value="x", Type="String")
    (found,) = aws.ssm.get_parameters_by_path(Path="/", Recursive=True)["Parameters"]
    assert found["Name"] == "/own/a"
    for path in ("/aws", "/aws/service", "/aws/service/canonical/ubuntu"):
        with refused("NotImplemented", path):
            aws.ssm.get_parameters_by_path(Path=path, Recursive=True)


@pytest.mark.parametrize("name", ["free-tier-eligible", "image-allowed", "public-ssm-parameter-name"])
def test_a_filter_by_what_the_images_do_not_show_is_not_emulated(aws: SandboxClients, name: str) -> None:
    """Source: DescribeImages; on AWS the images of Amazon have a value of each."""
    with refused("NotImplemented", f"the filter '{name}'"):
        aws.ec2.describe_images(Filters=[{"Name": name, "Values": ["true"]}])


def test_public_parameters_are_read_by_path_and_not_changed(aws: SandboxClients) -> None:
    found = aws.ssm.get_parameters_by_path(Path=LATEST)["Parameters"]
    assert len(found) == 10
    assert aws.ssm.describe_parameters()["Parameters"] == []
    with refused("ParameterNotFound"):
        aws.ssm.delete_parameter(Name=found[0]["Name"])
    with refused("AccessDeniedException"):
        aws.ssm.put_parameter(Name=found[0]["Name"], Value="x", Type="String")
