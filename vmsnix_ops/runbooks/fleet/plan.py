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
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import PlanError
from vmsnix_ops.runbooks.evidence.secrets import find_secret
from vmsnix_ops.runbooks.fleet.accounts import Account, read_accounts
from vmsnix_ops.runbooks.fleet.entries import read_entries
from vmsnix_ops.runbooks.fleet.faults import Faults
from vmsnix_ops.runbooks.fleet.order import order

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from vmsnix_ops.runbooks.fleet.entries import Target

KEYS = ("name", "folder", "notebooks", "defaults", "accounts", "nix", "dask", "entry")
DASK_KEYS = ("scheduler", "workers", "resources", "ca_file", "cert", "key")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


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
class Plan:
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


def read_plan(path: Path) -> Plan:
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
    plan = Plan(
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


def nix_config(settings: Mapping[str, str]) -> str:
    """Return settings as the lines of ``NIX_CONFIG``, which Nix reads after its files."""
    return "\n".join(f"{name} = {value}" for name, value in settings.items())


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
    if given and not NAME.fullmatch(given):
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
