"""The facts about packages (nix/package-facts.nix), for a system that is really built."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd

from vmsnix_ops.nix.build import derivation_name
from vmsnix_ops.nix.closure import add_facts, describe_facts

HERE = Path(__file__).parent
FACTS = HERE.parents[1] / "nix/package-facts.nix"


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_paths_of_a_built_system_have_facts(nix: Path) -> None:
    machine = [str(HERE / "data/machine.nix"), "--arg", "packageFacts", str(FACTS)]
    facts = json.loads(run("nix-instantiate", "--eval", "--strict", "--json", *machine, "-A", "facts"))
    derivation = run("nix-instantiate", *machine, "-A", "toplevel").strip()
    system = run("nix-store", "--realise", derivation).strip()
    paths = sorted(run("nix-store", "--query", "--requisites", system).split(), key=derivation_name)
    names = ["Greet-3.0", "hello-2.12", "libhello-1.1", "lost-4.0", "nixos-system-small-26.11"]
    assert list(map(derivation_name, paths)) == [*names, "unit-web.service", "web-5.0"]

    packages = add_facts(pd.DataFrame({"store_path": paths}), facts)
    assert describe_facts(packages) == "6 of 7 paths (85.7%) have package facts"
    found = packages.assign(name=list(map(derivation_name, paths))).set_index("name")
    assert pd.isna(found.loc["lost-4.0", "pname"])  # nixpkgs has another derivation of this name
    assert found.loc["hello-2.12"].drop("store_path").to_dict() == {
        "pname": "hello",
        "package_version": "2.12",
        "licenses": ["GPL-3.0-or-later", "A licence without an identifier"],
        "cpe": "cpe:2.3:a:gnu:hello:2.12:*:*:*:*:*:*:*",
        "purl": "pkg:generic/hello@2.12",
        "patches": ["fix-greeting.patch"],
        "known_vulnerabilities": ["CVE-2026-0001"],
    }
    assert found.loc["libhello-1.1", "licenses"] == ["MIT"]
    assert list(found.loc["Greet-3.0", ["pname", "package_version", "licenses"]]) == ["Greet", "3.0", []]
    assert list(found.loc["unit-web.service", ["pname", "package_version"]]) == ["unit-web.service", ""]
