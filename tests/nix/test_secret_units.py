"""The units that start a service when its secret has content, run by a real systemd.

A user manager runs them in namespaces of its own. The units are those of ``start-when-present.nix``,
evaluated by Nix; only the service itself is a shell that logs the secret.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import DEADLINE, require, unavailable

MODULES = Path(__file__).parents[2] / "nix/modules"
SYSTEMD = Path("/lib/systemd/systemd")
# Arguments: the folder of the test, the helper, systemd. Prints the state of the service and its log.
STEPS = r"""
umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/vmsnix-$$"; echo $$ >"/sys/fs/cgroup/vmsnix-$$/cgroup.procs"
mount -t tmpfs none /run; mkdir -p /run/systemd/system /run/user
export XDG_RUNTIME_DIR=/run/user XDG_CONFIG_HOME=$1/config VMSNIX_KEYS=$1/keys
"$3" --user --log-target=null &
manager=$!
until_true() {
  for _ in $(seq 600); do "$@" && return; sleep 0.1; done
  echo "never: $*"; exit 1
}
listening() { systemctl --user is-active --quiet agent.path; }
running() { systemctl --user is-active --quiet agent.service; }
folder=$1
state() {
  echo "$1: $(systemctl --user is-active agent.service), started with $(tr '\n' ' ' <"$folder/log")"
}
until_true systemctl --user start agent.path agent.service 2>/dev/null
until_true listening
state "without a secret"
(sleep 1; echo first) >"$1/keys/token"
until_true running
until_true [ -s "$folder/log" ]
state "written slowly"
systemctl --user stop agent.service
sleep 1
state "stopped"
listening && echo "still waiting"
echo second | bash "$2" token
until_true running
until_true grep -q second "$folder/log"
state "written by vmsnix-secret"
systemctl --user exit; wait $manager
"""
OUTCOME = """\
without a secret: inactive, started with\x20
written slowly: active, started with first\x20
stopped: inactive, started with first\x20
still waiting
written by vmsnix-secret: active, started with first second\x20
"""


def evaluate(file: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return the systemd options that the module sets for the service ``agent``."""
    expression = f'(import {MODULES}/start-when-present.nix "agent" "{file}").systemd'
    command = [require("nix-instantiate"), "--eval", "--strict", "--json", "--expr", expression]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    found: dict[str, dict[str, dict[str, str]]] = json.loads(result.stdout)
    return found


def unit(sections: dict[str, dict[str, object]]) -> str:
    lines = []
    for section, options in sections.items():
        lines.append(f"[{section}]")
        for name, values in options.items():
            lines += [f"{name}={value}" for value in (values if isinstance(values, list) else [values])]
    return "\n".join([*lines, ""])


@pytest.mark.long(seconds=5)
def test_a_service_starts_with_its_whole_secret_and_stays_stopped(tmp_path: Path) -> None:
    namespaces = ["unshare", "--mount", "--cgroup", "--net", "--pid", "--fork", "--mount-proc"]
    if (
        not SYSTEMD.exists()
        or os.getuid()
        or subprocess.run([*namespaces, "true"], timeout=DEADLINE).returncode
    ):
        unavailable("systemd", "systemd is not installed, or this user may not create namespaces")
    units = tmp_path / "config/systemd/user"
    units.mkdir(parents=True)
    secret = tmp_path / "keys/token"
    secret.parent.mkdir()
    (tmp_path / "log").touch()
    options = evaluate(secret)
    (units / "agent.path").write_text(unit({"Path": options["paths"]["agent"]["pathConfig"]}))
    start = f"/bin/sh -c 'cat {secret} >>{tmp_path}/log; exec sleep 600'"
    (units / "agent.service").write_text(
        unit({"Unit": options["services"]["agent"]["unitConfig"], "Service": {"ExecStart": start}})
    )
    command = [*namespaces, "bash", "-c", STEPS, "steps", tmp_path, MODULES / "secret.sh", SYSTEMD]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert result.stdout == OUTCOME, result.stderr
