"""AWS IAM: roles, users, policies, access keys, and what they allow."""

from . import access_keys, attachments, inline_policies, policies, roles, simulation, users

__all__ = ["access_keys", "attachments", "inline_policies", "policies", "roles", "simulation", "users"]
