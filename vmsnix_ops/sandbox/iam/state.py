"""What IAM remembers. Roles, users and policies are global: ``context.table("roles", region="")`` by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(slots=True)
class Role:
    """A role; in table ``roles`` by name."""

    name: str
    arn: str
    role_id: str
    path: str
    created: datetime
    trust_policy: str  # JSON as it was given
    description: str = ""
    max_session_seconds: int = 3600
    tags: dict[str, str] = field(default_factory=dict)
    inline_policies: dict[str, str] = field(default_factory=dict)  # JSON by name
    attached_policies: list[str] = field(default_factory=list)  # ARNs
    boundary: str | None = None  # ARN of the permissions boundary


@dataclass(slots=True)
class User:
    """A user; in table ``users`` by name. Its keys are in `credentials`."""

    name: str
    arn: str
    user_id: str
    path: str
    created: datetime
    tags: dict[str, str] = field(default_factory=dict)
    inline_policies: dict[str, str] = field(default_factory=dict)
    attached_policies: list[str] = field(default_factory=list)
    keys: dict[str, datetime] = field(default_factory=dict)  # when each access key was made


@dataclass(slots=True)
class Policy:
    """A managed policy of the account; in table ``policies`` by ARN."""

    name: str
    arn: str
    policy_id: str
    path: str
    created: datetime
    updated: datetime
    description: str
    versions: dict[str, tuple[str, datetime]]  # JSON and time by version id, such as "v1"
    default_version: str = "v1"
    next_version: int = 2
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> str:
        """The JSON of the default version."""
        return self.versions[self.default_version][0]
