"""Findings and their commands, and what the rules of an audit read and return.

Rules work on whole columns, so that a hundred thousand AMIs are checked in seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vmsnix_ops.arguments import check_form, check_range
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.errors import RecordsError, SchemaError
from vmsnix_ops.nix.versions import parse_conditions
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from vmsnix_ops.audit.inventory import Inventory
    from vmsnix_ops.nix.versions import PackageCondition
    from vmsnix_ops.outcomes import Severity

COLUMNS: dict[str, str] = {
    "finding_id": "identity of the finding, equal in every audit that finds it",
    "severity": "critical (production may fail), high (fix today), medium, low, or info",
    "rule": "name of the rule that found it",
    "account": "AWS account ID, 12 digits",
    "region": "AWS region; empty for a whole account",
    "kind": "kind of the resource, as in the inventory",
    "resource_id": "identifier of the resource",
    "name": "name of the resource",
    "image": "name of the image, if vmsnix published it",
    "reason": "what is wrong, as text",
    "evidence": "the facts that show it",
    "remediation": "command that fixes it; empty if the reason says what a person has to decide",
    "monthly_usd": "cost of the resource, USD per month",
}
"""Columns of the findings and their meaning."""

IDENTITY = ("rule", "account", "region", "kind", "resource_id", "subject")
"""What identifies a finding. The subject is what a rule found at the resource, such as an unknown account."""

_FIELD = re.compile(r"\{(\w+)\}")
_PARTS = re.compile(r"(\{\w+\}|<[A-Z]+>)")


NO_TABLES = Tables("/nonexistent")
"""A history without tables."""

# Commands that fix a finding.


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A part of a command that a person has to choose; a shell refuses the command until then."""

    name: str

    def __str__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that fixes a finding; `str` returns the line for a shell, with every word quoted."""

    # Each has one or more parts: text, the number of a value, a placeholder, or a command whose
    # output is the value. All findings of a rule share them.
    words: tuple[tuple[str | int | Placeholder | Command, ...], ...]
    values: tuple[str, ...] = ()  # the values that the numbers in `words` refer to
    then: Command | None = None  # the command to run after it has succeeded

    @classmethod
    def of(cls, template: str, /, *, then: Command | None = None, **values: str | Command) -> Command:
        """Return the command of a template, such as ``aws ssm put-parameter --name {name} --value <AMI>``.

        ``{name}`` is replaced by a value: a text is never split into words, a command is replaced by its
        output. ``<NAME>`` is a placeholder. `then` is run after the command has succeeded.
        """
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = dict(zip(texts, range(len(texts)), strict=True))
        found = {name: numbers.get(name, value) for name, value in values.items()}
        return cls(_words(template, found), tuple(texts.values()), then)

    @property
    def argv(self) -> tuple[str, ...]:
        """The words of the command, without `then`; placeholders as ``<NAME>``."""
        return tuple("".join(str(self._value(part)) for part in word) for word in self.words)

    def __str__(self) -> str:
        line = " ".join(map(self._quoted, self.words))
        return f"{line} && {self.then}" if self.then else line

    def _value(self, part: str | int | Placeholder | Command) -> str | Placeholder | Command:
        return self.values[part] if isinstance(part, int) else part

    def _quoted(self, word: tuple[str | int | Placeholder | Command, ...]) -> str:
        """Return a word for a shell: text is quoted, placeholders are not, commands are run."""
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
    template: str, fields: Mapping[str, int | str | Command]
) -> tuple[tuple[str | int | Placeholder | Command, ...], ...]:
    def part(text: str) -> str | int | Placeholder | Command:
        if text.startswith("{"):
            return fields[text[1:-1]]
        return Placeholder(text[1:-1]) if text.startswith("<") else text

    return tuple(tuple(part(text) for text in _PARTS.split(word) if text) for word in template.split())


def commands_for(template: str, rows: pd.DataFrame) -> pd.Series[Any]:
    """Return a command for each row, with its values; see `Command.of`."""
    import pandas as pd

    names = list(dict.fromkeys(_FIELD.findall(template)))
    words = _words(template, dict(zip(names, range(len(names)), strict=True)))
    columns = [map(sys.intern, rows[name].astype("str").fillna("")) for name in names]
    made = [Command(words, values) for values in zip(*columns, strict=True)] if names else []
    return pd.Series(made, index=rows.index, dtype="object")


def publish_commands(rows: pd.DataFrame) -> pd.Series[Any]:
    """Return the command that builds and publishes each image again; nothing if its flake is not recorded.

    A tag has the reference of the flake, which may be a folder of the machine that published the image.
    """
    flakes = rows["tags"].map(lambda text: json.loads(text).get(tagging.FLAKE, "")).astype("str")
    command = commands_for("vmsnix publish --image {flake} --region {region}", rows.assign(flake=flakes))
    return command.where(flakes != "", None)


# What rules read.


@dataclass(frozen=True, slots=True)
class AuditCriteria:
    """Parameters of `vmsnix_ops.audit.check` for the rules."""

    old_days: int = 365
    unfinished_hours: int = 24  # age from which an unfinished upload, import or object is reported
    known_accounts: frozenset[str] = frozenset()
    packages: tuple[PackageCondition, ...] = ()

    @classmethod
    def of(cls, *, old_days: int, known_accounts: Iterable[str], packages: Iterable[str]) -> AuditCriteria:
        """Return criteria; raise a `ParameterError` if one of them is invalid."""
        check_range("old_days", old_days)
        known = frozenset(known_accounts)
        for one in sorted(known):
            check_form("audited", one, f"known_accounts: {one!r}")
        return cls(old_days=old_days, known_accounts=known, packages=parse_conditions(packages))


@dataclass(frozen=True)
class AuditData:
    """What a rule may read."""

    inventory: Inventory
    criteria: AuditCriteria
    recorded: pd.DataFrame  # the latest row of every AMI in the table amis
    expected: list[dict[str, Any]]  # what AWS should report for each AMI, by all tables
    packages: pd.DataFrame  # rows of the table packages about the packages in the criteria
    recorded_digests: frozenset[str]  # images whose packages are recorded; empty without such criteria
    proofs: pd.DataFrame  # the newest proof of each AMI, as `newest_proofs` returns them

    @cached_property
    def amis(self) -> pd.DataFrame:
        """The AMIs; cached, because most rules read them."""
        return self.inventory.ami_rows

    @property
    def now(self) -> datetime:
        """When the scan began."""
        return self.inventory.scanned_at

    def of_kind(self, *kinds: str) -> pd.DataFrame:
        """Return the resources of these kinds."""
        frame = self.inventory.frame
        return frame[frame["kind"].isin(kinds)]

    def rule_results(self, rows: pd.DataFrame) -> pd.Series[Any]:
        """Return the result of the retirement rules on each row; ``None`` if vmsnix did not publish it."""
        import pandas as pd

        keys = zip(rows["account"], rows["region"], rows["resource_id"], strict=True)
        known = self.inventory.rule_results
        return pd.Series([known.get(key) for key in keys], rows.index, "object")

    def unfinished(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that are older than `AuditCriteria.unfinished_hours`, or have no time."""
        edge = self.now - timedelta(hours=self.criteria.unfinished_hours)
        return frame[~(frame["created_at"] > edge)]


