"""AWS Systems Manager: Parameter Store."""

from vmsnix_ops.sandbox.ssm import parameters

__all__ = ["parameters"]
