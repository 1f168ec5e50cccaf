"""Who AWS says that we are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.region_names import partition_of

if TYPE_CHECKING:
    import boto3


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller.

    Attributes
    ----------
    account, arn
        As AWS says it.
    skew_seconds
        How far this machine's clock was ahead of AWS's when it answered; a whole second is within the
        precision of the answer.
    """

    account: str
    arn: str
    skew_seconds: float = 0.0

    @property
    def partition(self) -> str:
        """``aws``, ``aws-cn``, ``aws-us-gov``, ``aws-eusc``, ..."""
        return self.arn.split(":")[1]

    @property
    def is_root(self) -> bool:
        """Whether this is the account's root user, whom no policy of the account holds."""
        return self.arn.endswith(":root")

    @property
    def policy_source(self) -> str:
        """ARN of the user or role that the caller's policies hang on; a session stands for its role.

        The path of a role is not part of a session's ARN, so a role with a path is not found under this one.
        """
        return re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", self.arn)


REFUSED = frozenset({"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"})
"""What a region says to good credentials of an account that has not opted into it."""


def not_enabled(region: str, why: str) -> errors.RegionError:
    """Return the error for a region that does not accept good credentials.

    Only regions of the partition ``aws`` can be enabled; others want credentials of their own partition.
    """
    partition = partition_of(region)
    if partition != "aws":
        return errors.RegionError(
            f"The region {region} does not accept these credentials.",
            why=f"It is in the partition {partition}, whose accounts and credentials are separate. {why}",
            cure=f"Use credentials of an account in {partition}, or choose a region of your own partition.",
        )
    return errors.RegionError(
        f"The region {region} is not enabled for this account.",
        why=why,
        cure=f"Enable it (aws account enable-region --region-name {region}), or choose another.",
    )


def identity(session: boto3.Session, region: str | None = None) -> Identity:
    """Return account and ARN of the caller (sts:GetCallerIdentity, which needs no permission).

    Raises
    ------
    vmsnix_ops.errors.RegionError
        The region is not enabled for the account: it takes good credentials for unknown ones.
    vmsnix_ops.errors.CredentialsError
        The credentials are no good.
    """
    try:
        return _asked(session, region)
    except errors.CredentialsError as error:
        region = region or session.region_name
        enabled = _always_enabled(region)
        if error.code not in REFUSED or region in (None, enabled):
            raise
        try:
            _asked(session, enabled)
        except errors.AwsError:
            raise error from None
        raise not_enabled(region, error.why) from error


_ALWAYS_ENABLED = {
    "aws": "us-east-1",
    "aws-cn": "cn-north-1",
    "aws-eusc": "eusc-de-east-1",
    "aws-us-gov": "us-gov-west-1",
}


def _always_enabled(region: str | None) -> str | None:
    """Return a region of the same partition that every account has; the region itself where none is known.

    Credentials of one partition are never sent to another.
    """
    return _ALWAYS_ENABLED.get(partition_of(region), region) if region else "us-east-1"


def _asked(session: boto3.Session, region: str | None) -> Identity:
    with calling("find out whose credentials these are"):
        answer = client(session, "sts", region).get_caller_identity()
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    return Identity(str(answer["Account"]), str(answer["Arn"]), skew)
