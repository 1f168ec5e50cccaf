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
from vmsnix_ops.errors import ParameterError, SettingsError, VmsnixError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter
    from vmsnix_ops.settings import Settings

BUILDABLE = ("flake", "publish-ami")
"""Words in the help of an image that is built or read. Other images are names of published ones."""

WORDS = {"region": "region", "bucket": "bucket", "account": "account", "ami": "ami", "image": "image"}
EXACT = {
    "ami_id": "ami",
    "best_effort": "region",
    "boot_expect": "pattern",
    "confirm_public": "public",
    "expect": "pattern",
    "expect_plan": "plan",
    "flake": "flake",
    "identity": "identity",
    "kms_key": "key",
    "kms_keys": "key",
    "pattern": "pattern",
    "result": "result",
    "revoke_from": "audience",
    "role_name": "role",
    "share_with": "audience",
    "subnet": "subnet",
    "topic": "topic",
}
DEFAULT_FROM_SETTINGS = re.compile(r"\[default: from vmsnix\.toml[^\]]*\]")
SETTINGS = {"accounts": "audit_accounts", "buckets": "bucket", "regions": "region"}
"""The setting that is the default of a parameter, if its name is another one."""

FORMS = {
    "account": (
        r"[0-9]{12}|arn:aws[\w-]*:iam::[0-9]{12}:role/.+|arn:aws[\w-]*:organizations::[0-9]{12}:\w+/[\w/-]+",
        "an account ID of 12 digits, or an ARN of a role or an organization",
    ),
    "ami": (r"(?!ami-).*|ami-([0-9a-f]{8}|[0-9a-f]{17})", "an AMI ID such as ami-0123456789abcdef0"),
    "audience": (
        r"public|[0-9]{12}|arn:aws[a-z-]*:organizations::[0-9]{12}:(organization|ou)/o-[a-z0-9/-]+",
        "an account ID of 12 digits, or an ARN of an organization or organizational unit",
    ),
    "bucket": (
        r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "a bucket name, which has 3 to 63 lower-case letters, digits, dots or dashes",
    ),
    "identity": (r"[0-9a-f]{64}", "an identity, which has 64 hexadecimal digits"),
    "key": (
        r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[\w/-]+|alias/[\w/-]+|(mrk-)?[0-9a-fA-F-]{32,36}",
        "a KMS key: an ARN, an ID, or alias/NAME",
    ),
    "plan": (r"[0-9a-f]{16}", "the fingerprint of a plan, which has 16 hexadecimal digits"),
    "public": (r"[0-9]{12}(\+keys)?", "an account ID of 12 digits, or ACCOUNT+keys"),
    "role": (r"[\w+=,.@-]{1,64}", "the name of a role (not its ARN), which has up to 64 letters or digits"),
    "subnet": (r"subnet-([0-9a-f]{8}|[0-9a-f]{17})", "a subnet ID such as subnet-0123456789abcdef0"),
    "topic": (
        r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[\w-]{1,256}(\.fifo)?",
        "an ARN of an SNS topic, such as arn:aws:sns:eu-central-1:012345678901:releases",
    ),
}
"""The form of the values of a kind, and its description for errors."""


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

    Parameters
    ----------
    runbook
        The runbook that declares the parameters.
    checked
        The given values, converted.
    unset
        Parameters whose default from the settings is checked too: those without a mistake.
    place
        Where the call runs.
    """
    defaults = {one.name: one.default for one in runbook.parameters if one.name in unset}
    wrong = value_errors(runbook, defaults | dict(checked), place)
    found = list(wrong.values())
    try:
        settings = settings_module.load(place.cwd, place.environment)
    except SettingsError as error:
        return [*found, error]
    of_settings = _setting_errors(runbook, checked, unset, settings, place)
    found += of_settings.values()
    usable = set(unset) - wrong.keys() - of_settings.keys()
    found += _missing(runbook, checked, usable, settings, place)
    return found or list(_partitions(runbook, checked, settings, place))


def value_errors(
    runbook: Runbook, checked: Mapping[str, object], place: CallPlace | None = None
) -> dict[str, VmsnixError]:
    """Return the error of each converted value that does not fit the kind of its parameter, by its name."""
    place = place or CallPlace(Path.cwd(), os.environ)
    found: dict[str, VmsnixError] = {}
    for parameter in runbook.parameters:
        for kind, text in _texts(parameter, checked.get(parameter.name)):
            try:
                _check(kind, parameter.name, text, place, flake=str(checked.get("flake") or ""))
            except VmsnixError as error:
                found.setdefault(parameter.name, error)
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


def _check(kind: str, name: str, text: str, place: CallPlace, *, flake: str = "", origin: str = "") -> None:
    """Refuse a value that does not fit its kind; `origin` is where it comes from, if that is not the call."""
    shown = f"{name}: {text!r}{origin and f', from {origin},'}"
    if kind == "region":
        _check_region(shown, text, several=name != "region")
    elif kind == "pattern":
        try:
            re.compile(text)
        except re.error as error:
            raise ParameterError(
                f"{shown} is not a regular expression.", why=f"{error}.", fix="Correct it."
            ) from error
    elif kind in ("flake", "image", "result"):
        if place.paths:
            try:
                _PATHS[kind](shown, text, place, flake)
            except VmsnixError as error:
                what = error.what if error.what.startswith(name) else f"{name}: {error.what}"
                raise ParameterError(what, why=error.why, fix=error.fix) from error
    else:
        form, described = FORMS[kind]
        if not re.fullmatch(form, text, re.ASCII):
            raise ParameterError(f"{shown} is not {described}.", fix="Correct it.")


def _check_region(shown: str, text: str, *, several: bool) -> None:
    from vmsnix_ops.region_names import known_regions

    if text not in known_regions() and not (several and text == "all"):
        raise ParameterError(
            f"{shown} is not an AWS region.",
            why=nearest(text, known_regions()) or "It is not in botocore's list of regions.",
            fix="Check the name. If the region is new, update botocore.",
        )


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


def _check_flake(_shown: str, text: str, place: CallPlace, _flake: str) -> None:
    from vmsnix_ops.nix.flake import find_flake

    find_flake(text, start=place.cwd)


def _check_result(shown: str, text: str, place: CallPlace, _flake: str) -> None:
    if "://" not in text and ("/" in text or text.endswith(".json")):
        fix = "Use a run ID, a path of a result.json, or its s3:// URL."
        _check_path(shown, place.cwd / Path(text).expanduser(), fix)


_PATHS: dict[str, Callable[[str, str, CallPlace, str], None]] = {
    "flake": _check_flake,
    "image": _check_image,
    "result": _check_result,
}


def _setting_errors(
    runbook: Runbook,
    checked: Mapping[str, object],
    unset: Collection[str],
    settings: Settings,
    place: CallPlace,
) -> dict[str, VmsnixError]:
    """Return the errors of settings and ``AWS_REGION`` that the call uses, by the names of the parameters."""
    found: dict[str, VmsnixError] = {}
    sources = settings_module.sources(place.cwd, place.environment)
    for parameter in runbook.parameters:
        name = parameter.name
        setting = setting_of(parameter)
        if name not in unset or not setting or _value(runbook, checked, name):
            continue
        value, origin = _setting(settings, setting, place)
        for kind, text in _texts(parameter, value):
            try:
                _check(kind, name, text, place, origin=origin or sources.get(setting, "the settings"))
            except VmsnixError as error:
                found.setdefault(name, error)
    return found


def _setting(settings: Settings, setting: str, place: CallPlace) -> tuple[object, str]:
    """Return the value of a setting, and the variable that it comes from if it is not one of the settings."""
    value = getattr(settings, setting, None)
    if setting == "region" and not value:
        for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            if place.environment.get(variable):
                return place.environment[variable], variable
        from vmsnix_ops.aws.session import session_of

        with suppress(Exception):  # botocore reports an unusable profile when it is used
            return session_of(dict(place.environment)).region_name, "the AWS configuration"
    return (list(value) if isinstance(value, tuple) else value), ""


def _value(runbook: Runbook, checked: Mapping[str, object], name: str) -> object:
    """Return the value of a parameter in a call: the given one, or the notebook's default."""
    default = next((one.default for one in runbook.parameters if one.name == name), None)
    return checked.get(name, default)


