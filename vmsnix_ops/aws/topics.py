"""SNS topics: check that they exist, publish messages."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.checks import CheckResult
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, client

if TYPE_CHECKING:
    import boto3
    from types_boto3_sns.type_defs import PublishInputTypeDef

LONGEST_SUBJECT = 100


@needs("sns:GetTopicAttributes")
def check_topic_exists(topic: str, *, session: boto3.Session) -> CheckResult:
    """Check that the topic exists."""
    sns = client(session, "sns", topic.split(":")[3])
    with calling(f"read {topic}"):
        try:
            sns.get_topic_attributes(TopicArn=topic)
        except sns.exceptions.NotFoundException as error:
            raise errors.ParameterError(
                f"No SNS topic {topic}.",
                why="It was deleted, or is in another account or region.",
                fix="Correct the ARN. To list your topics, run aws sns list-topics",
            ) from error
    return CheckResult("topic", "pass", topic)


@needs("sns:Publish")
def publish_message(topic: str, subject: str, message: str, *, group: str, session: boto3.Session) -> str:
    """Publish a message to a topic and return the message ID.

    Not safe to run twice for a standard topic: SNS delivers the message twice. A FIFO topic ignores the same
    message for five minutes.
    """
    request: PublishInputTypeDef = {
        "TopicArn": topic,
        "Subject": subject[:LONGEST_SUBJECT],
        "Message": message,
    }
    if topic.endswith(".fifo"):
        digest = hashlib.sha256(f"{subject}\n{message}".encode()).hexdigest()
        request |= {"MessageGroupId": group[:128], "MessageDeduplicationId": digest}
    with calling(f"notify {topic}"):
        return str(client(session, "sns", topic.split(":")[3]).publish(**request)["MessageId"])
