"""The entries of a plan file, and the targets that they stand for."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ParameterError, RunError, UnknownRunbookError, nearest
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import known_regions
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.execution.side_effects import level
from vmsnix_ops.runbooks.fleet.accounts import ACCOUNT_ID, CREDENTIALS, Account

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmsnix_ops.runbooks.fleet.faults import Faults

AXES = {"images": "image", "regions": "region", "accounts": "account"}
DEFAULT_KEYS = ("parameters", "environment", "resources", "retries", "retry_wait")
ENTRY_KEYS = ("name", "runbook", *AXES, "matrix", *DEFAULT_KEYS, "after", "override")
OVERRIDE_KEYS = ("where", "skip", *DEFAULT_KEYS)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Target:
    """One run of one runbook.

    Attributes
    ----------
    name
        Entry and what tells it from the entry's other targets: ``publish/ecs-node/eu-central-1``.
    entry
        Name of its entry.
    runbook
        Name of the runbook.
    axes
        Its values of what the entry lists.
    given
        The parameters that the plan gives, as the runbook declares them.
    key
        Of its content; the ledger knows it by this.
    account
        Where it works.
    environment
        Variables of its own; never credentials.
    resources
        What a worker must offer.
    retries
        How often it is tried again.
    retry_wait
        Seconds before the first retry; twice as many before each next.
    after
        Names of the targets that must be done first.
    effects
        What it may do: ``read_only`` (also a dry run), ``creates`` or ``destroys``.
    """

    name: str
    entry: str
    runbook: str
    axes: Mapping[str, object]
    given: Mapping[str, object]
    key: str
    account: Account = field(default_factory=Account)
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    retry_wait: float = 5.0
    after: tuple[str, ...] = ()
    effects: str = "read_only"

    @property
    def region(self) -> str:
        """Its region, where the entry lists regions."""
        return str(self.axes.get("region", ""))

    def described(self) -> str:
        """Return in one line what it is: runbook, parameters, what it waits for, what it needs."""
        parts = [
            f"{self.runbook} {' '.join(f'{name}={value}' for name, value in self.given.items())}".strip()
        ]
        if self.after:
            parts.append(f"after {', '.join(self.after)}")
        if self.resources:
            parts.append(f"needs {', '.join(f'{name}={count:g}' for name, count in self.resources.items())}")
        if self.effects == "destroys":
            parts.append("destroys")
        if self.retries:
            parts.append(counted(self.retries, "retry", "retries"))
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one ``[[entry]]`` stands for.

    Attributes
    ----------
    name
        Its name, unique in the plan.
    targets
        One for each combination of what it lists, without what it waits for.
    after
        The entries that it waits for.
    """

    name: str
    targets: tuple[Target, ...]
    after: tuple[str, ...]


def read_entries(
    faults: Faults, values: Mapping[str, Any], accounts: Mapping[str, Account], notebooks: Path | None
) -> list[Entry]:
    """Return the entries of a plan with their targets."""
    defaults = faults.take(values, "defaults", dict, {}, "The plan")
    faults.unknown(defaults, DEFAULT_KEYS, "defaults")
    tables = faults.take(values, "entry", list, [], "The plan")
    if not tables:
        faults.add("The plan has no [[entry]].")
    entries: list[Entry] = []
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            faults.add(f"entry {number} is not a table; write [[entry]].")
            continue
        name = faults.take(table, "name", str, "", f"entry {number}") or str(table.get("runbook", number))
        if not NAME.fullmatch(name):
            faults.add(
                f"entry {number}: the name {name!r} has other than small letters, digits, '.', '_', '-'."
            )
        if name in {entry.name for entry in entries}:
            faults.add(f"There are two entries {name!r}; name them apart.")
        faults.unknown(table, ENTRY_KEYS, name)
        after = tuple(faults.texts(table, "after", name))
        targets = tuple(_Reader(faults, name, table, defaults, accounts, notebooks).targets())
        entries.append(Entry(name, targets, after))
    return entries


