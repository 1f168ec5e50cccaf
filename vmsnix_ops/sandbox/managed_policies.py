"""Some managed policies of AWS. The sandbox does not emulate the others, about 1,400.

Source: the AWS Managed Policy Reference; identifiers and dates as ``aws iam list-policies`` shows them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


def _allow(*actions: str, **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": "*", **more}


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class ManagedPolicy:
    """A managed policy of AWS."""

    name: str
    policy_id: str
    default_version: str
    created: datetime
    updated: datetime  # creation time of the default version
    description: str
    statements: tuple[dict[str, Any], ...]
    path: str = "/"
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> str:
        """The JSON of the default version."""
        return json.dumps({"Version": "2012-10-17", "Statement": list(self.statements)})


LINKED_ROLES = [
    f"{service}.amazonaws.com"
    for service in (
        "autoscaling",
        "ec2scheduled",
        "elasticloadbalancing",
        "spot",
        "spotfleet",
        "transitgateway",
    )
]
MANAGED_POLICIES = {
    policy.name: policy
    for policy in (
        ManagedPolicy(
            "AdministratorAccess",
            "ANPAIWMBCKSKIEE64ZLYK",
            "v1",
            _utc("2015-02-06T18:39:46"),
            _utc("2015-02-06T18:39:46"),
            "Provides full access to AWS services and resources.",
            (_allow("*"),),
        ),
        ManagedPolicy(
            "AmazonEC2FullAccess",
            "ANPAI3VAJF5ZCRZ7MCQE6",
            "v5",
            _utc("2015-02-06T18:40:15"),
            _utc("2018-11-27T02:16:56"),
            "Provides full access to Amazon EC2 via the AWS Management Console.",
            (
                _allow("ec2:*"),
                _allow("elasticloadbalancing:*"),
                _allow("cloudwatch:*"),
                _allow("autoscaling:*"),
                _allow(
                    "iam:CreateServiceLinkedRole",
                    Condition={"StringEquals": {"iam:AWSServiceName": LINKED_ROLES}},
                ),
            ),
        ),
        ManagedPolicy(
            "AmazonEC2ReadOnlyAccess",
            "ANPAIGDT4SV4GSETWTBZK",
            "v5",
            _utc("2015-02-06T18:40:17"),
            _utc("2026-02-12T18:03:17"),
            "Provides read only access to Amazon EC2 via the AWS Management Console.",
            (
                _allow("ec2:Describe*", "ec2:GetSecurityGroupsForVpc"),
                _allow("elasticloadbalancing:Describe*"),
                _allow("cloudwatch:ListMetrics", "cloudwatch:GetMetricStatistics", "cloudwatch:Describe*"),
                _allow("autoscaling:Describe*"),
            ),
        ),
        ManagedPolicy(
            "AmazonS3FullAccess",
            "ANPAIFIR6V6BVTRAHWINE",
            "v2",
            _utc("2015-02-06T18:40:58"),
            _utc("2021-09-27T20:16:37"),
            "Provides full access to all buckets via the AWS Management Console.",
            (_allow("s3:*", "s3-object-lambda:*"),),
        ),
        ManagedPolicy(
            "AmazonS3ReadOnlyAccess",
            "ANPAIZTJ4DXE7G6AGAE6M",
            "v3",
            _utc("2015-02-06T18:40:59"),
            _utc("2023-08-10T21:31:39"),
            "Provides read only access to all buckets via the AWS Management Console.",
            (
                _allow(
                    "s3:Get*",
                    "s3:List*",
                    "s3:Describe*",
                    "s3-object-lambda:Get*",
                    "s3-object-lambda:List*",
                ),
            ),
        ),
        ManagedPolicy(
            "AmazonSSMReadOnlyAccess",
            "ANPAJODSKQGGJTHRYZ5FC",
            "v1",
            _utc("2015-05-29T17:44:19"),
            _utc("2015-05-29T17:44:19"),
            "Provides read only access to Amazon SSM.",
            (_allow("ssm:Describe*", "ssm:Get*", "ssm:List*"),),
        ),
    )
}
