"""Boot an image in QEMU, as the runbook ``boot-image`` or as a step of a publish.

>>> from vmsnix_ops import boot_image
>>> plan = boot_image.plan("result")  # doctest: +SKIP
>>> plan.apply().step.line  # doctest: +SKIP
'ecs-node login:'
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_parameters, check_range
from vmsnix_ops.boot import run as boot
from vmsnix_ops.boot.measurements import read_measurements
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.survey import unchanged
from vmsnix_ops.display import Displayed
from vmsnix_ops.interrupts import interruptible
from vmsnix_ops.progress import Progress, current
from vmsnix_ops.records.result import Result
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from vmsnix_ops.boot.run import SuccessfulBoot
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.publish.parameters import PublishParameters
    from vmsnix_ops.publish.values import Built

__all__ = ["BootPlan", "BootResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


CONSOLE = "console.log"


@dataclass(frozen=True, slots=True)
class BootStep(Displayed):
    """The result of a boot test."""

    # "created": the image booted; "reused": it is published already; "planned": a dry run;
    # "skipped": no boot test was requested.
    outcome: StepOutcome
    line: str = ""  # the expected line of the console
    seconds: float = 0.0  # duration of the boot
    accelerator: str = ""  # "kvm" or "tcg" (emulated)
    console: str = ""  # file with the console
    requests: int = 0  # number of requests to the metadata service
    pcrs: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # of the TPM, by bank and number
    compared: bool = False  # whether PCR 4 and 12 are the predicted ones

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        if self.outcome != "created":
            return [("outcome", self.outcome)]
        return [
            ("outcome", self.outcome),
            ("line", self.line),
            ("seconds", f"{self.seconds:.1f}"),
            ("accelerator", self.accelerator),
            ("console", self.console),
            ("metadata requests", str(self.requests)),
            *((f"PCR {number}", value) for number, value in self.pcrs.get("sha384", {}).items()),
            *([("measurements", "PCR 4 and 12 are as predicted")] if self.compared else []),
        ]


@dataclass(frozen=True, slots=True)
class BootPlan(Displayed):
    """A checked boot test that has not started. Make it with `plan`."""

    image: str
    system: str
    boot_mode: str
    expect: str
    user_data: str
    public_key: str
    deadline: float | None
    accelerator: str
    settings: Settings
    progress: Progress
    run: RunContext

    def apply(self) -> BootResult:
        """Build or read the image, and boot it. Safe to run twice: only the run's folder is written.

        Raises
        ------
        vmsnix_ops.errors.BootFailedError
            The image did not boot; has the last lines of the console.
        """
        from vmsnix_ops.nix import build as nix

        image = nix.resolve_image(
            self.image,
            system=self.system or None,
            boot_mode=self.boot_mode or None,
            flake=self.settings.flake,
            progress=self.progress,
        )
        with open_image(image.path) as disk:
            measured = read_measurements(disk, image.attested)
        tpm = image.register_image.get("TpmSupport") == "v2.0"
        with self.progress.step("boot") as step, interruptible("boot test", "Nothing was changed."):
            booted = boot.boot(
                image.path,
                expect=self.expect,
                system=image.system,
                boot_mode=self.boot_mode or image.boot_mode,
                user_data=self.user_data,
                public_key=self.public_key,
                deadline=self.deadline,
                accelerator=self.accelerator,
                console=self.run.folder / CONSOLE,
                tpm=tpm,
                measurements=measured if tpm else None,
                on_message=step.message,
            )
        return BootResult(self, image, _step(booted, compared=tpm and measured is not None))

    def facts(self) -> list[tuple[str, str]]:
        """Return what will happen."""
        waits = f"at most {self.deadline:.0f} s" if self.deadline else "5 minutes with KVM, 30 without"
        served = [name.replace("_", " ") for name in ("user_data", "public_key") if getattr(self, name)]
        return [
            ("boot", f"{self.image}, in QEMU ({self.accelerator}), on an overlay"),
            ("expect", self.expect),
            ("wait", waits),
            ("metadata", ", ".join(["instance ID", *served])),
        ]


@dataclass(frozen=True, slots=True)
class BootResult(Result):
    """A successful boot test: its plan, the image, and the result."""

    plan: BootPlan
    image: BuiltImage
    step: BootStep

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        return self.step.facts()

    def frame(self) -> pd.DataFrame:
        """Return one row: ``image``, ``version``, ``system``, ``line``, ``boot_seconds``, ``accelerator``."""
        import pandas as pd

        return pd.DataFrame([self.as_dict()]).drop(columns="status")

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        return {
            "status": "done",
            "image": self.image.name,
            "version": self.image.version,
            "system": self.image.system,
            "line": self.step.line,
            "boot_seconds": self.step.seconds,
            "accelerator": self.step.accelerator,
            "pcrs": self.step.pcrs,
        }


@check_arguments
def plan(
    image: str,
    *,
    system: str = "",
    boot_mode: str = "",
    expect: str = "",
    user_data: str = "",
    public_key: str = "",
    deadline: float = 0,
    accelerator: str = "auto",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> BootPlan:
    """Check the parameters of a boot test, and return its plan. Nothing is started.

    Parameters
    ----------
    image
        A flake attribute, a ``result`` link, a Nix output directory, or an image file.
    system, boot_mode
        System and boot mode of an image file that does not contain them.
    expect
        Regular expression for the expected line on the console; by default that of NixOS.
    user_data, public_key
        Data for the metadata service; empty for none.
    deadline
        Maximum duration in seconds; 0 for five minutes with KVM and thirty without.
    accelerator
        ``"auto"``, ``"kvm"`` or ``"tcg"``.
    settings, progress
        Override the defaults from vmsnix.toml and the environment.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter is invalid.
    """
    if not image:
        raise errors.ParameterError(
            "No image given.",
            fix="Add --image with a flake attribute, a result, a directory or an image file.",
        )
    check_range("deadline", deadline)
    expect = expect or boot.EXPECT
    boot.check_options(expect, accelerator)
    settings = settings or load()
    return BootPlan(
        image,
        system,
        boot_mode,
        expect,
        user_data,
        public_key,
        deadline or None,
        accelerator,
        settings,
        progress or current(),
        current_run("boot-image"),
    )


def boot_test(plan: PublishParameters, built: Built) -> BootStep:
    """Boot the image of a publish, if requested, before the upload.

    Safe to run twice: the machine writes to an overlay. An image that is published already is not booted.
    Raises a `BootFailedError` if it does not boot, and an `ImageChangedError` if the file does not contain
    the identified image, so that another image was booted.
    """
    if not plan.boot_test:
        return BootStep("skipped")
    with plan.journal.step("boot") as entry, interruptible("boot test", "Nothing was changed."):
        if plan.dry_run or not built.digest:
            entry.outcome = "planned"
            return BootStep("planned")
        if built.ami_id:
            entry.outcome = "reused"
            return BootStep("reused")
        tpm = built.registration is not None and built.registration.tpm_support == "v2.0"
        with nullcontext() if built.survey is None else unchanged(built.path, built.survey):
            booted = boot.boot(
                built.path,
                expect=plan.boot_expect or boot.EXPECT,
                system=built.system,
                boot_mode=built.boot_mode,
                console=plan.journal.run.folder / CONSOLE,
                tpm=tpm,
                measurements=built.measurements if tpm else None,
                on_message=entry.step.message,
            )
        done = _step(booted, compared=tpm and built.measurements is not None)
        entry.detail.update(line=done.line, accelerator=done.accelerator, console=done.console)
        return done


def _step(booted: SuccessfulBoot, *, compared: bool) -> BootStep:
    return BootStep(
        "created",
        re.sub(r"\s+", " ", booted.line).strip(),
        round(booted.seconds, 2),
        booted.accelerator,
        str(booted.console),
        len(booted.requests),
        booted.pcrs,
        compared,
    )
