"""A target of a fleet: one run of one runbook, with its account and its environment. Workers receive it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
JOB_FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True, slots=True)
class Account:
    """An AWS account, and how its runs get there.

    Attributes
    ----------
    name
        In the plan file.
    id
        Twelve digits; its runs refuse to work in any other. Empty: whatever the credentials say.
    role
        ARN of a role that each run takes for itself.
    profile
        Profile of the workers' own AWS configuration.
    """

    name: str = ""
    id: str = ""
    role: str = ""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One run of one runbook.

    Attributes
    ----------
    name
        Entry and what tells it from the entry's other targets: ``publish/ecs-node/eu-central-1``.
    entry
        Name of its entry.
    runbook
        Name of the runbook.
    axes
        Its values of what the entry lists.
    given
        The parameters that the plan gives, as the runbook declares them.
    key
        Of its content; the ledger knows it by this.
    account
        Where it works.
    environment
        Variables of its own; never credentials.
    resources
        What a worker must offer.
    retries
        How often it is tried again.
    retry_wait
        Seconds before the first retry; twice as many before each next.
    after
        Names of the targets that must be done first.
    effects
        What it may do: ``read_only`` (also a dry run), ``creates`` or ``destroys``.
    """

    name: str
    entry: str
    runbook: str
    axes: Mapping[str, object]
    given: Mapping[str, object]
    key: str
    account: Account = field(default_factory=Account)
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    retry_wait: float = 5.0
    after: tuple[str, ...] = ()
    effects: str = "read_only"

    @property
    def region(self) -> str:
        """Its region, where the entry lists regions."""
        return str(self.axes.get("region", ""))

    def described(self) -> str:
        """Return in one line what it is: runbook, parameters, what it waits for, what it needs."""
        parts = [
            f"{self.runbook} {' '.join(f'{name}={value}' for name, value in self.given.items())}".strip()
        ]
        if self.after:
            parts.append(f"after {', '.join(self.after)}")
        if self.resources:
            parts.append(f"needs {', '.join(f'{name}={count:g}' for name, count in self.resources.items())}")
        if self.effects == "destroys":
            parts.append("destroys")
        if self.retries:
            parts.append(counted(self.retries, "retry", "retries"))
        return "; ".join(parts)


def environment_of(target: Target, common: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables of a target's run on top of the worker's; ``None`` takes one away.

    The worker assumes the role of the account again for each try, with its own credentials; what AWS gives
    is passed to the kernel's environment and nowhere else. The files of a CI job are written by the fleet,
    not by its runs.
    """
    made: dict[str, str | None] = {**dict.fromkeys(JOB_FILES), **common, **target.environment}
    account = target.account
    if account.profile:
        # Keys in the environment would win over the profile.
        made |= {**dict.fromkeys(CREDENTIALS), "AWS_PROFILE": account.profile}
    if account.role:
        made |= {**_assumed(account, target.region), "AWS_PROFILE": None}
    return made


def _assumed(account: Account, region: str) -> dict[str, str]:
    """Return the variables of temporary credentials of an account's role."""
    from vmsnix_ops.aws.accounts import assume
    from vmsnix_ops.aws.session import session
    from vmsnix_ops.credentials import session_keys

    taken = assume(session(region or None), account.role, region=region or "us-east-1")
    return dict(zip(CREDENTIALS, session_keys(taken) or (), strict=True))


def nix_config(settings: Mapping[str, str]) -> str:
    """Return settings as the lines of ``NIX_CONFIG``, which Nix reads after its files."""
    return "\n".join(f"{name} = {value}" for name, value in settings.items())
