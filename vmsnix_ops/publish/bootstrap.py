"""Create what an account needs before its first publish: a bucket, a service role, a policy.

>>> from vmsnix_ops import bootstrap
>>> plan = bootstrap.plan(region="eu-central-1", bucket="acme-images", dry_run=False)  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.aws import bootstrap, buckets, keys
from vmsnix_ops.aws.checks import raise_for_failure
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.display import Displayed, DisplayTable, make_table
from vmsnix_ops.publish.preflight import checks_in_aws
from vmsnix_ops.records.fingerprints import FingerprintedPlan, check_plan, record_plan
from vmsnix_ops.records.result import Result
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    import pandas as pd

__all__ = ["BootstrapPlan", "BootstrapResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


_SHOWN = {"create": "will be created", "change": "will be corrected", "keep": "exists"}


class _Parts(Displayed):
    __slots__ = ()
    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]

    @property
    def todo(self) -> tuple[bootstrap.BootstrapPart, ...]:
        """The parts that are missing or wrong."""
        return tuple(part for part in self.parts if part.action != "keep")

    def frame(self) -> pd.DataFrame:
        """Return the parts as a table: ``part``, ``action``, ``what``."""
        import pandas as pd

        rows = [(part.name, part.action, part.what) for part in self.parts]
        return pd.DataFrame(rows, columns=["part", "action", "what"])

    @property
    def title(self) -> str:
        """One line."""
        return f"Bootstrap {self.place.account} in {self.place.regions[0]}"

    def table(self) -> DisplayTable:
        """Return one row for each part."""
        rows = [(part.name, _SHOWN[part.action], part.what) for part in self.parts]
        return make_table(("part", "plan", "what"), rows)


@dataclass(frozen=True, slots=True)
class BootstrapPlan(_Parts, FingerprintedPlan):
    """The plan of a bootstrap."""

    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]  # all parts, with the planned change
    dry_run: bool  # whether `apply` changes nothing
    expect_plan: str  # fingerprint of the plan that `apply` may carry out; empty for any
    session: boto3.Session = field(repr=False, compare=False)

    def notes(self) -> list[str]:
        """Return a note about a dry run."""
        return ["Dry run: nothing will be changed.", self.how_to_apply] if self.dry_run and self.todo else []

    def content(self) -> dict[str, str]:
        """Return the facts of the plan by their names."""
        place = self.place
        facts = {"account": place.account, "region": place.regions[0], "KMS key": place.kms_key}
        return facts | {part.name: f"{part.action}, {part.what}" for part in self.parts}

    def is_done(self, name: str, before: Mapping[str, str]) -> bool:  # noqa: ARG002 - as in the base class
        """Return whether a fact is about a part for which nothing will be done."""
        return any(part.name == name and part.action == "keep" for part in self.parts)

    def apply(self) -> BootstrapResult:
        """Create missing parts, correct wrong ones, and return the new state. A dry run changes nothing.

        Safe to run twice: parts that exist are kept.

        Raises
        ------
        vmsnix_ops.errors.StalePlanError
            It is not the expected plan; nothing was done.
        """
        facts, tables = self.content(), open_tables(load())
        check_plan(facts, self.expect_plan, tables, is_done=self.is_done)
        if self.expect_plan != self.fingerprint:
            record_plan(facts, tables, runbook="bootstrap")
        if self.dry_run:
            return BootstrapResult(self, self.place, self.parts)
        for part in self.todo:
            bootstrap.apply_part(self.session, self.place, part)
        return BootstrapResult(self, self.place, tuple(bootstrap.plan_parts(self.session, self.place)))

    def cloudformation(self) -> str:
        """Return a CloudFormation template of all parts, in JSON."""
        return json.dumps(bootstrap.cloudformation_template(self.place), indent=2)

    @check_arguments
    def template(self, place: str) -> str:
        """Return the CloudFormation template, or write it to a file and return the command to deploy it.

        Parameters
        ----------
        place
            A file, ``"-"`` for the template itself, or empty for neither.

        Raises
        ------
        vmsnix_ops.errors.ParameterError
            The file cannot be written.
        """
        if not place:
            return "Not written: set cloudformation to a file, or to - to print it."
        if place == "-":
            return self.cloudformation()
        try:
            Path(place).write_text(self.cloudformation() + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.ParameterError(
                f"Could not write the template to {place}.",
                why=f"{error.strerror}.",
                fix="Use a file in an existing folder that you may write to.",
            ) from error
        return (
            "Template written. To deploy it: aws cloudformation deploy --stack-name vmsnix --template-file "
            f"{shlex.quote(place)} --capabilities CAPABILITY_NAMED_IAM --region {self.place.regions[0]}"
        )


@dataclass(frozen=True, slots=True)
class BootstrapResult(_Parts, Result):
    """The state of an account after a bootstrap; `place` and `parts` as in the plan."""

    runbook = "bootstrap"
    plan: BootstrapPlan
    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]

    @property
    def title(self) -> str:
        """One line."""
        title = f"Bootstrap {self.place.account} in {self.place.regions[0]}"
        return f"{title} (dry run)" if self.plan.dry_run else title

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it: the planned parts, and the remaining ones."""
        return {
            "status": "done",
            "dry_run": self.plan.dry_run,
            "plan_fingerprint": self.plan.fingerprint if self.plan.todo else None,
            "region": self.place.regions[0],
            "account": self.place.account,
            "todo": [part.name for part in self.plan.todo],
            "left": [part.name for part in self.todo],
        }


@check_arguments
def plan(
    *,
    region: str = "",
    bucket: str = "",
    role_name: str = "",
    dry_run: bool = True,
    expect_plan: str = "",
    session: boto3.Session | None = None,
) -> BootstrapPlan:
    """Read the parts of an account, and return the plan of a bootstrap. Nothing is changed.

    Parameters
    ----------
    region, bucket, role_name
        As for `vmsnix_ops.publish.plan`; by default those of the settings.
    dry_run
        Change nothing.
    expect_plan
        Fingerprint of the dry run that was checked: `apply` refuses another plan.
    session
        Session of the account.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        Region or bucket is missing or invalid.
    vmsnix_ops.errors.AwsError
        Credentials, account or region are unusable, or the bucket belongs to another account.
    """
    settings, session = load(), session or default_session()
    region = region or settings.region or session.region_name or ""
    bucket = bucket or settings.bucket or ""
    for name, value in (("region", region), ("bucket", bucket)):
        if not value or value == "*":
            raise errors.ParameterError(
                f"No {name} given.",
                fix=f"Add --{name.replace('_', '-')}, or set {name} in vmsnix.toml or VMSNIX_{name.upper()}.",
            )
    checks = checks_in_aws(session, region=region, allowed_accounts=settings.allowed_accounts)
    raise_for_failure(checks)
    who = next(check.facts["identity"] for check in checks if "identity" in check.facts)
    place = policies.PolicyScope(
        account=who.account,
        regions=(region,),
        bucket=bucket,
        key_prefix=settings.key_prefix,
        role_name=role_name or settings.role_name,
        kms_key=keys.key_arn(settings.kms_key, region=region, who=who),
        partition=who.partition,
    )
    # The lifecycle rule of a bootstrap would delete their objects.
    kept = {"archive": settings.archive, "history": settings.history}
    buckets.check_prefixes(kept, bucket, settings.key_prefix)
    return BootstrapPlan(place, tuple(bootstrap.plan_parts(session, place)), dry_run, expect_plan, session)
