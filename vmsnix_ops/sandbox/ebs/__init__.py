"""The EBS direct APIs: snapshots written and read block by block. Importing this package registers its operations."""

from __future__ import annotations

from vmsnix_ops.sandbox.ebs import reading, writing

__all__ = ["reading", "writing"]
