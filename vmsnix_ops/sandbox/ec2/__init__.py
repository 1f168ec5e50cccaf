"""Amazon EC2, the part that machine images need. Importing this package registers its operations."""

from vmsnix_ops.sandbox.ec2 import (
    encryption,
    image_usage,
    images,
    imports,
    instance_types,
    instances,
    key_pairs,
    networks,
    recycle_bin,
    snapshots,
    templates,
    volumes,
    zones,
)

__all__ = [
    "encryption",
    "image_usage",
    "images",
    "imports",
    "instance_types",
    "instances",
    "key_pairs",
    "networks",
    "recycle_bin",
    "snapshots",
    "templates",
    "volumes",
    "zones",
]
