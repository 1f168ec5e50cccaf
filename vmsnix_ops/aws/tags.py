"""The tags that everything we create carries, and how they read back.

History can be rebuilt from these tags alone (``vmsnix history sync``), so they are set in the call that
creates the resource wherever AWS allows it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.redaction import Redactor, find_secret, secret_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from types_boto3_ec2.literals import ResourceTypeType
    from types_boto3_ec2.type_defs import TagSpecificationTypeDef, TagTypeDef

NAME = "Name"
IMAGE = "vmsnix:image"
DIGEST = "vmsnix:digest"
RUN = "vmsnix:run"
FLAKE = "vmsnix:flake"
DERIVATION = "vmsnix:drv"
VERSION = "vmsnix:version"
EVIDENCE = "vmsnix:evidence"  # of an AMI: where the entry of its run is, in an archive on S3
KEY = "vmsnix:kms-key"  # of a snapshot: the alias of the default key that it was begun with
UEFI_DATA = "vmsnix:uefi-data"  # of an AMI registered with UEFI data: a digest of them
SMOKE = "vmsnix:smoke"  # instances of smoke tests: the AMI that is tested
RETIRED = "vmsnix:retired"  # what is retired: since when; see vmsnix_ops.aws.retiring
RETAINED_UNTIL = "vmsnix:retained-until"
RETIRED_BY = "vmsnix:retired-by"
SHARED_WITH = "vmsnix:shared-with"
DEPRECATED_BEFORE = "vmsnix:deprecated-before"
STATE_BEFORE = "vmsnix:state-before"
RETIRED_WITH = "vmsnix:retired-with"  # snapshots: the AMI that they went with
DELETING = "vmsnix:deleting"  # the run that is about to delete it
RESTORING = "vmsnix:restoring"  # the run that is restoring it

PUBLISHED = (NAME, IMAGE, DIGEST, RUN, FLAKE, DERIVATION, VERSION)
"""Tags of a snapshot that a publish made."""
OWN = (
    *PUBLISHED,
    EVIDENCE,
    KEY,
    UEFI_DATA,
    SMOKE,
    RETIRED,
    RETAINED_UNTIL,
    RETIRED_BY,
    SHARED_WITH,
    DEPRECATED_BEFORE,
    STATE_BEFORE,
    RETIRED_WITH,
    DELETING,
    RESTORING,
)
RESERVED = ("aws:", "vmsnix:")
MOST = 50  # AWS: tags a resource
LONGEST_KEY, LONGEST_VALUE = 127, 255
"""Characters that every service takes: those of EBS, the smaller ones.

EC2's own API model has 127 and 256, the EBS direct APIs' 127 and 255, S3's 128 and 256. The same tags go to
all of them, by either method.
"""


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags without secrets, not too long, and without empty ones of ours.

    The address of a flake may carry a password, and everybody who may describe an image reads its tags. An
    operator's tag may be empty; of ours, an empty one says nothing.
    """
    redactor = Redactor(secret_values())
    found = {key: redactor.text(value)[:LONGEST_VALUE] for key, value in tags.items()}
    return {key: value for key, value in found.items() if value or key not in OWN}


def to_list(tags: Mapping[str, str]) -> list[TagTypeDef]:
    """Return tags in the shape of the EC2 and EBS APIs, as `clean_tags` does."""
    return [{"Key": key, "Value": value} for key, value in clean_tags(tags).items()]


def to_dict(tags: Iterable[Mapping[str, Any]] | None) -> dict[str, str]:
    """Return the tags of an EC2 answer as a dictionary; a resource without tags has no list at all."""
    # Of a hundred thousand resources, each key is one text in memory.
    return {sys.intern(str(tag["Key"])): str(tag.get("Value", "")) for tag in tags or ()}


def is_published(tags: Mapping[str, str]) -> bool:
    """Return whether this package made what has these tags."""
    return bool(tags.get(DIGEST))


def tag_specifications(resource: ResourceTypeType, tags: Mapping[str, str]) -> list[TagSpecificationTypeDef]:
    """Return ``TagSpecifications`` for one kind of resource, such as ``"image"``."""
    return [{"ResourceType": resource, "Tags": to_list(tags)}]


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return an operator's own tags, or say which of them AWS would refuse.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        For a reserved key, too long a key or value, a secret, or too many tags.
    """
    for key, value in tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise errors.ParameterError(
                f"The tag {key!r} is not text.",
                why=f"Its value is {value!r}.",
                fix="Put key and value in quotes.",
            )
        if key in OWN or key.strip().lower().startswith(RESERVED):
            raise errors.ParameterError(
                f"The tag {key!r} is reserved.",
                why="vmsnix sets Name and the keys that begin with vmsnix:, AWS those that begin with aws:.",
                fix="Use another key.",
            )
        secret = find_secret(f"{key}={value}") or find_secret(value)
        if secret:
            raise errors.ParameterError(
                f"The tag {key!r} contains a secret ({secret}).",
                why="Everyone who may describe a resource can read its tags.",
                fix="Remove the tag, and replace the secret if the command line was recorded.",
            )
        if not key.strip():
            raise errors.ParameterError("A tag has no key.", fix="Use key=value.")
        if len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE:
            raise errors.ParameterError(
                f"The tag {key[:40]!r} is too long: {len(key)} and {len(value)} characters.",
                why=f"AWS allows {LONGEST_KEY} in a key and {LONGEST_VALUE} in a value.",
                fix="Shorten it.",
            )
    if len(tags) + len(OWN) > MOST:
        raise errors.ParameterError(
            f"{len(tags)} tags are too many.",
            why=f"AWS allows {MOST} per resource, and vmsnix sets {len(OWN)}.",
            fix=f"Use at most {MOST - len(OWN)}.",
        )
    return dict(tags)
