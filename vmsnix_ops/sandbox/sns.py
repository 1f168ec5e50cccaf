"""SNS as far as announcements need it: topics, and the messages published to them.

Sources: Publish in the Amazon SNS API Reference; "Message deduplication for FIFO topics" in its Developer
Guide.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


MAX_MESSAGE_BYTES = 256 * 1024
DEDUPLICATION_SECONDS = 300.0


@operation(
    "sns",
    "Publish",
    honours=["TopicArn", "Subject", "Message", "MessageGroupId", "MessageDeduplicationId"],
)
def publish(context: Context, params: Params) -> dict[str, Any]:
    """Give a topic a message; a FIFO topic drops one that it was given in the last five minutes."""
    topic = _find_topic(context, params.get("TopicArn", ""))
    text, subject = params["Message"], params.get("Subject", "")
    if not text:
        raise AwsError("InvalidParameter", "Invalid parameter: Empty message")
    if len(text.encode()) > MAX_MESSAGE_BYTES:
        raise AwsError("InvalidParameter", "Invalid parameter: Message too long")
    if "Subject" in params and (not 1 <= len(subject) <= 100 or not subject.isprintable()):
        raise AwsError("InvalidParameter", "Invalid parameter: Subject")
    message = Message(str(uuid.uuid4()), subject, text, context.clock.now())
    if topic.fifo:
        message.group, message.deduplication = _fifo_ids(topic, params)
        for earlier in topic.messages:
            recent = context.clock.age(earlier.at) < DEDUPLICATION_SECONDS
            if recent and earlier.deduplication == message.deduplication:
                return {"MessageId": earlier.message_id}
    elif "MessageDeduplicationId" in params:
        raise AwsError(
            "InvalidParameter",
            "Invalid parameter: The request includes MessageDeduplicationId parameter that is not valid for "
            "this topic type",
        )
    topic.messages.append(message)
    return {"MessageId": message.message_id}


def _fifo_ids(topic: Topic, params: Params) -> tuple[str, str]:
    """Return group and deduplication id of a message for a FIFO topic."""
    group = params.get("MessageGroupId", "")
    if not group:
        text = "Invalid parameter: The MessageGroupId parameter is required for FIFO topics"
        raise AwsError("InvalidParameter", text)
    given = params.get("MessageDeduplicationId", "")
    if not given and topic.attributes.get("ContentBasedDeduplication", "false").lower() != "true":
        raise AwsError(
            "InvalidParameter",
            "Invalid parameter: The topic should either have ContentBasedDeduplication enabled or "
            "MessageDeduplicationId provided explicitly",
        )
    return group, given or hashlib.sha256(params["Message"].encode()).hexdigest()


# Topics: create, list, look at, delete.
#
# Nobody subscribes here; the messages that a topic was given stay with it. Sources: CreateTopic, ListTopics,
# GetTopicAttributes, DeleteTopic in the Amazon SNS API Reference.

TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
FIFO_TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,251}\.fifo")
EMULATED_ATTRIBUTES = {"DisplayName", "FifoTopic", "ContentBasedDeduplication"}
PAGE_SIZE = 100


@dataclass(slots=True)
class Message:
    """What a topic was given."""

    message_id: str
    subject: str
    text: str
    at: datetime
    group: str = ""
    deduplication: str = ""


@dataclass(slots=True)
class Topic:
    """A topic; in table ``topics`` of each region by its ARN."""

    arn: str
    attributes: dict[str, str]
    tags: dict[str, str]
    messages: list[Message] = field(default_factory=list)

    @property
    def fifo(self) -> bool:
        """Whether messages keep their order and are dropped when they come twice."""
        return self.arn.endswith(".fifo")


def _find_topic(context: Context, arn: str) -> Topic:
    """Return a topic of the caller's region.

    Raises
    ------
    AwsError
        ``InvalidParameter`` for what is no ARN of this region, ``NotFound``.
    """
    if not re.fullmatch(rf"arn:{context.partition}:sns:{context.region}:\d{{12}}:[A-Za-z0-9_.-]+", arn):
        raise AwsError("InvalidParameter", "Invalid parameter: TopicArn")
    found: Topic | None = context.table("topics").get(arn)
    if found is None:
        raise AwsError("NotFound", "Topic does not exist", status=404)
    return found


@operation("sns", "CreateTopic", honours=["Name", "Attributes", "Tags"])
def create_topic(context: Context, params: Params) -> dict[str, Any]:
    """Make a topic, or return the one that there is when it was made with the same attributes."""
    name, attributes = params["Name"], dict(params.get("Attributes") or {})
    fifo = attributes.get("FifoTopic", "false").lower() == "true"
    for attribute in attributes:
        if attribute not in EMULATED_ATTRIBUTES:
            raise AwsError(
                "NotImplemented", f"The sandbox does not emulate the attribute {attribute}.", status=501
            )
    if not (FIFO_TOPIC_NAME if fifo else TOPIC_NAME).fullmatch(name):
        text = "Fifo Topic names must end with .fifo and" if fifo else "Topic Name: names"
        raise AwsError("InvalidParameter", f"Invalid parameter: {text} must be made up of valid characters.")
    arn = f"arn:{context.partition}:sns:{context.region}:{context.account}:{name}"
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags") or ()}
    known: Topic | None = context.table("topics").get(arn)
    if known is None:
        context.table("topics")[arn] = Topic(arn, attributes, tags)
    elif (attributes and known.attributes != attributes) or (tags and known.tags != tags):
        what = "Tags" if known.attributes == attributes else "Attributes"
        text = f"Invalid parameter: {what} Reason: Topic already exists with different {what.lower()}"
        raise AwsError("InvalidParameter", text)
    return {"TopicArn": arn}


@operation("sns", "ListTopics", honours=["NextToken"])
def list_topics(context: Context, params: Params) -> dict[str, Any]:
    """List the topics of the region, a hundred a page."""
    arns = sorted(context.table("topics"))
    token = params.get("NextToken", "")
    if token and token not in arns:
        raise AwsError("InvalidParameter", "Invalid parameter: NextToken")
    start = arns.index(token) if token else 0
    answer: dict[str, Any] = {"Topics": [{"TopicArn": arn} for arn in arns[start : start + PAGE_SIZE]]}
    return answer | ({"NextToken": arns[start + PAGE_SIZE]} if start + PAGE_SIZE < len(arns) else {})


@operation("sns", "GetTopicAttributes", honours=["TopicArn"])
def get_topic_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return what a topic is."""
    topic = _find_topic(context, params["TopicArn"])
    shown = {
        "TopicArn": topic.arn,
        "Owner": context.account,
        "DisplayName": "",
        "SubscriptionsConfirmed": "0",
        "SubscriptionsPending": "0",
        "SubscriptionsDeleted": "0",
    }
    return {"Attributes": shown | topic.attributes}


@operation("sns", "DeleteTopic", honours=["TopicArn"])
def delete_topic(context: Context, params: Params) -> dict[str, Any]:
    """Delete a topic; one that is not there is no error."""
    context.table("topics").pop(params["TopicArn"], None)
    return {}
