"""The flake's files: syntax, headers, the lock file, the keys, the settings of Alloy.

No nixpkgs is needed; only the test of the syntax needs Nix.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support import require

REPOSITORY = Path(__file__).parents[2]
FLAKE = REPOSITORY / "nix"
NIX_FILES = sorted(FLAKE.rglob("*.nix"))
ALLOY_FILES = sorted(FLAKE.rglob("*.alloy"))
IMAGES = ("actions-runner", "ecs-node", "ecs-node-attested", "gc-fwd", "gc-fwd-attested")

# Components that each destination has to define (see the comment in host.alloy).
DESTINATION = {"prometheus.relabel.instance", "loki.process.sink", "otelcol.processor.batch.sink"}
# The .alloy files of one configuration; the destination is one of two.
CONFIGURATIONS = {
    "ecs-node": ("alloy/host", "alloy/to-forwarder", "docker/docker", "ecs-agent/ecs-agent"),
    "gc-fwd": ("alloy/host", "alloy/to-grafana-cloud", "alloy-forwarder/receive"),
    "actions-runner": ("alloy/host", "alloy/to-forwarder", "docker/docker"),
    "docker, straight to Grafana Cloud": ("alloy/host", "alloy/to-grafana-cloud", "docker/docker"),
}


def name(path: Path) -> str:
    return str(path.relative_to(FLAKE))


def without_strings_and_comments(text: str) -> str:
    return re.sub(r'"[^"\n]*"|//[^\n]*', '""', text)


@pytest.mark.parametrize("path", NIX_FILES, ids=name)
def test_every_file_parses(path: Path) -> None:
    nix = require("nix-instantiate")
    result = subprocess.run([nix, "--parse", path], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", NIX_FILES, ids=name)
def test_every_file_states_its_purpose(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", [*NIX_FILES, *ALLOY_FILES], ids=name)
def test_every_file_is_tidy(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)
    if path.suffix == ".nix":
        assert "\t" not in text
        assert max(map(len, text.splitlines())) <= 140 or path.name == "keys.nix"


def test_the_flake_has_the_documented_images() -> None:
    listed = re.findall(
        r"^  ([a-z-]+) = \./([a-z-]+)\.nix;$", (FLAKE / "images/default.nix").read_text(), re.MULTILINE
    )
    assert sorted(listed) == [(image, image) for image in IMAGES]
    assert all((FLAKE / "images" / f"{image}.nix").is_file() for image in IMAGES)


def test_no_command_and_no_workflow_uses_an_attested_image_by_default() -> None:
    used = [*REPOSITORY.glob("notebooks/*.ipynb"), *REPOSITORY.glob(".github/workflows/*.yml")]
    assert len(used) > 10
    assert [path.name for path in used if "-attested" in path.read_text(encoding="utf-8")] == []


def test_every_module_is_offered_to_other_flakes() -> None:
    offered = set(re.findall(r"= \./(modules/[a-z/-]+?)(?:\.nix)?;", (FLAKE / "lib.nix").read_text()))
    profiles = {f"modules/profiles/{path.stem}" for path in (FLAKE / "modules/profiles").glob("*.nix")}
    mixins = {
        f"modules/mixins/{path.parent.name}" for path in (FLAKE / "modules/mixins").glob("*/default.nix")
    }
    assert offered == profiles | mixins


def test_each_test_that_boots_machines_is_listed_as_not_run() -> None:
    machines = (FLAKE / "checks/vm/default.nix").read_text(encoding="utf-8")
    tests = re.findall(r"^        ([a-z-]+) = \./", machines, re.MULTILINE)
    text = (FLAKE / "README.md").read_text(encoding="utf-8").partition("## What was not run")[2]
    assert len(tests) == 5
    assert re.findall(r"^  - `vmTests\.([a-z-]+)`", text, re.MULTILINE) == tests


def test_every_script_is_part_of_a_module() -> None:
    scripts = {path.resolve() for kind in ("*.sh", "*.py") for path in (FLAKE / "modules").rglob(kind)}
    used = {
        (path.parent / found).resolve()
        for path in (FLAKE / "modules").rglob("*.nix")
        for found in re.findall(
            r"(?:builtins\.readFile |\$\{)(\.\S+\.(?:sh|py))", path.read_text(encoding="utf-8")
        )
    }
    assert used == scripts


def test_nothing_reaches_outside_the_flake() -> None:
    """With ``path:`` Nix copies only this folder, so a path outside of it does not exist."""
    for path in NIX_FILES:
        for found in re.findall(r"(?<![\w.$}])((?:\.\./)+[\w./-]*)", path.read_text(encoding="utf-8")):
            assert FLAKE in (path.parent / found).resolve().parents, f"{name(path)}: {found}"


def test_the_lock_file_pins_every_input() -> None:
    lock = json.loads((FLAKE / "flake.lock").read_text())
    assert lock["version"] == 7
    nodes = lock["nodes"]
    inputs = set(re.findall(r"^    (\w+)\.url =", (FLAKE / "flake.nix").read_text(), re.MULTILINE))
    assert set(nodes["root"]["inputs"]) == inputs == {"nixpkgs", "srvos"}
    assert set(nodes) == {"root", *inputs}
    for each in inputs:
        locked = nodes[each]["locked"]
        assert re.fullmatch(r"[0-9a-f]{40}", locked["rev"])
        kind, _, digest = locked["narHash"].partition("-")
        assert kind == "sha256"
        assert len(base64.b64decode(digest, validate=True)) == 32
        assert 1_700_000_000 < locked["lastModified"] < 2_000_000_000
        assert {key: locked[key] for key in ("owner", "repo", "type")} == {
            key: nodes[each]["original"][key] for key in ("owner", "repo", "type")
        }
    assert nodes["srvos"]["inputs"] == {"nixpkgs": ["nixpkgs"]}


def test_the_keys_are_openssh_public_keys_with_an_owner() -> None:
    lines = re.findall(r'^  "([^"]+)"$', (FLAKE / "keys.nix").read_text(), re.MULTILINE)
    assert lines
    assert len(lines) == len(set(lines))
    for line in lines:
        kind, body, owner = line.split(" ", 2)
        blob = base64.b64decode(body, validate=True)
        (length,) = struct.unpack(">I", blob[:4])
        assert blob[4 : 4 + length].decode() == kind
        assert owner


def test_no_private_key_is_in_the_flake() -> None:
    for path in FLAKE.rglob("*"):
        if path.is_file():
            assert "PRIVATE KEY-----" not in path.read_text(encoding="utf-8"), name(path)


@pytest.mark.parametrize("path", ALLOY_FILES, ids=name)
def test_brackets_of_alloy_files_are_balanced(path: Path) -> None:
    text = without_strings_and_comments(path.read_text(encoding="utf-8"))
    closing = {"}": "{", "]": "[", ")": "("}
    still_open: list[str] = []
    for character in text:
        if character in closing.values():
            still_open.append(character)
        elif character in closing:
            assert still_open, f"{character} closes nothing"
            assert still_open.pop() == closing[character]
    assert not still_open


@pytest.mark.parametrize("destination", ["to-forwarder", "to-grafana-cloud"])
def test_a_destination_defines_the_referenced_components(destination: str) -> None:
    assert defined(FLAKE / f"modules/mixins/alloy/{destination}.alloy") >= DESTINATION


@pytest.mark.parametrize("files", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_alloy_components_are_unique_and_all_references_exist(files: tuple[str, ...]) -> None:
    paths = [FLAKE / f"modules/mixins/{each}.alloy" for each in files]
    components = [component for path in paths for component in defined(path)]
    assert len(components) == len(set(components))
    for path in paths:
        for reference in referred(path):
            assert reference in components, f"{name(path)} refers to {reference}"


def defined(path: Path) -> set[str]:
    blocks = re.findall(r'^([a-z_.]+) "([a-z_]+)" \{', path.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"{kind}.{label}" for kind, label in blocks}


def referred(path: Path) -> set[str]:
    """Return the components whose exports a file uses: ``kind.label`` before ``.receiver`` or similar."""
    text = without_strings_and_comments(path.read_text(encoding="utf-8"))
    return set(
        re.findall(r"\b([a-z_]+(?:\.[a-z_]+)+)\.(?:receiver|input|targets|rules|handler|content)\b", text)
    )
