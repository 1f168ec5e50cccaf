"""Fixtures for promotion and rollback: a sandbox with an AMI, and functions that read its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami, thrifty
from tests.sandbox.clients import allow_public_images
from vmsnix_ops.aws import parameters
from vmsnix_ops.channels import overview, promote, verify
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import home
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import boto3

    from vmsnix_ops.publish.outcomes import Outcomes

HOME, WEST, EUROPE = "us-east-1", "us-west-2", "eu-west-1"
OTHER = "210987654321"
KEY = "arn:aws:kms:eu-west-1:012345678901:key/0123abcd-0123-0123-0123-0123456789ab"
READS = ("Describe", "Get", "List")


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with sandbox(speed=20000) as aws:
        yield aws


@pytest.fixture(scope="module")
def session(served: Sandbox) -> boto3.Session:
    return thrifty(served)


@pytest.fixture
def aws(served: Sandbox, session: boto3.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    served.reset()
    allow_public_images(served, HOME, WEST, EUROPE)
    for module in (home, verify, overview):
        monkeypatch.setattr(module, "default_session", lambda: session)
    monkeypatch.setattr(served, "client", lambda name, region=HOME: session.client(name, region_name=region))
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_REGION", HOME)
    monkeypatch.chdir(tmp_path)
    return served


@pytest.fixture
def ami(aws: Sandbox) -> str:
    return make_ami(aws)


def outcomes(found: Outcomes) -> dict[str, list[str]]:
    found_outcomes: dict[str, list[str]] = {}
    for row in found.rows:
        found_outcomes.setdefault(row.region, []).append(f"{row.step} {row.outcome}")
    return found_outcomes


def channel_value(aws: Sandbox, region: str, channel: str = "stable") -> str:
    found = parameters.find_parameter(aws.client("ssm", region), f"/vmsnix/ecs-node/{channel}")
    return found.value if found else ""


def plan(**changed: Any) -> promote.PromotionPlan:
    usual = {"image": "ecs-node", "dry_run": False, "progress": silent()}
    return promote.plan(**(usual | changed))


def changes(aws: Sandbox) -> list[str]:
    made = [c for c in aws.calls if c.ran and c.outcome == "ok" and not c.operation.startswith(READS)]
    return sorted(f"{call.operation} {call.region}" for call in made)


def copies(aws: Sandbox, region: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = aws.client("ec2", region).describe_images(Owners=["self"])["Images"]
    return found
