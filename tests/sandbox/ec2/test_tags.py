"""Tags. Sources: CreateTags, DeleteTags, DescribeTags; "Tag your Amazon EC2 resources", restrictions."""

from __future__ import annotations

from tests.sandbox.clients import SandboxClients, refused


def test_tags_are_created_and_deleted(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    aws.ec2.create_tags(
        Resources=[image, snapshot], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    )
    aws.ec2.create_tags(Resources=[image], Tags=[{"Key": "a", "Value": "3"}])
    assert aws.describe(image)["Tags"] == [{"Key": "a", "Value": "3"}, {"Key": "b", "Value": "2"}]
    aws.ec2.delete_tags(Resources=[image], Tags=[{"Key": "a", "Value": "another"}, {"Key": "b"}])
    assert aws.describe(image)["Tags"] == [{"Key": "a", "Value": "3"}]
    aws.ec2.delete_tags(Resources=[image])
    assert "Tags" not in aws.describe(image)
    assert len(aws.describe_snapshot(snapshot)["Tags"]) == 2


def test_tags_are_listed_by_resource(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    aws.ec2.create_tags(Resources=[image, snapshot], Tags=[{"Key": "a", "Value": "1"}])
    tags = aws.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [image]}])["Tags"]
    assert tags == [{"Key": "a", "Value": "1", "ResourceId": image, "ResourceType": "image"}]
    kinds = aws.ec2.describe_tags(Filters=[{"Name": "tag:a", "Values": ["1"]}])["Tags"]
    assert sorted(tag["ResourceType"] for tag in kinds) == ["image", "snapshot"]


def test_with_one_unknown_resource_nothing_is_tagged(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    with refused("InvalidAMIID.NotFound"):
        aws.ec2.create_tags(Resources=[snapshot, "ami-0123456789abcdef0"], Tags=[{"Key": "a", "Value": "1"}])
    assert "Tags" not in aws.describe_snapshot(snapshot)
    with refused("InvalidID", "The ID 'xyz' is not valid"):
        aws.ec2.create_tags(Resources=["xyz"], Tags=[{"Key": "a", "Value": "1"}])


def test_tags_have_limits(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    fifty = [{"Key": f"key-{n}", "Value": ""} for n in range(50)]
    aws.ec2.create_tags(Resources=[snapshot], Tags=fifty)
    for tag, code in (
        ({"Key": "one-more", "Value": ""}, "TagLimitExceeded"),
        ({"Key": "aws:mine", "Value": ""}, "InvalidParameterValue"),
        ({"Key": "k" * 128, "Value": ""}, "InvalidParameterValue"),
        ({"Key": "key-0", "Value": "v" * 257}, "InvalidParameterValue"),
    ):
        with refused(code):
            aws.ec2.create_tags(Resources=[snapshot], Tags=[tag])
    aws.ec2.create_tags(Resources=[snapshot], Tags=[{"Key": "key-0", "Value": "v" * 256}])
