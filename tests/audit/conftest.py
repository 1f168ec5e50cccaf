"""The publishers' fixtures serve the audit too."""

from __future__ import annotations

from tests.publish.conftest import aws, image, plan

__all__ = ["aws", "image", "plan"]
