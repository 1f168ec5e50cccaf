"""A plan file: which runbooks, on which images, regions and accounts, in which order.

::

    name = "nightly"

    [accounts.production]
    id = "012345678901"
    role = "arn:aws:iam::012345678901:role/vmsnix-publisher"

    [[entry]]
    name = "publish"
    runbook = "publish-ami"
    images = ["./ecs-node", "./gc-fwd"]
    regions = ["eu-central-1", "us-east-1"]
    accounts = ["production"]
    parameters = { bucket = "acme-images-{region}" }
    retries = 2

    [[entry]]
    name = "audit"
    runbook = "audit-inventory"
    regions = ["eu-central-1", "us-east-1"]
    after = ["publish"]

An entry is a target for every combination of what it lists. The file is read and checked whole; nothing
has started when one of its lines is wrong, and all that is wrong is said at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.errors import ParameterError, PlanError, RunError, UnknownRunbookError, nearest
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import known_regions
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.evidence.secrets import find_secret
from vmsnix_ops.runbooks.execution.side_effects import level
from vmsnix_ops.runbooks.fleet.targets import CREDENTIALS, Account, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd


# Collects what is wrong with a plan file, so that a person can put all of it right at once.

Value = TypeVar("Value")


class Faults:
    """What is wrong so far."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, sentence: str) -> None:
        """Note a fault, once."""
        if sentence not in self.found:
            self.found.append(sentence)

    def unknown(self, table: Mapping[str, Any], keys: Iterable[str], place: str) -> None:
        """Note the keys that nobody knows."""
        known = list(keys)
        for key in table:
            if key not in known:
                hint = nearest(key, known) or f"It has {', '.join(known)}."
                self.add(f"{place} has no key {key!r}. {hint}")

    def take(
        self, table: Mapping[str, Any], key: str, kind: type[Value], default: Value, place: str
    ) -> Value:
        """Return a value of this type, or note that it is of another and return the default."""
        value = table.get(key, default)
        right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not right:
            words = {
                str: "text",
                int: "a whole number",
                dict: "a table",
                list: "a list",
                bool: "true or false",
            }
            self.add(
                f"{place}: {key} = {json.dumps(value, default=str)} is not {words.get(kind, kind.__name__)}."
            )
            return default
        return value if isinstance(value, kind) else default

    def texts(self, table: Mapping[str, Any], key: str, place: str) -> list[str]:
        """Return a list of texts; a single text is a list of one."""
        value = table.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.add(f"{place}: {key} = {json.dumps(value, default=str)} is not a list of texts.")
            return []
        if key in table and not value:
            self.add(f"{place}: {key} is empty; leave it out, or list something.")
        for item in value:
            if value.count(item) > 1:
                self.add(f"{place}: {key} lists {item!r} twice.")
        return list(dict.fromkeys(value))

    def amounts(self, table: Mapping[str, Any], key: str, place: str) -> dict[str, float]:
        """Return a table of positive numbers."""
        found = {}
        for name, amount in self.take(table, key, dict, {}, place).items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1e9:
                self.add(f"{place}: {key}.{name} = {json.dumps(amount, default=str)} is no positive number.")
            else:
                found[str(name)] = float(amount)
        return found

    def error(self, path: Path) -> PlanError:
        """Return all of it as one error."""
        count = len(self.found)
        return PlanError(
            f"The plan {path} has {counted(count, 'fault')}; nothing has started.",
            why="\n".join(self.found)
            if count == 1
            else "\n" + "\n".join(f"- {text}" for text in self.found) + "\n",
            cure="Correct the file.",
        )


ACCOUNT_KEYS = ("id", "role", "profile")
ACCOUNT_ID = re.compile(r"[0-9]{12}")
ROLE = re.compile(r"arn:aws[a-z-]*:iam::(?P<account>[0-9]{12}):role/[\w+=,.@/-]+")


def read_accounts(faults: Faults, tables: Mapping[str, Any]) -> dict[str, Account]:
    """Return the accounts of a plan, by name."""
    accounts = {}
    for name, table in tables.items():
        place = f"accounts.{name}"
        if not isinstance(table, dict):
            faults.add(f"{place} is not a table.")
            continue
        faults.unknown(table, ACCOUNT_KEYS, place)
        account = Account(
            name,
            *(
                _account_id(faults, table, place),
                *(faults.take(table, key, str, "", place) for key in ("role", "profile")),
            ),
        )
        named = ROLE.fullmatch(account.role)
        if account.role and named is None:
            faults.add(f"{place}: {account.role!r} is no ARN of a role (arn:aws:iam::ACCOUNT:role/NAME).")
        elif named and account.id and named["account"] != account.id:
            faults.add(f"{place}: the role is one of {named['account']}, and the account is {account.id}.")
        if account.role and account.profile:
            faults.add(f"{place} has both a role and a profile; give one.")
        accounts[name] = account
    return accounts


