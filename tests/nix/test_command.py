"""Running nix: environment, answers, errors and the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import read_line, require, wait_until
from vmsnix_ops.errors import NixError, ToolMissingError
from vmsnix_ops.nix.command import (
    CommandResult,
    command_error,
    environment,
    error_lines,
    find_cause,
    find_nix,
    read_json,
    run,
)

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_json_of_nix_is_read(nix: Path) -> None:
    assert read_json(["eval", "--expr", "{ a = 1; }"], "It did not work.") == {"a": 1}


def test_nix_messages_are_shown(nix: Path) -> None:
    with pytest.raises(NixError, match=r"^It did not work\. Nix reported: error: .*on purpose"):
        read_json(["eval", "--expr", "throw ''broken on purpose''"], "It did not work.")


def test_flakes_work_although_the_settings_do_not_turn_them_on(nix: Path) -> None:
    assert find_nix() == require("nix")
    assert "experimental-features =\n" in (nix / "conf" / "nix.conf").read_text()
    flake = Path(__file__).parent / "fixture"
    assert isinstance(read_json(["flake", "metadata", f"path:{flake}"], "It did not work."), dict)


def test_a_missing_nix_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="Nix is not installed on this machine"):
        find_nix()


def test_an_old_nix_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nix", "echo 'nix (Nix) 2.3.16'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NixError, match=r"2\.3 is too old"):
        find_nix()


@pytest.mark.parametrize(
    "answer", ["nix (Nix) 2.34.8", "nix (Determinate Nix 3.11.2) 2.31.1", "nix (Lix, like Nix) 2.93.0"]
)
def test_forks_of_nix_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    path = program(tmp_path, "nix", f"echo '{answer}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nix() == str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "error: experimental Nix feature 'flakes' is disabled; add '...' to enable it",
            "Flakes are not enabled",
        ),
        ("error: unrecognised flag '--extra-experimental-features'", "does not have the command or option"),
        ("error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket'", "daemon is not running"),
        ("error: unable to download 'https://x/y': Couldn't resolve host name (6)", "could not be reached"),
        ("error: unable to download 'https://x/y': Could not resolve hostname (6)", "could not be reached"),
        (
            "error: getting status of '/nix/store/x-source/flake.nix': No such file or directory",
            "No flake.nix",
        ),
        ("error: path '/x/flake.nix' does not exist", "No flake.nix"),
        ("error: writing to file: No space left on device", "disk is full"),
        (
            "error: opening lock file '/nix/var/nix/db/big-lock': Permission denied",
            "may not change the Nix store",
        ),
        (
            "error: a 'aarch64-linux' with features {} is required to build '/nix/store/x.drv'",
            "cannot build for",
        ),
    ],
)
def test_known_messages_of_nix_are_explained(text: str, why: str) -> None:
    error = command_error("It did not work.", CommandResult(1, "", (text,)))
    assert why in error.why
    assert text in error.why
    assert error.fix


def test_warnings_are_not_errors() -> None:
    text = "warning: Ignoring setting 'flake-registry' because experimental feature 'flakes' is disabled"
    assert (
        command_error("It did not work.", CommandResult(1, "", (text, "error: other"))).why
        == "Nix reported: error: other"
    )


def test_messages_of_builders_are_not_about_the_store() -> None:
    assert find_cause("cp: permission denied", of_builder=True) == ("", "")
    assert find_cause("curl: (6) Could not resolve host: x", of_builder=True)[0]


def test_the_end_of_a_trace_is_shown() -> None:
    assert error_lines(["error:\n       … while evaluating x\n\n       error: undefined variable"]) == [
        "error: undefined variable"
    ]


def test_a_failure_without_messages_has_its_status() -> None:
    assert "status 3" in str(command_error("It did not work.", CommandResult(3, "", ())))


def test_secrets_of_the_caller_do_not_reach_nix() -> None:
    caller = {
        "PATH": "/bin",
        "NIX_CONFIG": "x",
        "https_proxy": "p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "MY_TOKEN": "t",
    }
    assert environment(caller) == {"PATH": "/bin", "NIX_CONFIG": "x", "https_proxy": "p", "NO_COLOR": "1"}


def test_arguments_are_not_passed_to_a_shell(tmp_path: Path) -> None:
    answer = run(["printf", "%s", f"$(touch {tmp_path}/made); x"])
    assert answer.output == f"$(touch {tmp_path}/made); x"
    assert not list(tmp_path.iterdir())


def test_invalid_utf_8_is_accepted() -> None:
    assert run(["printf", r"\377\376"]).output == "\ufffd\ufffd"


def test_messages_come_as_they_are_printed_and_without_colours_in_the_answer() -> None:
    seen: list[str] = []
    answer = run(["sh", "-c", "printf '\\033[31mone\\033[0m\\ntwo' >&2; exit 5"], on_message=seen.append)
    assert seen == ["\x1b[31mone\x1b[0m", "two"]
    assert answer == CommandResult(5, "", ("one", "two"))


def test_more_output_than_a_pipe_holds_does_not_block() -> None:
    answer = run(
        ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero | tr '\\0' '\\n' >&2"]
    )
    assert len(answer.output) == 1_000_000


def test_a_command_is_stopped_after_its_timeout() -> None:
    with pytest.raises(NixError, match=r"longer than 0\.5 s"):
        run([sys.executable, "-c", SLEEPER], timeout=0.5)


def test_an_error_in_the_caller_ends_the_child(tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"echo $$ > {tmp_path}/pid; echo ready >&2; exec sleep 60"], on_message=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_remaining_grandchild_does_not_block() -> None:
    answer = run(["sh", "-c", "echo done; echo words >&2; sleep 60 &"])
    assert (answer.status, answer.output, answer.messages) == (0, "done\n", ("words",))


def test_ctrl_c_stops_a_build_and_its_builder(nix: Path, tmp_path: Path) -> None:
    """A whole program is interrupted while the builder sleeps."""
    script = (
        "from vmsnix_ops.nix.build import resolve_image\n"
        "from vmsnix_ops.progress import Progress\n"
        "resolve_image('sleeps', progress=Progress(lambda event: print(event.message, flush=True)))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with child:
        read_line(child, "sleepPhase")
        builders = builders_below(nix)
        assert builders
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    wait_until(lambda: not builders_below(nix), "the end of the builders", pause=0.1)


def builders_below(root: Path) -> list[int]:
    """Return the processes that build in the store of these tests."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if f"out={root}/store/".encode() in variables:
            found.append(int(process.name))
    return found
