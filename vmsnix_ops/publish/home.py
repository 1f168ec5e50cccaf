"""The checked home region and account of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops.aws import regions
from vmsnix_ops.aws.checks import raise_for_failure
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.publish.preflight import checks_in_aws
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    import boto3
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.checks import CheckResult
    from vmsnix_ops.aws.session import Options

ONE_OF_MANY: Options = {"attempts": 4, "read_seconds": 15}
"""Options for clients of many regions: an unreachable region blocks for one minute instead of six."""


@dataclass(frozen=True, slots=True)
class HomeRegion:
    """A region and account that were checked. Make it with `check_home`; none of its `checks` failed."""

    region: str
    account: str
    checks: tuple[CheckResult, ...]
    settings: Settings = field(repr=False)
    session: boto3.Session = field(repr=False)

    @property
    def ec2(self) -> EC2Client:
        """Client of the region."""
        return client(self.session, "ec2", self.region)

    @property
    def ssm(self) -> SSMClient:
        """Client of the region."""
        return client(self.session, "ssm", self.region)


def check_home(
    region: str = "", *, settings: Settings | None = None, session: boto3.Session | None = None
) -> HomeRegion:
    """Check credentials, account and region; by default the region of the settings, else of AWS.

    Without a region a ParameterError; an AwsError for missing credentials, an account that is not allowed, or
    a region that is not enabled.
    """
    settings, session = settings or load(), session or default_session()
    region = regions.home_region(session, region, settings.region)
    checks = checks_in_aws(session, region=region, allowed_accounts=settings.allowed_accounts)
    raise_for_failure(checks)
    number = next(str(check.facts["account"]) for check in checks if "account" in check.facts)
    return HomeRegion(region, number, tuple(checks), settings, session)
