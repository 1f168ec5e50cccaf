"""Publish an image as an AMI: a plan, and the steps that carry it out.

>>> from vmsnix_ops import publish
>>> plan = publish.plan(image="result", region="eu-central-1", bucket="acme-images")  # doctest: +SKIP
>>> plan.apply().ami_id  # doctest: +SKIP
'ami-0123456789abcdef0'
"""

from __future__ import annotations

from vmsnix_ops.arguments import check_parameters
from vmsnix_ops.publish._plan import PublishPlan, plan
from vmsnix_ops.publish.boot_test import BootStep
from vmsnix_ops.publish.values import Built, PublishResult, RegisteredAmi, SnapshotStep, UploadStep

__all__ = [
    "BootStep",
    "Built",
    "PublishPlan",
    "PublishResult",
    "RegisteredAmi",
    "SnapshotStep",
    "UploadStep",
    "check_parameters",
    "plan",
]


def __dir__() -> list[str]:
    return __all__
