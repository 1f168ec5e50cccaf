"""``vmsnix iam-policy``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = (
    "publisher",
    "auditor",
    "preflight",
    "bootstrap",
    "vmimport-role",
    "vmimport-trust",
    "bucket",
    "github-oidc-trust",
)


@click.command("iam-policy")
@click.argument("kind", type=click.Choice(KINDS))
@click.option(
    "--bucket", default="", help="Bucket of the uploads; by default the settings', else every bucket."
)
@click.option("--account", default="*", show_default=True, help="Account id, 12 digits.")
@click.option("--region", "regions", multiple=True, help="Hold it to this region; may be given again.")
@click.option("--partition", default="aws", show_default=True, help="aws, aws-cn or aws-us-gov.")
@click.option("--role-name", default="", help="Service role of VM Import; by default the settings'.")
@click.option(
    "--via",
    type=click.Choice(["import", "direct"]),
    default="import",
    show_default=True,
    help="Of a publisher: the way to the snapshot.",
)
@click.option("--public", is_flag=True, help="Of a publisher: may make AMIs public.")
@click.option("--verify", is_flag=True, help="Of a publisher: may read snapshots back.")
@click.option("--repository", default="", help="Of github-oidc-trust: owner/name.")
@click.option(
    "--subject",
    default="ref:refs/heads/main",
    show_default=True,
    help="Of github-oidc-trust: which workflows of the repository.",
)
def iam_policy(
    kind: str,
    bucket: str,
    account: str,
    regions: tuple[str, ...],
    partition: str,
    role_name: str,
    via: str,
    public: bool,
    verify: bool,
    repository: str,
    subject: str,
) -> None:
    """Print the smallest policy of a job, or a trust policy, as JSON.

    The actions are those that the code itself declares. Promotion and retirement get theirs together with
    their jobs.
    """
    from vmsnix_ops.audit import policies as audit
    from vmsnix_ops.aws import bootstrap, policies
    from vmsnix_ops.aws.permissions import needs_of
    from vmsnix_ops.settings import load

    settings = load()
    place = policies.Place(
        account=account,
        regions=regions,
        bucket=bucket or settings.bucket or "*",
        key_prefix=settings.key_prefix,
        role_name=role_name or settings.role_name,
        partition=partition,
    )
    documents: dict[str, Callable[[], dict[str, Any]]] = {
        "publisher": lambda: policies.publisher(place, via=via, public=public, verify=verify),
        "auditor": lambda: audit.auditor(place),
        "preflight": lambda: policies.preflight(place),
        "bootstrap": lambda: policies.document(needs_of(bootstrap.look, bootstrap.make), place),
        "vmimport-role": lambda: policies.import_role(place),
        "vmimport-trust": policies.import_trust,
        "bucket": lambda: policies.tls_only(place),
        "github-oidc-trust": lambda: policies.github_trust(place, repository=repository, subject=subject),
    }
    click.echo(json.dumps(documents[kind](), indent=2))
