"""The checked parameters of a publish, which its steps use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.aws.session import client

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    from types_boto3_ec2.client import EC2Client
    from types_boto3_s3.client import S3Client

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.ebs_direct.reading import Verify
    from vmsnix_ops.publish.journal import Journal
    from vmsnix_ops.settings import Settings

Via = Literal["import", "direct"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The data of a `vmsnix_ops.publish._plan.PublishPlan`.

    Attributes
    ----------
    image
        Flake attribute, ``result``, directory or file, as it was given.
    region, account
        Where the AMI will be.
    bucket, key_prefix
        Where an import uploads the image.
    prefix
        First part of the AMI's name.
    via
        ``"import"``: S3 and VM Import; ``"direct"``: straight into a snapshot.
    incremental, verify, boot_test, boot_expect
        As for `plan`.
    system, boot_mode, root_device, role_name, kms_key, public, tags
        As for `plan`.
    dry_run
        Every step only checks, and reports what it would do.
    checks
        What the preflight found.
    """

    image: str
    region: str
    account: str
    bucket: str
    key_prefix: str
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
    checks: tuple[Check, ...]
    settings: Settings = field(repr=False, compare=False)
    session: boto3.Session = field(repr=False, compare=False)
    journal: Journal = field(repr=False, compare=False)

    @property
    def run_id(self) -> str:
        """Key of this run in the tables."""
        return self.journal.run.run_id

    @property
    def ec2(self) -> EC2Client:
        """A client of the plan's region."""
        return client(self.session, "ec2", self.region)

    @property
    def s3(self) -> S3Client:
        """A client of the plan's region."""
        return client(self.session, "s3", self.region)
