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
    """

    account: str
    region: str
    source: str
    error: errors.AwsError


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
        Whose AMI that is; empty when there is no such AMI, or none that we may see.
    """

    account: str
    region: str
    ami_id: str
    evidence: Evidence
    owner: str


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
        What names AMIs of other accounts, or AMIs that do not exist.
    hurried
        The accounts and regions that have so many AMIs that AWS was not asked about each one.
    """

    frame: pd.DataFrame = field(repr=False)
    run: RunContext = field(repr=False)
    scanned_at: datetime
    places: Mapping[tuple[str, str], int]
    unread: tuple[Unread, ...] = ()
    pointers: tuple[Pointer, ...] = ()
    hurried: tuple[tuple[str, str], ...] = ()

    @property
    def amis(self) -> pd.DataFrame:
        """The AMIs: the first rows of the frame, and so no copy of them."""
        return self.frame.iloc[: int((self.frame["kind"] == "ami").sum())]


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one account and region."""

    account: str
    region: str
    found: References
    amis: int
    holders: Mapping[str, list[str]]
    unread: tuple[Unread, ...]
    hurried: bool
    strangers: Mapping[str, str]
