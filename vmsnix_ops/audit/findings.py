"""What is wrong with what an inventory holds: each finding with its reason, its evidence and its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.audit import rules as _every_rule  # noqa: F401 - registers them
from vmsnix_ops.audit.finding import COLUMNS, RULES, SEVERITIES, Command, Facts, Measure, Severity
from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.records import history
from vmsnix_ops.records.recorded_amis import recorded
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from vmsnix_ops.audit.inventory import Inventory


def evaluate(
    inventory: Inventory,
    *,
    measure: Measure | None = None,
    tables: Tables | None = None,
    rules: Iterable[str] = (),
) -> pd.DataFrame:
    """Return everything that is wrong, the worst first.

    Parameters
    ----------
    inventory
        What a scan saw.
    measure
        From where on something is wrong.
    tables
        The history, for what was published and what is inside; without it, rules that need it find nothing.
    rules
        Only these rules, by name; all by default.

    Returns
    -------
    pandas.DataFrame
        Columns as in `COLUMNS`; `remediation` holds a `Command`, or nothing.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such rule.
    """
    import pandas as pd

    chosen = tuple(rules) or tuple(RULES)
    for name in chosen:
        if name not in RULES:
            raise ParameterError(f"There is no rule {name!r}.", why=nearest(name, RULES))
    measure = measure or Measure()
    tables = tables or Tables("/nonexistent")
    inside, known = pd.DataFrame(columns=["digest", "name", "version"]), frozenset[str]()
    if measure.packages:  # else no row of a table is read that may have millions
        names = [wanted.name for wanted in measure.packages]
        inside = tables.read("packages", columns=list(inside.columns), where=[("name", "in", names)])
        known = frozenset(tables.read("packages", columns=["digest"])["digest"])
    facts = Facts(inventory, measure, history.amis(tables), recorded(tables), inside, known)
    # Parts are sorted one by one, and joined in their order: to sort the whole would double its memory.
    parts: dict[tuple[int, str], pd.DataFrame] = {}
    for name in chosen:
        part = RULES[name].look(facts)
        if not len(part):
            continue
        severity = part["severity"] if "severity" in part else RULES[name].severities[0]
        part = _typed(part.assign(rule=name, severity=severity).reindex(columns=list(COLUMNS)))
        part = part.sort_values(["account", "region", "resource_id"])
        for one in part["severity"].unique():
            parts[SEVERITIES.index(one), name] = part[part["severity"] == one]
    if not parts:
        return _typed(pd.DataFrame(columns=list(COLUMNS)))
    return pd.concat([parts.pop(key) for key in sorted(parts)], ignore_index=True)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    fixes = [one if isinstance(one, Command) else None for one in frame["remediation"]]
    texts = {name: "str" for name in COLUMNS if name not in ("remediation", "monthly_usd")}
    frame = frame.assign(remediation=pd.Series(fixes, frame.index, "object"))
    return frame.astype({**texts, "monthly_usd": "float64"})


def as_text(findings: pd.DataFrame) -> pd.DataFrame:
    """Return findings for a file or a table: each remediation as the line to paste, empty without one."""
    lines = [str(one) if isinstance(one, Command) else "" for one in findings["remediation"]]
    return findings.assign(remediation=lines).astype({"remediation": "str"})


def summary(findings: pd.DataFrame) -> pd.DataFrame:
    """Return how many findings each rule has, and what their resources cost, the worst first."""
    groups = findings.groupby(["severity", "rule"], as_index=False, sort=False)
    return groups.agg(
        findings=("resource_id", "size"),
        accounts=("account", "nunique"),
        regions=("region", "nunique"),
        monthly_usd=("monthly_usd", "sum"),
    )


def about() -> Mapping[str, tuple[tuple[Severity, ...], str]]:
    """Return the severities and the meaning of every rule, by its name."""
    return {name: (rule.severities, rule.about) for name, rule in RULES.items()}
