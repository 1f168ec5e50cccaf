"""Nix: read flakes, build images, and list the packages in an image.

``image``
    Read a built disk image: `read_image`, `BuiltImage`.
``flake``
    List the images of a flake, and read its revision: `list_images`, `read_provenance`.
``build``
    Build an image with progress: `plan_build`, `build`. `resolve_image` handles all ``image`` parameters.
``closure``
    List the packages in an image: `closure`.
``command``
    Run ``nix``.
``versions``
    Compare versions as Nix does.

Import from the modules: functions and modules share names.
"""
