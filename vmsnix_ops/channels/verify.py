"""Compare the published AMIs of every region with their records, field by field.

>>> from vmsnix_ops import verify
>>> found = verify.check(regions=["eu-central-1"])  # doctest: +SKIP
>>> found.show_drift()  # doctest: +SKIP

`vmsnix_ops.records.recorded_amis` collects the records. An AMI that was never promoted must not be shared;
other values without a record are not compared. Missing and changed tags of vmsnix are drift, other tags are
not.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.aws import drift as fields
from vmsnix_ops.aws import images, snapshots
from vmsnix_ops.aws.drift import Difference
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.aws.identity import read_account
from vmsnix_ops.aws.regions import ALL, check_regions
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.boot import measurements
from vmsnix_ops.progress import counted
from vmsnix_ops.records.recorded_amis import expected_amis
from vmsnix_ops.records.result import Result, saving, where
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

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.records.run_context import RunContext

__all__ = ["VerificationResult", "check", "check_parameters"]


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
"""Columns of the drift; one row for each field that differs."""


@dataclass(frozen=True, slots=True)
class VerificationResult(Result):
    """The differences between AWS and the records."""

    run: RunContext = field(repr=False)
    drift: pd.DataFrame  # the differences; columns as in `COLUMNS`
    regions: pd.DataFrame  # a row for each: `region`, `amis`, `drifted`, `fields`, `unread`
    fail_on_drift: bool = True  # whether a difference fails the run
    account: str = ""

    def frame(self) -> pd.DataFrame:
        """Return the drift; columns as in `COLUMNS`."""
        return self.drift

    @property
    def title(self) -> str:
        """The title."""
        return "Published AMIs compared with their records"

    def table(self) -> display.DisplayTable:
        """Return the number of differences in each region as a table for display."""
        return display.frame_table(self.regions)

    def show_drift(self) -> display.DisplayTable:
        """Return the drift as a table for display."""
        names = ("region", "ami_id", "name", "field", "recorded", "found", "meaning")
        rows = [[row[name] for name in names] for row in self.drift.to_dict("records")]
        return display.make_table(names, rows, nothing="No differences.")

    @property
    def unread(self) -> int:
        """The number of regions, AMIs and channels that could not be read."""
        return int((self.drift["field"] == "access").sum())

    @property
    def drifted(self) -> int:
        """The number of fields that differ."""
        return len(self.drift) - self.unread

    @property
    def error(self) -> errors.VmsnixError | None:
        """A `DriftError` if fields differ, a `PartialError` if something could not be read, or ``None``."""
        return _error(self) if self.fail_on_drift else None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        error = self.error
        return {
            "status": "done" if error is None else "partial" if error.exit_code == 3 else "failed",
            **where((self.account, region) for region in self.regions["region"]),
            "amis": int(self.regions["amis"].sum()),
            "drifted": self.drifted,
            "unread": self.unread,
            "drift": self.drift.to_dict("records"),
            "csv": self.run.folder / "drift.csv",
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "drift.csv"):
            write_csv(self.drift, folder / "drift.csv")


@check_arguments
def check(
    *,
    regions: Iterable[str] = (),
    image: str = "",
    measure: bool = False,
    fail_on_drift: bool = True,
    tables: Tables | None = None,
    session: boto3.Session | None = None,
) -> VerificationResult:
    """Compare every recorded AMI with AWS. Nothing is changed.

    A region or an AMI that cannot be read is part of the drift (``access``); the others are compared.

    Parameters
    ----------
    regions
        Regions to compare; by default, and with ``["all"]``, every region with a recorded AMI.
    image
        Compare only AMIs of this image.
    measure
        Also read the snapshots of attested AMIs, compute root hash, UKI hash and PCRs again, and compare them
        with the record. Needs the permissions of ``vmsnix iam-policy verifier --blocks``.
    fail_on_drift
        Whether a difference fails the verification.
    tables, session
        Override the tables of the settings, and the AWS session.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        No AMI is recorded in these regions.
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.AwsError
        The account of the credentials could not be read in any region.
    """
    import pandas as pd

    settings, session = load(), session or default_session()
    tables = tables or open_tables(settings)
    given = tuple(regions)
    expected = expected_amis(tables, regions=() if given == (ALL,) else check_regions(given), image=image)
    if not expected:
        similar = errors.nearest(image, {row["image"] for row in expected_amis(tables) if row["image"]})
        raise _no_records(image, f"{similar} Searched {settings.history}.".lstrip())
    preferred = [settings.region, session.region_name, *(row["region"] for row in expected)]
    account = read_account(session, dict.fromkeys(filter(None, preferred)))
    expected = [row for row in expected if row.get("account") in (None, account)]
    if not expected:
        raise _no_records(image, f"The AMIs in {settings.history} do not belong to the account {account}.")
    chosen = check_regions(row["region"] for row in expected)
    clients = {  # in one thread: sessions are not thread safe, clients are
        name: (client(session, "ec2", name), client(session, "ssm", name)) for name in chosen
    }
    amis = {name: [row for row in expected if row["region"] == name] for name in chosen}
    with ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="verify") as pool:
        found = pool.map(lambda name: list(_compare_region(*clients[name], amis[name])), chosen)
        rows = [_drift_row(row, one) for differences in found for row, one in differences]
    for row in expected if measure else ():
        differences = _attempt(partial(_compare_measurements, session, row))
        rows += [_drift_row(row, one) for one in differences]
    drift = pd.DataFrame(rows, columns=list(COLUMNS)).astype(str)
    counts = []
    for name in chosen:
        here = drift[drift["region"] == name]
        differing = here[here["field"] != "access"]
        counts.append(
            {
                "region": name,
                "amis": len(amis[name]),
                "drifted": differing["ami_id"].nunique(),
                "fields": len(differing),
                "unread": len(here) - len(differing),
            }
        )
    return VerificationResult(current_run("verify-amis"), drift, pd.DataFrame(counts), fail_on_drift, account)


def _no_records(image: str, why: str) -> errors.ParameterError:
    return errors.ParameterError(
        f"No recorded AMI{f' of {image}' if image else ''} to compare with.",
        why=why,
        fix="Publish or promote one, or import the records from the tags: vmsnix history sync",
    )


def _error(result: VerificationResult) -> errors.VmsnixError | None:
    if result.drifted:
        drift = result.drift[result.drift["field"] != "access"]
        first = drift.iloc[0]
        why = (
            f"For example {first['field']} of {first['ami_id'] or first['name']} in {first['region']}: "
            f"recorded {first['recorded'] or 'nothing'}, found {first['found'] or 'nothing'}."
        )
        return errors.DriftError(
            f"Published AMIs differ from their records in {counted(result.drifted, 'field')}.",
            why=f"{why} {_unread(result)}".strip(),
            fix=_fix(drift),
        )
    if result.unread:
        return errors.PartialError(
            "No differences in what could be read, but the check is incomplete.",
            why=_unread(result),
            fix="Allow the missing actions, then run it again.",
        )
    return None


def _unread(result: VerificationResult) -> str:
    """Return the number of items that could not be read, and the first reason."""
    if not result.unread:
        return ""
    first = result.drift[result.drift["field"] == "access"].iloc[0]
    where = f"{first['ami_id']} in {first['region']}" if first["ami_id"] else first["region"]
    return f"{counted(result.unread, 'item')} could not be read, first {where}: {first['found']}"


def _fix(drift: pd.DataFrame) -> str:
    """Return how to restore the recorded values, and how to record the values in AWS instead."""
    promised = drift["field"].isin(fields.PROMOTED_FIELDS)
    of_channels, broken = drift["field"] == "channel", drift["field"].isin(fields.UNFIXABLE_FIELDS)
    fixes = []
    if promised.any():
        fixes.append(
            "To restore the recorded values: vmsnix promote sets sharing, dates and channels "
            "(vmsnix rollback sets channels back)."
        )
    if (promised & ~of_channels).any():
        first = drift[promised & ~of_channels].iloc[0]
        fixes.append(
            "If AWS is right, record its values with a promotion that changes nothing: vmsnix promote --ami "
            f"{first['ami_id']} --region {first['region']}, with --protect or --unprotect to match the AMI."
        )
    if broken.any():
        fixes.append("Deregister an AMI that cannot be launched or has other bytes, and publish it again.")
    if not promised.all():
        regions = " ".join(f"--region {name}" for name in sorted(set(drift[~promised]["region"])))
        fixes.append(
            "To restore tags, use aws ec2 create-tags. If AWS is right, record its tags and registration: "
            f"vmsnix history sync {regions}"
        )
    return " ".join(fixes)


def _compare_region(
    ec2: EC2Client, ssm: SSMClient, expected: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Difference]]:
    """Yield the differences of one region, each with the record of its AMI."""
    try:
        amis = images.find_amis(ec2, [row["ami_id"] for row in expected])
        found_snapshots = snapshots.find_snapshots(
            ec2, [one for ami in amis.values() for one in ami.snapshot_ids]
        )
    except errors.AwsError as error:
        yield {"region": ec2.meta.region_name}, Difference("access", "", str(error))
        return

    def compare(row: dict[str, Any]) -> list[Difference]:
        found = compare_ami(ec2, row, amis.get(row["ami_id"]), found_snapshots)
        return found + _attempt(lambda: fields.compare_channels(ssm, row))

    with ThreadPoolExecutor(AMIS_AT_ONCE, thread_name_prefix="compare") as pool:
        for row, differences in zip(expected, pool.map(compare, expected), strict=True):
            for one in differences:
                yield row, one


def compare_ami(
    ec2: EC2Client, row: Mapping[str, Any], ami: Ami | None, found: Mapping[str, Snapshot]
) -> list[Difference]:
    """Return the differences of an AMI and its snapshots from its record."""
    return [
        *_attempt(lambda: fields.compare_registration(row, ami, found)),
        *_attempt(lambda: fields.compare_promotion(ec2, row, ami, found)),
    ]


def _compare_measurements(session: boto3.Session, row: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare the recorded measurements of an attested AMI with those of its snapshot's bytes."""
    if not row.get("pcr4_sha384") or not row.get("snapshot_id"):
        return
    with reading.open_snapshot(session, region=row["region"], snapshot_id=row["snapshot_id"]) as disk:
        try:
            found = measurements.measure(disk)
            if found is not None:
                measurements.check_store(disk, found.root_hash)
        except errors.ImageFormatError as error:
            yield Difference("root_hash", str(row.get("root_hash", "")), f"{error.what} {error.why}")
            return
    for name in fields.MEASURED:
        recorded, value = str(row.get(name, "")), getattr(found, name, "")
        if recorded != value:
            yield Difference(name, recorded, value)


def _attempt(compare: Callable[[], Iterable[Difference]]) -> list[Difference]:
    """Return the differences that a comparison finds; ``access`` if it cannot read something."""
    try:
        return list(compare())
    except errors.AwsError as error:
        return [Difference("access", "", str(error))]


def _drift_row(row: Mapping[str, Any], one: Difference) -> dict[str, str]:
    return {name: str(row.get(name, "")) for name in ("region", "ami_id", "name", "image")} | {
        "field": one.field,
        "recorded": one.recorded,
        "found": one.found,
        "meaning": fields.meaning(one.field),
    }
