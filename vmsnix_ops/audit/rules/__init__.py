"""The rules of an audit, by what they are about. Each is one function: which rows, why, and what cures it.

A cure is a command that makes its finding go when it is pasted. Where a person has to choose something, the
command holds a hole such as ``<AMI>``, which every shell refuses until it is filled; where no command is
enough, or none is right for everybody, the reason says what is left to decide.
"""

from __future__ import annotations

from vmsnix_ops.audit.rules import exposure, gaps, leftovers, origin, packages, pointers, use

__all__ = ["exposure", "gaps", "leftovers", "origin", "packages", "pointers", "use"]
