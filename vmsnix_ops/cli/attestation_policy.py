"""``vmsnix attestation-policy``: the KMS key policy for the instances of attested AMIs."""

from __future__ import annotations

import click

from vmsnix_ops.text import echo, json


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