@dataclass
class _Reader:
    """Reads one entry."""

    faults: Faults
    name: str
    table: Mapping[str, Any]
    defaults: Mapping[str, Any]
    accounts: Mapping[str, Account]
    notebooks: Path | None

    def targets(self) -> Iterator[Target]:
        """Yield a target for each combination of what the entry lists."""
        runbook = self._runbook()
        lists = self._lists(runbook)
        overrides = [
            part
            for part in self.faults.take(self.table, "override", list, [], self.name)
            if self._fits(part, lists)
        ]
        for values in itertools.product(*lists.values()):
            axes = dict(zip(lists, values, strict=True))
            layers = [
                self.defaults,
                self.table,
                *(part for part in overrides if part["where"].items() <= axes.items()),
            ]
            if runbook is not None and not any(layer.get("skip") is True for layer in layers):
                yield self._target(runbook, axes, layers, lists)

    def _runbook(self) -> catalog.Runbook | None:
        wanted = self.faults.take(self.table, "runbook", str, "", self.name)
        if not wanted:
            self.faults.add(f"{self.name} names no runbook.")
            return None
        try:
            return catalog.find(wanted, self.notebooks)
        except (UnknownRunbookError, RunError) as error:
            self.faults.add(f"{self.name}: {error.what} {error.why}".rstrip())
            return None

    def _lists(self, runbook: catalog.Runbook | None) -> dict[str, list[Any]]:
        """Return what the entry lists, by the names that the values have in a target."""
        lists: dict[str, list[Any]] = {}
        for key, axis in AXES.items():
            if key in self.table:
                lists[axis] = list(self.faults.texts(self.table, key, self.name))
        for region in lists.get("region", []):
            if region not in known_regions():
                hint = nearest(region, known_regions())
                self.faults.add(f"{self.name}: there is no AWS region {region!r}. {hint}".rstrip())
        for account in lists.get("account", []):
            if account not in self.accounts and not ACCOUNT_ID.fullmatch(account):
                hint = (
                    nearest(account, self.accounts)
                    or "An account id has 12 digits; other names stand in [accounts]."
                )
                self.faults.add(f"{self.name}: there is no account {account!r}. {hint}")
        if runbook is not None and "image" in lists and not _declares(runbook, "image"):
            self.faults.add(f"{self.name} lists images, and {runbook.name} has no parameter 'image'.")
        for parameter, values in self.faults.take(self.table, "matrix", dict, {}, self.name).items():
            if not isinstance(values, list) or not values:
                self.faults.add(f"{self.name}: matrix.{parameter} is not a list of values.")
            elif parameter in lists:
                self.faults.add(f"{self.name} lists {parameter!r} twice, once in matrix.")
            else:
                lists[parameter] = values
        return lists

    def _fits(self, override: Any, lists: Mapping[str, list[Any]]) -> bool:
        """Check that an override stands for something."""
        place = f"{self.name}.override"
        if (
            not isinstance(override, dict)
            or not isinstance(override.get("where"), dict)
            or not override["where"]
        ):
            self.faults.add(f'{place} does not say for which targets: where = {{ region = "us-east-1" }}.')
            return False
        self.faults.unknown(override, OVERRIDE_KEYS, place)
        self.faults.take(override, "skip", bool, False, place)
        for axis, value in override["where"].items():
            if axis not in lists:
                self.faults.add(f"{place}: {self.name} lists no {axis}. {nearest(axis, lists)}".rstrip())
            elif value not in lists[axis]:
                hint = nearest(str(value), [str(item) for item in lists[axis]])
                self.faults.add(f"{place}: {axis} = {value!r} is none of the entry's. {hint}".rstrip())
        return True

    def _target(
        self,
        runbook: catalog.Runbook,
        axes: dict[str, Any],
        layers: list[Any],
        lists: Mapping[str, list[Any]],
    ) -> Target:
        account = self._account(axes)
        words = {
            "region": axes.get("region"),
            "image": axes.get("image"),
            "account": account.id or account.name,
        }
        given = self._given(runbook, axes, layers, words)
        environment = self._environment(layers, axes.get("region", ""), account)
        whole = {parameter.name: parameter.default for parameter in runbook.parameters} | given
        content = [runbook.name, whole, environment, account.id, account.role, account.profile]
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
        several = [axis for axis in axes if len(lists[axis]) > 1 or axis in AXES.values()]
        name = "/".join([self.name, *(_word(axis, axes[axis], lists[axis]) for axis in several)])
        last: dict[str, Any] = {}
        for layer in layers:
            last |= layer
        retries = self.faults.take(last, "retries", int, 0, self.name)
        wait = last.get("retry_wait", 5)
        if not 0 <= retries <= 100:
            self.faults.add(f"{self.name}: retries = {retries} is not from 0 to 100.")
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= 3600:
            self.faults.add(f"{self.name}: retry_wait = {wait!r} is not from 0 to 3600 seconds.")
            wait = 5
        resources: dict[str, float] = {}
        for layer in layers:
            resources |= self.faults.amounts(layer, "resources", self.name)
        return Target(
            name,
            self.name,
            runbook.name,
            axes,
            given,
            key,
            account,
            environment,
            resources,
            retries,
            float(wait),
            effects=level(runbook.side_effects, whole),
        )

    def _account(self, axes: Mapping[str, Any]) -> Account:
        name = str(axes.get("account", ""))
        return self.accounts.get(name) or Account(name, name if ACCOUNT_ID.fullmatch(name) else "")

    def _given(
        self, runbook: catalog.Runbook, axes: Mapping[str, Any], layers: list[Any], words: Mapping[str, Any]
    ) -> dict[str, object]:
        wanted: dict[str, object] = {}
        for layer in layers:
            own = self.faults.take(layer, "parameters", dict, {}, self.name)
            # A default is for the runbooks that have such a parameter; an entry must know its own.
            wanted |= {k: v for k, v in own.items() if layer is not self.defaults or _declares(runbook, k)}
        wanted |= {axis: value for axis, value in axes.items() if axis not in AXES.values()}
        for axis in ("image", "region"):
            if axis in axes and _declares(runbook, axis):
                wanted[axis] = axes[axis]
        if "region" in axes and not _declares(runbook, "region") and _declares(runbook, "regions"):
            wanted["regions"] = [axes["region"]]
        checked: dict[str, object] = {}
        for name, value in wanted.items():
            try:
                checked |= parameters.check(runbook, {name: _filled(value, words)})
            except ParameterError as error:
                self.faults.add(f"{self.name}: {error.what} {error.why}".rstrip())
        return checked

    def _environment(self, layers: list[Any], region: str, account: Account) -> dict[str, str]:
        found: dict[str, str] = {}
        for layer in layers:
            for name, value in self.faults.take(layer, "environment", dict, {}, self.name).items():
                if name in CREDENTIALS:
                    self.faults.add(f"{self.name}: environment holds {name}; plans hold no credentials.")
                elif not isinstance(value, str):
                    self.faults.add(f"{self.name}: environment.{name} is not text.")
                else:
                    found[name] = value
        if region:
            found |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION", "VMSNIX_REGION"), region)
        if account.id:
            found["VMSNIX_ALLOWED_ACCOUNTS"] = account.id  # a wrong credential changes nothing
        return found


def _declares(runbook: catalog.Runbook, name: str) -> bool:
    return any(parameter.name == name.replace("-", "_") for parameter in runbook.parameters)


def _filled(value: object, words: Mapping[str, Any]) -> object:
    """Return a text with ``{region}``, ``{image}`` and ``{account}`` replaced, where the target has them."""
    if not isinstance(value, str):
        return value
    for name, word in words.items():
        if word:
            value = value.replace(f"{{{name}}}", str(word))
    return value


def _word(axis: str, value: object, others: list[Any]) -> str:
    """Return a value as a part of a target's name: an image by its last word, where that tells them apart."""
    if axis == "image":
        shorts = [re.split(r"[#/]", str(other).rstrip("/"))[-1] for other in others]
        short = re.split(r"[#/]", str(value).rstrip("/"))[-1]
        value = short if shorts.count(short) == 1 else value
    text = re.sub(r"[^\w.+-]+", "-", str(value)).strip("-.") or "empty"
    return text if axis in AXES.values() else f"{axis}={text}"
