"""EC2 as far as machine images need it. Importing this package registers its operations."""

from __future__ import annotations

import importlib

for _part in (
    "encryption",
    "images",
    "imports",
    "instances",
    "places",
    "references",
    "snapshots",
    "tags",
    "templates",
    "volumes",
):
    importlib.import_module(f"{__name__}.{_part}")
