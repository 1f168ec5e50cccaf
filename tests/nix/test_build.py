"""Building an image with real Nix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.errors import (
    BuildFailedError,
    ImageNotFoundError,
    NixError,
    ParameterError,
    SettingsError,
    ToolMissingError,
    UnknownImageError,
    VmsnixError,
)
from vmsnix_ops.nix.build import is_path, plan_build, resolve_image, split_image
from vmsnix_ops.nix.command import parse_outputs
from vmsnix_ops.nix.flake import host_system
from vmsnix_ops.progress import Event, Progress, silent

if TYPE_CHECKING:
    from vmsnix_ops.nix.image import BuiltImage

FIXTURE = Path(__file__).parent / "fixture"
OTHER = {"x86_64-linux": "aarch64-linux", "aarch64-linux": "x86_64-linux"}


def fresh(folder: Path, name: str) -> Path:
    """Return a copy of the flake whose packages are not in the store yet."""
    copy = folder / "flake"
    shutil.copytree(FIXTURE, copy)
    packages = copy / "packages.nix"
    packages.write_text(packages.read_text().replace('label = "26.05.fixture"', f'label = "26.05.{name}"'))
    return copy


def build(image: str, *, progress: Progress | None = None, **options: Any) -> BuiltImage:
    return plan_build(image, **options).build(progress=progress)


def test_builds_an_image_that_is_a_real_disk(nix: Path) -> None:
    built = build("ecs-node", progress=silent())
    assert (built.name, built.version, built.system) == ("ecs-node", "26.05.fixture", host_system())
    assert (built.format, built.logical_bytes) == ("vhd", 4 * 2**20)
    assert built.register_image["RootDeviceName"] == "/dev/sda1"
    with open_image(built.path) as disk:
        assert disk.read(0, 22) == b"ecs-node 26.05.fixture"
        assert disk.read(510, 2) == b"\x55\xaa"


def test_an_image_has_its_provenance(nix: Path) -> None:
    plan = plan_build("ecs-node")
    built = plan.build(progress=silent())
    assert built.store_path is not None
    assert built.path.is_relative_to(built.store_path)
    assert built.derivation is not None
    assert Path(built.derivation).is_relative_to(nix / "store")
    assert built.flake == f"path:{FIXTURE}#packages.{host_system()}.ecs-node"
    assert (built.revision, built.nar_hash, built.dirty) == (
        plan.provenance.revision,
        plan.provenance.nar_hash,
        plan.provenance.dirty,
    )


def test_plan_and_image_show_the_keys_that_may_log_in(nix: Path) -> None:
    shown = ("may log in", "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA alice (ssh-ed25519)")
    plan = plan_build("gc-fwd")
    assert shown in plan.facts()
    assert shown in plan.build(progress=silent()).facts()
    assert "may log in" not in dict(plan_build("ecs-node").facts())


def test_building_again_gives_the_same_image(nix: Path) -> None:
    assert build("gc-fwd", progress=silent()) == build("gc-fwd", progress=silent())


def test_the_number_of_built_items_is_counted(nix: Path, tmp_path: Path) -> None:
    flake = fresh(tmp_path, "counted")
    assert build("ecs-node", flake=flake, progress=silent()).items == 2
    assert build("ecs-node", flake=flake, progress=silent()).items == 0


@pytest.mark.parametrize("image", ["ecs-node", f"{FIXTURE}#ecs-node", f"path:{FIXTURE}#ecs-node"])
def test_takes_the_image_with_or_without_its_flake(nix: Path, image: str) -> None:
    assert build(image, progress=silent()).name == "ecs-node"


def test_takes_the_whole_attribute_path(nix: Path) -> None:
    assert build(f"packages.{host_system()}.ecs-node", progress=silent()).name == "ecs-node"


def test_the_plan_shows_the_build_and_builds_nothing(nix: Path, tmp_path: Path) -> None:
    plan = plan_build("ecs-node", flake=fresh(tmp_path, "planned"), keep=tmp_path / "keep" / "link")
    shown = str(plan)
    assert f"ecs-node for {host_system()}" in shown
    assert "ECS container instance" in shown
    assert "4.0 MiB" in shown
    assert str(tmp_path / "keep" / "link") in plan._repr_html_()
    assert not (tmp_path / "keep").exists()
    assert not list((nix / "store").glob("*-ecs-node-26.05.planned-*"))


def test_progress_of_a_build_is_shown(nix: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    build("ecs-node", flake=fresh(tmp_path, "shown"), progress=Progress(events.append))
    assert {event.step for event in events} == {"build"}
    assert (events[0].kind, events[-1].kind) == ("started", "finished")
    assert events[-1].done == events[-1].total
    assert events[-1].done > 1
    done = [event.done for event in events]
    assert done == sorted(done)
    assert any("ecs-node-26.05.shown" in event.message and "buildPhase" in event.message for event in events)


def test_keeps_the_image_from_garbage_collection(nix: Path) -> None:
    plan = plan_build("ecs-node")
    built = plan.build(progress=silent())
    assert plan.keep.resolve() == Path(str(built.store_path))
    roots = {root.resolve() for root in (nix / "state" / "gcroots" / "auto").iterdir()}
    assert Path(str(built.store_path)) in roots


def test_a_failed_build_names_the_derivation_and_its_last_20_lines(nix: Path) -> None:
    with pytest.raises(BuildFailedError) as caught:
        build("talks-and-fails", progress=silent())
    error = caught.value
    assert error.derivation.endswith("-talks-and-fails-1.0.drv")
    assert error.log == (*(f"line {number}" for number in range(22, 41)), "in red")
    assert "  line 40\n  in red\n" in str(error)
    assert f"nix log {error.derivation}" in error.fix


def test_a_failed_dependency_is_named_instead_of_its_dependent(nix: Path) -> None:
    with pytest.raises(BuildFailedError, match=r"talks-and-fails-1\.0 failed") as caught:
        build("needs-what-fails", progress=silent())
    assert caught.value.log[-1] == "in red"


def test_a_build_that_fails_without_output_shows_nix_messages(nix: Path) -> None:
    with pytest.raises(BuildFailedError, match="exit code 4") as caught:
        build("fails-in-silence", progress=silent())
    assert caught.value.log == ()


def test_an_unreachable_source_is_explained(nix: Path) -> None:
    with pytest.raises(BuildFailedError, match=r"(?s)could not be reached.*127\.0\.0\.1:1") as caught:
        build("needs-the-network", progress=silent())
    assert "substituters" in caught.value.fix


def test_an_unreachable_flake_is_explained(nix: Path) -> None:
    with pytest.raises(NixError, match="could not be reached"):
        build("git+http://127.0.0.1:1/flake#x", progress=silent())


def test_an_image_for_another_system_needs_a_builder(nix: Path) -> None:
    with pytest.raises(NixError, match=r"cannot build for that system.*remote builder"):
        build("ecs-node", system=OTHER[host_system()], progress=silent())


def test_a_failed_evaluation_shows_nix_messages(nix: Path) -> None:
    with pytest.raises(NixError, match="broken on purpose"):
        build("cannot-be-evaluated", progress=silent())


def test_a_package_that_is_not_an_image_is_refused(nix: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="is not a built image"):
        build("not-an-image", progress=silent())


def test_an_unknown_image_offers_the_nearest_name(nix: Path) -> None:
    with pytest.raises(UnknownImageError, match="Did you mean 'gc-fwd'"):
        build("gc-fdw", progress=silent())


@pytest.mark.parametrize("image", ["--help", "$(touch x)", "a;b", "./nix#a b", "x#--y", "a\nb", "a\0b"])
def test_hostile_names_are_refused_before_nix_runs(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises((UnknownImageError, ParameterError)):
        resolve_image(image)


def test_a_system_that_contradicts_the_attribute_is_refused() -> None:
    with pytest.raises(ParameterError, match="Remove one of them"):
        plan_build("packages.aarch64-linux.ecs-node", system="x86_64-linux")


def test_building_needs_nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="or use an image that is already built"):
        build("ecs-node", flake=FIXTURE)


def test_an_unwritable_state_folder_is_an_error(nix: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="VMSNIX_STATE"):
        build("ecs-node", keep=tmp_path / "file" / "link", progress=silent())


def test_resolve_image_reads_a_built_image_and_finds_its_derivation(nix: Path) -> None:
    built = build("ecs-node", progress=silent())
    found = resolve_image(str(built.store_path))
    assert (found.path, found.derivation, found.flake) == (built.path, built.derivation, None)


def test_resolve_image_builds_an_attribute(nix: Path) -> None:
    assert resolve_image("ecs-node", progress=silent()) == build("ecs-node", progress=silent())


def test_resolve_image_reads_an_image_without_nix(
    nix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build("ecs-node", progress=silent())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_image(built.path.parent).derivation is None


@pytest.mark.parametrize(
    "image", ["", "  ", "/no/such/image", "./image.vhd", "image.VHD", "result", "result-2"]
)
def test_resolve_image_refuses_a_missing_path(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageNotFoundError):
        resolve_image(image)


def test_files_and_attributes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_path("disk.vhd")
    assert not is_path("ecs-node")
    assert not is_path("./nix#ecs-node")
    (tmp_path / "ecs-node").touch()
    assert is_path("ecs-node")


def test_splits_an_image_into_flake_name_and_system() -> None:
    assert split_image("ecs-node") == (None, "ecs-node", None)
    assert split_image("#ecs-node") == (None, "ecs-node", None)
    assert split_image("./nix#ecs-node") == ("./nix", "ecs-node", None)
    assert split_image("x#packages.aarch64-linux.y") == ("x", "y", "aarch64-linux")


@pytest.mark.parametrize(
    "answer",
    [
        [{"drvPath": "/nix/store/x.drv", "outputs": {"out": "/nix/store/x"}}],
        [{"drvPath": "/nix/store/x.drv", "outputs": {"out": "/nix/store/x"}, "startTime": 1, "stopTime": 2}],
    ],
)
def test_reads_the_answer_of_every_version(answer: object) -> None:
    assert parse_outputs(json.dumps(answer)) == ("/nix/store/x.drv", Path("/nix/store/x"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '[{"outputs": {}}]', '[{"outputs": {"out": null}}]']
)
def test_an_unexpected_answer_is_an_error(text: str) -> None:
    with pytest.raises(VmsnixError, match="unexpected answer"):
        parse_outputs(text)
