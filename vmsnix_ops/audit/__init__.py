"""List every AMI and snapshot with its usage, cost, findings and fixes.

>>> from vmsnix_ops import audit
>>> found = audit.scan("all")  # doctest: +SKIP
>>> found.amis, found.users()  # doctest: +SKIP
>>> found = audit.check(regions=["all"], fail_on="high")  # doctest: +SKIP
>>> found.show_findings("critical", "high")  # doctest: +SKIP
>>> audit.acknowledge("3f9a1c0b72de4410", reason="test account", until="90D")  # doctest: +SKIP
"""

from __future__ import annotations

from vmsnix_ops.arguments import check_parameters
from vmsnix_ops.audit.acknowledgements import (
    acknowledge,
    export,
    list_acknowledgements,
    read_findings,
    withdraw,
)
from vmsnix_ops.audit.inventory import Inventory
from vmsnix_ops.audit.reports import AuditResult, check, scan

__all__ = [
    "AuditResult",
    "Inventory",
    "acknowledge",
    "check",
    "check_parameters",
    "export",
    "list_acknowledgements",
    "read_findings",
    "scan",
    "withdraw",
]


def __dir__() -> list[str]:
    return __all__
