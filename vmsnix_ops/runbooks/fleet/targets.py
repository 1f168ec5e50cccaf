"""A target of a fleet: one run of one runbook, with its account and its environment. Workers receive it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.fleet.ledger import Document

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
JOB_FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True, slots=True)
class Account:
    """An AWS account of a plan file; `plan_file.AccountTable` explains the fields."""

    name: str = ""
    id: str = ""
    role: str = ""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One run of one runbook."""

    name: str  # of its entry, and the values that distinguish it: publish/ecs-node/eu-central-1
    runbook: str
    axes: Mapping[str, object]  # its values of what the entry lists
    given: Mapping[str, object]  # the parameters, as the runbook declares them
    key: str  # hash of the content: runbook, parameters, environment, account
    account: Account = field(default_factory=Account)
    environment: Mapping[str, str] = field(default_factory=dict)  # never credentials
    resources: Mapping[str, float] = field(default_factory=dict)  # what a worker must offer
    retries: int = 0
    retry_wait: float = 5.0  # seconds before the first retry; doubled each time
    effects: str = "read_only"  # what the run may do: read_only (also in a dry run), creates or destroys
    after: tuple[str, ...] = ()  # names of the targets that must be done first
    fingerprint: str = ""  # hash of the plan's name, the key, and the fingerprints of the targets in `after`

    @property
    def claim(self) -> str:
        """Name of its document in the ledger; the same for equal targets of two plans."""
        return f"targets/{self.key}.json"

    def is_done(self, document: Document) -> bool:
        """Return whether the document says that the target is done."""
        return (document["state"], document["fingerprint"]) == ("done", self.fingerprint)

    def document(self, state: str, error: str | None = None) -> Document:
        """Return a document of the target without attempts."""
        return {
            "target": self.name,
            "runbook": self.runbook,
            "fingerprint": self.fingerprint,
            "state": state,
            "session": "",
            "attempts": [],
            "error": error,
            "result": {},
        }

    def described(self) -> dict[str, Any]:
        """Return what it is, for tables: ``parameters``, ``after``, ``needs``, ``retries``."""
        return {
            "parameters": ", ".join(f"{name}={value}" for name, value in self.given.items()),
            "after": ", ".join(self.after),
            "needs": ", ".join(f"{name}={count:g}" for name, count in self.resources.items()),
            "retries": self.retries,
        }

    def __str__(self) -> str:
        given = " ".join(f"{name}={value}" for name, value in self.given.items())
        parts = [f"{self.runbook} {given}".strip()]
        parts += [f"{word} {found}" for word in ("after", "needs") if (found := self.described()[word])]
        parts += ["destroys"] if self.effects == "destroys" else []
        parts += [counted(self.retries, "retry", "retries")] if self.retries else []
        return "; ".join(parts)


def environment_of(target: Target, common: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables of a target's run on top of the worker's; ``None`` removes one.

    The worker assumes the role of the account again for each try, with its own credentials. The temporary
    keys are only in the environment of the run. The fleet writes the files of a CI job, not its runs.
    """
    made: dict[str, str | None] = {**dict.fromkeys(JOB_FILES), **common, **target.environment}
    account = target.account
    if account.profile:
        # Keys in the environment would be used instead of the profile.
        made |= {**dict.fromkeys(CREDENTIALS), "AWS_PROFILE": account.profile}
    if account.role:
        from vmsnix_ops.aws.accounts import assume_role
        from vmsnix_ops.aws.session import session
        from vmsnix_ops.credentials import session_keys

        region = str(target.axes.get("region", ""))
        assumed = assume_role(session(region or None), account.role, region=region or "us-east-1")
        made |= {**dict(zip(CREDENTIALS, session_keys(assumed) or (), strict=True)), "AWS_PROFILE": None}
    return made


def nix_config(settings: Mapping[str, str]) -> str:
    """Return settings as the lines of ``NIX_CONFIG``, which Nix reads after its files."""
    return "\n".join(f"{name} = {value}" for name, value in settings.items())
