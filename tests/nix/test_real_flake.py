"""The flake against a real nixpkgs: every image on both systems is evaluated, nothing is built.

It needs a checkout of nixpkgs (``NIXPKGS_TREE``, best a store path) and a Nix that nixpkgs takes (2.18 or
newer; ``NIX`` names one that is not on PATH), and takes some minutes. Run it with ``just nix-eval``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import require

pytestmark = pytest.mark.timeout(1200)  # the ten evaluations belong to the first test

CHECKS = Path(__file__).parents[2] / "nix/checks"
IMAGES = ("actions-runner", "ecs-node", "ecs-node-attested", "gc-fwd", "gc-fwd-attested")
SYSTEMS = ("x86_64-linux", "aarch64-linux")
EACH = [(system, image) for system in SYSTEMS for image in IMAGES]


def evaluate(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    nix = os.environ.get("NIX") or require("nix")
    if not os.environ.get("NIXPKGS_TREE"):
        if "nixpkgs" in os.environ.get("VMSNIX_REQUIRE", "").split(","):
            pytest.fail("nixpkgs is required here (VMSNIX_REQUIRE) but NIXPKGS_TREE is not set")
        pytest.skip("NIXPKGS_TREE is not set")
    version = subprocess.run(
        [nix, "--version"], capture_output=True, text=True, check=True, timeout=1200
    ).stdout
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < (2, 18):
        pytest.skip(f"nixpkgs wants Nix 2.18 or newer; this is {version.strip()}")
    environment = {**os.environ, "NIX": nix}
    command = [*before, "sh", str(CHECKS / "evaluate.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1200)


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, Any]]:
    result = evaluate("--json")
    assert result.returncode == 0, result.stderr
    figures: dict[str, dict[str, Any]] = json.loads(result.stdout)
    return figures


def test_both_systems_have_all_images(report: dict[str, dict[str, Any]]) -> None:
    assert {system: tuple(sorted(images)) for system, images in report.items()} == dict.fromkeys(
        SYSTEMS, IMAGES
    )


@pytest.mark.parametrize(("system", "image"), EACH)
def test_no_assertion_fails_and_nothing_warns(
    report: dict[str, dict[str, Any]], system: str, image: str
) -> None:
    assert report[system][image]["failedAssertions"] == []
    assert report[system][image]["warnings"] == []


@pytest.mark.parametrize(("system", "image"), EACH)
def test_every_documented_fact_is_true(report: dict[str, dict[str, Any]], system: str, image: str) -> None:
    assert report[system][image]["failedFacts"] == []
    assert report[system][image]["facts"] >= 38


@pytest.mark.parametrize(("system", "image"), EACH)
def test_nixos_generate_makes_the_same_derivation(
    report: dict[str, dict[str, Any]], system: str, image: str
) -> None:
    assert report[system][image]["nixosGenerateParity"] is True
    assert re.fullmatch(r"/nix/store/[a-z0-9]{32}-.+\.drv", report[system][image]["drvPath"])


@pytest.mark.parametrize(("system", "image"), EACH)
def test_the_disk_and_the_registration(report: dict[str, dict[str, Any]], system: str, image: str) -> None:
    figures = report[system][image]
    register = figures["registerImage"]
    attested = image.endswith("-attested")
    assert figures["diskSizeMiB"] == (6144 if image == "actions-runner" else 4096)
    assert register["Architecture"] == ("arm64" if system.startswith("aarch64") else "x86_64")
    assert register["BootMode"] == ("uefi" if attested or system.startswith("aarch64") else "legacy-bios")
    assert (register["RootDeviceName"], register["ImdsSupport"], register["EnaSupport"]) == (
        "/dev/sda1",
        "v2.0",
        True,
    )
    assert register.get("TpmSupport") == ("v2.0" if attested else None)


# Variables of a compiled package that may put a path into its output. Any variable of a text may.
KEPT = re.compile(
    r"(propagated)?[bB]uildInputs|propagatedUserEnvPkgs|(post|pre)(Install|Fixup)|(makeW|w)rapperArgs|paths"
)
# Variables of a text that never do.
NOT_BUILD = re.compile(
    r"(?!((native|propagatedNative|depsBuild|check|installCheck)\w*|stdenv|builder|srcs?|patches|env|PATH|closure\w*"
    r"|(dis)?allowed\w*|\w*Phase|\w*Flags|NIX_CFLAGS\w*|exportReferencesGraph|contents|passAsFile|CONFIG_SHELL)$).*"
)
DEVELOPMENT = ("dev", "devdoc", "doc", "man", "info", "static", "debug")
NEVER = re.compile(r".*-(closure-info|.*-tests-[0-9.]+|.*test-support.*|.*\.(patch|tar\.[a-z0-9]+))")


def run_time_closure(machine: str) -> set[str]:
    """Return an approximation of the closure of a system that is not built: from its derivations.

    A path is in it if a variable of a derivation in it names the path, and the variable may get into the
    output. Instead of an output for development the library's is taken.
    """
    nix, inputs = os.environ.get("NIX") or require("nix"), ["--no-write-lock-file"]
    for name in ("NIXPKGS_TREE", "SRVOS_TREE"):
        if tree := os.environ.get(name):
            inputs += ["--override-input", name.partition("_")[0].lower(), f"path:{tree}"]
    top = f"path:{CHECKS.parent}#nixosConfigurations.{machine}.config.system.build.toplevel.drvPath"
    features = ["--extra-experimental-features", "nix-command flakes"]

    def ask(*arguments: str) -> str:
        return subprocess.run(
            [nix, *features, *arguments], capture_output=True, text=True, check=True, timeout=1200
        ).stdout

    system = ask("eval", "--raw", top, *inputs).strip()
    graph = json.loads(ask("derivation", "show", "--recursive", system))
    owners = {
        output["path"]: (derivation, name)
        for derivation in graph.values()
        for name, output in derivation["outputs"].items()
        if "path" in output
    }
    found, todo = set[str](), [graph[system]["outputs"]["out"]["path"]]
    while todo:
        path = todo.pop()
        if path in found or NEVER.fullmatch(path):
            continue
        derivation, name = owners[path]
        library = derivation["outputs"].get("lib") or derivation["outputs"].get("out")
        if name in DEVELOPMENT and library:
            todo.append(library["path"])
            continue
        found.add(path)
        variables = derivation["env"]
        if "__json" in variables:
            variables = {key: str(value) for key, value in json.loads(variables["__json"]).items()}
        compiled = variables.get("src") or variables.get("srcs")
        for key, value in variables.items():
            if key in derivation["outputs"] or not (KEPT if compiled else NOT_BUILD).fullmatch(key):
                continue
            names = re.findall(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+", value)
            todo += [one.rstrip(".") for one in names if one.rstrip(".") in owners]
    return found


# Runs a program, and writes the memory of the largest process in it, in KiB, after its output for errors.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize(("system", "image"), EACH)
def test_the_facts_of_an_image_need_less_than_2_gb(system: str, image: str) -> None:
    result = evaluate("--facts", f"{system}.{image}", before=(sys.executable, "-c", MEASURED))
    assert result.returncode == 0, result.stderr
    assert int(result.stderr.split()[-1]) < 2 * 2**20
    assert len(json.loads(result.stdout)) > 1000


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_packages_of_an_image_have_facts(system: str) -> None:
    result = evaluate("--facts", f"{system}.gc-fwd")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    names = {found["pname"]: found for found in facts.values()}
    assert names["openssl"]["licenses"] == ["Apache-2.0"]
    assert names["openssl"]["cpe"].startswith("cpe:2.3:a:openssl:openssl:")
    assert names["systemd"]["patches"]
    assert names["grafana-alloy"]["version"]
    assert "unit-sshd.service" in names  # a file of the configuration
    assert all(re.fullmatch(r"/nix/store/[a-z0-9]{32}-.+", path) for path in facts)
    paths = run_time_closure(f"gc-fwd{'-aarch64' * system.startswith('aarch64')}")
    assert len(paths) > 500
    without = sorted(path for path in paths if path not in facts)
    assert len(without) / len(paths) < 0.05, without
    packages = [facts[path] for path in paths if path in facts and facts[path]["version"]]
    assert sum(bool(found["licenses"]) for found in packages) / len(packages) > 0.8
    print(
        len(paths), len(without), len(packages), {k: sum(bool(f[k]) for f in packages) for k in packages[0]}
    )


def test_without_nixpkgs_the_script_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIXPKGS_TREE", raising=False)
    result = subprocess.run(
        ["sh", CHECKS / "evaluate.sh"], capture_output=True, text=True, check=False, timeout=1200
    )
    assert result.returncode == 2
    assert "NIXPKGS_TREE" in result.stderr
    assert result.stdout == ""
