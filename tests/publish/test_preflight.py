"""The preflight: a table in which each problem has a finding and a fix."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import errors
from vmsnix_ops.aws import checks, identity, service_role
from vmsnix_ops.aws import identity as preflight_account
from vmsnix_ops.aws import quotas as limits
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.publish import preflight
from vmsnix_ops.sandbox import Access, Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REGION, BUCKET, SPEED = "us-east-1", "vmsnix-images", 1000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Sandbox, bytes]]:
    """One sandbox for all tests, with bucket and role, and the memory of that."""
    with sandbox(speed=SPEED) as aws:
        aws.prepare(bucket=BUCKET, region=REGION)
        yield aws, aws.save_tables()


@pytest.fixture
def aws(served: tuple[Sandbox, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    aws, memory = served
    aws.restore_tables(memory)
    aws.clock.speed, aws.clock.skew = SPEED, timedelta(0)
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return aws


@pytest.fixture
def run_checks(aws: Sandbox) -> Callable[..., dict[str, Any]]:
    """Run the preflight; keywords change its parameters."""

    def run(**changes: Any) -> dict[str, Any]:
        params = {"region": REGION, "bucket": BUCKET, **changes}
        return {check.name: check for check in preflight.check(**params).checks}

    return run


def test_every_check_passes_in_an_account_that_was_bootstrapped(aws: Sandbox, run_checks: Any) -> None:
    from vmsnix_ops.publish import bootstrap

    bootstrap.plan(region=REGION, bucket=BUCKET, dry_run=False).apply()
    assert {name: c.found for name, c in run_checks().items() if c.outcome == "fail"} == {}
    warned = {name for name, c in run_checks().items() if c.outcome == "warn"}
    assert warned <= {"nix", "qemu-img", "disk space"}, "only this machine may lack something"


def test_nothing_is_changed(aws: Sandbox, run_checks: Any, tmp_path: Path) -> None:
    before = len(list(aws.calls))
    run_checks(image=str(make_sample_image(tmp_path / "image")), public=True)
    called = {call.operation for call in list(aws.calls)[before:]}
    assert all(name.startswith(("Describe", "Get", "Head", "List", "Simulate")) for name in called), called


def test_the_table_has_a_finding_and_a_fix_for_each_check_that_did_not_pass(run_checks: Any) -> None:
    frame = checks.checks_frame(run_checks(role_name="no-such-role").values())
    assert list(frame.columns) == ["check", "outcome", "found", "fix"]
    troubled = frame[frame["outcome"] != "pass"]
    assert len(troubled)
    assert troubled["fix"].str.len().min() > 10


def test_an_unknown_region_omits_all_other_checks(run_checks: Any) -> None:
    checks = run_checks(region="us-esat-1")
    assert next(iter(checks)) == "region name"
    assert checks["region name"].outcome == "fail"
    assert "Did you mean" in checks["region name"].found
    assert "credentials" not in checks


def test_a_region_that_is_not_enabled_is_reported(run_checks: Any) -> None:
    # As on AWS, the region does not accept the caller's key, so no other check runs.
    check = run_checks(region="ap-east-1")["credentials"]
    assert (check.outcome, "ap-east-1 is not enabled" in check.found) == ("fail", True)
    assert "enable-region --region-name ap-east-1" in check.fix


def test_wrong_credentials(aws: Sandbox, run_checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    check = run_checks()["credentials"]
    assert check.outcome == "fail"
    assert isinstance(check.error, errors.CredentialsError)


def test_credentials_that_expire_soon(aws: Sandbox, run_checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=20)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", soon.isoformat())
    check = run_checks()["credentials"]
    assert check.outcome == "warn"
    assert "minutes" in check.found
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", (soon + timedelta(hours=5)).isoformat())
    assert run_checks()["credentials"].outcome == "pass"


def test_a_wrong_clock(aws: Sandbox, run_checks: Any) -> None:
    aws.clock.skew = timedelta(minutes=2)
    behind = run_checks()["clock"]
    assert (behind.outcome, "behind AWS" in behind.found) == ("warn", True)
    aws.clock.skew = timedelta(minutes=30)
    refused = run_checks()["credentials"]
    assert (refused.outcome, refused.fix) == ("fail", "Set this machine's clock (NTP).")
    late = preflight_account.check_clock(
        identity.CallerIdentity("012345678901", "arn:aws:iam::012345678901:root", 400.0)
    )
    assert late.outcome == "fail"


def test_another_account_than_those_allowed(run_checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "999999999999")
    assert run_checks()["account"].outcome == "fail"


def test_a_bucket_that_does_not_exist(run_checks: Any) -> None:
    assert "does not exist" in run_checks(bucket="no-such-bucket-here")["bucket"].found


def test_a_bucket_in_another_region(aws: Sandbox, run_checks: Any) -> None:
    where = {"LocationConstraint": "eu-west-1"}
    aws.client("s3", "eu-west-1").create_bucket(Bucket="far-away", CreateBucketConfiguration=where)
    assert "eu-west-1" in run_checks(bucket="far-away")["bucket"].found


def test_a_bucket_of_another_account(aws: Sandbox, run_checks: Any) -> None:
    from vmsnix_ops.sandbox.credentials import Credential, credentials_table

    known = credentials_table(aws.state.tables)
    known["AKIASOMEBODYELSE0000"] = Credential(
        "AKIASOMEBODYELSE0000", "s" * 40, "999999999999", "arn:aws:iam::999999999999:user/x", "AIDAX"
    )
    Access(aws.url, "AKIASOMEBODYELSE0000", "s" * 40, "999999999999").client("s3").create_bucket(
        Bucket="not-ours"
    )
    assert "another account" in run_checks(bucket="not-ours")["bucket"].found


def test_a_bucket_that_is_public(aws: Sandbox, run_checks: Any) -> None:
    s3 = aws.client("s3")
    s3.delete_public_access_block(Bucket=BUCKET)
    assert run_checks()["bucket private"].outcome == "warn"
    everybody = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    s3.put_bucket_policy(
        Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
    )
    check = run_checks()["bucket private"]
    assert (check.outcome, "is public" in check.found) == ("fail", True)


def test_a_bucket_without_tls_policy_or_lifecycle_is_warned_of(run_checks: Any) -> None:
    checks = run_checks()
    assert [checks[name].outcome for name in ("bucket TLS only", "bucket leftovers")] == ["warn", "warn"]
    assert "vmsnix bootstrap" in checks["bucket leftovers"].fix


# The four causes of "The service role vmimport provided does not exist or does not have sufficient ..."


def test_role_trouble_1_the_role_does_not_exist(run_checks: Any) -> None:
    check = run_checks(role_name="no-such-role")["vmimport role"]
    assert (check.outcome, "does not exist" in check.found) == ("fail", True)


def test_role_trouble_2_the_role_is_new(aws: Sandbox, run_checks: Any) -> None:
    aws.client("iam").create_role(
        RoleName="young", AssumeRolePolicyDocument=json.dumps(policies.import_role_trust_policy())
    )
    check = run_checks(role_name="young")["vmimport role"]
    assert check.facts["new"]
    assert "EC2 may not accept it yet" in check.found


def test_role_trouble_3_the_caller_may_not_pass_it(aws: Sandbox, run_checks: Any) -> None:
    allowed = [action for action in policies.publisher_actions() if action != "iam:PassRole"]
    check = run_checks(session=_user(aws, "carol", allowed))["pass role"]
    assert (check.outcome, "iam:PassRole" in check.fix) == ("fail", True)


def test_role_trouble_4_the_role_may_not_read_the_bucket(aws: Sandbox, run_checks: Any) -> None:
    iam = aws.client("iam")
    iam.delete_role_policy(RoleName="vmimport", PolicyName="vmimport")
    other = policies.import_role_policy(policies.PolicyScope(bucket="another-bucket"))
    iam.put_role_policy(RoleName="vmimport", PolicyName="vmimport", PolicyDocument=json.dumps(other))
    check = run_checks()["vmimport role's permissions"]
    assert check.outcome == "fail"
    assert "s3:GetObject" in check.found


def _reads(*resources: str, action: str = "s3:GetObject") -> dict[str, Any]:
    """Return the policy for the images of the bucket with one statement more."""
    document = policies.import_role_policy(policies.PolicyScope(bucket=BUCKET))
    more = {"Effect": "Allow", "Action": action, "Resource": list(resources)}
    return document | {"Statement": [*document["Statement"], more]} if resources else document


@pytest.mark.parametrize(
    ("document", "outcome"),
    [
        (_reads(), "pass"),
        (_reads(f"arn:aws:s3:::{BUCKET}/vmsnix/2026/*"), "pass"),
        (_reads("arn:aws:s3:::images-of-eu/vmsnix/*"), "pass"),  # the same role serves other regions
        (_reads("*", action="s3:PutObject"), "pass"),
        (_reads("*"), "warn"),
        (_reads("*", action="*"), "warn"),
        (_reads("*", action="s3:Get*"), "warn"),
        (_reads("arn:aws:s3:::*"), "warn"),
        (_reads("arn:aws:s3:::*/*", action="s3:*"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}/*"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}*"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}-*/vmsnix/*"), "warn"),
        (_reads("arn:aws:s3:::vmsnix-*/*"), "warn"),
        (_reads("arn:aws:s3:::*-images/*"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}/vmsnix*"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}/*.vhd"), "warn"),
        (_reads(f"arn:aws:s3:::{BUCKET}/*/secret"), "warn"),
        (_reads("arn:aws:s3:::*/vmsnix/*"), "warn"),
    ],
)
@pytest.mark.variants(quick=6, seconds=1)
def test_a_role_that_reads_more_than_the_images_is_warned_of(
    aws: Sandbox, run_checks: Any, document: dict[str, Any], outcome: str
) -> None:
    iam = aws.client("iam")
    iam.put_role_policy(RoleName="vmimport", PolicyName="vmimport", PolicyDocument=json.dumps(document))
    check = run_checks()["vmimport role's permissions"]
    assert check.outcome == outcome, check.found
    if outcome == "warn":
        assert f"arn:aws:s3:::{BUCKET}/vmsnix/*" in check.found
        assert "vmsnix iam-policy vmimport-role" in check.fix


def test_a_role_with_a_policy_of_aws_is_warned_of(aws: Sandbox, run_checks: Any) -> None:
    arn = "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"
    aws.client("iam").attach_role_policy(RoleName="vmimport", PolicyArn=arn)
    assert run_checks()["vmimport role's permissions"].outcome == "warn"


def test_a_role_that_is_denied_more_than_the_images_passes(aws: Sandbox, run_checks: Any) -> None:
    document = _reads("*")
    images = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/vmsnix/*"]
    document["Statement"].append({"Effect": "Deny", "Action": "s3:*", "NotResource": images})
    iam = aws.client("iam")
    iam.put_role_policy(RoleName="vmimport", PolicyName="vmimport", PolicyDocument=json.dumps(document))
    assert run_checks()["vmimport role's permissions"].outcome == "pass"


@pytest.mark.parametrize("prefix", ["", "a/b/", "images-"])
def test_readable_objects_beside_any_prefix_are_found(prefix: str) -> None:
    found = service_role.objects_beyond_images(BUCKET, prefix)
    assert not [one for one in found if one.startswith(f"arn:aws:s3:::{BUCKET}/{prefix}")]
    for folder in ("", "a/") if prefix == "a/b/" else ("",) if prefix else ():
        assert [one for one in found if one.startswith(f"arn:aws:s3:::{BUCKET}/{folder}")]


def test_a_bucket_policy_that_lets_the_role_read_more_is_warned_of(aws: Sandbox, run_checks: Any) -> None:
    document = json.dumps(_reads())
    aws.client("iam").put_role_policy(RoleName="vmimport", PolicyName="vmimport", PolicyDocument=document)
    arn = f"arn:aws:iam::{aws.account}:role/vmimport"
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": arn},
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=policy)
    assert run_checks()["vmimport role's permissions"].outcome == "warn"


def test_a_role_in_the_bucket_policy_is_only_a_warning(aws: Sandbox, run_checks: Any) -> None:
    aws.client("iam").delete_role_policy(RoleName="vmimport", PolicyName="vmimport")
    arn = f"arn:aws:iam::{aws.account}:role/vmimport"
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": arn},
        "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=policy)
    assert run_checks()["vmimport role's permissions"].outcome == "warn"


@pytest.mark.parametrize(
    ("trust", "verdict"),
    [
        (policies.import_role_trust_policy(), "trusted"),
        (
            {"Effect": "Allow", "Principal": {"Service": ["ec2.amazonaws.com"]}, "Action": "sts:AssumeRole"},
            "untrusted",
        ),
        (
            {"Effect": "Allow", "Principal": {"Service": "vmie.amazonaws.com"}, "Action": "sts:AssumeRole"},
            "open",
        ),
        (
            {
                "Effect": "Allow",
                "Principal": {"Service": "vmie.amazonaws.com"},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:ExternalId": "something-else"}},
            },
            "refused",
        ),
    ],
)
def test_trust_policies_are_evaluated_as_vm_import_does(trust: dict[str, Any], verdict: str) -> None:
    document = trust if "Statement" in trust else {"Statement": [trust]}
    assert service_role.classify_trust(document) == verdict
    assert service_role.classify_trust(json.dumps(document)) == verdict


def test_direct_needs_neither_bucket_nor_role(run_checks: Any) -> None:
    checks = run_checks(via="direct", role_name="no-such-role")
    assert not {"bucket", "vmimport role"} & set(checks)
    assert checks["permissions to publish (direct)"].outcome == "pass"


def test_public_amis_that_the_account_blocks(aws: Sandbox, run_checks: Any) -> None:
    aws.client("ec2").enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    assert run_checks()["public AMIs"].outcome == "pass", "private was asked for"
    assert run_checks(public=True)["public AMIs"].outcome == "fail"


def test_a_quota_that_is_used_up(aws: Sandbox, run_checks: Any) -> None:
    aws.state.tables.table(aws.account, REGION, "quotas")["ec2/L-B665C33B"] = 0.0
    assert run_checks()["quotas"].outcome == "fail"


def test_a_quota_that_is_nearly_used_up(aws: Sandbox, run_checks: Any) -> None:
    quotas = aws.state.tables.table(aws.account, REGION, "quotas")
    quotas["ec2/L-B665C33B"] = 10.0
    assert run_checks()["quotas"].found == "0 of 10 AMIs"
    ec2 = aws.client("ec2")
    snapshot = {"Ebs": {"SnapshotId": _snapshot(aws)}, "DeviceName": "/dev/sda1"}
    for number in range(9):
        ec2.register_image(Name=f"one-{number}", RootDeviceName="/dev/sda1", BlockDeviceMappings=[snapshot])
    check = run_checks()["quotas"]
    assert (check.outcome, check.found) == ("warn", "9 of 10 AMIs")
    assert check.fix


@pytest.mark.parametrize(("number", "outcome"), [(1, "pass"), (90, "warn"), (100, "fail")])
def test_unfinished_snapshots_that_fill_the_account(
    aws: Sandbox, run_checks: Any, monkeypatch: pytest.MonkeyPatch, number: int, outcome: str
) -> None:
    monkeypatch.setattr(limits, "PENDING_SNAPSHOTS", 10)
    aws.clock.speed = 1  # they stay pending
    for _ in range(number // 10):
        aws.client("ebs").start_snapshot(VolumeSize=1)
    check = run_checks()["pending snapshots"]
    assert (check.outcome, bool(check.fix)) == (outcome, outcome != "pass")


def test_a_bucket_without_encryption(aws: Sandbox, run_checks: Any) -> None:
    assert run_checks()["bucket encrypted"].found == "AES256"
    code = "ServerSideEncryptionConfigurationNotFoundError"  # as S3 answered for buckets made before 2023
    aws.faults.add({"op": "s3:GetBucketEncryption", "do": "error", "code": code, "http": 404})
    check = run_checks()["bucket encrypted"]
    assert (check.outcome, "vmsnix bootstrap" in check.fix) == ("warn", True)


def test_a_role_that_vm_import_may_not_assume(aws: Sandbox, run_checks: Any) -> None:
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    aws.client("iam").update_assume_role_policy(
        RoleName="vmimport", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    check = run_checks()["vmimport role"]
    assert (check.outcome, "vmie.amazonaws.com" in f"{check.found} {check.fix}") == ("fail", True)


def test_missing_permissions_fail_for_the_method_and_warn_for_the_other_one(
    aws: Sandbox, run_checks: Any
) -> None:
    allowed = set(policies.publisher_actions()) - {"ec2:RegisterImage"}
    checks = run_checks(session=_user(aws, "dave", sorted(allowed)))
    lacking = checks["permissions to publish (import)"]
    assert (lacking.outcome, "ec2:RegisterImage" in lacking.found) == ("fail", True)
    other = checks["EBS direct"]
    assert (other.outcome, other.fix.startswith("Needed only for via=direct.")) == ("warn", True)
    assert "ebs:StartSnapshot" in other.found
    assert (
        run_checks(session=_user(aws, "eve", sorted(allowed)), via="direct")[
            "permissions to publish (direct)"
        ].outcome
        == "fail"
    )


def _user(aws: Sandbox, name: str, actions: list[str]) -> Any:
    """Return a session of a new user with only these permissions."""
    iam = aws.client("iam")
    iam.create_user(UserName=name)
    document = policies.policy_document(actions, policies.PolicyScope(account=aws.account, bucket=BUCKET))
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], aws.account).session()


def _snapshot(aws: Sandbox) -> str:
    ec2 = aws.client("ec2")
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3")["VolumeId"]
    aws.clock.advance(3600)
    made: str = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    aws.clock.advance(3600)
    return made


def test_a_missing_image(run_checks: Any, tmp_path: Path) -> None:
    assert run_checks(image=str(tmp_path / "nothing.vhd"))["image"].outcome == "fail"


def test_an_image_of_an_unsupported_format(run_checks: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "image.vhd"
    damaged.write_bytes(b"conectix" + b"\0" * 1000)
    assert run_checks(image=str(damaged))["image"].outcome == "fail"


def test_a_name_that_belongs_to_other_bytes(aws: Sandbox, run_checks: Any, tmp_path: Path) -> None:
    image = str(make_sample_image(tmp_path / "image"))
    free = run_checks(image=image)["name"]
    assert free.found.endswith("is not in use")
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": _snapshot(aws)}}
    name = free.found.removesuffix(" is not in use")
    aws.client("ec2").register_image(
        Name=name, RootDeviceName="/dev/sda1", BlockDeviceMappings=[mapping], VirtualizationType="hvm"
    )
    assert run_checks(image=image)["name"].outcome == "fail"


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "not" / "yet"
    assert preflight.check_disk_space(deep, enough_gib=0.0).outcome == "pass"
    assert preflight.check_disk_space(deep, enough_gib=1e9).outcome == "warn"
    monkeypatch.setattr(preflight, "NO_SPACE_GIB", 1e8)
    full = preflight.check_disk_space(deep, enough_gib=1e9)
    assert (full.outcome, bool(full.fix)) == ("fail", True)


def test_a_tool_that_is_missing_fails_only_the_job_that_needs_it() -> None:
    needed = preflight.check_tool("no-such-program", needed="the image must be built", for_what="building")
    assert (needed.outcome, type(needed.error)) == ("fail", errors.ToolMissingError)
    assert preflight.check_tool("no-such-program", needed="", for_what="building").outcome == "warn"


@pytest.mark.parametrize(
    ("tool", "image", "outcome"), [("nix", ".#node", "fail"), ("nix", "", "warn"), ("qemu-img", "", "warn")]
)
def test_nix_and_qemu_fail_only_jobs_that_need_them(
    run_checks: Any, monkeypatch: pytest.MonkeyPatch, tool: str, image: str, outcome: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    check = run_checks(image=image)[tool]
    assert (check.outcome, check.found.startswith("not on PATH")) == (outcome, True)
    assert "Install" in check.fix


NAMED = {
    "region name",
    "credentials",
    "clock",
    "account",
    "region",
    "bucket",
    "bucket private",
    "bucket encrypted",
    "bucket TLS only",
    "bucket leftovers",
    "bucket versions",
    "bucket prefixes",
    "bucket's key",
    "vmimport role",
    "vmimport role's permissions",
    "pass role",
    "public AMIs",
    "quotas",
    "pending snapshots",
    "permissions to publish (import)",
    "EBS direct",
    "image",
    "name",
    "disk space",
    "nix",
    "qemu-img",
}
"""Every check; the tests above show each of them not passing."""


def test_every_check_is_tested(run_checks: Any, tmp_path: Path) -> None:
    assert set(run_checks(image=str(make_sample_image(tmp_path / "image")))) == NAMED


def test_a_caller_with_a_session_is_checked_by_its_role() -> None:
    session = identity.CallerIdentity(
        "012345678901", "arn:aws-cn:sts::012345678901:assumed-role/publisher/ci"
    )
    assert session.policy_source == "arn:aws-cn:iam::012345678901:role/publisher"
    assert session.partition == "aws-cn"
