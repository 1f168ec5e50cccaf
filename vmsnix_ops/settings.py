"""The settings: ``vmsnix.toml`` and the ``VMSNIX_*`` variables.

A team keeps a ``vmsnix.toml`` beside its flake. Variables of a shell or a CI job override its values. Every
other setting has a default::

    region = "eu-central-1"
    bucket = "acme-vmsnix-images"
    allowed_accounts = ["012345678901"]
    history = "s3://acme-vmsnix-records/history"

``VMSNIX_CONFIG`` is the path of the file; by default the nearest ``vmsnix.toml`` in the working directory or
its parents is read. Unknown names are refused, so that no setting is silently ignored.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmsnix_ops import files
from vmsnix_ops.arguments import FORMS, MOST_DAYS
from vmsnix_ops.endpoints import is_loopback
from vmsnix_ops.errors import ParameterError, SettingsError, nearest
from vmsnix_ops.redaction import remember

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Settings", "load"]


def __dir__() -> list[str]:
    return __all__


FILE_NAME = "vmsnix.toml"

NOT_SETTINGS: tuple[str, ...] = (
    "VMSNIX_CONFIG",  # which file to read
    "VMSNIX_RUN_ID",  # set by the runner for every kernel: the run
    "VMSNIX_RUNBOOK",  # its runbook
    "VMSNIX_NOTEBOOK",  # its notebook
    "VMSNIX_RUN_DIR",  # its folder, for result.json
    "VMSNIX_RUN_ENTRY",  # the URL of its result.json, for an archive on S3
    "VMSNIX_SIDE_EFFECTS",  # its allowed side effects
    "VMSNIX_LEASE",  # of a fleet: the file with the time until which it may change something
    "VMSNIX_PROGRESS",  # "silent" shows no progress; "messages", set by the runner, sends it to the runner
    "VMSNIX_EVENTS",  # set by the console: the file for progress events
    "VMSNIX_LAB_FOLDER",  # set by `vmsnix lab` for its kernels: the folder in which it was started
    "VMSNIX_FAILED",  # tests: the file for the names of those that failed
    "VMSNIX_REQUIRE",  # tests: the tools that this machine must have
    "VMSNIX_SANDBOX",  # the AWS calls go to a sandbox
    "VMSNIX_SECRETS",  # set by the runner: the descriptor by which a kernel reports its credentials
)
"""Variables with the prefix of the settings that are not settings."""


@dataclass(frozen=True, slots=True)
class RetirementPolicy:
    """The limits of the retirement policy with their defaults, for audits and retirements.

    `Settings` documents each as ``retire_NAME``.
    """

    keep_last: int = 3
    min_age_days: float = 30
    launched_days: float = 30
    retention_days: float = 14
    orphan_days: float = 7
    max_count: int = 25


_POLICY = RetirementPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings. Set a field in ``vmsnix.toml`` or with the variable ``VMSNIX_<FIELD>``.

    Attributes
    ----------
    region
        Region to work in; by default that of the AWS configuration.
    bucket
        S3 bucket through which images are imported.
    role_name
        Service role that VM Import assumes.
    prefix
        First word of every AMI name.
    key_prefix
        First part of every S3 key; empty, or ends with ``/``.
    kms_key
        KMS key (ARN or ID) that encrypts uploaded objects, snapshots and AMIs; empty for the default
        encryption of bucket and account.
    allowed_accounts
        Account IDs of 12 digits that vmsnix may change; empty allows every account.
    history
        Place of the Delta tables: a local folder or ``s3://bucket/prefix``.
    archive
        Place of the archive of runs (executed notebook, report, result, log): a local folder or
        ``s3://bucket/prefix``.
    state
        Local folder for runs and journals.
    shared
        Whether other users of this machine may read the files below `state`, `archive` and `history`, as far
        as the umask allows. By default only the user who runs vmsnix may (modes 0700 and 0600).
    runbooks
        Folders of your own runbooks, which `vmsnix`, the console and fleets then list too.
    flake
        Flake of image names without a ``#``.
    channels
        Channels to which images are promoted: lower-case words, in the order of promotion.
    channel_prefix
        First part of the channels' names in Parameter Store, which are ``/vmsnix/IMAGE/CHANNEL``.
    put_ceiling
        Maximum number of blocks per second of an upload with the EBS direct APIs. AWS's own example reaches
        1000, about 500 MB/s; the account's quota may allow more.
    audit_accounts
        Account IDs of 12 digits to audit; empty for the caller's own account.
    audit_role
        Role to assume in the other accounts.
    audit_external_id
        External ID that the role's trust policy requires; empty for none.
    snapshot_prices
        Monthly price of a GiB of snapshot in USD by region: in the standard and in the archive tier.
        ``default`` is for all other regions. In the file a table, ``eu-central-1 = [0.054, 0.0135]`` below
        ``[snapshot_prices]``; in a variable ``eu-central-1=0.054/0.0135,default=0.05/0.0125``.
    notify_topic
        ARN of an SNS topic that gets a notice when a run without a terminal fails or ends partial; empty for
        none.
    notify_webhook
        URL that gets the same notice as a POST of JSON; empty for none. It must begin with ``https://``, or
        name this machine. It is a secret: use the variable ``VMSNIX_NOTIFY_WEBHOOK``.
    retire_keep_last
        Number of AMIs to keep for each image and architecture (the newest), and for each channel (its last
        values). This and the next five settings are the retirement policy of audits and retirements.
    retire_min_age_days
        Keep AMIs younger than this number of days.
    retire_launched_days
        Keep AMIs that launched an instance in the last N days. AWS reports launches a day late.
    retire_retention_days
        Days in which a retired AMI or snapshot can be restored, before a later run deletes it.
    retire_orphan_days
        Days after which a snapshot without an AMI counts as an orphan. An unfinished publish may need a
        younger one.
    retire_max_count
        Maximum number of AMIs and orphans that one run retires or deletes in all regions, oldest first.
    """

    region: str | None = None
    bucket: str | None = None
    role_name: str = "vmimport"
    prefix: str = "altf4llc"
    key_prefix: str = "vmsnix/"
    kms_key: str = ""
    allowed_accounts: tuple[str, ...] = ()
    history: str
    archive: str
    state: Path
    shared: bool = False
    runbooks: tuple[Path, ...] = ()
    flake: str = "./nix"
    channels: tuple[str, ...] = ("candidate", "stable")
    channel_prefix: str = "/vmsnix"
    put_ceiling: int = 1000
    audit_accounts: tuple[str, ...] = ()
    audit_role: str = "vmsnix-auditor"
    audit_external_id: str = ""
    snapshot_prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notify_topic: str = ""
    notify_webhook: str = field(default="", repr=False)
    retire_keep_last: int = _POLICY.keep_last
    retire_min_age_days: float = _POLICY.min_age_days
    retire_launched_days: float = _POLICY.launched_days
    retire_retention_days: float = _POLICY.retention_days
    retire_orphan_days: float = _POLICY.orphan_days
    retire_max_count: int = _POLICY.max_count

    @property
    def retirement(self) -> RetirementPolicy:
        """The retirement policy, from the settings ``retire_*``."""
        return RetirementPolicy(
            **{field.name: getattr(self, f"retire_{field.name}") for field in fields(RetirementPolicy)}
        )


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Settings))
SECRETS = frozenset({"notify_webhook"})
"""Settings whose values no error shows."""
LISTS = frozenset({"allowed_accounts", "audit_accounts", "channels", "runbooks"})
VARIABLES: dict[str, str] = {f"VMSNIX_{name.upper()}": name for name in FIELDS}


