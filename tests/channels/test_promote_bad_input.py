"""Parameters that a promotion refuses before any change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, KEY, OTHER, WEST, changes, plan
from vmsnix_ops import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox import Sandbox


def another_accounts_ami(aws: Sandbox) -> str:
    ec2 = aws.client("ec2")
    ami = make_ami(aws, version="theirs")
    table = aws.state.tables.table(aws.account, HOME, "images")
    image = table.pop(ami)
    image.owner = OTHER
    image.permissions.append({"UserId": aws.account})
    aws.state.tables.table(OTHER, HOME, "images")[ami] = image
    assert ec2.describe_images(ImageIds=[ami])["Images"]
    return ami


def half_deleted(aws: Sandbox) -> str:
    ami = make_ami(aws, version="half")
    aws.state.tables.table(aws.account, HOME, "snapshots").clear()
    return ami


def disabled(aws: Sandbox) -> str:
    ami = make_ami(aws, version="disabled")
    aws.client("ec2").disable_image(ImageId=ami)
    return ami


def deprecated(aws: Sandbox) -> str:
    ami = make_ami(aws, version="deprecated")
    moment = datetime.now(UTC) + timedelta(minutes=2)
    aws.client("ec2").enable_image_deprecation(ImageId=ami, DeprecateAt=moment)
    image = aws.state.tables.table(aws.account, HOME, "images")[ami]
    image.deprecate_at = moment - timedelta(hours=1)
    return ami


def not_ours(aws: Sandbox) -> str:
    ami = make_ami(aws, version="foreign")
    aws.client("ec2").delete_tags(Resources=[ami], Tags=[{"Key": "vmsnix:digest"}])
    return ami


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (another_accounts_ami, "belongs to the account 210987654321"),
        (half_deleted, "is incomplete"),
        (disabled, "is disabled"),
        (deprecated, "has been deprecated since"),
        (not_ours, "was not published by vmsnix"),
        (lambda _aws: "ami-0123456789abcdef0", "No AMI"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("<>"),
)
def test_an_unusable_ami_is_refused(aws: Sandbox, make: Callable[[Sandbox], str], text: str) -> None:
    before = len(changes(aws))
    wrong = make(aws)
    made = len(changes(aws)) - before
    with pytest.raises(errors.RegistrationError, match=text):
        plan(ami=wrong, image="", channel="stable")
    assert len(changes(aws)) == before + made


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"channel": "stabel"}, "Did you mean 'stable'"),
        ({"channel": "stable", "regions": ["eu-west-7"]}, "is not an AWS region"),
        ({"share_with": ["12"]}, "is not an account"),
        ({"share_with": ["public"]}, "public is not an account to share with"),
        ({"share_with": [OTHER], "revoke_from": [OTHER]}, "in both share_with and revoke_from"),
        ({"regions": [EUROPE], "kms_keys": {HOME: KEY}}, "AMI's own region"),
        ({"regions": [WEST], "kms_keys": {WEST: KEY}}, "in another region"),
        ({"deprecate_days": 5000}, "too far away"),
        ({"channel": "stable", "topic": "images"}, "is not an ARN of an SNS topic"),
        ({}, "Nothing to do"),
        (
            {"image": "other-node", "ami": "altf4llc-ecs-node-26.11", "channel": "stable"},
            "belongs to the image",
        ),
        ({"image": "", "channel": "stable"}, "No AMI given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_parameters_are_refused_before_any_read(
    aws: Sandbox, ami: str, wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises((errors.UsageError, errors.RegionError), match=text):
        plan(**wrong)
