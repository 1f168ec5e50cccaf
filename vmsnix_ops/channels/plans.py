"""The base of the plans and results of promotions and rollbacks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors
from vmsnix_ops.arguments import check_form
from vmsnix_ops.aws import channels, parameters, topics
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import raise_for_failure, run_check
from vmsnix_ops.channels import records
from vmsnix_ops.channels.history import show
from vmsnix_ops.publish.outcomes import ANNOUNCE, CONFLICT, Outcomes, RegionStep, record_region
from vmsnix_ops.records.fingerprints import FingerprintedPlan, check_plan, record_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.checks import CheckResult
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.channels.history import How, Note
    from vmsnix_ops.progress import Progress
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.run_tables import RunTables

SET_CHANNEL = "set channel"
"""Name of the step that sets a channel."""
CHANGED = "a channel was changed between plan and write; the remaining steps were skipped"
"""Why steps are skipped after a conflict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPlan(FingerprintedPlan):
    """The base of the plans."""

    account: str  # AWS account ID
    # The image, and the channel to set; empty for none.
    image: str
    channel: str
    parameter: str  # name of the channel's parameter in Parameter Store; empty without a channel
    topic: str  # ARN of the SNS topic to notify; empty for none
    checks: tuple[CheckResult, ...]  # results of the checks of credentials, account, region and topic
    dry_run: bool  # whether `apply` changes nothing
    expect_plan: str  # fingerprint of the plan that `apply` may carry out; empty for any
    session: boto3.Session = field(repr=False, compare=False)
    run: RunContext = field(repr=False, compare=False)
    tables: RunTables = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    started_at: datetime = field(default_factory=partial(datetime.now, UTC), repr=False, compare=False)

    @property
    def ami(self) -> Ami | None:
        """The AMI that the channel will contain; of one of the regions."""
        raise NotImplementedError

    @property
    def home_region(self) -> str:
        """The region that was given, or the default region."""
        raise NotImplementedError

    def history(self) -> pd.DataFrame:
        """Return the values of the channel in each region, newest first; columns as in `history.COLUMNS`."""
        raise NotImplementedError

    def show_history(self) -> display.DisplayTable:
        """Return `history` as a table for display."""
        return show(self.history())

    def last_notes(self) -> list[str]:
        """Return the warnings of the checks, and a note about a dry run."""
        found = [
            f"{check.name}: {check.found} {check.fix}" for check in self.checks if check.outcome == "warn"
        ]
        return [*found, *(["Dry run: nothing will be changed.", self.how_to_apply] if self.dry_run else [])]

    def common_content(self) -> dict[str, str]:
        """Return the facts that promotions and rollbacks have."""
        return {name: getattr(self, name) for name in ("account", "image", "channel", "parameter", "topic")}

    def check_expected(self) -> None:
        """Check that this is the expected plan, and record it; another one is a StalePlanError."""
        facts = self.content()
        check_plan(facts, self.expect_plan, self.tables, is_done=self.is_done)
        if self.expect_plan != self.fingerprint:
            record_plan(facts, self.tables, runbook=self.run.runbook, run_id=self.run.run_id)

    def promotion_row(self, how: How, ami: Ami, previous_ami_id: str) -> dict[str, Any]:
        """Return a row of the table ``promotions``."""
        return {
            "run_id": self.run.run_id,
            "promoted_at": datetime.now(UTC),
            "how": how,
            "ami_id": ami.ami_id,
            "region": ami.region,
            "account": self.account,
            "name": ami.name,
            "image": self.image,
            "version": ami.tags.get(tagging.VERSION),
            "digest": ami.digest,
            "channel": self.channel or None,
            "channel_parameter": self.parameter or None,
            "previous_ami_id": previous_ami_id or None,
        }

    def record_steps(self, rows: list[RegionStep], detail: dict[str, Any] | None = None) -> None:
        """Record steps in the table ``steps``."""
        digest = self.ami.digest if self.ami else ""
        where = {"image": self.image, "account": self.account}
        records.write_steps(self.tables, self.run, rows, **where, digest=digest, detail=detail)

    def planned_announcement(self) -> list[RegionStep]:
        """Return the row of a dry run for the topic."""
        return [replace(self._announcement(), outcome="planned")] if self.topic else []

    def announce(self, amis: Mapping[str, str], *, refused: str = "") -> list[RegionStep]:
        """Notify the topic of the AMIs by region, unless the last message about the channel was the same.

        `refused` is the reason why no message may be sent; empty if there is none.
        """
        if not self.topic:
            return []
        row, started = self._announcement(), time.monotonic()
        if refused or not amis:
            return [replace(row, why=refused or "there is nothing to report")]
        name = self.ami.name if self.ami else ""
        content = {
            "image": self.image,
            "channel": self.channel,
            "name": name,
            "digest": self.ami.digest if self.ami else "",
            "account": self.account,
            "amis": dict(sorted(amis.items())),
        }
        message = json.dumps(content, sort_keys=True)
        try:
            if records.last_message(self.tables, self.topic, self.image, self.channel) == message:
                return [replace(row, outcome="unchanged")]
            subject = f"{self.image} {self.channel or 'AMI'}: {name}"
            sent = topics.publish_message(
                self.topic, subject, message, group=self.image, session=self.session
            )
        except errors.VmsnixError as error:
            return [replace(row, outcome="failed", why=str(error), error=error)]
        row = replace(row, outcome="created", seconds=round(time.monotonic() - started, 3))
        detail = {"topic": self.topic, "channel": self.channel, "message": message, "message_id": sent}
        return record_region([row], row.region, lambda: self.record_steps([row], detail))

    def _announcement(self) -> RegionStep:
        return RegionStep(self.topic.split(":")[3], ANNOUNCE, "skipped", f"to {self.topic}")


