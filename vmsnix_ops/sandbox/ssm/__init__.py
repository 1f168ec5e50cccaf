"""AWS Systems Manager: Parameter Store."""

from . import labels, parameters, queries, tags

__all__ = ["labels", "parameters", "queries", "tags"]
