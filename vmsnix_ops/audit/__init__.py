"""List every AMI and snapshot with its usage, cost, findings and fixes.

>>> from vmsnix_ops import audit
>>> found = audit.scan("all")  # doctest: +SKIP
>>> found.amis, found.users()  # doctest: +SKIP
>>> found = audit.check(regions=["all"], fail_on="high")  # doctest: +SKIP
>>> found.show_findings("critical", "high")  # doctest: +SKIP
"""

from __future__ import annotations

from vmsnix_ops.arguments import check_parameters
from vmsnix_ops.audit.inventory import Inventory
from vmsnix_ops.audit.reports import AuditResult, check, scan

__all__ = ["AuditResult", "Inventory", "check", "check_parameters", "scan"]


def __dir__() -> list[str]:
    return __all__
