"""Policies: their limits and their text. tests/privileges checks that each job needs all of its policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.permissions_page import page
from tests.privileges.conftest import account, enforcing
from vmsnix_ops import errors
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.documents import same_policy
from vmsnix_ops.aws.iam.permissions import PERMISSIONS, needs, needs_of
from vmsnix_ops.cli import main
from vmsnix_ops.cli.policies import JOBS, KINDS

if TYPE_CHECKING:
    from tests.privileges.account import Account

__all__ = ["account", "enforcing"]
IMPORT = policies.publisher_actions()


def test_a_publisher_of_one_bucket_cannot_use_another(account: Account) -> None:
    account.aws.client("s3").create_bucket(Bucket="other-images")
    with pytest.raises(errors.BucketError, match="s3:ListBucket"):
        account.plan(IMPORT, bucket="other-images")


def test_a_publisher_of_one_region_cannot_import_into_another(account: Account) -> None:
    ec2 = account.session(IMPORT).client("ec2", region_name="eu-west-1")
    with pytest.raises(ec2.exceptions.ClientError, match="ec2:DescribeImages"):
        ec2.describe_images(Owners=["self"])


def test_a_publisher_cannot_delete_a_snapshot_that_is_not_ours(account: Account) -> None:
    ec2 = account.session(IMPORT).client("ec2")
    with pytest.raises(ec2.exceptions.ClientError, match="ec2:DeleteSnapshot"):
        ec2.delete_snapshot(SnapshotId=account.snapshot())


def test_no_policy_exceeds_the_size_limit_of_iam() -> None:
    place = policies.PolicyScope(
        account="012345678901", regions=("eu-central-1", "ap-southeast-1"), bucket="b" * 63
    )
    for job in JOBS.values():
        text = json.dumps(policies.policy_document(job.actions(), place), separators=(",", ":"))
        assert len(text) < 6144, job


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_arns_have_the_partition_of_the_scope(partition: str) -> None:
    place = policies.PolicyScope(account="012345678901", bucket="acme-images", partition=partition)
    for document in (
        policies.publisher_policy(place),
        policies.import_role_policy(place),
        policies.tls_only_policy(place),
    ):
        arns = [arn for statement in document["Statement"] for arn in statement["Resource"] if arn != "*"]
        assert arns
        assert all(arn.startswith(f"arn:{partition}:") for arn in arns)


def test_no_policy_allows_all_actions_of_a_service() -> None:
    place = policies.PolicyScope(account="012345678901", bucket="acme-images")
    documents = [policies.policy_document(job.actions(), place) for job in JOBS.values()]
    for document in (*documents, policies.import_role_policy(place)):
        for statement in document["Statement"]:
            assert not {"*", "s3:*", "ec2:*", "iam:*"} & set(statement["Action"])


def test_a_github_trust_policy_allows_one_repository() -> None:
    place = policies.PolicyScope(account="012345678901", partition="aws-cn")
    (statement,) = policies.github_trust_policy(
        place, repository="acme/images", subject="environment:production"
    )["Statement"]
    assert statement["Principal"]["Federated"].startswith(
        "arn:aws-cn:iam::012345678901:oidc-provider/token.actions"
    )
    conditions = statement["Condition"]
    assert conditions["StringEquals"]["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com.cn"
    subject = conditions["StringLike"]["token.actions.githubusercontent.com:sub"]
    assert subject == "repo:acme/images:environment:production"


@pytest.mark.parametrize("repository", ["", "acme", "acme/*", "*/*", "acme/images:*", "a/b/c"])
def test_a_github_trust_policy_refuses_other_repositories(repository: str) -> None:
    with pytest.raises(errors.ParameterError, match="owner/name"):
        policies.github_trust_policy(policies.PolicyScope(account="012345678901"), repository=repository)


EVERY_WORKFLOW = [
    "*",
    "**",
    "*:*",
    "*main",
    "r*",
    "ref*",
    "ref:*",
    "ref:r*",
    "ref:refs/*",
    "ref:refs/heads/*",
]
EVERY_WORKFLOW += [
    "ref:refs/heads/**",
    "ref:refs/tags/*",
    "ref:refs/pull/*",
    "environment:*",
    "e*:production",
]
EVERY_WORKFLOW += ["pull*", "*:environment:production", "pull_request"]
MORE_THAN_NAMED = [
    "ref:refs/heads/main*",
    "ref:refs/heads/m*n",
    "ref:refs/heads/release/1*",
    "ref:refs/heads/*/main",
    "ref:refs/tags/v*",
    "ref:refs/tags/v1.*",
    "ref:refs/pull/1*",
    "environment:prod*",
    "environment:production*",
    "environment:production*:ref:refs/heads/main",
    "job_workflow_ref:*",
    "job_workflow_ref:acme/images/*",
    "ref:refs/pull/1/*",
    "event_name:*",
]


@pytest.mark.parametrize("subject", [*EVERY_WORKFLOW, *MORE_THAN_NAMED])
def test_a_subject_that_matches_more_than_it_names_needs_any_subject(subject: str) -> None:
    place, arguments = (
        policies.PolicyScope(account="012345678901"),
        {"repository": "acme/images", "subject": subject},
    )
    with pytest.raises(errors.ParameterError, match="--any-subject"):
        policies.github_trust_policy(place, **arguments)
    (statement,) = policies.github_trust_policy(place, **arguments, any_subject=True)["Statement"]
    allowed = statement["Condition"]["StringLike"]["token.actions.githubusercontent.com:sub"]
    assert allowed == f"repo:acme/images:{subject}"


@pytest.mark.parametrize(
    "subject",
    [
        "ref:refs/heads/main",
        "ref:refs/tags/v1.0",
        "environment:production",
        "environment:production:*",
        "environment:production:ref:refs/heads/*",
        "ref:refs/heads/release/*",
        "ref:refs/tags/images/*",
        "ref:refs/heads/release/*/hotfix",
    ],
)
def test_a_specific_subject_needs_no_any_subject(subject: str) -> None:
    assert policies.github_trust_policy(
        policies.PolicyScope(account="012345678901"), repository="acme/images", subject=subject
    )


@pytest.mark.parametrize("repository", ["acme/images", "acme/other"])
def test_a_subject_with_its_repository_is_refused(repository: str) -> None:
    """repo:acme/images:repo:... would match no workflow."""
    subject = f"repo:{repository}:ref:refs/heads/main*"
    with pytest.raises(errors.ParameterError, match="--repository"):
        policies.github_trust_policy(
            policies.PolicyScope(account="012345678901"),
            repository="acme/images",
            subject=subject,
            any_subject=True,
        )


def test_the_command_requires_any_subject() -> None:
    arguments = [
        "github-oidc-trust",
        "--account",
        "012345678901",
        "--repository",
        "acme/images",
        "--subject",
        "*",
    ]
    assert main(["iam-policy", *arguments]) == 2
    assert main(["iam-policy", *arguments, "--any-subject"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"account": "12"}, {"bucket": "a/../b"}, {"regions": ("eu",)}, {"role_name": "a/b"}, {"partition": "x"}],
)
def test_a_scope_refuses_invalid_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError, match="Invalid"):
        policies.PolicyScope(**wrong)


@pytest.mark.parametrize(
    "region", ["mars-north-1", "eu-central-3", "us-east-11", "eu-central-1a", "EU-WEST-1"]
)
def test_an_unknown_region_is_refused(region: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the printed policy would not apply to the region."""
    for kind in ("publisher", "auditor", "github-oidc-trust"):
        arguments = [
            "iam-policy",
            kind,
            "--bucket",
            "acme-images",
            "--region",
            "eu-west-1",
            "--region",
            region,
        ]
        assert main(arguments) != 0
        caught = capsys.readouterr()
        assert region in caught.err
        assert caught.out == ""


