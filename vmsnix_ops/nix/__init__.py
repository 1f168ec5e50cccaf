"""What this package asks of Nix.

``image``
    Read a disk image that Nix (or anybody else) built: `read_image`, `BuiltImage`.
``flake``
    Which images a flake has, and where they come from: `images`, `provenance`.
``build``
    Build an image with live progress: `plan_build`, `build`, and `resolve`, the one entry for ``image``
    parameters.
``closure``
    The packages inside an image, as a table: `closure`.
``command``
    The only place that runs ``nix``.

Import from the modules; nothing is re-exported here, because functions and modules share names.
"""
