"""What is not emulated is refused, never ignored."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.core import OPERATIONS, load_operations
from vmsnix_ops.sandbox.wire.models import service_model

load_operations()
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: f"{key[0]}-{key[1]}")
def test_every_parameter_exists_in_botocores_model(key: tuple[str, str]) -> None:
    service = service_model(key[0])
    assert key[1] in service
    shape = service.operation(key[1]).input_shape
    assert OPERATIONS[key].parameters <= (set(shape.members) if shape is not None else set())


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: f"{key[0]}-{key[1]}")
def test_every_required_parameter_is_accepted(key: tuple[str, str]) -> None:
    shape = service_model(key[0]).operation(key[1]).input_shape
    required = set(shape.required_members) if shape is not None else set()
    assert required <= OPERATIONS[key].parameters


def test_an_operation_that_is_not_emulated(aws: SandboxClients) -> None:
    with refused("NotImplemented", "The sandbox does not emulate ec2:DescribeFleets."):
        aws.ec2.describe_fleets()
    with refused("NotImplemented", "The sandbox does not emulate ssm:ListDocuments."):
        aws.ssm.list_documents()


def test_an_operation_that_aws_does_not_have(aws: SandboxClients) -> None:
    status, body = aws.send("POST", "/", b"Action=MakeCoffee&Version=2016-11-15", service="ec2", headers=FORM)
    assert (status, b"<Code>InvalidAction</Code>" in body) == (400, True)


def test_a_parameter_that_is_not_emulated(aws: SandboxClients) -> None:
    with refused("NotImplemented", "the parameter 'PermissionsBoundary' of iam:CreateRole"):
        aws.iam.create_role(
            RoleName="r",
            AssumeRolePolicyDocument="{}",
            PermissionsBoundary="arn:aws:iam::aws:policy/ReadOnlyAccess",
        )
    aws.bucket()
    with refused("NotImplemented", "the parameter 'SSECustomerAlgorithm' of s3:PutObject"):
        key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0" * 32}
        aws.s3.put_object(Bucket="images", Key="k", Body=b"", **key)


@pytest.mark.parametrize("parameter", ["Colour=red", "Filter.1.Nam=x", "Filter.x.Name=y", "ImageId=ami-1"])
def test_a_parameter_that_aws_does_not_have(aws: SandboxClients, parameter: str) -> None:
    body = f"Action=DescribeImages&Version=2016-11-15&{parameter}".encode()
    status, answer = aws.send("POST", "/", body, service="ec2", headers=FORM)
    assert (status, b"<Code>UnknownParameter</Code>" in answer) == (400, True)


def test_a_value_of_another_type(aws: SandboxClients) -> None:
    body = b"Action=DescribeImages&Version=2016-11-15&MaxResults=many"
    status, answer = aws.send("POST", "/", body, service="ec2", headers=FORM)
    assert (status, b"<Code>InvalidParameterValue</Code>" in answer) == (400, True)


def test_a_missing_parameter(aws: SandboxClients) -> None:
    body = b"Action=DeregisterImage&Version=2016-11-15"
    status, answer = aws.send("POST", "/", body, service="ec2", headers=FORM)
    assert (status, b"The request must contain the parameter ImageId" in answer) == (400, True)


BROKEN_CONSTRAINTS = [
    (
        "ebs",
        "StartSnapshot",
        {"VolumeSize": 1, "Timeout": 9},
        "'9' at 'timeout' .* greater than or equal to 10",
    ),
    (
        "iam",
        "GetRole",
        {"RoleName": "two words"},
        "'two words' at 'roleName' .* regular expression pattern: ",
    ),
    ("iam", "ListRoles", {"MaxItems": 1001}, "'1001' at 'maxItems' .* have value less than or equal to 1000"),
    ("kms", "Encrypt", {"KeyId": "k", "Plaintext": b"x" * 4097}, "at 'plaintext' .* equal to 4096"),
    ("rbin", "GetRule", {"Identifier": "short"}, "'short' at 'identifier' .* regular expression pattern: "),
    (
        "service-quotas",
        "ListServiceQuotas",
        {"ServiceCode": "ec2", "MaxResults": 0},
        "'0' at 'maxResults' .* 1",
    ),
    ("ssm", "DeleteParameters", {"Names": ["n"] * 11}, r"'\[n, n, .*\]' at 'names' .* length .* equal to 10"),
    ("ssm", "PutParameter", {"Name": "n", "Value": "v", "Tier": "x"}, r"'x' at 'tier' .* set: \[Standard, "),
    ("sts", "GetSessionToken", {"DurationSeconds": 899}, "'899' at 'durationSeconds' .* equal to 900"),
]
"""Requests that break a constraint of botocore's models, with the errors after ``Value``."""


@pytest.mark.parametrize(("service", "operation", "params", "text"), BROKEN_CONSTRAINTS)
def test_a_broken_constraint(
    aws: SandboxClients, service: str, operation: str, params: dict[str, Any], text: str
) -> None:
    unchecked = aws.other_client(service, config=Config(parameter_validation=False))
    with pytest.raises(ClientError, match=f"1 validation error detected: Value {text}"):
        getattr(unchecked, xform_name(operation))(**params)


def test_all_broken_constraints_are_reported(aws: SandboxClients) -> None:
    with pytest.raises(ClientError, match=r"2 validation errors detected: .* pattern: .*; .* equal to 64"):
        aws.sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/r", RoleSessionName="?" * 65)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/images?colour=red"),
        ("GET", "/images/k?colour=red"),
        ("PUT", "/images?replication"),
        ("GET", "/images?metadataTable"),
        ("PUT", "/images/k?legal-hold"),
        ("GET", "/images/k?torrent"),
        ("DELETE", "/images/k?versionId=1"),
    ],
)
def test_a_sub_resource_is_never_handled_as_the_plain_operation(
    aws: SandboxClients, method: str, path: str
) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"content")
    status, body = aws.send(method, path, b"<x/>" if method == "PUT" else b"")
    assert status in {400, 501}
    assert b"content" not in body
    assert aws.s3.get_object(Bucket="images", Key="k")["Body"].read() == b"content"


def test_xml_with_entities_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    body = b'<!DOCTYPE x [<!ENTITY a "b">]><Tagging><TagSet></TagSet></Tagging>'
    status, answer = aws.send("PUT", "/images?tagging", body)
    assert (status, b"MalformedXML" in answer) == (400, True)


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("describe_images", {}),
        ("describe_snapshots", {}),
        ("deregister_image", {"ImageId": "ami-0123456789abcdef0"}),
        ("create_tags", {"Resources": ["ami-0123456789abcdef0"], "Tags": [{"Key": "a", "Value": "b"}]}),
    ],
)
def test_every_ec2_operation_has_a_dry_run(
    aws: SandboxClients, operation: str, params: dict[str, Any]
) -> None:
    with refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set."):
        getattr(aws.ec2, operation)(DryRun=True, **params)
    assert not aws.sandbox.calls.matching("ec2:*", ran=True)