@dataclass(frozen=True, slots=True)
class ChannelResult(Outcomes):
    """The base of the results: the outcome of each step in each region."""

    plan: ChannelPlan

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        plan = self.plan
        ami = plan.ami
        return {
            "status": self.status,
            "dry_run": plan.dry_run,
            "plan_fingerprint": plan.fingerprint,
            "ami_id": ami.ami_id if ami else None,
            "image_name": ami.name if ami else None,
            "region": plan.home_region,
            "account": plan.account,
            "image": plan.image,
            "digest": ami.digest if ami else None,
            "channel": plan.channel or None,
            "channel_parameter": plan.parameter or None,
            "amis": {row.region: row.ami_id for row in self.rows if row.ami_id},
            "outcomes": [self.plain(row) for row in self.rows],
            "overwritten": [error.overwritten for error in self.conflicts],
            "seconds": round(sum(row.seconds for row in self.rows), 3),
        }


def check_topic(topic: str) -> None:
    """Refuse a text that is not an SNS topic ARN."""
    if topic:
        check_form("topic", topic, f"topic: {topic!r}")


def check_topic_exists(topic: str, session: boto3.Session) -> list[CheckResult]:
    """Check before any change that the topic exists; return no check without a topic."""
    checks = [run_check("topic", topics.check_topic_exists, topic, session=session)] if topic else []
    raise_for_failure(checks)
    return checks


def conflict(region: str, overwritten: parameters.OverwrittenValue, ami_id: str = "") -> RegionStep:
    """Return the row for a value of another writer that this run has overwritten.

    It fails the run also where the region is best effort.
    """
    error = overwritten.error()
    return RegionStep(region, CONFLICT, "failed", why=str(error), ami_id=ami_id, error=error)


def check_after_write(
    ec2: EC2Client,
    ssm: SSMClient,
    name: str,
    *,
    ami_id: str,
    owner: str,
    written: parameters.ChannelWrite,
    expected: parameters.ExpectedValue,
    note: Note,
) -> None:
    """Check that the AMI can still be used after its channel was set; otherwise, restore the channel.

    A retirement of the AMI may have started while the channel was set. The channel is restored only if this
    run set it and it was not changed since. The RegistrationError is an UnrecordedActError if a channel that
    this run created could not be deleted.
    """
    try:
        channels.check_repeatedly(ec2, ami_id, owner=owner)
    except errors.VmsnixError as error:
        region, fix = ec2.meta.region_name, error.fix
        kind: type[errors.VmsnixError] = errors.RegistrationError
        result = f"{name} in {region} still contains it."
        if written.overwritten is not None:
            pass  # a conflict: nothing more is changed
        elif written.outcome == "reused":
            result = f"{name} in {region} contained it before."
        else:
            description = replace(note, how="restore", before="").text()
            try:
                result = parameters.restore_channel(ssm, name, written, expected, description=description)
            except errors.VmsnixError as second:
                result = f"{result} {second.what} {second.why}"
                if isinstance(second, errors.UnrecordedActError):
                    kind = errors.UnrecordedActError  # which ends a promotion in every region
                    fix = (
                        f"{fix} Delete the channel: aws ssm delete-parameter --region {region} --name {name}"
                    )
        raise kind(error.what, why=f"{error.why} {result}".strip(), fix=fix) from error
