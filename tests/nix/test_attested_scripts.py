"""The scripts of the attested images: user data as data, and the runtime without privileged containers.

Each runs unchanged with bash. ``tests/sandbox/ssm/test_user_data.py`` tests values from SSM Parameter Store.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.boot.attested_image import MEASURE, make_pe, measured_by_the_build
from tests.support import DEADLINE, require
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.nix.image import read_image

MODULES = Path(__file__).parents[2] / "nix/modules"
USER_DATA = MODULES / "profiles/user-data.sh"
OUTPUT = MODULES / "profiles/attested-output.sh"
EMPTY = MODULES / "profiles/empty-state.sh"
RUNTIME = MODULES / "profiles/unprivileged-runtime.sh"
ACCEPTED = "grafana-cloud:GRAFANA_CLOUD_TOKEN ecs.config:ECS_CLUSTER ecs.config:ECS_LOGLEVEL"


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def read_user_data(folder: Path, text: str | bytes, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the service ``user-data`` on user data; secrets are written to ``keys``."""
    program(folder / "bin", "vmsnix-secret", f'exec bash {MODULES}/secret.sh "$@"')
    data = folder / "user-data"
    data.write_bytes(text if isinstance(text, bytes) else text.encode())
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "VMSNIX_ACCEPTED": ACCEPTED,
        "VMSNIX_KEYS": str(folder / "keys"),
        "VMSNIX_USER_DATA": str(data),
    }
    return subprocess.run(
        ["bash", USER_DATA],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        cwd=folder,
        env=environment | more,
    )


def secrets(folder: Path) -> dict[str, dict[str, str]]:
    """Return the variables of each secret file. systemd unquotes a value in double quotes as a shell does."""
    return {
        path.name: dict(word.split("=", 1) for word in shlex.split(path.read_text()))
        for path in (folder / "keys").glob("*")
    }


def test_lines_of_user_data_become_secret_files(tmp_path: Path) -> None:
    text = "# for the cluster\r\nECS_CLUSTER=blue\r\n\nGRAFANA_CLOUD_TOKEN=glc_a=b=\nECS_LOGLEVEL=debug"
    result = read_user_data(tmp_path, text)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert secrets(tmp_path) == {
        "ecs.config": {"ECS_CLUSTER": "blue", "ECS_LOGLEVEL": "debug"},
        "grafana-cloud": {"GRAFANA_CLOUD_TOKEN": "glc_a=b="},
    }


