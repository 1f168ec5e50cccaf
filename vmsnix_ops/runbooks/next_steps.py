"""Which runbooks usually follow a run, with their parameters, made from its ``result.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class NextStep:
    """A runbook that usually follows, with values for its parameters."""

    runbook: str
    values: Mapping[str, object]

    def __str__(self) -> str:
        """Return the text of a button, such as ``smoke-test ami-0123456789abcdef0``."""
        shown = [str(self.values[name]) for name in ("ami", "image", "channel") if self.values.get(name)]
        dry = ["(dry run)"] if self.values.get("dry_run") else []
        return " ".join([catalog.find(self.runbook).short_name, *shown, *dry])


def next_steps(values: Mapping[str, Any], channels: Sequence[str]) -> list[NextStep]:
    """Return what usually follows a run by its ``result.json``; nothing for a dry run or an unfinished run.

    An AMI is promoted from each of the `channels` to the next one.
    """
    if values.get("failure") or values.get("status") != "done" or values.get("dry_run"):
        return []
    given = values.get("parameters") or {}
    region = {"region": values.get("region") or given.get("region")}
    ami, image = {"ami": values.get("ami_id")} | region, {"image": values.get("image") or given.get("image")}
    built, regions = {"image": given.get("image")}, {"regions": list(given.get("regions") or [])}
    place = channels.index(given["channel"]) + 1 if given.get("channel") in channels else 0
    promote = [("promote-ami", ami | {"channel": name}) for name in channels[place : place + 1] if ami["ami"]]
    smoke_test = [("smoke-test", ami)] if ami["ami"] else []
    following: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "preflight": [("publish-ami", region | built)],
        "bootstrap": [("preflight", region | {"bucket": given.get("bucket")})],
        "build-image": [("boot-image", built)],
        "boot-image": [("publish-ami", built)],
        "publish-ami": [*smoke_test, *promote],
        "smoke-test": promote,
        "promote-ami": [("verify-amis", image), *promote],
        "rollback": [("verify-amis", image)],
        "audit-inventory": [("retire-amis", {"dry_run": True} | regions)],
        "retire-amis": [("audit-inventory", regions)],
    }
    return [
        NextStep(name, {key: value for key, value in wanted.items() if value})
        for name, wanted in following.get(str(values.get("runbook")), [])
        if name in catalog.names()
    ]
