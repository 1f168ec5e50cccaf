"""Launch templates, and references to images.

Sources: the operations' reference pages; "Use a Systems Manager parameter instead of an AMI ID"; "How AMI
reference checks work".
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused

OTHER = "ami-0123456789abcdef0"


def template(aws: SandboxClients, image: str, name: str = "nodes") -> str:
    data = {"ImageId": image, "InstanceType": "t3.micro"}
    answer = aws.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    template_id: str = answer["LaunchTemplate"]["LaunchTemplateId"]
    return template_id


def add_version(aws: SandboxClients, template_id: str, image: str, **more: Any) -> int:
    answer = aws.ec2.create_launch_template_version(
        LaunchTemplateId=template_id, LaunchTemplateData={"ImageId": image}, **more
    )
    number: int = answer["LaunchTemplateVersion"]["VersionNumber"]
    return number


def references(aws: SandboxClients, *images: str, **params: Any) -> list[tuple[str, str]]:
    params = params or {"IncludeAllResourceTypes": True}
    answer = aws.ec2.describe_image_references(ImageIds=list(images), **params)
    return sorted((r["ResourceType"], r["Arn"].split(":", 5)[5]) for r in answer["ImageReferences"])


def test_versions_are_numbered_and_the_default_is_chosen(aws: SandboxClients) -> None:
    nodes = template(aws, OTHER)
    assert add_version(aws, nodes, "ami-0aaaaaaaaaaaaaaaa", SourceVersion="1") == 2
    aws.ec2.modify_launch_template(LaunchTemplateId=nodes, DefaultVersion="2")
    shown = aws.ec2.describe_launch_templates(LaunchTemplateNames=["nodes"])["LaunchTemplates"][0]
    assert (shown["DefaultVersionNumber"], shown["LatestVersionNumber"]) == (2, 2)
    answer = aws.ec2.describe_launch_template_versions(LaunchTemplateId=nodes, Versions=["$Default", "1"])
    versions = {v["VersionNumber"]: v for v in answer["LaunchTemplateVersions"]}
    assert sorted(versions) == [1, 2]
    assert versions[2]["LaunchTemplateData"] == {
        "ImageId": "ami-0aaaaaaaaaaaaaaaa",
        "InstanceType": "t3.micro",
    }


def test_versions_of_all_templates_are_filtered_by_image(aws: SandboxClients) -> None:
    add_version(aws, template(aws, OTHER), "ami-0aaaaaaaaaaaaaaaa")
    template(aws, OTHER, "others")
    filters = [{"Name": "image-id", "Values": [OTHER]}]
    answer = aws.ec2.describe_launch_template_versions(Versions=["$Latest", "$Default"], Filters=filters)
    found = [(v["LaunchTemplateName"], v["VersionNumber"]) for v in answer["LaunchTemplateVersions"]]
    assert sorted(found) == [("nodes", 1), ("others", 1)]
    with refused("InvalidParameterValue"):
        aws.ec2.describe_launch_template_versions(Versions=["1"])


def test_names_are_unique_and_unknown_ones_refused(aws: SandboxClients) -> None:
    template(aws, OTHER)
    with refused("InvalidLaunchTemplateName.AlreadyExistsException"):
        template(aws, OTHER)
    with refused("InvalidLaunchTemplateName.NotFoundException"):
        aws.ec2.describe_launch_templates(LaunchTemplateNames=["none"])
    with refused("InvalidLaunchTemplateId.NotFound"):
        aws.ec2.describe_launch_templates(LaunchTemplateIds=["lt-0123456789abcdef0"])


def test_versions_can_be_deleted_but_not_the_default(aws: SandboxClients) -> None:
    nodes = template(aws, OTHER)
    add_version(aws, nodes, OTHER)
    answer = aws.ec2.delete_launch_template_versions(LaunchTemplateId=nodes, Versions=["1", "2", "3"])
    deleted = [v["VersionNumber"] for v in answer["SuccessfullyDeletedLaunchTemplateVersions"]]
    failed = [v["VersionNumber"] for v in answer["UnsuccessfullyDeletedLaunchTemplateVersions"]]
    assert (deleted, failed) == ([2], [1, 3])
    aws.ec2.delete_launch_template(LaunchTemplateId=nodes)
    assert aws.ec2.describe_launch_templates()["LaunchTemplates"] == []


def test_instances_are_launched_from_templates(aws: SandboxClients) -> None:
    image = aws.image()
    nodes = template(aws, image)
    answer = aws.ec2.run_instances(LaunchTemplate={"LaunchTemplateId": nodes}, MinCount=1, MaxCount=1)
    assert answer["Instances"][0]["ImageId"] == image
    assert answer["Instances"][0]["InstanceType"] == "t3.micro"


def test_parameters_resolve_to_images(aws: SandboxClients) -> None:
    image = aws.image()
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="/nodes/stable", Value=image, Type="String", DataType="aws:ec2:image")
    aws.sandbox.clock.advance(1)  # the check of the value is asynchronous
    nodes = template(aws, "resolve:ssm:/nodes/stable")
    params = {"LaunchTemplateId": nodes, "Versions": ["1"]}
    for resolve, expected in ((False, "resolve:ssm:/nodes/stable"), (True, image)):
        answer = aws.ec2.describe_launch_template_versions(**params, ResolveAlias=resolve)
        assert answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]["ImageId"] == expected
    answer = aws.ec2.run_instances(LaunchTemplate={"LaunchTemplateId": nodes}, MinCount=1, MaxCount=1)
    assert answer["Instances"][0]["ImageId"] == image


def test_references_of_all_kinds_are_found(aws: SandboxClients) -> None:
    image = aws.image()
    nodes = template(aws, image)
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="/nodes/stable", Value=image, Type="String", DataType="aws:ec2:image")
    aws.sandbox.clock.advance(1)  # the check of the value is asynchronous
    answer = aws.ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    assert references(aws, image) == [
        ("ec2:Instance", f"instance/{answer['Instances'][0]['InstanceId']}"),
        ("ec2:LaunchTemplate", f"launch-template/{nodes}"),
        ("ssm:Parameter", "parameter/nodes/stable"),
    ]
    assert references(aws, OTHER) == []


def test_only_the_newest_ten_versions_are_read_by_default(aws: SandboxClients) -> None:
    image = aws.image()
    nodes = template(aws, image)
    for _ in range(10):
        add_version(aws, nodes, OTHER)
    assert references(aws, image) == []
    deep = {
        "ResourceType": "ec2:LaunchTemplate",
        "ResourceTypeOptions": [{"OptionName": "version-depth", "OptionValues": ["11"]}],
    }
    assert references(aws, image, ResourceTypes=[deep]) == [
        ("ec2:LaunchTemplate", f"launch-template/{nodes}")
    ]


def test_instances_are_filtered_by_state(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    for state, count in (("pending", 1), ("running", 0)):
        option = {"OptionName": "state-name", "OptionValues": [state]}
        kind = {"ResourceType": "ec2:Instance", "ResourceTypeOptions": [option]}
        assert len(references(aws, image, ResourceTypes=[kind])) == count


@pytest.mark.parametrize(
    ("images", "code"), [((OTHER,), "MissingParameter"), (("foo",), "InvalidAMIID.Malformed")]
)
def test_a_call_without_resource_types_is_refused(
    aws: SandboxClients, images: tuple[str, ...], code: str
) -> None:
    with refused(code):
        aws.ec2.describe_image_references(ImageIds=list(images))


def test_a_template_is_named_by_id_or_name(aws: SandboxClients) -> None:
    """Codes and texts: public transcripts."""
    data = {"ImageId": "ami-0123456789abcdef0"}
    created = aws.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    both = {"LaunchTemplateId": created["LaunchTemplate"]["LaunchTemplateId"], "LaunchTemplateName": "web"}
    text = "Either provide launch template ID or launch template name to modify the template."
    with refused("InvalidParameterCombination", text):
        aws.ec2.modify_launch_template(DefaultVersion="1", **both)
    with refused("MissingParameter", "launch template ID or launch template name"):
        aws.ec2.modify_launch_template(DefaultVersion="1")
    with refused("MissingParameter", "To describe the launch template data for all your launch templates"):
        aws.ec2.describe_launch_template_versions()
    with refused("InvalidParameterValue", "To describe the launch template data"):
        aws.ec2.describe_launch_template_versions(Versions=["1"])
    with refused("InvalidLaunchTemplateName.NotFoundException", "with template name other, does not exist."):
        aws.ec2.describe_launch_template_versions(LaunchTemplateName="other")
    with refused("InvalidLaunchTemplateId.VersionNotFound", "Could not find the specified version 7"):
        aws.ec2.describe_launch_template_versions(LaunchTemplateName="web", Versions=["7"])


def test_all_missing_ids_are_in_the_text(aws: SandboxClients) -> None:
    images = ["ami-0123456789abcdef0", "ami-0123456789abcdef1"]
    with refused("InvalidAMIID.NotFound", f"The image ids '[{', '.join(images)}]' do not exist"):
        aws.ec2.describe_images(ImageIds=images)
    instances = ["i-0123456789abcdef0", "i-0123456789abcdef1"]
    with refused("InvalidInstanceID.NotFound", f"The instance IDs '{', '.join(instances)}' do not exist"):
        aws.ec2.describe_instances(InstanceIds=instances)
