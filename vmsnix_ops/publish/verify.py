"""Verifying: is every published AMI still what was recorded of it? Field by field, region by region.

What was recorded is the newest row of an AMI in ``amis`` (how it was registered) and, once it was promoted,
its newest row in ``promotions`` (with whom it is shared, its dates, its channel). What the tables do not know
is not compared. Tags that somebody added are no drift; tags of ours that are gone or changed are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import images, snapshots
from vmsnix_ops.aws.account import identity
from vmsnix_ops.aws.regions import ALL, named
from vmsnix_ops.aws.session import Client, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.publish import verify_fields as fields
from vmsnix_ops.publish.verify_fields import Difference
from vmsnix_ops.records import history, shown
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import boto3
    import pandas as pd


REGIONS_AT_ONCE, AMIS_AT_ONCE = 8, 8
GONE = "deregistered"
COLUMNS = {
    "region": "AWS region",
    "ami_id": "the AMI; empty for a region that could not be read, and for a pointer to nothing",
    "name": "its name, as it was recorded",
    "image": "short name of the image",
    "field": "what differs",
    "recorded": "what the tables say",
    "found": "what AWS says",
    "meaning": "what that means",
}
"""Columns of the drift, one row a field that differs."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    Attributes
    ----------
    drift
        Columns as in `COLUMNS`.
    regions
        One row a region: ``region``, ``amis``, ``drifted``, ``fields``, ``unread``.
    """

    drift: pd.DataFrame
    regions: pd.DataFrame

    def show(self) -> shown.Shown:
        """Return the drift for people."""
        names = ("region", "ami_id", "name", "field", "recorded", "found", "meaning")
        rows = [[row[name] for name in names] for row in self.drift.to_dict("records")]
        return shown.shown(names, rows, nothing="Everything is as it was recorded.")

    @property
    def unread(self) -> int:
        """How many things could not be looked at."""
        return int((self.drift["field"] == "access").sum())

    @property
    def drifted(self) -> int:
        """How many fields differ."""
        return len(self.drift) - self.unread


def check(
    *,
    regions: Iterable[str] = (),
    image: str = "",
    tables: Tables | None = None,
    session: boto3.Session | None = None,
) -> Report:
    """Compare every AMI that the tables know with what AWS says. Nothing is changed.

    A region, or an AMI, that cannot be read is part of the drift (``access``) and does not stop the others.

    Parameters
    ----------
    regions
        Where; by default, and with ``["all"]``, everywhere that the tables know an AMI.
    image
        Only AMIs of this image.
    tables, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The tables know no AMI there.
    vmsnix_ops.errors.RegionError
        There is no such region.
    """
    import pandas as pd

    settings, session = load(), session or default_session()
    tables = tables or open_tables(settings)
    asked = tuple(regions)
    expected = _expected(tables, () if asked == (ALL,) else named(asked), image)
    if not expected:
        raise _nothing_known(image, f"Looked in {settings.history}.")
    account = identity(session, expected[0]["region"]).account
    expected = [row for row in expected if row.get("account") in (None, account)]
    if not expected:
        raise _nothing_known(image, f"Those that {settings.history} knows are not of the account {account}.")
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
    return Report(drift, pd.DataFrame(rows))


def _nothing_known(image: str, why: str) -> errors.ParameterError:
    return errors.ParameterError(
        f"The tables know no AMI{f' of {image}' if image else ''} to compare with.",
        why=why,
        cure="Publish or promote one, or fill the tables from the tags: vmsnix history sync.",
    )


def finish(report: Report, *, fail_on_drift: bool = True) -> None:
    """Write ``result.json`` and ``drift.csv``, and fail when something differs.

    Raises
    ------
    vmsnix_ops.errors.DriftError
        Something differs.
    vmsnix_ops.errors.PartlyDoneError
        Nothing differs in what could be read: exit code 3.
    """
    run = current_run("verify-amis")
    path = run.folder / "drift.csv"
    report.drift.to_csv(path, index=False)
    error = _error(report) if fail_on_drift else None
    status = "done" if error is None else "partly" if isinstance(error, errors.PartlyDoneError) else "failed"
    write_result(
        run,
        {
            "status": status,
            "amis": int(report.regions["amis"].sum()),
            "drifted": report.drifted,
            "unread": report.unread,
            "drift": report.drift.to_dict("records"),
            "csv": path,
        },
    )
    if error is not None:
        raise error


def _error(report: Report) -> errors.VmsnixError | None:
    if report.drifted:
        first = report.drift[report.drift["field"] != "access"].iloc[0]
        number = f"{report.drifted} field{'s' if report.drifted > 1 else ''}"
        return errors.DriftError(
            f"Published AMIs are not as they were recorded, in {number}.",
            why=f"For example {first['field']} of {first['ami_id'] or first['name']} in {first['region']}: "
            f"recorded {first['recorded'] or 'nothing'}, found {first['found'] or 'nothing'}.",
            cure="Put it right (vmsnix promote-ami shares, revokes and points). Where AWS is right, promote "
            "it again: a promotion records what it finds.",
        )
    if report.unread:
        first = report.drift.iloc[0]
        return errors.PartlyDoneError(
            f"{report.unread} things could not be looked at; what could be is as it was recorded.",
            why=f"{first['region']}: {first['found']}",
            cure="Allow what is missing, and run it again.",
        )
    return None


def _expected(tables: Tables, regions: tuple[str, ...], image: str) -> list[dict[str, Any]]:
    """Return what is recorded of each AMI, promotions laid over registrations; what retired is left out."""
    promoted = _promotions(tables)
    rows = []
    for row in _records(history.amis(tables)):
        where = (row["ami_id"], row["region"])
        if row.get("state") == GONE or (regions and row["region"] not in regions):
            continue
        if image and row.get("image") != image:
            continue
        later = promoted.get(where, {})
        if row.get("source") == "retire" and row["recorded_at"] > later.get(
            "promoted_at", row["recorded_at"]
        ):
            later = {}
        rows.append({**row, "architecture": _ARCHITECTURES.get(row.get("system", "")), "promotion": later})
    pointers: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(_records(tables.read("promotions")), key=lambda one: one["promoted_at"]):
        if row.get("pointer"):
            pointers[row["region"], row["pointer"]] = row
    for row in rows:
        row["pointers"] = [
            one["pointer"]
            for (region, _), one in pointers.items()
            if region == row["region"] and one["ami_id"] == row["ami_id"]
        ]
    return rows


_ARCHITECTURES = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}


def _promotions(tables: Tables) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest facts of each AMI and region; a rollback says nothing of them."""
    rows = [row for row in _records(tables.read("promotions")) if row["how"] == "promote"]
    return {(row["ami_id"], row["region"]): row for row in sorted(rows, key=lambda one: one["promoted_at"])}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows without their empty values, which pandas spells in several ways."""
    import pandas as pd

    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]


def _region(
    ec2: Client, ssm: Client, expected: list[dict[str, Any]]
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
            lambda: fields.promoted(ec2, row, ami, held),
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
