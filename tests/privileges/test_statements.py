"""Rules for all statements of all policies that vmsnix prints."""

from __future__ import annotations

import fnmatch
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from docs.permissions_page import page
from tests.privileges.account import BUCKET as IMAGES
from vmsnix_ops import errors
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.cli import main
from vmsnix_ops.cli.policies import JOBS, KINDS, OTHERS
from vmsnix_ops.sandbox import Access

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.privileges.account import Account

ACCOUNT, BUCKET = "012345678901", "acme-images"
OURS = {"StringLike": {"aws:ResourceTag/vmsnix:digest": "?*"}}
SOURCES = {
    "ec2:CopyImage": {"image", "snapshot"},
    "ec2:RegisterImage": {"snapshot"},
    "ec2:RunInstances": {"image", "snapshot"},
}
"""Creating actions, and the kinds of resources that they create from."""
CREATING = {*SOURCES, "ec2:ImportSnapshot", "ebs:StartSnapshot"}


def printed() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every policy of a job, for one region and for all of them."""
    for (name, job), regions in itertools.product(JOBS.items(), ((), ("eu-central-1", "us-east-1"))):
        place = policies.PolicyScope(account=ACCOUNT, bucket=BUCKET, regions=regions)
        yield f"{name}{'' if regions else ', every region'}", policies.policy_document(job.actions(), place)


POLICIES = dict(printed())


def allowed(policy: str, action: str) -> list[dict[str, Any]]:
    """Return the statements that allow an action."""
    statements = POLICIES[policy]["Statement"]
    return [one for one in statements if one["Effect"] == "Allow" and action in one["Action"]]


@pytest.mark.parametrize("policy", POLICIES)
def test_tagging_depends_on_the_resource_not_only_on_the_request(policy: str) -> None:
    for statement in allowed(policy, "ec2:CreateTags") + allowed(policy, "ec2:DeleteTags"):
        condition = statement.get("Condition", {})
        keys = {key for operator in condition.values() for key in operator}
        on_the_resource = {
            key
            for key in keys
            if key.startswith(("aws:ResourceTag/", "ec2:ParentVolume", "ec2:CreateAction"))
        }
        assert on_the_resource, statement
        absent = {key for key, value in condition.get("Null", {}).items() if value == "true"}
        assert on_the_resource - absent, f"only the absence of a tag is required: {statement}"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_digest_tag_of_an_existing_resource_cannot_be_changed(policy: str) -> None:
    for statement in allowed(policy, "ec2:CreateTags") + allowed(policy, "ec2:DeleteTags"):
        condition = statement["Condition"]
        if OURS["StringLike"].items() <= condition.get("StringLike", {}).items():
            unchanged = condition["ForAllValues:StringNotEqualsIgnoreCase"]
            assert unchanged == {"aws:TagKeys": ["vmsnix:digest"]}
            assert condition["Null"] == {"aws:TagKeys": "false"}, "without keys all tags are removed"


@pytest.mark.parametrize("policy", POLICIES)
def test_actions_that_create_have_a_condition_on_their_source(policy: str) -> None:
    for action, kinds in SOURCES.items():
        for statement in allowed(policy, action):
            existing = [arn for arn in statement["Resource"] if arn.split(":")[5].partition("/")[0] in kinds]
            reaches = [arn for arn in existing if not arn.endswith("${*}")]
            condition = dict(statement.get("Condition", {}))
            if action == "ec2:RunInstances" and any(":image/" in arn for arn in reaches):
                assert condition.pop("StringEquals") == {"ec2:RootDeviceType": "ebs"}, statement
            assert not reaches or condition == OURS, statement
    for statement in allowed(policy, "ebs:StartSnapshot"):
        parent = statement["Condition"]["Null"]["ebs:ParentSnapshot"]
        assert parent == "true" or policy.startswith("incremental"), statement
    if allowed(policy, "ec2:ImportSnapshot"):
        (passing,) = allowed(policy, "iam:PassRole")
        assert passing["Resource"] == [f"arn:aws:iam::{ACCOUNT}:role/vmimport"]
        assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "vmie.amazonaws.com"}}


BUNDLE_BLIND = {"ec2:RegisterImage", "ec2:CopyImage", "ec2:CreateTags", "ec2:DeleteTags"}
"""Actions on images that AWS does not condition on the type of the root device; tags alone give nothing."""


@pytest.mark.parametrize("policy", POLICIES)
def test_an_ami_from_a_bundle_in_s3_cannot_be_used(policy: str) -> None:
    for statement in POLICIES[policy]["Statement"]:
        on_images = [arn for arn in statement["Resource"] if ":image/" in arn]
        for action in set(statement["Action"]) - BUNDLE_BLIND if on_images else ():
            assert statement["Condition"]["StringEquals"] == {"ec2:RootDeviceType": "ebs"}, action


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_can_tag_foreign_snapshots_cannot_delete_share_or_read_any(policy: str) -> None:
    imports = any("ec2:ParentVolume" in json.dumps(one) for one in allowed(policy, "ec2:CreateTags"))
    starts = [one["Condition"]["Null"]["ebs:ParentSnapshot"] for one in allowed(policy, "ebs:StartSnapshot")]
    shares = ("ec2:ModifySnapshotAttribute", "ec2:ModifyImageAttribute")
    reads = (
        "ebs:GetSnapshotBlock",
        "ec2:RunInstances",
        "ec2:CreateVolume",
        "ec2:CopySnapshot",
        "ec2:CopyImage",
    )
    if imports or "false" in starts:
        for action in (*shares, *reads, *(("ec2:DeleteSnapshot", "ec2:DeregisterImage") if imports else ())):
            assert not allowed(policy, action), action


@pytest.mark.parametrize("policy", POLICIES)
def test_all_actions_that_create_are_listed_in_these_tests(policy: str) -> None:
    for statement in POLICIES[policy]["Statement"]:
        for action in statement["Action"]:
            name = action.partition(":")[2]
            creates = name.startswith(("Copy", "Create", "Import", "Register", "Run", "Start", "Restore"))
            own = action.startswith(("s3:", "iam:")) or action == "ec2:CreateTags"
            assert not creates or own or action in CREATING, action


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_reads_parameters_denies_decryption(policy: str) -> None:
    statements = POLICIES[policy]["Statement"]
    reading = [action for one in statements for action in one["Action"] if action.startswith("ssm:Get")]
    denied = [one for one in statements if one["Effect"] == "Deny"]
    expected = {"StringLike": {"kms:ViaService": "ssm.*"}}
    assert [(one["Action"], one["Resource"], one["Condition"]) for one in denied] == (
        [(["kms:Decrypt"], ["*"], expected)] if reading else []
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_only_tagged_resources_are_cancelled_terminated_or_read(policy: str) -> None:
    for action in ("ec2:CancelImportTask", "ec2:TerminateInstances", "ec2:GetConsoleOutput"):
        for statement in allowed(policy, action):
            tags = [
                key
                for key in statement["Condition"]["StringLike"]
                if key.startswith("aws:ResourceTag/vmsnix:")
            ]
            assert tags, statement


def test_only_vm_import_may_assume_its_role() -> None:
    (statement,) = policies.import_role_trust_policy()["Statement"]
    assert statement["Principal"] == {"Service": "vmie.amazonaws.com"}


def test_the_role_of_vm_import_reads_only_the_images() -> None:
    place = policies.PolicyScope(account=ACCOUNT, bucket=BUCKET, key_prefix="images/")
    reading = [
        one for one in policies.import_role_policy(place)["Statement"] if "s3:GetObject" in one["Action"]
    ]
    assert [one["Resource"] for one in reading] == [[f"arn:aws:s3:::{BUCKET}/images/*"]]


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        (["--public"], "promoter --public"),
        (["--verify"], "verifier --blocks"),
        (["--incremental"], "--via direct"),
        (["--via", "direct", "--incremental", "--public"], "promoter --public"),
        (["--via", "direct", "--incremental", "--verify"], "verifier --blocks"),
    ],
)
def test_a_policy_with_both_permissions_is_refused_and_the_separate_one_is_named(
    options: list[str], instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["iam-policy", "publisher", "--bucket", BUCKET, *options]) == errors.UsageError.exit_code
    assert instead in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["publisher", "archivist", "bootstrap", "vmimport-role", "bucket"])
def test_a_policy_for_objects_requires_a_bucket(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["iam-policy", kind]) == errors.UsageError.exit_code
    assert "--bucket NAME" in " ".join(capsys.readouterr().err.split())
    assert main(["iam-policy", kind, "--bucket", "acme-images"]) == 0
    assert "arn:aws:s3:::*" not in capsys.readouterr().out


@pytest.mark.parametrize("archive", ["s3://acme-images", "s3://acme-images/vmsnix/runs"])
def test_an_archivist_cannot_replace_an_upload(
    archive: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmsnix.toml").write_text(f'bucket = "acme-images"\narchive = "{archive}"\n')
    assert main(["iam-policy", "archivist"]) == errors.UsageError.exit_code
    assert "s3://acme-images/evidence" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "vmsnix.toml").write_text('bucket = "acme-images"\narchive = "s3://acme-images/evidence"\n')
    assert main(["iam-policy", "archivist"]) == 0
    assert "arn:aws:s3:::acme-images/evidence/*" in capsys.readouterr().out


def test_an_archivist_is_denied_the_prefix_of_possible_uploads(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a bucket in vmsnix.toml, --bucket may be the bucket of the uploads."""
    iam, s3 = account.aws.client("iam"), account.aws.client("s3")
    s3.put_object(Bucket=IMAGES, Key="vmsnix/image.vhd", Body=b"image")
    assert main(["iam-policy", "archivist", "--bucket", IMAGES]) == 0
    iam.create_user(UserName="ci")
    iam.put_user_policy(UserName="ci", PolicyName="only", PolicyDocument=capsys.readouterr().out)
    key = iam.create_access_key(UserName="ci")["AccessKey"]
    access = Access(account.aws.url, key["AccessKeyId"], key["SecretAccessKey"], account.aws.account)
    archivist = access.client("s3")
    archivist.put_object(Bucket=IMAGES, Key="evidence/run/result.json", Body=b"{}")
    with pytest.raises(archivist.exceptions.ClientError, match="AccessDenied"):
        archivist.put_object(Bucket=IMAGES, Key="vmsnix/image.vhd", Body=b"other")
    with pytest.raises(archivist.exceptions.ClientError, match="AccessDenied"):
        archivist.create_multipart_upload(Bucket=IMAGES, Key="vmsnix/image.vhd")


