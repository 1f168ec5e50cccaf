"""What a finding is, and what a rule that makes findings gets and returns.

Rules work on whole columns, so that a hundred thousand AMIs are judged in seconds.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    "remediation": "the command that fixes it; empty where the reason says what a person has to decide",
    "monthly_usd": "what the resource costs, USD a month",
}
"""Columns of the findings and their meaning."""

_HOLE = re.compile(r"\{(\w+)\}")
_PARTS = re.compile(r"(\{\w+\}|<[A-Z]+>)")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A part of a command that a person has to choose; every shell refuses the command until then."""

    name: str

    def __str__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that fixes a finding; `str` is the line to paste into a shell, every word quoted.

    Attributes
    ----------
    words
        Its words, each by its parts: text, the number of a value, what a person has to choose, or a command
        whose output it is. Findings of one rule share them.
    values
        To which the numbers in `words` refer.
    then
        What to do after it has succeeded.
    """

    words: tuple[tuple[str | int | Placeholder | Command, ...], ...]
    values: tuple[str, ...] = ()
    then: Command | None = None

    @classmethod
    def of(cls, template: str, /, *, then: Command | None = None, **values: str | Command) -> Command:
        """Return the command of a template.

        Parameters
        ----------
        template
            Words with spaces between, in which ``{name}`` stands for a value and ``<NAME>`` for what a person
            has to choose, such as ``aws ssm put-parameter --name {name} --value <AMI>``.
        then
            What to do after it.
        values
            By name. A text is never split into words; of a command, what it prints is the value.
        """
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = dict(zip(texts, range(len(texts)), strict=True))
        found = {name: numbers.get(name, value) for name, value in values.items()}
        return cls(_words(template, found), tuple(texts.values()), then)

    @property
    def argv(self) -> tuple[str, ...]:
        """The words of the command itself, without `then`; ``<NAME>`` for what a person has to choose."""
        return tuple("".join(str(self._value(part)) for part in word) for word in self.words)

    def __str__(self) -> str:
        line = " ".join(map(self._quoted, self.words))
        return f"{line} && {self.then}" if self.then else line

    def _value(self, part: str | int | Placeholder | Command) -> str | Placeholder | Command:
        return self.values[part] if isinstance(part, int) else part

    def _quoted(self, word: tuple[str | int | Placeholder | Command, ...]) -> str:
        """Return a word for a shell: its text quoted, its placeholders not, its commands to be run."""
        found, text = "", ""
        for part in map(self._value, word):
            if isinstance(part, str):
                text += part
                continue
            found += shlex.quote(text) if text else ""
            found += f'"$({part})"' if isinstance(part, Command) else str(part)
            text = ""
        return found + (shlex.quote(text) if text or not found else "")


def _words(
    template: str, holes: Mapping[str, int | str | Command]
) -> tuple[tuple[str | int | Placeholder | Command, ...], ...]:
    def part(text: str) -> str | int | Placeholder | Command:
        if text.startswith("{"):
            return holes[text[1:-1]]
        return Placeholder(text[1:-1]) if text.startswith("<") else text

    return tuple(tuple(part(text) for text in _PARTS.split(word) if text) for word in template.split())


def commands(template: str, rows: pd.DataFrame) -> pd.Series[Any]:
    """Return a command for each row, with its values; see `Command.of`."""
    import pandas as pd

    names = list(dict.fromkeys(_HOLE.findall(template)))
    words = _words(template, dict(zip(names, range(len(names)), strict=True)))
    columns = [map(sys.intern, rows[name].astype("str").fillna("")) for name in names]
    made = [Command(words, values) for values in zip(*columns, strict=True)] if names else []
    return pd.Series(made, index=rows.index, dtype="object")


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

    def verdicts(self, rows: pd.DataFrame) -> pd.Series[Any]:
        """Return what a retirement would do with each row; None for what is not ours to retire."""
        import pandas as pd

        keys = zip(rows["account"], rows["region"], rows["resource_id"], strict=True)
        known = self.inventory.verdicts
        return pd.Series([known.get(key) for key in keys], rows.index, "object")

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
    remediation: str | pd.Series[Any] = "",
    evidence: str | pd.Series[Any] = "",
    **more: Any,
) -> pd.DataFrame:
    """Return one finding for each row.

    Parameters
    ----------
    rows
        Rows of an inventory.
    reason, evidence
        Texts with ``{column}`` where a value of the row stands.
    remediation
        A template of `commands`, or a command for each row; empty where none is right for everybody.
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
    }
    if isinstance(remediation, str):
        remediation = commands(remediation, rows) if remediation else pd.Series(None, rows.index, "object")
    shown["remediation"] = remediation.reindex(rows.index)
    given = [name for name in COLUMNS if name in rows.columns and name not in shown]
    return rows[given].assign(**shown)


def fill(text: str, rows: pd.DataFrame) -> pd.Series[Any]:
    """Return a text for each row, with the row's values in its holes."""
    import pandas as pd

    parts = _HOLE.split(text)
    whole = pd.Series(parts[0], index=rows.index, dtype="str")
    for hole, after in zip(parts[1::2], parts[2::2], strict=True):
        values = rows[hole].astype("str").fillna("")
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
    command = commands("vmsnix publish --image {flake} --region {region}", rows.assign(flake=flakes))
    return command.where(flakes != "", None)
