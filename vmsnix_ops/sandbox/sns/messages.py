"""Publish: a message for a topic.

Sources: Publish in the Amazon SNS API Reference; "Message deduplication for FIFO topics" in its Developer
Guide.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from .topics import Message, find

if TYPE_CHECKING:
    from ..core import Context, Params
    from .topics import Topic

LARGEST = 256 * 1024
DEDUPLICATION_SECONDS = 300.0


@operation(
    "sns",
    "Publish",
    honours=["TopicArn", "Subject", "Message", "MessageGroupId", "MessageDeduplicationId"],
)
def publish(context: Context, params: Params) -> dict[str, Any]:
    """Give a topic a message; a FIFO topic drops one that it was given in the last five minutes."""
    topic = find(context, params.get("TopicArn", ""))
    text, subject = params["Message"], params.get("Subject", "")
    if not text:
        raise AwsError("InvalidParameter", "Invalid parameter: Empty message")
    if len(text.encode()) > LARGEST:
        raise AwsError("InvalidParameter", "Invalid parameter: Message too long")
    if "Subject" in params and (not 1 <= len(subject) <= 100 or not subject.isprintable()):
        raise AwsError("InvalidParameter", "Invalid parameter: Subject")
    message = Message(str(uuid.uuid4()), subject, text, context.clock.now())
    if topic.fifo:
        message.group, message.deduplication = _order(topic, params)
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


def _order(topic: Topic, params: Params) -> tuple[str, str]:
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
