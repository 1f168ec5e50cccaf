"""A local AWS with AWS's states, limits, checksums and errors.

>>> from vmsnix_ops.sandbox import sandbox
>>> with sandbox(speed=1000) as aws:  # doctest: +SKIP
...     aws.prepare(bucket="vmsnix-images")
...     ec2 = aws.client("ec2", "us-east-1")

It listens on 127.0.0.1 only. Any program that reads ``AWS_ENDPOINT_URL`` can use it; `Sandbox.environment`
has the variables. botocore is the only dependency. `sandbox_process` starts one in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox.access import Access
from vmsnix_ops.sandbox.calls import Call, CallLog
from vmsnix_ops.sandbox.core import AwsError, Clock
from vmsnix_ops.sandbox.credentials import DEFAULT_ACCOUNT, Credential, credentials_table
from vmsnix_ops.sandbox.faults import Fault, Faults
from vmsnix_ops.sandbox.process import SandboxProcess, sandbox_process
from vmsnix_ops.sandbox.seeding import REGIONS, SeededAccount, populate
from vmsnix_ops.sandbox.server import Server
from vmsnix_ops.sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


__all__ = [
    "Access",
    "AwsError",
    "Call",
    "CallLog",
    "Clock",
    "Fault",
    "Faults",
    "Sandbox",
    "SandboxProcess",
    "make_sample_image",
    "sandbox",
    "sandbox_process",
]


def __dir__() -> list[str]:
    return __all__


class Sandbox(Access):
    """A sandbox in threads of this process; a context manager.

    Parameters
    ----------
    speed
        How many sandbox seconds pass in one real second.
    state
        A folder that keeps everything across restarts; None forgets everything at the end.
    port
        TCP port on 127.0.0.1; 0 takes a free one.
    account
        Account id of the caller, twelve digits. The first digit is a zero unless you choose: ids are texts.
    enforce_iam
        Refuse users and roles what no policy of theirs allows. Otherwise those without any policy may do
        everything, as the sandbox's own operator may in any case.

    Raises
    ------
    OSError
        When the port is taken or the folder cannot be used; the text says what to do.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        state: Path | str | None = None,
        port: int = 0,
        account: str = DEFAULT_ACCOUNT,
        enforce_iam: bool = False,
    ) -> None:
        self.world = World(
            speed=speed,
            state=None if state is None else Path(state),
            account=account,
            enforce_iam=enforce_iam,
        )
        try:
            self._server = Server(self.world, port)
        except OSError:
            self.world.close()
            raise
        key = self.world.first_credential
        super().__init__(self._server.url, key.access_key, key.secret, key.account)

    @property
    def calls(self) -> CallLog:
        """What clients asked so far."""
        return self.world.calls

    @property
    def faults(self) -> Faults:
        """The fault rules; ``faults.add({...})``."""
        return self.world.faults

    @property
    def clock(self) -> Clock:
        """The scaled clock; ``clock.advance(seconds)``."""
        return self.world.clock

    def other_account(self, account: str) -> Access:
        """Return the way of another account's root user into this sandbox."""
        known = credentials_table(self.world.tables)
        key, secret = f"AKIA{account}ROOT", f"the secret key of account {account}"
        arn = f"arn:aws:iam::{account}:root"
        known[key] = Credential(key, secret, account, arn, account)
        return Access(self.url, key, secret, account)

    def start(self) -> Sandbox:
        """Begin to serve."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop serving; keep the state, or remove the temporary folder."""
        self._server.stop()
        self.world.close()

    def reset(self) -> None:
        """Forget everything but the first access key: resources, calls and faults."""
        self.world.reset()

    def populate(
        self, *, regions: Sequence[str] = REGIONS, amis: int = 5000, one_named_in: int = 20
    ) -> SeededAccount:
        """Fill regions of the account with AMIs and what names them; see `vmsnix_ops.sandbox.seeding`."""
        with self.world.lock:
            made = populate(
                self.world.tables, self.account, regions=regions, amis=amis, one_named_in=one_named_in
            )
        self.world.changed()
        return made

    def remember(self) -> bytes:
        """Return everything that there is now, for `recall`: what several tests begin with."""
        return self.world.remember()

    def recall(self, memory: bytes) -> None:
        """Return to what was remembered, without calls and faults; objects made since are forgotten."""
        self.world.recall(memory)

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def sandbox(
    *,
    speed: float = 1.0,
    state: Path | str | None = None,
    port: int = 0,
    account: str = DEFAULT_ACCOUNT,
    enforce_iam: bool = False,
) -> Sandbox:
    """Return a sandbox, to be used as a context manager; the parameters are those of `Sandbox`."""
    return Sandbox(speed=speed, state=state, port=port, account=account, enforce_iam=enforce_iam)