_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a table",
}


@dataclass(frozen=True, slots=True)
class _Given:
    """A value from the file or a variable, and its description for errors."""

    value: object
    place: str
    folder: Path  # base of relative paths
    source: str  # the file's or the variable's name

    def refuse(self, why: str, fix: str) -> SettingsError:
        return SettingsError(f"Cannot use {self.place}.", why=why, fix=fix)

    def refuse_type(self, expected: str, fix: str) -> SettingsError:
        name = type(self.value).__name__
        return self.refuse(f"It is {_TYPES.get(name, f'a {name}')}, but {expected} is expected.", fix)


def load(start: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: defaults, then ``vmsnix.toml``, then the ``VMSNIX_*`` variables.

    An empty variable counts as not set, because CI systems pass an unset input as an empty variable. Relative
    paths in the file are relative to its folder, those in variables to `start`. A flake that begins with
    ``.`` is a path.

    Parameters
    ----------
    start
        Folder where the search for ``vmsnix.toml`` begins; by default the working directory.
    environment
        The variables; by default ``os.environ``.

    Raises
    ------
    SettingsError
        A name is unknown, a value is invalid, or the file is not valid TOML.
    """
    given = _read(start, environment)
    values: dict[str, Any] = {name: _CHECKS.get(name, _text)(one) for name, one in given.items()}
    if "state" not in values:
        from platformdirs import user_state_path

        values["state"] = user_state_path("vmsnix_ops", appauthor=False)
    below = {name: str(values["state"] / name) for name in ("history", "archive")}
    settings = Settings(**below | values)
    files.set_shared(settings.shared)
    return settings


def sources(start: Path | None = None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the settings that are set, with the name of the file or the variable that sets each.

    The arguments and errors are as for `load`.
    """
    return {name: given.source for name, given in _read(start, environment).items()}


def runbook_folders(
    start: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Path, ...]:
    """Return the setting ``runbooks``, without checking the values of the other settings.

    The arguments and errors are as for `load`.
    """
    given = _read(start, environment)
    return _folders(given["runbooks"]) if "runbooks" in given else ()


def _read(start: Path | None, environment: Mapping[str, str] | None) -> dict[str, _Given]:
    start = (Path.cwd() if start is None else start).absolute()
    environment = os.environ if environment is None else environment
    return _from_file(_find(start, environment)) | _from_environment(environment, start)


def check_channel(channel: str, settings: Settings) -> None:
    """Refuse a channel that is not in the settings, with a `ParameterError`."""
    if channel not in settings.channels:
        raise ParameterError(
            f"Unknown channel {channel!r}.",
            why=nearest(channel, settings.channels) or f"The channels are {', '.join(settings.channels)}.",
            fix="Correct the name, or add it to channels in vmsnix.toml.",
        )


def user_name() -> str:
    """Return the user of this process; ``uid N`` if the user has no name, as in many containers."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _find(start: Path, environment: Mapping[str, str]) -> Path | None:
    named = environment.get("VMSNIX_CONFIG", "")
    if named:
        path = start / Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(
                f"No settings file {path}.",
                why="VMSNIX_CONFIG is set to it.",
                fix="Correct VMSNIX_CONFIG, or unset it to use the nearest vmsnix.toml.",
            )
        return path
    for folder in (start, *start.parents):
        # os.path.isfile, because Path.is_file raises for a parent without permission (Python 3.11 to 3.13).
        if os.path.isfile(folder / FILE_NAME):  # noqa: PTH113
            return folder / FILE_NAME
    return None


def _from_file(path: Path | None) -> dict[str, _Given]:
    if path is None:
        return {}
    text, values = files.read_toml(path, "The settings file", SettingsError)
    given = {}
    for key, value in values.items():
        place = f"{path}, line {_line_of(key, text)}"
        if key not in FIELDS:
            raise SettingsError(
                f"{place}: unknown setting {key!r}.",
                why=nearest(key, FIELDS) or f"The settings are {_listed(FIELDS)}.",
                fix="Correct it or remove it.",
            )
        shown = "…" if key in SECRETS else repr(value)
        given[key] = _Given(value, f"{place}: {key} = {shown}", path.parent, path.name)
    return given


def _line_of(key: str, text: str) -> int | str:
    pattern = re.compile(rf"^\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next(
        (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), "unknown"
    )


def _from_environment(environment: Mapping[str, str], folder: Path) -> dict[str, _Given]:
    given = {}
    for name, value in environment.items():
        if not name.startswith("VMSNIX_") or name in NOT_SETTINGS:
            continue
        if name not in VARIABLES:
            known = [*VARIABLES, *NOT_SETTINGS]
            raise SettingsError(
                f"The environment variable {name} is not a setting.",
                why=nearest(name, known) or f"The variables are {_listed(VARIABLES)}.",
                fix="Correct it or unset it.",
            )
        if not value:
            continue
        field = VARIABLES[name]
        # A variable is text; lists and prices have their own notation.
        words = [word.strip() for word in value.split(",")]
        parsed: object = value
        if field in LISTS:
            parsed = words
        elif field == "snapshot_prices":
            parsed = {place: prices.split("/") for place, _, prices in (w.partition("=") for w in words)}
        shown = "…" if field in SECRETS else value
        given[field] = _Given(parsed, f"{name}={shown}", folder, name)
    return given


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _flag(given: _Given) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    value = words.get(given.value.lower()) if isinstance(given.value, str) else given.value
    if not isinstance(value, bool):
        raise given.refuse_type("true or false", "Use true or false.")
    return value


def _text(given: _Given) -> str:
    if not isinstance(given.value, str):
        raise given.refuse_type("text", "Put it in quotes.")
    if not given.value.strip():
        raise given.refuse("It is empty.", "Set a value, or remove the setting to use the default.")
    return given.value


def _key_prefix(given: _Given) -> str:
    if given.value == "":
        return ""
    text = _text(given)
    if text.startswith("/") or not text.endswith("/"):
        raise given.refuse(
            "A key prefix ends with '/' and does not start with one.", f"Write {text.strip('/')}/."
        )
    return text


def _accounts(given: _Given) -> tuple[str, ...]:
    if not isinstance(given.value, list):
        raise given.refuse_type("a list", 'Use a list such as ["012345678901"].')
    for account in given.value:
        if isinstance(account, int) and not isinstance(account, bool):
            raise given.refuse(
                f"The account ID {account} is a number, and numbers lose leading zeros.",
                f'Put it in quotes: "{account:012d}".',
            )
        if not isinstance(account, str) or not re.fullmatch(r"[0-9]{12}", account):
            raise given.refuse(f"{account!r} is not an account ID.", "Use 12 digits without dashes.")
    return tuple(given.value)


def _channels(given: _Given) -> tuple[str, ...]:
    if not isinstance(given.value, list):
        raise given.refuse_type("a list", 'Use a list such as ["stable"].')
    for channel in given.value:
        if not isinstance(channel, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,63}", channel):
            raise given.refuse(
                f"{channel!r} is not a valid channel name.", "Use a lower-case word, such as candidate."
            )
    if not given.value or len(set(given.value)) != len(given.value):
        raise given.refuse(
            "A channel is missing or listed twice.", 'Use a list such as ["candidate", "stable"].'
        )
    return tuple(given.value)


def _channel_prefix(given: _Given) -> str:
    text = _text(given).rstrip("/")
    # Parameter Store reserves names that begin with aws or ssm.
    if not re.fullmatch(r"(/(?!(?i:aws|ssm))[A-Za-z0-9_.-]+)(/[A-Za-z0-9_.-]+){0,10}", text):
        raise given.refuse("It is not a valid parameter prefix.", "Use a prefix such as /vmsnix.")
    return text


def _path(given: _Given) -> Path:
    text = _text(given)
    if "://" in text:
        raise given.refuse(
            "It must be a local folder.",
            "Use a folder on this machine; `history` and `archive` can be on S3.",
        )
    return given.folder / Path(text).expanduser()


def _folders(given: _Given) -> tuple[Path, ...]:
    if not isinstance(given.value, list):
        raise given.refuse_type("a list", 'Use a list such as ["runbooks"].')
    parts = [_Given(one, given.place, given.folder, given.source) for one in given.value]
    return tuple(dict.fromkeys(_path(part) for part in parts))


def _location(given: _Given) -> str:
    text = _text(given)
    if not text.startswith("s3://"):
        return str(_path(given))
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", text):
        raise given.refuse("It is not a location on S3.", "Use s3://bucket/prefix.")
    return text.rstrip("/")


def _whole(low: int, high: int) -> Callable[[_Given], int]:
    def check(given: _Given) -> int:
        # A variable is text, a value of the file is a number; true is not a number.
        value = int(given.value) if isinstance(given.value, str) and given.value.isdecimal() else given.value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise given.refuse(
                f"It is not a whole number from {low} to {high}.", "Use a number without quotes."
            )
        return value

    return check


def _days(given: _Given) -> float:
    try:
        value = float(given.value) if isinstance(given.value, str) else given.value
    except ValueError:
        value = given.value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST_DAYS:
        raise given.refuse(f"It is not a number of days from 0 to {MOST_DAYS}.", "Use a number, such as 30.")
    return value


def _topic(given: _Given) -> str:
    text = _text(given)
    if not re.fullmatch(FORMS["topic"][0], text, re.ASCII):
        raise given.refuse("It is not an SNS topic ARN.", f"Use {FORMS['topic'][1]}.")
    return text


def _webhook(given: _Given) -> str:
    text = _text(given)
    parts = urlsplit(text)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(text))):
        raise given.refuse("It is not an https URL.", "Use a URL such as https://hooks.example.com/….")
    remember(text, parts.path.strip("/"))
    return text


def _prices(given: _Given) -> dict[str, tuple[float, float]]:
    if not isinstance(given.value, dict):
        raise given.refuse_type(
            "a table", "Add [snapshot_prices], and below it eu-central-1 = [0.054, 0.0135]."
        )
    found = {}
    for place, pair in given.value.items():
        try:
            standard, archive = (float(price) for price in pair)
        except (TypeError, ValueError):
            standard = archive = -1.0
        if not (0 <= standard < math.inf and 0 <= archive < math.inf):
            raise given.refuse(
                f"The prices of {place} are {pair!r}, but two numbers are expected: standard and archive "
                "tier.",
                f"Use {place} = [0.05, 0.0125], in USD per GiB and month.",
            )
        found[place] = (standard, archive)
    return found


def _flake(given: _Given) -> str:
    text = _text(given)
    # "github:owner/repository" and "nixpkgs" are not paths.
    return os.path.normpath(given.folder / text) if text.startswith(".") else text


_CHECKS: dict[str, Callable[[_Given], object]] = {
    "key_prefix": _key_prefix,
    **dict.fromkeys(("allowed_accounts", "audit_accounts"), _accounts),
    **dict.fromkeys(("history", "archive"), _location),
    "state": _path,
    "shared": _flag,
    "runbooks": _folders,
    "flake": _flake,
    "channels": _channels,
    "channel_prefix": _channel_prefix,
    "put_ceiling": _whole(1, 100_000),
    "snapshot_prices": _prices,
    "notify_topic": _topic,
    "notify_webhook": _webhook,
    **dict.fromkeys(("retire_keep_last", "retire_max_count"), _whole(0, MOST_DAYS)),
    **dict.fromkeys([name for name in FIELDS if name.endswith("_days")], _days),
}
"""The check of each setting that is not just a text."""
