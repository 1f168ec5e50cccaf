"""Tags of the resources that vmsnix creates.

``vmsnix history sync`` rebuilds the history from these tags, so they are set in the call that creates the
resource where AWS allows it.
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
DERIVATION = "vmsnix:derivation"
VERSION = "vmsnix:version"
EVIDENCE = "vmsnix:evidence"  # AMIs: URL of the run's entry in an archive on S3
ADMIN_KEYS = "vmsnix:admin-keys"  # AMIs: number of SSH keys that may log in as the administrator
# AMIs: measurements of an attested image; all but the root hash in SHA-384
ROOT_HASH, UKI = "vmsnix:root-hash", "vmsnix:uki"
PCR4, PCR12 = "vmsnix:pcr4", "vmsnix:pcr12"
KEY = "vmsnix:kms-key"  # snapshots: alias of the default key that encrypts them
UEFI_DATA = "vmsnix:uefi-data"  # AMIs: digest of their UEFI data
SMOKE = "vmsnix:smoke"  # instances of smoke tests: the tested AMI
RETIRED = "vmsnix:retired"  # when it was retired; see vmsnix_ops.aws.retiring
RETAINED_UNTIL = "vmsnix:retained-until"
RETIRED_BY = "vmsnix:retired-by"
SHARED_WITH = "vmsnix:shared-with"
DEPRECATED_BEFORE = "vmsnix:deprecated-before"
STATE_BEFORE = "vmsnix:state-before"
RETIRED_WITH = "vmsnix:retired-with"  # snapshots: the AMI that was retired with them
DELETING = "vmsnix:deleting"  # the run that is about to delete it
RESTORING = "vmsnix:restoring"  # the run that is restoring it

PUBLISHED = (NAME, IMAGE, DIGEST, RUN, FLAKE, DERIVATION, VERSION)
"""Tags of a snapshot that a publish created."""
OF_RETIREMENTS = (
    RETIRED, RETAINED_UNTIL, RETIRED_BY, SHARED_WITH,
    DEPRECATED_BEFORE, STATE_BEFORE, RETIRED_WITH, RESTORING,
)  # fmt: skip
OF_ATTESTED = (ROOT_HASH, UKI, PCR4, PCR12)
OWN = (*PUBLISHED, EVIDENCE, ADMIN_KEYS, *OF_ATTESTED, KEY, UEFI_DATA, SMOKE, *OF_RETIREMENTS, DELETING)
RESERVED = ("aws:", "vmsnix:")
MOST = 50  # tags of one resource; AWS
LONGEST_KEY, LONGEST_VALUE = 127, 255
"""Longest key and value that every service accepts.

The API models of EC2 have 127 and 256, those of the EBS direct APIs 127 and 255, those of S3 128 and 256.
"""


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags without secrets, with shortened values, and without vmsnix's own empty tags.

    The URL of a flake may contain a password, and everyone who may describe an image can read its tags. An
    operator's own tags may be empty.
    """
    redactor = Redactor(secret_values())
    found = {key: redactor.text(value)[:LONGEST_VALUE] for key, value in tags.items()}
    return {key: value for key, value in found.items() if value or key not in OWN}


def to_list(tags: Mapping[str, str]) -> list[TagTypeDef]:
    """Return the result of `clean_tags` in the shape of the EC2 and EBS APIs."""
    return [{"Key": key, "Value": value} for key, value in clean_tags(tags).items()]


def to_dict(tags: Iterable[Mapping[str, Any]] | None) -> dict[str, str]:
    """Return the tags of an EC2 answer as a dictionary; AWS omits the list of a resource without tags."""
    # The equal keys of many resources share memory.
    return {sys.intern(str(tag["Key"])): str(tag.get("Value", "")) for tag in tags or ()}


def is_published(tags: Mapping[str, str]) -> bool:
    """Return whether these are the tags of a resource that vmsnix published."""
    return bool(tags.get(DIGEST))


def tag_specifications(resource: ResourceTypeType, tags: Mapping[str, str]) -> list[TagSpecificationTypeDef]:
    """Return ``TagSpecifications`` for one type of resource, such as ``"image"``."""
    return [{"ResourceType": resource, "Tags": to_list(tags)}]


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return an operator's own tags; refuse reserved keys, too long or too many tags, and secrets."""
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
