"""The only place that runs ``nix``: argument lists, a minimal environment, a child that ends with its caller.

Works with Nix 2.8 to 2.34. Those versions word their messages differently, so whether something worked is
decided by the exit status alone; texts are shown, and looked at only for a better explanation.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmsnix_ops.errors import NixError, ToolMissingError
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


OLDEST = (2, 8)
_SILENCE_SECONDS = 1.0
EVALUATION_SECONDS = 900.0
"""Longest that a question may take; the first one to a flake may have to fetch nixpkgs."""

FEATURES = ("--extra-experimental-features", "nix-command flakes")

# What Nix needs: itself and its settings, certificates and proxies, and the keys and tokens for private
# sources. AWS variables stay out: they may be those of a sandbox. A binary cache on S3 reads ~/.aws
# (`?profile=` in its address).
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|TEMP|TMP|LANG|LC_ALL|XDG_.*|NIX_.*|NIXPKGS_.*|SSH_AUTH_SOCK|GIT_SSH.*|SSL_CERT_.*"
    r"|CURL_CA_BUNDLE|(?i:https?_proxy|all_proxy|no_proxy|ftp_proxy)"
)
_REASONS = ("error:", "fatal:")

_Explanation = tuple[re.Pattern[str], str, str]


def _known(pattern: str, why: str, fix: str) -> _Explanation:
    return re.compile(pattern, re.IGNORECASE), why, fix


# Text that was printed, why that happened, what to do; the first that matches is used. Builders print these
# too.
_ANYWHERE: tuple[_Explanation, ...] = (
    _known(
        r"could ?n[o']t resolve host|could not resolve|temporary failure in name resolution|couldn.t connect"
        r"|failed to connect|connection (refused|timed out)|network is unreachable|timeout was reached"
        r"|unable to download",
        "A source or a substituter could not be reached: there is no network, or a proxy or host name is "
        "wrong.",
        "Check the network and 'substituters' in nix.conf. What is in the store can be built offline.",
    ),
    _known(r"no space left on device", "The disk is full.", "Free disk space: nix-collect-garbage -d"),
)
_FROM_NIX: tuple[_Explanation, ...] = (
    _known(
        r"experimental .*feature '[^']*' is disabled",
        "Flakes are not enabled on this machine.",
        "Add 'experimental-features = nix-command flakes' to nix.conf.",
    ),
    _known(
        r"unrecogni[sz]ed flag|is not a recogni[sz]ed command",
        "This version of Nix does not have the command or option.",
        "Install Nix 2.8 or newer.",
    ),
    _known(
        r"is required to build|required system or feature|platform mismatch",
        "This machine cannot build for that system.",
        "Add a remote builder for it, or build on a machine of that system.",
    ),
    _known(
        r"cannot connect to socket|daemon-socket",
        "The Nix daemon is not running.",
        "Start it: systemctl start nix-daemon",
    ),
    *_ANYWHERE,
    _known(
        r"flake\.nix'?:? (does not exist|no such file)|does not contain a '?/?flake\.nix"
        r"|could not find a flake\.nix",
        "No flake.nix found.",
        "Use the folder that contains it, such as ./nix.",
    ),
    _known(
        r"permission denied",
        "This user may not change the Nix store.",
        "Use the Nix daemon, or run as the owner of the store.",
    ),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a run of nix ended: exit status, all of stdout, and the last lines of stderr without colours."""

    status: int
    output: str
    messages: tuple[str, ...]


def find_nix() -> str:
    """Return the path of ``nix``.

    Raises
    ------
    ToolMissingError
        It is not on ``PATH``.
    NixError
        It is older than 2.8.
    """
    path = shutil.which("nix")
    if path is None:
        raise ToolMissingError(
            "Nix is not installed on this machine.",
            why="'nix' is not on PATH.",
            fix="Install it (https://nixos.org/download), or use an image that is already built.",
        )
    found = version(path)
    if found < OLDEST:
        raise NixError(
            f"Nix {found[0]}.{found[1]} is too old.",
            why="Flakes need Nix 2.8 or newer.",
            fix="Update Nix.",
        )
    return path


@lru_cache(maxsize=8)
def version(path: str) -> tuple[int, int]:
    """Return major and minor version of a ``nix`` program.

    Raises
    ------
    NixError
        The program does not say.
    """
    answer = run([path, "--version"], timeout=60)
    numbers = re.findall(r"(\d+)\.(\d+)", answer.output)
    if answer.status or not numbers:
        raise NixError(
            f"Could not read the version of {path}.",
            why=f"It printed: {(answer.output or ' '.join(answer.messages))[:200]!r}.",
            fix="Check the Nix installation: nix --version",
        )
    # "nix (Determinate Nix 3.11.2) 2.31.1": the last one is Nix's own.
    return int(numbers[-1][0]), int(numbers[-1][1])


def ask(arguments: Sequence[str], what: str, *, timeout: float | None = EVALUATION_SECONDS) -> object:
    """Run ``nix ARGUMENTS --json`` and return what it prints.

    Parameters
    ----------
    arguments
        Sub-command and its arguments, such as ``["flake", "metadata", "path:/src/nix"]``.
    what
        The sentence for the error, such as ``"The flake ./nix cannot be read."``.
    timeout
        Seconds that it may take; ``None`` for no limit.

    Raises
    ------
    ToolMissingError
        There is no nix.
    NixError
        It failed, took too long, or printed something else than JSON.
    """
    answer = run([find_nix(), *FEATURES, *arguments, "--json"], timeout=timeout)
    if answer.status:
        raise explain(what, answer)
    try:
        return json.loads(answer.output)
    except ValueError as error:
        raise NixError(
            what,
            why=f"Nix printed text that is not JSON: {answer.output[:200]!r}.",
            fix="Check the Nix installation: nix --version",
        ) from error


