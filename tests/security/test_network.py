"""No test connects to real AWS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import boto3
import pytest
from botocore.config import Config

from tests.conftest import NOWHERE, is_local


@pytest.mark.parametrize(
    "address", [("192.0.2.1", 443), ("ec2.us-east-1.amazonaws.com", 443), ("169.254.169.254", 80)]
)
@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_fails_the_test(address: tuple[str, int], connect: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="tried to connect"), socket.socket() as one:
        getattr(one, connect)(address)


def test_no_code_can_take_that_failure_for_an_error_of_aws() -> None:
    assert not issubclass(pytest.fail.Exception, Exception)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", ""])
def test_this_machine_is_local(host: str) -> None:
    assert is_local((host, 80))


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.1", "::2", "localhost.example.org", "example.org"])
def test_another_machine_is_not_local(host: str) -> None:
    assert not is_local((host, 80))


def test_a_client_that_forgot_the_sandbox_reaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    once = Config(retries={"total_max_attempts": 1}, connect_timeout=2)
    client = boto3.Session("key", "secret", region_name="us-east-1").client("sts", config=once)
    assert client.meta.endpoint_url == NOWHERE
    with pytest.raises(Exception, match="Could not connect"):
        client.get_caller_identity()


def test_programs_that_tests_start_have_no_aws_and_no_credentials() -> None:
    program = "import boto3; s = boto3.Session(); "
    program += "print(s.get_credentials(), s.client('sts', 'us-east-1').meta.endpoint_url)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["None", os.environ["AWS_ENDPOINT_URL"]]
