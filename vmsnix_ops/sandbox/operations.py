"""Imports every service, so that its operations register themselves."""

from __future__ import annotations

import importlib

SERVICES = ("autoscaling", "ebs", "ec2", "iam", "quotas", "s3", "sns", "ssm", "sts")


def load() -> None:
    """Register the operations of all services; doing it twice changes nothing."""
    for service in SERVICES:
        importlib.import_module(f"{__package__}.{service}")
