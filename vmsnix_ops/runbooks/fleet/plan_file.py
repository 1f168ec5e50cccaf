"""Read a plan file: runbooks with their images, regions and accounts, and the order in which they run.

::

    name = "nightly"

    [[entry]]
    name = "publish"
    runbook = "publish-ami"
    images = ["./ecs-node", "./gc-fwd"]
    regions = ["eu-central-1", "us-east-1"]
    retries = 2

    [[entry]]
    name = "audit"
    runbook = "audit-inventory"
    regions = ["eu-central-1", "us-east-1"]
    after = ["publish"]

An entry becomes one target for each combination of its lists. The whole file is checked before anything
starts, and the error lists all problems.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from vmsnix_ops import files
from vmsnix_ops.errors import (
    ConfirmationError,
    PlanError,
    RunError,
    UnknownRunbookError,
    VmsnixError,
    nearest,
)
from vmsnix_ops.progress import counted
from vmsnix_ops.redaction import find_secret
from vmsnix_ops.region_names import known_regions
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.execution.execute import read_notebook
from vmsnix_ops.runbooks.execution.side_effects import allowed_effects
from vmsnix_ops.runbooks.fleet.worker import CREDENTIALS, Account, FleetTarget
from vmsnix_ops.runbooks.value_checks import CallPlace, call_errors, value_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmsnix_ops.runbooks.catalog import Runbook

ACCOUNT_ID = r"^[0-9]{12}$"
ENTRY_NAME = r"^[a-z0-9][a-z0-9._-]*$"
AXES = ("image", "region", "account")
MOST_NAMES = 4  # of targets with the same mistake, in an error


# The tables of the file. Editors show the description of a field. In an error, its title follows "is not".


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _without_repeats(values: list[str]) -> list[str]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"lists {value!r} twice")
    return values


def _quoted(value: object) -> object:
    if type(value) is int:
        raise ValueError(f'is a number, and numbers lose leading zeros; use "{value:012d}"')
    return value


def _no_credential(name: str) -> str:
    if name in CREDENTIALS:
        raise ValueError("is a credential; a plan must not contain credentials")
    return name


def _nix_text(value: object) -> object:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str | int) or "\n" in text:
        raise ValueError("is not a Nix setting on one line")
    return text


def _file(value: str, info: ValidationInfo) -> str:
    path = Path(info.context or ".") / Path(value).expanduser()
    if not path.is_file():
        raise ValueError("is not a file")
    return str(path)


Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),  # a single text is a list of one
    AfterValidator(_without_repeats),
]
Lists = dict[str, Annotated[list[Any], Field(min_length=1)]]
Amounts = Annotated[dict[str, Annotated[float, Field(gt=0, lt=1e9)]], Field(title="a positive number")]
Retries = Annotated[int, Field(ge=0, le=100, title="from 0 to 100")]
Seconds = Annotated[float, Field(ge=0, le=3600, title="from 0 to 3600 seconds")]
Variables = dict[Annotated[str, AfterValidator(_no_credential)], str]
AccountId = Annotated[
    str,
    Field(pattern=ACCOUNT_ID, title="an account ID, which has 12 digits"),
    BeforeValidator(_quoted),
]
Role = Annotated[
    str,
    Field(
        pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$",
        title="a role ARN (arn:aws:iam::ACCOUNT:role/NAME)",
    ),
]
File = Annotated[str, AfterValidator(_file)]
NixSettings = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[a-z0-9-]+$")],
        Annotated[str, BeforeValidator(_nix_text, json_schema_input_type=str | int | bool)],
    ],
    Field(title="the name of a setting of Nix"),
]
FleetName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", title="1 to 64 lower-case letters, digits, '.', '_' and '-'"
    ),
]


class Table(BaseModel):
    """A table of a plan file; unknown keys and values of another type are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AccountTable(Table):
    """An AWS account, and how runs get its credentials."""

    id: AccountId = Field("", description="The runs refuse to change any other account.")
    role: Role = Field("", description="ARN of a role that each run assumes.")
    profile: str = Field("", description="Profile of the workers' own AWS configuration.")


