"""Check the values of a call by their kinds, and find what is missing, before a kernel starts.

The kind of a parameter follows from its name, as its suggestions in the console do: ``region``, ``regions``
and ``target_region`` take regions, ``bucket`` a bucket. `EXACT` lists the names that are no kind by
themselves. The checks use no network, and include the values of ``vmsnix.toml`` that the call uses.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import settings as settings_module
from vmsnix_ops.arguments import FORMS, RANGES, check_form, check_range
from vmsnix_ops.errors import ParameterError, SettingsError, VmsnixError, nearest
from vmsnix_ops.region_names import check_region_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter
    from vmsnix_ops.settings import Settings

BUILDABLE = ("flake", "publish-ami")
"""Words in the help of an image that is built or read. Other images are names of published ones."""

WORDS = {"region": "region", "bucket": "bucket", "account": "account", "ami": "ami", "image": "image"}
EXACT = {
    "ami_id": "ami",
    "best_effort": "region",
    "boot_expect": "console",
    "channel": "channel",
    "confirm": "confirmation",
    "confirm_public": "public",
    "expect": "console",
    "expect_plan": "plan",
    "flake": "flake",
    "identity": "identity",
    "instance_type": "instance type",
    "kms_key": "key",
    "kms_keys": "key",
    "known_accounts": "audited",
    "pattern": "pattern",
    "prefix": "prefix",
    "result": "result",
    "revoke_from": "audience",
    "role_name": "role",
    "root_device": "device",
    "scheduler": "scheduler",
    "share_with": "audience",
    "subnet": "subnet",
    "to": "ami",
    "topic": "topic",
}
PACKAGE_ONLY = frozenset({*RANGES, "channel", "confirm", "packages", "prefix", "scheduler", "tags", "to"})
"""Names that can have another meaning in an own runbook."""

LOCAL = frozenset({"channel", "flake", "image", "result"})
"""Kinds whose checks need files or settings of the machine on which the call runs."""

DEFAULT_FROM_SETTINGS = re.compile(r"\[default: from vmsnix\.toml[^\]]*\]")
SETTINGS = {"accounts": "audit_accounts", "buckets": "bucket", "regions": "region"}
"""The setting that is the default of a parameter, if its name is another one."""


@dataclass(frozen=True, slots=True)
class CallPlace:
    """Where a call runs: relative paths start at its folder, and its settings are the defaults."""

    cwd: Path
    environment: Mapping[str, str]
    paths: bool = True  # whether the call runs on this machine, so that paths can be checked


def setting_name(name: str) -> str:
    """Return the name of the setting that is the default of a parameter of this name."""
    return SETTINGS.get(name, name)


def setting_of(parameter: Parameter) -> str:
    """Return the setting that is the default of a parameter, by its help; empty if it has another default."""
    return setting_name(parameter.name) if DEFAULT_FROM_SETTINGS.search(parameter.help) else ""


def kind_of(parameter: Parameter) -> str:
    """Return the kind of a parameter's values by its name; empty if it takes any value of its type."""
    if parameter.type.kind not in ("str", "list", "dict") or parameter.choices:
        return ""
    if parameter.name in EXACT:
        return EXACT[parameter.name]
    kind = WORDS.get(parameter.name.removesuffix("s").rpartition("_")[2], "")
    if kind == "image" and not any(word in parameter.help for word in BUILDABLE):
        return ""
    return kind


def call_errors(
    runbook: Runbook, checked: Mapping[str, object], unset: Collection[str], place: CallPlace
) -> list[VmsnixError]:
    """Return the mistakes of a call whose values have the declared types.

    `unset` are the parameters whose default from the settings is checked too: those without a mistake.
    """
    defaults = {one.name: one.default for one in runbook.parameters if one.name in unset}
    wrong = value_errors(runbook, defaults | dict(checked), place)
    found = list(wrong.values())
    try:
        settings = settings_module.load(place.cwd, place.environment)
    except SettingsError as error:
        return [*found, error]
    call = _Call(runbook, checked, settings, place)
    of_settings = call.setting_errors(unset)
    found += of_settings.values()
    found += call.missing(set(unset) - wrong.keys() - of_settings.keys())
    return found or call.partition_errors()


