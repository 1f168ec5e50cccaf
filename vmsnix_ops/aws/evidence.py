"""One sign that an AMI is used, and where ids of AMIs stand in texts."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = r"\d+(?: \((?:default|latest|default and latest)\))?"
_VERSIONS = re.compile(rf", versions? ({_VERSION}(?:, {_VERSION})*)(?:,|$)")
AMI_ID = re.compile(r"\bami-(?:[0-9a-f]{17}|[0-9a-f]{8})\b")


@dataclass(frozen=True, slots=True, order=True)
class Evidence:
    """One sign that an AMI is used.

    Attributes
    ----------
    kind
        One of `NAMES` or `HINTS`.
    id
        What uses it: an instance, a template, the name of a parameter, an account.
    detail
        What a person wants to know of it.
    """

    kind: str
    id: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id}" + (f" ({self.detail})" if self.detail else "")

    @property
    def versions(self) -> dict[int, str]:
        """The versions of a launch template that name it, each with what it is: ``default and latest``."""
        found = _VERSIONS.search(self.detail) if self.kind == "launch-template" else None
        words = found[1].split(", ") if found else ()
        return {int(word.split()[0]): word.partition("(")[2].rstrip(")") for word in words}

    @property
    def launches(self) -> bool:
        """Whether the next launch may take it.

        An old version of a launch template does not (a group that is pinned to it is evidence of its own),
        nor does a launch configuration by itself, nor a text that mentions an AMI.
        """
        if self.kind == "launch-template":
            return any(self.versions.values())
        if self.kind == "parameter":
            return self.detail.startswith("aws:ec2:image")
        return self.kind in ("auto-scaling-group", "image-recipe", "container-recipe")
