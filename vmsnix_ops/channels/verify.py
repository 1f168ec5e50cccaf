"""Compare every published AMI with what was recorded of it, field by field, region by region.

>>> from vmsnix_ops import verify
>>> found = verify.check(regions=["eu-central-1"])  # doctest: +SKIP
>>> found.show_drift()  # doctest: +SKIP

`vmsnix_ops.records.recorded_amis` puts together what was recorded. An AMI that was never promoted is shared
with nobody; any other value that the tables do not have is not compared. Tags that somebody added are no
drift; tags of ours that are missing or changed are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display as shown
from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.aws import drift as fields
from vmsnix_ops.aws import images, snapshots
from vmsnix_ops.aws.drift import Difference
from vmsnix_ops.aws.identity import identity
from vmsnix_ops.aws.regions import ALL, named
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import counted
from vmsnix_ops.records.recorded_amis import recorded
from vmsnix_ops.records.result import Result, saving
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.text import write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.records.run_context import RunContext

__all__ = ["VerificationResult", "check"]


def __dir__() -> list[str]:
    return __all__


REGIONS_AT_ONCE, AMIS_AT_ONCE = 8, 8
COLUMNS = {
    "region": "AWS region",
    "ami_id": "AMI ID; empty for a region that could not be read, and for a channel without a value",
    "name": "recorded AMI name",
    "image": "short name of the image",
    "field": "field that differs",
    "recorded": "recorded value",
    "found": "value in AWS",
    "meaning": "what the difference means",
}
"""Columns of the drift, one row a field that differs."""


@dataclass(frozen=True, slots=True)
class VerificationResult(Result):
    """What differs between AWS and the record.

    Attributes
    ----------
    run
        The run that it was part of.
    fail_on_drift
        Whether what differs is an error.
    drift
        Columns as in `COLUMNS`.
    regions
        One row a region: ``region``, ``amis``, ``drifted``, ``fields``, ``unread``.
    """

    run: RunContext = field(repr=False)
    drift: pd.DataFrame
    regions: pd.DataFrame
    fail_on_drift: bool = True

    def frame(self) -> pd.DataFrame:
        """Return the drift: columns as in `COLUMNS`."""
        return self.drift

    @property
    def title(self) -> str:
        """One line."""
        return "Published AMIs compared with their records"

    def table(self) -> shown.Shown:
        """Return how many AMIs and fields of each region differ, for people."""
        return shown.of_frame(self.regions)

    def show_drift(self) -> shown.Shown:
        """Return the drift for people."""
        names = ("region", "ami_id", "name", "field", "recorded", "found", "meaning")
        rows = [[row[name] for name in names] for row in self.drift.to_dict("records")]
        return shown.shown(names, rows, nothing="No differences.")

    @property
    def unread(self) -> int:
        """How many things could not be looked at."""
        return int((self.drift["field"] == "access").sum())

    @property
    def drifted(self) -> int:
        """How many fields differ."""
        return len(self.drift) - self.unread

    @property
    def error(self) -> errors.VmsnixError | None:
        """What differs, as a `DriftError`; else what could not be read, as a `PartialError`."""
        return _error(self) if self.fail_on_drift else None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        error = self.error
        return {
            "status": "done" if error is None else "partial" if error.exit_code == 3 else "failed",
            "amis": int(self.regions["amis"].sum()),
            "drifted": self.drifted,
            "unread": self.unread,
            "drift": self.drift.to_dict("records"),
            "csv": self.run.folder / "drift.csv",
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "drift.csv"):
            write_csv(self.drift, folder / "drift.csv")


@typed
def check(
    *,
    regions: Iterable[str] = (),
    image: str = "",
    fail_on_drift: bool = True,
    tables: Tables | None = None,
    session: boto3.Session | None = None,
) -> VerificationResult:
    """Compare every recorded AMI with what AWS returns. Nothing is changed.

    A region, or an AMI, that cannot be read is part of the drift (``access``) and does not stop the others.

    Parameters
    ----------
    regions
        Where; by default, and with ``["all"]``, everywhere that the tables know an AMI.
    image
        Only AMIs of this image.
    fail_on_drift
        Whether what differs makes the verification fail.
    tables, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The tables know no AMI there.
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.AwsError
        No region at all says whose credentials these are.
    """
    import pandas as pd

    settings, session = load(), session or default_session()
    tables = tables or open_tables(settings)
    asked = tuple(regions)
    expected = recorded(tables, regions=() if asked == (ALL,) else named(asked), image=image)
    if not expected:
        raise _nothing_known(image, f"Searched {settings.history}.")
    account = _account(session, [settings.region, session.region_name, *(row["region"] for row in expected)])
    expected = [row for row in expected if row.get("account") in (None, account)]
    if not expected:
        raise _nothing_known(image, f"The AMIs in {settings.history} do not belong to the account {account}.")
    chosen = named(row["region"] for row in expected)
    clients = {  # in one thread: sessions are not thread safe, clients are
        name: (client(session, "ec2", name), client(session, "ssm", name)) for name in chosen
    }

    def look(name: str) -> list[tuple[Mapping[str, Any], Difference]]:
        return list(_region(*clients[name], [row for row in expected if row["region"] == name]))

    with ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="verify") as pool:
        found = [pair for pairs in pool.map(look, chosen) for pair in pairs]
    drift = pd.DataFrame([_shown(row, one) for row, one in found], columns=list(COLUMNS)).astype(str)
    rows = [
        {
            "region": name,
            "amis": sum(row["region"] == name for row in expected),
            "drifted": len(
                {row["ami_id"] for row, one in found if row["region"] == name and one.field != "access"}
            ),
            "fields": sum(row["region"] == name and one.field != "access" for row, one in found),
            "unread": sum(row["region"] == name and one.field == "access" for row, one in found),
        }
        for name in chosen
    ]
    return VerificationResult(current_run("verify-amis"), drift, pd.DataFrame(rows), fail_on_drift)


def _account(session: boto3.Session, regions: Iterable[str | None]) -> str:
    """Return whose credentials these are, from the first region that says it: one may refuse to.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        All of them refuse; in the words of the first.
    """
    first: errors.AwsError | None = None
    for region in dict.fromkeys(name for name in regions if name):
        try:
            return identity(session, region).account
        except errors.AwsError as error:
            first = first or error
    if first is None:
        raise RuntimeError("unreachable: every AMI is recorded with its region")  # pragma: no cover
    raise first


def _nothing_known(image: str, why: str) -> errors.ParameterError:
    return errors.ParameterError(
        f"No recorded AMI{f' of {image}' if image else ''} to compare with.",
        why=why,
        fix="Publish or promote one, or import the records from the tags: vmsnix history sync",
    )


def _error(report: VerificationResult) -> errors.VmsnixError | None:
    if report.drifted:
        drift = report.drift[report.drift["field"] != "access"]
        first = drift.iloc[0]
        number = f"{report.drifted} field{'s' if report.drifted > 1 else ''}"
        why = (
            f"For example {first['field']} of {first['ami_id'] or first['name']} in {first['region']}: "
            f"recorded {first['recorded'] or 'nothing'}, found {first['found'] or 'nothing'}."
        )
        return errors.DriftError(
            f"Published AMIs differ from their records in {number}.",
            why=f"{why} {_unread(report)}".strip(),
            fix=_fix(drift),
        )
    if report.unread:
        return errors.PartialError(
            "No differences in what could be read, but the check is incomplete.",
            why=_unread(report),
            fix="Allow the missing actions, then run it again.",
        )
    return None


def _unread(report: VerificationResult) -> str:
    """Return how much could not be looked at, and the first reason."""
    if not report.unread:
        return ""
    first = report.drift[report.drift["field"] == "access"].iloc[0]
    where = f"{first['ami_id']} in {first['region']}" if first["ami_id"] else first["region"]
    return f"{counted(report.unread, 'item')} could not be read, first {where}: {first['found']}"


def _fix(drift: pd.DataFrame) -> str:
    """Return how to put it right, and how the tables learn it where AWS is right."""
    promised = drift["field"].isin(fields.PROMISED)
    pointed, broken = drift["field"] == "pointer", drift["field"].isin(fields.BROKEN)
    fixes = []
    if promised.any():
        fixes.append(
            "To restore the recorded values: vmsnix promote sets sharing, dates and channels "
            "(vmsnix rollback sets channels back)."
        )
    if (promised & ~pointed).any():
        first = drift[promised & ~pointed].iloc[0]
        fixes.append(
            "If AWS is right, record its values with a promotion that changes nothing: vmsnix promote --ami "
            f"{first['ami_id']} --region {first['region']}, with --protect or --unprotect to match the AMI."
        )
    if broken.any():
        fixes.append("Deregister an AMI that cannot be launched, and publish it again.")
    if not promised.all():
        regions = " ".join(f"--region {name}" for name in sorted(set(drift[~promised]["region"])))
        fixes.append(
            "To restore tags, use aws ec2 create-tags. If AWS is right, record its tags and registration: "
            f"vmsnix history sync {regions}"
        )
    return " ".join(fixes)


def _region(
    ec2: EC2Client, ssm: SSMClient, expected: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Difference]]:
    """Yield what differs in one region."""
    try:
        known = images.find(ec2, [row["ami_id"] for row in expected])
        held = snapshots.find(ec2, [one for ami in known.values() for one in ami.snapshot_ids])
    except errors.AwsError as error:
        nobody = {"region": ec2.meta.region_name, "ami_id": "", "name": "", "image": ""}
        yield nobody, Difference("access", "", str(error))
        return

    def look(row: dict[str, Any]) -> list[Difference]:
        ami, found = known.get(row["ami_id"]), []
        comparisons: list[Callable[[], Iterable[Difference]]] = [
            lambda: fields.registration(row, ami, held),
            lambda: fields.promised(ec2, row, ami, held),
            lambda: fields.pointers(ssm, row),
        ]
        for compare in comparisons:
            try:
                found += list(compare())
            except errors.AwsError as error:
                found.append(Difference("access", "", str(error)))
        return found

    with ThreadPoolExecutor(AMIS_AT_ONCE, thread_name_prefix="compare") as pool:
        for row, differences in zip(expected, pool.map(look, expected), strict=True):
            for one in differences:
                yield row, one


def _shown(row: Mapping[str, Any], one: Difference) -> dict[str, str]:
    shown = {name: str(row.get(name, "")) for name in ("region", "ami_id", "name", "image")}
    more = {"field": one.field, "recorded": one.recorded, "found": one.found}
    return {**shown, **more, "meaning": fields.meaning(one.field)}