def value_errors(
    runbook: Runbook, checked: Mapping[str, object], place: CallPlace | None = None
) -> dict[str, VmsnixError]:
    """Return the error of each converted value that does not fit the kind of its parameter, by its name."""
    place = place or CallPlace(Path.cwd(), os.environ)
    found: dict[str, VmsnixError] = {}
    for parameter in runbook.parameters:
        name = parameter.name
        if not (runbook.own and name in PACKAGE_ONLY):
            try:
                _check_value(parameter, checked.get(name), place, flake=str(checked.get("flake") or ""))
            except VmsnixError as error:
                found[name] = error
    return found


def _texts(parameter: Parameter, value: object) -> Iterator[tuple[str, str]]:
    """Yield each text in a value with its kind; the keys of ``kms_keys`` are regions."""
    kind = kind_of(parameter)
    if isinstance(value, dict):
        yield from (("region", str(key)) for key in value if kind == "key")
        value = list(value.values())
    for text in value if isinstance(value, list) else [value]:
        if kind and isinstance(text, str) and text:
            yield kind, text


def _check_value(
    parameter: Parameter, value: object, place: CallPlace, *, flake: str = "", origin: str = ""
) -> None:
    """Refuse a value that does not fit its kind; `origin` is where it comes from, if that is not the call.

    The error starts with the name of the parameter.
    """
    name = parameter.name
    try:
        if name in RANGES and isinstance(value, int | float):
            check_range(name, value)
        elif name == "tags" and isinstance(value, dict):
            from vmsnix_ops.aws.tags import check_tags

            check_tags(value)
        elif name == "packages" and isinstance(value, list):
            from vmsnix_ops.nix.versions import parse_conditions

            parse_conditions(value)
        for kind, text in _texts(parameter, value):
            shown = f"{name}: {text!r}{origin and f', from {origin},'}"
            if kind in FORMS:
                check_form(kind, text, shown)
            elif kind == "region":
                if name == "region" or text != "all":
                    check_region_name(text, shown)
            elif place.paths or kind not in LOCAL:
                _check_kind(kind, shown, text, place, flake)
    except VmsnixError as error:
        what = error.what if error.what.startswith(name) else f"{name}: {error.what}"
        raise ParameterError(what, why=error.why, fix=error.fix) from error


def _check_path(shown: str, path: Path, fix: str) -> None:
    """Refuse a path that does not exist, and suggest the nearest name in its folder."""
    if os.path.exists(path):  # noqa: PTH110 - Path.exists raises in forbidden parents
        return
    why = "It is a link to a file that does not exist." if path.is_symlink() else "It does not exist."
    try:
        why = nearest(path.name, [other.name for other in path.parent.iterdir()]) or why
    except OSError:
        why = f"The folder {path.parent} does not exist."
    raise ParameterError(f"{shown} is not a file or folder.", why=why, fix=fix)


def _check_image(shown: str, text: str, place: CallPlace, flake: str) -> None:
    from vmsnix_ops.nix.build import is_path, split_image
    from vmsnix_ops.nix.flake import check_name, find_flake

    if is_path(text, place.cwd):
        _check_path(
            shown, place.cwd / Path(text).expanduser(), "Use an image file, a 'result' link or ./nix#NAME."
        )
        return
    own, name, _system = split_image(text)
    check_name(name)
    find_flake(own or flake or settings_module.load(place.cwd, place.environment).flake, start=place.cwd)


