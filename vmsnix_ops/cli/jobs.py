"""The jobs that have a policy of their own: the one list for ``vmsnix iam-policy``, its page, and its tests.

A new job is one line here and one rehearsal in ``tests/privileges/rehearsals.py``; without the rehearsal, the
test that takes away every single action fails.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Job:
    """One job, in one of the ways in which it is done.

    Attributes
    ----------
    kind
        What ``vmsnix iam-policy`` calls it; the ways of one job share it.
    where
        ``module:function``, which returns the job's actions; imported only when they are asked for.
    options
        What the function is given in this way.
    """

    kind: str
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def actions(self, **options: Any) -> tuple[str, ...]:
        """Return the IAM actions that it needs; `options` instead of its own, when there are any."""
        module, _, function = self.where.partition(":")
        found: tuple[str, ...] = getattr(importlib.import_module(module), function)(
            **(options or self.options)
        )
        return found


_PUBLISH = "vmsnix_ops.aws.iam.policies:publisher_actions"

JOBS: dict[str, Job] = {
    "import": Job("publisher", _PUBLISH),
    "direct": Job("publisher", _PUBLISH, {"via": "direct"}),
    "incremental": Job("publisher", _PUBLISH, {"via": "direct", "incremental": True}),
    "public": Job("publisher", _PUBLISH, {"via": "direct", "public": True}),
    "verify": Job("publisher", _PUBLISH, {"via": "direct", "verify": True}),
    "promote": Job("promoter", "vmsnix_ops.channels.policies:promoter_actions"),
    "public promotion": Job("promoter", "vmsnix_ops.channels.policies:promoter_actions", {"public": True}),
    "announced promotion": Job(
        "promoter", "vmsnix_ops.channels.policies:promoter_actions", {"announce": True}
    ),
    "smoke test": Job("smoke-tester", "vmsnix_ops.channels.policies:smoke_tester_actions"),
    "first spot test": Job(
        "smoke-tester", "vmsnix_ops.channels.policies:smoke_tester_actions", {"spot": True}
    ),
    "verify AMIs": Job("verifier", "vmsnix_ops.channels.policies:verifier_actions"),
    "verify blocks": Job("verifier", "vmsnix_ops.channels.policies:verifier_actions", {"blocks": True}),
    "audit": Job("auditor", "vmsnix_ops.audit.policies:auditor_actions"),
    "audited": Job("audit-member", "vmsnix_ops.audit.policies:member_actions"),
    "retire": Job("retirer", "vmsnix_ops.audit.retirement.policy:retirer_actions"),
    "preflight": Job("preflight", "vmsnix_ops.aws.iam.policies:thorough_actions"),
    "evidence": Job("archivist", "vmsnix_ops.runbooks.evidence.archive:archivist_actions"),
    "bootstrap": Job("bootstrap", "vmsnix_ops.aws.bootstrap:bootstrapper_actions"),
}
"""Every job, by the name that the page of permissions gives it."""

KINDS: tuple[str, ...] = tuple(dict.fromkeys(job.kind for job in JOBS.values()))
"""What ``vmsnix iam-policy`` takes, besides the policies of roles and buckets."""


def job_of(kind: str) -> Job:
    """Return a kind's first job, which has no options unless all have some."""
    return next(job for job in JOBS.values() if job.kind == kind)
