"""The checked parameters of a publish, for its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
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


def confirmation(account: str, keys: object) -> str:
    """Return the value of confirm_public for a public AMI; one with `keys` baked in needs the second word."""
    return f"{account}+keys" if keys else account


def check_public(public: bool, confirmed: str, account: str = "", keys: str = "") -> None:
    """Check that both parameters of a public AMI are given, and that `confirmed` is the account.

    For an image with baked-in `keys`, it must be the account and ``+keys``: the owners of these keys can log
    in to every machine that is started from the AMI.
    """
    if public and not confirmed:
        raise errors.ParameterError(
            "Making an AMI public needs two parameters.",
            why="public is set, but confirm_public is not.",
            fix="Add --confirm-public ACCOUNT with your account ID (ACCOUNT+keys if the image has SSH keys), "
            "or leave public out.",
        )
    if confirmed and not public:
        raise errors.ParameterError(
            "Making an AMI public needs two parameters.",
            why="confirm_public is set, but public is not.",
            fix="Add --public, or leave confirm_public out.",
        )
    if public and account and confirmed.removesuffix("+keys") != account:
        raise errors.ParameterError(
            "confirm_public is not this account.",
            why=f"confirm_public is {confirmed!r}, but these are the credentials of {account}.",
            fix="Use the credentials of the account that you want to publish in.",
        )
    if public and account and keys and confirmed != confirmation(account, keys):
        raise errors.ParameterError(
            "A public AMI with SSH keys in it needs a second confirmation.",
            why=f"These keys can log in as administrator to every machine that is started from it:\n{keys}\n",
            fix=f"Add --confirm-public {confirmation(account, keys)} if you want that, or build the image "
            "without them.",
        )
