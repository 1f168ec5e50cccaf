"""What each step of a publish hands to the next one."""

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

"""Made in this run, found from an earlier one, or (in a dry run) not made."""


@dataclass(frozen=True, slots=True)
class Built(Displayed):
    """A disk image that is ready to be published.

    Attributes
    ----------
    outcome
        ``"planned"``: a dry run of an image that is not built yet; then only `name` and `system` are known.
    name, version, system
        Of the image, such as ``ecs-node``, its NixOS label, and ``x86_64-linux``.
    path
        The disk image.
    format
        Read from its bytes.
    digest
        Identity of the disk, in hexadecimal.
    file_bytes, disk_bytes
        Size of the file, and of the disk in it.
    boot_mode, tpm_support, imds_support, ena_support
        What the AMI will be registered with.
    root_device
        Name of the AMI's root device.
    registration
        How the AMI will be registered, all of it; without snapshot and tags.
    flake, derivation, store_path
        Where it came from, as far as it is known.
    ami_name
        What the AMI will be called.
    ami_id, snapshot_id
        Of the AMI that already contains this disk, when there is one.
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
    """The image's bytes, where the next step can read them.

    Attributes
    ----------
    outcome
        ``"reused"`` also when nothing had to be uploaded because a snapshot or an AMI already contains the
        disk.
    built
        What was uploaded.
    url
        ``s3://bucket/key``; empty when nothing is there.
    sent_bytes
        What went over the wire in this run.
    direct
        The snapshot into which the blocks went, when they went there directly.
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
    """The snapshot that contains the image.

    Attributes
    ----------
    outcome
        As everywhere.
    built
        What it contains.
    snapshot_id
        Such as ``snap-0123456789abcdef0``; empty in a dry run.
    size_gib
        Size of a volume made from it.
    task_id
        The import that made it; empty when it was found.
    verified
        What was read back and compared; empty when that was not requested.
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
    """The AMI.

    Attributes
    ----------
    outcome
        As everywhere.
    built, snapshot
        What it contains.
    ami_id
        Such as ``ami-0123456789abcdef0``; empty in a dry run.
    state
        ``"available"``.
    public
        Whether everybody may launch it.
    deprecated_at
        When it was deprecated, as ISO 8601 in UTC; empty for one that is not.
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
    """How one step went: ``created``, ``reused``, ``planned`` or ``failed``, seconds, and bytes moved."""

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
        Whether nothing was done.
    ami_id, snapshot_id, image_name, region, account
        The AMI, its snapshot, its name, and where it is.
    image, version, system, digest, via
        What it contains, and the method.
    outcome
        ``"created"`` when this run registered the AMI, ``"reused"`` when it was there.
    public
        Whether everybody may launch it.
    size_gib
        Of the root volume.
    disk_bytes
        Of the disk in this image file; the root volume can be smaller when the container rounds it up.
    seconds
        Of all steps.
    steps
        Each step's timing.
    run
        The run that published it.
    slow
        The steps that were slow by their own history; ``None`` when that is not known.
    deprecated_at
        When the AMI was deprecated, as ISO 8601 in UTC; empty for one that is not.
    problems
        What could not be recorded, as sentences; `vmsnix runs repair` saves it later.
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
        """Return how long each step took, for people."""
        rows = [(one.step, one.status, seconds(one.seconds), size(one.bytes or None)) for one in self.steps]
        return make_table(("step", "status", "took", "bytes"), rows, right=("took", "bytes"))

    def frame(self) -> pd.DataFrame:
        """Return the steps: ``step``, ``status``, ``seconds``, ``bytes``."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.steps])

    @property
    def error(self) -> UnsavedError | None:
        """What could not be recorded, as an error; the AMI is published all the same."""
        if not self.problems:
            return None
        return UnsavedError(
            f"{self.ami_id} is published, but {counted(len(self.problems), 'record')} could not be saved.",
            why=self.problems[0],
            fix="Save them later: vmsnix runs repair",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values, as ``result.json`` holds them."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "run"}
        return {
            "status": "partial" if self.problems else "done",
            **values,
            "steps": [asdict(timing) for timing in self.steps],
            "slow": None if self.slow is None else [step.as_dict() for step in self.slow],
            "problems": list(self.problems),
        }