def test_an_unknown_action_is_refused_when_it_is_declared() -> None:
    with pytest.raises(errors.UsageError, match="Did you mean 'ec2:RegisterImage'"):
        needs("ec2:RegisterImages")


def test_a_function_without_declared_permissions_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="does not declare its permissions"):
        needs_of(test_an_unknown_action_is_refused_when_it_is_declared)


def test_equal_policies_can_differ_in_order_lists_and_sids() -> None:
    one = {"Statement": [{"Sid": "A", "Effect": "Allow", "Action": ["a:B", "a:C"], "Resource": "*"}]}
    other = {"Statement": {"Effect": "Allow", "Action": ["a:C", "a:B"], "Resource": ["*"]}}
    assert same_policy(one, json.dumps(other))
    assert not same_policy(one, {"Statement": [{"Effect": "Allow", "Action": ["a:B"], "Resource": "*"}]})


@pytest.mark.parametrize("kind", [*KINDS, "vmimport-role", "vmimport-trust", "bucket"])
def test_the_command_prints_a_policy(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["iam-policy", kind, "--bucket", "acme-images", "--account", "012345678901"]) == 0
    assert json.loads(capsys.readouterr().out)["Version"] == "2012-10-17"


def test_the_page_of_permissions_is_what_the_code_declares() -> None:
    written = (Path(__file__).parents[3] / "docs/reference/permissions.md").read_text(encoding="utf-8")
    assert written == page(), "run python docs/permissions_page.py"


def test_every_action_of_the_table_belongs_to_a_job() -> None:
    used = {action for job in JOBS.values() for action in job.actions()}
    assert set(PERMISSIONS) == used
