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
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import bootstrap, buckets, keys
from vmsnix_ops.aws.checks import raise_for_failure
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.display import Displayed, DisplayTable, make_table
from vmsnix_ops.publish.preflight import checks_in_aws
from vmsnix_ops.records.result import Result
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    import boto3
    import pandas as pd

__all__ = ["BootstrapPlan", "BootstrapResult", "plan"]


def __dir__() -> list[str]:
    return __all__


_SHOWN = {"create": "will be created", "change": "will be corrected", "keep": "exists"}


class _Parts(Displayed):
    """Shows the parts of an account, and what there is to do about each."""

    __slots__ = ()
    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]

    @property
    def todo(self) -> tuple[bootstrap.BootstrapPart, ...]:
        """The parts that are missing or wrong."""
        return tuple(part for part in self.parts if part.verdict != "keep")

    def frame(self) -> pd.DataFrame:
        """Return the parts as a table: ``part``, ``verdict``, ``what``."""
        import pandas as pd

        rows = [(part.name, part.verdict, part.what) for part in self.parts]
        return pd.DataFrame(rows, columns=["part", "verdict", "what"])

    @property
    def title(self) -> str:
        """One line."""
        return f"Bootstrap {self.place.account} in {self.place.regions[0]}"

    def table(self) -> DisplayTable:
        """Return the parts for people."""
        rows = [(part.name, _SHOWN[part.verdict], part.what) for part in self.parts]
        return make_table(("part", "plan", "what"), rows)


@dataclass(frozen=True, slots=True)
class BootstrapPlan(_Parts):
    """What a bootstrap will create and change. Nothing has been changed.

    Attributes
    ----------
    place
        Account, region, bucket, role.
    parts
        Every part and what there is to do about it.
    dry_run
        `apply` changes nothing.
    """

    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]
    dry_run: bool
    session: boto3.Session = field(repr=False, compare=False)

    def notes(self) -> list[str]:
        """Return that it is a dry run."""
        return ["Dry run: nothing will be changed."] if self.dry_run and self.todo else []

    def apply(self) -> BootstrapResult:
        """Create what is missing, change what is wrong, and return what exists then. A dry run does nothing.

        Safe to run twice: the second time, everything is there.
        """
        if self.dry_run:
            return BootstrapResult(self, self.place, self.parts)
        for part in self.todo:
            bootstrap.apply_part(self.session, self.place, part)
        return BootstrapResult(self, self.place, tuple(bootstrap.plan_parts(self.session, self.place)))

    def cloudformation(self) -> str:
        """Return the same as a CloudFormation template, in JSON."""
        return json.dumps(bootstrap.cloudformation_template(self.place), indent=2)

    @check_arguments
    def template(self, place: str) -> str:
        """Show the same as a CloudFormation template, or write it into a file, when that is asked for.

        Parameters
        ----------
        place
            A file; ``"-"`` shows the template; empty does neither.

        Returns
        -------
        str
            The template, or what became of it.

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
    """What the account has after a bootstrap.

    Attributes
    ----------
    plan
        What there was to do.
    place, parts
        As in the plan.
    """

    runbook = "bootstrap"
    plan: BootstrapPlan
    place: policies.PolicyScope
    parts: tuple[bootstrap.BootstrapPart, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it: what there was to do, and what is left."""
        return {
            "status": "done",
            "dry_run": self.plan.dry_run,
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
    session: boto3.Session | None = None,
) -> BootstrapPlan:
    """Read what the account has, and return what a bootstrap will create and change. Nothing is changed.

    Parameters
    ----------
    region, bucket, role_name
        As for `vmsnix_ops.publish.plan`; empty takes the settings'.
    dry_run
        Change nothing.
    session
        Whose account it is.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        Region or bucket is not known, or cannot be right.
    vmsnix_ops.errors.AwsError
        Credentials, account or region would not do, or the bucket's name is taken by others.
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
    # The lifecycle rule that a bootstrap makes would delete them.
    kept = {"archive": settings.archive, "history": settings.history}
    buckets.check_prefixes(kept, bucket, settings.key_prefix)
    return BootstrapPlan(place, tuple(bootstrap.plan_parts(session, place)), dry_run, session)
