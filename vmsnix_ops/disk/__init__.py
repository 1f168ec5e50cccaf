"""Disk images: open an image by its bytes, read and identify its disk, write VHDs.

Start with `formats.open_image`. This package uses neither Nix nor AWS.
"""
