"""The packages in an image, as a table.

Nix cannot read a disk image: the file is one blob, and its recorded references come from a search for hashes.
But its derivation depends on the NixOS system in it, which is always called ``nixos-system-*``. So the
packages of an image are the closure of that system. This is the system that was built, whatever the flake
contains now.

The store has no licences, CPE names or patches. The flake of this repository evaluates them for each output
path: ``packages.SYSTEM.NAME-facts``, see ``nix/package-facts.nix``. `read_facts` reads them, and `add_facts`
joins them with the closure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import NixError
from vmsnix_ops.nix.build import derivation_name, resolve_image, run_build
from vmsnix_ops.nix.command import (
    FEATURES,
    command_error,
    find_nix,
    nix_version,
    query_store,
    read_json,
    run,
    unexpected_answer,
)
from vmsnix_ops.nix.image import BuiltImage
from vmsnix_ops.progress import Progress, counted, current

if TYPE_CHECKING:
    import pandas as pd

FACTS = {
    "pname": "pname",
    "package_version": "version",
    "licenses": "licenses",
    "cpe": "cpe",
    "purl": "purl",
    "patches": "patches",
    "known_vulnerabilities": "knownVulnerabilities",
}
"""The columns of `add_facts`, and the names in the flake's output."""

_SYSTEM = "nixos-system-"
_ABOUT = "the contents of the image"
_PATH_INFO_SECONDS = 300.0

# The version of a package begins at the first dash that no letter follows (builtins.parseDrvName).
_NAME_VERSION = re.compile(r"(?P<name>.+?)-(?P<version>[^A-Za-z].*)")
# Outputs of a package have its name and version, and then their own name.
_OUTPUT = re.compile(r"-(bin|dev|doc|info|lib|libgcc|man|out|data|debug|static|getent|terminfo|py|modules)$")


def closure(image: BuiltImage | Path | str, *, progress: Progress | None = None) -> pd.DataFrame:
    """Return the packages in an image, one row per store path, the largest first.

    Columns: ``name`` (str), ``version`` (str, may be empty), ``store_path`` (str), ``bytes`` (int64, NAR size
    of the path without its references). A NixError if the image was not built on this machine, or does not
    contain a NixOS system. `progress` is for fetching the system, which is missing if the image came from a
    binary cache.
    """
    import pandas as pd

    built = image if isinstance(image, BuiltImage) else resolve_image(image, progress=progress)
    rows = sorted(_path_infos(_system_of(built, progress or current())), key=lambda row: (-row[1], row[0]))
    names = [split_name(path) for path, _ in rows]
    return pd.DataFrame(
        {
            "name": pd.Series([name for name, _ in names], dtype="str"),
            "version": pd.Series([number for _, number in names], dtype="str"),
            "store_path": pd.Series([path for path, _ in rows], dtype="str"),
            "bytes": pd.Series([size for _, size in rows], dtype="int64"),
        }
    )


def read_facts(image: BuiltImage) -> dict[str, dict[str, object]]:
    """Return the facts about packages that the image's flake evaluates, by output path; read once.

    Empty if the image was not built from a flake by this run, or the flake has no output ``NAME-facts``. A
    NixError if its evaluation fails. Nothing is built.
    """
    return _facts_of(image.flake or "")


@lru_cache(maxsize=4)
def _facts_of(flake: str) -> dict[str, dict[str, object]]:
    reference, _, attribute = flake.partition("#packages.")
    system, _, name = attribute.partition(".")
    if not name:
        return {}
    function = f'packages: packages.{system}."{name}-facts".facts or {{ }}'
    answer = read_json(
        ["eval", f"{reference}#packages", "--apply", function, "--no-write-lock-file"],
        f"The facts about the packages of the image {name} were not evaluated.",
    )
    if not isinstance(answer, dict) or not all(isinstance(found, dict) for found in answer.values()):
        raise unexpected_answer("the facts about packages", answer)
    return answer


