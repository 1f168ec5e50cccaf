"""Amazon SNS: topics, subscriptions, published messages. The sandbox stores messages and delivers none.

A subscription that its endpoint has to confirm (e-mail, HTTP) stays pending: its token, which AWS sends to
the endpoint, is only in the table ``subscriptions``. ConfirmSubscription without a signature and policies of
topics are not emulated.

Sources: the operations in the Amazon SNS API Reference; "Message deduplication for FIFO topics" and "Amazon
SNS message attributes" in the Developer Guide; the examples of the AWS CLI. *Recorded* means: in the answers
of AWS that the tests of LocalStack recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Paging, load_json, not_emulated, operation, register_tags, words
from vmsnix_ops.sandbox.wire.models import service_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


MAX_MESSAGE_BYTES = 256 * 1024
DEDUPLICATION_SECONDS = 300.0
CONFIRMATION_SECONDS = 2 * 86400.0
"""A subscription that was not confirmed for so long is deleted (documented)."""

TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
FIFO_TOPIC_NAME = re.compile(r"[A-Za-z0-9_-]{1,251}\.fifo")
MAX_TAGS = 50
FIRST_SEQUENCE_NUMBER = 10**19
"""A guess: AWS documents only that sequence numbers have 128 bits and increase."""


@dataclass(slots=True)
class Message:
    """A published message. With ``MessageStructure=json``, `texts` has a text for each protocol."""

    message_id: str
    subject: str
    text: str
    at: datetime
    group: str = ""
    deduplication: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    sequence: str = ""


@dataclass(slots=True)
class Topic:
    """A topic; in the table ``topics`` of its region by ARN. `deleted` counts its deleted subscriptions."""

    arn: str
    attributes: dict[str, str]
    tags: dict[str, str]
    messages: list[Message] = field(default_factory=list)
    deleted: int = 0

    @property
    def fifo(self) -> bool:
        """Whether messages are ordered and deduplicated."""
        return self.arn.endswith(".fifo")


@dataclass(slots=True)
class Subscription:
    """A subscription; in the table ``subscriptions`` of the region by ARN, also while it is pending."""

    arn: str
    topic_arn: str
    protocol: str
    endpoint: str
    owner: str
    principal: str
    at: datetime
    raw: bool = False
    confirmed: bool = False
    authenticated: bool = False
    token: str = ""


def _invalid_parameter(text: str) -> ApiError:
    return ApiError("InvalidParameter", f"Invalid parameter: {text}")


def _check_arn(parameter: str, arn: str) -> None:
    count = len(arn.split(":"))
    if count < 6:
        raise _invalid_parameter(f"{parameter} Reason: An ARN must have at least 6 elements, not {count}")


def _topic_in_region(context: Context, arn: str) -> bool:
    return bool(re.fullmatch(rf"arn:{context.partition}:sns:{context.region}:\d{{12}}:[A-Za-z0-9_.-]+", arn))


def find_topic(context: Context, arn: str, parameter: str = "TopicArn") -> Topic:
    """Return a topic of the region of the call.

    A topic of another account is an ``AuthorizationError``: the default policy of a topic allows only its
    owner.
    """
    _check_arn(parameter, arn)
    if not _topic_in_region(context, arn):
        raise _invalid_parameter(parameter)
    found: Topic | None = context.table("topics").get(arn)
    if found is not None:
        return found
    if context.tables.find("topics", context.region, arn) is None:
        raise ApiError("NotFound", "Topic does not exist", status=404)
    action = f"SNS:{context.operation}"
    raise ApiError(
        "AuthorizationError",
        f"User: {context.principal} is not authorized to perform: {action} on resource: {arn} because no "
        f"resource-based policy allows the {action} action",
        status=403,
    )


PAGES = Paging("", 100, 100, lambda: _invalid_parameter("NextToken"))


def _page(params: Params, member: str, items: Mapping[str, dict[str, str]]) -> Params:
    """Return one page of items, sorted by ARN."""
    return PAGES.page([items[arn] for arn in sorted(items)], params, member)


# Messages


@operation(
    "sns",
    "Publish",
    "TopicArn TargetArn Subject Message MessageStructure MessageAttributes MessageGroupId",
    "MessageDeduplicationId",
)
def publish(context: Context, params: Params) -> dict[str, Any]:
    """Publish a message. A FIFO topic ignores a message that is repeated within five minutes."""
    parameter = "TopicArn" if "TopicArn" in params else "TargetArn"
    if ":endpoint/" in params.get("TargetArn", ""):
        raise not_emulated("mobile endpoints of sns:Publish")
    topic = find_topic(context, params.get(parameter, ""), parameter)
    text, subject = params["Message"], params.get("Subject", "")
    if not text:
        raise _invalid_parameter("Empty message")
    attributes = params.get("MessageAttributes") or {}
    if len(text.encode()) + sum(map(_attribute_bytes, attributes.items())) > MAX_MESSAGE_BYTES:
        raise _invalid_parameter("Message too long")
    if "Subject" in params and (not 1 <= len(subject) <= 100 or not subject.isprintable()):
        raise _invalid_parameter("Subject")
    structure = params.get("MessageStructure")
    if structure not in {None, "json"}:
        raise _invalid_parameter("MessageStructure")  # text from memory; documented: only json is valid
    texts = _texts_by_protocol(text) if structure is not None else {}
    for name, attribute in attributes.items():
        _check_attribute(name, attribute)
    default = texts["default"] if texts else text
    message = Message(
        str(uuid.uuid4()), subject, default, context.clock.now(), texts=texts, attributes=attributes
    )
    if topic.fifo:
        message.group, message.deduplication = _fifo_ids(topic, params)
        for earlier in topic.messages:
            recent = context.clock.age(earlier.at) < DEDUPLICATION_SECONDS
            if recent and earlier.deduplication == message.deduplication:
                return {"MessageId": earlier.message_id, "SequenceNumber": earlier.sequence}
        message.sequence = str(FIRST_SEQUENCE_NUMBER + 1000 * len(topic.messages))
    elif "MessageDeduplicationId" in params:
        raise _invalid_parameter(
            "MessageDeduplicationId Reason: The request includes MessageDeduplicationId parameter that is "
            "not valid for this topic type"
        )
    topic.messages.append(message)
    return {"MessageId": message.message_id} | ({"SequenceNumber": message.sequence} if topic.fifo else {})


def _texts_by_protocol(text: str) -> dict[str, str]:
    """Return the texts of a JSON message by protocol. Values that are not texts are ignored."""
    try:
        content = load_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _invalid_parameter("Message Structure - JSON message body failed to parse")
    texts = {key: value for key, value in content.items() if isinstance(value, str)}
    if "default" not in texts:
        raise _invalid_parameter("Message Structure - No default entry in JSON message body")
    return texts


def _attribute_bytes(item: tuple[str, dict[str, Any]]) -> int:
    name, attribute = item
    value = attribute.get("BinaryValue") or attribute.get("StringValue", "").encode()
    return len(name.encode()) + len(attribute.get("DataType", "").encode()) + len(value)


def _check_attribute(name: str, attribute: dict[str, Any]) -> None:
    """Check a message attribute. The error texts are recorded, except that for numbers."""
    text = ""
    kind = attribute["DataType"]
    base = kind.partition(".")[0]
    member = "BinaryValue" if base == "Binary" else "StringValue"
    wrong = re.search(r"[^A-Za-z0-9_.-]", name)
    if len(name) > 256:
        text = "Length of message attribute name must be less than 256 bytes."
    elif wrong:
        text = (
            f"Invalid non-alphanumeric character '#x{ord(wrong[0]):X}' was found in the message attribute "
            "name. Can only include alphanumeric characters, hyphens, underscores, or dots."
        )
    elif name.startswith("."):
        text = "Invalid message attribute name starting with character '.' was found."
    elif name.endswith("."):
        text = "Invalid message attribute name ending with character '.' was found."
    elif ".." in name:
        text = "Message attribute name can not have successive '.' character."
    elif base not in {"Binary", "Number", "String"}:
        text = (
            f"The message attribute '{name}' has an invalid message attribute type, the set of supported "
            "type prefixes is Binary, Number, and String."
        )
    elif {"BinaryValue", "StringValue"} & set(attribute) - {member}:
        text = (
            f"The message attribute '{name}' with type '{kind}' must use field "
            f"'{member.removesuffix('Value')}'."
        )
    elif not attribute.get(member):
        text = (
            f"The message attribute '{name}' must contain non-empty message attribute value for message "
            f"attribute type '{kind}'."
        )
    elif base == "Number" and not re.fullmatch(r"[+-]?\d*\.?\d+([eE][+-]?\d+)?", attribute[member]):
        text = f"Could not cast message attribute '{name}' value to number."  # text from memory
    if text:
        raise ApiError("ParameterValueInvalid", text)


def _fifo_ids(topic: Topic, params: Params) -> tuple[str, str]:
    """Return the group ID and the deduplication ID of a message for a FIFO topic."""
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


# Topics

TOPIC_ATTRIBUTES: dict[str, re.Pattern[str]] = {
    "ContentBasedDeduplication": re.compile("(?i:true|false)"),
    "DisplayName": re.compile(r".{0,100}"),
    "FifoTopic": re.compile("(?i:true|false)"),
    "SignatureVersion": re.compile("[12]"),
}
"""The emulated attributes, each with the pattern of its values."""

FIFO_ATTRIBUTES = {"ContentBasedDeduplication", "FifoTopic"}


def _check_topic_attribute(name: str, value: str) -> None:
    """Check an attribute of a topic; ``NotImplemented`` for one that AWS has and the sandbox does not."""
    model = service_model("sns").operation("CreateTopic").input_shape
    documented = "" if model is None else " ".join(m.documentation for m in model.members.values())
    if name not in TOPIC_ATTRIBUTES:
        if f"<code>{name}</code>" in documented:
            raise not_emulated(f"the attribute {name} of topics")
        raise _invalid_parameter(f"Attributes Reason: {name}")
    if not TOPIC_ATTRIBUTES[name].fullmatch(value):
        raise _invalid_parameter(f"Attributes Reason: {name}")  # text from memory


def _read_tags(given: list[dict[str, str]]) -> dict[str, str]:
    tags = {tag["Key"]: tag["Value"] for tag in given}
    if len(tags) < len(given):
        raise _invalid_parameter("Duplicated keys are not allowed.")
    return tags


@operation("sns", "CreateTopic", "Name Attributes Tags")
def create_topic(context: Context, params: Params) -> dict[str, Any]:
    """Create a topic, or return an existing one with the same attributes and tags."""
    name, attributes = params["Name"], dict(params.get("Attributes") or {})
    for attribute, value in attributes.items():
        _check_topic_attribute(attribute, value)
    fifo = attributes.get("FifoTopic", "false").lower() == "true"
    if not (FIFO_TOPIC_NAME if fifo else TOPIC_NAME).fullmatch(name):
        raise _invalid_parameter("Topic Name")
    arn, tags = context.arn("sns", name), _read_tags(params.get("Tags") or [])
    known: Topic | None = context.table("topics").get(arn)
    if known is None:
        context.table("topics")[arn] = Topic(arn, attributes, tags)
    elif (attributes and known.attributes != attributes) or (tags and known.tags != tags):
        what = "Attributes" if attributes and known.attributes != attributes else "Tags"
        raise _invalid_parameter(f"{what} Reason: Topic already exists with different {what.lower()}")
    return {"TopicArn": arn}


@operation("sns", "ListTopics", "NextToken")
def list_topics(context: Context, params: Params) -> dict[str, Any]:
    """List the topics of the region, 100 per page."""
    return _page(params, "Topics", {arn: {"TopicArn": arn} for arn in context.table("topics")})


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
        "defaultRequestPolicy": {"headerContentType": "text/plain; charset=UTF-8"},
    }
}
"""The delivery policy of a topic without one of its own (recorded)."""

TOPIC_ACTIONS = (
    "GetTopicAttributes SetTopicAttributes AddPermission RemovePermission DeleteTopic Subscribe "
    "ListSubscriptionsByTopic Publish"
)


def _default_policy(context: Context, topic: Topic) -> dict[str, Any]:
    """Return the access policy of a new topic (recorded)."""
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
    """Return the attributes of a topic. FifoTopic is shown only when it is true."""
    topic = find_topic(context, params["TopicArn"])
    subscriptions = _subscriptions(context, topic.arn)
    confirmed = sum(one.confirmed for one in subscriptions)
    shown = {
        "TopicArn": topic.arn,
        "Owner": context.account,
        "DisplayName": "",
        "EffectiveDeliveryPolicy": json.dumps(DELIVERY_POLICY, separators=(",", ":")),
        "Policy": json.dumps(_default_policy(context, topic), separators=(",", ":")),
        "SubscriptionsConfirmed": str(confirmed),
        "SubscriptionsPending": str(len(subscriptions) - confirmed),
        "SubscriptionsDeleted": str(topic.deleted),
    }
    shown |= {name: value for name, value in topic.attributes.items() if name not in FIFO_ATTRIBUTES}
    if topic.fifo:
        deduplicated = topic.attributes.get("ContentBasedDeduplication", "false").lower()
        shown |= {"FifoTopic": "true", "ContentBasedDeduplication": deduplicated}
    return {"Attributes": shown}


@operation("sns", "DeleteTopic", "TopicArn")
def delete_topic(context: Context, params: Params) -> dict[str, Any]:
    """Delete a topic with its subscriptions. An unknown topic is not an error."""
    _check_arn("TopicArn", params["TopicArn"])
    context.table("topics").pop(params["TopicArn"], None)
    for subscription in _subscriptions(context, params["TopicArn"]):
        del context.table("subscriptions")[subscription.arn]
    return {}


# Tags


def _find_tagged(context: Context, params: Params) -> Topic:
    found: Topic | None = context.table("topics").get(params["ResourceArn"])
    if found is None:
        raise ApiError("ResourceNotFound", "Resource does not exist", status=404)
    return found


def _check_topic_tags(tags: dict[str, str], given: list[dict[str, str]]) -> None:
    _read_tags(given)
    if len(tags) > MAX_TAGS:
        raise ApiError("TagLimitExceeded", "Could not complete request: tag quota of per resource exceeded")


register_tags(
    *("sns", _find_tagged, "ResourceArn", ("TagResource", "UntagResource", "ListTagsForResource")),
    check=_check_topic_tags,
)

# Subscriptions

PENDING = "pending confirmation"  # in the answer of Subscribe
LISTED_AS_PENDING = "PendingConfirmation"  # in lists
ENDPOINTS: dict[str, tuple[str, str]] = {
    "email": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "Email address"),
    "email-json": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "Email address"),
    "http": (r"http://[^/\s]+\S*", "Endpoint must match the specified protocol"),
    "https": (r"https://[^/\s]+\S*", "Endpoint must match the specified protocol"),
    "lambda": (
        r"arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9_-]+(:[A-Za-z0-9_$-]+)?",
        "Lambda endpoint ARN",
    ),
    "sqs": (r"arn:aws[a-z-]*:sqs:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+(\.fifo)?", "SQS endpoint ARN"),
}
"""The emulated protocols, each with the pattern of its endpoints and the error text for other endpoints.

