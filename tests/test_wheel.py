"""The wheel is complete: it runs without a checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.installation import Installed, installed, run
from vmsnix_ops.runbooks import catalog

ROOT = Path(__file__).parent.parent
__all__ = ["installed"]


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


def test_the_wheel_contains_the_manifest(installed: Installed) -> None:
    manifest = zipfile.ZipFile(installed.wheel).read("vmsnix_ops/runbooks/manifest.json")
    assert manifest == catalog.MANIFEST.read_bytes()


def test_an_edited_notebook_of_an_installation_changes_no_command(installed: Installed) -> None:
    (path,) = installed.python.parent.parent.rglob("35-verify-amis.ipynb")
    before, printed = path.read_text(encoding="utf-8"), {}
    try:
        for name, text in (("before", before), ("edited", before.replace("bool = True", "bool = False"))):
            path.write_text(text, encoding="utf-8")
            words = ("verify", "--help"), ("runbooks", "diff")
            printed[name] = [
                run(installed.vmsnix, *one, cwd=installed.folder, environment=installed.environment)
                for one in words
            ]
    finally:
        path.write_text(before, encoding="utf-8")
    assert printed["edited"][0] == printed["before"][0]
    assert printed["before"][1] == "No differences.\n"
    assert "pip install --force-reinstall --no-deps vmsnix-ops" in printed["edited"][1]


def test_the_notebooks_of_an_installation_cannot_be_edited_in_place(installed: Installed) -> None:
    done = subprocess.run(
        [installed.vmsnix, "lab", "--edit"],
        cwd=installed.folder,
        env=installed.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "vmsnix lab --edit needs a checkout." in done.stderr
    assert "belong to an installed package" in done.stderr


TOOLS = {
    "papermill": ["-m", "papermill", "--no-progress-bar", "{notebook}", "{output}"],
    "nbconvert": ["-m", "nbconvert", "--to", "notebook", "--execute", "--output={output}", "{notebook}"],
    # `jupyter execute` is this program
    "execute": ["-c", "from nbclient.cli import main; main()", "{notebook}", "--output={output}"],
}


@pytest.mark.long(seconds=30)
@pytest.mark.parametrize("how", ["editable", "wheel"])
@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_execute_the_notebooks_and_the_first_call_checks_the_types(
    installed: Installed, tmp_path: Path, tool: str, how: str
) -> None:
    python = installed.python if how == "wheel" else Path(sys.executable)
    folder = installed.python.parent.parent if how == "wheel" else ROOT / "notebooks"
    (source,) = folder.rglob("50-import-timings.ipynb")
    text = source.read_text(encoding="utf-8")
    wrong = text.replace('region: str = \\"\\"', "region: str = 5")
    assert wrong != text
    for name, content, code in (("good", text, 0), ("wrong", wrong, 1)):
        notebook, output = tmp_path / f"{name}.ipynb", tmp_path / f"{name}-done.ipynb"
        notebook.write_text(content, encoding="utf-8")
        words = [word.format(notebook=notebook, output=output) for word in TOOLS[tool]]
        done = subprocess.run(
            [python, *words],
            cwd=tmp_path,
            env={**installed.environment, "VMSNIX_STATE": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        if code == 0:
            outputs = [cell.get("outputs") for cell in json.loads(output.read_text())["cells"]]
            assert any(outputs)
        else:
            assert "region: 5 is not text" in done.stdout + done.stderr


def test_the_wheel_is_imported_from_its_own_environment(installed: Installed) -> None:
    program = "import vmsnix_ops; print(vmsnix_ops.__file__)"
    place = run(installed.python, "-c", program, cwd=installed.folder, environment=installed.environment)
    assert Path(place.strip()).is_relative_to(installed.python.parent.parent)


def test_the_installed_command_lists_its_runbooks(installed: Installed) -> None:
    listed = run(installed.vmsnix, "list", cwd=installed.folder, environment=installed.environment)
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