class RunTable(Table):
    """The keys of `defaults`, of an entry and of an override."""

    parameters: dict[str, Any] = Field({}, description="May contain {region}, {image} and {account}.")
    environment: Variables = Field({}, description="Environment variables, without credentials.")
    resources: Amounts = Field({}, description="Resources that a worker must have: { kvm = 1 }.")
    retries: Retries = Field(0, description="Maximum number of retries of a failed target.")
    retry_wait: Seconds = Field(5, description="Seconds before the first retry; doubled each time.")
    modified: bool = Field(False, description="Run a notebook of the package whose cells were modified.")


class OverrideTable(RunTable):
    """Other values for some targets of an entry."""

    where: dict[str, Any] = Field(min_length=1, title='for which targets: where = { region = "us-east-1" }')
    skip: bool = Field(False, description="Leave these targets out.")


class EntryTable(RunTable):
    """A runbook with its lists: one target for each combination of their values."""

    model_config = ConfigDict(json_schema_extra={"required": ["runbook"]})

    # The pattern of a name is checked later, so that `after` of another entry can contain an invalid name.
    name: str = Field("", description="Name of the targets; by default the runbook's.")
    runbook: str = Field("", description="Name of the runbook.")
    images: Texts = Field([], description="Each becomes the parameter image.")
    regions: Texts = Field([], description="Each becomes the parameter region or regions.")
    accounts: Texts = Field([], description="Names of [accounts], or account IDs.")
    matrix: Lists = Field({}, description='Other parameters: { via = ["import", "direct"] }.')
    after: Texts = Field([], description="Entries that must be done first.")
    override: list[OverrideTable] = Field([], description="Other values for some of the targets.")

    def lists(self) -> dict[str, list[Any]]:
        """Return the lists of the entry, by the name of their values in a target."""
        lists = dict(zip(AXES, (self.images, self.regions, self.accounts), strict=True))
        return {axis: values for axis, values in lists.items() if values} | self.matrix


class Dask(Table):
    """The workers of the fleet."""

    scheduler: str = Field("", description="Address of a scheduler; by default a cluster of this machine.")
    workers: Annotated[int, Field(ge=0, title="0 or more")] = Field(
        0, description="Worker processes of this machine; 0: one for each core."
    )
    resources: Amounts = Field({}, description="Resources of each of these workers: { kvm = 1 }.")
    ca_file: File = Field("", description="Certificate authority for TLS; by default Dask's configuration.")
    cert: File = Field("", description="Certificate of this client.")
    key: File = Field("", description="Key of this client.")


class PlanTable(Table):
    """A plan for `vmsnix fleet`."""

    model_config = ConfigDict(json_schema_extra={"required": ["entry"]})

    name: FleetName = Field("", description="Name of the fleet in the ledger.")
    folder: str = Field("", description="Working directory of the runs; by default the folder of the plan.")
    notebooks: str = Field("", description="Folder whose notebooks replace the runbooks.")
    defaults: RunTable = Field(
        RunTable.model_validate({}), description="Values for all entries; parameters if the runbook has them."
    )
    accounts: dict[str, AccountTable] = Field({}, description="AWS accounts, each by a name of your choice.")
    nix: NixSettings = Field({}, description="Settings of Nix, for all runs.")
    dask: Dask = Field(Dask.model_validate({}), description="Workers of the fleet.")
    entry: list[EntryTable] = Field([], description="Runbooks to run.")


