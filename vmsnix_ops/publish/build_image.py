"""The build-image runbook: build a machine image with Nix, and list the packages inside.

>>> from vmsnix_ops import build_image
>>> plan = build_image.plan("ecs-node")  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.nix import build as nix
from vmsnix_ops.nix.flake import list_images as images
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.progress import Progress

__all__ = ["BuildPlan", "BuildResult", "images", "plan"]


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True, slots=True)
class BuildPlan(nix.BuildPlan):
    """What a build will do. Nothing has been built."""

    def apply(self, *, progress: Progress | None = None) -> BuildResult:
        """Build the image, or find it built; see `vmsnix_ops.nix.build.BuildPlan.build`.

        Safe to run twice: Nix builds nothing that its store already contains.
        """
        return BuildResult(self.build(progress=progress))


@dataclass(frozen=True, slots=True)
class BuildResult(Result):
    """A machine image that was built.

    Attributes
    ----------
    image
        The image, and where it comes from.
    """

    runbook = "build-image"
    image: BuiltImage

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        return self.image.facts()

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        return {"status": "done", **self.image.result()}

    def frame(self) -> pd.DataFrame:
        """Return the packages inside, the largest first: ``name``, ``version``, ``store_path``, ``bytes``.

        Raises
        ------
        vmsnix_ops.errors.NixError
            Nix cannot list what went into the image.
        """
        from vmsnix_ops.nix.closure import closure

        return closure(self.image)

    def show_packages(self, *, most: int = 10) -> display.DisplayTable:
        """Return the largest packages for people, in bytes without what they refer to."""
        return display.frame_table(self.frame().head(most))


@check_arguments
def plan(image: str, *, system: str | None = None, flake: str | Path | None = None) -> BuildPlan:
    """Return what building an image would do. Nothing is built.

    Parameters
    ----------
    image
        ``"ecs-node"``, ``"./nix#ecs-node"`` or ``"./nix#packages.aarch64-linux.ecs-node"``.
    system
        ``"x86_64-linux"`` or ``"aarch64-linux"``; that of this machine when empty.
    flake
        Where `image` is looked up when it names no flake; the setting ``flake`` when empty.

    Raises
    ------
    vmsnix_ops.errors.UnknownImageError
        There is no such image.
    vmsnix_ops.errors.ParameterError
        The flake or the system is invalid.
    vmsnix_ops.errors.ToolMissingError
        Nix is not installed.
    vmsnix_ops.errors.NixError
        The flake cannot be evaluated.
    """
    found = nix.plan_build(image, system=system, flake=flake)
    return BuildPlan(found.image, found.source, found.provenance, found.keep)
