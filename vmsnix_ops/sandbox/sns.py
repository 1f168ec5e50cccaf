"""Amazon SNS: topics and the messages published to them. The sandbox has no subscriptions.

Sources: the reference pages of the operations in the Amazon SNS API Reference; "Message deduplication for
FIFO topics" in the Developer Guide.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, not_emulated, operation

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


MAX_MESSAGE_BYTES = 256 * 1024
DEDUPLICATION_SECONDS = 300.0
TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
FIFO_TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,251}\.fifo")
EMULATED_ATTRIBUTES = {"DisplayName", "FifoTopic", "ContentBasedDeduplication"}
PAGE_SIZE = 100


@dataclass(slots=True)
class Message:
    """A published message."""

    message_id: str
    subject: str
    text: str
    at: datetime
    group: str = ""
    deduplication: str = ""


@dataclass(slots=True)
class Topic:
    """A topic; in the table ``topics`` of its region by ARN."""

    arn: str
    attributes: dict[str, str]
    tags: dict[str, str]
    messages: list[Message] = field(default_factory=list)

    @property
    def fifo(self) -> bool:
        """Whether messages are ordered and deduplicated."""
        return self.arn.endswith(".fifo")


def _invalid_parameter(text: str) -> AwsError:
    return AwsError("InvalidParameter", f"Invalid parameter: {text}")


def _find_topic(context: Context, arn: str) -> Topic:
    """Return a topic of the region of the call, or raise ``InvalidParameter`` or ``NotFound``."""
    if not re.fullmatch(rf"arn:{context.partition}:sns:{context.region}:\d{{12}}:[A-Za-z0-9_.-]+", arn):
        raise _invalid_parameter("TopicArn")
    found: Topic | None = context.table("topics").get(arn)
    if found is None:
        raise AwsError("NotFound", "Topic does not exist", status=404)
    return found


@operation("sns", "Publish", "TopicArn Subject Message MessageGroupId MessageDeduplicationId")
def publish(context: Context, params: Params) -> dict[str, Any]:
    """Publish a message. A FIFO topic drops a repetition within five minutes."""
    topic = _find_topic(context, params.get("TopicArn", ""))
    text, subject = params["Message"], params.get("Subject", "")
    if not text:
        raise _invalid_parameter("Empty message")
    if len(text.encode()) > MAX_MESSAGE_BYTES:
        raise _invalid_parameter("Message too long")
    if "Subject" in params and (not 1 <= len(subject) <= 100 or not subject.isprintable()):
        raise _invalid_parameter("Subject")
    message = Message(str(uuid.uuid4()), subject, text, context.clock.now())
    if topic.fifo:
        message.group, message.deduplication = _fifo_ids(topic, params)
        for earlier in topic.messages:
            recent = context.clock.age(earlier.at) < DEDUPLICATION_SECONDS
            if recent and earlier.deduplication == message.deduplication:
                return {"MessageId": earlier.message_id}
    elif "MessageDeduplicationId" in params:
        raise _invalid_parameter(
            "The request includes MessageDeduplicationId parameter that is not valid for this topic type"
        )
    topic.messages.append(message)
    return {"MessageId": message.message_id}


def _fifo_ids(topic: Topic, params: Params) -> tuple[str, str]:
    """Return group and deduplication ID of a message for a FIFO topic."""
    group = params.get("MessageGroupId", "")
    if not group:
        raise _invalid_parameter("The MessageGroupId parameter is required for FIFO topics")
    deduplication_id = params.get("MessageDeduplicationId", "")
    content_based = topic.attributes.get("ContentBasedDeduplication", "false").lower() == "true"
    if not deduplication_id and not content_based:
        raise _invalid_parameter(
            "The topic should either have ContentBasedDeduplication enabled or "
            "MessageDeduplicationId provided explicitly"
        )
    return group, deduplication_id or hashlib.sha256(params["Message"].encode()).hexdigest()


@operation("sns", "CreateTopic", "Name Attributes Tags")
def create_topic(context: Context, params: Params) -> dict[str, Any]:
    """Create a topic, or return an existing one with the same attributes and tags."""
    name, attributes = params["Name"], dict(params.get("Attributes") or {})
    fifo = attributes.get("FifoTopic", "false").lower() == "true"
    for attribute in attributes:
        if attribute not in EMULATED_ATTRIBUTES:
            raise not_emulated(f"the attribute {attribute}")
    if not (FIFO_TOPIC_NAME if fifo else TOPIC_NAME).fullmatch(name):
        text = "Fifo Topic names must end with .fifo and" if fifo else "Topic Name: names"
        raise _invalid_parameter(f"{text} must be made up of valid characters.")
    arn = context.arn("sns", name)
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags") or ()}
    known: Topic | None = context.table("topics").get(arn)
    if known is None:
        context.table("topics")[arn] = Topic(arn, attributes, tags)
    elif (attributes and known.attributes != attributes) or (tags and known.tags != tags):
        what = "Tags" if known.attributes == attributes else "Attributes"
        raise _invalid_parameter(f"{what} Reason: Topic already exists with different {what.lower()}")
    return {"TopicArn": arn}


@operation("sns", "ListTopics", "NextToken")
def list_topics(context: Context, params: Params) -> dict[str, Any]:
    """List the topics of the region, 100 per page."""
    arns = sorted(context.table("topics"))
    token = params.get("NextToken", "")
    if token and token not in arns:
        raise _invalid_parameter("NextToken")
    start = arns.index(token) if token else 0
    answer: dict[str, Any] = {"Topics": [{"TopicArn": arn} for arn in arns[start : start + PAGE_SIZE]]}
    return answer | ({"NextToken": arns[start + PAGE_SIZE]} if start + PAGE_SIZE < len(arns) else {})


DELIVERY_POLICY = {
    "http": {
        "defaultHealthyRetryPolicy": {
            "minDelayTarget": 20,
            "maxDelayTarget": 20,
            "numRetries": 3,
            "numMaxDelayRetries": 0,
            "numNoDelayRetries": 0,
            "numMinDelayRetries": 0,
            "backoffFunction": "linear",
        },
        "disableSubscriptionOverrides": False,
    }
}
"""The delivery policy of a topic without one of its own (example of the AWS CLI)."""

TOPIC_ACTIONS = (
    "Subscribe ListSubscriptionsByTopic DeleteTopic GetTopicAttributes Publish RemovePermission "
    "AddPermission SetTopicAttributes"
)


def _default_policy(context: Context, topic: Topic) -> dict[str, Any]:
    """Return the access policy of a new topic (example of the AWS CLI)."""
    statement = {
        "Sid": "__default_statement_ID",
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": [f"SNS:{action}" for action in TOPIC_ACTIONS.split()],
        "Resource": topic.arn,
        "Condition": {"StringEquals": {"AWS:SourceOwner": context.account}},
    }
    return {"Version": "2008-10-17", "Id": "__default_policy_ID", "Statement": [statement]}


@operation("sns", "GetTopicAttributes", "TopicArn")
def get_topic_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return the attributes of a topic."""
    topic = _find_topic(context, params["TopicArn"])
    shown = {
        "TopicArn": topic.arn,
        "Owner": context.account,
        "DisplayName": "",
        "EffectiveDeliveryPolicy": json.dumps(DELIVERY_POLICY, separators=(",", ":")),
        "Policy": json.dumps(_default_policy(context, topic), separators=(",", ":")),
        "SubscriptionsConfirmed": "0",
        "SubscriptionsPending": "0",
        "SubscriptionsDeleted": "0",
    }
    return {"Attributes": shown | topic.attributes}


@operation("sns", "DeleteTopic", "TopicArn")
def delete_topic(context: Context, params: Params) -> dict[str, Any]:
    """Delete a topic. An unknown topic is no error."""
    context.table("topics").pop(params["TopicArn"], None)
    return {}
