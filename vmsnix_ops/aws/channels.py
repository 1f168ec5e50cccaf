"""Find the AMI that an operator or a channel names, and check that a channel may be set to it.

The channels (``candidate``, ``stable``) are a setting, so a mistyped channel is refused and not created.
"""

from __future__ import annotations

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


def find_ami(ec2: EC2Client, ssm: SSMClient, wanted: str, *, image: str, settings: Settings) -> Ami:
    """Return the AMI with an ID or a name, of a channel of an image, or (empty) the newest AMI of the image.

    The newest is ambiguous, and refused, if the image has AMIs for several architectures.
    """
    region = ec2.meta.region_name
    if wanted in settings.channels:
        if not image:
            raise errors.ParameterError(
                f"No image given for the channel {wanted}.",
                why="Each image has its own channels.",
                fix="Add --image NAME.",
            )
        name = parameters.parameter_name(settings.channel_prefix, image, wanted)
        parameter = parameters.find_parameter(ssm, name)
        if parameter is None:
            raise errors.ChannelError(
                f"The channel {wanted} of {image} has no value in {region}.",
                why=f"No parameter {name}.",
                fix=f"Promote an AMI to {wanted} first, or use an AMI ID or name.",
            )
        wanted = parameter.value
    if AMI_ID.fullmatch(wanted):
        found = images.find_ami(ec2, wanted)
    elif wanted:
        # `check_usable` reports an AMI that is disabled.
        found = next(iter(images.find_all_by_name(ec2, wanted)), None)
    else:
        found = _newest(images.list_published_amis(ec2), image)
    if found is None:
        what = f"AMI {wanted}" if wanted else f"AMI of the image {image!r}"
        raise errors.RegistrationError(
            f"No {what} in {region} is visible to these credentials.",
            why="It was deregistered, is in another region, or belongs to another account.",
            fix="To list published AMIs with their regions, run vmsnix history amis",
        )
    return found


def _newest(ours: Iterable[Ami], image: str) -> Ami | None:
    """Return the newest AMI of an image; refuse an image with AMIs for several architectures."""
    usable = [ami for ami in ours if ami.tags.get(tagging.IMAGE) == image and ami.state == "available"]
    newest = {ami.architecture: ami for ami in usable}  # oldest first, so the newest wins
    if len(newest) > 1:
        names = ", ".join(f"{ami.name} ({architecture})" for architecture, ami in sorted(newest.items()))
        raise errors.ParameterError(
            f"The image {image!r} has AMIs for {' and '.join(sorted(newest))}.",
            why=f"The newest are {names}.",
            fix="Choose one of them: --ami NAME.",
        )
    return usable[-1] if usable else None


def check_usable(ami: Ami, *, owner: str) -> Ami:
    """Return the AMI if a channel may be set to it.

    Refuse AMIs of other accounts and of other tools, and those that are not available, are deprecated, or are
    being retired.
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
            fix=f"Restore it: {images.restore_command(ami)}"
            if ami.state == "disabled"
            else "Choose another AMI.",
        )
    retiring.check_not_retired(ami)
    if ami.deprecated:
        raise errors.RegistrationError(
            f"{where} has been deprecated since {ami.deprecated_at:%Y-%m-%d %H:%M} UTC.",
            why="A deprecated AMI is not for new use.",
            fix="Choose another AMI, or remove the date first: aws ec2 disable-image-deprecation --image-id "
            f"{ami.ami_id} --region {ami.region}",
        )
    return ami


def check_still_usable(ec2: EC2Client, ami_id: str, *, owner: str) -> Ami:
    """Return an AMI as it is now; refuse it as `check_usable` does, or if it no longer exists."""
    found = images.find_ami(ec2, ami_id)
    if found is None:
        raise errors.RegistrationError(
            f"The AMI {ami_id} in {ec2.meta.region_name} no longer exists.",
            why="It was deregistered in the meantime.",
            fix="Choose another AMI.",
        )
    return check_usable(found, owner=owner)


def check_repeatedly(ec2: EC2Client, ami_id: str, *, owner: str) -> None:
    """Call `check_still_usable` several times after a job started to use an AMI, because a read may be stale.

    `vmsnix_ops.aws.retiring` explains why.
    """
    for _ in retiring.repeated_reads():
        check_still_usable(ec2, ami_id, owner=owner)
