"""The resources of EC2 and the EBS direct APIs: snapshots, images, volumes, instances and import tasks.

States are not stored. They are computed from the age of a resource on the sandbox's clock, so no thread has
to change them. A snapshot contains only the digests of its blocks; the block store has the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock


BLOCK_BYTES = 524_288
"""Bytes of an EBS block. In the EBS direct APIs it is always 512 KiB."""

GIB = 1024**3

NO_VOLUME = "vol-ffffffff"
"""The volume ID that AWS shows for copied, imported and uploaded snapshots."""


@dataclass(slots=True)
class DirectUpload:
    """The unfinished upload of a snapshot through the EBS direct APIs."""

    parent_id: str | None
    timeout_minutes: int
    last_write: datetime
    written: dict[int, bytes] = field(default_factory=dict)
    progress: int = 0

    def expired(self, clock: Clock) -> bool:
        """Return whether no block was written for longer than the snapshot's ``Timeout``."""
        return clock.age(self.last_write) > self.timeout_minutes * 60


@dataclass(frozen=True, slots=True)
class SnapshotLock:
    """The lock of a snapshot. `cool_off` is its cooling-off period in hours, 0 for none."""

    mode: str
    created: datetime
    expires: datetime
    cool_off: int = 0


@dataclass(slots=True)
class Tiering:
    """The last archival or restore of a snapshot.

    `operation` is ``archival``, ``temporary-restore`` (for `days`) or ``permanent-restore``. It takes
    `seconds` sandbox seconds: 0 if it changes an earlier restore. `archived` is the end of the archival.
    """

    operation: str
    started: datetime
    seconds: float
    days: int = 0
    archived: datetime | None = None

    def completed(self, clock: Clock) -> bool:
        """Return whether it is completed."""
        return clock.age(self.started) >= self.seconds

    def completed_at(self, clock: Clock) -> datetime:
        """Return the real time of its completion."""
        return clock.reached(self.started, self.seconds)

    def restored(self, clock: Clock) -> bool:
        """Return whether a temporary restore is completed and has not expired.

        The days are sandbox time, and last at least the real minutes of `Clock.is_listed`.
        """
        period = self.seconds + self.days * 86400.0
        return self.completed(clock) and clock.is_listed(self.started, period)

    def tier(self, clock: Clock) -> str:
        """Return the tier of its snapshot, ``standard`` or ``archive``."""
        if self.operation == "archival":
            return "archive" if self.completed(clock) else "standard"
        if self.operation == "permanent-restore":
            return "standard" if self.completed(clock) else "archive"
        return "standard" if self.restored(clock) else "archive"


@dataclass(slots=True)
class EmulatedSnapshot:
    """An EBS snapshot. `blocks` has the SHA-256 of each block (32 raw bytes) by index.

    The snapshot is pending from `since` for `seconds` sandbox seconds. Then it is ``completed``, or ``error``
    with the StateMessage `failure`. `tiering` is set once it was archived. `direct` means that it is uploaded
    through the EBS direct APIs; `upload` is set until the upload is complete. `released` is the time when its
    last image was deregistered; the snapshot remains in use for a moment after that.
    """

    snapshot_id: str
    owner: str
    region: str
    size_gib: int
    started: datetime
    description: str = ""
    volume_id: str = NO_VOLUME
    lineage: str = ""
    encrypted: bool = False
    kms_key: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    blocks: dict[int, bytes] = field(default_factory=dict)
    since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    seconds: float = 0.0
    failure: str = ""
    copied: bool = False
    completion_minutes: int | None = None
    users: list[str] = field(default_factory=list)
    public: bool = False
    direct: bool = False
    upload: DirectUpload | None = None
    released: datetime | None = None
    lock: SnapshotLock | None = None
    tiering: Tiering | None = None

    def tier(self, clock: Clock) -> str:
        """Return ``standard`` or ``archive``."""
        return "standard" if self.tiering is None else self.tiering.tier(clock)

    def state(self, clock: Clock) -> str:
        """Return ``pending``, ``completed`` or ``error``."""
        if self.upload is not None:
            return "error" if self.upload.expired(clock) else "pending"
        if clock.age(self.since) < self.seconds:
            return "pending"
        return "error" if self.failure else "completed"

    def progress(self, clock: Clock) -> int:
        """Return the percentage that DescribeSnapshots shows."""
        if self.upload is not None:
            return self.upload.progress
        age = clock.age(self.since)
        return 100 if age >= self.seconds else int(99 * age / self.seconds)

    def completed_at(self, clock: Clock) -> datetime:
        """Return the real time of the completion of a completed snapshot."""
        return clock.reached(self.since, self.seconds)

    def stored_bytes(self) -> int:
        """Return the size of all its blocks."""
        return len(self.blocks) * BLOCK_BYTES

    def shared_with(self, clock: Clock) -> list[str]:
        """Return the accounts that it is shared with, or ``all``; none while it is archived."""
        shared = self.users + (["all"] if self.public else [])
        return shared if self.tier(clock) == "standard" else []

    def readable_by(self, account: str, clock: Clock) -> bool:
        """Return whether an account may create volumes from it."""
        return account == self.owner or bool({account, "all"} & set(self.shared_with(clock)))


