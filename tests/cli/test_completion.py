"""Completion in shells: what it offers, and that it imports no slow library."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import require
from vmsnix_ops.cli import main
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
HEAVY = {
    "boto3",
    "botocore",
    "pandas",
    "papermill",
    "nbformat",
    "rich",
    "deltalake",
    "matplotlib",
    "subprocess",
}


@pytest.fixture
def offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """Return the completions of a line."""
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def complete(line: str) -> list[str]:
        words = line.split()
        monkeypatch.setenv("_VMSNIX_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) if line.endswith(" ") else len(words) - 1))
        with contextlib.suppress(SystemExit):
            main([])
        printed = capsys.readouterr()
        assert printed.err == ""
        return [row.partition(",")[2] for row in printed.out.splitlines() if row.startswith("plain,")]

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vmsnix rer", ["rerun"]),
        ("vmsnix pub", ["publish"]),
        ("vmsnix publish-", ["publish-ami"]),
        ("vmsnix run pub", ["publish"]),
        ("vmsnix run publish-", ["publish-ami"]),
        ("vmsnix publish --via d", ["direct"]),
        ("vmsnix help prom", ["promote"]),
        ("vmsnix help publish ", []),
        ("vmsnix run publish-ami --via ", ["import", "direct"]),
        ("vmsnix publish-ami --via d", ["direct"]),
        ("vmsnix run publish-ami --image e", ["ecs-node", "ecs-node-attested"]),
        ("vmsnix run publish-ami --no-dry", ["--no-dry-run"]),
        ("vmsnix run publish-ami --region eu-west-1 --role", ["--role-name"]),
        ("vmsnix runs --status l", ["lost"]),
        ("vmsnix runs --runbook aud", ["audit"]),
        ("vmsnix runs --runbook audit-", ["audit-inventory"]),
        ("vmsnix completion ", ["bash", "zsh", "fish"]),
        ("vmsnix no-such-command --", ["--version", "--help"]),
        ("vmsnix run no-such-runbook --", []),
    ],
)
def test_words_are_completed(offered: Callable[[str], list[str]], line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_runbooks_of_the_catalog_are_all_offered(offered: Callable[[str], list[str]]) -> None:
    typed = [book.short_name for book in catalog.runbooks()]
    assert offered("vmsnix run ") == typed
    assert set(typed) <= set(offered("vmsnix "))


def test_ids_and_images_of_past_runs_are_offered(offered: Callable[[str], list[str]], tmp_path: Path) -> None:
    run_id = "20261120T080000366Z-publish-ami-0a0b0c"
    folder = tmp_path / "archive" / run_id
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"parameters": {"image": "github:acme/images#router"}}))
    for line in ("vmsnix runs show 2", "vmsnix rerun 2026"):
        assert offered(line) == [run_id]
    assert offered("vmsnix run publish-ami --image github") == ["github:acme/images#router"]


def test_a_press_of_the_tab_key_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from vmsnix_ops.cli import main\n"
        "try: main([])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    for line in ("vmsnix run publish-ami --image e", "vmsnix runs show 2", "vmsnix "):
        environment = {
            **os.environ,
            "VMSNIX_STATE": str(tmp_path),
            "_VMSNIX_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert set(done.stderr.split()) & HEAVY == set(), line


# In the shells themselves
PUBLISH = "Build an image, upload it"  # the beginning of a description, with a comma in it
ZSH = """
zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner 'autoload -Uz compinit && compinit -D -u; eval "$(vmsnix completion zsh)"'
zpty -w inner 'keep() { print -r -- "$BUFFER" >$KEPT; }; zle -N keep; bindkey "^X" keep; PS1="REA""DY>"'
zpty -r inner shown '*READY>*'
zpty -w -n inner "$LINE"$'\\t\\x18'
until [[ -s $KEPT ]]; do
    zpty -rt inner some && shown+=$some
    sleep 0.05
done
print -r -- "$shown"
"""


def in_shell(tmp_path: Path, program: str, *words: str, **variables: str) -> str:
    """Run a shell with this ``vmsnix`` on its PATH and an empty home folder; return its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "VMSNIX_STATE": str(tmp_path),
        **variables,
    }
    done = subprocess.run(
        [require(program), *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_bash_completes(tmp_path: Path) -> None:
    script = (
        'eval "$(vmsnix completion bash)"\n'
        "COMP_WORDS=(vmsnix run publish-ami --verify s) COMP_CWORD=4\n"
        '_vmsnix_completion vmsnix\necho "${COMPREPLY[@]}"\ncomplete -p vmsnix'
    )
    completed, bound = in_shell(tmp_path, "bash", "-c", script).splitlines()
    assert completed == "sample"
    assert bound.endswith("-F _vmsnix_completion vmsnix")


def test_zsh_completes(tmp_path: Path) -> None:
    """Needs a terminal, because only zsh's line editor contains the completed line."""

    def press_tab(line: str) -> tuple[str, str]:
        kept = tmp_path / "line"
        kept.unlink(missing_ok=True)
        shown = in_shell(tmp_path, "zsh", "-f", "-c", ZSH, LINE=line, KEPT=str(kept))
        return kept.read_text().rstrip("\n"), shown

    assert (
        press_tab("vmsnix run publish-ami --verify s")[0].rstrip() == "vmsnix run publish-ami --verify sample"
    )
    line, shown = press_tab("vmsnix run p")
    assert line == "vmsnix run p"  # preflight, publish, promote
    assert re.search(f"publish +-- {PUBLISH}", shown)


def test_fish_completes(tmp_path: Path) -> None:
    script = (
        "vmsnix completion fish | source\n"
        'for line in "run publish-ami --verify s" "run publish-ami --image ./not" "run pub"\n'
        '    complete --do-complete "vmsnix $line"\nend'
    )
    choice, folder, runbook = in_shell(tmp_path, "fish", "--no-config", "-c", script).splitlines()
    assert choice == "sample"
    assert folder.split("\t")[0] == "./notebooks/"
    assert runbook.startswith(f"publish\t{PUBLISH}")
