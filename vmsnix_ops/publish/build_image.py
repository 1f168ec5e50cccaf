"""Build a machine image with Nix, and list its packages: the runbook ``build-image``.

>>> from vmsnix_ops import build_image
>>> plan = build_image.plan("ecs-node")  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.boot.measurements import read_measurements
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.errors import NixError
from vmsnix_ops.nix import build as nix
from vmsnix_ops.nix.flake import list_images
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.nix.reproducible import BuildDifference
    from vmsnix_ops.progress import Progress

__all__ = ["BuildPlan", "BuildResult", "check_parameters", "images", "plan"]


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True, slots=True)
class BuildPlan(nix.PlannedBuild):
    """The plan of a build."""

    check: bool = False  # whether the image is built twice, and both are compared

    def apply(self, *, progress: Progress | None = None) -> BuildResult:
        """Build or find the image; see `vmsnix_ops.nix.build.PlannedBuild.build`.

        With `check`, build it a second time and compare; see `vmsnix_ops.nix.reproducible.rebuild`. Safe to
        run twice: Nix builds nothing else that its store already contains.
        """
        from vmsnix_ops.nix.reproducible import rebuild

        image = self.build(progress=progress)
        difference = rebuild(self, image, progress=progress) if self.check else None
        with open_image(image.path) as disk:
            measured = read_measurements(disk, image.attested)
        return BuildResult(image, measured, self.check, difference)


@dataclass(frozen=True, slots=True)
class BuildResult(Result):
    """A built machine image."""

    runbook = "build-image"
    image: BuiltImage
    measurements: Measurements | None = None  # what a TPM will measure, of an attested image
    checked: bool = False  # whether it was built twice
    difference: BuildDifference | None = None  # how the two builds differ

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        answer = f"no: {self.difference}" if self.difference else "yes, two builds are equal"
        measured = self.measurements.facts() if self.measurements else []
        return [*self.image.facts(), *measured, *([("reproducible", answer)] if self.checked else [])]

    @property
    def error(self) -> NixError | None:
        """The error of an image whose two builds differ."""
        if self.difference is None:
            return None
        return NixError(
            f"The image {self.image.name} is not reproducible: two builds of the same derivation differ.",
            why=f"{self.difference}.",
            fix=f"The image can be used. To compare: diffoscope {self.difference.first} "
            f"{self.difference.second}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        return {
            "status": "failed" if self.difference else "done",
            **self.image.result(),
            "measurements": self.measurements.as_dict() if self.measurements else None,
            "reproducible": self.difference is None if self.checked else None,
            "difference": asdict(self.difference) if self.difference else None,
        }

    def frame(self) -> pd.DataFrame:
        """Return the packages of the image, the largest first: see `vmsnix_ops.nix.closure.closure`.

        The columns `vmsnix_ops.nix.closure.FACTS` have what the flake evaluates, such as licences.

        Raises
        ------
        vmsnix_ops.errors.NixError
            Nix cannot list the packages, or evaluate the facts about them.
        """
        from vmsnix_ops.nix.closure import add_facts, closure, read_facts

        return add_facts(closure(self.image), read_facts(self.image))

    def show_packages(self, *, most: int = 10) -> display.DisplayTable:
        """Return the largest packages; their sizes do not include their dependencies."""
        from vmsnix_ops.nix.closure import closure

        return display.frame_table(closure(self.image).head(most))

    def show_facts(self) -> display.DisplayTable:
        """Return the paths without package facts; the title has the share of those with facts.

        A flake whose facts cannot be evaluated has none: the image is built, so that this is not an error.
        """
        from vmsnix_ops.nix.closure import describe_facts, read_facts

        try:
            known = read_facts(self.image)
        except NixError as error:
            return display.make_table(("path",), [], nothing=str(error))
        if not known:
            return display.make_table(("path",), [], nothing="The flake has no facts about its packages.")
        packages = self.frame()
        without = packages["store_path"][packages["pname"].isna()].sort_values()
        return display.make_table(
            ("path without facts",), [[path] for path in without], title=describe_facts(packages), nothing=""
        )


def images(flake: str | Path | None = None, *, system: str | None = None) -> pd.DataFrame:
    """Return name, system, disk size and description of a flake's images; nothing is built.

    Parameters and errors are those of `vmsnix_ops.nix.flake.list_images`.
    """
    import pandas as pd

    columns = ["name", "system", "disk_bytes", "description"]
    found = list_images(flake, system=system)
    return pd.DataFrame([[getattr(one, name) for name in columns] for one in found], columns=columns)


@check_arguments
def plan(
    image: str, *, system: str | None = None, flake: str | Path | None = None, check: bool = False
) -> BuildPlan:
    """Return the plan of a build.

    With `check`, the image is built twice, and both are compared. The other parameters and the errors are
    those of `vmsnix_ops.nix.build.plan_build`.
    """
    found = nix.plan_build(image, system=system, flake=flake)
    return BuildPlan(found.image, found.source, found.provenance, found.keep, check)
