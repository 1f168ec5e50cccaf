"""The results of the steps of a publish."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from vmsnix_ops.display import Displayed, DisplayTable, make_table, seconds, size
from vmsnix_ops.errors import UnsavedError
from vmsnix_ops.progress import counted
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.aws.ebs_direct.writing import DirectSnapshot
    from vmsnix_ops.aws.images import Registration
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.timings import SlowStep


@dataclass(frozen=True, slots=True)
class Built(Displayed):
    """A disk image that can be published.

    Attributes
    ----------
    outcome
        ``"planned"``: a dry run of an image that is not built; then only `name` and `flake` are known.
    name, version, system
        Name (such as ``ecs-node``), NixOS label and system of the image.
    path
        The disk image.
    format
        Format, from the bytes.
    digest
        Identity of the disk, in hexadecimal.
    file_bytes, disk_bytes
        Size of the file, and of the disk.
    boot_mode, tpm_support, imds_support, ena_support, root_device
        Values for the registration of the AMI.
    registration
        The whole registration, without snapshot and tags.
    flake, derivation, store_path
        Source of the image, as far as it is known.
    ami_name
        Name of the AMI.
    ami_id, snapshot_id
        The existing AMI of this disk; empty if there is none.
    seen
        The digests of the image.
    """

    outcome: StepOutcome
    name: str
    version: str = ""
    system: str = ""
    path: Path | None = None
    format: str = ""
    digest: str = ""
    file_bytes: int = 0
    disk_bytes: int = 0
    boot_mode: str = ""
    tpm_support: str = ""
    imds_support: str = "v2.0"
    ena_support: bool = True
    root_device: str = ""
    flake: str = ""
    derivation: str = ""
    store_path: str = ""
    ami_name: str = ""
    ami_id: str = ""
    snapshot_id: str = ""
    seen: Survey | None = field(default=None, repr=False)
    registration: Registration | None = field(default=None, repr=False)

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        named = [(one.name, getattr(self, one.name)) for one in fields(self) if one.repr]
        return [(name, str(value)) for name, value in named if value not in ("", None)]


@dataclass(frozen=True, slots=True)
class UploadStep(Displayed):
    """The uploaded image.

    Attributes
    ----------
    outcome
        ``"reused"`` also if no upload is needed, because a snapshot or an AMI already contains the disk.
    built
        The image.
    url
        The uploaded object, as ``s3://bucket/key``; empty if there is none.
    sent_bytes
        Bytes that this run sent.
    direct
        The snapshot of a direct upload.
    """

    outcome: StepOutcome
    built: Built
    url: str = ""
    sent_bytes: int = 0
    direct: DirectSnapshot | None = None

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
    """The snapshot of the image.

    Attributes
    ----------
    outcome
        Outcome of the step.
    built
        The image.
    snapshot_id
        ID of the snapshot; empty in a dry run.
    size_gib
        Volume size of the snapshot.
    task_id
        The import that created it; empty if it was found.
    verified
        Result of the comparison, as a sentence; empty if none was requested.
    """

    outcome: StepOutcome
    built: Built
    snapshot_id: str = ""
    size_gib: int = 0
    task_id: str = ""
    verified: str = ""

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        rows = [("outcome", self.outcome), ("snapshot_id", self.snapshot_id)]
        rows += [("size_gib", str(self.size_gib)), ("task_id", self.task_id), ("verified", self.verified)]
        return [(name, value) for name, value in rows if value or name == "snapshot_id"]


@dataclass(frozen=True, slots=True)
class RegisteredAmi(Displayed):
    """The registered AMI.

    Attributes
    ----------
    outcome
        Outcome of the step.
    built, snapshot
        The image and its snapshot.
    ami_id
        ID of the AMI; empty in a dry run.
    state
        ``"available"``.
    public
        Whether everybody may launch it.
    deprecated_at
        Time of its deprecation (ISO 8601, UTC); empty if it is not deprecated.
    """

    outcome: StepOutcome
    built: Built
    snapshot: SnapshotStep
    ami_id: str = ""
    state: str = ""
    public: bool = False
    deprecated_at: str = ""

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
    """The result of a publish.

    Attributes
    ----------
    dry_run
        Whether nothing was changed.
    ami_id, snapshot_id, image_name, region, account
        The AMI, its snapshot, its name and its location.
    image, version, system, digest, via
        The image and the method.
    outcome
        ``"created"`` if this run registered the AMI, ``"reused"`` if it existed.
    public
        Whether everybody may launch the AMI.
    size_gib
        Size of the root volume.
    disk_bytes
        Size of the disk in the image file; the root volume can be smaller if the format rounds it up.
    seconds
        Duration of all steps.
    steps
        Timing of each step.
    run
        The run.
    slow
        Steps that were slow compared with their history; ``None`` if the history cannot be read.
    deprecated_at
        Time of the AMI's deprecation (ISO 8601, UTC); empty if it is not deprecated.
    problems
        Records that could not be saved, as sentences; ``vmsnix runs repair`` saves them later.
    """

    dry_run: bool
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
    outcome: StepOutcome
    public: bool
    size_gib: int
    disk_bytes: int
    seconds: float
    steps: tuple[StepTiming, ...]
    run: RunContext = field(repr=False)
    slow: tuple[SlowStep, ...] | None = None
    deprecated_at: str = ""
    problems: tuple[str, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values worth showing."""
        hidden = ("steps", "seconds", "run", "slow", "problems")
        rows = [
            (field.name, str(getattr(self, field.name))) for field in fields(self) if field.name not in hidden
        ]
        slow = [("slow", str(step)) for step in self.slow or ()]
        problems = [("not recorded", problem) for problem in self.problems]
        rows += [("run_id", self.run_id), ("seconds", f"{self.seconds:.1f}")]
        return [*((name, value) for name, value in rows if value), *slow, *problems]

    def table(self) -> DisplayTable:
        """Return the duration of each step."""
        rows = [(one.step, one.status, seconds(one.seconds), size(one.bytes or None)) for one in self.steps]
        return make_table(("step", "status", "took", "bytes"), rows, right=("took", "bytes"))

    def frame(self) -> pd.DataFrame:
        """Return the steps: ``step``, ``status``, ``seconds``, ``bytes``."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.steps])

    @property
    def error(self) -> UnsavedError | None:
        """The error for records that could not be saved; the AMI is published."""
        if not self.problems:
            return None
        return UnsavedError(
            f"{self.ami_id} is published, but {counted(len(self.problems), 'record')} could not be saved.",
            why=self.problems[0],
            fix="Save them later: vmsnix runs repair",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "run"}
        return {
            "status": "partial" if self.problems else "done",
            **values,
            "steps": [asdict(timing) for timing in self.steps],
            "slow": None if self.slow is None else [step.as_dict() for step in self.slow],
            "problems": list(self.problems),
        }
