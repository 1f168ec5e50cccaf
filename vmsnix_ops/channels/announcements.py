"""Telling an SNS topic where a channel points, once for each time that it is pointed somewhere."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import topics
from vmsnix_ops.channels import promote_records
from vmsnix_ops.publish.outcomes import ANNOUNCE, StepOutcome, recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3

    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.run_tables import RunTables


def announce(
    topic: str,
    content: Mapping[str, Any],
    *,
    run: RunContext,
    tables: RunTables,
    session: boto3.Session,
) -> list[StepOutcome]:
    """Send a message unless it is the last that this topic was told of the channel; say what became of it.

    Parameters
    ----------
    topic
        ARN of the topic.
    content
        What it is told, as JSON: ``image``, ``channel``, ``name``, ``digest``, ``account``, and ``amis`` by
        region.
    run, tables, session
        Who tells it, and where that is written down.
    """
    where, started = topic.split(":")[3], time.monotonic()
    row = StepOutcome(where, ANNOUNCE, "skipped", f"to {topic}")
    if not content["amis"]:
        return [replace(row, why="there is nothing to tell")]
    message = json.dumps(content, sort_keys=True)
    image, channel = str(content["image"]), str(content["channel"])
    try:
        if _last(tables, topic, image, channel) == message:
            return [replace(row, outcome="already so")]
        subject = f"{image} {channel or 'AMI'}: {content['name']}"
        told = topics.announce(topic, subject, message, group=image, session=session)
    except errors.VmsnixError as error:
        return [replace(row, outcome="failed", why=str(error), error=error)]
    row = replace(row, outcome="done", seconds=round(time.monotonic() - started, 3))
    detail = {"topic": topic, "channel": channel, "message": message, "message_id": told}

    def record() -> None:
        digest = str(content["digest"])
        promote_records.write_rows(tables, run, [row], image=image, digest=digest, detail=detail)

    return recorded([row], where, record)


def planned(topic: str) -> list[StepOutcome]:
    """Return what a dry run would tell, when there is a topic."""
    return [StepOutcome(topic.split(":")[3], ANNOUNCE, "planned", f"to {topic}")] if topic else []


def _last(tables: RunTables, topic: str, image: str, channel: str) -> str:
    """Return what a topic was told last of a channel: a channel may point to the same AMI a second time."""
    where = [("step", "==", ANNOUNCE), ("image", "==", image), ("status", "==", "finished")]
    frame = tables.read_or_empty("steps", columns=["detail", "finished_at"], where=where).sort_values(
        "finished_at"
    )
    told = [json.loads(detail) for detail in frame["detail"]]
    ours = [one for one in told if (one.get("topic"), one.get("channel")) == (topic, channel)]
    return str(ours[-1]["message"]) if ours else ""
