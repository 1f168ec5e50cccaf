"""What to do after a run: one command, made from its ``result.json``."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.next_steps import next_steps
from vmsnix_ops.runbooks.parameters import command_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.catalog import Runbook

MAY_SUCCEED_LATER = frozenset(
    {
        *("CommitConflictError", "CopyFailedError", "DeadKernelError", "DeadlineError"),
        *("InterruptedRunError", "PartialError", "UnrecordedActError", "UnsavedError", "UploadError"),
    }
)
"""Errors after which the same run may succeed; most others repeat until a person changes something."""
POLICIES = {
    "preflight": "preflight",
    "bootstrap": "bootstrap",
    "publish-ami": "publisher",
    "smoke-test": "smoke-tester",
    "promote-ami": "promoter",
    "rollback": "promoter",
    "verify-amis": "verifier",
    "prove-ami": "prover",
    "audit-inventory": "auditor",
    "retire-amis": "retirer",
}
"""The policy of `vmsnix iam-policy` with the permissions of a runbook."""


def next_command(runbook: Runbook, values: Mapping[str, Any], *, sandbox: bool) -> str:
    """Return the command that usually follows a run; empty if there is none.

    `values` is the run's ``result.json``. With `sandbox` the command has the option ``--sandbox``.
    """
    words = _words(runbook, values)
    if not words:
        return ""
    everywhere = words[0] in ("help", "iam-policy")
    return shlex.join(["vmsnix", *words, *(["--sandbox"] if sandbox and not everywhere else [])])


def with_sandbox(text: str, commands: click.Command) -> str:
    """Return a text in which each command of vmsnix that has the option ``--sandbox`` has it.

    `commands` is the group of all commands.
    """

    def with_option(match: re.Match[str]) -> str:
        words, known, found = match[0].split()[1:], list[str](), commands
        for word in words:
            group = found if isinstance(found, click.Group) else None
            command = group.get_command(click.Context(group), word) if group is not None else None
            if command is None:
                break
            known, found = [*known, word], command
        if not any("--sandbox" in option.opts for option in found.params):
            return match[0]
        return " ".join(["vmsnix", *known, "--sandbox", *words[len(known) :]])

    return re.sub(r"\bvmsnix(?: [a-z][a-z-]*)+(?! *--sandbox)", with_option, text)


def _words(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    if values.get("failure"):
        return _after_failure(runbook, values)
    if values.get("status") != "done":
        return ["runs", "repair", str(values["run_id"])]
    if values.get("dry_run"):
        return _applied(runbook, values)
    steps = next_steps({**values, "runbook": runbook.name}, _channels())
    first = steps[0] if steps else None
    return [catalog.find(first.runbook).short_name, *command_words(first.values)] if first else []


def _after_failure(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    """Return the command that removes the cause of a failure, or that repeats a run which may succeed now.

    Empty if no command can remove it; the error says what to do.
    """
    from vmsnix_ops.aws.error_codes import RETRYABLE

    failure, parameters = values["failure"], values.get("parameters") or {}
    kind, code = failure.get("type"), (failure.get("detail") or {}).get("code", "")
    where = [
        *_option("region", values.get("region") or parameters.get("region")),
        *_option("bucket", parameters.get("bucket")),
    ]
    if kind in ("BucketError", "RoleError") and runbook.name != "bootstrap":
        return ["bootstrap", *where]
    if kind in ("CredentialsError", "QuotaError", "RegionError") and runbook.name != "preflight":
        return ["preflight", *where]
    if kind == "AccessDeniedError" and runbook.name in POLICIES:
        direct = ["--via", "direct"] if parameters.get("via") == "direct" else []
        return ["iam-policy", POLICIES[runbook.name], *(direct if runbook.name == "publish-ami" else [])]
    if kind == "StalePlanError":
        return _command(runbook, values, {"dry_run": True})
    if kind in ("ParameterError", "UsageError"):
        return ["help", runbook.short_name]
    dry_run = bool(values.get("dry_run"))
    later = kind in MAY_SUCCEED_LATER and not (kind == "PartialError" and dry_run)
    if not later and not (kind == "AwsError" and code in {"", *RETRYABLE}):
        return []
    reads = runbook.side_effects == "read_only" or dry_run
    return [*(["rerun"] if reads else ["runs", "resume"]), str(values["run_id"])]


def _applied(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    """Return the same call without the dry run, for the same plan; nothing if the plan changes nothing."""
    declared = {parameter.name for parameter in runbook.parameters}
    fingerprint = values.get("plan_fingerprint")
    if "expect_plan" in declared and not fingerprint:
        return []
    given: dict[str, object] = {
        name: fingerprint for name in ("expect_plan", "confirm") if name in declared and fingerprint
    }
    words = _command(runbook, values, {**given, "dry_run": False})
    return [*words, "--yes"] if runbook.side_effects == "deletes" else words


def _command(runbook: Runbook, values: Mapping[str, Any], changed: Mapping[str, object]) -> list[str]:
    """Return the call of a run with some parameters changed, and without its plan and confirmation."""
    defaults = {parameter.name: parameter.default for parameter in runbook.parameters}
    given = {
        name: value
        for name, value in (values.get("parameters") or {}).items()
        if name in defaults and value != defaults[name] and name not in ("confirm", "dry_run", "expect_plan")
    }
    return [runbook.short_name, *command_words(given | dict(changed))]


def _option(name: str, value: object) -> list[str]:
    return [f"--{name}", str(value)] if value else []


def _channels() -> tuple[str, ...]:
    from vmsnix_ops.errors import SettingsError
    from vmsnix_ops.settings import load

    try:
        return load().channels
    except SettingsError:
        return ()
