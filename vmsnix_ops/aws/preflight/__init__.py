"""Whether what we need is there: the checks before a byte moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.aws import images, keys
from vmsnix_ops.aws.checks import Check, checked
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.permissions import needs_of
from vmsnix_ops.aws.preflight import account, limits, rights
from vmsnix_ops.aws.preflight import bucket as preflight_bucket
from vmsnix_ops.aws.preflight import role as preflight_role
from vmsnix_ops.aws.session import client

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3

    from vmsnix_ops.aws.identity import Identity


def preflight(
    session: boto3.Session,
    *,
    region: str,
    bucket: str = "",
    role_name: str = "",
    allowed_accounts: Iterable[str] = (),
    key_prefix: str = "vmsnix/",
    via: str = "import",
    public: bool = False,
    kms_key: str = "",
    thorough: bool = False,
) -> list[Check]:
    """Check credentials, account, region, bucket and service role; `thorough` looks at much more.

    Nothing is changed. Later checks are left out when the credentials or the region already fail, since they
    could only repeat it. A check that the caller may not make is a warning.

    Parameters
    ----------
    session
        Whose credentials are checked.
    region
        Where the AMI shall be.
    bucket
        Bucket of the upload; empty to leave its checks out.
    role_name
        Service role of VM Import; empty to leave its checks out.
    allowed_accounts
        When given, any other account fails.
    key_prefix
        First part of the keys in the bucket.
    via
        ``"import"``, or ``"direct"``, which needs neither bucket nor role.
    public
        Whether the AMI shall be public.
    kms_key
        KMS key that is to encrypt upload, snapshot and AMI; empty for the defaults.
    thorough
        Look also at what does not stop a publish, and at every right that the caller needs.
    """
    named = checked("region name", lambda: account.region_name(region))
    if named.outcome == "fail":
        return [named]
    known = checked("credentials", lambda: account.credentials(session, region))
    checks = [named, known]
    if known.outcome == "fail":
        return checks
    who: Identity = known.facts["identity"]
    allowed = tuple(allowed_accounts)
    ec2, iam = client(session, "ec2", region), client(session, "iam", region)
    checks += [
        checked("clock", lambda: account.clock(who)),
        checked("account", lambda: account.account(who.account, allowed)),
        checked("region", lambda: account.region(ec2, region)),
    ]
    place = policies.Place(
        account=who.account,
        regions=(region,),
        bucket=bucket or "*",
        key_prefix=key_prefix,
        role_name=role_name or "vmimport",
        partition=who.partition,
    )
    key = keys.arn(kms_key, region=region, who=who)
    if via == "import" and bucket:
        checks += _bucket(session, place, thorough=thorough)
    if via == "import" and role_name:
        s3 = client(session, "s3", region)
        role = checked("vmimport role", lambda: preflight_role.role(iam, role_name))
        checks.append(role)
        if role.outcome != "fail":
            arn = str(role.facts.get("arn") or place.role_arn)
            if bucket:
                checks.append(
                    checked(
                        "vmimport role's rights",
                        lambda: preflight_role.role_rights(iam, s3, arn, bucket, key_prefix),
                    )
                )
            if key:
                checks.append(
                    checked("vmimport role's key", lambda: preflight_role.key_rights(iam, arn, key, bucket))
                )
            elif bucket and thorough:
                checks.append(
                    checked("bucket's key", lambda: preflight_role.bucket_key_rights(iam, s3, arn, bucket))
                )
            checks.append(checked("pass role", lambda: preflight_role.pass_role(iam, who, arn)))
    if public or thorough:
        checks.append(checked("public AMIs", lambda: limits.public_sharing(ec2, public=public)))
    if thorough:
        quotas = client(session, "service-quotas", region)
        checks += [
            checked("quotas", lambda: limits.quotas(ec2, quotas, public=public)),
            checked("pending snapshots", lambda: limits.pending_snapshots(ec2)),
            *_rights(session, who, place, via=via, public=public),
        ]
    return checks


def _bucket(session: boto3.Session, place: policies.Place, *, thorough: bool) -> list[Check]:
    region, name = place.regions[0], place.bucket
    s3 = client(session, "s3", region)
    checks = [checked("bucket", lambda: preflight_bucket.bucket(s3, name, region, place.account))]
    if thorough and checks[-1].outcome != "fail":
        checks += [
            checked("bucket private", lambda: preflight_bucket.private(s3, name)),
            checked("bucket encrypted", lambda: preflight_bucket.encrypted(s3, name)),
            checked("bucket TLS only", lambda: preflight_bucket.tls_only(s3, name)),
            checked("bucket leftovers", lambda: preflight_bucket.lifecycle(s3, name, place.key_prefix)),
            checked("bucket versions", lambda: preflight_bucket.versions(s3, name, place.key_prefix)),
        ]
    return checks


def _rights(
    session: boto3.Session, who: Identity, place: policies.Place, *, via: str, public: bool
) -> list[Check]:
    """Check the caller's rights for the way that is asked for; for the other one, a lack is no failure."""
    iam = client(session, "iam", place.regions[0])

    def check(name: str, actions: Iterable[str], printed: str) -> Check:
        return checked(
            name,
            lambda: rights.rights(iam, who, place, name=name, actions=actions, printed=printed),
        )

    may_share = public and via == "direct"
    asked = policies.publisher_actions(via=via, public=may_share)
    printed = f"vmsnix iam-policy publisher --via {via}{' --public' if may_share else ''}"
    checks = [check(f"rights to publish via {via}", asked, printed)]
    if public and not may_share:  # with the publisher's own policy, nobody may
        name, sharing = "rights to make AMIs public", needs_of(images.share_with_everybody)
        checks.append(check(name, sharing, "vmsnix iam-policy promoter --public"))
    if via == "direct":
        return checks
    direct = tuple(action for action in policies.publisher_actions(via="direct") if action.startswith("ebs:"))
    name = "EBS direct"
    lacking = check(name, direct, "vmsnix iam-policy publisher --via direct")
    if lacking.outcome == "fail":
        lacking = Check(name, "warn", lacking.evidence, "Only via=direct needs it. " + lacking.cure)
    return [*checks, lacking]
