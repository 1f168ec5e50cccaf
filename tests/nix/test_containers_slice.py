"""The slice of all containers on an attested host, made by a real systemd.

A user manager of root runs it in namespaces of its own, with the settings of ``containers-slice.nix``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import DEADLINE, require, unavailable

SLICE = Path(__file__).parents[2] / "nix/modules/containers-slice.nix"
SYSTEMD = Path("/lib/systemd/systemd")
# Arguments: the folder of the test, systemd, Python. A process in each slice opens devices and sends
# requests.
STEPS = r"""
umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/vmsnix-$$"; echo $$ >"/sys/fs/cgroup/vmsnix-$$/cgroup.procs"
mount -t tmpfs none /run; mkdir -p /run/systemd/system /run/user
ip link set lo up; ip address add 169.254.169.254/32 dev lo
export XDG_RUNTIME_DIR=/run/user XDG_CONFIG_HOME=$1/config
"$3" -m http.server --directory "$1/config" 80 >/dev/null 2>&1 &
"$2" --user --log-target=null &
manager=$!
mknod /run/tpmrm0 c 10 200  # another device, because this machine may have no TPM
cat >/run/try <<'TRY'
reach() { curl --silent --output /dev/null --max-time 5 "http://$1/" && echo yes || echo no; }
opens() { (exec 3<"$1") 2>/dev/null && echo yes || echo no; }
echo "$1: device $(opens /run/tpmrm0), zero $(opens /dev/zero)," \
  "metadata $(reach 169.254.169.254), other $(reach 127.0.0.1)"
TRY
for _ in $(seq 600); do
  curl --silent --output /dev/null http://127.0.0.1/ && systemctl --user list-units >/dev/null 2>&1 && break
  sleep 0.1
done
for slice in app ecstasks ecstasks-c0ffee; do
  systemd-run --user --quiet --scope --slice=$slice.slice bash /run/try $slice
done
systemctl --user exit; wait $manager
"""
OUTCOME = """\
app: device yes, zero yes, metadata yes, other yes
ecstasks: device no, zero yes, metadata no, other yes
ecstasks-c0ffee: device no, zero yes, metadata no, other yes
"""


@pytest.mark.long(seconds=5)
def test_a_container_reaches_no_device_and_no_instance_metadata(tmp_path: Path) -> None:
    for tool in ("curl", "ip", "systemd-run"):
        require(tool)
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    if not SYSTEMD.exists():
        unavailable("systemd")
    if os.getuid() or subprocess.run([*namespaces, "true"], timeout=DEADLINE).returncode:
        pytest.skip("this user may not create namespaces")
    command = [require("nix-instantiate"), "--eval", "--strict", "--json", str(SLICE)]
    evaluated = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    settings: dict[str, str | list[str]] = json.loads(evaluated.stdout)
    units = tmp_path / "config/systemd/user"
    units.mkdir(parents=True)
    lines = [
        f"{name}={value if isinstance(value, str) else ' '.join(value)}" for name, value in settings.items()
    ]
    (units / "ecstasks.slice").write_text("\n".join(["[Slice]", *lines]) + "\n")
    result = subprocess.run(
        [*namespaces, "bash", "-c", STEPS, "slice", str(tmp_path), str(SYSTEMD), sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert result.stdout == OUTCOME, result.stderr
