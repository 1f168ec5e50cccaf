"""EC2 as far as machine images need it. Importing this package registers its operations."""

from __future__ import annotations

import importlib

for _part in (
    "encryption",
    "image_attributes",
    "image_copy",
    "image_life",
    "images",
    "imports",
    "instance_attributes",
    "instance_status",
    "instance_types",
    "instances",
    "places",
    "references",
    "snapshot_attributes",
    "snapshot_locks",
    "snapshot_tiers",
    "snapshots",
    "tags",
    "templates",
    "volumes",
):
    importlib.import_module(f"{__name__}.{_part}")
