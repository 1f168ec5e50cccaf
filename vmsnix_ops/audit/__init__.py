"""List every AMI and snapshot with its usage, cost, findings and fixes.

>>> from vmsnix_ops import audit
>>> found = audit.check(regions=["all"], fail_on="high")  # doctest: +SKIP
>>> found.show_findings("critical", "high")  # doctest: +SKIP
"""

from __future__ import annotations

from vmsnix_ops.audit.reports import AuditResult, check

__all__ = ["AuditResult", "check"]


def __dir__() -> list[str]:
    return __all__
