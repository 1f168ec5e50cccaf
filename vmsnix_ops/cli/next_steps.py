"""What to do after a run: one command, made from its ``result.json``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.catalog import Runbook

USAGE = 2  # exit code


def next_command(runbook: Runbook, values: Mapping[str, Any], *, sandbox: bool) -> str:
    """Return the command that usually follows a run; empty if there is none.

    Parameters
    ----------
    runbook
        The runbook of the run.
    values
        The run's ``result.json``.
    sandbox
        Whether the run was started with ``--sandbox``; then the command has it too.
    """
    words = _words(runbook, values)
    if not words:
        return ""
    return shlex.join(["vmsnix", *words, *(["--sandbox"] if sandbox else [])])


def _words(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    if values.get("failure"):
        return _after_failure(runbook, values)
    if values.get("status") != "done":
        return ["runs", "repair", str(values["run_id"])]
    if values.get("dry_run"):
        return _applied(runbook, values)
    parameters = values.get("parameters") or {}
    region = _option("region", values.get("region") or parameters.get("region"))
    image = _option("image", values.get("image") or parameters.get("image"))
    ami = _option("ami", values.get("ami_id"))
    channels = _option("channel", _first_channel())
    following: dict[str, list[str]] = {
        "preflight": ["publish", *region, *_option("image", parameters.get("image"))],
        "bootstrap": ["preflight", *region, *_option("bucket", parameters.get("bucket"))],
        "build-image": ["boot-image", *_option("image", parameters.get("image"))],
        "boot-image": ["publish", *_option("image", parameters.get("image"))],
        "publish-ami": ["smoke-test", *ami, *region] if ami else [],
        "smoke-test": ["promote", *ami, *region, *channels] if ami else [],
        "promote-ami": ["verify", *image],
        "rollback": ["verify", *image],
        "audit-inventory": [
            "retire",
            "--dry-run",
            *_option("regions", ",".join(parameters.get("regions") or [])),
        ],
        "retire-amis": ["audit", *_option("regions", ",".join(parameters.get("regions") or []))],
    }
    return following.get(runbook.name, [])


def _after_failure(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    """Resume a run that changes something, and repeat one that only reads; a wrong call is not repeated."""
    if values.get("exit_code") == USAGE:
        return ["help", runbook.short_name]
    reads = runbook.side_effects == "read_only" or values.get("dry_run")
    return [*(["rerun"] if reads else ["runs", "resume"]), str(values["run_id"])]


def _applied(runbook: Runbook, values: Mapping[str, Any]) -> list[str]:
    """Return the same call without the dry run, for the same plan; nothing if the plan changes nothing."""
    from vmsnix_ops.runbooks.parameters import command_words

    declared = {parameter.name: parameter.default for parameter in runbook.parameters}
    fingerprint = values.get("plan_fingerprint")
    if "expect_plan" in declared and not fingerprint:
        return []
    given = {
        name: value
        for name, value in (values.get("parameters") or {}).items()
        if name in declared and value != declared[name] and name != "dry_run"
    }
    given |= {name: fingerprint for name in ("expect_plan", "confirm") if name in declared and fingerprint}
    words = [runbook.short_name, *command_words({**given, "dry_run": False})]
    return [*words, "--yes"] if runbook.side_effects == "deletes" else words


def _option(name: str, value: object) -> list[str]:
    return [f"--{name}", str(value)] if value else []


def _first_channel() -> str:
    from vmsnix_ops.errors import SettingsError
    from vmsnix_ops.settings import load

    try:
        return load().channels[0]
    except SettingsError:
        return ""
