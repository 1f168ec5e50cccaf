"""Run ``nix`` with a minimal environment, and stop it when the caller is interrupted.

Supported are Nix 2.8 to 2.34. Their messages differ, so only the exit status decides whether a command
succeeded. Messages are shown, and searched for a known cause.
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

from vmsnix_ops.errors import NixError, find_program
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


OLDEST = (2, 8)
_SILENCE_SECONDS = 1.0
EVALUATION_SECONDS = 900.0
"""Maximum duration of an evaluation; the first one of a flake may fetch nixpkgs."""

FEATURES = ("--extra-experimental-features", "nix-command flakes")

# Variables for Nix: its own settings, certificates and proxies, and keys and tokens for private sources. AWS
# variables are not passed on: they may be those of a sandbox. A binary cache on S3 reads ~/.aws (`?profile=`
# in its address).
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|TEMP|TMP|LANG|LC_ALL|XDG_.*|NIX_.*|NIXPKGS_.*|SSH_AUTH_SOCK|GIT_SSH.*|SSL_CERT_.*"
    r"|CURL_CA_BUNDLE|(?i:https?_proxy|all_proxy|no_proxy|ftp_proxy)"
)
_ERROR_PREFIXES = ("error:", "fatal:")

_Cause = tuple[re.Pattern[str], str, str]


def _known(pattern: str, why: str, fix: str) -> _Cause:
    return re.compile(pattern, re.IGNORECASE), why, fix


# Pattern of a message, its cause, and a fix; the first match counts. Builders may print these messages too.
_ANYWHERE: tuple[_Cause, ...] = (
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
_FROM_NIX: tuple[_Cause, ...] = (
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
class CommandResult:
    """The result of a command: exit status, stdout, and the last lines of stderr without colours."""

    status: int
    output: str
    messages: tuple[str, ...]


def find_nix() -> str:
    """Return the path of ``nix``; refuse one that is older than 2.8."""
    path = find_program(
        "nix",
        "Nix is not installed on this machine.",
        why="'nix' is not on PATH.",
        fix="Install it (https://nixos.org/download), or use an image that is already built.",
    )
    found = nix_version(path)
    if found < OLDEST:
        raise NixError(
            f"Nix {found[0]}.{found[1]} is too old.", why="Flakes need Nix 2.8 or newer.", fix="Update Nix."
        )
    return path


@lru_cache(maxsize=8)
def nix_version(path: str) -> tuple[int, int]:
    """Return major and minor version of a ``nix`` program."""
    result = run([path, "--version"], timeout=60)
    numbers = re.findall(r"(\d+)\.(\d+)", result.output)
    if result.status or not numbers:
        raise NixError(
            f"Could not read the version of {path}.",
            why=f"It printed: {(result.output or ' '.join(result.messages))[:200]!r}.",
            fix="Check the Nix installation: nix --version",
        )
    # "nix (Determinate Nix 3.11.2) 2.31.1": the last number is Nix's own.
    return int(numbers[-1][0]), int(numbers[-1][1])


def read_json(arguments: Sequence[str], what: str) -> object:
    """Run ``nix ARGUMENTS --json`` and return its answer; `what` is the first sentence of the error."""
    result = run([find_nix(), *FEATURES, *arguments, "--json"], timeout=EVALUATION_SECONDS)
    if result.status:
        raise command_error(what, result)
    try:
        return json.loads(result.output)
    except ValueError as error:
        raise NixError(
            what,
            why=f"Nix printed text that is not JSON: {result.output[:200]!r}.",
            fix="Check the Nix installation: nix --version",
        ) from error


def command_error(what: str, result: CommandResult) -> NixError:
    """Return the error for a failed command, with Nix's messages and the cause, if known."""
    lines = error_lines(result.messages)
    why, fix = find_cause("\n".join(lines))
    messages = " ".join(lines) or f"It ended with status {result.status}."
    return NixError(what, why=f"{why} Nix reported: {messages}".strip(), fix=fix)


def unexpected_answer(about: str, answer: object) -> NixError:
    """Return the error for an answer of Nix that this package cannot read."""
    return NixError(
        f"Nix returned an unexpected answer about {about}.",
        why=f"It starts with {str(answer)[:80]!r}.",
        fix="Check that Nix is between 2.8 and 2.34: nix --version",
    )


def find_cause(text: str, *, of_builder: bool = False) -> tuple[str, str]:
    """Return cause and fix for a message; two empty strings if they are unknown.

    A message of a builder is not about Nix itself: its "permission denied" is not about the store.
    """
    for pattern, why, fix in _ANYWHERE if of_builder else _FROM_NIX:
        if pattern.search(text):
            return why, fix
    return "", ""


