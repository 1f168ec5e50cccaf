"""The checked parameters of a publish, for its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.aws.session import client

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    from types_boto3_ec2.client import EC2Client
    from types_boto3_s3.client import S3Client

    from vmsnix_ops.aws.checks import CheckResult
    from vmsnix_ops.aws.ebs_direct.reading import Verify
    from vmsnix_ops.publish.journal import StepJournal
    from vmsnix_ops.settings import Settings

Via = Literal["import", "direct"]


@dataclass(frozen=True, slots=True)
class PublishParameters:
    """The data of a `vmsnix_ops.publish.PublishPlan`: mostly the parameters of `vmsnix_ops.publish.plan`."""

    image: str
    region: str
    account: str
    bucket: str
    key_prefix: str  # first part of the keys of uploaded objects
    prefix: str
    via: Via
    incremental: bool
    verify: Verify
    boot_test: bool
    boot_expect: str
    system: str
    boot_mode: str
    root_device: str
    role_name: str
    kms_key: str
    public: bool
    tags: Mapping[str, str]
    dry_run: bool
    expect_plan: str
    checks: tuple[CheckResult, ...]  # the results of the preflight checks
    settings: Settings = field(repr=False, compare=False)
    session: boto3.Session = field(repr=False, compare=False)
    journal: StepJournal = field(repr=False, compare=False)

    @property
    def run_id(self) -> str:
        """ID of the run."""
        return self.journal.run.run_id

    @property
    def ec2(self) -> EC2Client:
        """A client of the plan's region."""
        return client(self.session, "ec2", self.region)

    @property
    def s3(self) -> S3Client:
        """A client of the plan's region."""
        return client(self.session, "s3", self.region)
