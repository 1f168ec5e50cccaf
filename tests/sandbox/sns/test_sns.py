"""Topics and their messages.

Sources: the operations' pages in the Amazon SNS API Reference.
"""

from __future__ import annotations

import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.core import OPERATIONS, Operation, load_operations
from vmsnix_ops.sandbox.wire.models import service_model

load_operations()
EMULATED = [op for (name, _), op in sorted(OPERATIONS.items()) if name == "sns"]


@pytest.mark.parametrize("operation", EMULATED, ids=lambda op: op.name)
def test_an_operation_uses_only_parameters_that_aws_has(operation: Operation) -> None:
    shape = service_model("sns").model.operation_model(operation.name).input_shape
    assert operation.parameters <= set(shape.members)
    assert set(shape.required_members) <= operation.parameters


def topic(aws: SandboxClients, name: str = "images", **attributes: str) -> str:
    arn: str = aws.client("sns").create_topic(Name=name, Attributes=attributes)["TopicArn"]
    return arn


def told(aws: SandboxClients, arn: str) -> list[str]:
    (table,) = aws.sandbox.state.tables.of_kind("topics").values()
    return [message.text for message in table[arn].messages]


def test_a_topic_is_created_once_and_keeps_its_messages(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    assert arn == topic(aws) == f"arn:aws:sns:us-east-1:{aws.sandbox.account}:images"
    first = sns.publish(TopicArn=arn, Subject="new", Message="one")["MessageId"]
    assert sns.publish(TopicArn=arn, Message="one")["MessageId"] != first
    assert told(aws, arn) == ["one", "one"]
    assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["Owner"] == aws.sandbox.account
    sns.delete_topic(TopicArn=arn)
    sns.delete_topic(TopicArn=arn)
    with refused("NotFound"):
        sns.publish(TopicArn=arn, Message="two")


def test_topics_are_listed_a_hundred_a_page(aws: SandboxClients) -> None:
    sns = aws.client("sns")
    arns = {topic(aws, f"topic-{number:03}") for number in range(101)}
    assert len(sns.list_topics()["Topics"]) == 100
    pages = sns.get_paginator("list_topics").paginate()
    assert {one["TopicArn"] for page in pages for one in page["Topics"]} == arns


def test_a_fifo_topic_drops_a_repeated_message(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws, "images.fifo", FifoTopic="true")
    asked = {"TopicArn": arn, "Message": "one", "MessageGroupId": "ecs-node"}
    with refused("InvalidParameter"):
        sns.publish(**asked)
    for _ in range(2):
        sns.publish(**asked, MessageDeduplicationId="abc")
    assert told(aws, arn) == ["one"]
    aws.sandbox.clock.advance(301)
    sns.publish(**asked, MessageDeduplicationId="abc")
    assert told(aws, arn) == ["one", "one"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"TopicArn": "images"},
        {"TopicArn": "arn:aws:sns:eu-west-1:012345678901:images"},
        {"Subject": "x" * 101},
        {"Subject": "two\nlines"},
        {"Message": "x" * 262145},
        {"MessageDeduplicationId": "abc"},
    ],
    ids=lambda wrong: f"{next(iter(wrong))}",
)
def test_invalid_requests_are_refused(aws: SandboxClients, wrong: dict[str, str]) -> None:
    with refused("InvalidParameter"):
        aws.client("sns").publish(**({"TopicArn": topic(aws), "Message": "one"} | wrong))


def test_attributes_that_are_not_emulated_are_refused(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    with refused("NotImplemented"):
        sns.subscribe(TopicArn=arn, Protocol="email", Endpoint="a@example.org")
    with refused("NotImplemented"):
        sns.publish(TopicArn=arn, Message="one", MessageStructure="json")
    with refused("NotImplemented"):
        topic(aws, "other", KmsMasterKeyId="alias/aws/sns")
