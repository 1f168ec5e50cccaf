"""After a publish: sharing, deprecation, deregistration protection and channels of an AMI."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.sandbox.clients import allow_public_images
from vmsnix_ops import errors
from vmsnix_ops.aws import deprecation, images, parameters, sharing
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ORGANIZATION = "arn:aws:organizations::012345678901:organization/o-abcdefghij"
UNIT = "arn:aws:organizations::012345678901:ou/o-abcdefghij/ou-ab12-abcdefgh"


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with sandbox(speed=2000) as aws:
        yield aws


@pytest.fixture
def aws(served: Sandbox) -> Sandbox:
    served.reset()
    allow_public_images(served, "us-east-1")
    return served


@pytest.fixture
def ec2(aws: Sandbox) -> Any:
    return aws.client("ec2")


# Sharing


def test_an_audience_is_parsed_from_accounts_arns_and_public() -> None:
    found = sharing.parse_audience(
        [UNIT, "210987654321", "public", "012345678901", ORGANIZATION, "012345678901"]
    )
    assert found == sharing.Audience(("012345678901", "210987654321"), (ORGANIZATION,), (UNIT,), True)
    assert sharing.parse_audience(found.names()) == found
    assert not sharing.parse_audience([])


@pytest.mark.parametrize("name", ["12345678901", "o-abcdefghij", "all", "", "arn:aws:iam::012345678901:root"])
def test_an_audience_refuses_other_names(name: str) -> None:
    with pytest.raises(errors.ParameterError, match="is not an account"):
        sharing.parse_audience([name])


def test_sharing_and_revoking_can_be_repeated(aws: Sandbox, ec2: Any) -> None:
    ami = make_ami(aws)
    who = sharing.parse_audience(["210987654321", ORGANIZATION, UNIT])
    for _ in range(2):
        sharing.share_ami(ec2, ami, who)
    assert sharing.read_launch_permissions(ec2, ami) == who
    for _ in range(2):
        sharing.revoke_ami(ec2, ami, sharing.parse_audience([ORGANIZATION]))
    assert sharing.read_launch_permissions(ec2, ami) == sharing.parse_audience(["210987654321", UNIT])


def test_a_blocked_public_share_names_the_fix(aws: Sandbox, ec2: Any) -> None:
    ami = make_ami(aws)
    ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    with pytest.raises(errors.AwsError, match="disable-image-block-public-access"):
        sharing.share_ami(ec2, ami, sharing.parse_audience(["public"]))


def test_revoking_the_whole_audience_makes_ami_and_snapshot_private(aws: Sandbox, ec2: Any) -> None:
    ami = images.describe_ami(ec2, make_ami(aws))
    who = sharing.parse_audience(["210987654321", ORGANIZATION, "public"])
    (snapshot,) = ami.snapshot_ids
    sharing.share_ami(ec2, ami.ami_id, who)
    sharing.share_snapshot(ec2, snapshot, who.accounts)
    assert sharing.read_launch_permissions(ec2, ami.ami_id) == who
    assert sharing.read_snapshot_permissions(ec2, snapshot).accounts == who.accounts
    for _ in range(2):
        sharing.revoke_ami(ec2, ami.ami_id, who)
        sharing.revoke_snapshot(ec2, snapshot, who)
    assert not sharing.read_launch_permissions(ec2, ami.ami_id)
    assert not sharing.read_snapshot_permissions(ec2, snapshot)


# Deprecation and protection


def test_a_deprecation_date_is_set_to_the_minute_and_can_be_removed(aws: Sandbox, ec2: Any) -> None:
    ami = make_ami(aws)
    moment = datetime.now(UTC) + timedelta(days=90, seconds=17)
    deprecation.deprecate(ec2, ami, moment)
    assert images.describe_ami(ec2, ami).deprecated_at == deprecation.to_the_minute(moment)
    deprecation.undeprecate(ec2, ami)
    assert images.describe_ami(ec2, ami).deprecated_at is None


@pytest.mark.parametrize(
    ("days", "public", "text"),
    [(-1, False, "has passed"), (4000, False, "ten|too far"), (800, True, "too far")],
)
def test_a_date_that_aws_would_refuse_is_refused_first(
    aws: Sandbox, ec2: Any, days: int, public: bool, text: str
) -> None:
    ami = images.describe_ami(ec2, make_ami(aws))
    moment = datetime.now(UTC) + timedelta(days=days)
    with pytest.raises(errors.ParameterError, match=text):
        deprecation.check_deprecation_date(ami, moment, public=public)


def test_a_protected_ami_cannot_be_deregistered_until_protection_is_off(aws: Sandbox, ec2: Any) -> None:
    ami = make_ami(aws)
    deprecation.protect(ec2, ami)
    assert images.describe_ami(ec2, ami).protection == "enabled-without-cooldown"
    with pytest.raises(ec2.exceptions.ClientError, match="protection"):
        ec2.deregister_image(ImageId=ami)
    deprecation.unprotect(ec2, ami)
    assert images.describe_ami(ec2, ami).protection == "disabled"


# Channels


def set_channel(aws: Sandbox, name: str, ami: str) -> str:
    ssm, tags = aws.client("ssm"), {"vmsnix:image": "ecs-node"}
    before = parameters.ExpectedValue.of(parameters.find_parameter(ssm, name))
    return parameters.set_channel(ssm, name, ami, expected=before, description="by a test", tags=tags).outcome


def test_setting_a_channel_adds_a_value_only_if_it_contains_another_ami(aws: Sandbox) -> None:
    first, second = make_ami(aws), make_ami(aws, version="26.12")
    name = parameters.parameter_name("/vmsnix", "ecs-node", "stable")
    outcomes = [set_channel(aws, name, ami) for ami in (first, first, second, second)]
    assert outcomes == ["created", "reused", "created", "reused"]
    ssm = aws.client("ssm")
    history = parameters.read_history(ssm, name)
    assert [(one.version, one.value) for one in history] == [(1, first), (2, second)]
    assert all(one.modified_by.endswith(":user/operator") for one in history)
    found = parameters.find_parameter(ssm, name)
    assert found is not None
    assert (found.name, found.value) == ("/vmsnix/ecs-node/stable", second)


def test_a_channel_with_too_many_updates_is_set_by_a_later_attempt(aws: Sandbox) -> None:
    busy = {"op": "ssm:PutParameter", "nth": [1, 2], "do": "error", "code": "TooManyUpdates", "http": 400}
    aws.faults.add(busy)
    assert set_channel(aws, "/vmsnix/ecs-node/stable", make_ami(aws)) == "created"


def test_a_channel_cannot_be_set_to_a_missing_ami(aws: Sandbox, monkeypatch: Any) -> None:
    monkeypatch.setattr(parameters, "VISIBLE_SECONDS", 0.5)
    with pytest.raises(errors.ChannelError, match="discards the value"):
        set_channel(aws, "/vmsnix/ecs-node/stable", "ami-0123456789abcdef0")


def test_a_missing_parameter_has_no_value_and_no_history(aws: Sandbox) -> None:
    ssm = aws.client("ssm")
    assert parameters.find_parameter(ssm, "/vmsnix/ecs-node/stable") is None
    assert parameters.read_history(ssm, "/vmsnix/ecs-node/stable") == []


def test_parameters_are_listed_over_all_pages(aws: Sandbox) -> None:
    ami, ssm = make_ami(aws), aws.client("ssm")
    for number in range(21):
        ssm.put_parameter(Name=f"/vmsnix/web-{number:02}/stable", Value=ami, Type="String")
    ssm.put_parameter(Name="/other/web/stable", Value=ami, Type="String")
    found = parameters.list_parameters(ssm, "/vmsnix")
    assert [one.name for one in found] == [f"/vmsnix/web-{n:02}/stable" for n in range(21)]
