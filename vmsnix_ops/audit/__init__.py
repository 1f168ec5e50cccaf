"""List what AWS accounts own, what uses it, what it costs, what is wrong with it, and how to fix that.

>>> from vmsnix_ops import audit
>>> found = audit.check(regions=["all"], fail_on="high")  # doctest: +SKIP
>>> found.worst("critical", "high")  # doctest: +SKIP
"""

from __future__ import annotations

from vmsnix_ops.audit.reports import AuditResult, check

__all__ = ["AuditResult", "check"]


def __dir__() -> list[str]:
    return __all__
