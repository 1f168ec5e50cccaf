"""The units and the cron line of docs/how-to/schedule.md work as they are shown."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import require
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs/how-to/schedule.md"
FILES = dict(
    re.findall(r"^```(?:ini|text)\n# (/\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
ENVIRONMENT, CRON = "/etc/vmsnix/environment", "/etc/cron.d/vmsnix-audit"
SERVICE, TIMER = (f"/etc/systemd/system/vmsnix-audit.{kind}" for kind in ("service", "timer"))
DEADLINE = 200


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Any]:
    """Return a function that gives a text of the page the paths of this machine, whose AWS is a sandbox."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/.venv").symlink_to(sys.prefix)
    (tmp_path / "state").mkdir()
    paths = {
        "/opt/vmsnix": tmp_path / "opt",
        "/var/lib/vmsnix": tmp_path / "state",
        ENVIRONMENT: tmp_path / "environment",
    }

    def here(text: str) -> str:
        for old, new in paths.items():
            text = text.replace(old, str(new))
        return text

    with sandbox(speed=0.001) as aws:
        topic = aws.client("sns", "eu-central-1").create_topic(Name="vmsnix-alarms")["TopicArn"]
        aws.prepare(bucket="acme-vmsnix-records", region="eu-central-1")
        given = [one for one in here(FILES[ENVIRONMENT]).splitlines() if not one.startswith("AWS_PROFILE")]
        variables = {name: value for name, value in aws.environment.items() if "REGION" not in name}
        lines = [*given, *(f"{name}={shlex.quote(value)}" for name, value in variables.items())]
        assert f"VMSNIX_NOTIFY_TOPIC={topic}" in lines
        (tmp_path / "environment").write_text("\n".join(lines) + "\n")
        yield here, aws


def check_audited(aws: Any) -> None:
    """The audit's entry is in the archive of the page's settings."""
    s3 = aws.client("s3")
    index = s3.get_object(Bucket="acme-vmsnix-records", Key="archive/index.json")["Body"].read()
    ((_, row),) = json.loads(index)["runs"].items()
    assert (row["runbook"], row["status"]) == ("audit-inventory", "done")


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = require("systemd-analyze")
    for path, text in ((SERVICE, FILES[SERVICE]), (TIMER, FILES[TIMER])):
        own = text.replace("/opt/vmsnix/.venv", sys.prefix)
        (tmp_path / Path(path).name).write_text(own)
    done = subprocess.run(
        [program, "verify", "--man=no", *(str(tmp_path / Path(one).name) for one in (SERVICE, TIMER))],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert str(tmp_path) not in done.stderr.replace("Failed to open", "")
    assert done.returncode == 0, done.stderr
    calendar = subprocess.run(
        [program, "calendar", unit(FILES[TIMER])["Timer"]["OnCalendar"]],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert calendar.returncode == 0, calendar.stderr


@pytest.mark.long(seconds=15)
def test_the_service_runs_the_audit(machine: Any) -> None:
    here, aws = machine
    service = unit(here(FILES[SERVICE]))["Service"]
    lines = Path(service["EnvironmentFile"]).read_text().splitlines()
    variables = dict(one.split("=", 1) for one in lines)
    done = subprocess.run(
        shlex.split(service["ExecStart"]),
        cwd=service["WorkingDirectory"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": service["WorkingDirectory"]}
        | {name: shlex.split(value)[0] for name, value in variables.items()},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_audited(aws)


@pytest.mark.long(seconds=15)
def test_cron_runs_the_audit(machine: Any) -> None:
    here, aws = machine
    (line,) = here(FILES[CRON]).splitlines()
    fields = line.split(None, 6)
    assert re.fullmatch(r"\d+ \d+ \* \* \*", " ".join(fields[:5]))
    assert fields[5] == "vmsnix"
    assert "%" not in fields[6]  # cron ends the command there
    home = re.findall(r"cd (\S+)", fields[6])[0]
    done = subprocess.run(
        ["/bin/sh", "-c", fields[6]],
        cwd=home,
        env={"HOME": home, "LOGNAME": "vmsnix", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_audited(aws)
