"""What Parameter Store remembers, in table ``parameters`` of each region by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(slots=True)
class Version:
    """One version of a parameter."""

    number: int
    value: str
    kind: str  # String, StringList or SecureString
    data_type: str  # text or aws:ec2:image
    modified: datetime
    principal: str
    description: str
    allowed_pattern: str
    tier: str
    labels: list[str] = field(default_factory=list)
    key: str = ""  # ARN of the KMS key of a SecureString
    alias: str = ""  # and how the caller named it


@dataclass(slots=True)
class Parameter:
    """A parameter with its versions, the newest last."""

    name: str
    arn: str
    versions: list[Version]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def newest(self) -> Version:
        """The version that counts."""
        return self.versions[-1]


@dataclass(slots=True)
class Unchecked:
    """A value of the type aws:ec2:image that Parameter Store accepted and has not checked yet.

    In table ``unchecked_parameters`` of each region by the id of the request, in their order.
    """

    name: str
    arn: str
    version: Version
    tags: dict[str, str]