class ReadableTables(Tables):
    """Tables for an audit: a table that cannot be read is empty, and `unread` contains its error."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables.location, region=tables.region)
        self.unread: dict[str, RecordsError] = {}

    def read(self, table: str, **options: Any) -> pd.DataFrame:
        """Return a table as `Tables.read` does; an empty frame if it cannot be read."""
        try:
            return super().read(table, **options)
        except SchemaError:
            raise
        except RecordsError as error:
            self.unread[table] = error
            return NO_TABLES.read(table, **options)


# Rules and what they return.

RuleFunction = Callable[[AuditData], "pd.DataFrame"]


@dataclass(frozen=True, slots=True)
class AuditRule:
    """A rule: its name, the severities of its findings, its description, and the function that finds them."""

    name: str
    severities: tuple[Severity, ...]
    description: str
    find: RuleFunction


RULES: dict[str, AuditRule] = {}


def rule(*severities: Severity) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function that returns findings, from `findings_for`; its docstring describes the rule.

    The first of the severities applies to findings without a column ``severity``.
    """

    def register(find: RuleFunction) -> RuleFunction:
        name = find.__name__.strip("_").replace("_", "-")
        description = (find.__doc__ or "").split("\n\n")[0]
        RULES[name] = AuditRule(name, severities, " ".join(description.split()), find)
        return find

    return register


def findings_for(
    rows: pd.DataFrame,
    reason: str,
    *,
    remediation: str | pd.Series[Any] = "",
    evidence: str | pd.Series[Any] = "",
    subject: str = "",
    **more: Any,
) -> pd.DataFrame:
    """Return one finding for each row of an inventory.

    `reason`, `evidence` and `subject` are texts in which ``{column}`` is replaced by a value of the row;
    `more` are further columns for them. `remediation` is a template for `commands_for`, or a command for each
    row; empty if no command fixes all. Another `subject` is another finding, which a person has to
    acknowledge again; it must not contain what changes with time, such as an age.
    """
    import pandas as pd

    if not len(rows):
        return pd.DataFrame(columns=list(COLUMNS))
    rows = rows.assign(**more)
    texts = {
        "reason": fill_template(reason, rows),
        "evidence": evidence if isinstance(evidence, pd.Series) else fill_template(evidence, rows),
    }
    if isinstance(remediation, str):
        none = pd.Series(None, rows.index, "object")
        remediation = commands_for(remediation, rows) if remediation else none
    texts["remediation"] = remediation.reindex(rows.index)
    if subject:
        texts["subject"] = fill_template(subject, rows)
    given = [name for name in COLUMNS if name in rows.columns and name not in texts]
    return rows[given].assign(**texts)


def fill_template(text: str, rows: pd.DataFrame) -> pd.Series[Any]:
    """Return a text for each row, in which ``{column}`` is replaced by the row's value."""
    import pandas as pd

    parts = _FIELD.split(text)
    whole = pd.Series(parts[0], index=rows.index, dtype="str")
    for name, after in zip(parts[1::2], parts[2::2], strict=True):
        whole = whole + rows[name].astype("str").fillna("") + after
    return whole


def finding_ids(findings: pd.DataFrame) -> list[str]:
    """Return the identity of each finding, 16 hexadecimal digits, from the columns `IDENTITY`."""
    columns = [findings[name].astype("object").fillna("") for name in IDENTITY]
    return [
        hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for parts in zip(*columns, strict=True)
    ]


def concat(*parts: pd.DataFrame) -> pd.DataFrame:
    """Return several frames of findings of one rule as one frame."""
    import pandas as pd

    full = [part for part in parts if len(part)]
    return pd.concat(full) if full else parts[0]


def as_text(findings: pd.DataFrame) -> pd.DataFrame:
    """Return findings for a file or a table: each remediation as a line for a shell, or empty."""
    lines = [str(one) if isinstance(one, Command) else "" for one in findings["remediation"]]
    return findings.assign(remediation=lines).astype({"remediation": "str"})
