"""AWS IAM: roles, users, policies, access keys, and what they allow."""

from vmsnix_ops.sandbox.iam import evaluation, identities, policies

__all__ = ["evaluation", "identities", "policies"]
