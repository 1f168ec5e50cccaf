"""Results of checks before a job, such as those of the preflight.

A check does not raise. It returns what it found, with the error that the job would end with. So the preflight
can show the results of all checks, and a publish stops at the first failed one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import denied_action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

Parameters = ParamSpec("Parameters")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check."""

    name: str
    outcome: Literal["pass", "warn", "fail"]  # "warn": the job may fail; "fail": it will fail
    found: str  # a sentence or a few words
    fix: str = ""  # what to do; empty if the check passed
    error: errors.VmsnixError | None = None  # the error that a job would end with
    facts: dict[str, Any] = field(default_factory=dict)  # for later steps, such as the age of a role


def run_check(
    name: str,
    check: Callable[Parameters, CheckResult],
    /,
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> CheckResult:
    """Return the result of a check: a warning if access is denied, a failure for every other error."""
    try:
        return check(*args, **kwargs)
    except errors.AccessDeniedError as error:
        action = denied_action(error.why, error.operation) or error.operation
        return CheckResult(name, "warn", f"not checked: {error.why}", f"Allow {action} to enable this check.")
    except errors.VmsnixError as error:
        return CheckResult(name, "fail", f"{error.what} {error.why}".strip(), error.fix, error)


def checks_frame(checks: Iterable[CheckResult]) -> pd.DataFrame:
    """Return checks as a table: ``check``, ``outcome``, ``found``, ``fix``."""
    import pandas as pd

    rows = [(check.name, check.outcome, check.found, check.fix) for check in checks]
    return pd.DataFrame(rows, columns=["check", "outcome", "found", "fix"])


def raise_for_failure(checks: Iterable[CheckResult]) -> None:
    """Raise the error of the first check that failed."""
    for check in checks:
        if check.outcome == "fail":
            raise check.error or errors.VmsnixError(check.found, fix=check.fix)
