"""Channels: which there are, where each points, and what it pointed to before.

A channel of an image (``candidate``, ``stable``) is a parameter in every region. Which channels there are is
a setting, so that a mistyped one is refused and not made.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, parameters, retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import AMI_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.settings import Settings


def check(channel: str, settings: Settings) -> str:
    """Return a channel that there is.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such channel; names the nearest.
    """
    if channel in settings.channels:
        return channel
    raise errors.ParameterError(
        f"Unknown channel {channel!r}.",
        why=errors.nearest(channel, settings.channels) or f"The channels are {', '.join(settings.channels)}.",
        fix="Correct the name, or add it to channels in vmsnix.toml.",
    )


def find_ami(ec2: EC2Client, ssm: SSMClient, wanted: str, *, image: str, settings: Settings) -> Ami:
    """Return the AMI that an operator means.

    Parameters
    ----------
    ec2, ssm
        Clients of its region.
    wanted
        Its id, its name, a channel (what that points to), or nothing: the newest of the image.
    image
        Short name of the image, for the last two.
    settings
        Which channels there are.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        There is no such AMI.
    vmsnix_ops.errors.PointerError
        The channel points to nothing.
    vmsnix_ops.errors.ParameterError
        The newest is asked for, and there is one for each of several architectures.
    """
    region = ec2.meta.region_name
    if wanted in settings.channels:
        if not image:
            raise errors.ParameterError(
                f"No image given for the channel {wanted}.",
                why="Each image has its own channels.",
                fix="Add --image NAME.",
            )
        name = parameters.pointer_name(settings.pointer_prefix, image, wanted)
        pointer = parameters.find(ssm, name)
        if pointer is None:
            raise errors.PointerError(
                f"The channel {wanted} of {image} has no value in {region}.",
                why=f"No parameter {name}.",
                fix=f"Promote an AMI to {wanted} first, or use an AMI ID or name.",
            )
        wanted = pointer.value
    if AMI_ID.fullmatch(wanted):
        found = images.find(ec2, [wanted]).get(wanted)
    elif wanted:
        found = next(iter(images.named(ec2, wanted)), None)  # `check_usable` reports one that is disabled
    else:
        found = _newest(images.ours(ec2), image)
    if found is None:
        what = f"AMI {wanted}" if wanted else f"AMI of the image {image!r}"
        raise errors.RegistrationError(
            f"No {what} in {region} is visible to these credentials.",
            why="It was deregistered, is in another region, or belongs to another account.",
            fix="To list published AMIs with their regions, run vmsnix history amis",
        )
    return found


def _newest(ours: Iterable[Ami], image: str) -> Ami | None:
    """Return the newest AMI of an image, if it is clear which machines it shall be for."""
    usable = [ami for ami in ours if ami.tags.get(tagging.IMAGE) == image and ami.state == "available"]
    newest = {ami.architecture: ami for ami in usable}  # they come in the order of their creation
    if len(newest) > 1:
        told = ", ".join(f"{ami.name} ({architecture})" for architecture, ami in sorted(newest.items()))
        raise errors.ParameterError(
            f"The image {image!r} has AMIs for {' and '.join(sorted(newest))}.",
            why=f"The newest are {told}.",
            fix="Choose one of them: --ami NAME.",
        )
    return usable[-1] if usable else None


def check_usable(ami: Ami, *, owner: str, now: datetime) -> Ami:
    """Return an AMI that a channel may point to.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        It belongs to another account, was not published by us, is disabled, deprecated or not available, or
        carries the mark of a retirement.
    """
    where = f"The AMI {ami.ami_id} in {ami.region}"
    if ami.account != owner:
        raise errors.RegistrationError(
            f"{where} belongs to the account {ami.account}.",
            why=f"These credentials are for {owner}; an AMI of another account can change or be deregistered "
            "at any time.",
            fix="Promote it with the credentials of its owner.",
        )
    if not ami.digest or not ami.tags.get(tagging.IMAGE):
        raise errors.RegistrationError(
            f"{where} was not published by vmsnix.",
            why=f"It lacks the tags {tagging.IMAGE} and {tagging.DIGEST}.",
            fix="Publish the image with vmsnix publish.",
        )
    if ami.state != "available":
        raise errors.RegistrationError(
            f"{where} is {ami.state}.",
            why="Only an available AMI can be launched.",
            fix=f"Restore it: {images.restoring(ami)}"
            if ami.state == "disabled"
            else ("Choose another AMI."),
        )
    retiring.check_unmarked(ami)
    if ami.deprecated_at is not None and ami.deprecated_at <= now:
        raise errors.RegistrationError(
            f"{where} has been deprecated since {ami.deprecated_at:%Y-%m-%d %H:%M} UTC.",
            why="A deprecated AMI is not for new use.",
            fix="Choose another AMI, or remove the date first: aws ec2 disable-image-deprecation --image-id "
            f"{ami.ami_id} --region {ami.region}",
        )
    return ami


def check_now(ec2: EC2Client, ami_id: str, *, owner: str) -> None:
    """Refuse an AMI that is being retired or can no longer be used, as it is this moment.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        As for `check_usable`, or it is gone.
    """
    found = images.find(ec2, [ami_id]).get(ami_id)
    if found is None:
        raise errors.RegistrationError(
            f"The AMI {ami_id} in {ec2.meta.region_name} no longer exists.",
            why="It was deregistered in the meantime.",
            fix="Choose another AMI.",
        )
    check_usable(found, owner=owner, now=datetime.now(UTC))


def check_again(ec2: EC2Client, ami_id: str, *, owner: str) -> None:
    """Do as `check_now` after an AMI was put to use: several times, because a read may be some moments old.

    `vmsnix_ops.aws.retiring` says why.
    """
    for _ in retiring.looks():
        check_now(ec2, ami_id, owner=owner)
