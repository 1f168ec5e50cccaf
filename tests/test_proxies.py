"""No request to this machine uses a proxy, and exceptions of the user are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.aws.session import client, session
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.sandbox.access import no_proxy_variables

if TYPE_CHECKING:
    from pathlib import Path

PROXY = "http://127.0.0.1:9"  # nothing listens there
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def vmsnix(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name.upper() != "NO_PROXY"}
    return subprocess.run(
        [sys.executable, "-m", "vmsnix_ops", *words],
        env=environment | {"VMSNIX_STATE": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        *(pytest.param((name,), marks=pytest.mark.long(seconds=15)) for name in ("HTTP_PROXY", "all_proxy")),
    ],
)
@pytest.mark.long(seconds=8)
def test_the_demo_works_behind_a_proxy(tmp_path: Path, names: tuple[str, ...]) -> None:
    done = vmsnix(tmp_path, "demo", "--json", **dict.fromkeys(names, PROXY))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ami_id"].startswith("ami-")


@pytest.mark.long(seconds=15)
def test_a_run_on_a_sandbox_works_behind_a_proxy(tmp_path: Path) -> None:
    done = vmsnix(
        tmp_path, "run", "audit-inventory", "--sandbox", "--json", "--regions", "us-east-1", HTTP_PROXY=PROXY
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "corp.example, .lan"}, "corp.example,.lan,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b,a"}, "b,a,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost"}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_exceptions_of_the_user_are_kept(given: dict[str, str], wanted: str) -> None:
    assert no_proxy_variables(given) == {"NO_PROXY": wanted, "no_proxy": wanted}


@pytest.mark.usefixtures("proxied")
def test_clients_of_a_sandbox_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with sandbox(speed=1000) as aws:
        aws.prepare()
        assert aws.environment["NO_PROXY"] == aws.environment["no_proxy"] == "127.0.0.1,localhost,::1"
        for name, value in aws.environment.items():
            if name.upper() != "NO_PROXY":  # of a shell that was given the address alone
                monkeypatch.setenv(name, value)
        assert client(session(), "sts").get_caller_identity()["Account"] == aws.account
        assert client(aws.session(), "ec2").describe_images(Owners=["self"])["Images"] == []


@pytest.mark.usefixtures("proxied")
def test_clients_of_aws_itself_keep_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://ec2.us-east-1.amazonaws.example")
    made = client(session("us-east-1"), "ec2")
    assert made.meta.config.proxies is None


def test_the_sandbox_exports_the_variables_that_bypass_a_proxy(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_PROXY": "corp.example", "VMSNIX_STATE": str(tmp_path)}
    served = subprocess.Popen(
        [sys.executable, "-m", "vmsnix_ops", "sandbox"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert served.stdout is not None
    try:
        lines = []
        for line in served.stdout:
            lines.append(line.strip())
            if line.startswith("export no_proxy="):
                break
    finally:
        served.terminate()
        served.communicate(timeout=60)
    assert "export NO_PROXY=corp.example,127.0.0.1,localhost,::1" in lines
    assert "export no_proxy=corp.example,127.0.0.1,localhost,::1" in lines