def _account_id(faults: Faults, table: Mapping[str, Any], place: str) -> str:
    value = table.get("id", "")
    if isinstance(value, int) and not isinstance(value, bool):
        faults.add(
            f'{place}: id = {value} is a number, and numbers lose leading zeros; write "{value:012d}".'
        )
        return ""
    text = faults.take(table, "id", str, "", place)
    if text and not ACCOUNT_ID.fullmatch(text):
        faults.add(f"{place}: {text!r} is not an account id, which has 12 digits.")
    return text


# The entries of a plan file, and the targets that they stand for.


AXES = {"images": "image", "regions": "region", "accounts": "account"}
DEFAULT_KEYS = ("parameters", "environment", "resources", "retries", "retry_wait")
ENTRY_KEYS = ("name", "runbook", *AXES, "matrix", *DEFAULT_KEYS, "after", "override")
OVERRIDE_KEYS = ("where", "skip", *DEFAULT_KEYS)
ENTRY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


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
        if not ENTRY_NAME.fullmatch(name):
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
                found = parameters.check(runbook, {name: _filled(value, words)})
            except ParameterError as error:
                self.faults.add(f"{self.name}: {error.what} {error.why}".rstrip())
                continue
            for twice in found.keys() & checked.keys():
                self.faults.add(f"{self.name}: The parameter {twice!r} is given twice, once as {name}.")
            checked |= found
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


# Which target waits for which: from the entries' ``after`` to an order without cycles.


def order(faults: Faults, entries: Sequence[Entry]) -> tuple[Target, ...]:
    """Return all targets, each behind those it waits for.

    A target waits for those targets of the entries in ``after`` that have the same value wherever both
    entries list the same (image, region, account or a parameter): the promotion in a region waits for
    the publish there.
    """
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        for name in entry.after:
            if name not in by_name:
                faults.add(f"{entry.name}: {name!r} in after is no entry. {nearest(name, by_name)}".rstrip())
    sorter = TopologicalSorter(
        {entry.name: [name for name in entry.after if name in by_name] for entry in entries}
    )
    try:
        ordered = [by_name[name] for name in sorter.static_order()]
    except CycleError as error:
        # graphlib lists a cycle from what is waited for to what waits; the plan file says it the other way.
        faults.add(f"The entries wait for each other: {' → '.join(reversed(error.args[1]))}.")
        ordered = list(entries)
    targets: list[Target] = []
    for entry in ordered:
        before = [by_name[name] for name in entry.after if name in by_name]
        for target in entry.targets:
            after = [name for other in before for name in _matching(faults, target, other)]
            targets.append(replace(target, after=tuple(after)))
    _check_doubles(faults, targets)
    return tuple(targets)


def _matching(faults: Faults, target: Target, other: Entry) -> list[str]:
    found = [
        candidate.name
        for candidate in other.targets
        if all(target.axes[axis] == value for axis, value in candidate.axes.items() if axis in target.axes)
    ]
    if other.targets and not found:
        shared = [axis for axis in other.targets[0].axes if axis in target.axes]
        values = " and ".join(f"{axis} {target.axes[axis]}" for axis in shared)
        faults.add(f"{target.name} is to come after {other.name}, which has no target with {values}.")
    return found


def _check_doubles(faults: Faults, targets: Sequence[Target]) -> None:
    names: dict[str, Target] = {}
    keys: dict[str, Target] = {}
    for target in targets:
        if target.key in keys:
            faults.add(
                f"{target.name} and {keys[target.key].name} are the same: {target.runbook} with the same "
                "parameters in the same account."
            )
        elif target.name in names:
            faults.add(
                f"There are two targets {target.name}; rename an entry, or list what tells them apart."
            )
        names[target.name] = keys[target.key] = target


