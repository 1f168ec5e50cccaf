"""Secrets of user data that are SSM parameters, read by the script of the attested images with curl.

The instance metadata service is that of the boot test.
"""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.nix.test_attested_scripts import read_user_data, secrets
from tests.support import DEADLINE, require
from vmsnix_ops.boot import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.sandbox.clients import SandboxClients


@contextmanager
def metadata_service(pages: Mapping[str, str], log: Path) -> Iterator[str]:
    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            metadata.serve(self.rfile, self.wfile, pages, b"secret", str(log))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(DEADLINE)


@pytest.mark.parametrize("exists", [True, False])
def test_an_ssm_parameter_is_read_with_the_role_of_the_instance(
    tmp_path: Path, aws: SandboxClients, exists: bool
) -> None:
    require("curl")
    require("jq")
    secret = "glc_$(touch ran)/..'\""
    if exists:
        aws.ssm.put_parameter(Name="/gc-fwd/token", Value=secret, Type="SecureString")
    session = aws.sts.get_session_token()["Credentials"]
    role = {
        "AccessKeyId": session["AccessKeyId"],
        "SecretAccessKey": session["SecretAccessKey"],
        "Token": session["SessionToken"],
    }
    pages = {
        "meta-data/placement/region": "us-east-1",
        "meta-data/services/domain": "amazonaws.com",
        "meta-data/iam/security-credentials/forwarder": json.dumps(role),
    }
    with metadata_service(pages, tmp_path / "log") as address:
        result = read_user_data(
            tmp_path,
            "GRAFANA_CLOUD_TOKEN=ssm:/gc-fwd/token\n",
            VMSNIX_METADATA_ENDPOINT=address,
            VMSNIX_SSM_ENDPOINT=aws.sandbox.url,
        )
    if exists:
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert secrets(tmp_path) == {"grafana-cloud": {"GRAFANA_CLOUD_TOKEN": secret}}
    else:
        assert result.returncode == 1
        assert "Cannot read the SSM parameter /gc-fwd/token." in result.stdout
        assert not (tmp_path / "keys").exists()
    assert session["SecretAccessKey"] not in result.stdout + result.stderr