@pytest.mark.parametrize(
    "value",
    [
        "$(touch ran) `touch ran` ${HOME} $HOME",
        '"; touch ran; "',
        "a'b\"c\\d\\\\e\\",
        "../../etc/passwd",
        "* ? [a-z] ~ !! %H # & | < >",
        "  both ends  ",
        "ü 日本",
    ],
)
def test_a_value_with_shell_and_path_characters_is_kept_as_it_is(tmp_path: Path, value: str) -> None:
    result = read_user_data(tmp_path, f"GRAFANA_CLOUD_TOKEN={value}\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert secrets(tmp_path) == {"grafana-cloud": {"GRAFANA_CLOUD_TOKEN": value}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "keys", "user-data"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/sh\ntouch ran\n", "line 1: It is a script, and this image executes none."),
        ("ECS_CLUSTER=blue\ntouch ran\n", "line 2: This image accepts only lines NAME=VALUE"),
        ("ECS_CLUSTER=blue\nLD_PRELOAD=/var/evil.so\n", "line 2: This image accepts only"),
        ("ECS_CLUSTER=blue\nx[$(touch ran)]=1\n", "line 2: This image accepts only"),
        ("../../evil=1\n", "line 1: This image accepts only"),
        ("ECS_CLUSTER=\n", "line 1: The value of ECS_CLUSTER is empty or has control characters."),
        ("ECS_CLUSTER=a\x1b[2Jb\n", "line 1: The value of ECS_CLUSTER is empty or has control"),
        ("{ pkgs, ... }: { }\n", "line 1: This image accepts only"),
    ],
)
def test_other_user_data_writes_no_secret_and_runs_nothing(tmp_path: Path, text: str, expected: str) -> None:
    result = read_user_data(tmp_path, text)
    assert result.returncode == 1
    assert expected in result.stdout
    assert result.stdout.endswith("No secret was written.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "user-data"]


def test_without_user_data_nothing_is_written(tmp_path: Path) -> None:
    assert read_user_data(tmp_path, "").returncode == 0
    assert not (tmp_path / "keys").exists()


def run_runtime(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program(folder / "bin", "runc", 'echo "runc $*"')
    return subprocess.run(
        ["bash", RUNTIME, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
    )


# The rules for devices that Docker writes into a container's specification.
USUAL = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
]
ALL = {"allow": True, "access": "rwm"}


@pytest.mark.parametrize(
    ("specification", "starts"),
    [
        ({"linux": {"resources": {"devices": USUAL}}}, True),
        ({"linux": {"resources": {"devices": [*USUAL, {**ALL, "type": "c"}]}}}, True),
        ({"linux": {"resources": {}}}, True),
        ({"linux": {"resources": {"devices": [ALL]}}}, False),
        ({"linux": {"resources": {"devices": [*USUAL, {**ALL, "type": "a"}]}}}, False),
        ("not JSON", False),
        (None, False),
    ],
)
def test_the_runtime_starts_no_privileged_container(
    tmp_path: Path, specification: object, starts: bool
) -> None:
    require("jq")
    if specification is not None:
        text = specification if isinstance(specification, str) else json.dumps(specification)
        (tmp_path / "config.json").write_text(text)
    for option in ([f"--bundle={tmp_path}"], ["--bundle", str(tmp_path)]):
        arguments = ["--root", "/run/docker", "--systemd-cgroup", "create", *option, "--pid-file", "/p", "c0"]
        result = run_runtime(tmp_path, arguments)
        if starts:
            assert (result.returncode, result.stdout) == (0, f"runc {' '.join(arguments)}\n")
        else:
            assert (result.returncode, result.stdout) == (1, "")
            assert "This machine starts no privileged containers." in result.stderr


def test_the_runtime_does_everything_else_as_runc(tmp_path: Path) -> None:
    result = run_runtime(tmp_path, ["--root", "/run/docker", "kill", "c0ffee", "15"])
    assert (result.returncode, result.stdout) == (0, "runc --root /run/docker kill c0ffee 15\n")


# An ext4 file system with the states of a boot: the second one is a symbolic link.
STATES = """
set -e
cd "$1"; truncate --size=4M disk; mkfs.ext4 -q disk; mkdir mnt; mount -o loop disk mnt; cd mnt
mkdir -p docker/containers/.c0 elsewhere/data; touch docker/containers/.c0/config elsewhere/data/agent.db
ln -s elsewhere ecs; $2 docker/containers/.c0/config
bash "$3" docker ecs && outcome=emptied || outcome=failed
chattr -R -i docker; echo "$outcome: $(find docker elsewhere | sort | tr '\\n' ' ')"
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("true", "emptied: docker elsewhere"),
        (
            "chattr +i",
            "failed: docker docker/containers docker/containers/.c0 docker/containers/.c0/config elsewhere",
        ),
    ],
)
def test_state_of_the_last_boot_is_deleted_or_nothing_starts(
    tmp_path: Path, change: str, expected: str
) -> None:
    for tool in ("mkfs.ext4", "chattr"):
        require(tool)
    command = ["unshare", "--mount", "bash", "-c", STATES, "", tmp_path, change, EMPTY]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    if "mount" in result.stderr:
        pytest.skip("this user may not mount a file system")
    assert result.stdout.strip() == expected, result.stderr


def test_the_output_describes_its_disk_and_its_measured_parts(tmp_path: Path) -> None:
    require("jq")
    out = tmp_path / "out"
    out.mkdir()
    make_sample_image(tmp_path / "sample", format="raw", boot_mode="uefi")
    (disk,) = (tmp_path / "sample").glob("*.img")
    disk.rename(out / "gc-fwd.raw")
    partitions = [
        {"type": "esp", "roothash": None},
        {"type": "usr-x86-64-verity", "roothash": "05db"},
        {"type": "usr-x86-64", "roothash": "05db"},
    ]
    (out / "repart-output.json").write_text(json.dumps(partitions))
    uki = tmp_path / "nixos.efi"
    uki.write_bytes(make_pe({".linux": b"kernel"}))
    known = {
        "label": "26.11",
        "boot_mode": "uefi",
        "tpm": "v2.0",
        "system": "x86_64-linux",
        "attested": {"interactive": False, "cluster": None},
        "registerImage": {"TpmSupport": "v2.0"},
        "vmsnix": {"name": "gc-fwd", "admin": {"keys": ["it's"]}},
    }
    values = {
        "out": str(out),
        "disk": "gc-fwd.raw",
        "uki": str(uki),
        "measure": str(MEASURE),
        "info": json.dumps(known),
    }
    command = ["bash", "-e", "-o", "pipefail", OUTPUT]
    subprocess.run(command, check=True, env={**os.environ, **values}, timeout=DEADLINE)
    size = str((out / "gc-fwd.raw").stat().st_size)
    where = {"file": str(out / "gc-fwd.raw"), "logical_bytes": size}
    measured = {
        "root_hash": "05db",
        **measured_by_the_build(uki),
        "interactive": False,
        "cluster": None,
    }
    info = json.loads((out / "nix-support/image-info.json").read_text())
    assert info == {**known, **where, "disks": {"root": where}, "attested": measured}
    image = read_image(out)
    assert (image.name, image.boot_mode, image.format) == ("gc-fwd", "uefi", "raw")
    assert image.register_image == {"TpmSupport": "v2.0"}