def explain(what: str, answer: Answer) -> NixError:
    """Return the error for an answer with a bad exit status: Nix's own words, and why where that is known."""
    lines = error_lines(answer.messages)
    why, fix = explanation("\n".join(lines))
    words = " ".join(lines) or f"It ended with status {answer.status}."
    return NixError(what, why=f"{why} Nix reported: {words}".strip(), fix=fix)


def explanation(text: str, *, by_a_builder: bool = False) -> tuple[str, str]:
    """Return why a text came about and what to do; two empty strings when nobody knows.

    What a builder prints says nothing about Nix itself: a "permission denied" there is not the store's.
    """
    for pattern, why, fix in _ANYWHERE if by_a_builder else _FROM_NIX:
        if pattern.search(text):
            return why, fix
    return "", ""


def error_lines(messages: Sequence[str]) -> list[str]:
    """Return what Nix gives as the reason: from the first line with ``error:`` on, at most eight lines.

    A fetch by git fails with git's own words first (``fatal:``).
    """
    whole = "\n".join(messages).splitlines()
    lines = [line.strip() for line in whole]
    lines = [
        line for line in lines if line and "--show-trace" not in line and not line.startswith("warning:")
    ]
    start = next(
        (index for index, line in enumerate(lines) if line.startswith(_REASONS)), max(len(lines) - 8, 0)
    )
    # A trace begins with "error:" alone, and ends with the error itself.
    last = max((index for index, line in enumerate(lines) if line.startswith("error:")), default=start)
    return lines[last if lines[start : start + 1] == ["error:"] else start :][:8]


def environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that nix gets, chosen from `source` (this process's by default)."""
    source = os.environ if source is None else source
    return {name: value for name, value in source.items() if _PASSED.fullmatch(name)} | {"NO_COLOR": "1"}


def run(
    command: Sequence[str],
    *,
    timeout: float | None = None,
    on_message: Callable[[str], object] | None = None,
    folder: Path | None = None,
) -> Answer:
    """Run a program to its end, and stop it when the caller is interrupted.

    Parameters
    ----------
    command
        Program and arguments; no shell is involved.
    timeout
        Seconds after which it is stopped; ``None`` for no limit.
    on_message
        Called in this thread with each line of stderr, as it comes.
    folder
        Working directory.

    Raises
    ------
    NixError
        It took longer than `timeout`.
    """
    # A session of its own: Ctrl-C in a terminal then reaches only this process, which stops the child in good
    # order.
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment(),
        cwd=folder,
        start_new_session=True,
    )
    try:
        return _attend(process, timeout, on_message)
    finally:
        _stop(process)


def _attend(
    process: subprocess.Popen[str], timeout: float | None, on_message: Callable[[str], object] | None
) -> Answer:
    output: list[str] = []
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_collect, args=(process.stdout, output.append, None), daemon=True),
        threading.Thread(
            target=_collect, args=(process.stderr, lines.put, lambda: lines.put(None)), daemon=True
        ),
    ]
    for reader in readers:
        reader.start()
    messages: list[str] = []
    quiet_since = time.monotonic()
    deadline = None if timeout is None else quiet_since + timeout
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            if process.poll() is not None and quiet_since + _SILENCE_SECONDS < time.monotonic():
                break  # a grandchild (an ssh that stays, say) holds the pipe open
            if deadline is not None and time.monotonic() > deadline:
                raise NixError(
                    f"Nix took longer than {timeout:g} s and was stopped.",
                    why=f"Its last message: {messages[-1] if messages else 'none'}",
                    fix="Check whether the network or the machine is slow, then run the same command again.",
                ) from None
            continue
        if line is None:
            break
        quiet_since = time.monotonic()
        line = line.rstrip("\n")
        if on_message is not None:
            on_message(line)
        messages.append(plain(line))
        del messages[:-500]
    readers[0].join(_SILENCE_SECONDS)
    return Answer(process.wait(), "".join(output), tuple(messages))


def _collect(stream: IO[str] | None, take: Callable[[str], object], end: Callable[[], object] | None) -> None:
    if stream is None:
        return
    try:
        with stream:
            for line in stream:
                take(line)
    finally:
        if end is not None:
            end()


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a child that still runs: politely first, because only nix itself can stop its builders."""
    if process.poll() is not None:
        return
    try:
        for request, patience in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0)):
            process.send_signal(request)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            return
    finally:  # also when a second Ctrl-C interrupts the waiting
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind would hold our pipes
        process.wait()


# Small questions to the Nix store: what did ``nix build`` say, who built a path, what does it need.


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
            "Nix returned an unexpected answer about what it built.",
            why=f"It starts with {text[:80]!r}.",
            fix="Check that Nix is between 2.8 and 2.34: nix --version",
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


def nar_hash(store_path: str) -> str:
    """Return the hash of a store path's content; empty when this machine's store does not have the path."""
    if shutil.which("nix-store") is None:
        return ""
    answer = run(["nix-store", "--query", "--hash", store_path], timeout=_SECONDS)
    found = answer.output.strip()
    return found if answer.status == 0 and found.startswith("sha256") else ""


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