KEYS = ("name", "folder", "notebooks", "defaults", "accounts", "nix", "dask", "entry")
DASK_KEYS = ("scheduler", "workers", "resources", "ca_file", "cert", "key")
PLAN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Dask:
    """Where the runs go.

    Attributes
    ----------
    scheduler
        Address of a scheduler; empty: a cluster of this machine for the time of the fleet.
    workers
        How many worker processes a cluster of this machine has; 0: one a core.
    resources
        What each of them offers, such as ``{"kvm": 1}``.
    ca_file, cert, key
        Files for TLS with a scheduler elsewhere; empty: as Dask's own configuration says.
    """

    scheduler: str = ""
    workers: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    ca_file: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What a plan file says, checked; nothing of it has been done.

    Attributes
    ----------
    name
        Name of the fleet: its memory in the ledger goes by it.
    source
        The file.
    folder
        Working directory of the runs, from which relative paths in parameters count.
    notebooks
        Where the notebooks are; ``None``: the package's own.
    targets
        In an order in which each stands behind those it waits for.
    accounts
        By their names in the file.
    nix
        Settings for Nix, such as ``builders``.
    dask
        Where the runs go.
    """

    name: str
    source: Path
    folder: Path
    notebooks: Path | None
    targets: tuple[Target, ...]
    accounts: Mapping[str, Account]
    nix: Mapping[str, str]
    dask: Dask

    def frame(self) -> pd.DataFrame:
        """Return the targets as a table: ``target``, ``runbook``, ``parameters``, ``after``, ``needs``."""
        import pandas as pd

        rows = [
            {
                "target": target.name,
                "runbook": target.runbook,
                "parameters": ", ".join(f"{name}={value}" for name, value in target.given.items()),
                "after": ", ".join(target.after),
                "needs": ", ".join(f"{name}={count:g}" for name, count in target.resources.items()),
                "retries": target.retries,
            }
            for target in self.targets
        ]
        return pd.DataFrame(rows, columns=["target", "runbook", "parameters", "after", "needs", "retries"])


def read_plan(path: Path) -> PlanFile:
    """Read a plan file and check all that can be checked before anything starts.

    Raises
    ------
    PlanError
        Says everything that is wrong: a key that nobody knows, a runbook or a parameter that does not
        exist, a value of the wrong type, a region or an account that cannot be, two targets that are the
        same, entries that wait for each other, a secret.
    """
    text, values = _load(path)
    faults = Faults()
    secret = find_secret(text)
    if secret:
        # Not shown, and no value is shown either: whatever is said next ends up in logs.
        raise PlanError(
            f"The plan {path} holds a secret ({secret}).",
            why="Plans are kept in repositories, archives and reports.",
            cure="Leave credentials to the environment of the workers, or name a role or a profile.",
        )
    faults.unknown(values, KEYS, "The plan")
    folder = path.parent.absolute() / faults.take(values, "folder", str, "", "The plan")
    notebooks = faults.take(values, "notebooks", str, "", "The plan")
    accounts = read_accounts(faults, faults.take(values, "accounts", dict, {}, "The plan"))
    shelf = path.parent.absolute() / notebooks if notebooks else None
    entries = read_entries(faults, values, accounts, shelf)
    targets = order(faults, entries)
    plan = PlanFile(
        name=_name(faults, values, path),
        source=path,
        folder=folder,
        notebooks=shelf,
        targets=targets,
        accounts=accounts,
        nix=_nix(faults, values),
        dask=_dask(faults, values, path.parent.absolute()),
    )
    if faults.found:
        raise faults.error(path)
    return plan


def _load(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise PlanError(
            f"The plan cannot be read: {path}.", why=f"{error.strerror}.", cure="Name another file."
        ) from error
    except UnicodeDecodeError as error:
        raise PlanError(
            f"The plan {path} is not UTF-8 text.",
            why=f"Byte {error.start} does not fit.",
            cure="Save it as UTF-8.",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(
            f"The plan {path} is not valid TOML.", why=f"{error}.", cure="Correct that line."
        ) from error


def _name(faults: Faults, values: Mapping[str, Any], path: Path) -> str:
    """Return the fleet's name; one that nobody gave tells files of the same name apart."""
    given = faults.take(values, "name", str, "", "The plan")
    if given and not PLAN_NAME.fullmatch(given):
        faults.add(
            f"The plan's name is {given!r}; write small letters, digits, '.', '_' and '-', 64 at most."
        )
    if given:
        return str(given)
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:6]
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:56] + f"-{digest}"


def _nix(faults: Faults, values: Mapping[str, Any]) -> dict[str, str]:
    settings = {}
    for name, value in faults.take(values, "nix", dict, {}, "The plan").items():
        words = {True: "true", False: "false"}
        text = words[value] if isinstance(value, bool) else str(value)
        if not re.fullmatch(r"[a-z0-9-]+", name) or not isinstance(value, str | int) or "\n" in text:
            faults.add(f"nix: {name} = {json.dumps(value, default=str)} is no setting of Nix on one line.")
        settings[name] = text
    return settings


def _dask(faults: Faults, values: Mapping[str, Any], folder: Path) -> Dask:
    table = faults.take(values, "dask", dict, {}, "The plan")
    faults.unknown(table, DASK_KEYS, "dask")
    files = {name: faults.take(table, name, str, "", "dask") for name in ("ca_file", "cert", "key")}
    for name, value in files.items():
        files[name] = str(folder / Path(value).expanduser()) if value else ""
        if value and not Path(files[name]).is_file():
            faults.add(f"dask: {name} = {value!r} is no file.")
    workers = faults.take(table, "workers", int, 0, "dask")
    if workers < 0:
        faults.add(f"dask: workers = {workers} is no number of processes.")
    return Dask(
        scheduler=faults.take(table, "scheduler", str, "", "dask"),
        workers=workers,
        resources=faults.amounts(table, "resources", "dask"),
        **files,
    )