def _check_kind(kind: str, shown: str, text: str, place: CallPlace, flake: str) -> None:
    """Refuse a text that does not fit its kind; `flake` is that of the call, or empty."""
    match kind:
        case "image":
            _check_image(shown, text, place, flake)
        case "flake":
            from vmsnix_ops.nix.flake import find_flake

            find_flake(text, start=place.cwd)
        case "result":
            if "://" not in text and ("/" in text or text.endswith(".json")):
                fix = "Use a run ID, a path of a result.json, or its s3:// URL."
                _check_path(shown, place.cwd / Path(text).expanduser(), fix)
        case "channel":
            with suppress(SettingsError):  # it is reported with the other mistakes
                settings_module.check_channel(text, settings_module.load(place.cwd, place.environment))
        case "console":
            from vmsnix_ops.boot.run import check_options

            check_options(text, "auto")
        case "pattern":
            try:
                re.compile(text)
            except re.error as error:
                what, fix = f"{shown} is not a regular expression.", "Use the syntax of Python's re module."
                raise ParameterError(what, why=f"{error}.", fix=fix) from error
        case _:
            raise AssertionError(f"no check for the kind {kind}")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call whose values have the declared types, and the settings that are its defaults."""

    runbook: Runbook
    checked: Mapping[str, object]
    settings: Settings
    place: CallPlace

    def setting_errors(self, unset: Collection[str]) -> dict[str, VmsnixError]:
        """Return the errors of settings and ``AWS_REGION`` that the call uses, by the parameters' names."""
        found: dict[str, VmsnixError] = {}
        sources = settings_module.sources(self.place.cwd, self.place.environment)
        for parameter in self.runbook.parameters:
            setting = setting_of(parameter)
            if parameter.name not in unset or not setting or self._value(parameter):
                continue
            value, origin = self._setting(setting)
            try:
                origin = origin or sources.get(setting, "the settings")
                _check_value(parameter, value, self.place, origin=origin)
            except VmsnixError as error:
                found[parameter.name] = error
        return found

    def missing(self, usable: set[str]) -> Iterator[VmsnixError]:
        """Yield an error for each value that the runbook needs and that neither call nor settings have.

        Parameters that are not `usable` have a mistake that is reported already.
        """
        for parameter in self.runbook.parameters:
            if parameter.name not in usable:
                continue
            required = parameter.default is None and not parameter.type.optional
            if required and parameter.name not in self.checked:
                option = parameter.name.replace("_", "-")
                yield ParameterError(f"No {parameter.name} given.", fix=f"Add --{option} VALUE.")
            elif setting_of(parameter) == "region" and not self._in_use(parameter):
                fix = f"Add --{parameter.name} NAME, set region in vmsnix.toml, or set AWS_REGION."
                yield ParameterError("No region given.", fix=fix)
        for need in self.runbook.required:
            words = need.split(" or ")
            named = usable.issuperset(word.partition("=")[0] for word in words)
            if named and not any(map(self._has, words)):
                yield _missing_one(self.runbook, words)

    def partition_errors(self) -> list[VmsnixError]:
        """Return an error if regions and ARNs of the call are in different partitions."""
        from vmsnix_ops.region_names import partition_of

        found: dict[str, str] = {}
        for parameter in self.runbook.parameters:
            for kind, text in _texts(parameter, self._in_use(parameter)):
                if kind == "region" and text != "all":
                    found.setdefault(partition_of(text), f"{parameter.name} {text}")
                elif text.startswith("arn:"):
                    found.setdefault(text.split(":")[1], f"{parameter.name} {text}")
        if len(found) < 2:
            return []
        return [
            ParameterError(
                "The values are in different partitions of AWS.",
                why="; ".join(f"{what} is in {partition}" for partition, what in found.items()) + ".",
                fix="Run it once for each partition, with credentials of an account there.",
            )
        ]

    def _value(self, parameter: Parameter) -> object:
        """Return the given value of a parameter, or the notebook's default."""
        return self.checked.get(parameter.name, parameter.default)

    def _in_use(self, parameter: Parameter) -> object:
        """Return the value of a parameter, or else that of its setting."""
        return self._value(parameter) or self._setting(setting_of(parameter))[0]

    def _setting(self, setting: str) -> tuple[object, str]:
        """Return the value of a setting, and the variable that it comes from if it is not in the settings."""
        value = getattr(self.settings, setting, None)
        if setting == "region" and not value:
            for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
                if self.place.environment.get(variable):
                    return self.place.environment[variable], variable
            from vmsnix_ops.aws.session import session_of

            with suppress(Exception):  # botocore reports an unusable profile when it is used
                return session_of(dict(self.place.environment)).region_name, "the AWS configuration"
        return (list(value) if isinstance(value, tuple) else value), ""

    def _has(self, word: str) -> bool:
        """Whether the call has a value for a parameter; with ``name=value``, whether it has this value."""
        name, _, wanted = word.partition("=")
        for parameter in self.runbook.parameters:
            if parameter.name == name:
                return str(self._value(parameter)) == wanted if wanted else bool(self._in_use(parameter))
        return False


def _missing_one(runbook: Runbook, words: list[str]) -> ParameterError:
    options = []
    for word in words:
        name, _, value = word.partition("=")
        options.append(f"--{name.replace('_', '-')} {value or 'VALUE'}")
    names = [word for word in words if "=" not in word]
    settable = [one.name for one in runbook.parameters if one.name in names and setting_of(one)]
    fix = f"Add {' or '.join(options)}"
    fix += f", or set {' and '.join(map(setting_name, settable))} in vmsnix.toml." if settable else "."
    return ParameterError(f"No {' or '.join(names)} given.", fix=fix)
