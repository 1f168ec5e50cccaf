"""Who we are, and whether what we need is there: the checks before a byte moves.

A check never raises. It says what it found, and carries the error that the job would have ended with, so that
the preflight runbook shows all of them and a publish stops at the first that failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets
from vmsnix_ops.aws.session import Client, calling, client, code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import boto3
    import pandas as pd

NEW_ROLE_SECONDS = 120  # a role this young may not be known to EC2 yet


@dataclass(frozen=True, slots=True)
class Identity:
    """Who AWS says that we are."""

    account: str
    arn: str

    @property
    def partition(self) -> str:
        """``aws``, ``aws-cn`` or ``aws-us-gov``."""
        return self.arn.split(":")[1]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What was checked.
    outcome
        ``"pass"``, ``"warn"`` (it may work; look at it) or ``"fail"`` (it will not work).
    evidence
        What was found.
    cure
        What to do; empty when it passed.
    error
        What a job would end with.
    facts
        What later steps want to know, such as the age of a role.
    """

    name: str
    outcome: Literal["pass", "warn", "fail"]
    evidence: str
    cure: str = ""
    error: errors.VmsnixError | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def identity(session: boto3.Session, region: str | None = None) -> Identity:
    """Return account and ARN of the caller (sts:GetCallerIdentity, which needs no permission)."""
    with calling("find out whose credentials these are"):
        answer = client(session, "sts", region).get_caller_identity()
    return Identity(str(answer["Account"]), str(answer["Arn"]))


def preflight(
    session: boto3.Session,
    *,
    region: str,
    bucket: str = "",
    role_name: str = "",
    allowed_accounts: Iterable[str] = (),
) -> list[Check]:
    """Check credentials, account, region, bucket and service role.

    Nothing is changed. Later checks are left out when the credentials or the region already fail, since they
    could only repeat it.

    Parameters
    ----------
    session
        Whose credentials are checked.
    region
        Where the AMI shall be.
    bucket
        Bucket of the upload; empty to leave the check out.
    role_name
        Service role of VM Import; empty to leave the check out.
    allowed_accounts
        When given, any other account fails.
    """
    checks = [_checked("region name", lambda: _region_name(session, region))]
    if checks[-1].outcome != "fail":
        checks.append(_checked("credentials", lambda: _credentials(session, region)))
    if checks[-1].outcome != "fail":
        allowed = tuple(allowed_accounts)
        account = checks[-1].facts["account"]
        checks.append(_checked("account", lambda: _account(account, allowed)))
        checks.append(_checked("region", lambda: _region(client(session, "ec2", region), region)))
        if bucket:
            s3 = client(session, "s3", region)
            checks.append(_checked("bucket", lambda: _bucket(s3, bucket, region)))
        if role_name:
            iam = client(session, "iam", region)
            checks.append(_checked("vmimport role", lambda: _role(iam, role_name, bucket)))
    return checks


def frame(checks: Iterable[Check]) -> pd.DataFrame:
    """Return checks as a table: ``check``, ``outcome``, ``evidence``, ``cure``."""
    import pandas as pd

    rows = [(check.name, check.outcome, check.evidence, check.cure) for check in checks]
    return pd.DataFrame(rows, columns=["check", "outcome", "evidence", "cure"])


def require(checks: Iterable[Check]) -> None:
    """Raise the error of the first check that failed."""
    for check in checks:
        if check.outcome == "fail":
            raise check.error or errors.VmsnixError(check.evidence, cure=check.cure)


