"""What holds for every test: nothing leaves this machine, and Ctrl-C works."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests import quick

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "http://127.0.0.1:9"  # the port "discard": nobody answers there
INTERNET = (socket.AF_INET, socket.AF_INET6)


def is_local(address: Any) -> bool:
    """Whether a socket's address is on this machine."""
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: whatever it resolves to, no test needs it


@pytest.fixture(scope="session", autouse=True)
def programs_can_be_interrupted() -> None:
    """Undo what a shell does to background jobs: they, and all that they start, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def tests_are_quick() -> Iterator[None]:
    """Share models and shorten pauses; see tests/quick.py."""
    patch = pytest.MonkeyPatch()
    quick.share_models(patch)
    quick.pause_briefly(patch)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def nothing_leaves_this_machine() -> Iterator[None]:
    """Fail any connection to another machine, and leave programs that tests start no AWS to talk to.

    The failure is no ordinary exception, so that no code under test can take it for an error of AWS.
    """
    patch = pytest.MonkeyPatch()

    def guard(name: str) -> None:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in INTERNET and not is_local(address):
                pytest.fail(f"a test wanted to connect to {address}", pytrace=True)
            return original(self, address)

        patch.setattr(socket.socket, name, connect)

    guard("connect")
    guard("connect_ex")
    patch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()
