"""Errors of AWS as errors of this package, and retries of calls."""

from __future__ import annotations

import subprocess
import sys

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from vmsnix_ops import errors
from vmsnix_ops.aws.session import calling, client, retry, session


def refused(code: str, message: str = "text") -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"RequestId": "r-1"}}
    return ClientError(answer, "RegisterImage")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ExpiredToken", errors.CredentialsError),
        ("InvalidClientTokenId", errors.CredentialsError),
        ("RequestTimeTooSkewed", errors.CredentialsError),
        ("UnauthorizedOperation", errors.AccessDeniedError),
        ("AccessDenied", errors.AccessDeniedError),
        ("ResourceLimitExceeded", errors.QuotaError),
        ("InvalidParameter", errors.AwsError),
    ],
)
def test_an_error_code_becomes_an_error_of_the_right_class(code, kind):
    with pytest.raises(errors.AwsError) as caught, calling("register it"):
        raise refused(code)
    error = caught.value
    assert type(error) is kind
    assert error.what == "Could not register it."
    assert code in error.why
    assert (error.code, error.operation, error.request_id) == (code, "RegisterImage", "r-1")


def test_a_denied_call_names_the_action():
    with pytest.raises(errors.AccessDeniedError, match="RegisterImage"), calling("register it"):
        raise refused("UnauthorizedOperation")


def test_missing_credentials_name_the_variables():
    with pytest.raises(errors.CredentialsError, match="AWS_PROFILE"), calling("read it"):
        raise NoCredentialsError


def test_the_fix_of_a_connection_error_is_to_run_the_command_again():
    with pytest.raises(errors.AwsError, match="run the same command again: it continues"), calling("read it"):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


def test_an_unknown_profile_is_a_credentials_error(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(errors.CredentialsError, match="nobody"):
        session()


def test_a_missing_region_names_the_variable(monkeypatch, tmp_path):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(errors.RegionError, match="AWS_REGION"):
        client(session(), "ec2")


def test_only_the_given_codes_are_retried():
    answers = [refused("InvalidSnapshot.NotFound"), "there"]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry(call, "InvalidSnapshot.NotFound") == "there"
    answers[:] = [refused("InvalidParameter"), "there"]
    with pytest.raises(ClientError):
        retry(call, "InvalidSnapshot.NotFound")


def test_only_errors_that_contain_the_text_are_retried():
    def call():
        raise refused("InvalidParameter", "something else")

    with pytest.raises(ClientError, match="something else"):
        retry(call, "InvalidParameter", containing="service role")


def test_a_retry_prints_nothing() -> None:
    """Runs in another process, because pytest adds handlers to all loggers."""
    script = """
from botocore.exceptions import ClientError
from vmsnix_ops.aws.session import retry
calls = []
def call():
    calls.append(1)
    if len(calls) == 1:
        raise ClientError({"Error": {"Code": "NotYet", "Message": ""}}, "DescribeImages")
    return "done"
assert retry(call, "NotYet") == "done" and len(calls) == 2
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("code", "reason", "limit"),
    [
        ("RequestThrottledException", "RESOURCE_LEVEL_THROTTLE", "This limit is fixed"),
        (
            "RequestThrottledException",
            "ACCOUNT_THROTTLED",
            "The account reached its quota for GetSnapshotBlock requests",
        ),
        ("ThrottlingException", "", "The account reached its quota for GetSnapshotBlock requests"),
    ],
)
def test_a_throttled_call_names_the_limit(code, reason, limit):
    answer = {"Error": {"Code": code}, "Reason": reason}
    with pytest.raises(errors.AwsError, match=limit), calling("read a block"):
        raise ClientError(answer, "GetSnapshotBlock")
