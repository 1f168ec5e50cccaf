"""The backend of the console: AWS, or a sandbox on this machine; and the bar that shows and switches it.

A backend is a set of changes to this process's environment variables. The process of a run, the settings, the
tables and the boto3 session get the changed variables. The variables of this process never change, so that a
request to AWS cannot reach the sandbox, and a request to the sandbox cannot reach AWS.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import endpoints
from vmsnix_ops import settings as settings_module
from vmsnix_ops.errors import RunError, VmsnixError
from vmsnix_ops.runbooks.console.widgets import row, stack, styled
from vmsnix_ops.runbooks.execution import kernels
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import boto3
    from markupsafe import Markup

    from vmsnix_ops.endpoints import EndpointKind
    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings

STOP_SECONDS = 20
AWS, SANDBOX = "AWS", "Sandbox"


@dataclass(frozen=True, slots=True)
class Backend:
    """AWS, or a sandbox."""

    url: str = ""  # of the sandbox; empty for AWS
    # Changes to the environment variables of this process; None removes a variable.
    changes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def sandbox(self) -> bool:
        """Whether this is a sandbox that vmsnix started."""
        return bool(self.url)

    @property
    def kind(self) -> EndpointKind:
        """Where the requests are sent."""
        return "sandbox" if self.url else endpoints.endpoint_kind(self.environment)

    @property
    def endpoint(self) -> str:
        """The address to which the requests are sent; empty for AWS."""
        return self.url or endpoints.endpoint_url(self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables of a process that uses this backend."""
        merged = {**os.environ, **self.changes}
        return {name: value for name, value in merged.items() if value is not None}

    def settings(self) -> Settings:
        """Return the settings for this backend."""
        return settings_module.load(environment=self.environment)

    def tables(self) -> Tables:
        """Return the tables for this backend."""
        from vmsnix_ops.records.tables import Tables

        settings = self.settings()
        return Tables(settings.history, region=settings.region, storage_options=self.environment)

    def session(self) -> boto3.Session:
        """Return a boto3 session whose clients use this backend."""
        from vmsnix_ops.aws import session as sessions

        if not self.changes:
            return sessions.session(self.settings().region)
        return sessions.session_of(self.environment)


@dataclass(frozen=True, slots=True)
class BackendCaller:
    """The identity of a backend's requests; unknown values are empty."""

    account: str = ""
    arn: str = ""
    region: str = ""  # the default region
    problem: str = ""  # why account and ARN are unknown, or why this account may not be changed


def read_caller(backend: Backend) -> BackendCaller:
    """Return the caller identity of a backend (sts:GetCallerIdentity); an error becomes its problem."""
    from vmsnix_ops.aws import identity

    region = ""
    try:
        settings = backend.settings()
        session = backend.session()
        region = settings.region or session.region_name or ""
        known = identity.read_caller(session, region or "us-east-1")
    except VmsnixError as error:
        return BackendCaller(region=region, problem=f"{error}")
    allowed = settings.allowed_accounts
    problem = ""
    if allowed and known.account not in allowed:
        problem = f"Account {known.account} is not allowed (allowed_accounts is {', '.join(allowed)})."
    return BackendCaller(known.account, known.arn, region, problem)


