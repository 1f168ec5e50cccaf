"""The packages in an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmsnix_ops.errors import NixError
from vmsnix_ops.nix.build import derivation_name, resolve_image
from vmsnix_ops.nix.closure import closure, parse_path_info, split_name
from vmsnix_ops.nix.command import query_store
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import build_image

HASH = "00000000000000000000000000000000"
A, B = f"{HASH}-a-1.0", f"{HASH}-b"
INFO = {"narSize": 120, "narHash": "sha256-x", "references": []}


def test_packages_are_listed_largest_first(nix: Path) -> None:
    table = closure(resolve_image("ecs-node", progress=silent()), progress=silent())
    assert list(table.columns) == ["name", "version", "store_path", "bytes"]
    assert list(table["name"]) == ["linux", "openssl", "unit-sshd.service", "nixos-system-ecs-node"]
    assert list(table["version"]) == ["6.18.3", "3.0.14", "", "26.05.fixture"]
    assert list(table["bytes"])[:2] == [300112, 200112]
    assert table["bytes"].dtype == "int64"
    assert all(Path(path).exists() for path in table["store_path"])


def test_the_closure_is_of_the_system_and_not_of_the_image_s_references(nix: Path) -> None:
    built = resolve_image("ecs-node", progress=silent())
    assert query_store("--references", str(built.store_path), what="") == [built.store_path]
    assert len(closure(built, progress=silent())) == 4


def test_takes_an_image_that_was_built_before(nix: Path) -> None:
    built = resolve_image("gc-fwd", progress=silent())
    assert list(closure(Path(str(built.store_path)))["name"])[-1] == "nixos-system-gc-fwd"


def test_takes_the_name_of_an_image(nix: Path) -> None:
    assert len(closure("gc-fwd", progress=silent())) == 4


def test_facts_of_the_flake_are_joined_by_output_path(nix: Path) -> None:
    result = build_image.plan("ecs-node").apply(progress=silent())
    rows = result.frame().set_index("name")
    assert list(rows.loc["openssl", ["pname", "package_version", "licenses", "known_vulnerabilities"]]) == [
        *("openssl", "3.0.14"),
        *(["Apache-2.0"], ["CVE-2024-0001"]),
    ]
    assert rows.loc["linux", "cpe"].startswith("cpe:2.3:o:linux:")
    assert rows.loc["linux", "patches"] == ["request-key-helper.patch"]
    assert rows.loc["nixos-system-ecs-node", "pname"] is None
    shown = result.show_facts()
    assert shown.title == "2 of 4 paths (50.0%) have package facts"
    assert {derivation_name(row[0]) for row in shown.rows} == {
        "nixos-system-ecs-node-26.05.fixture",
        "unit-sshd.service",
    }


@pytest.mark.parametrize(
    ("image", "text"),
    [("gc-fwd", "The flake has no facts about its packages."), ("actions-runner", "on purpose")],
)
def test_a_flake_without_facts_has_packages_all_the_same(nix: Path, image: str, text: str) -> None:
    result = build_image.plan(image).apply(progress=silent())
    assert text in str(result.show_facts())
    assert len(closure(result.image)) == 4


def test_a_missing_system_is_fetched(nix: Path) -> None:
    built = resolve_image("actions-runner", progress=silent())
    before = closure(built, progress=silent())
    (system,) = before["store_path"][before["name"] == "nixos-system-actions-runner"]
    from vmsnix_ops.nix.command import run

    assert run(["nix-store", "--delete", system]).status == 0
    assert not Path(system).exists()
    assert closure(built, progress=silent()).equals(before)


def test_an_image_of_another_machine_has_no_closure(nix: Path) -> None:
    built = replace(resolve_image("ecs-node", progress=silent()), derivation=None)
    with pytest.raises(NixError, match="Build it here"):
        closure(built)


def test_an_image_without_a_nixos_system_is_refused(nix: Path) -> None:
    built = resolve_image("ecs-node", progress=silent())
    (linux,) = [
        path for path in query_store("--requisites", str(built.derivation), what="") if "linux-6" in path
    ]
    with pytest.raises(NixError, match="did not use a NixOS system"):
        closure(replace(built, derivation=linux))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([{"path": f"/nix/store/{A}", **INFO}, {"path": f"/nix/store/{B}", **INFO}], id="2.8"),
        pytest.param({f"/nix/store/{A}": INFO, f"/nix/store/{B}": INFO}, id="2.26, 2.34 format 1"),
        pytest.param(
            {"version": 2, "storeDir": "/nix/store", "info": {A: INFO, B: INFO}}, id="2.34 format 2"
        ),
    ],
)
def test_every_format_of_path_info_is_read(answer: object) -> None:
    assert list(parse_path_info(json.dumps(answer))) == [(f"/nix/store/{A}", 120), (f"/nix/store/{B}", 120)]


@pytest.mark.parametrize(
    "answer", [[{"path": "/nix/store/x", "valid": False}], {"/nix/store/x": None}, {"info": {"x": None}}]
)
def test_leaves_out_paths_that_are_not_in_the_store(answer: object) -> None:
    assert list(parse_path_info(json.dumps(answer))) == []


@pytest.mark.parametrize("text", ["", "null", "3", '"x"', "{"])
def test_an_unexpected_answer_is_an_error(text: str) -> None:
    with pytest.raises(NixError, match="unexpected answer"):
        list(parse_path_info(text))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glibc-2.42-51", ("glibc", "2.42-51")),
        ("openssl-3.0.14-bin", ("openssl", "3.0.14")),
        ("nixos-system-ecs-node-26.11.20260717.fc4cbc5", ("nixos-system-ecs-node", "26.11.20260717.fc4cbc5")),
        ("python3.13-boto3-1.40.1", ("python3.13-boto3", "1.40.1")),
        ("unit-sshd.service", ("unit-sshd.service", "")),
        ("etc", ("etc", "")),
        ("source", ("source", "")),
    ],
)
def test_names_and_versions_are_split_as_by_nix(name: str, expected: tuple[str, str]) -> None:
    assert split_name(f"/nix/store/{HASH}-{name}") == expected