The text for SQS is recorded, those for HTTP are in other emulators, and the others are from memory.
"""

CONFIRMED_BY_ACCOUNT = {"lambda", "sqs"}
"""Protocols whose endpoints need no confirmation in the account of the topic."""

NOT_EMULATED_ATTRIBUTES = set(
    words("DeliveryPolicy FilterPolicy FilterPolicyScope RedrivePolicy ReplayPolicy SubscriptionRoleArn")
)
"""Attributes of subscriptions that AWS has and the sandbox does not."""


def _subscriptions(context: Context, topic_arn: str = "") -> list[Subscription]:
    """Return the subscriptions of a topic, or of all topics, after deleting those never confirmed in time."""
    table = context.table("subscriptions")
    for arn, one in list(table.items()):
        if not one.confirmed and not context.clock.is_listed(one.at, CONFIRMATION_SECONDS):
            del table[arn]
    return [one for one in table.values() if topic_arn in {"", one.topic_arn}]


def _find_subscription(context: Context, arn: str) -> Subscription:
    _check_arn("SubscriptionArn", arn)
    for one in _subscriptions(context):
        if one.arn == arn:
            return one
    raise ApiError("NotFound", "Subscription does not exist", status=404)


def _read_raw_delivery(name: str, value: str, protocol: str) -> bool:
    """Return the value of RawMessageDelivery, the only emulated attribute of subscriptions."""
    if name in NOT_EMULATED_ATTRIBUTES:
        raise not_emulated(f"the attribute {name} of subscriptions")
    if name != "RawMessageDelivery":
        raise _invalid_parameter(f"Attributes Reason: {name}")
    if value.lower() not in {"true", "false"}:
        text = f"Attributes Reason: RawMessageDelivery: Invalid value [{value}]. Must be true or false."
        raise _invalid_parameter(text)
    if value.lower() == "true" and protocol not in {"http", "https", "sqs"}:
        # Documented for SQS and HTTP only; text from memory.
        text = f"Attributes Reason: Delivery protocol [{protocol}] does not support raw message delivery."
        raise _invalid_parameter(text)
    return value.lower() == "true"


def _check_endpoint(topic: Topic, protocol: str, endpoint: str) -> None:
    if protocol in {"application", "firehose", "sms"}:
        raise not_emulated(f"the protocol {protocol} of subscriptions")
    if protocol not in ENDPOINTS:
        raise _invalid_parameter(f"Amazon SNS does not support this protocol string: {protocol}")
    if topic.fifo and protocol != "sqs":
        raise _invalid_parameter(f"Invalid protocol type: {protocol}")
    form, text = ENDPOINTS[protocol]
    if not re.fullmatch(form, endpoint):
        raise _invalid_parameter(text)
    if protocol == "sqs" and endpoint.endswith(".fifo") and not topic.fifo:
        raise _invalid_parameter(
            "Invalid parameter: Endpoint Reason: FIFO SQS Queues can not be subscribed to standard SNS topics"
        )


@operation("sns", "Subscribe", "TopicArn Protocol Endpoint Attributes ReturnSubscriptionArn")
def subscribe(context: Context, params: Params) -> dict[str, Any]:
    """Subscribe an endpoint to a topic, or return its existing subscription with the same attributes.

    As on AWS, the SQS queue or Lambda function need not exist (recorded for SQS).
    """
    topic = find_topic(context, params["TopicArn"])
    protocol, endpoint = params["Protocol"], params.get("Endpoint", "")
    _check_endpoint(topic, protocol, endpoint)
    raw = None
    for name, value in (params.get("Attributes") or {}).items():
        raw = _read_raw_delivery(name, value, protocol)
    for known in _subscriptions(context, topic.arn):
        if (known.protocol, known.endpoint) == (protocol, endpoint):
            if raw is not None and raw != known.raw:
                text = "Attributes Reason: Subscription already exists with different attributes"
                raise _invalid_parameter(text)
            return _subscribe_answer(known, params)
    confirmed = protocol in CONFIRMED_BY_ACCOUNT and endpoint.split(":")[4] == context.account
    subscription = Subscription(
        arn=f"{topic.arn}:{uuid.uuid4()}",
        topic_arn=topic.arn,
        protocol=protocol,
        endpoint=endpoint,
        owner=context.account,
        principal=context.principal,
        at=context.clock.now(),
        raw=bool(raw),
        confirmed=confirmed,
        authenticated=confirmed,
        token="" if confirmed else secrets.token_hex(144),
    )
    context.table("subscriptions")[subscription.arn] = subscription
    return _subscribe_answer(subscription, params)


def _subscribe_answer(subscription: Subscription, params: Params) -> dict[str, str]:
    shown = subscription.confirmed or params.get("ReturnSubscriptionArn")
    return {"SubscriptionArn": subscription.arn if shown else PENDING}


@operation("sns", "ConfirmSubscription", "TopicArn Token AuthenticateOnUnsubscribe")
def confirm_subscription(context: Context, params: Params) -> dict[str, Any]:
    """Confirm a subscription with its token. Confirming it again returns the same ARN.

    Assumption: ConfirmationWasAuthenticated is true only with AuthenticateOnUnsubscribe.
    """
    if not _topic_in_region(context, params["TopicArn"]):
        raise _invalid_parameter("Topic")
    token = params["Token"]
    if not re.fullmatch(r"[0-9a-f]{200,300}", token):
        raise ApiError("InvalidParameter", "Invalid token")
    for one in _subscriptions(context, params["TopicArn"]):
        if one.token == token:
            one.authenticated = one.authenticated or params.get("AuthenticateOnUnsubscribe") == "true"
            one.confirmed = True
            return {"SubscriptionArn": one.arn}
    raise _invalid_parameter("Token")


@operation("sns", "Unsubscribe", "SubscriptionArn")
def unsubscribe(context: Context, params: Params) -> dict[str, Any]:
    """Delete a subscription. An unknown one is not an error."""
    arn = params["SubscriptionArn"]
    _check_arn("SubscriptionArn", arn)
    if len(arn.split(":")) < 7:
        raise _invalid_parameter("SubscriptionId")
    found: Subscription | None = context.table("subscriptions").get(arn)
    if found is None:
        return {}
    if not found.confirmed:
        # Documented: a pending subscription cannot be deleted; text from memory.
        raise _invalid_parameter("This subscription is pending confirmation")
    del context.table("subscriptions")[arn]
    topic: Topic | None = context.table("topics").get(found.topic_arn)
    if topic is not None:
        topic.deleted += 1
    return {}


def _listed(subscriptions: list[Subscription]) -> dict[str, dict[str, str]]:
    return {
        one.arn: {
            "SubscriptionArn": one.arn if one.confirmed else LISTED_AS_PENDING,
            "Owner": one.owner,
            "Protocol": one.protocol,
            "Endpoint": one.endpoint,
            "TopicArn": one.topic_arn,
        }
        for one in subscriptions
    }


@operation("sns", "ListSubscriptions", "NextToken")
def list_subscriptions(context: Context, params: Params) -> dict[str, Any]:
    """List the subscriptions of the region, 100 per page."""
    return _page(params, "Subscriptions", _listed(_subscriptions(context)))


@operation("sns", "ListSubscriptionsByTopic", "TopicArn NextToken")
def list_subscriptions_by_topic(context: Context, params: Params) -> dict[str, Any]:
    """List the subscriptions of a topic, 100 per page."""
    topic = find_topic(context, params["TopicArn"])
    return _page(params, "Subscriptions", _listed(_subscriptions(context, topic.arn)))


@operation("sns", "GetSubscriptionAttributes", "SubscriptionArn")
def get_subscription_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return the attributes of a subscription."""
    one = _find_subscription(context, params["SubscriptionArn"])
    return {
        "Attributes": {
            "SubscriptionArn": one.arn,
            "TopicArn": one.topic_arn,
            "Owner": one.owner,
            "Protocol": one.protocol,
            "Endpoint": one.endpoint,
            "SubscriptionPrincipal": one.principal,
            "ConfirmationWasAuthenticated": str(one.authenticated).lower(),
            "PendingConfirmation": str(not one.confirmed).lower(),
            "RawMessageDelivery": str(one.raw).lower(),
        }
    }