class ConsoleSandbox:
    """A sandbox in a process of its own, which ends with this process."""

    def __init__(self) -> None:
        environment = {**os.environ, **kernels.python_path(os.environ)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vmsnix_ops.cli.sandbox"],
            stdin=subprocess.PIPE,  # the sandbox ends when this is closed, also when this process is killed
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # so that interrupting the notebook's kernel does not end it
        )
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "Its process ended at the start."}
        if "error" in answer:
            self.stop()
            raise RunError(
                "The sandbox could not start.",
                why=str(answer["error"]),
                fix="Stop the process that uses its folder, such as another `vmsnix console --sandbox`, then "
                "try again.",
            )
        removed = {name: None for name in os.environ if name.startswith("AWS_")}
        environment = answer["environment"]
        self.backend = Backend(url=environment["VMSNIX_SANDBOX"], changes=removed | environment)

    def stop(self) -> None:
        """Stop the sandbox. Its resources are kept for the next one."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


_PROCESSES: list[ConsoleSandbox] = []


def sandbox_process() -> ConsoleSandbox:
    """Return the sandbox of this process, or start it. All consoles share it, because it has one folder."""
    running = [sandbox for sandbox in _PROCESSES if sandbox.process.poll() is None]
    if not running:
        running = [ConsoleSandbox()]
        atexit.register(running[0].stop)
    _PROCESSES[:] = running
    return running[0]


_BANNER = """\
<div class="vmsnix-banner {{ kind }}" title="{{ more }}"><b class="vmsnix-where">{{ title }}</b>
<div>
<p>{{ words }}</p>
{% if caller is none %}
<p>Reading the account ...</p>
{% elif caller.account %}
<p>Account <b>{{ caller.account }}</b>, region <b>{{ caller.region or "none set" }}</b></p>
{% else %}
<p>Account unknown</p>
{% endif %}
{% if caller is not none and caller.problem %}
<p class="vmsnix-problem" role="alert">{{ caller.problem }}</p>
{% endif %}
</div></div>
"""
_NOTE = '{% if text %}<p class="vmsnix-quiet">{{ text }}</p>{% endif %}'


def banner(backend: Backend, caller: BackendCaller | None) -> Markup:
    """Return the banner with the backend and its account; `caller` is ``None`` while it is being read."""
    kind, title, words = {
        "sandbox": ("vmsnix-sandbox", "SANDBOX", "A local AWS on this machine. No request reaches AWS."),
        "custom": ("vmsnix-custom", "CUSTOM ENDPOINT", f"Requests are sent to {backend.endpoint}."),
        "aws": ("vmsnix-production", "PRODUCTION AWS", "Runs here change real resources and cost money."),
    }[backend.kind]
    address = "" if backend.kind == "aws" else backend.endpoint
    more = " ".join(filter(None, (caller.arn if caller else "", address)))
    return fill(_BANNER, kind=kind, title=title, words=words, caller=caller, more=more)


class BackendBar:
    """The bar at the top, which shows and switches the backend.

    `changed` is called when the backend changes, and when its caller identity is known.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._initial = self.backend = Backend(url=os.environ.get("VMSNIX_SANDBOX", ""))
        self.caller: BackendCaller | None = None  # while it is being read
        self._banner = ipywidgets.HTML("")
        self.switch = ipywidgets.ToggleButtons(
            options=[AWS, SANDBOX],
            value=SANDBOX if self._initial.sandbox else AWS,
            tooltips=["Use the account of your AWS credentials", "Use a local sandbox on this machine"],
        )
        self.switch.observe(self._on_switch, "value")
        self._note = ipywidgets.HTML("")
        if self._initial.sandbox:
            # `--sandbox` removed the AWS variables, so this process cannot switch to AWS.
            self.switch.layout.display = "none"
            words = fill("Started with <code>--sandbox</code>. To use AWS, start the console without it.")
            self._show_note(words)
        side = stack("vmsnix-bar-side", styled(self.switch, "vmsnix-switch"), self._note)
        self.widget = row("vmsnix-bar-top", self._banner, side)

    def start(self, *, sandbox: bool) -> None:
        """Show the backend; with `sandbox`, switch to a sandbox first."""
        if sandbox and not self.backend.sandbox:
            self.switch.value = SANDBOX
        else:
            self._show_backend()

    def lock(self, *, locked: bool) -> None:
        """Disable the switch while a run uses the backend."""
        self.switch.disabled = locked

    @property
    def words(self) -> str:
        """The backend in words, as the end of "Run ..."."""
        if self.backend.kind == "sandbox":
            return "on the sandbox"
        account = self.caller.account if self.caller else ""
        if self.backend.kind == "custom":
            return f"at the custom endpoint, account {account or 'unknown'}"
        return f"in AWS account {account}" if account else "on AWS, account unknown"

    def _on_switch(self, _change: object) -> None:
        if (self.switch.value == SANDBOX) == self.backend.sandbox:
            return
        if self.switch.value == SANDBOX:
            try:
                self._show_note("The sandbox is starting ...")
                self.backend = sandbox_process().backend
            except VmsnixError as error:
                self.switch.value = AWS
                self._show_note(str(error))
                return
        else:
            self.backend = self._initial
        self._show_note("")
        self._show_backend()

    def _show_backend(self) -> None:
        self.caller = None
        self._banner.value = banner(self.backend, None)
        self._changed()
        backend = self.backend

        def show_caller() -> None:
            caller = read_caller(backend)
            if backend is self.backend:  # the backend can have been switched meanwhile
                self.caller = caller
                self._banner.value = banner(backend, caller)
                self._changed()

        threading.Thread(target=show_caller, name="AWS account", daemon=True).start()

    def _show_note(self, text: str) -> None:
        self._note.value = fill(_NOTE, text=text)
