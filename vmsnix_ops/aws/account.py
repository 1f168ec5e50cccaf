"""Who we are, and whether what we need is there: the names that the rooms above use.

The checks live in `checks` (what one is), `preflight` (all of them) and the ``preflight_*`` modules (one
subject each).
"""

from __future__ import annotations

from vmsnix_ops.aws.checks import Check, frame, require
from vmsnix_ops.aws.identity import Identity, identity
from vmsnix_ops.aws.preflight import preflight

__all__ = ["Check", "Identity", "frame", "identity", "preflight", "require"]
