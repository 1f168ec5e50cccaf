"""Who AWS says that we are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from vmsnix_ops.aws.session import calling, client

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
        """``aws``, ``aws-cn`` or ``aws-us-gov``."""
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


def identity(session: boto3.Session, region: str | None = None) -> Identity:
    """Return account and ARN of the caller (sts:GetCallerIdentity, which needs no permission)."""
    with calling("find out whose credentials these are"):
        answer = client(session, "sts", region).get_caller_identity()
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    return Identity(str(answer["Account"]), str(answer["Arn"]), skew)
