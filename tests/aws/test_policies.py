"""Policies: every job runs with exactly its own, and not with one action less."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import errors, publish
from vmsnix_ops._cli.permissions_page import page
from vmsnix_ops.audit import inventory
from vmsnix_ops.audit.policies import auditor_actions
from vmsnix_ops.aws import policies
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.documents import same
from vmsnix_ops.aws.permissions import PERMISSIONS, needs, needs_of
from vmsnix_ops.cli import main
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import preflight
from vmsnix_ops.sandbox import Access, Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import boto3

REGION, BUCKET = "us-east-1", "vmsnix-images"
CHECKS_ONLY = {"ec2:DescribeRegions", "iam:GetRole", "iam:SimulatePrincipalPolicy"}
"""Actions of a publish whose lack is a warning: only the checks need them."""


@dataclass
class Account:
    """A sandbox that holds everybody to policies, and an image."""

    aws: Sandbox
    image: Path
    number: int = 0

    def place(self) -> policies.Place:
        return policies.Place(account=self.aws.account, regions=(REGION,), bucket=BUCKET)

    def session(self, actions: Iterable[str]) -> boto3.Session:
        """Return a session of a new user whose policy has just these actions."""
        iam = self.aws.client("iam")
        self.number += 1
        name = f"user-{self.number}"
        iam.create_user(UserName=name)
        document = json.dumps(policies.document(actions, self.place()))
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        access = Access(self.aws.url, key["AccessKeyId"], key["SecretAccessKey"], self.aws.account)
        return access.session(REGION)

    def plan(self, actions: Iterable[str], **changes: Any) -> publish.Plan:
        asked = {
            "image": str(self.image),
            "region": REGION,
            "bucket": BUCKET,
            "progress": silent(),
            **changes,
        }
        return publish.plan(session=self.session(actions), **asked)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Account]:
    with sandbox(speed=5000, enforce_iam=True) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)
        aws.prepare(bucket=BUCKET, region=REGION)
        yield Account(aws, make_sample_image(tmp_path / "image"))


def publish_it(account: Account, actions: Iterable[str], **changes: Any) -> publish.PublishResult:
    return publish.run(account.plan(actions, **changes))


def leave_an_upload(account: Account) -> None:
    """Begin two uploads of the image's key: the publisher goes on with one and ends the other."""
    plan = account.plan(policies.publisher_actions())
    digest = plan.build().digest
    s3 = account.aws.client("s3")
    for _ in range(2):
        s3.create_multipart_upload(
            Bucket=BUCKET, Key=f"vmsnix/{digest}.vhd", ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
        )


def interrupt_the_import(account: Account, actions: Iterable[str]) -> None:
    """Publish until the import runs, and interrupt it there."""
    account.aws.clock.speed = 1.0
    from vmsnix_ops.aws import imports

    plan = account.plan(actions)
    source = plan.upload(plan.build())
    ec2 = plan.client("ec2")
    where = imports.Source(BUCKET, source.url.partition(f"{BUCKET}/")[2], "vhd", "vmimport")
    with pytest.raises(KeyboardInterrupt):
        imports.import_snapshot(
            ec2,
            where,
            digest=source.built.digest,
            tags={tagging.DIGEST: source.built.digest},
            step=Stop(),  # type: ignore[arg-type]
        )
    assert imports.cancel(ec2, source.built.digest)


