"""The wheel is the whole product: it runs where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Installed:
    wheel: Path
    python: Path
    vmsnix: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the checkout, of the caller's settings or of its AWS account."""
        kept = {name: os.environ[name] for name in ("LANG", "OPENBLAS_CORETYPE") if name in os.environ}
        path = os.pathsep.join([str(self.python.parent), "/usr/bin", "/bin"])
        own = {"PATH": path, "HOME": str(self.folder), "VMSNIX_STATE": str(self.folder / "state")}
        # Of the dependencies, whose templates are files beside the packages (see `installed`).
        return {**kept, **own, "JUPYTER_PATH": str(Path(sysconfig.get_path("data"), "share", "jupyter"))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it alone; its dependencies are those of the running tests (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    run(*build, "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("vmsnix_ops-*.whl")

    home = folder / "environment"
    venv.create(home)
    python = home / "bin" / "python"
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    # A folder that a .pth file adds is searched for packages, but its own .pth files are not read: an
    # editable installation of this checkout stays invisible.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        f"--python={python}",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    run(*install, wheel, cwd=folder)
    return Installed(wheel, python, home / "bin" / "vmsnix", folder)


def test_the_wheel_contains_every_notebook(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    notebooks = [path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").rglob("*.ipynb")]
    wanted = {f"vmsnix_ops/_notebooks/{path}" for path in notebooks if ".ipynb_checkpoints" not in path.parts}
    assert wanted
    assert wanted <= names


def test_the_wheel_contains_only_code_and_licence(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0].rpartition(".")[2] for name in names} == {"vmsnix_ops", "dist-info"}
    assert [
        name for name in names if "/tests/" in name or "__pycache__" in name or "checkpoint" in name
    ] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "vmsnix_ops/py.typed" in names


def test_the_wheel_is_imported_from_its_own_environment(installed: Installed) -> None:
    program = "import vmsnix_ops; print(vmsnix_ops.__file__)"
    place = run(installed.python, "-c", program, cwd=installed.folder, environment=installed.environment)
    assert Path(place.strip()).is_relative_to(installed.python.parent.parent)


def test_the_installed_command_lists_its_runbooks(installed: Installed) -> None:
    listed = run(installed.vmsnix, "runbooks", cwd=installed.folder, environment=installed.environment)
    assert "publish-ami" in listed


def test_papermill_lists_the_parameters_that_have_choices(installed: Installed) -> None:
    (notebook,) = installed.python.parent.parent.rglob("60-retire-amis.ipynb")
    command = (installed.python, "-m", "papermill", "--help-notebook", notebook)
    shown = run(*command, cwd=installed.folder, environment=installed.environment)
    assert 'action: Literal["retire", "restore"] (default "retire")' in shown


@pytest.mark.long(seconds=12)
def test_the_installed_demo_publishes_outside_the_checkout(installed: Installed) -> None:
    printed = run(installed.vmsnix, "demo", "--json", cwd=installed.folder, environment=installed.environment)
    result = json.loads(printed)
    assert result["ami_id"].startswith("ami-")
    assert result["snapshot_id"].startswith("snap-")
    assert len(result["digest"]) == 64
    assert result["region"]
    assert result["image_name"]
    assert result["seconds"] > 0
    assert result["steps"]
    for kept in ("notebook", "report"):
        path = Path(result[kept])
        assert path.is_relative_to(installed.folder)
        assert path.stat().st_size > 0