EXPECTED = {
    "string_type": "text",
    "string_too_short": "text of one character or more",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
"""The expected value for each type of error of pydantic; for other types, see the title of the field."""


def _validate(values: Mapping[str, Any], folder: Path, faults: list[str]) -> PlanTable:
    """Return the tables of a plan file without the invalid values, which are added to the faults."""
    while True:
        try:
            return PlanTable.model_validate(values, context=folder)
        except ValidationError as error:
            found = [_fault(one, values) for one in error.errors(include_url=False)]
        faults += [sentence for sentence, _ in found]
        values = _without(values, {place for _, place in found})


def _fault(error: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, tuple[int | str, ...]]:
    """Return an error of pydantic as a sentence, and the location of the invalid value."""
    table: type[Table]
    match error["loc"]:
        case ("entry", int(number), "override", int(), *rest):
            table, place = OverrideTable, f"{_entry_name(values['entry'][number], number + 1)}.override"
        case ("entry", int(number), *rest):
            table, place = EntryTable, _entry_name(values["entry"][number], number + 1)
        case ("accounts", name, *rest):
            table, place = AccountTable, f"accounts.{name}"
        case ("defaults" | "dask" as place, *rest):
            table = Dask if place == "dask" else RunTable
        case (*rest,):
            table, place = PlanTable, "The plan"
    kind, outer = error["type"], error["loc"][: len(error["loc"]) - len(rest)]
    if not rest:
        return f"{place} is not {EXPECTED[kind]}.", outer
    first, known = str(rest[0]), table.model_fields
    if kind == "extra_forbidden":
        hint = nearest(first, known) or f"It has {', '.join(known)}."
        return f"{place} has no key {first!r}. {hint}", (*outer, first)
    field = known[first]
    if field.is_required() and kind in ("missing", "too_short"):
        return f"{place} does not set {field.title}.", outer
    of_key = rest[-1] == "[key]"  # the name is invalid; the value is not shown, because it can be a secret
    key = ".".join(str(part + 1 if isinstance(part, int) else part) for part in rest if part != "[key]")
    if kind == "too_short":
        return f"{place}: {key} is empty; remove it, or add a value.", (*outer, first)
    wrong = str(error["ctx"]["error"]) if kind == "value_error" else ""
    shown = key if of_key else f"{key} = {json.dumps(error['input'], default=str)}"
    return f"{place}: {shown} {wrong or f'is not {EXPECTED.get(kind, field.title)}'}.", (*outer, first)


def _entry_name(table: Any, number: int) -> str:
    names = [table.get("name"), table.get("runbook")] if isinstance(table, dict) else []
    return next((name for name in names if name and isinstance(name, str)), f"entry {number}")


def _without(value: Any, places: set[tuple[int | str, ...]], here: tuple[int | str, ...] = ()) -> Any:
    """Return a document without the values at these places."""
    if isinstance(value, dict):
        return {k: _without(v, places, (*here, k)) for k, v in value.items() if (*here, k) not in places}
    if isinstance(value, list):
        parts = [((*here, number), part) for number, part in enumerate(value)]
        return [_without(part, places, place) for place, part in parts if place not in places]
    return value


def _accounts(faults: list[str], plan: PlanTable) -> dict[str, Account]:
    for name, table in plan.accounts.items():
        owner = table.role.split(":")[4] if table.role else ""
        if table.id and owner not in ("", table.id):
            faults.append(f"accounts.{name}: the role is in {owner}, but the account is {table.id}.")
        if table.role and table.profile:
            faults.append(f"accounts.{name} has both a role and a profile; use one.")
    return {name: Account(name, **table.model_dump()) for name, table in plan.accounts.items()}


def _entries(faults: list[str], plan: PlanTable) -> dict[str, EntryTable]:
    """Return the entries of a plan by their names."""
    if not plan.entry:
        faults.append("The plan has no [[entry]].")
    entries: dict[str, EntryTable] = {}
    for number, entry in enumerate(plan.entry, 1):
        name = entry.name or entry.runbook or f"entry {number}"
        if entry.name and not re.fullmatch(ENTRY_NAME, name):
            faults.append(
                f"The name of entry {number} is {name!r}; use lower-case letters, digits, '.', '_' and '-'."
            )
        if name in entries:
            faults.append(f"Two entries have the name {name!r}; rename one.")
            name = f"{name} ({number})"
        entries[name] = entry
    return entries


@dataclass
class _Reader:
    """Creates the targets of one entry, and adds its problems to the faults."""

    faults: list[str]
    name: str
    entry: EntryTable
    defaults: RunTable
    accounts: Mapping[str, Account]
    notebooks: Path | None
    folder: Path  # working directory of the runs
    local: bool  # whether the runs are on this machine
    outside: Mapping[str, str]  # variables of the fleet, which those of a target replace
    mistakes: dict[str, list[str]] = field(default_factory=dict)  # each with the names of its targets

    def _add(self, fault: str) -> None:
        self.faults.append(f"{self.name}{fault}".rstrip())

    def _add_once(self, fault: str) -> None:
        if f"{self.name}{fault}" not in self.faults:
            self._add(fault)

    def targets(self) -> Iterator[FleetTarget]:
        """Yield a target for each combination of the entry's lists."""
        runbook, lists = None, self.entry.lists()
        try:
            if self.entry.runbook:
                runbook = catalog.find(self.entry.runbook, self.notebooks, start=self.folder)
        except (UnknownRunbookError, RunError) as error:
            self._add(f": {error.what} {error.why}")
        self._check(runbook, lists)
        if runbook is None:
            return
        for values in itertools.product(*lists.values()):
            axes = dict(zip(lists, values, strict=True))
            fitting = [one for one in self.entry.override if one.where.items() <= axes.items()]
            if not any(one.skip for one in fitting):
                yield self._target(runbook, axes, [self.defaults, self.entry, *fitting])
        for text, targets in self.mistakes.items():  # the same mistake of several targets is one line
            self.faults.append(f"{_listed(targets)}: {text}")

    def _check(self, runbook: Runbook | None, lists: Mapping[str, list[Any]]) -> None:
        """Check the values of the lists, and that each override matches a target."""
        entry = self.entry
        if not entry.runbook:
            self._add(" has no runbook.")
        takes_regions = runbook is not None and (
            _declares(runbook, "region") or _declares(runbook, "regions")
        )
        for region in () if takes_regions else entry.regions:  # otherwise the check of its target reports it
            if region not in known_regions():
                self._add(f": unknown AWS region {region!r}. {nearest(region, known_regions())}")
        for account in entry.accounts:
            if account not in self.accounts and not re.fullmatch(ACCOUNT_ID, account):
                known = "An account ID has 12 digits; other names must be in [accounts]."
                self._add(f": unknown account {account!r}. {nearest(account, self.accounts) or known}")
        if runbook is not None and entry.images and not _declares(runbook, "image"):
            self._add(f" lists images, but {runbook.name} has no parameter 'image'.")
        for axis, given in zip(AXES, (entry.images, entry.regions, entry.accounts), strict=True):
            if given and axis in entry.matrix:
                self._add(f" lists {axis!r} twice, once in matrix.")
        for axis, value in (item for override in entry.override for item in override.where.items()):
            if axis not in lists:
                self._add(f".override: {self.name} has no {axis}. {nearest(axis, lists)}")
            elif value not in lists[axis]:
                hint = nearest(str(value), [str(item) for item in lists[axis]])
                self._add(f".override: {axis} = {value!r} is not in the entry. {hint}")

    def _target(self, runbook: Runbook, axes: dict[str, Any], layers: list[RunTable]) -> FleetTarget:
        """Return a target, and add its mistakes to the faults with its name."""
        lists, named = self.entry.lists(), str(axes.get("account", ""))
        account = self.accounts.get(named) or Account(named, named if re.fullmatch(ACCOUNT_ID, named) else "")
        several = [axis for axis in axes if len(lists[axis]) > 1 or axis in AXES]
        target = "/".join([self.name, *(_name_part(axis, axes[axis], lists[axis]) for axis in several)])
        environment = _merged(layers, "environment")
        if region := axes.get("region", ""):
            environment |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION", "VMSNIX_REGION"), region)
        if account.id:
            environment["VMSNIX_ALLOWED_ACCOUNTS"] = account.id  # the run refuses to change another account
        given = self._given(target, runbook, axes, layers, account.id or account.name, environment)
        whole = {parameter.name: parameter.default for parameter in runbook.parameters} | given
        last = {key: getattr(layer, key) for layer in layers for key in layer.model_fields_set}
        modified = last.get("modified", False)
        try:
            read_notebook(runbook, whole, modified=modified)
        except RunError as error:
            self._add_once(f": {error.what} {error.why} {error.fix}")
        except ConfirmationError as error:
            restore = catalog.restore(runbook)
            fix = f"{restore}. To run the modified notebook, set modified = true for these targets."
            self._add_once(f": {error.what} {fix}")
        return FleetTarget(
            name=target,
            runbook=runbook.name,
            axes=axes,
            given=given,
            key=_hash([runbook.name, whole, environment, account.id, account.role, account.profile]),
            account=account,
            environment=environment,
            resources=_merged(layers, "resources"),
            retries=last.get("retries", 0),
            retry_wait=float(last.get("retry_wait", 5)),
            effects=allowed_effects(runbook.side_effects, whole),
            own=runbook.own,
            modified=modified,
        )

    def _given(
        self,
        target: str,
        runbook: Runbook,
        axes: dict[str, Any],
        layers: list[RunTable],
        account: str,
        environment: Mapping[str, str],
    ) -> dict[str, object]:
        """Return the parameters of a target with their declared types, checked as a call of its runbook."""
        # A default applies only if the runbook has the parameter; the parameters of an entry must exist.
        wanted = {k: v for k, v in self.defaults.parameters.items() if _declares(runbook, k)}
        wanted |= _merged(layers[1:], "parameters")
        known = {axis for axis in ("image", "region") if _declares(runbook, axis)}
        wanted |= {axis: value for axis, value in axes.items() if axis not in AXES or axis in known}
        if "region" in axes and not _declares(runbook, "region") and _declares(runbook, "regions"):
            wanted["regions"] = [axes["region"]]
        filled = {name: _fill(value, axes | {"account": account}) for name, value in wanted.items()}
        checked, wrong = parameters.collect(runbook, filled)
        mistakes: list[VmsnixError] = list(wrong.values())
        if self.local:
            place = CallPlace(self.folder, {**self.outside, **environment})
            unset = {parameter.name for parameter in runbook.parameters} - wrong.keys()
            mistakes += call_errors(runbook, checked, unset, place)
        else:  # files and settings are on the machines of the workers
            place = CallPlace(self.folder, {}, paths=False)
            mistakes += value_errors(runbook, checked, place).values()
        for error in mistakes:
            self.mistakes.setdefault(" ".join(part for part in (error.what, error.why) if part), []).append(
                target
            )
        return checked


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _listed(targets: Sequence[str]) -> str:
    """Return the names of targets; of more than `MOST_NAMES`, the first ones and the number of the others."""
    names = ", ".join(targets[:MOST_NAMES])
    return names if len(targets) <= MOST_NAMES else f"{names} and {len(targets) - MOST_NAMES} more"


def _merged(layers: list[RunTable], key: str) -> dict[str, Any]:
    return {name: value for layer in layers for name, value in getattr(layer, key).items()}


def _declares(runbook: Runbook, name: str) -> bool:
    return any(parameter.name == name.replace("-", "_") for parameter in runbook.parameters)


def _fill(value: object, words: Mapping[str, Any]) -> object:
    """Return a text with ``{region}``, ``{image}`` and ``{account}`` replaced by the target's values."""
    for name in AXES if isinstance(value, str) else ():
        if words.get(name):
            value = str(value).replace(f"{{{name}}}", str(words[name]))
    return value


def _name_part(axis: str, value: object, others: list[Any]) -> str:
    """Return a value as a part of a target's name: the last part of an image's path if it is unique."""
    if axis == "image":
        last, *rest = (re.split(r"[#/]", str(one).rstrip("/"))[-1] for one in (value, *others))
        value = last if rest.count(last) == 1 else value
    text = re.sub(r"[^\w.+-]+", "-", str(value)).strip("-.") or "empty"
    return text if axis in AXES else f"{axis}={text}"


def _ordered(
    faults: list[str],
    plan: str,
    entries: Mapping[str, EntryTable],
    targets: Mapping[str, Sequence[FleetTarget]],
) -> tuple[FleetTarget, ...]:
    """Return all targets, each after the targets that it waits for.

    A target waits for the targets of the entries in ``after`` that have the same value in each list that both
    entries have: the promotion in a region waits for the publish in this region.
    """
    for name, entry in entries.items():
        unknown = [other for other in entry.after if other not in entries]
        faults += [f"{name}: {one!r} in after is not an entry. {nearest(one, entries)}" for one in unknown]
    before = {name: [one for one in entry.after if one in entries] for name, entry in entries.items()}
    try:
        names = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        # graphlib lists the first entry first; `after` in the plan file has the opposite direction.
        faults.append(f"The entries form a cycle: {' → '.join(reversed(error.args[1]))}.")
        return ()
    ordered: dict[str, FleetTarget] = {}
    for target, others in ((target, before[name]) for name in names for target in targets[name]):
        after = [found for other in others for found in _matching(faults, target, other, targets[other])]
        fingerprint = _hash([plan, target.key, sorted(ordered[one].fingerprint for one in after)])
        ordered[target.name] = replace(target, after=tuple(after), fingerprint=fingerprint)
    return tuple(ordered.values())


def _matching(
    faults: list[str], target: FleetTarget, other: str, candidates: Sequence[FleetTarget]
) -> list[str]:
    found = [
        candidate.name
        for candidate in candidates
        if all(target.axes[axis] == value for axis, value in candidate.axes.items() if axis in target.axes)
    ]
    if candidates and not found:
        shared = [axis for axis in candidates[0].axes if axis in target.axes]
        values = " and ".join(f"{axis} {target.axes[axis]}" for axis in shared)
        faults.append(f"{target.name} runs after {other}, which has no target with {values}.")
    return found


def _check_doubles(faults: list[str], targets: Iterable[FleetTarget]) -> None:
    names: set[str] = set()
    keys: dict[str, str] = {}
    for target in targets:
        if target.key in keys:
            same = f"{target.runbook} with the same parameters in the same account"
            faults.append(f"{target.name} and {keys[target.key]} are the same: {same}.")
        elif target.name in names:
            fix = "rename an entry, or list the values that distinguish them"
            faults.append(f"Two targets have the name {target.name}; {fix}.")
        names.add(target.name)
        keys[target.key] = target.name


@dataclass(frozen=True, slots=True)
class PlanFile:
    """The checked content of a plan file."""

    name: str  # of the fleet
    folder: Path  # working directory of the runs; relative paths in parameters start there
    notebooks: Path | None  # folder of the notebooks; None for those of the package
    targets: tuple[FleetTarget, ...]  # each after those that it waits for
    accounts: Mapping[str, Account]  # by their names in the file
    nix: Mapping[str, str]  # settings for Nix, such as builders
    dask: Dask


def read_plan(
    path: Path, *, scheduler: str = "", environment: Mapping[str, str | None] | None = None
) -> PlanFile:
    """Read a plan file, and check everything that can be checked before anything starts.

    `scheduler` replaces the Dask scheduler of the plan. With a scheduler, the files and settings of the runs
    are on the machines of its workers, and are not checked here. `environment` changes the variables of this
    process for all runs; ``None`` removes one.

    A `PlanError` lists all problems, such as an unknown key, runbook, region or parameter, a value of another
    type, two equal targets, entries that wait for each other, or a secret.
    """
    text, values = files.read_toml(path, "The plan", PlanError)
    secret = find_secret(text)
    if secret:
        # The error does not contain the secret, because errors are logged.
        raise PlanError(
            f"The plan {path} contains a secret ({secret}).",
            why="Plans are kept in repositories, archives and reports.",
            fix="Put credentials in the environment of the workers, or use a role or a profile.",
        )
    merged = {**os.environ, **(environment or {})}
    outside = {name: value for name, value in merged.items() if value is not None}
    faults: list[str] = []
    folder = path.parent.absolute()
    plan = _validate(values, folder, faults)
    accounts, entries = _accounts(faults, plan), _entries(faults, plan)
    notebooks = folder / plan.notebooks if plan.notebooks else None
    work = folder / plan.folder
    targets = {
        name: tuple(
            _Reader(
                faults,
                name,
                entry,
                plan.defaults,
                accounts,
                notebooks,
                work,
                local=not (scheduler or plan.dask.scheduler),
                outside=outside,
            ).targets()
        )
        for name, entry in entries.items()
    }
    # Without a name, the path distinguishes fleets of the same file name.
    unnamed = (
        re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:56] + f"-{_hash(path.absolute())[:6]}"
    )
    name = plan.name or unnamed
    ordered = _ordered(faults, name, entries, targets)
    _check_doubles(faults, itertools.chain(*targets.values()))
    if faults:
        found = [text.rstrip() for text in dict.fromkeys(faults)]
        raise PlanError(
            f"The plan {path} has {counted(len(found), 'error')}; nothing was started.",
            why=found[0] if len(found) == 1 else "\n" + "\n".join(f"- {text}" for text in found) + "\n",
            fix="Correct the file.",
        )
    return PlanFile(name, folder / plan.folder, notebooks, ordered, accounts, plan.nix, plan.dask)
