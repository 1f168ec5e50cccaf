"""Disk images: open any of them by its bytes, read what they hold, write VHDs.

`formats.open_image` is the way in. Everything here works on local bytes alone; neither Nix nor AWS is known
on this floor.
"""
