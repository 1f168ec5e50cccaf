"""Build a machine image with Nix, and list its packages: the runbook ``build-image``.

>>> from vmsnix_ops import build_image
>>> plan = build_image.plan("ecs-node")  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.boot.measurements import read_measurements
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.nix import build as nix
from vmsnix_ops.nix.flake import list_images
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.progress import Progress

__all__ = ["BuildPlan", "BuildResult", "check_parameters", "images", "plan"]


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True, slots=True)
class BuildPlan(nix.PlannedBuild):
    """The plan of a build."""

    def apply(self, *, progress: Progress | None = None) -> BuildResult:
        """Build or find the image; see `vmsnix_ops.nix.build.PlannedBuild.build`.

        Safe to run twice: Nix builds nothing that its store already contains.
        """
        image = self.build(progress=progress)
        with open_image(image.path) as disk:
            return BuildResult(image, read_measurements(disk, image.attested))


@dataclass(frozen=True, slots=True)
class BuildResult(Result):
    """A built machine image."""

    runbook = "build-image"
    image: BuiltImage
    measurements: Measurements | None = None  # what a TPM will measure, of an attested image

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        return [*self.image.facts(), *(self.measurements.facts() if self.measurements else [])]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        measured = self.measurements.as_dict() if self.measurements else None
        return {"status": "done", **self.image.result(), "measurements": measured}

    @property
    def frame(self) -> pd.DataFrame:
        """The packages of the image, the largest first: see `vmsnix_ops.nix.closure.closure`.

        Raises
        ------
        vmsnix_ops.errors.NixError
            Nix cannot list the packages.
        """
        from vmsnix_ops.nix.closure import closure

        return closure(self.image)

    def show_packages(self, *, most: int = 10) -> display.DisplayTable:
        """Return the largest packages; their sizes do not include their dependencies."""
        return display.frame_table(self.frame.head(most))


def images(flake: str | Path | None = None, *, system: str | None = None) -> pd.DataFrame:
    """Return name, system, disk size and description of a flake's images; nothing is built.

    Parameters and errors are those of `vmsnix_ops.nix.flake.list_images`.
    """
    import pandas as pd

    columns = ["name", "system", "disk_bytes", "description"]
    found = list_images(flake, system=system)
    return pd.DataFrame([[getattr(one, name) for name in columns] for one in found], columns=columns)


@check_arguments
def plan(image: str, *, system: str | None = None, flake: str | Path | None = None) -> BuildPlan:
    """Return the plan of a build; parameters and errors are those of `vmsnix_ops.nix.build.plan_build`."""
    found = nix.plan_build(image, system=system, flake=flake)
    return BuildPlan(found.image, found.source, found.provenance, found.keep)
