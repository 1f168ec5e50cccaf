"""What a scan hands on: what was read, what could not be, and the inventory of it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import pandas as pd

    from vmsnix_ops import errors
    from vmsnix_ops.aws.references import Evidence, References
    from vmsnix_ops.records.run_context import RunContext


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be read.

    Attributes
    ----------
    account, region
        Where; the region is empty for a whole account.
    source
        What.
    error
        Why, and what to do.
    bucket
        The bucket that could not be read; empty where something else could not. Nothing but what it holds is
        unknown then.
    """

    account: str
    region: str
    source: str
    error: errors.AwsError
    bucket: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Something that names an AMI which this account does not own.

    Attributes
    ----------
    account, region, ami_id
        Where and what it names; what stands for no AMI at all is kept as it is, such as the
        ``resolve:ssm:...`` of a parameter that is gone.
    evidence
        What names it.
    owner
        Whose AMI that is; empty when there is no such AMI, or none that this account may see.
    unshared
        The scanned account that owns it and does not let this account launch it; empty where there is none.
    """

    account: str
    region: str
    ami_id: str
    evidence: Evidence
    owner: str
    unshared: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one scan saw.

    Attributes
    ----------
    frame
        Columns as `vmsnix_ops.records.schemas.INVENTORY` documents them; AMIs first, oldest first.
    run
        The run that scanned.
    scanned_at
        When it started, UTC.
    places
        The accounts and regions that were read, each with the number of AMIs; also those without any.
    unread
        What could not be read.
    pointers
        What names AMIs of accounts that were not scanned, or AMIs that its own account cannot launch.
    hurried
        The accounts and regions that have so many AMIs that AWS was not asked about each one. Who else may
        launch those is unknown, and so is their use unless something names them.
    buckets
        The account and name of each bucket that was looked into, with its region.
    """

    frame: pd.DataFrame = field(repr=False)
    run: RunContext = field(repr=False)
    scanned_at: datetime
    places: Mapping[tuple[str, str], int]
    unread: tuple[Unread, ...] = ()
    pointers: tuple[Pointer, ...] = ()
    hurried: tuple[tuple[str, str], ...] = ()
    buckets: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def amis(self) -> pd.DataFrame:
        """The AMIs: the first rows of the frame, and so no copy of them."""
        return self.frame.iloc[: int((self.frame["kind"] == "ami").sum())]


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one account and region, or of a bucket.

    Attributes
    ----------
    account, region
        Where.
    found
        What uses AMIs.
    amis
        How many AMIs there are.
    holders
        The AMIs that hold each snapshot.
    unread
        What could not be read.
    hurried
        Whether AWS was not asked about each AMI.
    strangers
        The owners of AMIs that are named here and belong to others; empty for what cannot be seen from here.
    guests
        AMIs of other scanned accounts that may be launched here, and about which AWS was asked here.
    bucket
        The bucket, if it is one.
    closed
        Whether the region let nobody in: it is not enabled.
    """

    account: str
    region: str
    found: References
    amis: int
    holders: Mapping[str, list[str]]
    unread: tuple[Unread, ...]
    hurried: bool = False
    strangers: Mapping[str, str] = field(default_factory=dict)
    guests: frozenset[str] = frozenset()
    bucket: str = ""
    closed: bool = False