def error_lines(messages: Sequence[str]) -> list[str]:
    """Return the error in Nix's messages: at most eight lines, from the first one with ``error:``.

    A failed fetch by git begins with git's own ``fatal:``.
    """
    lines = [line.strip() for line in "\n".join(messages).splitlines()]
    lines = [
        line for line in lines if line and "--show-trace" not in line and not line.startswith("warning:")
    ]
    start = next(
        (index for index, line in enumerate(lines) if line.startswith(_ERROR_PREFIXES)),
        max(len(lines) - 8, 0),
    )
    # A trace begins with "error:" alone, and ends with the error itself.
    last = max((index for index, line in enumerate(lines) if line.startswith("error:")), default=start)
    return lines[last if lines[start : start + 1] == ["error:"] else start :][:8]


def environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables for nix, selected from `source` (by default ``os.environ``)."""
    source = os.environ if source is None else source
    return {name: value for name, value in source.items() if _PASSED.fullmatch(name)} | {"NO_COLOR": "1"}


def run(
    command: Sequence[str],
    *,
    timeout: float | None = None,
    on_message: Callable[[str], object] | None = None,
    folder: Path | None = None,
) -> CommandResult:
    """Run a program, and stop it when the caller is interrupted, or after `timeout` seconds.

    `on_message` is called in this thread with each line of stderr.
    """
    # In its own session, so that Ctrl-C in a terminal reaches only this process, which then stops the child.
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
        return _wait(process, timeout, on_message)
    finally:
        _stop(process)


def _wait(
    process: subprocess.Popen[str], timeout: float | None, on_message: Callable[[str], object] | None
) -> CommandResult:
    output: list[str | None] = []
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    streams = ((process.stdout, output.append), (process.stderr, lines.put))
    readers = [threading.Thread(target=_collect, args=each, daemon=True) for each in streams]
    for reader in readers:
        reader.start()
    messages: list[str] = []
    last_message = time.monotonic()
    deadline = None if timeout is None else last_message + timeout
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            if process.poll() is not None and last_message + _SILENCE_SECONDS < time.monotonic():
                break  # a grandchild, such as a persistent ssh, keeps the pipe open
            if deadline is not None and time.monotonic() > deadline:
                raise NixError(
                    f"Nix took longer than {timeout:g} s and was stopped.",
                    why=f"Its last message: {messages[-1] if messages else 'none'}",
                    fix="Check whether the network or the machine is slow, then run the same command again.",
                ) from None
            continue
        if line is None:
            break
        last_message = time.monotonic()
        line = line.rstrip("\n")
        if on_message is not None:
            on_message(line)
        messages.append(plain(line))
        del messages[:-500]
    readers[0].join(_SILENCE_SECONDS)
    return CommandResult(process.wait(), "".join(filter(None, output)), tuple(messages))


def _collect(stream: IO[str], take: Callable[[str | None], object]) -> None:
    """Pass on each line of a stream, and ``None`` at its end."""
    try:
        with stream:
            for line in stream:
                take(line)
    finally:
        take(None)


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a running child: with SIGINT and SIGTERM first, because only nix itself can stop its builders."""
    if process.poll() is not None:
        return
    try:
        for number, seconds in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0)):
            process.send_signal(number)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            return
    finally:  # also after a second Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its remaining processes would keep our pipes open
        process.wait()


_STORE_SECONDS = 120.0


def parse_outputs(text: str) -> tuple[str | None, Path]:
    """Return derivation and output path from the output of ``nix build --json`` for one package.

    2.8 prints ``[{"drvPath": ..., "outputs": {"out": ...}}]``. Later versions add keys such as ``startTime``,
    and omit the derivation of a source path.
    """
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    entry = answer[0] if isinstance(answer, list) and answer else None
    outputs = entry.get("outputs") if isinstance(entry, dict) else None
    output = (outputs.get("out") or next(iter(outputs.values()), None)) if isinstance(outputs, dict) else None
    if not isinstance(entry, dict) or not isinstance(output, str):
        raise unexpected_answer("the result of the build", text)
    derivation = entry.get("drvPath")
    return derivation if isinstance(derivation, str) else None, Path(output)


def find_derivation(store_path: str) -> str | None:
    """Return the derivation of a store path, or ``None`` if this machine's store does not have it."""
    found = _store_fact("--deriver", store_path)
    return found if found.endswith(".drv") and found != "unknown-deriver" else None


def nar_hash(store_path: str) -> str:
    """Return the NAR hash of a store path; empty if this machine's store does not have the path."""
    found = _store_fact("--hash", store_path)
    return found if found.startswith("sha256") else ""


def _store_fact(query: str, store_path: str) -> str:
    """Return a fact about a store path; empty for a path of another store, or without Nix."""
    if shutil.which("nix-store") is None:
        return ""
    result = run(["nix-store", "--query", query, store_path], timeout=_STORE_SECONDS)
    return "" if result.status else result.output.strip()


def query_store(*arguments: str, what: str) -> list[str]:
    """Return the lines that ``nix-store --query`` prints; `what` is the first sentence of the error."""
    find_nix()
    result = run(["nix-store", "--query", *arguments], timeout=_STORE_SECONDS)
    if result.status:
        raise command_error(what, result)
    return result.output.split()
