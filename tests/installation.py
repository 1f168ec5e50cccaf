"""The wheel of the package, installed alone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
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
        "--no-compile",
        "--no-deps",
        "--no-index",
    ]
    run(*install, wheel, cwd=folder)
    return Installed(wheel, python, home / "bin" / "vmsnix", folder)
