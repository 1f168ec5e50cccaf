"""The images of a flake, and its revision."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import require
from vmsnix_ops import build_image
from vmsnix_ops.errors import NixError, ParameterError, ToolMissingError, UnknownImageError
from vmsnix_ops.nix.flake import Flake, find_flake, find_image, list_images, read_provenance

FIXTURE = Path(__file__).parent / "fixture"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the fixture flake in ``nix/``."""
    require("git")
    folder = tmp_path / "repository"
    shutil.copytree(FIXTURE, folder / "nix")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "x")
    return folder


def test_lists_the_images_with_system_disk_and_description(nix: Path) -> None:
    found = list_images()
    assert list(build_image.images()["name"]) == [image.name for image in found]
    assert len(repr(build_image.images())) < 600  # a table, not a list of objects
    assert [(image.name, image.system) for image in found] == [
        (name, system)
        for system in ("x86_64-linux", "aarch64-linux")
        for name in ("actions-runner", "ecs-node", "gc-fwd")
    ]
    assert {image.disk_bytes for image in found} == {4 * 2**20}
    assert found[1].description == "ECS container instance"
    assert found[1].installable == f"path:{FIXTURE}#packages.x86_64-linux.ecs-node"


def test_lists_the_images_of_one_system(nix: Path) -> None:
    assert {image.system for image in list_images(FIXTURE, system="aarch64-linux")} == {"aarch64-linux"}


def test_packages_that_are_not_images_are_not_listed(nix: Path) -> None:
    assert "not-an-image" not in {image.name for image in list_images(FIXTURE)}


def test_a_disk_of_automatic_size_has_no_size_before_the_build(nix: Path, tmp_path: Path) -> None:
    (tmp_path / "flake.nix").write_text(
        "{ outputs = _: { packages.x86_64-linux.x = { passthru.config = {"
        ' virtualisation.diskSize = "auto"; system.build.image = null; }; }; }; }'
    )
    (image,) = list_images(tmp_path)
    assert (image.name, image.disk_bytes, image.description) == ("x", None, "")


def test_a_flake_without_packages_is_an_error(nix: Path, tmp_path: Path) -> None:
    (tmp_path / "flake.nix").write_text("{ outputs = _: { }; }")
    with pytest.raises(NixError, match=r"Could not list.*packages"):
        list_images(tmp_path)


def test_an_invalid_flake_shows_nix_messages(nix: Path, tmp_path: Path) -> None:
    (tmp_path / "flake.nix").write_text("{ outputs = ")
    with pytest.raises(NixError, match="syntax error"):
        list_images(tmp_path)


def test_listing_needs_nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError):
        list_images(FIXTURE)


def test_offers_the_nearest_name(nix: Path) -> None:
    with pytest.raises(UnknownImageError, match="Did you mean 'ecs-node'"):
        find_image(find_flake(), "esc-node", "x86_64-linux")


def test_the_systems_of_an_image_are_named(nix: Path, tmp_path: Path) -> None:
    (tmp_path / "flake.nix").write_text("{ outputs = _: { packages.aarch64-linux.x = { }; }; }")
    with pytest.raises(UnknownImageError, match="It has this image for aarch64-linux"):
        find_image(find_flake(tmp_path), "x", "x86_64-linux")


@pytest.mark.parametrize(
    "name", ["--foo", "-f", "a;b", "$(x)", "`x`", "a b", "a\nb", "ecs-node\n", "../x", "a.b", "", "a\0b", "ö"]
)
def test_invalid_names_are_refused_before_nix_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without nix
    with pytest.raises(UnknownImageError, match="Invalid image name"):
        find_image(Flake("path:/x"), name, "x86_64-linux")


def test_refuses_a_system_without_images(nix: Path) -> None:
    with pytest.raises(ParameterError, match="Did you mean 'aarch64-linux'"):
        list_images(system="arch64-linux")


@pytest.mark.parametrize(
    "flake",
    [
        "--help",
        "github:a/b;c",
        "github:$(x)/y",
        "a b",
        "a\nb",
        "github:a/b#c",
        "",
        "/no/such",
        "./no",
        "path:/no",
        "a\0b",
    ],
)
def test_invalid_flakes_are_refused(flake: str) -> None:
    with pytest.raises(ParameterError):
        find_flake(flake)


@pytest.mark.parametrize(
    "flake", ["github:altf4llc/vmsnix", "github:a/b?dir=nix&ref=main", "git+ssh://git@host/x", "nixpkgs"]
)
def test_remote_flakes_are_accepted(flake: str) -> None:
    assert find_flake(flake) == Flake(flake)


def test_a_folder_with_unsupported_characters_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    shutil.copytree(FIXTURE, folder)
    with pytest.raises(ParameterError, match="Nix does not support"):
        find_flake(folder)


def test_finds_a_relative_flake_from_below_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "notebooks").mkdir()
    monkeypatch.chdir(repository / "notebooks")
    assert find_flake("./nix") == Flake(f"path:{repository}/nix", repository / "nix")


def test_the_root_of_a_repository_is_fetched_by_git(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "top")
    git(tmp_path, "init", "--quiet", "top")
    assert find_flake(tmp_path / "top").reference == f"git+file://{tmp_path}/top"


def test_a_clean_folder_has_the_revision_of_its_repository(nix: Path, repository: Path) -> None:
    found = read_provenance(find_flake(repository / "nix"))
    assert found.revision == git(repository, "rev-parse", "HEAD")
    assert found.nar_hash is not None
    assert found.nar_hash.startswith("sha256-")
    assert (found.dirty, found.url) == (False, f"path:{repository}/nix")


def test_changes_elsewhere_in_the_repository_do_not_make_the_flake_dirty(nix: Path, repository: Path) -> None:
    (repository / "README").write_text("x")
    assert not read_provenance(find_flake(repository / "nix")).dirty


@pytest.mark.parametrize("change", ["flake.nix", "new.nix"])
def test_a_changed_folder_is_dirty_and_has_another_hash(nix: Path, repository: Path, change: str) -> None:
    before = read_provenance(find_flake(repository / "nix"))
    with (repository / "nix" / change).open("a") as file:
        file.write("# changed\n")
    after = read_provenance(find_flake(repository / "nix"))
    assert (after.revision, after.dirty) == (before.revision, True)
    assert after.nar_hash != before.nar_hash


def test_a_folder_in_no_repository_has_no_revision(nix: Path, tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "plain")
    found = read_provenance(find_flake(tmp_path / "plain"))
    assert (found.revision, found.dirty) == (None, False)
    assert found.nar_hash


def test_a_repository_as_flake_has_its_revision_and_changes(nix: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    shutil.copytree(FIXTURE, top)
    git(tmp_path, "init", "--quiet", "top")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "--message", "x")
    head = git(top, "rev-parse", "HEAD")
    clean = read_provenance(find_flake(top))
    assert (clean.revision, clean.dirty) == (head, False)
    with (top / "flake.nix").open("a") as file:
        file.write("# changed\n")
    changed = read_provenance(find_flake(top))
    assert changed.dirty
    assert (changed.revision, changed.nar_hash != clean.nar_hash) == (head, True)
