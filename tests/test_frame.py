"""Versions, lock files, licence, README, justfile and CI agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vmsnix_ops
from tests.support import require

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent
LOCKS = ["requirements.txt", "requirements-test.txt"]
LOCKS += [f"tests/foreign/{path.name}" for path in sorted((ROOT / "tests/foreign").glob("*.txt"))]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements in pyproject.toml: to run, to build, and of the given extras."""
    described = project()
    wanted = [*described["project"]["dependencies"], *described["dependency-groups"]["build"]]
    for extra in extras:
        wanted += described["project"]["optional-dependencies"][extra]
    return [Requirement(line) for line in wanted]


def locked(name: str) -> dict[str, str]:
    """Return the versions in a lock file by name."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text(name), re.MULTILINE))


def missing_or_wrong(wanted: Iterable[Requirement], versions: dict[str, str]) -> list[str]:
    return [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    ]


def shell_blocks(page: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


# Locks


def test_every_dependency_has_a_reason() -> None:
    reasons = dict(re.findall(r'^  "([^"]+)", # (\w.+)$', text("pyproject.toml"), re.MULTILINE))
    described = project()["project"]
    extras = described["optional-dependencies"].values()
    assert [one for one in [*described["dependencies"], *chain(*extras)] if one not in reasons] == []
    decisions = re.findall(r"docs/decisions/(\d+)", " ".join(reasons.values()))
    assert [number for number in decisions if not [*(ROOT / "docs/decisions").glob(f"{number}-*")]] == []


def test_requirements_lock_the_packages_to_run_and_build() -> None:
    assert missing_or_wrong(requirements("lab"), locked("requirements.txt")) == []


def test_requirements_test_lock_the_packages_for_development() -> None:
    extras = project()["project"]["optional-dependencies"]
    assert missing_or_wrong(requirements(*extras), locked("requirements-test.txt")) == []


def test_both_locks_agree() -> None:
    assert locked("requirements.txt").items() <= locked("requirements-test.txt").items()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_everything(name: str) -> None:
    entries = re.split(r"\n(?=\S)", text(name).strip())
    assert len(entries) == len(re.findall(r"^\S+==", text(name), re.MULTILINE))
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host_and_no_folder(name: str) -> None:
    assert re.findall(r"^.*(?:://|--index|--find-links|--extra-index| @ ).*$", text(name), re.MULTILINE) == []
    assert not re.search(r"(?:^|\s|=)/", text(name))


# conda


def with_extras(requirement: Requirement) -> tuple[str, frozenset[str]]:
    return canonicalize_name(requirement.name), frozenset(requirement.extras)


def test_the_conda_environment_has_all_requirements_in_the_locked_versions() -> None:
    described = project()
    environment = yaml.safe_load(text("environment.yml"))
    *by_conda, by_pip = environment["dependencies"]
    pins = [line.split("=") for line in by_conda if "=" in line and not line.startswith("python ")]
    pins += [line.split("==") for line in by_pip["pip"]]
    wanted = requirements(*described["project"]["optional-dependencies"])
    versions = locked("requirements-test.txt")
    assert {with_extras(Requirement(name)): version for name, version in pins} == {
        with_extras(requirement): versions[canonicalize_name(requirement.name)] for requirement in wanted
    }


def test_the_conda_environment_has_a_python_that_pyproject_allows() -> None:
    wanted = Requirement(next(line for line in yaml.safe_load(text("environment.yml"))["dependencies"]))
    assert wanted.name == "python"
    lowest = str(project()["project"]["requires-python"])
    assert lowest in str(wanted.specifier)


# Licence, version, README


def test_the_licence_is_the_one_that_pyproject_names() -> None:
    assert project()["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text("LICENSE")
    assert "Version 2.0, January 2004" in text("LICENSE")
    assert "END OF TERMS AND CONDITIONS" in text("LICENSE")


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["project"]["version"]
    assert vmsnix_ops.__version__ == version
    assert re.search(rf"^## {re.escape(version)}\b", text("CHANGELOG.md"), re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "lock"), [("vmsnix demo", "requirements.txt"), ("pytest", "requirements-test.txt")]
)
def test_the_readme_has_one_command_for_each_job(program: str, lock: str) -> None:
    commands = [block for block in shell_blocks(text("README.md")) if f".venv/bin/{program}\n" in block]
    assert len(commands) == 1
    assert f"--require-hashes -r {lock} " in commands[0]
    assert commands[0].startswith("python3 -m venv .venv &&")


@pytest.mark.parametrize("program", ["vmsnix demo", "pytest"])
def test_ci_runs_the_command_of_the_readme(program: str) -> None:
    script = text(".ci/run")
    function = re.search(r"^readme_command\(\) \{.*?^\}$", script, re.MULTILINE | re.DOTALL)
    assert function is not None
    found = subprocess.run(
        ["bash", "-c", f'{function[0]}\nreadme_command "$1"', "-", program],
        cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=120,
    ).stdout  # fmt: skip
    assert found in shell_blocks(text("README.md"))
    assert re.search(rf'run_readme_command "?{program}"?$', script, re.MULTILINE)


def test_every_relative_link_of_the_front_pages_exists() -> None:
    broken = []
    for page in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(page)):
            if "://" not in target and not (ROOT / target).exists():
                broken.append(f"{page}: {target}")
    assert broken == []


def test_the_table_of_runbooks_in_the_readme_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/runbook_table.py", "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_ci_refers_to_a_folder_beside_the_checkout() -> None:
    word = "../" + "shared"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if tracked.returncode != 0:
        pytest.skip("this is not a git checkout")
    names = [name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert [n for n in names if word.encode() in (ROOT / n).read_bytes()] == [".ci/run"]


# just


def just(*arguments: str) -> str:
    program = shutil.which("just", path=str(Path(sys.executable).parent)) or require("just")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_just_lists_every_recipe_with_a_sentence() -> None:
    lines = [line.strip() for line in just("--list", "--unsorted").splitlines()[1:]]
    assert [line for line in lines if "#" not in line] == []
    words = {line.split()[0] for line in lines}
    wanted = {
        "demo",
        "test",
        "lint",
        "lab",
        "lock",
        "docs",
        "build",
        "publish-ami",
        "check",
        "audit",
        "nix-eval",
    }
    assert words >= wanted


def test_just_docs_without_sphinx_reports_the_command_that_installs_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "justfile", tmp_path)
    program = shutil.which("just", path=str(Path(sys.executable).parent)) or require("just")
    done = subprocess.run(
        [program, "docs"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Sphinx is not installed. Run: just setup\n" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        (["demo", "--json"], "vmsnix demo --json"),
        (["test", "-x"], "pytest -x"),
        (["lint"], "ruff check ."),
        (["lab"], "vmsnix lab --sandbox"),
        (["docs"], "sphinx-build -W"),
        (["lock"], "--generate-hashes"),
        (["schemas"], "-m docs.schemas"),
        (["build", "ecs-node"], "nix build ./nix#ecs-node"),
        (["publish-ami", "ecs-node", "--dry-run"], "vmsnix publish --image ecs-node --dry-run"),
        (["check"], "nix flake check ./nix"),
        (["preflight"], "vmsnix preflight"),
        (["vm-test", "ssh"], "nix build ./nix#vmTests.ssh"),
        (["audit"], "vmsnix audit"),
        (["nix-eval"], "sh nix/checks/evaluate.sh"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_recipe_runs_one_thing(recipe: list[str], command: str) -> None:
    assert command in just("--dry-run", *recipe)
