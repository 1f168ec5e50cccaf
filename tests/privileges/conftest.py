"""One sandbox for all tests of a file; each test starts with the same account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.privileges.account import BUCKET, REGION, Account, new_user
from tests.sandbox.clients import allow_public_images
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import boto3

SPEED = 5000


@pytest.fixture(scope="module")
def enforcing() -> Iterator[tuple[Sandbox, list[boto3.Session], bytes]]:
    """A sandbox that enforces IAM, with bucket, role and users; the users' sessions; its saved state."""
    with sandbox(speed=SPEED, enforce_iam=True) as aws:
        aws.prepare(bucket=BUCKET, region=REGION)
        allow_public_images(aws, REGION, "eu-west-1")
        users = [new_user(aws, number) for number in range(4)]
        yield aws, users, aws.save_tables()


@pytest.fixture
def account(
    enforcing: tuple[Sandbox, list[boto3.Session], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Account:
    """An account whose users have no permissions yet; the environment variables are those of its operator."""
    aws, users, memory = enforcing
    aws.restore_tables(memory)
    aws.clock.speed = SPEED
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return Account(aws, make_sample_image(tmp_path / "image"), users)