class Stop:
    """A step that the operator interrupts at the first sign of progress."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


def lose_the_name(account: Account, actions: Iterable[str]) -> None:
    """Import, and find that somebody took the name with other bytes in the meantime."""
    plan = account.plan(actions)
    built = plan.build()
    snapshot = plan.import_snapshot(plan.upload(built))
    ec2 = account.aws.client("ec2")
    other = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3")["VolumeId"]
    account.aws.clock.advance(3600)
    theirs = ec2.create_snapshot(VolumeId=other)["SnapshotId"]
    account.aws.clock.advance(3600)
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": theirs}}
    ec2.register_image(
        Name=built.ami_name,
        RootDeviceName="/dev/sda1",
        BlockDeviceMappings=[mapping],
        VirtualizationType="hvm",
    )
    with pytest.raises(errors.NameTakenError):
        plan.register(snapshot)
    gone = [s["SnapshotId"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]]
    assert snapshot.snapshot_id not in gone


def rehearse(account: Account, action: str, actions: Iterable[str]) -> None:
    """Do what needs this action of a publish via import."""
    if action == "s3:AbortMultipartUpload":
        leave_an_upload(account)
    if action == "ec2:CancelImportTask":
        interrupt_the_import(account, actions)
    elif action == "ec2:DeleteSnapshot":
        lose_the_name(account, actions)
    else:
        publish_it(account, actions)


IMPORT = policies.publisher_actions()


def without(actions: Iterable[str], action: str) -> tuple[str, ...]:
    return tuple(other for other in actions if other != action)


def test_a_publish_runs_with_exactly_its_policy(account: Account) -> None:
    plan = account.plan(IMPORT)
    assert {check.outcome for check in plan.checks} == {"pass"}
    assert publish.run(plan).ami_id


@pytest.mark.parametrize("action", sorted(set(IMPORT) - CHECKS_ONLY))
def test_a_publish_fails_without(account: Account, action: str) -> None:
    with pytest.raises(errors.VmsnixError) as caught:
        rehearse(account, action, without(IMPORT, action))
    assert action in f"{caught.value} {getattr(caught.value, '__notes__', '')}"


@pytest.mark.parametrize("action", ["s3:AbortMultipartUpload", "ec2:CancelImportTask", "ec2:DeleteSnapshot"])
def test_a_publish_needs_this_only_when_something_happens_and_then_may_do_it(
    account: Account, action: str
) -> None:
    rehearse(account, action, IMPORT)


@pytest.mark.parametrize("action", sorted(CHECKS_ONLY))
def test_a_publish_warns_without(account: Account, action: str) -> None:
    plan = account.plan(without(IMPORT, action))
    warned = [check for check in plan.checks if check.outcome == "warn"]
    assert warned
    assert all(action in check.cure for check in warned)
    assert publish.run(plan).ami_id


DIRECT = policies.publisher_actions(via="direct", verify=True)
DIRECT_ONLY_SOMETIMES = {"ec2:DeleteSnapshot", "ec2:GetEbsDefaultKmsKeyId"}
"""Only after a block that is refused for good, and only where snapshots are encrypted by default."""


def test_a_direct_publish_runs_with_exactly_its_policy(account: Account) -> None:
    assert publish_it(account, DIRECT, via="direct", verify="whole").ami_id


@pytest.mark.parametrize("action", sorted(set(DIRECT) - CHECKS_ONLY - DIRECT_ONLY_SOMETIMES))
def test_a_direct_publish_fails_without(account: Account, action: str) -> None:
    with pytest.raises(errors.VmsnixError) as caught:
        publish_it(account, without(DIRECT, action), via="direct", verify="whole")
    assert action in str(caught.value)


def test_a_public_publish_needs_one_action_more(account: Account) -> None:
    public = {"public": True, "confirm_public": account.aws.account}
    actions = policies.publisher_actions(public=True)
    with pytest.raises(errors.AccessDeniedError, match="ec2:ModifyImageAttribute"):
        publish_it(account, without(actions, "ec2:ModifyImageAttribute"), **public)
    assert publish_it(account, actions, **public).public


def test_an_audit_runs_with_exactly_its_policy(account: Account) -> None:
    frame = inventory.scan(regions=[REGION], session=account.session(auditor_actions()))
    assert list(frame["kind"].unique()) in ([], ["ami", "snapshot"])


@pytest.mark.parametrize("action", auditor_actions())
def test_an_audit_fails_without(account: Account, action: str) -> None:
    session = account.session(without(auditor_actions(), action))
    regions = ["all"] if action == "ec2:DescribeRegions" else [REGION]
    with pytest.raises(errors.AccessDeniedError, match=action):
        inventory.scan(regions=regions, session=session)


PREFLIGHT = tuple({*policies.thorough_actions(), *IMPORT})


def checks(account: Account, actions: Iterable[str]) -> dict[str, Any]:
    session = account.session(actions)
    return {c.name: c for c in preflight.check(region=REGION, bucket=BUCKET, session=session).checks}


def test_a_preflight_checks_everything_with_exactly_its_policy(account: Account) -> None:
    found = checks(account, policies.thorough_actions())
    assert not [check for check in found.values() if check.evidence.startswith("not checked")]


@pytest.mark.parametrize("action", policies.thorough_actions())
def test_a_preflight_without_an_action_says_which(account: Account, action: str) -> None:
    if action in ("iam:PassRole", "ec2:CreateTags"):
        pytest.fail("a preflight passes nothing and tags nothing")
    found = checks(account, without(PREFLIGHT, action))
    told = [c for c in found.values() if c.outcome != "pass" and action in f"{c.evidence} {c.cure}"]
    assert told, {name: (c.outcome, c.evidence) for name, c in found.items()}


def test_a_bootstrap_runs_with_exactly_its_policy(account: Account) -> None:
    from vmsnix_ops.aws import bootstrap

    iam = account.aws.client("iam")
    iam.delete_role_policy(RoleName="vmimport", PolicyName="vmimport")
    iam.delete_role(RoleName="vmimport")
    account.aws.client("s3").delete_bucket(Bucket=BUCKET)
    session = account.session(needs_of(bootstrap.look, bootstrap.make))
    place = account.place()
    for part in bootstrap.look(session, place):
        bootstrap.make(session, place, part)
    assert {part.verdict for part in bootstrap.look(session, place)} == {"keep"}


def test_a_publisher_of_one_bucket_cannot_use_another(account: Account) -> None:
    account.aws.client("s3").create_bucket(Bucket="other-images")
    with pytest.raises(errors.BucketError, match="s3:ListBucket"):
        account.plan(IMPORT, bucket="other-images")


def test_a_publisher_of_one_region_cannot_import_into_another(account: Account) -> None:
    ec2 = account.session(IMPORT).client("ec2", region_name="eu-west-1")
    with pytest.raises(ec2.exceptions.ClientError, match="ec2:DescribeImages"):
        ec2.describe_images(Owners=["self"])


def test_a_publisher_cannot_delete_a_snapshot_that_is_not_ours(account: Account) -> None:
    admin = account.aws.client("ec2")
    volume = admin.create_volume(AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3")["VolumeId"]
    account.aws.clock.advance(3600)
    snapshot = admin.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2 = account.session(IMPORT).client("ec2")
    with pytest.raises(ec2.exceptions.ClientError, match="ec2:DeleteSnapshot"):
        ec2.delete_snapshot(SnapshotId=snapshot)


def test_no_policy_is_longer_than_iam_takes() -> None:
    place = policies.Place(account="012345678901", regions=("eu-central-1", "us-gov-west-1"), bucket="b" * 63)
    for document in (policies.publisher(place, public=True, verify=True), policies.preflight(place)):
        assert len(json.dumps(document, separators=(",", ":"))) < 6144


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_policies_know_their_partition(partition: str) -> None:
    place = policies.Place(account="012345678901", bucket="acme-images", partition=partition)
    for document in (policies.publisher(place), policies.import_role(place), policies.tls_only(place)):
        arns = [arn for statement in document["Statement"] for arn in statement["Resource"] if arn != "*"]
        assert arns
        assert all(arn.startswith(f"arn:{partition}:") for arn in arns)


def test_no_job_may_do_everything() -> None:
    place = policies.Place(account="012345678901", bucket="acme-images")
    for document in (
        policies.publisher(place, public=True),
        policies.preflight(place),
        policies.import_role(place),
    ):
        for statement in document["Statement"]:
            assert not {"*", "s3:*", "ec2:*", "iam:*"} & set(statement["Action"])


def test_github_s_trust_lets_one_repository_in() -> None:
    place = policies.Place(account="012345678901", partition="aws-cn")
    (statement,) = policies.github_trust(place, repository="acme/images", subject="environment:production")[
        "Statement"
    ]
    assert statement["Principal"]["Federated"].startswith(
        "arn:aws-cn:iam::012345678901:oidc-provider/token.actions"
    )
    conditions = statement["Condition"]
    assert conditions["StringEquals"]["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com.cn"
    subject = conditions["StringLike"]["token.actions.githubusercontent.com:sub"]
    assert subject == "repo:acme/images:environment:production"


@pytest.mark.parametrize("repository", ["", "acme", "acme/*", "*/*", "acme/images:*", "a/b/c"])
def test_github_s_trust_refuses_what_lets_strangers_in(repository: str) -> None:
    with pytest.raises(errors.ParameterError, match="owner/name"):
        policies.github_trust(policies.Place(account="012345678901"), repository=repository)


@pytest.mark.parametrize(
    "wrong",
    [{"account": "12"}, {"bucket": "a/../b"}, {"regions": ("eu",)}, {"role_name": "a/b"}, {"partition": "x"}],
)
def test_a_place_refuses_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError, match="cannot be right"):
        policies.Place(**wrong)


def test_an_unknown_action_is_refused_when_it_is_declared() -> None:
    with pytest.raises(errors.UsageError, match="Did you mean 'ec2:RegisterImage'"):
        needs("ec2:RegisterImages")


def test_a_function_that_declares_nothing_gets_into_no_policy() -> None:
    with pytest.raises(errors.UsageError, match="does not say what it must be allowed"):
        needs_of(test_an_unknown_action_is_refused_when_it_is_declared)


def test_policies_that_say_the_same_are_the_same() -> None:
    one = {"Statement": [{"Sid": "A", "Effect": "Allow", "Action": ["a:B", "a:C"], "Resource": "*"}]}
    other = {"Statement": {"Effect": "Allow", "Action": ["a:C", "a:B"], "Resource": ["*"]}}
    assert same(one, json.dumps(other))
    assert not same(one, {"Statement": [{"Effect": "Allow", "Action": ["a:B"], "Resource": "*"}]})


@pytest.mark.parametrize(
    "kind", ["publisher", "auditor", "preflight", "bootstrap", "vmimport-role", "vmimport-trust", "bucket"]
)
def test_the_command_prints_a_policy(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["iam-policy", kind, "--bucket", "acme-images", "--account", "012345678901"]) == 0
    assert json.loads(capsys.readouterr().out)["Version"] == "2012-10-17"


def test_the_page_of_permissions_is_what_the_code_declares() -> None:
    written = (Path(__file__).parents[2] / "docs/reference/permissions.md").read_text(encoding="utf-8")
    assert written == page(), "run python -m vmsnix_ops._cli.permissions_page"
    assert set(PERMISSIONS) >= {*IMPORT, *DIRECT}
