"""Topics, their messages and subscriptions.

Sources: the operations' pages in the Amazon SNS API Reference; answers of AWS recorded by LocalStack's tests.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandbox.clients import ONCE, SandboxClients, refused, user_access
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


def messages(aws: SandboxClients, arn: str) -> list[Any]:
    (table,) = aws.sandbox.state.tables.of_kind("topics").values()
    found: list[Any] = table[arn].messages
    return found


def texts(aws: SandboxClients, arn: str) -> list[str]:
    return [message.text for message in messages(aws, arn)]


def token(aws: SandboxClients) -> str:
    """Return the token that AWS sends to the endpoint of the only pending subscription."""
    (table,) = aws.sandbox.state.tables.of_kind("subscriptions").values()
    (found,) = (one.token for one in table.values() if not one.confirmed)
    return str(found)


def queue(name: str = "images") -> str:
    return f"arn:aws:sqs:us-east-1:012345678901:{name}"


def test_a_topic_is_created_once_and_keeps_its_messages(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    assert arn == topic(aws) == f"arn:aws:sns:us-east-1:{aws.sandbox.account}:images"
    first = sns.publish(TopicArn=arn, Subject="new", Message="one")["MessageId"]
    assert sns.publish(TopicArn=arn, Message="one")["MessageId"] != first
    assert texts(aws, arn) == ["one", "one"]
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
    params = {"TopicArn": arn, "Message": "one", "MessageGroupId": "ecs-node"}
    with refused("InvalidParameter"):
        sns.publish(**params)
    for _ in range(2):
        sns.publish(**params, MessageDeduplicationId="abc")
    assert texts(aws, arn) == ["one"]
    aws.sandbox.clock.advance(301)
    sns.publish(**params, MessageDeduplicationId="abc")
    assert texts(aws, arn) == ["one", "one"]


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
        sns.subscribe(TopicArn=arn, Protocol="sms", Endpoint="+15551234567")
    with refused("NotImplemented"):
        sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue(), Attributes={"FilterPolicy": "{}"})
    with refused("NotImplemented"):
        sns.publish(PhoneNumber="+15551234567", Message="one")
    with refused("NotImplemented"):
        topic(aws, "other", KmsMasterKeyId="alias/aws/sns")


# Messages for each protocol, message attributes


def test_a_message_has_a_text_for_each_protocol(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    texts = {"default": "short", "email": "long", "number": 1, "sqs": ""}
    sns.publish(TargetArn=arn, Message=json.dumps(texts), MessageStructure="json")
    (message,) = messages(aws, arn)
    assert (message.text, message.texts) == ("short", {"default": "short", "email": "long", "sqs": ""})


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('{"email": "x"}', "No default entry in JSON message body"),
        ('{"default": {"object": "x"}}', "No default entry in JSON message body"),
        ("{'default': 'x'}", "JSON message body failed to parse"),
        ('["default"]', "JSON message body failed to parse"),
    ],
)
def test_a_message_for_each_protocol_needs_a_default(aws: SandboxClients, message: str, text: str) -> None:
    arn = topic(aws)
    with refused("InvalidParameter", f"Invalid parameter: Message Structure - {text}"):
        aws.client("sns").publish(TopicArn=arn, Message=message, MessageStructure="json")
    assert texts(aws, arn) == []


def test_a_message_keeps_its_attributes(aws: SandboxClients) -> None:
    attributes = {
        "channel": {"DataType": "String.Array", "StringValue": '["stable"]'},
        "number": {"DataType": "Number", "StringValue": "-1.5"},
        "digest": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    arn = topic(aws)
    aws.client("sns").publish(TopicArn=arn, Message="m", MessageAttributes=attributes)
    assert messages(aws, arn)[0].attributes == attributes
    saved = aws.sandbox.save_tables()
    aws.sandbox.restore_tables(saved)
    assert messages(aws, arn)[0].attributes == attributes


@pytest.mark.parametrize(
    ("name", "attribute", "text"),
    [
        ("a", {"DataType": "String", "StringValue": ""}, "must contain non-empty message attribute value"),
        ("a", {"DataType": "Binary", "StringValue": "1"}, "with type 'Binary' must use field 'Binary'."),
        ("a", {"DataType": "Number", "BinaryValue": b"1"}, "with type 'Number' must use field 'String'."),
        ("a", {"DataType": "Stringy", "StringValue": "1"}, "has an invalid message attribute type"),
        ("a", {"DataType": "Number", "StringValue": "many"}, "Could not cast"),
        ("a^", {"DataType": "String", "StringValue": "1"}, "Invalid non-alphanumeric character '#x5E'"),
        (".a", {"DataType": "String", "StringValue": "1"}, "starting with character '.'"),
        ("a.", {"DataType": "String", "StringValue": "1"}, "ending with character '.'"),
        ("a..b", {"DataType": "String", "StringValue": "1"}, "can not have successive '.' character"),
        ("a" * 257, {"DataType": "String", "StringValue": "1"}, "must be less than 256 bytes"),
    ],
)
def test_invalid_message_attributes_are_refused(
    aws: SandboxClients, name: str, attribute: dict[str, Any], text: str
) -> None:
    with refused("ParameterValueInvalid", text):
        aws.client("sns").publish(TopicArn=topic(aws), Message="m", MessageAttributes={name: attribute})


def test_message_and_attributes_share_the_limit(aws: SandboxClients) -> None:
    params = {"TopicArn": topic(aws), "Message": "x" * 262144}
    aws.client("sns").publish(**params)
    with refused("InvalidParameter", "Invalid parameter: Message too long"):
        attribute = {"DataType": "String", "StringValue": "1"}
        aws.client("sns").publish(**params, MessageAttributes={"a": attribute})


def test_messages_of_a_fifo_topic_are_numbered(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws, "i.fifo", FifoTopic="true", ContentBasedDeduplication="true")
    numbers = [
        int(sns.publish(TopicArn=arn, Message=text, MessageGroupId="g")["SequenceNumber"])
        for text in ("one", "two", "one")
    ]
    assert numbers[0] == numbers[2] < numbers[1]


# Attributes and tags of topics


@pytest.mark.parametrize(
    ("arn", "code", "text"),
    [
        ("images", "InvalidParameter", "TopicArn Reason: An ARN must have at least 6 elements, not 1"),
        ("arn:aws:sns:eu-west-1:012345678901:images", "InvalidParameter", "Invalid parameter: TopicArn"),
        ("arn:aws:sns:us-east-1:012345678901:other", "NotFound", "Topic does not exist"),
    ],
)
def test_a_topic_that_does_not_exist(aws: SandboxClients, arn: str, code: str, text: str) -> None:
    with refused(code, text):
        aws.client("sns").get_topic_attributes(TopicArn=arn)


def test_the_attributes_of_a_topic(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    shown = sns.get_topic_attributes(TopicArn=arn)["Attributes"]
    policy, delivery = json.loads(shown.pop("Policy")), json.loads(shown.pop("EffectiveDeliveryPolicy"))
    assert shown == {
        "TopicArn": arn,
        "Owner": aws.account,
        "DisplayName": "",
        "SubscriptionsConfirmed": "0",
        "SubscriptionsPending": "0",
        "SubscriptionsDeleted": "0",
    }
    assert (policy["Id"], policy["Statement"][0]["Resource"]) == ("__default_policy_ID", arn)
    assert delivery["http"]["defaultRequestPolicy"] == {"headerContentType": "text/plain; charset=UTF-8"}
    named = sns.get_topic_attributes(TopicArn=topic(aws, "named", DisplayName="Images"))["Attributes"]
    assert named["DisplayName"] == "Images"
    with refused("InvalidParameter", "Invalid parameter: Attributes Reason: Colour"):
        topic(aws, "red", Colour="red")
    fifo = sns.get_topic_attributes(TopicArn=topic(aws, "images.fifo", FifoTopic="true"))["Attributes"]
    assert (fifo["FifoTopic"], fifo["ContentBasedDeduplication"]) == ("true", "false")


@pytest.mark.parametrize("name", ["", "a" * 257, "two words", "images.fifo"])
def test_invalid_names_of_topics_are_refused(aws: SandboxClients, name: str) -> None:
    with refused("InvalidParameter", "Invalid parameter: Topic Name"):
        topic(aws, name)


def test_topics_have_tags(aws: SandboxClients) -> None:
    sns = aws.client("sns")
    one, two = {"Key": "team", "Value": "os"}, {"Key": "team", "Value": "web"}
    with refused("InvalidParameter", "Duplicated keys are not allowed."):
        sns.create_topic(Name="images", Tags=[one, two])
    arn = sns.create_topic(Name="images", Tags=[one])["TopicArn"]
    sns.tag_resource(ResourceArn=arn, Tags=[two, {"Key": "kind", "Value": "news"}])
    sns.untag_resource(ResourceArn=arn, TagKeys=["kind", "other"])
    assert sns.list_tags_for_resource(ResourceArn=arn)["Tags"] == [two]
    with refused("ResourceNotFound", "Resource does not exist"):
        sns.list_tags_for_resource(ResourceArn=f"{arn}-2")


# Subscriptions


def test_an_email_address_is_subscribed_when_it_confirms(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    params = {"TopicArn": arn, "Protocol": "email", "Endpoint": "ops@example.org"}
    assert sns.subscribe(**params)["SubscriptionArn"] == "pending confirmation"
    pending = sns.subscribe(**params, ReturnSubscriptionArn=True)["SubscriptionArn"]
    assert pending.startswith(f"{arn}:")
    (listed,) = sns.list_subscriptions()["Subscriptions"]
    assert listed["SubscriptionArn"] == "PendingConfirmation"
    assert sns.get_subscription_attributes(SubscriptionArn=pending)["Attributes"] == {
        "SubscriptionArn": pending,
        "TopicArn": arn,
        "Owner": aws.account,
        "Protocol": "email",
        "Endpoint": "ops@example.org",
        "SubscriptionPrincipal": f"arn:aws:iam::{aws.account}:user/operator",
        "ConfirmationWasAuthenticated": "false",
        "PendingConfirmation": "true",
        "RawMessageDelivery": "false",
    }
    with refused("InvalidParameter", "pending confirmation"):
        sns.unsubscribe(SubscriptionArn=pending)
    for wrong, text in (("x", "Invalid token"), ("0" * 288, "Invalid parameter: Token")):
        with refused("InvalidParameter", text):
            sns.confirm_subscription(TopicArn=arn, Token=wrong)
    sent = token(aws)
    for _ in range(2):
        assert sns.confirm_subscription(TopicArn=arn, Token=sent)["SubscriptionArn"] == pending
    shown = sns.get_topic_attributes(TopicArn=arn)["Attributes"]
    assert (shown["SubscriptionsConfirmed"], shown["SubscriptionsPending"]) == ("1", "0")
    sns.unsubscribe(SubscriptionArn=pending)
    sns.unsubscribe(SubscriptionArn=pending)
    assert sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"] == []
    assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["SubscriptionsDeleted"] == "1"
    with refused("NotFound", "Subscription does not exist"):
        sns.get_subscription_attributes(SubscriptionArn=pending)


def test_an_unconfirmed_subscription_is_deleted_after_two_days(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws)
    sns.subscribe(TopicArn=arn, Protocol="https", Endpoint="https://example.org/images")
    sent = token(aws)
    aws.pass_time(2 * 86400 - 60)
    assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["SubscriptionsPending"] == "1"
    aws.pass_time(120)
    assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["SubscriptionsPending"] == "0"
    with refused("InvalidParameter", "Invalid parameter: Token"):
        sns.confirm_subscription(TopicArn=arn, Token=sent)


@pytest.mark.parametrize(
    ("protocol", "endpoint", "confirmed"),
    [
        ("sqs", queue(), True),
        ("sqs", "arn:aws:sqs:us-east-1:111122223333:images", False),
        ("lambda", "arn:aws:lambda:us-east-1:012345678901:function:announce", True),
        ("http", "http://example.org/", False),
        ("email-json", "ops@example.org", False),
    ],
)
def test_endpoints_of_the_account_need_no_confirmation(
    aws: SandboxClients, protocol: str, endpoint: str, confirmed: bool
) -> None:
    answer = aws.client("sns").subscribe(TopicArn=topic(aws), Protocol=protocol, Endpoint=endpoint)
    assert (answer["SubscriptionArn"] != "pending confirmation") is confirmed


@pytest.mark.parametrize(
    ("protocol", "endpoint", "text"),
    [
        ("pigeon", "coop", "Amazon SNS does not support this protocol string: pigeon"),
        ("email", "nobody", "Invalid parameter: Email address"),
        ("https", "http://example.org", "Endpoint must match the specified protocol"),
        ("sqs", "https://sqs.us-east-1.amazonaws.com/012345678901/q", "Invalid parameter: SQS endpoint ARN"),
        ("lambda", queue(), "Invalid parameter: Lambda endpoint ARN"),
        ("sqs", queue("q.fifo"), "FIFO SQS Queues can not be subscribed to standard SNS topics"),
    ],
)
def test_invalid_endpoints_are_refused(aws: SandboxClients, protocol: str, endpoint: str, text: str) -> None:
    with refused("InvalidParameter", text):
        aws.client("sns").subscribe(TopicArn=topic(aws), Protocol=protocol, Endpoint=endpoint)


def test_only_queues_subscribe_to_fifo_topics(aws: SandboxClients) -> None:
    sns, arn = aws.client("sns"), topic(aws, "images.fifo", FifoTopic="true")
    with refused("InvalidParameter", "Invalid protocol type: email"):
        sns.subscribe(TopicArn=arn, Protocol="email", Endpoint="ops@example.org")
    assert arn in sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue("q.fifo"))["SubscriptionArn"]


def test_a_repeated_subscription_must_have_the_same_attributes(aws: SandboxClients) -> None:
    sns = aws.client("sns")
    params = {"TopicArn": topic(aws), "Protocol": "sqs", "Endpoint": queue()}
    with refused("InvalidParameter", "Attributes Reason: RawMessageDelivery: Invalid value [yes]."):
        sns.subscribe(**params, Attributes={"RawMessageDelivery": "yes"})
    arn = sns.subscribe(**params, Attributes={"RawMessageDelivery": "True"})["SubscriptionArn"]
    assert sns.subscribe(**params)["SubscriptionArn"] == arn
    with refused("InvalidParameter", "Subscription already exists with different attributes"):
        sns.subscribe(**params, Attributes={"RawMessageDelivery": "false"})
    with refused("InvalidParameter", "Invalid parameter: Attributes Reason: Colour"):
        sns.subscribe(**params, Attributes={"Colour": "red"})


def test_subscriptions_are_listed_a_hundred_a_page(aws: SandboxClients) -> None:
    sns, first, second = aws.client("sns"), topic(aws), topic(aws, "other")
    arns = {
        sns.subscribe(TopicArn=first, Protocol="sqs", Endpoint=queue(f"q-{n}"))["SubscriptionArn"]
        for n in range(101)
    }
    sns.subscribe(TopicArn=second, Protocol="sqs", Endpoint=queue())
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=first)
    assert {one["SubscriptionArn"] for page in pages for one in page["Subscriptions"]} == arns
    pages = sns.get_paginator("list_subscriptions").paginate()
    assert [len(page["Subscriptions"]) for page in pages] == [100, 2]
    sns.delete_topic(TopicArn=first)
    assert len(sns.list_subscriptions()["Subscriptions"]) == 1


@pytest.mark.parametrize(
    ("arn", "text"),
    [
        ("pending confirmation", "An ARN must have at least 6 elements, not 1"),
        ("arn:aws:sns:us-east-1:012345678901:images", "Invalid parameter: SubscriptionId"),
    ],
)
def test_unsubscribe_needs_the_arn_of_a_subscription(aws: SandboxClients, arn: str, text: str) -> None:
    with refused("InvalidParameter", text):
        aws.client("sns").unsubscribe(SubscriptionArn=arn)


# Permissions


def test_permissions_are_those_on_the_topic(aws: SandboxClients) -> None:
    arn, other = topic(aws), topic(aws, "other")
    allowed = {"Effect": "Allow", "Action": ["sns:Publish", "sns:CreateTopic"], "Resource": arn}
    sns = user_access(aws.sandbox, allowed).client("sns", config=ONCE)
    sns.publish(TopicArn=arn, Message="m")
    assert sns.create_topic(Name="images")["TopicArn"] == arn
    user = f"arn:aws:iam::{aws.account}:user/carol"
    denied = f"User: {user} is not authorized to perform: SNS:Publish on resource: {other} because no "
    with refused("AuthorizationError", f"{denied}identity-based policy allows the SNS:Publish action"):
        sns.publish(TopicArn=other, Message="m")
    with refused("AuthorizationError", "SNS:CreateTopic on resource: arn:aws:sns:us-east-1:"):
        sns.create_topic(Name="new")
    with refused("AuthorizationError", "SNS:ListSubscriptions on resource: *"):
        sns.list_subscriptions()


def test_a_topic_of_another_account_allows_only_its_owner(aws: SandboxClients) -> None:
    other = aws.sandbox.other_account("111122223333").client("sns", config=ONCE)
    with refused("AuthorizationError", "because no resource-based policy allows the SNS:Publish action"):
        other.publish(TopicArn=topic(aws), Message="m")
