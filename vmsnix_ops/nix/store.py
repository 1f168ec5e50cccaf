"""Small questions to the Nix store: what did ``nix build`` say, who built a path, what does it need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vmsnix_ops.errors import NixError
from vmsnix_ops.nix.command import explain, find_nix, run

_SECONDS = 120.0


def parse_outputs(text: str) -> tuple[str | None, Path]:
    """Return derivation and output path from what ``nix build --json`` prints for one package.

    2.8: ``[{"drvPath": ..., "outputs": {"out": ...}}]``; later versions add keys such as ``startTime``, and
    leave the derivation out for a path that is a source.

    Raises
    ------
    NixError
        The text is something else.
    """
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    entry = answer[0] if isinstance(answer, list) and answer else None
    outputs = entry.get("outputs") if isinstance(entry, dict) else None
    output = (outputs.get("out") or next(iter(outputs.values()), None)) if isinstance(outputs, dict) else None
    if not isinstance(entry, dict) or not isinstance(output, str):
        raise NixError(
            "Nix gave a strange answer about what it built.",
            why=f"It begins with {text[:80]!r}.",
            cure="Check that Nix is between 2.8 and 2.34.",
        )
    derivation = entry.get("drvPath")
    return derivation if isinstance(derivation, str) else None, Path(output)


def deriver(store_path: str) -> str | None:
    """Return the derivation that built a store path, or ``None`` when this machine's store does not know.

    A path in a store that is not this machine's, or on a machine without nix, is not an error: the image is
    there.
    """
    if shutil.which("nix-store") is None:
        return None
    answer = run(["nix-store", "--query", "--deriver", store_path], timeout=_SECONDS)
    found = answer.output.strip()
    return found if answer.status == 0 and found.endswith(".drv") and found != "unknown-deriver" else None


def query(*arguments: str, what: str) -> list[str]:
    """Return the lines that ``nix-store --query`` answers.

    Raises
    ------
    ToolMissingError, NixError
        There is no nix, or it cannot answer.
    """
    find_nix()
    answer = run(["nix-store", "--query", *arguments], timeout=_SECONDS)
    if answer.status:
        raise explain(what, answer)
    return answer.output.split()
