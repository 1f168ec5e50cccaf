"""The sandbox: a local AWS with AWS's states, limits, checksums and errors.

>>> from vmsnix_ops.sandbox import sandbox
>>> with sandbox(speed=1000) as aws:  # doctest: +SKIP
...     aws.prepare(bucket="vmsnix-images")
...     ec2 = aws.client("ec2", "us-east-1")

It listens on 127.0.0.1. Every program that reads ``AWS_ENDPOINT_URL`` can use it; `Sandbox.environment` has
the variables. It needs only botocore. `sandbox_process` starts a sandbox in
another process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox.access import DEFAULT_REGION, Access, SandboxProcess, sandbox_process
from vmsnix_ops.sandbox.calls import Call, CallLog
from vmsnix_ops.sandbox.core import ApiError, Clock
from vmsnix_ops.sandbox.credentials import DEFAULT_ACCOUNT, Credential, credentials_table
from vmsnix_ops.sandbox.demo import Rows, fill
from vmsnix_ops.sandbox.faults import Fault, Faults
from vmsnix_ops.sandbox.server import Server
from vmsnix_ops.sandbox.state import SandboxState

__all__ = [
    "Access",
    "ApiError",
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
    """A sandbox in threads of this process. A context manager.

    Parameters
    ----------
    speed
        Sandbox seconds per real second.
    state
        Folder that keeps the state across restarts; None: the state is deleted at the end.
    port
        TCP port on 127.0.0.1; 0 chooses a free one.
    account
        Account ID of the caller, twelve digits. The default begins with a zero, which a number would lose.
    enforce_iam
        Whether users and roles without any policy are denied everything, as on AWS. By default they are
        allowed everything. The sandbox's administrator is always allowed everything.
    limits
        ``"aws"``: use the request limits and copy durations of AWS, in sandbox time: at a speed of 2, twice
        as many requests a second are answered. None: do not limit requests.
    seed
        ``"demo"``: fill the account with two years of published images (`Sandbox.add_demo`), unless it has
        AMIs. None: an empty account.

    Attributes
    ----------
    records
        The rows of vmsnix's tables about the demo, by the names of the tables; empty without a seed.

    Raises
    ------
    ValueError
        `limits` or `seed` has another value.
    OSError
        The port is in use, or the folder cannot be used. The text contains the fix.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        state: Path | str | None = None,
        port: int = 0,
        account: str = DEFAULT_ACCOUNT,
        enforce_iam: bool = False,
        limits: Literal["aws"] | None = None,
        seed: Literal["demo"] | None = None,
    ) -> None:
        if seed not in (None, "demo"):
            raise ValueError(f"seed={seed!r}: use 'demo', or None for an empty account")
        self.records: Rows = {}
        self.state = SandboxState(
            speed=speed,
            folder=None if state is None else Path(state),
            account=account,
            enforce_iam=enforce_iam,
            limits=limits,
        )
        try:
            self._server = Server(self.state, port)
        except OSError:
            self.state.close()
            raise
        key = self.state.first_credential
        super().__init__(self._server.url, key.access_key, key.secret, key.account)
        if seed == "demo":
            self.add_demo()

    def add_demo(self, home: str = DEFAULT_REGION) -> Rows:
        """Fill the account with two years of published images, unless it has AMIs.

        It also gets references to AMIs, drift and leftovers; see `vmsnix_ops.sandbox.demo`. `home` is the
        region of the publishes.

        Returns
        -------
        dict
            The rows of vmsnix's tables about the images, by the names of the tables; also in `records`.
            Empty if the account had AMIs.
        """
        state = self.state
        with state.lock:
            if not any(
                table for (owner, _), table in state.tables.of_kind("images").items() if owner == self.account
            ):
                self.records = fill(state.tables, self.account, state.folder, home=home)
        state.mark_changed()
        return self.records

    @property
    def calls(self) -> CallLog:
        """The calls so far."""
        return self.state.calls

    @property
    def faults(self) -> Faults:
        """The fault rules; ``faults.add({...})``."""
        return self.state.faults

    @property
    def clock(self) -> Clock:
        """The scaled clock; ``clock.advance(seconds)``."""
        return self.state.clock

    def other_account(self, account: str) -> Access:
        """Return access to this sandbox as the root user of another account."""
        known = credentials_table(self.state.tables)
        key, secret = f"AKIA{account}ROOT", f"the secret key of account {account}"
        arn = f"arn:aws:iam::{account}:root"
        known[key] = Credential(key, secret, account, arn, account)
        return Access(self.url, key, secret, account)

    def start(self) -> Sandbox:
        """Start to serve."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop serving. Save the state, or delete the temporary folder."""
        self._server.stop()
        self.state.close()

    def reset(self) -> None:
        """Delete all resources, calls and fault rules, but not the first access key."""
        self.state.reset()

    def save_tables(self) -> bytes:
        """Return the resources of the sandbox, for `restore_tables`; several tests can start with them."""
        return self.state.save_tables()

    def restore_tables(self, saved: bytes) -> None:
        """Replace all resources by saved ones, and delete calls and fault rules."""
        self.state.restore_tables(saved)

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()


sandbox = Sandbox  # reads better in ``with sandbox() as aws:``
