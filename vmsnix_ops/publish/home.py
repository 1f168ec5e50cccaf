"""Where a job on a published AMI begins: the region it is in, and the account whose credentials are used."""

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

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.session import Options

ONE_OF_MANY: Options = {"attempts": 4, "read_seconds": 15}
"""Options for clients of one region of many, which may block for one minute and not for six."""


@dataclass(frozen=True, slots=True)
class Home:
    """A region whose credentials, account and name were checked. Make it with `checked_home`.

    Attributes
    ----------
    region, account
        Where, and whose it is.
    checks
        What was checked; none of them failed.
    """

    region: str
    account: str
    checks: tuple[Check, ...]
    settings: Settings = field(repr=False)
    session: boto3.Session = field(repr=False)

    @property
    def ec2(self) -> EC2Client:
        """A client of the region."""
        return client(self.session, "ec2", self.region)

    @property
    def ssm(self) -> SSMClient:
        """A client of the region."""
        return client(self.session, "ssm", self.region)


def checked_home(
    region: str = "", *, settings: Settings | None = None, session: boto3.Session | None = None
) -> Home:
    """Check credentials, account and region before anything is asked that needs them.

    Parameters
    ----------
    region
        By default the settings' region, else AWS's own.
    settings, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        No region is known.
    vmsnix_ops.errors.AwsError
        There are no credentials, they are of an account that may not be used, or the region is not enabled.
    """
    settings, session = settings or load(), session or default_session()
    region = regions.home_region(session, region, settings.region)
    checks = checks_in_aws(session, region=region, allowed_accounts=settings.allowed_accounts)
    raise_for_failure(checks)
    number = next(str(check.facts["account"]) for check in checks if "account" in check.facts)
    return Home(region, number, tuple(checks), settings, session)
