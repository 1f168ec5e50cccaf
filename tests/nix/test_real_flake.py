"""The flake against a real nixpkgs: every image on both systems is evaluated, nothing is built.

It needs a checkout of nixpkgs (``NIXPKGS_TREE``, best a store path) and a Nix that nixpkgs takes (2.18 or
newer; ``NIX`` names one that is not on PATH), and takes some minutes. Run it with ``just nix-eval``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import require

pytestmark = pytest.mark.timeout(1200)  # the ten evaluations belong to the first test

CHECKS = Path(__file__).parents[2] / "nix/checks"
IMAGES = ("actions-runner", "ecs-node", "ecs-node-attested", "gc-fwd", "gc-fwd-attested")
SYSTEMS = ("x86_64-linux", "aarch64-linux")
EACH = [(system, image) for system in SYSTEMS for image in IMAGES]


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
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
    command = ["sh", str(CHECKS / "evaluate.sh"), *arguments]
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


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_packages_of_an_image_have_facts(report: dict[str, dict[str, Any]], system: str) -> None:
    result = evaluate("--facts", f"{system}.gc-fwd")
    assert result.returncode == 0, result.stderr
    # The largest process of this test run so far, in KiB: one image needs less than 2 GB.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 2**20
    facts = json.loads(result.stdout)
    names = {found["pname"]: found for found in facts.values()}
    assert names["openssl"]["licenses"] == ["Apache-2.0"]
    assert names["openssl"]["cpe"].startswith("cpe:2.3:a:openssl:openssl:")
    assert names["systemd"]["patches"]
    assert names["grafana-alloy"]["version"]
    assert "unit-sshd.service" in names  # a file of the configuration
    assert all(re.fullmatch(r"/nix/store/[a-z0-9]{32}-.+", path) for path in facts)
    packages = [found for found in facts.values() if found["version"]]
    assert len(packages) > 1000
    assert sum(bool(found["licenses"]) for found in packages) / len(packages) > 0.8


def test_without_nixpkgs_the_script_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIXPKGS_TREE", raising=False)
    result = subprocess.run(
        ["sh", CHECKS / "evaluate.sh"], capture_output=True, text=True, check=False, timeout=1200
    )
    assert result.returncode == 2
    assert "NIXPKGS_TREE" in result.stderr
    assert result.stdout == ""