def add_facts(packages: pd.DataFrame, facts: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """Return the packages with the columns `FACTS`, which are ``None`` for a path without facts."""
    import pandas as pd

    rows = [facts.get(path, {}) for path in packages["store_path"]]
    columns = {
        column: pd.Series([row.get(key) for row in rows], packages.index, "object")
        for column, key in FACTS.items()
    }
    return packages.assign(**columns)


def describe_facts(packages: pd.DataFrame) -> str:
    """Return how many paths have facts."""
    without = packages["store_path"][packages["pname"].isna()]
    count, share = len(packages) - len(without), 1 - len(without) / max(len(packages), 1)
    return f"{count:,} of {counted(len(packages), 'path')} ({share:.1%}) have package facts"


def split_name(store_path: str) -> tuple[str, str]:
    """Return name and version in a store path, without the output's name.

    >>> split_name("/nix/store/00000000000000000000000000000000-openssl-3.0.14-bin")
    ('openssl', '3.0.14')
    >>> split_name("/nix/store/00000000000000000000000000000000-unit-sshd.service")
    ('unit-sshd.service', '')
    """
    name = derivation_name(store_path)
    match = _NAME_VERSION.fullmatch(name)
    if match is None:
        return name, ""
    return match["name"], _OUTPUT.sub("", match["version"])


def parse_path_info(text: str) -> Iterator[tuple[str, int]]:
    """Yield path and NAR size in bytes from the output of ``nix path-info --json`` of any version.

    - until 2.18: a list of objects with ``path``;
    - since 2.19 (``--json-format 1`` of later versions): an object with paths as keys;
    - ``--json-format 2``: the same in ``info``, with paths without ``storeDir``.

    A path that is not in the store is ``null`` or has no size, and is skipped.
    """
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise unexpected_answer(_ABOUT, text) from error
    folder = ""
    if isinstance(answer, dict) and isinstance(answer.get("info"), dict):
        folder, answer = f"{answer.get('storeDir', '/nix/store')}/", answer["info"]
    if isinstance(answer, list):
        pairs = [(entry.get("path"), entry) for entry in answer if isinstance(entry, dict)]
    elif isinstance(answer, dict):
        pairs = list(answer.items())
    else:
        raise unexpected_answer(_ABOUT, text)
    for path, entry in pairs:
        size = entry.get("narSize") if isinstance(entry, Mapping) else None
        if isinstance(path, str) and isinstance(size, int):
            yield path if path.startswith("/") else folder + path, size


def _system_of(built: BuiltImage, progress: Progress) -> str:
    """Return the store path of the NixOS system in an image; fetch it if it is missing."""
    what = f"The contents of the image {built.name} are unknown."
    if built.derivation is None:
        raise NixError(
            what,
            why="The image was not built on this machine.",
            fix="Build it here: use the flake attribute instead of the file.",
        )
    required = query_store("--requisites", built.derivation, what=what)
    systems = [
        path for path in required if derivation_name(path).startswith(_SYSTEM) and path.endswith(".drv")
    ]
    if not systems:
        raise NixError(
            what,
            why="Its build did not use a NixOS system (nixos-system-*).",
            fix="Use an image that is built from a NixOS configuration.",
        )
    # Nix lists dependencies first, so a system comes after its specialisations.
    system = systems[-1]
    outputs = query_store("--outputs", system, what=what)
    if not Path(outputs[0]).exists():
        with progress.step("fetch system", unit="derivations") as step:
            run_build(["nix-store", "--realise", system], what, step)
    return outputs[0]


def _path_infos(path: str) -> Iterator[tuple[str, int]]:
    """Yield path and NAR size in bytes of each path of a closure."""
    nix = find_nix()
    command = [nix, *FEATURES, "path-info", "--json", "--recursive", path]
    # Later versions expect a format. Forks of Nix with higher version numbers refuse the option.
    result = None
    if nix_version(nix) >= (2, 33):
        result = run([*command, "--json-format", "1"], timeout=_PATH_INFO_SECONDS)
    if result is None or result.status:
        result = run(command, timeout=_PATH_INFO_SECONDS)
    if result.status:
        raise command_error(f"The closure of {path} cannot be listed.", result)
    return parse_path_info(result.output)
