"""EC2's own role for spot instances, which the first one of an account makes.

Source: "Service-linked role for Spot Instance requests" in the EC2 User Guide: whoever asks for it needs
``iam:CreateServiceLinkedRole``; the code of the refusal is in "Error codes for the Amazon EC2 API".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.credentials import unique_id
from vmsnix_ops.sandbox.iam.state import Role

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params

SERVICE, NAME = "spot.amazonaws.com", "AWSServiceRoleForEC2Spot"
PATH = f"/aws-service-role/{SERVICE}/"
ACTION = "iam:CreateServiceLinkedRole"


def arn(context: Context) -> str:
    """Return the role's ARN in the account."""
    return f"arn:{context.partition}:iam::{context.account}:role{PATH}{NAME}"


def lacks(context: Context, params: Params) -> bool:
    """Tell whether a launch asks for a spot instance in an account without the role."""
    market = (params.get("InstanceMarketOptions") or {}).get("MarketType")
    return market == "spot" and NAME not in context.table("roles", region="")


def make(context: Context) -> None:
    """Make the role."""
    trust = {"Effect": "Allow", "Principal": {"Service": SERVICE}, "Action": "sts:AssumeRole"}
    created = context.clock.now().replace(microsecond=0)
    context.table("roles", region="")[NAME] = Role(
        name=NAME,
        arn=arn(context),
        role_id=unique_id("AROA", arn(context), created.isoformat()),
        path=PATH,
        created=created,
        trust_policy=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )
