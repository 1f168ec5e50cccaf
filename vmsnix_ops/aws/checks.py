"""What a check is, and what becomes of several.

A check never raises. It says what it found, and carries the error that the job would have ended with, so that
the preflight runbook shows all of them and a publish stops at the first that failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import denied_action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What was checked.
    outcome
        ``"pass"``, ``"warn"`` (it may work; look at it) or ``"fail"`` (it will not work).
    evidence
        What was found.
    fix
        What to do; empty when it passed.
    error
        What a job would end with.
    facts
        What later steps want to know, such as the age of a role.
    """

    name: str
    outcome: Literal["pass", "warn", "fail"]
    evidence: str
    fix: str = ""
    error: errors.VmsnixError | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def checked(name: str, look: Callable[[], Check]) -> Check:
    """Return what a look at something found; who may not look is warned, and every other error fails."""
    try:
        return look()
    except errors.AccessDeniedError as error:
        action = denied_action(error.why, error.operation) or error.operation
        return Check(name, "warn", f"not checked: {error.why}", f"Allow {action} to enable this check.")
    except errors.VmsnixError as error:
        return Check(name, "fail", f"{error.what} {error.why}".strip(), error.fix, error)


def frame(checks: Iterable[Check]) -> pd.DataFrame:
    """Return checks as a table: ``check``, ``outcome``, ``evidence``, ``fix``."""
    import pandas as pd

    rows = [(check.name, check.outcome, check.evidence, check.fix) for check in checks]
    return pd.DataFrame(rows, columns=["check", "outcome", "evidence", "fix"])


def require(checks: Iterable[Check]) -> None:
    """Raise the error of the first check that failed."""
    for check in checks:
        if check.outcome == "fail":
            raise check.error or errors.VmsnixError(check.evidence, fix=check.fix)