def _checked(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except errors.VmsnixError as error:
        return Check(name, "fail", f"{error.what} {error.why}".strip(), error.cure, error)


def _region_name(session: boto3.Session, region: str) -> Check:
    known = {r for p in session.get_available_partitions() for r in session.get_available_regions("ec2", p)}
    if region in known:
        return Check("region name", "pass", region)
    raise errors.RegionError(
        f"There is no AWS region {region!r}.",
        why=errors.nearest(region, known) or "botocore's list of regions does not have it.",
        cure="Check the name; if the region is brand new, update botocore.",
    )


def _credentials(session: boto3.Session, region: str) -> Check:
    who = identity(session, region)
    return Check("credentials", "pass", who.arn, facts={"account": who.account, "arn": who.arn})


def _account(account: str, allowed: tuple[str, ...]) -> Check:
    if not allowed:
        return Check("account", "pass", f"{account} (no allowed_accounts set: any account will do)")
    if account in allowed:
        return Check("account", "pass", f"{account} is allowed")
    raise errors.CredentialsError(
        f"The account {account} is not one of those that may be used here.",
        why=f"allowed_accounts has {', '.join(allowed)}.",
        cure="Use the credentials of one of these accounts, or change allowed_accounts in vmsnix.toml.",
    )


def _region(ec2: Client, region: str) -> Check:
    try:
        with calling(f"look at the region {region}"):
            answer = ec2.describe_regions(RegionNames=[region], AllRegions=True)
    except errors.AwsError as error:
        if error.code in ("AuthFailure", "InvalidParameterValue"):
            # A region that the account has not opted into refuses its credentials altogether.
            raise _not_enabled(region, error.why) from error
        if isinstance(error, errors.AccessDeniedError):
            return Check(
                "region", "warn", f"{region}: {error.why}", "Allow ec2:DescribeRegions to check this."
            )
        raise
    status = answer["Regions"][0].get("OptInStatus", "opt-in-not-required")
    if status == "not-opted-in":
        raise _not_enabled(region, f"Its status is {status}.")
    return Check("region", "pass", f"{region}: {status}")


def _not_enabled(region: str, why: str) -> errors.RegionError:
    return errors.RegionError(
        f"The region {region} is not enabled for this account.",
        why=why,
        cure=f"Enable it (aws account enable-region --region-name {region}), or choose another.",
    )


def _bucket(s3: Client, bucket: str, region: str) -> Check:
    try:
        with calling(f"look at the bucket {bucket}"):
            answer = s3.head_bucket(Bucket=bucket)
    except errors.AwsError as error:
        if error.code in ("404", "NoSuchBucket"):
            raise buckets.missing(bucket) from error
        if error.code in ("403", "AccessDenied"):
            raise errors.BucketError(
                f"The bucket {bucket} may not be used.",
                why="It belongs to another account, or the caller lacks s3:ListBucket on it.",
                cure="Name a bucket of this account, or allow s3:ListBucket, s3:GetObject and s3:PutObject "
                "on it.",
                code=error.code,
                operation=error.operation,
                request_id=error.request_id,
            ) from error
        if error.code in ("301", "PermanentRedirect"):
            raise _elsewhere(bucket, "another region", region) from error
        raise
    where = answer.get("BucketRegion") or answer["ResponseMetadata"]["HTTPHeaders"].get(
        "x-amz-bucket-region", region
    )
    if where != region:
        raise _elsewhere(bucket, where, region)
    return Check("bucket", "pass", f"{bucket} in {where}")


def _elsewhere(bucket: str, where: str, region: str) -> errors.BucketError:
    return errors.BucketError(
        f"The bucket {bucket} is in {where}, not in {region}.",
        why="VM Import reads only from a bucket of its own region.",
        cure=f"Name a bucket in {region}, or publish to {where}.",
    )


def _role(iam: Client, role_name: str, bucket: str) -> Check:
    try:
        with calling(f"look at the role {role_name}"):
            role = iam.get_role(RoleName=role_name)["Role"]
    except errors.AccessDeniedError as error:
        return Check("vmimport role", "warn", error.why, "Allow iam:GetRole to check this before an upload.")
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        raise errors.RoleError(
            f"The role {role_name} does not exist.",
            why="VM Import reads the uploaded image through a service role of your account.",
            cure="Create it as docs/how-to/first-publish.md shows, or name another with the parameter "
            "role_name.",
            code="NoSuchEntity",
            operation=error.operation,
            request_id=error.request_id,
        ) from error
    age = (datetime.now(UTC) - role["CreateDate"]).total_seconds()
    facts = {"age_seconds": age, "arn": role["Arn"], "new": age < NEW_ROLE_SECONDS}
    if not _trusts_vm_import(role["AssumeRolePolicyDocument"]):
        raise errors.RoleError(
            f"The role {role_name} does not trust VM Import.",
            why="Its trust policy does not let vmie.amazonaws.com assume it.",
            cure="Allow the service vmie.amazonaws.com sts:AssumeRole, with the condition sts:Externalid = "
            '"vmimport".',
        )
    reads = f", for {bucket}" if bucket else ""
    return Check("vmimport role", "pass", f"{role['Arn']}{reads}", facts=facts)


def _trusts_vm_import(document: Any) -> bool:
    policy = json.loads(document) if isinstance(document, str) else document
    statements = policy.get("Statement", [])
    for statement in [statements] if isinstance(statements, dict) else statements:
        services = statement.get("Principal", {})
        services = services.get("Service", []) if isinstance(services, dict) else []
        services = [services] if isinstance(services, str) else services
        if statement.get("Effect") == "Allow" and any(s.startswith("vmie.amazonaws.com") for s in services):
            return True
    return False
