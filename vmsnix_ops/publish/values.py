"""The results of the steps of a publish."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from vmsnix_ops.display import Displayed, DisplayTable, make_table, steps_table
from vmsnix_ops.errors import UnsavedError
from vmsnix_ops.nix.image import BuiltImage
from vmsnix_ops.progress import counted
from vmsnix_ops.records.result import Result, plain_table

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.aws.ebs_direct.writing import DirectSnapshot
    from vmsnix_ops.aws.images import Registration
    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.timings import SlowStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Built(BuiltImage):
    """A disk image that can be published, with its identity and the registration of its AMI.

    The outcome is "planned" for an image that a dry run did not build; only its name and flake are known.
    """

    outcome: StepOutcome
    survey: Survey | None = field(default=None, repr=False)  # the digests of the image
    # What a TPM will measure; None for an image that is not attested.
    measurements: Measurements | None = None
    # The whole registration, without snapshot and tags.
    registration: Registration | None = field(default=None, repr=False)
    # The existing AMI of this disk; empty if there is none.
    ami_id: str = ""
    snapshot_id: str = ""

    @property
    def digest(self) -> str:
        """Identity of the disk, in hexadecimal; empty for an image that is not built."""
        return self.survey.identity if self.survey else ""

    @property
    def ami_name(self) -> str:
        """Name of the AMI; empty for an image that is not built."""
        return self.registration.name if self.registration else ""

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.survey.file_bytes if self.survey else 0

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        if not self.digest:
            return [("outcome", self.outcome), ("image", self.name), ("flake", self.flake or "")]
        rows = [("digest", self.digest), ("ami_name", self.ami_name), ("ami_id", self.ami_id)]
        rows += self.measurements.facts() if self.measurements else []
        return [("outcome", self.outcome), *BuiltImage.facts(self), *(row for row in rows if row[1])]


@dataclass(frozen=True, slots=True)
class UploadStep(Displayed):
    """The uploaded image."""

    # "reused" also if no upload is needed, because a snapshot or an AMI already contains the disk.
    outcome: StepOutcome
    built: Built
    url: str = ""  # the uploaded object, as `s3://bucket/key`; empty if there is none
    sent_bytes: int = 0  # bytes that this run sent
    direct: DirectSnapshot | None = None  # the snapshot of a direct upload

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        rows = [("outcome", self.outcome), ("url", self.url), ("sent_bytes", f"{self.sent_bytes:,}")]
        if self.direct is not None:
            parent, full = self.direct.parent_id, self.direct.why_full
            rows[1] = ("snapshot_id", self.direct.snapshot_id)
            rows += [("parent_id", parent)] if parent else []
            rows += [("why_full", full)] if full else []
        return rows


@dataclass(frozen=True, slots=True)
class SnapshotStep(Displayed):
    """The snapshot of the image."""

    outcome: StepOutcome
    built: Built
    snapshot_id: str = ""  # ID of the snapshot; empty in a dry run
    size_gib: int = 0  # volume size of the snapshot
    task_id: str = ""  # the import that created it; empty if it was found
    verified: str = ""  # result of the comparison, as a sentence; empty if none was requested

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        rows = [("outcome", self.outcome), ("snapshot_id", self.snapshot_id)]
        rows += [("size_gib", str(self.size_gib)), ("task_id", self.task_id), ("verified", self.verified)]
        return [(name, value) for name, value in rows if value or name == "snapshot_id"]


@dataclass(frozen=True, slots=True)
class RegisteredAmi(Displayed):
    """The registered AMI."""

    outcome: StepOutcome
    built: Built
    snapshot: SnapshotStep
    ami_id: str = ""  # ID of the AMI; empty in a dry run
    state: str = ""  # "available"
    public: bool = False  # whether everybody may launch it
    deprecated_at: str = ""  # time of its deprecation (ISO 8601, UTC); empty if it is not deprecated

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        rows = [("outcome", self.outcome), ("ami_id", self.ami_id), ("ami_name", self.built.ami_name)]
        rows += [("state", self.state), ("public", str(self.public))]
        return [*rows, *([("deprecated_at", self.deprecated_at)] if self.deprecated_at else [])]


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Outcome, duration and transferred bytes of a step."""

    step: str
    status: str
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class PublishResult(Result):
    """The result of a publish."""

    dry_run: bool  # whether nothing was changed
    plan_fingerprint: str | None  # None if the image is not built
    ami_id: str
    snapshot_id: str
    image_name: str
    region: str
    account: str
    image: str
    version: str
    system: str
    digest: str
    via: str
    outcome: StepOutcome  # "created" if this run registered the AMI, "reused" if it existed
    public: bool  # whether everybody may launch the AMI
    size_gib: int
    # Size of the disk in the image file; the root volume can be smaller if the format rounds it up.
    disk_bytes: int
    seconds: float
    steps: tuple[StepTiming, ...]
    run: RunContext = field(repr=False)
    planned: tuple[tuple[str, str], ...] = ()  # after a dry run, the lines of the plan
    # Steps that were slow compared with their history; None if the history cannot be read.
    slow: tuple[SlowStep, ...] | None = None
    deprecated_at: str = ""  # time of the AMI's deprecation (ISO 8601, UTC); empty if it is not deprecated
    measurements: Measurements | None = None  # what a TPM will measure, of an attested image
    # Records that could not be saved, as sentences; `vmsnix runs repair` saves them later.
    problems: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line after a dry run."""
        return f"Publish {self.image} to {self.region} (dry run)" if self.dry_run else ""

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        hidden = ("steps", "seconds", "run", "planned", "slow", "problems", "measurements")
        rows = [
            (field.name, str(getattr(self, field.name))) for field in fields(self) if field.name not in hidden
        ]
        slow = [("slow", str(step)) for step in self.slow or ()]
        problems = [("not recorded", problem) for problem in self.problems]
        rows += [("run_id", self.run_id), ("seconds", f"{self.seconds:.1f}")]
        rows += self.measurements.facts() if self.measurements else []
        return [*((name, value) for name, value in rows if value), *slow, *problems]

    def table(self) -> DisplayTable:
        """Return the duration of each step."""
        return steps_table(map(asdict, self.steps))

    def frame(self) -> pd.DataFrame:
        """Return the steps: ``step``, ``status``, ``seconds``, ``bytes``."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.steps])

    @property
    def error(self) -> UnsavedError | None:
        """The error for records that could not be saved; the AMI is published."""
        if not self.problems:
            return None
        done = "The dry run is done" if self.dry_run else f"{self.ami_id} is published"
        return UnsavedError(
            f"{done}, but {counted(len(self.problems), 'record')} could not be saved.",
            why=self.problems[0],
            fix="Save them later: vmsnix runs repair",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        hidden = ("run", "planned")
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in hidden}
        planned = plain_table(make_table(("step", "what"), self.planned), title=self.title)
        return {
            "status": "partial" if self.problems else "done",
            **values,
            **({"tables": [planned]} if self.planned else {}),
            "steps": [asdict(timing) for timing in self.steps],
            "slow": None if self.slow is None else [step.as_dict() for step in self.slow],
            "measurements": self.measurements.as_dict() if self.measurements else None,
            "problems": list(self.problems),
        }
