"""The EBS direct APIs: snapshots written and read by blocks. Importing it registers the operations."""

from __future__ import annotations

from vmsnix_ops.sandbox.ebs import reading, writing

__all__ = ["reading", "writing"]
