"""The commands of vmsnix: arguments, output, JSON, errors and exit codes."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.aws.account import make_ami
from tests.command_line import run_vmsnix, shelf
from vmsnix_ops import __version__, history
from vmsnix_ops.cli import COMMANDS, lab, sandbox
from vmsnix_ops.cli.history import history as history_commands
from vmsnix_ops.cli.output import open_display
from vmsnix_ops.errors import ToolMissingError
from vmsnix_ops.records import schemas
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.sandbox import sandbox as sandbox_of_tests

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf

__all__ = ["run_vmsnix", "shelf"]
ROOT = Path(__file__).parents[2]
HEAVY = {"boto3", "botocore", "pandas", "papermill", "nbformat", "rich", "deltalake", "matplotlib"}


def vmsnix(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmsnix_ops", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


RunVmsnix = Any


def test_the_version_is_the_package_s(run_vmsnix: RunVmsnix) -> None:
    assert run_vmsnix("--version") == (0, f"vmsnix, version {__version__}\n", "")


def test_help_lists_every_runbook_and_every_command_once(run_vmsnix: RunVmsnix) -> None:
    code, printed, _ = run_vmsnix("--help")
    assert code == 0
    listed = [
        name
        for line in printed[printed.index("Runbooks:") :].splitlines()
        if re.match(r"  [a-z]", line)
        for name in line[2:].split("  ")[0].split(", ")
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*COMMANDS, *catalog.names(), *catalog.SHORT_NAMES} - {"run"}
    assert all(len(line) <= 80 for line in printed.splitlines())


@pytest.mark.parametrize("words", [(), ("run",), ("help",), ("help", "run")], ids=" ".join)
@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("publish", "publish-ami"),
        ("promote", "promote-ami"),
        ("verify", "verify-amis"),
        ("prove", "prove-ami"),
        ("audit", "audit-inventory"),
        ("retire", "retire-amis"),
        ("timings", "import-timings"),
        ("smoke-test", "25-smoke-test"),
        ("rollback", "90-rollback"),
    ],
)
def test_a_short_name_is_the_same_runbook(
    run_vmsnix: RunVmsnix, short: str, full: str, words: tuple[str, ...]
) -> None:
    more = () if "help" in words else ("--help",)
    one, other = run_vmsnix(*words, short, *more), run_vmsnix(*words, full, *more)
    assert one[0] == other[0] == 0
    assert one[1].replace(f" {short} ", f" {full} ", 1) == other[1]


def test_results_of_a_short_name_have_the_full_name(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("20-publish-ami.ipynb")
    (result,) = [json.loads(run_vmsnix("publish", "--json")[1])]
    assert result["runbook"] == "publish-ami"
    assert "-publish-ami-" in result["run_id"]
    assert run_vmsnix("rerun", result["run_id"], "--json")[0] == 0
    for name in ("publish", "publish-ami", "20-publish-ami"):
        for command in (("runs",), ("history", "runs")):
            assert len(json.loads(run_vmsnix(*command, "--json", "--runbook", name)[1])) == 2, (command, name)
    assert run_vmsnix("runs", "--json", "--runbook", "promote") == (0, "[]\n", "")


def test_a_runbook_has_priority_over_a_short_name(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("20-publish-ami.ipynb")
    shelf.put("21-publish.ipynb", "print('mine')")
    assert "mine" in run_vmsnix("publish")[1]
    assert "  publish-ami " in run_vmsnix("--help")[1]


@pytest.mark.parametrize("command", ["publish-ami", "publish", "run publish-ami", "20-publish-ami"])
@pytest.mark.parametrize(
    ("option", "run_id"),
    [
        (("--rollback", "20261125T193321433Z-publish-ami-aca377"), "20261125T193321433Z-publish-ami-aca377"),
        (("--rollback=abc", "--region", "eu-west-1"), "abc"),
        (("--dry-run", "--rollback"), "RUN"),
    ],
)
def test_a_rollback_of_a_publish_is_refused_and_names_the_commands(
    run_vmsnix: RunVmsnix, command: str, option: tuple[str, ...], run_id: str
) -> None:
    code, printed, complaint = run_vmsnix(*command.split(), *option)
    assert (code, printed) == (2, "")
    message = " ".join(complaint.split())
    assert f"To undo an unfinished publish: vmsnix undo {run_id}." in message
    assert "To move a channel back: vmsnix rollback." in message


@pytest.mark.parametrize(
    ("words", "other"),
    [
        ("help", "--help"),
        ("help publish", "publish --help"),
        ("help run", "run --help"),
        ("help runs show", "runs show --help"),
        ("help history steps", "history steps --help"),
        ("help fleet", "run fleet --help"),
        ("help undo", "undo --help"),
    ],
)
def test_both_spellings_print_the_same(run_vmsnix: RunVmsnix, words: str, other: str) -> None:
    one, same = run_vmsnix(*words.split()), run_vmsnix(*other.split())
    assert one[0] == same[0] == 0
    assert one[1].replace(" run fleet ", " fleet ") == same[1].replace(" run fleet ", " fleet ")


def test_version_lists_the_versions_for_a_problem_report(run_vmsnix: RunVmsnix) -> None:
    import platform
    from importlib.metadata import version

    code, printed, _ = run_vmsnix("version")
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert facts["vmsnix"] == __version__
    assert (facts["python"], facts["boto3"]) == (platform.python_version(), version("boto3"))
    assert json.loads(run_vmsnix("version", "--json")[1])["botocore"] == version("botocore")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'nix (Nix) 2.28.3'", "2.28.3"),
        ("exit 1", "not found"),
        ("true", "not found"),
        ("", "not found"),
    ],
)
def test_version_shows_nix_where_it_is(
    run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    if script:
        (tmp_path / "nix").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nix").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, printed, _ = run_vmsnix("version")
    assert code == 0
    assert f"nix       {found}\n" in printed


def test_the_help_of_rollback_and_undo_starts_with_their_effect(run_vmsnix: RunVmsnix) -> None:
    first = {
        name: " ".join(run_vmsnix("help", name)[1].split("\n\n")[1].split()) for name in ("rollback", "undo")
    }
    assert first["rollback"].startswith("Move a channel back to an earlier AMI")
    assert first["undo"].startswith("Undo an unfinished publish")


def test_the_amis_of_a_proof_need_no_name(run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict[str, object]()
    monkeypatch.setattr(
        "vmsnix_ops.cli.run.execute",
        lambda book, values, **_more: given.update(parameters.check(book, values)) or 0,
    )
    for words in (("ami-1", "ami-2"), ("--amis", "ami-1", "ami-2"), ("-p", "amis=ami-1,ami-2")):
        given.clear()
        assert run_vmsnix("prove", *words, "--yes")[0] == 0
        assert given == {"amis": ["ami-1", "ami-2"], "yes": True}
    assert "Usage: vmsnix prove [OPTIONS] [AMIS]..." in run_vmsnix("help", "prove")[1]
    assert "To list the options: vmsnix prove --help" in run_vmsnix("prove", "help")[2]


def test_an_argument_that_is_not_an_option_is_refused_and_a_run_id_suggests_undo(
    run_vmsnix: RunVmsnix,
) -> None:
    code, _, message = run_vmsnix("rollback", "stable")
    assert code == 2
    assert "'stable' is not an option. Use --name value for a parameter.\n" in message
    code, _, message = run_vmsnix("rollback", "20261125T193321433Z-publish-ami-aca377")
    assert code == 2
    assert "vmsnix undo 20261125T193321433Z-publish-ami-aca377" in message


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "help",
        "version",
        "help publish",
        "run --help",
        "run publish-ami --help",
        "runs --help",
        "completion zsh",
    ],
)
def test_help_imports_nothing_heavy(line: str) -> None:
    program = (
        "import sys; from vmsnix_ops.cli import main; "
        f"main({line.split()!r}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert set(done.stderr.split()) & HEAVY == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run_vmsnix: RunVmsnix, name: str) -> None:
    code, printed, _ = run_vmsnix(name, "--help")
    assert code == 0
    assert printed.startswith(f"Usage: vmsnix {name}")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("publsh-ami", "publish-ami"),
        ("publsh", "publish"),
        ("PUBLISH", "publish"),
        ("build", "build-image"),
        ("rollbck", "rollback"),
        ("lst", "list"),
        ("hlep", "help"),
        ("help retier", "retire"),
        ("runs shw", "show"),
        ("help runs shw", "show"),
        ("history rnus", "runs"),
    ],
)
def test_the_error_for_an_unknown_command_suggests_the_nearest(
    run_vmsnix: RunVmsnix, words: str, nearest: str
) -> None:
    code, printed, complaint = run_vmsnix(*words.split())
    assert (code, printed) == (2, "")
    assert words.split()[-1] in complaint
    assert f"Did you mean '{nearest}'?" in complaint


def test_help_of_something_without_subcommands_is_refused(run_vmsnix: RunVmsnix) -> None:
    code, _, complaint = run_vmsnix("help", "publish", "now")
    assert code == 2
    assert "`vmsnix publish` has no subcommand 'now'." in complaint


@pytest.mark.parametrize(("name", "nearest"), [("publsh-ami", "publish-ami"), ("promte", "promote")])
def test_the_error_for_an_unknown_runbook_suggests_the_nearest(
    run_vmsnix: RunVmsnix, name: str, nearest: str
) -> None:
    code, printed, complaint = run_vmsnix("run", name)
    assert (code, printed) == (2, "")
    assert complaint.startswith(f"Error: Unknown runbook {name!r}.\n")
    assert f"Did you mean {nearest!r}?" in complaint
    assert "Run vmsnix list" in complaint


def test_runbooks_are_listed_with_their_effects(run_vmsnix: RunVmsnix) -> None:
    code, printed, _ = run_vmsnix("list")
    assert code == 0
    line = next(line for line in printed.splitlines() if line.startswith("publish "))
    assert line.split()[1] == "20-publish-ami"
    assert line.split()[-1] == "creates"


def test_runbooks_as_json_contain_every_parameter(run_vmsnix: RunVmsnix) -> None:
    books = {book["name"]: book for book in json.loads(run_vmsnix("list", "--json")[1])}
    assert books["publish-ami"]["short_name"] == "publish"
    parameters = {parameter["name"]: parameter for parameter in books["publish-ami"]["parameters"]}
    assert parameters["dry_run"] == {
        "name": "dry_run",
        "type": "bool",
        "default": False,
        "choices": [],
        "help": parameters["dry_run"]["help"],
    }


PARAMETERS = """\
from typing import Literal
name: str = "world"  # whom to greet
account: str = ""  # account ID
loud: bool = False  # in capitals
via: Literal["import", "direct"] = "import"  # which way
regions: list[str] = []  # where
tags: dict[str, str] = {}  # more tags
json: str = ""  # clashes with an option of every run
"""
SHOW = "print([name, account, loud, via, regions, tags])"


def test_options_come_from_the_parameters_cell(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", parameters=PARAMETERS, side_effects="creates")
    code, printed, _ = run_vmsnix("run", "try-this", "--help")
    assert code == 0
    for words in (
        "What it is for.",
        "Effect: creates resources.",
        "--name TEXT",
        "whom to greet  [default: world]",
        "--loud / --no-loud",
        "--via [import|direct]",
        "--regions A,B",
        "--tags KEY=VALUE",
        "--sandbox",
    ):
        assert words in printed


FROM_SETTINGS = """\
region: str = ""  # AWS region  [default: from vmsnix.toml or AWS_REGION]
buckets: list[str] = []  # buckets  [default: from vmsnix.toml]
role_name: str = ""  # service role  [default: from vmsnix.toml]
keep_last: int | None = None  # AMIs to keep  [default: from vmsnix.toml]
kms_key: str = ""  # KMS key  [default: from vmsnix.toml]
image: str = ""  # image  [default: all]
"""


def test_help_shows_the_defaults_in_use_and_where_they_come_from(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("10-try-this.ipynb", parameters=FROM_SETTINGS)
    (tmp_path / "vmsnix.toml").write_text('region = "eu-central-1"\nretire_keep_last = 5\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMSNIX_BUCKET", "acme-images")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    shown = " ".join(run_vmsnix("help", "try-this")[1].split())
    assert "AWS region [default: eu-central-1, from vmsnix.toml]" in shown
    assert "buckets [default: acme-images, from VMSNIX_BUCKET]" in shown
    assert "service role [default: vmimport]" in shown
    assert "AMIs to keep [default: 5, from vmsnix.toml]" in shown
    assert "KMS key [default: from vmsnix.toml]" in shown  # not set
    assert "image [default: all]" in shown
    (tmp_path / "vmsnix.toml").unlink()
    assert "[default: us-west-2, from AWS_REGION]" in run_vmsnix("help", "try-this")[1]
    (tmp_path / "vmsnix.toml").write_text("unknown = 1\n")
    code, printed, _ = run_vmsnix("help", "try-this")  # help works with invalid settings
    assert code == 0
    assert "[default: us-west-2, from AWS_REGION]" in printed


def test_options_arrive_typed(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", SHOW, parameters=PARAMETERS)
    code, printed, _ = run_vmsnix(
        *("run", "try-this", "--account", "012345678901", "--loud", "--via", "direct"),
        *(
            "--regions",
            "eu-west-1,us-east-1",
            "--regions",
            "eu-west-3",
            "--tags",
            "x=1",
            "--tags",
            "y=2",
            "-p",
            "name=Ada",
        ),
    )
    assert code == 0
    regions = "['eu-west-1', 'us-east-1', 'eu-west-3']"
    expected = f"['Ada', '012345678901', True, 'direct', {regions}, {{'x': '1', 'y': '2'}}]"
    assert expected in printed


def test_a_runbook_is_a_command_of_its_own(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", "print('hello', name)")
    for words in (("try-this", "--name", "Ada"), ("10-try-this", "-p", "name=Ada")):
        code, printed, _ = run_vmsnix(*words)
        assert code == 0
        assert "hello Ada" in printed
        assert "try-this done in" in printed


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "--ami=web", "--no-dry-run", "--expect-plan", ""),
        ("promote", "--ami=web", "--no-dry-run", "-p", "expect-plan= "),
        ("fleet", "plan.toml", "--no-dry-run", "--expect-plan", ""),
    ],
)
def test_an_empty_fingerprint_never_means_any_plan(
    run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    code, _, complaint = run_vmsnix(*words)  # as with a variable of a shell that is not set
    assert code == 2
    assert "No fingerprint given with --expect-plan." in complaint


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--nmae", "x"), "Did you mean '--name'"),
        (("-p", "nmae=x"), "Did you mean 'name'"),
        (("-p", "name"), "no '='"),
        (("--name", "x", "-p", "name=y"), "given twice"),
        (("--via", "dirct"), "Did you mean 'direct'"),
        (("--tags", "x"), "not key=value"),
        (("-p", "loud=maybe"), "Use true or false"),
        (("extra",), "extra"),
    ],
)
def test_invalid_arguments_end_with_exit_code_2_before_anything_runs(
    shelf: Shelf, run_vmsnix: RunVmsnix, words: tuple[str, ...], reason: str
) -> None:
    shelf.put("10-try-this.ipynb", parameters=PARAMETERS)
    code, printed, complaint = run_vmsnix("run", "try-this", *words)
    assert (code, printed) == (2, "")
    assert reason in " ".join(complaint.split())
    assert not shelf.archive.exists()


@pytest.mark.parametrize(
    ("declared", "words", "shown"),
    [
        ("region: str = ''", ("--regions", "eu-west-1"), "'eu-west-1'"),
        ("region: str = ''", ("-p", "regions=eu-west-1"), "'eu-west-1'"),
        ("region: str = ''", ("--regions", "eu-west-1", "--regions", "eu-west-1"), "'eu-west-1'"),
        ("regions: list[str] = []", ("--region", "eu-west-1"), "['eu-west-1']"),
        ("regions: list[str] = []", ("-p", "region=eu-west-1"), "['eu-west-1']"),
    ],
)
@pytest.mark.variants(seconds=4)
def test_one_region_is_accepted_as_region_and_as_regions_with_a_hint(
    shelf: Shelf, run_vmsnix: RunVmsnix, declared: str, words: tuple[str, ...], shown: str
) -> None:
    name = declared.partition(":")[0]
    other = {"region": "regions", "regions": "region"}[name]
    shelf.put("10-try-this.ipynb", f"print('got', repr({name}))", parameters=declared)
    for command in (("try-this",), ("run", "try-this")):
        code, printed, hint = run_vmsnix(*command, *words)
        assert code == 0
        assert f"got {shown}\n" in printed
        assert hint.startswith("Hint: try-this takes ")
        assert hint.endswith(f"{other} is read as {name}.\n")
    run_id = json.loads(run_vmsnix("runs", "--json", "--last", "1")[1])[0]["run_id"]
    assert f"got {shown}\n" in run_vmsnix("rerun", run_id)[1]
    again = run_vmsnix("rerun", run_id, f"--{other}", "us-east-1")[1]
    assert "got 'us-east-1'" in again.replace("['us-east-1']", "'us-east-1'")


@pytest.mark.parametrize(
    "words",
    [
        "--region eu-west-1 --region eu-central-1",
        "--regions eu-west-1,eu-central-1",
        "--region eu-west-1,eu-central-1 --regions eu-west-1",
    ],
)
def test_a_command_takes_regions_one_by_one_and_with_commas(run_vmsnix: RunVmsnix, words: str) -> None:
    code, printed, _ = run_vmsnix("iam-policy", "auditor", *words.split())
    assert code == 0
    assert '"eu-west-1",' in printed
    assert '"eu-central-1"' in printed
    assert (
        printed == run_vmsnix("iam-policy", "auditor", "--region", "eu-west-1", "--region", "eu-central-1")[1]
    )


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("region: str = ''", ("--regions", "a,b")),
        ("region: str = ''", ("--regions", "a", "--regions", "b")),
        ("region: str = ''", ("--region", "a", "--region", "b")),
        ("region: str = ''", ("--region", "a,b")),
        ("region: str = ''", ("-p", "regions=a,b")),
        ("regions: list[str] = []", ("--region", "a,b")),
        ("regions: list[str] = []", ("--region", "a", "--region", "b")),
    ],
)
def test_several_regions_for_one_are_refused_before_anything_runs(
    shelf: Shelf, run_vmsnix: RunVmsnix, declared: str, words: tuple[str, ...]
) -> None:
    shelf.put("10-try-this.ipynb", parameters=declared)
    code, printed, complaint = run_vmsnix("try-this", *words)
    assert (code, printed) == (2, "")
    assert " takes one region.\n       2 values given: a, b.\n" in complaint
    assert not shelf.archive.exists()


def test_json_is_the_only_thing_on_standard_output(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", "print('a line')")
    code, printed, watched = run_vmsnix("run", "try-this", "--json")
    result = json.loads(printed)
    assert code == 0
    assert result["status"] == "done"
    assert Path(result["report"]).is_file()
    assert watched == "a line\n"


@pytest.mark.parametrize(("error", "code"), [("RoleError", 1), ("ParameterError", 2), ("PartialError", 3)])
@pytest.mark.variants
def test_a_failed_run_ends_with_its_code_and_one_clear_text(
    shelf: Shelf, run_vmsnix: RunVmsnix, error: str, code: int
) -> None:
    shelf.put(
        "10-try-this.ipynb",
        f"from vmsnix_ops.errors import {error}\n"
        f"raise {error}('It broke.', why='It was old.', fix='Mend it.')",
    )
    ended, printed, complaint = run_vmsnix("run", "try-this")
    assert ended == code
    assert complaint == "Error: It broke.\n       It was old.\n       Mend it.\n"
    assert "report.html" in printed
    assert "Traceback" not in printed


def test_a_failed_run_prints_its_error_in_addition_to_the_json(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", "from vmsnix_ops.errors import RoleError\nraise RoleError('It broke.')")
    code, printed, complaint = run_vmsnix("run", "try-this", "--json")
    assert code == 1
    assert json.loads(printed)["error"] == "It broke."
    assert complaint == "Error: It broke.\n"


def test_an_archive_that_cannot_be_written_is_an_error_without_a_traceback(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path
) -> None:
    shelf.put("10-try-this.ipynb")
    (tmp_path / "taken").touch()
    code, printed, complaint = run_vmsnix("run", "try-this", "--archive", str(tmp_path / "taken"))
    assert (code, printed) == (1, "")
    assert complaint.startswith("Error: Could not write to the archive")


def test_runs_can_be_listed_and_shown(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    assert run_vmsnix("history", "runs") == (0, "No runs yet.\n", "")
    assert run_vmsnix("history", "amis", "--image", "ecs-node")[1] == "No AMIs of ecs-node yet.\n"
    shelf.put("10-try-this.ipynb")
    shelf.put("20-fail-well.ipynb", "1 / 0")
    run_vmsnix("run", "try-this", "--name", "Ada")
    run_vmsnix("run", "fail-well")
    listed = run_vmsnix("history", "runs")[1].splitlines()
    assert [line.split()[2:4] for line in listed[1:]] == [["fail-well", "failed"], ["try-this", "done"]]
    rows = json.loads(run_vmsnix("history", "runs", "--json")[1])
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert [row["endpoint"] for row in rows] == ["sandbox", "sandbox"]  # the tests use 127.0.0.1
    assert "division by zero" in rows[0]["error"]
    assert json.loads(rows[1]["parameters"])["name"] == "Ada"
    assert len(run_vmsnix("history", "runs", "--csv", "--last", "1")[1].splitlines()) == 2
    assert len(json.loads(run_vmsnix("history", "runs", "--json", "--status", "done")[1])) == 1
    assert run_vmsnix("history", "runs", "--json", "--csv")[0] == 2


def test_the_history_is_filtered_as_in_python(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb")
    run_vmsnix("run", "try-this")
    # The tests use an endpoint on this machine, which counts as a sandbox.
    for words in (
        [],
        ["--sandbox"],
        ["--endpoint", "all"],
        ["--since", "1h", "--status", "done", "--status", "failed"],
    ):
        assert len(json.loads(run_vmsnix("history", "runs", "--json", *words)[1])) == 1, words
    for words in (["--older-than", "1h"], ["--until", "2026-01-01"], ["--status", "failed"]):
        assert run_vmsnix("history", "runs", *words)[1] == "No matching runs.\n", words
    assert run_vmsnix("history", "runs", "--endpoint", "aws")[1] == "No runs yet.\n"
    code, _, complaint = run_vmsnix("history", "runs", "--status", "faild")
    assert (code, "Did you mean 'failed'?" in complaint) == (2, True)
    code, _, complaint = run_vmsnix("history", "runs", "--runbook", "try-thsi")
    assert (code, "Did you mean 'try-this'?" in complaint) == (2, True)
    assert run_vmsnix("history", "inventory", "--no-public", "--kind", "ami")[1] == "No matching resources.\n"


@pytest.mark.parametrize("table", schemas.FILTERS)
def test_the_filters_of_the_command_line_are_those_of_python(table: str) -> None:
    options = {str(option.name) for option in history_commands.commands[table].params}
    names = inspect.signature(getattr(history, table)).parameters.keys() - {"tables", "columns"}
    assert options == names | {"sandbox", "as_json", "as_csv"}


def test_colours_are_used_only_on_terminals_that_allow_them(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[" not in run_vmsnix("run", "nothing")[2]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run_vmsnix("run", "nothing")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run_vmsnix("run", "nothing")[2]  # bold is no colour


@pytest.mark.parametrize(
    ("terminal", "variables", "as_json", "bars"),
    [
        (True, {"TERM": "xterm"}, False, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        (True, {"TERM": "dumb"}, False, False),
        (True, {"TERM": "xterm", "GITHUB_ACTIONS": "true"}, False, False),
        (True, {"TERM": "xterm"}, True, False),
        (False, {"TERM": "xterm"}, False, False),
    ],
)
def test_terminals_get_progress_bars_and_other_outputs_get_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], as_json: bool, bars: bool
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with open_display(as_json=as_json) as (screen, on_event):
        assert (on_event is not None) is bars
        assert (screen is sys.stderr) is as_json


def test_a_closed_pipe_causes_no_traceback() -> None:
    program = f"{sys.executable} -m vmsnix_ops runbooks --json | true"
    done = subprocess.run(["/bin/sh", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("words", ["--help", "list", "list --json", "completion bash"])
@pytest.mark.variants(quick=2, seconds=1)
def test_output_on_a_full_disk_is_an_error_without_a_traceback(words: str) -> None:
    command = f"{sys.executable} -m vmsnix_ops {words} > /dev/full"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ("Error: The output could not be written completely: No space left on device.\n")


def test_a_port_in_use_is_an_error_without_a_traceback(run_vmsnix: RunVmsnix) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, printed, complaint = run_vmsnix("sandbox", "--port", str(taken.getsockname()[1]))
    assert (code, printed) == (1, "")
    assert complaint.startswith("Error: The sandbox could not start.")
    assert "port" in complaint


def test_the_sandbox_prints_the_exports_for_a_shell_and_serves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vmsnix_ops", "sandbox", "--state", str(tmp_path / "kept")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        exports, comments = {}, ""
        for line in server.stdout:
            comments += line if line.startswith("#") else ""
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                exports[name] = value
            elif exports:
                break
            if "AWS_ALLOW_HTTP" in exports:
                break
        sts = boto3.client(
            "sts",
            endpoint_url=exports["AWS_ENDPOINT_URL"],
            region_name=exports["AWS_REGION"],
            aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
        )
        account = sts.get_caller_identity()["Account"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert len(account) == 12
    # Older versions of the AWS CLI do not read AWS_ENDPOINT_URL, and call AWS itself.
    assert [text for text in ("2.13.0", "1.29.0", "AWS_ENDPOINT_URL") if text not in comments] == []
    assert f"--endpoint-url {exports['AWS_ENDPOINT_URL']} " in comments


def test_a_seeded_sandbox_of_its_own_exports_the_tables_about_its_account(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vmsnix_ops", "sandbox", "--seed", "demo", "--port", "0"]
    environment = {**os.environ, "VMSNIX_STATE": str(tmp_path)}
    exports: dict[str, str] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                exports[name] = value
            if "VMSNIX_BUCKET" in exports:
                break
        ec2 = boto3.client(
            "ec2",
            endpoint_url=exports["AWS_ENDPOINT_URL"],
            region_name=exports["AWS_REGION"],
            aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
        )
        present = {one["ImageId"] for one in ec2.describe_images(Owners=["self"])["Images"]}
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    recorded = Tables(exports["VMSNIX_HISTORY"]).read("amis", endpoint="sandbox")
    here = recorded[recorded["region"] == exports["AWS_REGION"]]
    assert len(present & set(here["ami_id"])) > 40


def test_a_run_on_the_sandbox_cannot_reach_the_real_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setenv("VMSNIX_HISTORY", "s3://production-records/history")
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "999999999999")
    mine = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    for variable in mine:
        monkeypatch.setenv(variable, "production")
    with sandbox.run_sandbox() as served:
        environment = {**os.environ, **served.environment}
    assert set(mine) & set(environment) == set()
    assert {os.environ[variable] for variable in mine} == {"production"}
    assert environment["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert environment["AWS_CONFIG_FILE"] == environment["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"
    assert environment["VMSNIX_HISTORY"] == str(tmp_path / "sandbox" / "history")
    assert environment["VMSNIX_ARCHIVE"] == str(tmp_path / "sandbox" / "archive")
    assert environment["VMSNIX_ALLOWED_ACCOUNTS"] != "999999999999"


def test_the_demo_publishes_an_image_and_prints_one_json_object(tmp_path: Path) -> None:
    done = vmsnix("demo", "--json", VMSNIX_STATE=str(tmp_path), AWS_PROFILE="production")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ami_id"].startswith("ami-")
    assert result["snapshot_id"].startswith("snap-")
    assert result["image_name"].startswith("altf4llc-sample-")
    assert len(result["digest"]) == 64
    assert result["version"] in result["image_name"]
    assert result["version"] != result["package_version"]
    assert {step["step"] for step in result["steps"]} >= {"upload", "import", "register"}
    for kept in ("notebook", "report", "result"):
        assert Path(result[kept]).is_relative_to(tmp_path / "sandbox")
    assert not (tmp_path / "history").exists()


def test_a_demo_without_a_writable_folder_reports_it(
    run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "taken"))
    code, printed, complaint = run_vmsnix("demo")
    assert (code, printed) == (1, "")
    assert complaint.startswith("Error: The sandbox could not start.")
    assert "VMSNIX_STATE" in complaint


def test_lab_without_jupyterlab_reports_how_to_install_it(
    run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "find_spec", lambda _name: None)
    code, _, complaint = run_vmsnix("lab")
    assert code == ToolMissingError.exit_code
    assert "pip install 'vmsnix-ops[lab]'" in complaint


def test_lab_listens_on_127_0_0_1_and_checks_for_no_updates(tmp_path: Path) -> None:
    command = lab._command(tmp_path, lab.CONSOLE_PAGE, 0, no_browser=True)
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate" in command
    environment = lab._jupyter_environment(tmp_path, {}, tmp_path / "kernel")
    (settings,) = Path(environment["JUPYTERLAB_SETTINGS_DIR"]).rglob("notification.jupyterlab-settings")
    assert json.loads(settings.read_text()) == {"fetchNews": "false", "checkForUpdates": False}


def test_jupyterlab_is_optional() -> None:
    program = "import sys; sys.modules['jupyterlab'] = None; import vmsnix_ops.runbooks.execution._engine"
    assert (
        find_spec("jupyterlab") is None
        or subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
    )


def test_a_second_lab_does_not_change_the_kernel_of_the_first(
    run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    started: list[bool] = []

    def serve(_command: list[str], environment: dict[str, str]) -> int:
        spec = Path(environment["JUPYTER_PATH"].split(os.pathsep)[0]) / "kernels" / "python3" / "kernel.json"
        served.append(spec.read_text())
        started.append(str(Path.cwd()) in environment.values())
        if len(served) == 1:
            monkeypatch.chdir(tmp_path / "second")
            assert run_vmsnix("lab", "--no-browser")[0] == 0
            assert spec.read_text() == served[0]
        return 0

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path / "first")
    monkeypatch.setattr(lab, "_serve", serve)
    assert run_vmsnix("lab", "--no-browser")[0] == 0
    assert started == [True, True]


@pytest.mark.parametrize(
    ("user", "options", "hint"), [(0, (), True), (0, ("--", "--allow-root"), False), (1000, (), False)]
)
@pytest.mark.parametrize("name", ["console", "lab"])
def test_jupyterlab_as_root_reports_how_to_allow_it(
    run_vmsnix: RunVmsnix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    user: int,
    options: tuple[str, ...],
    hint: bool,
) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(lab, "_serve", lambda _command, _environment: 1)
    code, _, complaint = run_vmsnix(name, "--no-browser", *options)
    assert code == 1
    assert (f"vmsnix {name} -- --allow-root" in complaint) is hint


def test_channels_are_shown_as_a_table_as_json_and_as_a_page(
    run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sandbox_of_tests(speed=1000) as aws:
        ami_id = make_ami(aws)
        where = {"Name": "/vmsnix/ecs-node/stable", "Value": ami_id, "Type": "String"}
        aws.client("ssm").put_parameter(**where, DataType="aws:ec2:image")
        for name, value in {**aws.environment, "VMSNIX_STATE": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        code, printed, _ = run_vmsnix("channels")
        assert code == 0
        assert ami_id in printed
        assert "not recorded" in printed
        (row,) = json.loads(run_vmsnix("channels", "--json", "--image", "ecs-node")[1])
        assert (row["channel"], row["instances"], row["drifted"]) == ("stable", 0, None)
        assert row["since"].endswith("Z")
        page = tmp_path / "channels.html"
        assert run_vmsnix("channels", "--html", str(page)) == (0, "", "")
        assert ami_id in page.read_text(encoding="utf-8")
        page.unlink()
        code, printed, _ = run_vmsnix("channels", "--html", str(page), "--json")
        assert (code, json.loads(printed)[0]["ami_id"], page.is_file()) == (0, ami_id, True)
        code, printed, failed = run_vmsnix("channels", "--html", str(tmp_path / "no" / "x.html"))
        assert (code, printed) == (2, "")
        assert "x.html" in failed
        denied = {
            "op": "ssm:GetParametersByPath",
            "do": "error",
            "code": "AccessDeniedException",
            "http": 403,
        }
        aws.faults.add(denied)
        code, printed, failed = run_vmsnix("channels", "--json")
        assert code == 3
        assert json.loads(printed)[0]["state"] == "unknown"
        assert "could not be read completely" in failed


@pytest.mark.parametrize(
    "command",
    [
        "channels",
        "history sync",
        "download snap-0123456789abcdef0 disk.raw",
        "attestation-policy ami-0123456789abcdef0",
        "iam-policy auditor",
        "verify",
        "preflight",
    ],
)
def test_a_region_that_does_not_exist_is_a_usage_error(
    run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    code, printed, failed = run_vmsnix(*command.split(), "--region", "us-esat-1")
    assert (code, printed) == (2, "")
    assert "us-esat-1" in failed
    assert "us-east-1" in failed