@pytest.mark.parametrize(
    ("settings", "options", "refused"),
    [
        ('archive = "s3://evidence"\n', ["--bucket", "acme-images"], "--bucket is acme-images"),
        ('archive = "s3://evidence/vmsnix/runs"\n', [], "in the same location"),
        ('bucket = "acme-images"\n', ["--bucket", "acme-images"], "in the same location"),
        ('bucket = "acme-images"\n', ["--bucket", "evidence"], ""),
        ('bucket = "acme-images"\narchive = "s3://evidence/vmsnix"\n', [], ""),
        ('archive = "s3://evidence/runs"\n', ["--bucket", "evidence"], ""),
    ],
)
def test_an_archivist_s_bucket_agrees_with_the_settings(
    settings: str,
    options: list[str],
    refused: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmsnix.toml").write_text(settings)
    assert main(["iam-policy", "archivist", *options]) == (errors.UsageError.exit_code if refused else 0)
    caught = capsys.readouterr()
    assert refused in " ".join(caught.err.split())
    assert '"Deny"' not in caught.out, "another bucket than that of the uploads has no such prefix"


def test_the_page_lists_the_jobs_that_a_publisher_must_not_have() -> None:
    """A publisher that can tag foreign snapshots must not launch, share, read or delete tagged ones."""
    (warning,) = [text for text in page().split("\n\n") if text.startswith("Do not attach")]
    reaching = {
        "ebs:GetSnapshotBlock",
        "ec2:DeleteSnapshot",
        "ec2:ModifyImageAttribute",
        "ec2:ModifySnapshotAttribute",
        "ec2:RunInstances",
    }
    for job in JOBS.values():
        if job.kind != "publisher" and reaching & set(job.actions()):
            assert f"`{job.kind}" in warning


def test_a_promoter_publishes_to_one_topic(capsys: pytest.CaptureFixture[str]) -> None:
    topic = "arn:aws:sns:eu-west-1:012345678901:images"
    assert main(["iam-policy", "promoter", "--announce", "--topic", topic]) == 0
    printed = json.loads(capsys.readouterr().out)
    (publishing,) = [one for one in printed["Statement"] if "sns:Publish" in one["Action"]]
    assert publishing["Resource"] == [topic]
    assert main(["iam-policy", "promoter", "--announce", "--topic", "images"]) != 0


KEY = "arn:aws:kms:eu-central-1:012345678901:key/12345678-1234-1234-1234-123456789012"
WITH_A_KEY = {
    **{kind: [kind] for kind in (*KINDS, *OTHERS)},
    "publisher via direct": ["publisher", "--via", "direct"],
    "incremental publisher": ["publisher", "--via", "direct", "--incremental"],
    "public publisher": ["publisher", "--via", "direct", "--public", "--verify"],
}
KMS = ("kms:Decrypt", "kms:CreateGrant", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo")


def printed_with_a_key(capsys: pytest.CaptureFixture[str], policy: str, key: str = KEY) -> dict[str, Any]:
    """Return what the command prints of a policy for an account with a KMS key."""
    request = ["iam-policy", *WITH_A_KEY[policy], "--bucket", BUCKET, "--account", ACCOUNT, "--kms-key", key]
    request += ["--repository", "acme/images"] if policy == "github-oidc-trust" else []
    assert main(request) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("policy", WITH_A_KEY)
def test_no_policy_allows_direct_use_of_a_key(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The role of VM Import is the exception: AWS does not say through which service it uses a key."""
    for statement in printed_with_a_key(capsys, policy)["Statement"]:
        named = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        uses = [one for one in KMS if any(fnmatch.fnmatch(one, action) for action in named)]
        if statement["Effect"] != "Allow" or not uses:
            continue
        assert statement["Resource"] == [KEY]
        if policy == "vmimport-role":
            continue
        services = statement["Condition"]["StringLike"]["kms:ViaService"]
        assert set(services) <= {"ec2.eu-central-1.*", "s3.eu-central-1.*"}
        if "kms:CreateGrant" in uses:
            assert uses == ["kms:CreateGrant"]
            assert statement["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


@pytest.mark.parametrize("policy", [name for name in WITH_A_KEY if "publisher" in name])
def test_a_publisher_decrypts_through_ebs_and_not_directly(
    account: Account, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    iam = account.aws.client("iam")
    user = iam.create_user(UserName="ci")["User"]["Arn"]
    iam.put_user_policy(
        UserName="ci", PolicyName="only", PolicyDocument=json.dumps(printed_with_a_key(capsys, policy))
    )

    def allowed_to(**context: str) -> set[str]:
        entries = [
            {
                "ContextKeyName": f"kms:{name}",
                "ContextKeyType": "string",
                "ContextKeyValues": [value],
            }
            for name, value in context.items()
        ]
        request = {"PolicySourceArn": user, "ActionNames": KMS, "ResourceArns": [KEY]}
        found = iam.simulate_principal_policy(**request, ContextEntries=entries)["EvaluationResults"]
        return {one["EvalActionName"] for one in found if one["EvalDecision"] == "allowed"}

    here, domain = "eu-central-1", "amazonaws.com"
    assert allowed_to() == set()
    assert allowed_to(GrantIsForAWSResource="true") == set()
    assert allowed_to(ViaService=f"ec2.{here}.{domain}") == {*KMS} - {"kms:CreateGrant"}
    assert allowed_to(ViaService=f"ec2.{here}.{domain}", GrantIsForAWSResource="true") == {*KMS}
    for other in (f"ssm.{here}.{domain}", f"ec2.eu-west-1.{domain}", f"lambda.{here}.{domain}"):
        assert allowed_to(ViaService=other, GrantIsForAWSResource="true") == set()
    uploads = {*KMS} - {"kms:CreateGrant"} if policy == "publisher" else set()
    assert allowed_to(ViaService=f"s3.{here}.{domain}") == uploads


def test_all_policies_of_roles_and_buckets_are_listed_in_these_tests() -> None:
    assert set(OTHERS) == {
        "vmimport-role",
        "vmimport-trust",
        "audit-member-trust",
        "bucket",
        "github-oidc-trust",
    }
