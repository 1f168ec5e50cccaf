"""List the AMI that each channel serves, for all images, channels and regions.

>>> from vmsnix_ops import channels
>>> found = channels.read(regions=["all"])  # doctest: +SKIP
>>> found[["image", "channel", "region", "ami_id", "older_instances"]]  # doctest: +SKIP
>>> channels.show(found)  # doctest: +SKIP
"""

from __future__ import annotations

from vmsnix_ops.channels.overview import page, read, show

__all__ = ["page", "read", "show"]


def __dir__() -> list[str]:
    return __all__
