"""Amazon EC2 Auto Scaling as far as it refers to images: launch configurations and groups."""

from . import configurations, groups

__all__ = ["configurations", "groups"]
