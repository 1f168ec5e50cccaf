"""Where runs go: to AWS as this process sees it, or to a sandbox on this machine.

A place is variables on top of this process's. They are handed to the process of a run, to the settings, the
tables and the boto3 session; this process's own environment never changes, so that nothing that looks at AWS
in one moment is sent to the sandbox in the next.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import settings as settings_module
from vmsnix_ops.errors import RunError
from vmsnix_ops.runbooks.execution import kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3

    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings

STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Place:
    """One world in which runbooks can run.

    Attributes
    ----------
    url
        Of the sandbox; empty for AWS.
    changes
        Variables on top of this process's; ``None`` takes one away.
    """

    url: str = ""
    changes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def sandbox(self) -> bool:
        """Whether this is a sandbox."""
        return bool(self.url)

    @property
    def environment(self) -> dict[str, str]:
        """All variables of a process that works here."""
        merged = {**os.environ, **self.changes}
        return {name: value for name, value in merged.items() if value is not None}

    def settings(self) -> Settings:
        """Return the settings that hold here."""
        return settings_module.load(environment=self.environment)

    def tables(self) -> Tables:
        """Return the tables of this place."""
        from vmsnix_ops.records.tables import Tables

        settings = self.settings()
        return Tables(settings.history, region=settings.region, storage_options=self.environment)

    def session(self) -> boto3.Session:
        """Return a boto3 session whose clients talk to this place."""
        from vmsnix_ops.aws import session as sessions

        if not self.changes:
            return sessions.session(self.settings().region)
        return _changed_session(self.environment)


@dataclass(frozen=True, slots=True)
class Who:
    """Whose account a place is.

    Attributes
    ----------
    account, arn
        Of the caller; empty when AWS could not be asked.
    region
        Where work goes that names no region; empty when nothing says.
    problem
        Why account and ARN are not known, or why nothing may be changed there.
    """

    account: str = ""
    arn: str = ""
    region: str = ""
    problem: str = ""


def here() -> Place:
    """Return the place that this process was started in: AWS, or the sandbox behind it."""
    return Place(url=os.environ.get("VMSNIX_SANDBOX", ""))


def who(place: Place) -> Who:
    """Ask whose account a place is; what cannot be told is told as a problem (sts:GetCallerIdentity)."""
    from vmsnix_ops.aws.identity import read_caller
    from vmsnix_ops.errors import VmsnixError

    region = ""
    try:
        settings = place.settings()
        session = place.session()
        region = settings.region or session.region_name or ""
        known = read_caller(session, region or "us-east-1")
    except VmsnixError as error:
        return Who(region=region, problem=f"{error}")
    allowed = settings.allowed_accounts
    problem = ""
    if allowed and known.account not in allowed:
        problem = f"Account {known.account} is not allowed (allowed_accounts is {', '.join(allowed)})."
    return Who(known.account, known.arn, region, problem)


class SandboxHost:
    """A sandbox that this console started, in a process that ends with it.

    Raises
    ------
    RunError
        When it cannot serve, with its own words.
    """

    def __init__(self) -> None:
        environment = {**os.environ, **kernels.python_path(os.environ)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vmsnix_ops.cli.sandbox"],
            stdin=subprocess.PIPE,  # it ends when this closes, also when this process is killed
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # interrupting the notebook's kernel is no reason to end
        )
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        said: dict[str, Any] = json.loads(line) if line else {"error": "Its process ended at the start."}
        if "error" in said:
            self.stop()
            raise RunError(
                "The sandbox could not start.",
                why=str(said["error"]),
                fix="Stop the process that uses its folder (another console, `vmsnix lab --sandbox`), then "
                "try again.",
            )
        taken = {name: None for name in os.environ if name.startswith("AWS_")}
        self.place = Place(url=said["environment"]["VMSNIX_SANDBOX"], changes=taken | said["environment"])

    def stop(self) -> None:
        """End it; what was made in it stays for the next time."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


_HOSTS: list[SandboxHost] = []


def sandbox_host() -> SandboxHost:
    """Return the sandbox of this process; one for all its consoles, because its folder is for one alone.

    Raises
    ------
    RunError
        When it cannot serve.
    """
    alive = [host for host in _HOSTS if host.process.poll() is None]
    if not alive:
        alive = [SandboxHost()]
        atexit.register(alive[0].stop)
    _HOSTS[:] = alive
    return alive[0]


def _changed_session(environment: Mapping[str, str]) -> boto3.Session:
    """Return a session that follows the given variables; botocore itself looks at this process's."""
    import boto3

    endpoint = environment.get("AWS_ENDPOINT_URL")

    class Session(boto3.Session):
        def client(self, *arguments: Any, **options: Any) -> Any:
            return super().client(*arguments, **{"endpoint_url": endpoint, **options})

    session: boto3.Session = Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
        region_name=environment.get("AWS_REGION"),
    )
    return session
