"""The packages inside an image, as a table.

A disk image does not tell Nix what is inside: its file is one blob, and what the store records as its
references is at best what a scan for hashes found in it. But the derivation that built it needs the NixOS
system that went in, which is called ``nixos-system-*`` everywhere. So: image, its derivation, the system that
the derivation needs, the closure of that system. This asks about exactly what was built, whatever the flake
says by now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.errors import NixError
from vmsnix_ops.nix.build import derivation_name, resolve, run_build
from vmsnix_ops.nix.command import FEATURES, Answer, explain, find_nix, query, run, version
from vmsnix_ops.nix.image import BuiltImage
from vmsnix_ops.progress import Progress, current

if TYPE_CHECKING:
    import pandas as pd

_SYSTEM = "nixos-system-"
_PATH_INFO_SECONDS = 300.0

# The version of a package begins at the first dash that no letter follows (builtins.parseDrvName).
_NAME_VERSION = re.compile(r"(?P<name>.+?)-(?P<version>[^A-Za-z].*)")
# Outputs of a package have its name and version, and then their own name.
_OUTPUT = re.compile(r"-(bin|dev|doc|info|lib|libgcc|man|out|data|debug|static|getent|terminfo|py|modules)$")


def closure(image: BuiltImage | Path | str, *, progress: Progress | None = None) -> pd.DataFrame:
    """Return the packages inside an image.

    Parameters
    ----------
    image
        A built image, or what `vmsnix_ops.nix.build.resolve` takes.
    progress
        Where it is shown when the system has to be fetched (an image that came whole from a binary cache).

    Returns
    -------
    pandas.DataFrame
        One row per store path, the largest first: ``name`` (str), ``version`` (str, empty for none),
        ``store_path`` (str), ``bytes`` (int64, size of the path itself as NAR, without what it refers to).

    Raises
    ------
    NixError
        The image was not built on this machine, or what went into it is not a NixOS system.
    ToolMissingError
        There is no nix.

    Examples
    --------
    >>> closure("./nix#ecs-node").head(10)     # doctest: +SKIP
    """
    import pandas as pd

    built = image if isinstance(image, BuiltImage) else resolve(image, progress=progress)
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


def split_name(store_path: str) -> tuple[str, str]:
    """Return name and version in a store path, without the name of an output.

    Examples
    --------
    >>> split_name("/nix/store/00000000000000000000000000000000-openssl-3.0.14-bin")
    ('openssl', '3.0.14')
    >>> split_name("/nix/store/00000000000000000000000000000000-unit-sshd.service")
    ('unit-sshd.service', '')
    """
    whole = derivation_name(store_path)
    match = _NAME_VERSION.fullmatch(whole)
    if match is None:
        return whole, ""
    return match["name"], _OUTPUT.sub("", match["version"])


def parse_path_info(text: str) -> Iterator[tuple[str, int]]:
    """Yield path and NAR size, in bytes, from any JSON that ``nix path-info --json`` has printed.

    - until 2.18: a list of objects with ``path``;
    - since 2.19 (``--json-format 1`` of later ones): an object keyed by path;
    - ``--json-format 2``: the same inside ``info``, keyed by paths without ``storeDir``.

    A path that is not in the store is ``null``, or has no size; it is left out.

    Raises
    ------
    NixError
        The text is none of these.
    """
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise _strange(text) from error
    folder = ""
    if isinstance(answer, dict) and isinstance(answer.get("info"), dict):
        folder, answer = f"{answer.get('storeDir', '/nix/store')}/", answer["info"]
    if isinstance(answer, list):
        pairs = [(entry.get("path"), entry) for entry in answer if isinstance(entry, dict)]
    elif isinstance(answer, dict):
        pairs = list(answer.items())
    else:
        raise _strange(text)
    for path, entry in pairs:
        size = entry.get("narSize") if isinstance(entry, Mapping) else None
        if isinstance(path, str) and isinstance(size, int):
            yield path if path.startswith("/") else folder + path, size


def _strange(text: str) -> NixError:
    return NixError(
        "Nix returned an unexpected answer about the contents of the image.",
        why=f"It starts with {text[:80]!r}.",
        fix="Check that Nix is between 2.8 and 2.34: nix --version",
    )


def _system_of(built: BuiltImage, progress: Progress) -> str:
    """Return the store path of the NixOS system inside an image; fetches it when it is not there."""
    what = f"The contents of the image {built.name} are unknown."
    if built.drv_path is None:
        raise NixError(
            what,
            why="The image was not built on this machine.",
            fix="Build it here: use the flake attribute instead of the file.",
        )
    needed = query("--requisites", built.drv_path, what=what)
    systems = [path for path in needed if derivation_name(path).startswith(_SYSTEM) and path.endswith(".drv")]
    if not systems:
        raise NixError(
            what,
            why="Its build did not use a NixOS system (nixos-system-*).",
            fix="Use an image that is built from a NixOS configuration.",
        )
    # Nix lists what is needed first, so a system comes after the specialisations inside it.
    system = systems[-1]
    outputs = query("--outputs", system, what=what)
    if not Path(outputs[0]).exists():
        with progress.step("fetch system", unit="derivations") as step:
            run_build(["nix-store", "--realise", system], what, step)
    return outputs[0]


def _path_infos(path: str) -> list[tuple[str, int]]:
    what = f"The closure of {path} cannot be listed."
    return list(parse_path_info(_path_info(path, what).output))


def _path_info(path: str, what: str) -> Answer:
    nix = find_nix()
    command = [nix, *FEATURES, "path-info", "--json", "--recursive", path]
    if version(nix) >= (2, 33):
        # Later versions want to be told the format; relatives of Nix with higher numbers do not know the
        # option.
        answer = run([*command, "--json-format", "1"], timeout=_PATH_INFO_SECONDS)
        if answer.status == 0:
            return answer
    answer = run(command, timeout=_PATH_INFO_SECONDS)
    if answer.status:
        raise explain(what, answer)
    return answer
