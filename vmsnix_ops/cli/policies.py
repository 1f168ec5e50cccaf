"""``vmsnix iam-policy`` and ``vmsnix attestation-policy``: print policies of IAM, buckets and KMS keys."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vmsnix_ops.cli.options import region_option
from vmsnix_ops.text import echo, json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class PolicyJob:
    """A job, or a variant of a job, that has its own policy."""

    kind: str  # argument of ``vmsnix iam-policy``; the same for all variants of a job
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the function in `ACTIONS`

    def actions(self, **options: Any) -> tuple[str, ...]:
        """Return the IAM actions that the job needs; `options` of other jobs are ignored."""
        module, _, name = ACTIONS[self.kind].partition(":")
        function = getattr(importlib.import_module(f"vmsnix_ops.{module}"), name)
        known = inspect.signature(function).parameters
        given = {option: value for option, value in {**self.options, **options}.items() if option in known}
        found: tuple[str, ...] = function(**given)
        return found


ACTIONS = {
    "publisher": "aws.iam.policies:publisher_actions",
    "promoter": "channels.policies:promoter_actions",
    "smoke-tester": "channels.policies:smoke_tester_actions",
    "verifier": "channels.policies:verifier_actions",
    "prover": "publish.prove:prover_actions",
    "auditor": "audit.policies:auditor_actions",
    "audit-member": "audit.policies:member_actions",
    "retirer": "audit.policies:retirer_actions",
    "preflight": "aws.iam.policies:thorough_actions",
    "archivist": "runbooks.evidence.archive:archivist_actions",
    "notifier": "runbooks.execution.notices:notifier_actions",
    "bootstrap": "aws.bootstrap:bootstrapper_actions",
}
"""The function that returns the actions of each kind of job; its module is imported when it is called."""

JOBS: dict[str, PolicyJob] = {
    "import": PolicyJob("publisher"),
    "direct": PolicyJob("publisher", {"via": "direct"}),
    "incremental": PolicyJob("publisher", {"via": "direct", "incremental": True}),
    "public": PolicyJob("publisher", {"via": "direct", "public": True}),
    "verify": PolicyJob("publisher", {"via": "direct", "verify": True}),
    "promote": PolicyJob("promoter"),
    "public promotion": PolicyJob("promoter", {"public": True}),
    "announced promotion": PolicyJob("promoter", {"announce": True}),
    "smoke test": PolicyJob("smoke-tester"),
    "first spot test": PolicyJob("smoke-tester", {"spot": True}),
    "verify AMIs": PolicyJob("verifier"),
    "verify blocks": PolicyJob("verifier", {"blocks": True}),
    "prove": PolicyJob("prover"),
    "prove from an archive": PolicyJob("prover", {"archive": True}),
    "audit": PolicyJob("auditor"),
    "audit member": PolicyJob("audit-member"),
    "retire": PolicyJob("retirer"),
    "preflight": PolicyJob("preflight"),
    "evidence": PolicyJob("archivist"),
    "notices": PolicyJob("notifier"),
    "bootstrap": PolicyJob("bootstrap"),
}
"""Every job by its name on the page of permissions.

