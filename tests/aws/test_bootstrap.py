"""The bootstrap: plan, missing and wrong parts, settings of others, and the CloudFormation template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import errors, publish
from vmsnix_ops.aws.bootstrap import cloudformation_template
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import bootstrap
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION, BUCKET = "eu-central-1", "acme-images"
CHANGES = ("Create", "Put", "Update", "Delete", "Attach")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(speed=2000) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)
        yield aws


def changed(aws: Sandbox) -> list[str]:
    return [call.operation for call in aws.calls if call.operation.startswith(CHANGES)]


def plan(**changes: Any) -> bootstrap.BootstrapPlan:
    return bootstrap.plan(**{"region": REGION, "bucket": BUCKET, "dry_run": False, **changes})


def test_a_dry_run_is_the_default_and_changes_nothing(aws: Sandbox) -> None:
    shown = bootstrap.plan(region=REGION, bucket=BUCKET)
    assert shown.dry_run
    assert shown.apply().parts == shown.parts
    assert len(shown.todo) == len(shown.parts) == 8
    assert changed(aws) == []
    assert "nothing will be changed" in str(shown)


def test_an_empty_account_can_publish_afterwards(aws: Sandbox, tmp_path: Path) -> None:
    assert plan().apply().todo == ()
    image = make_sample_image(tmp_path / "image")
    wanted = publish.plan(image=str(image), region=REGION, bucket=BUCKET, progress=silent())
    assert wanted.apply().ami_id


def test_bootstrapping_twice_changes_nothing(aws: Sandbox) -> None:
    plan().apply()
    before = changed(aws)
    again = plan()
    assert again.todo == ()
    again.apply()
    assert changed(aws) == before


def test_an_interrupted_bootstrap_can_be_continued(aws: Sandbox) -> None:
    aws.faults.add({"op": "iam:CreateRole", "nth": [1], "do": "error", "code": "ServiceFailure", "http": 400})
    with pytest.raises(errors.AwsError, match="create the role"):
        plan().apply()
    assert [part.name for part in plan().todo] == ["role", "role policy", "publisher policy"]
    assert plan().apply().todo == ()


def test_rules_and_statements_of_others_are_kept(aws: Sandbox) -> None:
    s3, iam = aws.client("s3", REGION), aws.client("iam")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 90}}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [theirs]})
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{aws.account}:root"},
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    s3.put_bucket_policy(
        Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    iam.create_role(
        RoleName="vmimport",
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )
    actions = {part.name: part.action for part in plan().parts}
    assert [actions[n] for n in ("bucket", "TLS-only policy", "lifecycle", "role")] == [
        "keep",
        *["change"] * 3,
    ]
    assert plan().apply().todo == ()
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["ID"] for rule in rules] == ["theirs", "vmsnix-leftovers", "vmsnix-delete-markers"]
    assert statement in json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert trust in iam.get_role(RoleName="vmimport")["Role"]["AssumeRolePolicyDocument"]["Statement"]


def test_a_trust_policy_without_external_id_is_corrected(aws: Sandbox) -> None:
    trust = policies.import_role_trust_policy()
    del trust["Statement"][0]["Condition"]
    iam = aws.client("iam")
    iam.create_role(RoleName="vmimport", AssumeRolePolicyDocument=json.dumps(trust))
    plan().apply()
    (statement,) = iam.get_role(RoleName="vmimport")["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Condition"] == {"StringEquals": {"sts:Externalid": "vmimport"}}


@pytest.mark.parametrize(("default", "oldest"), [("v5", "v1"), ("v2", "v3")])
def test_an_outdated_publisher_policy_gets_a_new_version(aws: Sandbox, default: str, oldest: str) -> None:
    plan().apply()
    iam = aws.client("iam")
    arn = f"arn:aws:iam::{aws.account}:policy/vmsnix-publisher-{BUCKET}"
    old = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"}],
        }
    )
    for _ in range(4):  # IAM keeps five versions at most
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=old, SetAsDefault=True)
    iam.set_default_policy_version(PolicyArn=arn, VersionId=default)
    if default == "v2":
        iam.delete_policy_version(PolicyArn=arn, VersionId="v1")  # the default is the oldest now
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=old)
    assert [part.name for part in plan().todo] == ["publisher policy"]
    assert plan().apply().todo == ()
    versions = {one["VersionId"] for one in iam.list_policy_versions(PolicyArn=arn)["Versions"]}
    assert len(versions) == 5
    assert oldest not in versions
    assert default in versions


def test_a_second_region_keeps_the_parts_of_the_first(aws: Sandbox) -> None:
    plan().apply()
    plan(region="us-west-2", bucket="acme-images-west").apply()
    assert plan().todo == ()
    assert plan(region="us-west-2", bucket="acme-images-west").todo == ()


def test_a_bucket_of_another_region_is_refused(aws: Sandbox) -> None:
    aws.client("s3").create_bucket(Bucket=BUCKET)
    with pytest.raises(errors.BucketError, match="us-east-1"):
        plan()


def test_an_account_that_is_not_allowed_is_refused(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "999999999999")
    with pytest.raises(errors.CredentialsError, match="allowed_accounts"):
        plan()
    assert changed(aws) == []


@pytest.mark.parametrize("bucket", ["", "*"])
def test_a_bootstrap_requires_a_bucket(aws: Sandbox, bucket: str) -> None:
    with pytest.raises(errors.ParameterError, match="No bucket given"):
        plan(bucket=bucket)


def test_the_cloudformation_template_has_the_same_resources(aws: Sandbox) -> None:
    shown = plan()
    made = json.loads(shown.cloudformation())["Resources"]
    role = made["ImportRole"]["Properties"]
    assert role["AssumeRolePolicyDocument"] == policies.import_role_trust_policy()
    assert role["Policies"][0]["PolicyDocument"] == policies.import_role_policy(shown.place)
    assert made["BucketPolicy"]["Properties"]["PolicyDocument"] == policies.tls_only_policy(shown.place)
    assert made["PublisherPolicy"]["Properties"]["PolicyDocument"] == policies.publisher_policy(shown.place)


def test_the_template_is_shown_and_written_on_request_only(aws: Sandbox, tmp_path: Path) -> None:
    shown = plan()
    assert "AWSTemplateFormatVersion" not in f"{shown} {shown.template('')}"
    assert shown.template("-") == shown.cloudformation()
    written = shown.template(str(tmp_path / "my stack.json"))
    assert f"--template-file '{tmp_path}/my stack.json' --capabilities CAPABILITY_NAMED_IAM" in written
    assert json.loads((tmp_path / "my stack.json").read_text()) == json.loads(shown.cloudformation())
    with pytest.raises(errors.ParameterError, match="No such file or directory"):
        shown.template(str(tmp_path / "no-folder" / "template.json"))


PLACES = [
    {"partition": partition, "regions": (region,), **variant}
    for partition, region in (("aws", "us-east-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1"))
    for variant in ({}, {"key_prefix": "", "role_name": "import+role"}, {"key_prefix": "a/b c/"})
]


@pytest.mark.long(seconds=10)
@pytest.mark.long(seconds=6)
def test_the_cloudformation_template_passes_cfn_lint(tmp_path: Path) -> None:
    for number, place in enumerate(PLACES):
        made = cloudformation_template(policies.PolicyScope(account="012345678901", bucket=BUCKET, **place))
        (tmp_path / f"{number}.json").write_text(json.dumps(made))
    made["Resources"]["Bucket"]["Properties"]["BucketNmae"] = "x"
    (tmp_path / "broken.json").write_text(json.dumps(made))
    regions = sorted({region for place in PLACES for region in place["regions"]})
    options = ["--include-checks", "I", "--format", "parseable", "--regions", *regions]
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), *options, "--", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = done.stdout.splitlines()
    assert found, done.stderr
    assert [line for line in found if "broken.json" not in line] == []
