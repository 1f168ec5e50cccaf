"""Make the KMS key policy that only instances of certain attested AMIs fulfil.

The measurements are predicted from the bytes of each AMI's snapshot, not from its tags, which everybody who
may tag the AMI can change. Only the partition table and the EFI system partition are read. They contain the
root hash of the store; `vmsnix_ops.publish.prove` also reads the store.

Sources: "Condition keys for NitroTPM" in the AWS KMS Developer Guide (names and operations of the condition
keys, lower-case hexadecimal values, StringEqualsIgnoreCase); "Prepare AWS KMS for attestation" in the Amazon
EC2 User Guide (PCR 4 and PCR 12 without Secure Boot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import channels, parameters, regions
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.boot.measurements import measure
from vmsnix_ops.publish.identity import measurement_tags
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.boot.measurements import Measurements

KEY = "kms:RecipientAttestation:NitroTPMPCR"
ACTIONS = ("kms:Decrypt", "kms:DeriveSharedSecret", "kms:GenerateDataKey", "kms:GenerateDataKeyPair")
"""Operations that compare the condition keys, without GenerateRandom, which uses no key."""

WHY_NOT_PCR_7 = (
    "PCR 7 is not in the policy: it is the same for every image that is signed with the same key. A policy "
    "with PCR 7 alone would allow all of them, also older ones with known vulnerabilities."
)
HOST_ONLY = (
    "{ami_id} attests the host, not its tasks: containers are not measured, and each principal that "
    "may place tasks in its cluster runs them on an attested host."
)
OPEN_CLUSTER = "{ami_id} does not fix its cluster: the principal that launches it chooses the cluster."


@dataclass(frozen=True, slots=True)
class AttestationPolicy:
    """The attested AMIs, and the statement of a key policy for them."""

    amis: tuple[Ami, ...]
    measurements: tuple[Measurements, ...]  # of each AMI, from the bytes of its snapshot
    principal: str

    def statements(self) -> list[dict[str, Any]]:
        """Return the statements: one for each PCR 12, so that no other combination is allowed."""
        by_pcr12: dict[str, list[str]] = {}
        for one in self.measurements:
            values = by_pcr12.setdefault(one.pcr12_sha384, [])
            if one.pcr4_sha384 not in values:
                values.append(one.pcr4_sha384)
        return [
            {
                "Sid": f"AttestedImages{number}",
                "Effect": "Allow",
                "Principal": {"AWS": self.principal},
                "Action": list(ACTIONS),
                "Resource": "*",
                "Condition": {"StringEqualsIgnoreCase": {f"{KEY}4": sorted(pcr4), f"{KEY}12": pcr12}},
            }
            for number, (pcr12, pcr4) in enumerate(sorted(by_pcr12.items()), 1)
        ]

    def notes(self) -> list[str]:
        """Return what the policy does not guarantee."""
        notes = [
            "The policy lists PCR 4 (the unified kernel image, whose command line has the root hash of the "
            "store) and PCR 12 (changes of the command line and credentials at boot). Both are necessary.",
            WHY_NOT_PCR_7,
            "Other statements of the key policy, and grants, can still allow the same operations without "
            "attestation.",
        ]
        for ami, found in zip(self.amis, self.measurements, strict=True):
            if found.interactive:
                notes.append(f"{ami.ami_id} is interactive: people can become root on its instances.")
            if found.host_only:
                notes.append(HOST_ONLY.format(ami_id=ami.ami_id))
                notes += [] if found.cluster else [OPEN_CLUSTER.format(ami_id=ami.ami_id)]
        return notes


@check_arguments
def read(
    *,
    amis: Iterable[str] = (),
    image: str = "",
    channel: str = "",
    last: int = 1,
    region: str = "",
    principal: str = "",
    accept_interactive: bool = False,
    accept_host_only: bool = False,
    session: boto3.Session | None = None,
) -> AttestationPolicy:
    """Read the measurements of AMIs from their snapshots, and return the policy. Nothing is changed.

    The AMIs are IDs or names, or the `last` AMIs that this channel of the image contained. `principal` is the
    ARN of the instances' role; by default the policy has a placeholder. `accept_interactive` allows images on
    whose instances people can become root, `accept_host_only` images that attest the host, not its
    containers.

    Raises a `ParameterError` if the parameters are incomplete or an AMI needs one of these confirmations, an
    `ImageFormatError` if an AMI is not attested or its measurements cannot be predicted, and a `DriftError`
    if its tags have other measurements than its bytes.
    """
    settings, session = load(), session or default_session()
    words = tuple(dict.fromkeys(amis))
    if bool(words) == bool(channel) or (channel and not image):
        raise errors.ParameterError(
            "Give either AMIs, or an image and a channel.",
            why="A policy allows only the images that you choose.",
            fix="vmsnix attestation-policy AMI, or --image NAME --channel NAME --last N",
        )
    if last < 1:
        raise errors.ParameterError(f"Invalid last {last}: use at least 1.")
    (region,) = regions.check_regions([regions.home_region(session, region, settings.region)])
    ec2, ssm = client(session, "ec2", region), client(session, "ssm", region)
    if channel:
        name = parameters.parameter_name(settings.channel_prefix, image, channel)
        values = [one.value for one in reversed(parameters.read_history(ssm, name))]
        words = tuple(dict.fromkeys(values))[:last]
        if not words:
            raise errors.ChannelError(
                f"The channel {channel} of {image} has no value in {region}.",
                why=f"No parameter {name}.",
                fix="Promote an AMI to it first, or use AMI IDs.",
            )
    found = tuple(channels.find_ami(ec2, ssm, word, image="", settings=settings) for word in words)
    measured = tuple(read_ami(session, ami) for ami in found)
    for ami, one in zip(found, measured, strict=True):
        if one.interactive and not accept_interactive:
            raise errors.ParameterError(
                f"{ami.ami_id} is an interactive image.",
                why="People can become root on its instances, and change what runs after the measurement.",
                fix="Use an image without attested.interactive, or add --accept-interactive.",
            )
        if one.host_only and not accept_host_only:
            raise errors.ParameterError(
                HOST_ONLY.format(ami_id=ami.ami_id),
                why="A key for this image is a key for all tasks on its instances.",
                fix="Add --accept-host-only if everybody who may place tasks there may use the key.",
            )
    return AttestationPolicy(found, measured, principal or "arn:aws:iam::ACCOUNT:role/ROLE")


def read_ami(session: boto3.Session, ami: Ami) -> Measurements:
    """Return the measurements of an AMI from its root snapshot, after comparing its tags with them."""
    if ami.tpm_support != "v2.0" or not ami.snapshot_ids:
        raise errors.ImageFormatError(
            f"{ami.ami_id} is not an attested AMI.",
            why=f"Its TPM support is {ami.tpm_support or 'none'}.",
            fix="Publish an attested image: vmsnix publish --image gc-fwd-attested",
        )
    with reading.open_snapshot(session, region=ami.region, snapshot_id=ami.snapshot_ids[0]) as disk:
        found = measure(disk)
    if found is None:
        raise errors.ImageFormatError(
            f"{ami.ami_id} is not an attested AMI.",
            why=f"{ami.snapshot_ids[0]} has no unified kernel image with a root hash.",
            fix="Publish an attested image: vmsnix publish --image gc-fwd-attested",
        )
    for key, value in measurement_tags(found).items():
        if ami.tags.get(key, value) != value:
            raise errors.DriftError(
                f"The tag {key} of {ami.ami_id} is not that of its bytes.",
                why=f"The tag is {ami.tags[key]}, but the bytes of {ami.snapshot_ids[0]} have {value}.",
                fix=f"Find out who changed it, then prove the AMI: vmsnix prove {ami.ami_id}",
            )
    return found