A new job needs a run in ``tests/privileges/job_runs.py``; a test repeats it without each of its actions.
"""

KINDS = tuple(ACTIONS)
"""Policies of jobs that ``vmsnix iam-policy`` prints."""
OTHERS = ("vmimport-role", "vmimport-trust", "audit-member-trust", "bucket", "github-oidc-trust")
"""Other policies: of a service role, of a bucket, and trust policies of roles."""
NEED_BUCKET = ("publisher", "archivist", "bootstrap", "vmimport-role", "bucket")
"""Policies that name a bucket or its objects."""


@click.command("iam-policy")
@click.argument("kind", type=click.Choice([*KINDS, *OTHERS]))
@click.option(
    "--bucket", default="", help="Bucket of the uploads or of the archive.  [default: from vmsnix.toml]"
)
@click.option("--account", default="*", show_default=True, help="AWS account ID, 12 digits.")
@region_option("Region to limit the policy to; can be repeated.")
@click.option(
    "--partition",
    default="",
    help="Partition: aws, aws-cn, aws-us-gov, aws-eusc, ...  [default: the partition of the regions]",
)
@click.option("--role-name", default="", help="Service role of VM Import.  [default: from vmsnix.toml]")
@click.option("--kms-key", default="", help="KMS key ARN for a publisher, prover or vmimport-role.")
@click.option(
    "--via",
    type=click.Choice(["import", "direct"]),
    default="import",
    show_default=True,
    help="Publisher: method to create the snapshot.",
)
@click.option(
    "--public", is_flag=True, help="Promoter, or publisher with --via direct: allow making AMIs public."
)
@click.option("--announce", is_flag=True, help="Promoter: allow publishing to SNS topics.")
@click.option(
    "--topic", default="", help="Promoter with --announce: ARN of the topic.  [default: every topic]"
)
@click.option(
    "--spot",
    is_flag=True,
    help="Smoke-tester: allow creating the role for the account's first spot instance.",
)
@click.option("--verify", is_flag=True, help="Publisher with --via direct: allow reading snapshots back.")
@click.option("--incremental", is_flag=True, help="Publisher with --via direct: allow incremental snapshots.")
@click.option(
    "--blocks", is_flag=True, help="Verifier: allow reading and downloading the bytes of snapshots."
)
@click.option(
    "--archive", is_flag=True, help="Prover: allow reading results of publishes from an archive on S3."
)
@click.option(
    "--external-id", default="", help="audit-member-trust: external ID that an auditor must also send."
)
@click.option("--repository", default="", help="github-oidc-trust: repository, as owner/name.")
@click.option(
    "--subject",
    default="ref:refs/heads/main",
    show_default=True,
    help="github-oidc-trust: workflows of the repository to trust.",
)
@click.option(
    "--any-subject",
    is_flag=True,
    help="github-oidc-trust: accept a subject with an open wildcard, such as '*' or 'main*'.",
)
def iam_policy(
    kind: str,
    bucket: str,
    account: str,
    regions: tuple[str, ...],
    partition: str,
    role_name: str,
    kms_key: str,
    topic: str,
    external_id: str,
    repository: str,
    subject: str,
    any_subject: bool,
    **variant: Any,
) -> None:
    """Print the smallest policy of a job, or a trust policy, as JSON.

    The policy allows only the actions that the job needs.
    """
    from vmsnix_ops import errors
    from vmsnix_ops.audit import policies as audit
    from vmsnix_ops.aws import keys
    from vmsnix_ops.aws.iam import policies
    from vmsnix_ops.settings import load

    settings = load()
    configured, key_prefix = settings.bucket, settings.key_prefix
    archive, via = variant["archive"] and kind == "prover", variant["via"]
    of_archive = kind == "archivist" or archive
    if of_archive:  # the archive can be in another bucket than the uploads
        configured, _, prefix = settings.archive.removeprefix("s3://").partition("/")
        configured = configured if settings.archive.startswith("s3://") else None
        key_prefix = f"{prefix}/" if configured and prefix else ""
        if configured and bucket and bucket != configured:
            raise errors.UsageError(
                f"--bucket is {bucket}, but the archive is in {configured}.",
                why=f"vmsnix.toml sets archive to {settings.archive}.",
                fix="Leave out --bucket, or print the policy for that archive: "
                f"VMSNIX_ARCHIVE=s3://{bucket}/evidence vmsnix iam-policy {kind}",
            )
    bucket = bucket or configured or ""
    needs_bucket = kind in NEED_BUCKET and not (kind == "publisher" and via == "direct")
    if (needs_bucket or archive) and not bucket:
        raise errors.UsageError(
            f"No bucket for the policy {kind}.",
            why="Without one, the policy would apply to the objects of every bucket.",
            fix=f"Add --bucket NAME, or set {'archive' if of_archive else 'bucket'} in vmsnix.toml.",
        )
    deny_uploads = False
    uploads = settings.key_prefix
    if kind == "archivist" and (uploads.startswith(key_prefix) or key_prefix.startswith(uploads)):
        if settings.bucket == bucket or (not settings.bucket and key_prefix.startswith(uploads)):
            raise errors.UsageError(
                "The archive and the uploads are in the same location.",
                why=f"An archivist could replace an image below s3://{bucket}/{uploads} before its import.",
                fix=f'Set archive = "s3://{bucket}/evidence" in vmsnix.toml, or use another bucket.',
            )
        deny_uploads = not settings.bucket  # the uploads could be in the bucket of the archive
    scope = policies.PolicyScope(
        topic=topic or (settings.notify_topic if kind == "notifier" else ""),
        account=account,
        regions=regions,
        bucket=bucket or "*",
        key_prefix=key_prefix,
        role_name=role_name or settings.role_name,
        kms_key=_key(kms_key or settings.kms_key),
        partition=partition,
        audit_role=settings.audit_role,
        channel_prefix=settings.channel_prefix,
    )
    if kind in KINDS:
        policy = policies.policy_document(PolicyJob(kind).actions(**variant), scope)
        if deny_uploads:
            policy["Statement"].append(policies.deny_uploads_statement(scope, uploads))
        if kind == "publisher":
            policy = policies.add_key_statements(policy, scope, via=via)
        elif kind == "prover":
            policy["Statement"] += keys.reader_statements(scope.kms_key)
        echo(json(policy, indent=2))
        return
    documents: dict[str, Callable[[], dict[str, Any]]] = {
        "vmimport-role": lambda: policies.import_role_policy(scope),
        "vmimport-trust": policies.import_role_trust_policy,
        "audit-member-trust": lambda: audit.member_trust(scope, external_id=external_id),
        "bucket": lambda: policies.tls_only_policy(scope),
        "github-oidc-trust": lambda: policies.github_trust_policy(
            scope, repository=repository, subject=subject, any_subject=any_subject
        ),
    }
    echo(json(documents[kind](), indent=2))


def _key(kms_key: str) -> str:
    """Return the ARN of a key; refuse a key ID or alias, which a policy cannot contain."""
    from vmsnix_ops import errors
    from vmsnix_ops.aws import keys

    if kms_key and not keys.KEY_ARN.fullmatch(keys.check_key(kms_key)):
        raise errors.ParameterError(
            f"The kms_key {kms_key!r} is not an ARN.",
            why="A policy needs the ARN of a key.",
            fix="Pass --kms-key arn:aws:kms:REGION:ACCOUNT:key/ID.",
        )
    return kms_key


@click.command("attestation-policy")
@click.argument("amis", nargs=-1, metavar="[AMI]...")
@click.option("--image", default="", help="Image of the channel.")
@click.option("--channel", default="", help="Use the AMIs of this channel, instead of AMI arguments.")
@click.option("--last", default=1, show_default=True, help="Number of AMIs of the channel, newest first.")
@click.option("--region", default="", help="Region of the AMIs.  [default: from vmsnix.toml or AWS_REGION]")
@click.option("--principal", default="", help="ARN of the instances' role.  [default: a placeholder]")
@click.option("--accept-interactive", is_flag=True, help="Allow images on which people can become root.")
@click.option(
    "--accept-host-only", is_flag=True, help="Allow images that attest the host, not its containers."
)
def attestation_policy(
    amis: tuple[str, ...],
    image: str,
    channel: str,
    last: int,
    region: str,
    principal: str,
    accept_interactive: bool,
    accept_host_only: bool,
) -> None:
    """Print a KMS key policy statement that allows the key only to instances of attested AMIs.

    The measurements come from the bytes of each AMI's snapshot. Standard output gets the statement; standard
    error lists what it does not guarantee.
    """
    from vmsnix_ops.channels import attestation

    policy = attestation.read(
        amis=amis,
        image=image,
        channel=channel,
        last=last,
        region=region,
        principal=principal,
        accept_interactive=accept_interactive,
        accept_host_only=accept_host_only,
    )
    for note in policy.notes():
        echo(f"note: {note}", err=True)
    echo(json({"Version": "2012-10-17", "Statement": policy.statements()}, indent=2))
