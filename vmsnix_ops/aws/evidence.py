"""One sign that an AMI is used, and where ids of AMIs stand in texts."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
