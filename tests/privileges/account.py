"""An account that enforces policies, with users that have only the actions that a test grants."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import publish
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.progress import silent
from vmsnix_ops.sandbox import Access, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import boto3

REGION, BUCKET = "us-east-1", "vmsnix-images"
DIRECT_SPEED = 300


@dataclass
class Account:
    """A sandbox that enforces IAM, with bucket and role, and an image.

    Attributes
    ----------
    aws
        The sandbox; its own clients may do everything.
    image
        A small image.
    users
        Sessions of ``user-0`` and so on, which may do nothing yet; their clients are shared by tests.
    """

    aws: Sandbox
    image: Path
    users: list[boto3.Session]
    number: int = 0

    def scope(self, regions: tuple[str, ...] = (REGION,)) -> policies.PolicyScope:
        """Return the scope of the policies."""
        return policies.PolicyScope(account=self.aws.account, regions=regions, bucket=BUCKET)

    def session(
        self, actions: Iterable[str], *, regions: tuple[str, ...] = (REGION,), new: bool = False
    ) -> boto3.Session:
        """Return a session of another user, whose policy has only these actions in these regions.

        A session with event handlers must be new: its existing clients would not call them.
        """
        number, self.number = self.number, self.number + 1
        session = new_user(self.aws, number) if new or number >= len(self.users) else self.users[number]
        document = json.dumps(policies.policy_document(actions, self.scope(regions)))
        iam = self.aws.client("iam")
        iam.put_user_policy(UserName=f"user-{number}", PolicyName="only", PolicyDocument=document)
        return session

    def plan(self, actions: Iterable[str], **changes: Any) -> publish.PublishPlan:
        """Return a plan of that user to publish the image; keywords change its parameters."""
        request = {
            "image": str(self.image),
            "region": REGION,
            "bucket": BUCKET,
            "progress": silent(),
            "confirm_public": self.aws.account if changes.get("public") else "",
            **changes,
        }
        if changes.get("via") == "direct":
            # A snapshot expires an hour after its last write, so a slow machine needs a slower clock.
            self.aws.clock.speed = DIRECT_SPEED
        return publish.plan(session=self.session(actions), **request)

    def snapshot(self) -> str:
        """Create a snapshot without vmsnix's tags, and return its ID."""
        ec2 = self.aws.client("ec2")
        volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3")["VolumeId"]
        self.aws.clock.advance(3600)
        made: str = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        self.aws.clock.advance(3600)
        return made


def new_user(aws: Sandbox, number: int) -> boto3.Session:
    """Create the user of this number if it does not exist, and return a session with a new access key."""
    iam, name = aws.client("iam"), f"user-{number}"
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], aws.account).session(REGION)


def without(actions: Iterable[str], action: str) -> tuple[str, ...]:
    """Return the actions without one of them."""
    return tuple(other for other in actions if other != action)