@dataclass(slots=True)
class Image:
    """An AMI. `mappings` is the block device mapping as DescribeImages shows it.

    `location` is the S3 manifest of an image with an instance store as root device, else empty.
    """

    image_id: str
    owner: str
    region: str
    name: str
    created: datetime
    architecture: str
    root_device: str
    mappings: list[dict[str, Any]]
    description: str = ""
    virtualization: str = "hvm"
    boot_mode: str = ""
    tpm: str = ""
    ena: bool = False
    sriov: str = ""
    imds: str = ""
    uefi_data: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    permissions: list[dict[str, str]] = field(default_factory=list)
    deprecate_at: datetime | None = None
    deprecation_set: datetime | None = None
    disabled: bool = False
    protection: str = "disabled"
    protection_lifted: datetime | None = None
    seconds: float = 0.0
    failure: str = ""
    source_image: str = ""
    source_region: str = ""
    source_instance: str = ""
    last_launched: datetime | None = None
    location: str = ""

    @property
    def root_type(self) -> str:
        """The type of its root device: ``ebs`` or ``instance-store``."""
        return "instance-store" if self.location else "ebs"

    def state(self, clock: Clock) -> str:
        """Return ``pending``, ``available``, ``failed`` or ``disabled``."""
        if clock.age(self.created) < self.seconds:
            return "pending"
        if self.failure:
            return "failed"
        return "disabled" if self.disabled else "available"

    def public(self) -> bool:
        """Return whether every account may launch it."""
        return {"Group": "all"} in self.permissions

    def deprecated(self, clock: Clock) -> bool:
        """Return whether its deprecation date has passed, in real time."""
        return self.deprecate_at is not None and clock.is_past(self.deprecate_at, since=self.deprecation_set)

    def snapshot_ids(self) -> list[str]:
        """Return the snapshot IDs of its block devices, without repetition."""
        found = [m["Ebs"]["SnapshotId"] for m in self.mappings if m.get("Ebs", {}).get("SnapshotId")]
        return list(dict.fromkeys(found))


@dataclass(slots=True)
class Volume:
    """An EBS volume with the blocks of its snapshot."""

    volume_id: str
    size_gib: int
    zone: str
    created: datetime
    volume_type: str = "gp2"
    iops: int | None = None
    throughput: int | None = None
    snapshot_id: str = ""
    lineage: str = ""
    encrypted: bool = False
    kms_key: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    blocks: dict[int, bytes] = field(default_factory=dict)
    instance_id: str = ""
    device: str = ""
    delete_on_termination: bool = False
    attached: datetime | None = None

    def state(self, clock: Clock) -> str:
        """Return ``creating``, ``available`` or ``in-use``."""
        if self.instance_id:
            return "in-use"
        return "creating" if clock.age(self.created) < 2.0 else "available"


@dataclass(slots=True)
class EmulatedInstance:
    """An EC2 instance. `details` are further members of DescribeInstances.

    `launched` is the time of its launch or last start, `stopping` that of its stop.
    """

    instance_id: str
    reservation_id: str
    owner: str
    image_id: str
    instance_type: str
    zone: str
    launched: datetime
    architecture: str
    root_device: str
    details: dict[str, Any]
    console: str = ""
    user_data: str = ""
    shutdown: str = "stop"
    tags: dict[str, str] = field(default_factory=dict)
    token: str = ""
    launch_index: int = 0
    terminating: datetime | None = None
    protected: bool = False
    impaired: bool = False
    subnet_id: str = ""
    private_ip: str = ""
    public_ip: str = ""
    group_ids: list[str] = field(default_factory=list)
    source_dest_check: bool = True
    stopping: datetime | None = None

    def state(self, clock: Clock) -> str:
        """Return its state, such as ``running`` or ``shutting-down``."""
        if self.terminating is not None:
            return "shutting-down" if clock.age(self.terminating) < 30.0 else "terminated"
        if self.stopping is not None:
            return "stopping" if clock.age(self.stopping) < 30.0 else "stopped"
        return "pending" if clock.age(self.launched) < 10.0 else "running"


@dataclass(slots=True)
class EmulatedImportTask:
    """An ImportSnapshot task. `imports` computes its state.

    Once the file was checked, `detected` is its format, `size_bytes` its size, `disk_gib` the size of the
    disk in it, and `etag` the ETag of the object. `blocks` are those read so far, up to `next_block`; `read`
    means that all were read. `outcome` is "" until the task ends, then ``completed``, ``deleted`` or
    ``cancelled``; `message` is the reason of a failure.
    """

    task_id: str
    owner: str
    region: str
    created: datetime
    bucket: str
    key: str
    image_format: str
    description: str
    disk_description: str
    url: str
    role_name: str
    encrypted: bool
    kms_key: str
    tags: dict[str, str] = field(default_factory=dict)
    snapshot_id: str = ""
    size_bytes: int = 0
    disk_gib: int = 0
    detected: str = ""
    blocks: dict[int, bytes] = field(default_factory=dict)
    next_block: int = 0
    etag: str = ""
    read: bool = False
    outcome: str = ""
    message: str = ""
    ended: datetime | None = None
