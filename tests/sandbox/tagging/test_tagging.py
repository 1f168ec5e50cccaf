"""The Resource Groups Tagging API over the resources of all services.

Sources: the operations in the Resource Groups Tagging API Reference; "Services that support the Resource
Groups Tagging API".
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import ONCE, SandboxClients, refused, user_access

TEAM, KIND = {"Key": "team", "Value": "os"}, {"Key": "kind", "Value": "image"}


def api(aws: SandboxClients, region: str = "us-east-1") -> Any:
    return aws.client("resourcegroupstaggingapi", region)


def arns(aws: SandboxClients, region: str = "us-east-1", **params: Any) -> list[str]:
    pages = api(aws, region).get_paginator("get_resources").paginate(**params)
    return [one["ResourceARN"] for page in pages for one in page["ResourceTagMappingList"]]


def everything(aws: SandboxClients) -> dict[str, str]:
    """Create a resource of each service without tags, and return their ARNs."""
    account, snapshot_id = aws.account, aws.snapshot()
    image_id = aws.image(snapshot_id)
    aws.bucket()
    aws.ssm.put_parameter(Name="/images/latest", Value=image_id, Type="String")
    aws.ssm.put_parameter(Name="flat", Value="1", Type="String")
    period = {"RetentionPeriodValue": 1, "RetentionPeriodUnit": "DAYS"}
    return {
        "image": f"arn:aws:ec2:us-east-1:{account}:image/{image_id}",
        "snapshot": f"arn:aws:ec2:us-east-1:{account}:snapshot/{snapshot_id}",
        "bucket": "arn:aws:s3:::images",
        "parameter": f"arn:aws:ssm:us-east-1:{account}:parameter/images/latest",
        "flat parameter": f"arn:aws:ssm:us-east-1:{account}:parameter/flat",
        "key": aws.kms.create_key()["KeyMetadata"]["Arn"],
        "topic": aws.sns.create_topic(Name="news")["TopicArn"],
        "rule": aws.rbin.create_rule(ResourceType="EC2_IMAGE", RetentionPeriod=period)["RuleArn"],
    }


def test_resources_of_all_services_are_tagged_listed_and_untagged(aws: SandboxClients) -> None:
    made = everything(aws)
    assert arns(aws) == []
    answer = api(aws).tag_resources(ResourceARNList=list(made.values()), Tags={"team": "os", "kind": "image"})
    assert answer["FailedResourcesMap"] == {}
    assert sorted(arns(aws)) == sorted(made.values())
    for entry in api(aws).get_resources()["ResourceTagMappingList"]:
        assert sorted(entry["Tags"], key=str) == sorted([TEAM, KIND], key=str)
    assert aws.s3.get_bucket_tagging(Bucket="images")["TagSet"] == [TEAM, KIND]
    key_tags = aws.kms.list_resource_tags(KeyId=made["key"])["Tags"]
    assert key_tags == [{"TagKey": "team", "TagValue": "os"}, {"TagKey": "kind", "TagValue": "image"}]
    api(aws).untag_resources(ResourceARNList=list(made.values()), TagKeys=["kind", "other"])
    assert {str(entry["Tags"]) for entry in api(aws).get_resources()["ResourceTagMappingList"]} == {
        str([TEAM])
    }
    api(aws).untag_resources(ResourceARNList=list(made.values()), TagKeys=["team"])
    assert arns(aws) == []
    with refused("NoSuchTagSet"):
        aws.s3.get_bucket_tagging(Bucket="images")


def test_tags_of_the_services_themselves_are_listed(aws: SandboxClients) -> None:
    arn = aws.sns.create_topic(Name="news", Tags=[TEAM])["TopicArn"]
    volume = aws.ec2.create_volume(
        Size=1,
        AvailabilityZone="us-east-1a",
        TagSpecifications=[{"ResourceType": "volume", "Tags": [TEAM]}],
    )["VolumeId"]
    assert arns(aws) == [f"arn:aws:ec2:us-east-1:{aws.account}:volume/{volume}", arn]
    other = aws.sandbox.other_account("111122223333").client("resourcegroupstaggingapi")
    assert other.get_resources()["ResourceTagMappingList"] == []


def test_resources_are_those_of_the_region(aws: SandboxClients) -> None:
    location = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    aws.client("s3", "eu-west-1").create_bucket(Bucket="far-images", **location)
    aws.client("s3", "eu-west-1").put_bucket_tagging(Bucket="far-images", Tagging={"TagSet": [TEAM]})
    aws.client("sns", "eu-west-1").create_topic(Name="news", Tags=[TEAM])
    assert arns(aws) == []
    assert arns(aws, "eu-west-1", ResourceTypeFilters=["s3"]) == ["arn:aws:s3:::far-images"]
    failed = api(aws).tag_resources(
        ResourceARNList=[f"arn:aws:sns:eu-west-1:{aws.account}:news"], Tags={"a": "b"}
    )
    assert len(failed["FailedResourcesMap"]) == 1


def test_resources_are_filtered_by_tags_and_types(aws: SandboxClients) -> None:
    made = everything(aws)
    api(aws).tag_resources(ResourceARNList=[made["image"], made["topic"], made["bucket"]], Tags={"a": "1"})
    api(aws).tag_resources(ResourceARNList=[made["snapshot"], made["bucket"]], Tags={"a": "2", "b": ""})

    def found(**params: Any) -> set[str]:
        names = {arn: name for name, arn in made.items()}
        return {names[arn] for arn in arns(aws, **params)}

    assert found(TagFilters=[{"Key": "a", "Values": ["1"]}]) == {"image", "topic"}
    assert found(TagFilters=[{"Key": "a", "Values": ["1", "2"]}, {"Key": "b"}]) == {"snapshot", "bucket"}
    assert found(TagFilters=[{"Key": "c"}]) == set()
    assert found(ResourceTypeFilters=["ec2"]) == {"image", "snapshot"}
    assert found(ResourceTypeFilters=["ec2:image", "s3:bucket", "sns"]) == {"image", "bucket", "topic"}
    assert found(ResourceTypeFilters=["ec2"], TagFilters=[{"Key": "b"}]) == {"snapshot"}
    listed = api(aws).get_resources(ResourceARNList=[made["image"], made["key"]])
    assert [one["ResourceARN"] for one in listed["ResourceTagMappingList"]] == [made["image"]]
    assert listed["PaginationToken"] == ""


def test_keys_and_values_in_use_are_listed(aws: SandboxClients) -> None:
    for number, value in enumerate(("b", "a", "b")):
        aws.sns.create_topic(Name=f"t{number}", Tags=[{"Key": f"k{number % 2}", "Value": value}])
    assert api(aws).get_tag_keys()["TagKeys"] == ["k0", "k1"]
    assert api(aws).get_tag_values(Key="k0")["TagValues"] == ["b"]
    assert api(aws).get_tag_values(Key="other")["TagValues"] == []


def test_pages_are_limited_by_resources_and_by_tags(aws: SandboxClients) -> None:
    made = []
    for number in range(5):
        tags = [{"Key": str(key), "Value": ""} for key in range(40)]
        made.append(aws.sns.create_topic(Name=f"t{number}", Tags=tags)["TopicArn"])
    for params, sizes in (({"ResourcesPerPage": 3}, [3, 2]), ({"TagsPerPage": 100}, [2, 2, 1])):
        pages = list(api(aws).get_paginator("get_resources").paginate(**params))
        assert [len(page["ResourceTagMappingList"]) for page in pages] == sizes
        assert [one["ResourceARN"] for page in pages for one in page["ResourceTagMappingList"]] == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"ResourceARNList": ["arn:aws:s3:::a"], "TagFilters": [{"Key": "a"}]},
        {"ResourceARNList": ["arn:aws:s3:::a"], "ResourceTypeFilters": ["s3"]},
        {"ResourceARNList": ["arn:aws:s3:::a"], "ResourcesPerPage": 5},
        {"ResourceARNList": ["images"]},
        {"ResourcesPerPage": 101},
        {"TagsPerPage": 99},
        {"PaginationToken": "x"},
    ],
    ids=lambda wrong: "+".join(wrong),
)
def test_invalid_requests_are_refused(aws: SandboxClients, wrong: dict[str, Any]) -> None:
    with refused("InvalidParameterException"):
        api(aws).get_resources(**wrong)


def test_each_resource_that_fails_has_its_error(aws: SandboxClients) -> None:
    topic = aws.sns.create_topic(Name="news")["TopicArn"]
    image = f"arn:aws:ec2:us-east-1:{aws.account}:image/ami-0123456789abcdef0"
    failed = api(aws).tag_resources(ResourceARNList=[image, topic], Tags={"a": "b"})["FailedResourcesMap"]
    assert list(failed) == [image]
    assert (failed[image]["StatusCode"], failed[image]["ErrorCode"]) == (400, "InvalidAMIID.NotFound")
    assert arns(aws) == [topic]
    with refused("InvalidParameterException", "is not a valid AmazonResourceName (ARN)"):
        api(aws).tag_resources(ResourceARNList=["news", topic], Tags={"a": "c"})
    with refused("InvalidParameterException", "aws: prefixed tag key names"):
        api(aws).tag_resources(ResourceARNList=[topic], Tags={"aws:a": "c"})
    policy = f"arn:aws:iam::{aws.account}:policy/p"
    with refused("NotImplemented"):
        api(aws).tag_resources(ResourceARNList=[topic, policy], Tags={"a": "c"})
    assert aws.sns.list_tags_for_resource(ResourceArn=topic)["Tags"] == [{"Key": "a", "Value": "b"}]


def test_roles_can_be_tagged_and_are_not_listed(aws: SandboxClients) -> None:
    aws.prepare("images")
    arn = aws.iam.get_role(RoleName="vmimport")["Role"]["Arn"]
    api(aws).tag_resources(ResourceARNList=[arn], Tags={"a": "b", "c": "d"})
    assert len(aws.iam.get_role(RoleName="vmimport")["Role"]["Tags"]) == 2
    assert arns(aws) == []
    api(aws).untag_resources(ResourceARNList=[arn], TagKeys=["a"])
    assert aws.iam.get_role(RoleName="vmimport")["Role"]["Tags"] == [{"Key": "c", "Value": "d"}]
    profile = aws.iam.create_instance_profile(InstanceProfileName="web", Tags=[TEAM])["InstanceProfile"][
        "Arn"
    ]
    assert arns(aws) == [profile]
    assert arns(aws, "eu-west-1") == []


def test_the_service_of_a_resource_checks_the_permissions_too(aws: SandboxClients) -> None:
    made = everything(aws)
    image = made["image"].rpartition("/")[2]
    aws.ec2.create_tags(Resources=[image], Tags=[TEAM])
    ours = {"StringEquals": {"aws:ResourceTag/team": "os"}}
    statements = [
        {"Effect": "Allow", "Action": "tag:TagResources", "Resource": "*"},
        {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*", "Condition": ours},
        {"Effect": "Allow", "Action": "ssm:AddTagsToResource", "Resource": made["parameter"]},
        {"Effect": "Allow", "Action": "s3:PutBucketTagging", "Resource": made["bucket"]},
    ]
    carol = user_access(aws.sandbox, *statements).client("resourcegroupstaggingapi", config=ONCE)
    failed = carol.tag_resources(ResourceARNList=list(made.values()), Tags={"a": "b"})["FailedResourcesMap"]
    assert {name for name, arn in made.items() if arn not in failed} == {"image", "parameter"}
    assert failed[made["snapshot"]]["ErrorCode"] == "UnauthorizedOperation"
    assert "s3:GetBucketTagging" in failed[made["bucket"]]["ErrorMessage"]
    assert "SNS:TagResource" in failed[made["topic"]]["ErrorMessage"]
    with refused("AccessDeniedException", "tag:GetResources"):
        carol.get_resources()