def _missing(
    runbook: Runbook, checked: Mapping[str, object], usable: set[str], settings: Settings, place: CallPlace
) -> Iterator[VmsnixError]:
    """Yield an error for each value that the runbook needs and that neither call nor settings have.

    Parameters that are not `usable` have a mistake that is reported already.
    """
    for parameter in runbook.parameters:
        if parameter.name not in usable:
            continue
        required = parameter.default is None and not parameter.type.optional
        if required and parameter.name not in checked:
            option = parameter.name.replace("_", "-")
            yield ParameterError(f"No {parameter.name} given.", fix=f"Add --{option} VALUE.")
        elif setting_of(parameter) == "region" and not _has(
            runbook, checked, parameter.name, settings, place
        ):
            fix = f"Add --{parameter.name} NAME, set region in vmsnix.toml, or set AWS_REGION."
            yield ParameterError("No region given.", fix=fix)
    for need in runbook.required:
        words = need.split(" or ")
        if usable.issuperset(word.partition("=")[0] for word in words) and not any(
            _has(runbook, checked, word, settings, place) for word in words
        ):
            yield _missing_one(runbook, words)


def _has(
    runbook: Runbook, checked: Mapping[str, object], word: str, settings: Settings, place: CallPlace
) -> bool:
    """Whether a call has a value for a parameter; with ``name=value``, whether it has this value."""
    name, _, wanted = word.partition("=")
    value = _value(runbook, checked, name)
    if wanted:
        return str(value) == wanted
    parameter = next((one for one in runbook.parameters if one.name == name), None)
    setting = setting_of(parameter) if parameter is not None else ""
    return bool(value) or bool(setting and _setting(settings, setting, place)[0])


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


def _partitions(
    runbook: Runbook, checked: Mapping[str, object], settings: Settings, place: CallPlace
) -> Iterator[VmsnixError]:
    """Yield an error if regions and ARNs of a call are in different partitions."""
    from vmsnix_ops.region_names import partition_of

    found: dict[str, str] = {}
    for parameter in runbook.parameters:
        value = _value(runbook, checked, parameter.name)
        setting = setting_of(parameter)
        if not value and setting:
            value = _setting(settings, setting, place)[0]
        for kind, text in _texts(parameter, value):
            if kind == "region" and text != "all":
                found.setdefault(partition_of(text), f"{parameter.name} {text}")
            elif text.startswith("arn:"):
                found.setdefault(text.split(":")[1], f"{parameter.name} {text}")
    if len(found) > 1:
        yield ParameterError(
            "The values are in different partitions of AWS.",
            why="; ".join(f"{what} is in {partition}" for partition, what in found.items()) + ".",
            fix="Run it once for each partition, with credentials of an account there.",
        )
