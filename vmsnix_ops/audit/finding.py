"""What a finding is, and what a rule that makes findings gets and returns.

Rules work on whole columns, so that a hundred thousand AMIs are judged in seconds.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.audit.inventory import Inventory
    from vmsnix_ops.nix.versions import Wanted

Severity = Literal["critical", "high", "medium", "low", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "info")

COLUMNS: dict[str, str] = {
    "severity": "critical (production may break), high (look today), medium, low, or info",
    "rule": "which rule found it",
    "account": "AWS account id, 12 digits",
    "region": "AWS region; empty for a whole account",
    "kind": "kind of the resource, as in the inventory",
    "resource_id": "its identifier",
    "name": "its name",
    "image": "image that it was published as, if we did",
    "reason": "what is wrong, in words",
    "evidence": "what shows it",
    "cure": "the command that cures it; empty where the reason says what a person has to decide",
    "monthly_usd": "what the resource costs, USD a month",
}
"""Columns of the findings and their meaning."""

_HOLE = re.compile(r"\{(\w+)\}")
_SAFE = frozenset({"account", "region", "resource_id", "kind"})  # ids of AWS: no shell reads more into them


@dataclass(frozen=True, slots=True)
class Measure:
    """From where on something is wrong.

    Attributes
    ----------
    old_days
        Age from which an AMI is old.
    unfinished_hours
        Age from which an unfinished upload, import or object is a leftover.
    known_accounts
        Accounts, organizations and units that AMIs may be shared with; those that were scanned are known.
    packages
        Packages that no image shall contain.
    """

    old_days: int = 365
    unfinished_hours: int = 24
    known_accounts: frozenset[str] = frozenset()
    packages: tuple[Wanted, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a rule may look at.

    Attributes
    ----------
    inventory
        The scan.
    measure
        From where on something is wrong.
    recorded
        The latest row of every AMI in the table ``amis``.
    expected
        What AWS should say of each AMI, by all tables.
    packages
        The rows of the table ``packages`` about the packages that were asked for.
    known_digests
        Digests of the images whose packages are recorded; empty where none were asked for.
    """

    inventory: Inventory
    measure: Measure
    recorded: pd.DataFrame
    expected: list[dict[str, Any]]
    packages: pd.DataFrame
    known_digests: frozenset[str]

    @property
    def frame(self) -> pd.DataFrame:
        """Everything that the scan saw."""
        return self.inventory.frame

    @cached_property
    def amis(self) -> pd.DataFrame:
        """The AMIs of the scan; kept, because most rules look at them."""
        return self.inventory.amis

    @property
    def now(self) -> datetime:
        """When the scan began."""
        return self.inventory.scanned_at

    def of(self, *kinds: str) -> pd.DataFrame:
        """Return the resources of these kinds."""
        return self.frame[self.frame["kind"].isin(kinds)]

    def unfinished(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return what is older than unfinished work may be; what has no time is."""
        edge = self.now - timedelta(hours=self.measure.unfinished_hours)
        return frame[~(frame["created_at"] > edge)]


Rule = Callable[[Facts], "pd.DataFrame"]


@dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    severities: tuple[Severity, ...]
    about: str
    look: Rule


RULES: dict[str, _Registered] = {}


def rule(*severities: Severity) -> Callable[[Rule], Rule]:
    """Register a function that returns findings, made with `found`; its docstring says what they mean.

    Parameters
    ----------
    severities
        How bad what it finds can be. The first holds for findings without a column ``severity``.
    """

    def register(look: Rule) -> Rule:
        name = look.__name__.strip("_").replace("_", "-")
        about = (look.__doc__ or "").split("\n\n")[0]
        RULES[name] = _Registered(name, severities, " ".join(about.split()), look)
        return look

    return register


def found(
    rows: pd.DataFrame,
    reason: str,
    *,
    cure: str | pd.Series[Any] = "",
    evidence: str | pd.Series[Any] = "",
    **more: Any,
) -> pd.DataFrame:
    """Return one finding for each row.

    Parameters
    ----------
    rows
        Rows of an inventory.
    reason, cure, evidence
        Texts with ``{column}`` where a value of the row stands; in a cure, values that people chose are
        quoted for the shell.
    more
        Further columns to fill texts from.
    """
    import pandas as pd

    # A frame without rows would take over the index, and so the rows, of what it is assigned.
    fitting = {
        name: value.reindex(rows.index) if isinstance(value, pd.Series) else value
        for name, value in more.items()
    }
    rows = rows.assign(**fitting)
    shown = {
        "reason": fill(reason, rows),
        "evidence": evidence if isinstance(evidence, pd.Series) else fill(evidence, rows),
        "cure": cure if isinstance(cure, pd.Series) else fill(cure, rows, quoted=True),
    }
    given = [name for name in COLUMNS if name in rows.columns and name not in shown]
    return rows[given].assign(**shown)


def fill(text: str, rows: pd.DataFrame, *, quoted: bool = False) -> pd.Series[Any]:
    """Return a text for each row, with the row's values in its holes."""
    import pandas as pd

    parts = _HOLE.split(text)
    whole = pd.Series(parts[0], index=rows.index, dtype="str")
    for hole, after in zip(parts[1::2], parts[2::2], strict=True):
        values = rows[hole].astype("str").fillna("")
        if quoted and hole not in _SAFE:
            values = values.map(shlex.quote).astype("str")
        whole = whole + values + after
    return whole


def together(*parts: pd.DataFrame) -> pd.DataFrame:
    """Return findings that one rule made in several ways as one frame."""
    import pandas as pd

    full = [part for part in parts if len(part)]
    return pd.concat(full) if full else parts[0]


def publish_again(rows: pd.DataFrame) -> pd.Series[Any]:
    """Return the command that builds and publishes each image anew; nothing where nobody recorded its flake.

    The flake's reference stands in a tag. It may name a folder of the machine that published it.
    """
    flakes = rows["tags"].map(lambda text: json.loads(text).get(tagging.FLAKE, "")).astype("str")
    command = fill("vmsnix publish --image {flake} --region {region}", rows.assign(flake=flakes), quoted=True)
    return command.where(flakes != "", "")
