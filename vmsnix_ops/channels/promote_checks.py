"""What an operator may ask of a promotion, checked first: audiences, regions, keys, a topic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import sharing, topics
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import checked, require
from vmsnix_ops.aws.regions import ALL, enabled, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.publish.home import Home


def audiences(
    share_with: Iterable[str], revoke_from: Iterable[str], *, public: bool
) -> tuple[sharing.Audience, sharing.Audience]:
    """Return who gets and who loses it; refuse who would do both, and a public that slipped in."""
    share, revoke = sharing.audience(share_with), sharing.audience(revoke_from)
    if share.public:
        raise errors.ParameterError(
            "public is nobody to share with.",
            why="What is public cannot be taken back from who copied it.",
            cure="Set public and confirm_public if everybody shall launch the AMI.",
        )
    share = replace(share, public=public)
    both = share.within(revoke)
    if both:
        raise errors.ParameterError(
            f"{both} cannot be given and taken away at once.", cure="Leave one of the two out."
        )
    return share, revoke


def regions_of(
    home: Home, regions: tuple[str, ...], best_effort: tuple[str, ...]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the other regions, and those among them whose failure does not count."""
    if ALL in regions or ALL in best_effort:
        every = enabled(home.client("ec2"))
        best_effort = every if ALL in best_effort else best_effort
    else:
        every = ()
    asked = (name for name in (*regions, *every, *best_effort) if name not in (ALL, home.region))
    # A region that is named counts as it is named, whatever "all" says of it.
    return named(asked), frozenset(best_effort) - frozenset(regions) - {home.region}


def check_protection(*, protect: bool, unprotect: bool) -> None:
    """Refuse a promotion that would do both."""
    if protect and unprotect:
        raise errors.ParameterError(
            "The protection cannot be set and lifted at once.", cure="Leave one of the two out."
        )


def check_keys(keys: Mapping[str, str], home: str, others: tuple[str, ...]) -> None:
    """Refuse a key for a region that nothing is copied to, and a key of another region."""
    for region, key in keys.items():
        if region not in others:
            raise errors.ParameterError(
                f"There is a key for {region}, where nothing is copied to.",
                why="It is the AMI's own region." if region == home else errors.nearest(region, others),
                cure="Leave it out, or add the region to regions.",
            )
        if key.startswith("arn:") and f":kms:{region}:" not in key:
            raise errors.ParameterError(
                f"The key for {region} is of another region.",
                why=f"It is {key}.",
                cure=f"Name a key of {region}.",
            )


def check_topic(topic: str) -> None:
    """Refuse what is no ARN of an SNS topic."""
    if topic and (topic.count(":") != 5 or not topic.startswith("arn:") or ":sns:" not in topic):
        raise errors.ParameterError(
            f"The topic {topic!r} is no ARN of an SNS topic.",
            cure="Give one such as arn:aws:sns:eu-central-1:012345678901:images.",
        )


def topic_checks(topic: str, session: boto3.Session) -> list[Check]:
    """Return whether the topic is there, when one was given; nobody should learn it after the pointers moved.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is none of that ARN.
    """
    checks = [checked("topic", lambda: topics.check(topic, session=session))] if topic else []
    require(checks)
    return checks


def image_of(source: Ami, image: str) -> str:
    """Return the image of an AMI; an operator who names another one is wrong about one of the two."""
    own = source.tags[tagging.IMAGE]
    if image and image != own:
        raise errors.ParameterError(
            f"The AMI {source.ami_id} is one of the image {own!r}.",
            why=f"{image!r} was given.",
            cure="Leave image out, or name another AMI.",
        )
    return own
