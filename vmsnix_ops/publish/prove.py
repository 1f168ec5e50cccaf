"""Prove that AMIs contain a published image, from the bytes of their snapshots.

>>> from vmsnix_ops import prove
>>> plan = prove.plan(amis=["ami-0123456789abcdef0"])  # doctest: +SKIP
>>> plan.apply().raise_for_status()  # doctest: +SKIP

A proof reads the snapshot of an AMI's root device through the EBS direct APIs and compares it with the
identity of the image (docs/reference/identity.md). The identity comes from the operator or from the
archived ``result.json`` of the publish. A person who can change the AMI can change its tags: they are
compared with the identity and never prove anything.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from heapq import merge, nsmallest
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vmsnix_ops import display, errors, files
from vmsnix_ops.arguments import check_arguments, check_parameters, check_range
from vmsnix_ops.aws import drift, images, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import manifests, reading
from vmsnix_ops.aws.ebs_direct.engine import CEILING
from vmsnix_ops.aws.ebs_direct.journal import DigestJournal, lock_journal
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.aws.references import AMI_ID
from vmsnix_ops.aws.regions import check_regions, home_region
from vmsnix_ops.aws.session import calling, client, if_found
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.boot.measurements import check_store, measure
from vmsnix_ops.disk.digests import NONE, Digests
from vmsnix_ops.disk.identity import ZERO, identity_of
from vmsnix_ops.disk.image import BLOCK_BYTES
from vmsnix_ops.interrupts import interruptible, stopping
from vmsnix_ops.progress import Progress, counted, current, human_bytes, human_seconds
from vmsnix_ops.publish.identity import measurement_tags
from vmsnix_ops.publish.journal import record_run
from vmsnix_ops.records import history
from vmsnix_ops.records.result import FILE_NAME, Result, parse, saving, where
from vmsnix_ops.records.run_context import NEW_RUN_ID, RUN_ID, current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, load
from vmsnix_ops.text import write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.run_context import RunContext

__all__ = ["ProofPlan", "ProofResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


Verdict = Literal["proven", "matches its tag", "differs", "not provable"]
Extent = Literal["whole", "sample"]
Source = Literal["", "argument", "result", "tag"]
Reason = Literal[
    "",
    "content",  # differs
    "another disk",
    "no AMI",  # not provable
    "no root snapshot",
    "no snapshot",
    "not completed",
    "archived",
    "public",
    "no identity",
    "no manifest",
    "bad manifest",
    "undecryptable",
    "unreadable",
]

GET_USD, LIST_USD = 0.003 / 1000, 0.0006 / 1000
"""List prices of GetSnapshotBlock and ListSnapshotBlocks in us-east-1, from the page Amazon EBS pricing."""

TRANSFER_USD = 0.02
"""USD for a GB from one region to another; between some regions it is more, to the internet about 0.09."""

CONFIRM_USD = 1.0
"""A proof that costs more needs a confirmation."""

SAMPLE = 1000
FIRST = 10
"""Number of differing blocks in a result."""

MOST_COPIES = 10
"""Maximum length of a chain of copies."""

_IDENTITY = re.compile(r"[0-9a-f]{64}")
_KEY = ("DEPENDENCY_", "INVALID_CUSTOMER_KEY", "kms:", "KMS")
"""Texts in errors about the key of an encrypted snapshot."""

COLUMNS = {
    "region": "AWS region",
    "ami_id": "AMI ID; the name that was searched for where no AMI was found",
    "name": "AMI name",
    "account": "AWS account ID of the owner",
    "snapshot_id": "snapshot of the root device",
    "size_gib": "size of the snapshot's volume; it can be larger than the disk",
    "verdict": "proven, matches its tag, differs or not provable",
    "reason": "why it differs or is not provable, as a keyword",
    "why": "the same as a sentence",
    "fix": "what to do",
    "digest": "identity that was expected",
    "source": "origin of the expected identity: argument, result (a result.json) or tag",
    "origin": "which result.json",
    "found": "identity of the snapshot; empty for a sample",
    "extent": "whole or sample",
    "blocks": "blocks that the snapshot contains",
    "compared": "blocks that were compared",
    "first_differing": "the first blocks that differ, as indices of 512 KiB",
    "undetected": "sample: probability that a change of one block is not detected",
    "notes": "tags and tables that have another identity, or other measurements",
    "root_hash": "attested image: root hash of the store, which was computed again from the snapshot",
    "uki_sha384": "attested image: Authenticode hash of its UKI, from the snapshot",
    "pcr4_sha384": "attested image: predicted PCR 4, from the snapshot",
    "pcr12_sha384": "attested image: predicted PCR 12, from the snapshot",
}
"""Columns of `ProofResult.frame`, which has one row for each AMI."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The identity that an AMI should have."""

    identity: str = ""  # 64 hexadecimal digits; empty when it is not known
    source: Source = ""
    place: str = ""  # location of the `result.json`


@dataclass(frozen=True, slots=True)
class Proof:
    """An AMI: the facts that are known before its blocks are read, and its verdict."""

    region: str
    ami_id: str
    name: str = ""
    account: str = ""
    # The snapshot of its root device.
    snapshot_id: str = ""
    size_gib: int = 0
    encrypted: bool = False
    expected: Expected = Expected()  # the identity that it should have
    listed: int = 0
    gets: int = 0  # number of blocks that this run will read
    sample: int | None = None  # number of blocks of the image to choose at random; None to read all
    added: frozenset[int] = field(default=frozenset(), repr=False)  # blocks that the image does not have
    # The blocks of the expected identity, from a manifest; None without one.
    blocks: Digests | None = field(default=None, repr=False)
    # The verdict; None until the blocks are read, if it needs them. `COLUMNS` explains the fields.
    verdict: Verdict | None = None
    reason: Reason = ""
    why: str = ""
    fix: str = ""
    found: str = ""
    compared: int = 0
    first_differing: tuple[int, ...] = ()
    undetected: float | None = None
    notes: tuple[str, ...] = ()  # tags and tables that have another identity
    # The AMI's tags about measurements; None for an AMI without a TPM, which cannot be attested.
    attested: Mapping[str, str] | None = field(default=None, repr=False)
    measurements: Measurements | None = None  # from the snapshot's bytes

    def ended(self, verdict: Verdict, reason: Reason, why: str, fix: str = "") -> Proof:
        """Return the proof with a verdict, so that no blocks are read."""
        return replace(self, verdict=verdict, reason=reason, why=why, fix=fix, gets=0)

    def as_dict(self, extent: Extent) -> dict[str, Any]:
        """Return it as plain values, with the keys `COLUMNS`."""
        others = {
            "digest": self.expected.identity,
            "source": self.expected.source,
            "origin": self.expected.place,
            "extent": extent,
            "blocks": self.listed,
            "first_differing": list(self.first_differing),
            "notes": list(self.notes),
        }
        for name in drift.MEASURED:
            others[name] = getattr(self.measurements, name, "")
        return {name: others[name] if name in others else getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class ProofPlan(display.Displayed):
    """The plan of a proof, with its price. Make it with `plan`."""

    targets: tuple[Proof, ...]
    extent: Extent  # "whole" reads all blocks of a snapshot, "sample" some at random
    region: str  # assumed region of this machine: traffic from other regions is cross-region traffic
    confirmed: bool  # whether a price above 1 USD is accepted
    settings: Settings = field(repr=False, compare=False)
    tables: RunTables = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    session: boto3.Session = field(repr=False, compare=False)
    run: RunContext = field(repr=False, compare=False)

    @property
    def gets(self) -> int:
        """Blocks to read, one request each."""
        return sum(target.gets for target in self.targets)

    @property
    def lists(self) -> int:
        """Requests that list blocks, for the plan and for the proof."""
        return sum(2 * -(-target.listed // manifests.PAGE) for target in self.targets)

    @property
    def cross_region_bytes(self) -> int:
        """Bytes that are read from other regions."""
        return sum(target.gets for target in self.targets if target.region != self.region) * BLOCK_BYTES

    @property
    def usd(self) -> float:
        """The price of requests and cross-region traffic."""
        transfer = self.cross_region_bytes / 10**9 * TRANSFER_USD
        return self.gets * GET_USD + self.lists * LIST_USD + transfer

    @property
    def title(self) -> str:
        """One line."""
        what = "whole snapshots" if self.extent == "whole" else "a sample of the blocks"
        return f"Proof of {counted(len(self.targets), 'AMI')}, {what}"

    def facts(self) -> list[tuple[str, str]]:
        """Return requests, price, time and traffic."""
        far = sorted({one.region for one in self.targets if one.gets and one.region != self.region})
        traffic = f"{human_bytes(self.cross_region_bytes)} from {', '.join(far)}" if far else "none"
        return [
            ("requests", f"{self.gets:,} GetSnapshotBlock, {self.lists:,} ListSnapshotBlocks"),
            ("data", human_bytes(self.gets * BLOCK_BYTES)),
            ("cross-region traffic", f"{traffic}, if this machine is in {self.region}"),
            ("price", f"{self.usd:.2f} USD" if self.usd >= 0.005 else "less than 0.01 USD"),
            ("time", f"at least {human_seconds(self.gets / CEILING)}, at {CEILING:,.0f} requests per second"),
        ]

    def table(self) -> display.DisplayTable:
        """Return one row for each AMI."""
        rows = [
            (
                one.region,
                one.ami_id,
                one.snapshot_id,
                one.expected.identity[:16],
                _of(one.expected),
                f"{one.gets:,}",
                f"{one.listed:,}",
                f"{one.verdict}: {one.why}" if one.verdict else "",
            )
            for one in self.targets
        ]
        columns = ("region", "ami_id", "snapshot_id", "identity", "from", "to read", "blocks", "verdict")
        return display.make_table(columns, rows, right=("to read", "blocks"))

    def notes(self) -> list[str]:
        """Return the tags and tables that differ, and the probability that a sample misses a change."""
        lines = [f"{one.ami_id}: {note}" for one in self.targets for note in one.notes]
        lines += [f"{one.ami_id}: {_chance(one)}" for one in self.targets if one.sample is not None]
        if self.usd > CONFIRM_USD and not self.confirmed:
            lines.append(f"This costs more than {CONFIRM_USD:.0f} USD: add --yes (yes=True) to start it.")
        return lines

    def apply(self) -> ProofResult:
        """Read the blocks and return the verdicts. Nothing in AWS is changed.

        Safe to run twice: blocks that an interrupted proof has read are not read again.

        Raises
        ------
        vmsnix_ops.errors.ConfirmationError
            The proof costs more than 1 USD, and ``yes`` was not set.
        vmsnix_ops.errors.CredentialsError
            The credentials expired.
        vmsnix_ops.errors.InterruptedRunError
            Ctrl-C or SIGTERM.
        """
        return _apply(self)


@dataclass(frozen=True, slots=True)
class ProofResult(Result):
    """The verdicts of a proof."""

    plan: ProofPlan
    proofs: tuple[Proof, ...]
    seconds: float = 0.0  # duration of the reading
    problems: tuple[str, ...] = ()  # records that could not be saved, as sentences

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        order: tuple[Verdict, ...] = ("differs", "not provable", "matches its tag", "proven")
        return next(one for one in order if any(proof.verdict == one for proof in self.proofs))

    @property
    def title(self) -> str:
        """One line."""
        return f"Proof of {counted(len(self.proofs), 'AMI')}: {self.verdict}"

    def table(self) -> display.DisplayTable:
        """Return one row for each AMI."""
        rows = [
            (
                proof.region,
                proof.ami_id,
                proof.verdict,
                _of(proof.expected),
                f"{proof.compared:,}",
                f"{proof.listed:,}",
                " ".join(part for part in (proof.why, proof.fix) if part),
            )
            for proof in self.proofs
        ]
        columns = ("region", "ami_id", "verdict", "identity from", "compared", "blocks", "why")
        return display.make_table(columns, rows, right=("compared", "blocks"))

    def notes(self) -> list[str]:
        """Return the tags and tables that differ, what a sample can miss, and unsaved records."""
        lines = [f"{one.ami_id}: {note}" for one in self.proofs for note in one.notes]
        lines += [f"{one.ami_id}: {_chance(one)}" for one in self.proofs if one.undetected]
        return [*lines, *self.problems]

    def frame(self) -> pd.DataFrame:
        """Return one row for each AMI, with the columns `COLUMNS`."""
        import pandas as pd

        rows = [proof.as_dict(self.plan.extent) for proof in self.proofs]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"undetected": float})

    @property
    def error(self) -> errors.VmsnixError | None:
        """`DriftError` when an AMI differs; `PartialError` when one is not proven, or its tag differs."""
        bad = [proof for proof in self.proofs if proof.verdict == "differs"]
        if bad:
            return errors.DriftError(
                f"{_some(bad, self)} not contain the expected image.",
                why=f"{bad[0].ami_id} in {bad[0].region}: {bad[0].why}",
                fix=bad[0].fix,
            )
        left = [proof for proof in self.proofs if proof.verdict != "proven"]
        if left:
            first = left[0]
            return errors.PartialError(
                f"{counted(len(left), 'AMI')} of {len(self.proofs)} not proven.",
                why=f"{first.ami_id} in {first.region}: {first.verdict}. {first.why}",
                fix=first.fix,
            )
        noted = [proof for proof in self.proofs if proof.notes]
        if noted:
            return errors.PartialError(
                "Every AMI is proven, but a tag or a table has another value.",
                why=f"{noted[0].ami_id} in {noted[0].region}: {noted[0].notes[0]}",
                fix="Find out who changed it. vmsnix verify lists every field that differs from its record.",
            )
        if self.problems:
            return errors.UnsavedError(
                "Every AMI is proven, but the proof could not be recorded.",
                why=self.problems[0],
                fix="Save the record later: vmsnix runs repair",
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        error = self.error
        single = self.proofs[0] if len(self.proofs) == 1 else None
        return {
            "status": "done" if error is None else "partial" if error.exit_code == 3 else "failed",
            "verdict": self.verdict,
            "ami_id": single.ami_id if single else None,
            "image_name": single.name if single else None,
            "snapshot_id": single.snapshot_id if single else None,
            **where((one.account, one.region) for one in self.proofs),
            "digest": single.expected.identity or None if single else None,
            "extent": self.plan.extent,
            "gets": self.plan.gets,
            "usd": round(self.plan.usd, 4),
            "cross_region_bytes": self.plan.cross_region_bytes,
            "seconds": round(self.seconds, 3),
            "proofs": [proof.as_dict(self.plan.extent) for proof in self.proofs],
            "problems": list(self.problems),
            "csv": self.run.folder / "proofs.csv",
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "proofs.csv"):
            write_csv(self.frame(), folder / "proofs.csv")


@check_arguments
def plan(
    *,
    amis: Iterable[str],
    identity: str = "",
    result: str = "",
    extent: Extent = "whole",
    sample_blocks: int = SAMPLE,
    regions: Iterable[str] = (),
    yes: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> ProofPlan:
    """Find the AMIs, list the blocks of their snapshots, and return the plan with its price.

    Parameters
    ----------
    amis
        AMI IDs or names.
    identity
        Expected identity; by default that of `result`.
    result
        ``result.json`` of the publish: a run ID, a path or an ``s3://`` URL. By default that of the run that
        published the AMI or its source, if it is in the tables and the archive.
    extent
        ``"whole"`` reads all blocks and recomputes the identity; ``"sample"`` compares some blocks with the
        manifest of the image, which must have the expected identity.
    sample_blocks
        Number of blocks of a sample.
    regions
        Regions in which the AMIs are searched; by default those in the tables, else the home region.
    yes
        Accept a price above 1 USD.
    settings, progress, session
        Override the defaults from vmsnix.toml and the AWS environment.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter is missing or invalid, or `result` has no identity.
    vmsnix_ops.errors.CredentialsError
        There are no valid credentials.
    """
    if extent not in get_args(Extent):
        raise errors.ParameterError(
            f"Invalid extent {extent!r}.", fix=f"Use {' or '.join(get_args(Extent))}."
        )
    check_range("sample_blocks", sample_blocks)
    wanted = tuple(dict.fromkeys(word.strip() for word in amis))
    if not wanted or "" in wanted:
        raise errors.ParameterError("No AMI given.", fix="Add an AMI ID or name: vmsnix prove AMI...")
    settings, session = settings or load(), session or default_session()
    here = home_region(session, settings.region)
    run = current_run("prove-ami", settings=settings)
    tables = RunTables(settings, run)
    records = _Records(settings, session, tables)
    given = _given(identity, result, records)
    planning = _Planning(records, given, extent, sample_blocks)
    chosen = check_regions(regions)
    targets = [one for word in wanted for one in planning.targets(word, chosen, here)]
    return ProofPlan(tuple(targets), extent, here, yes, settings, tables, progress or current(), session, run)


def prover_actions(*, archive: bool = False) -> tuple[str, ...]:
    """Return the IAM actions of a proof; `archive`: also those to read ``result.json`` from S3."""
    functions: list[Any] = [
        images.find_amis,
        images.find_all_by_name,
        snapshots.find_snapshots,
        snapshots.is_public,
        manifests.list_indices,
        reading.digests,
    ]
    return needs_of(*functions, *((_object,) if archive else ()))


# Which identity an AMI should have


def _given(identity: str, result: str, records: _Records) -> Expected:
    """Return the operator's identity; empty if it must be found for each AMI."""
    if identity:
        if not _IDENTITY.fullmatch(identity):
            raise errors.ParameterError(
                f"Invalid identity {identity!r}.",
                why="An identity has 64 hexadecimal digits in lower case.",
                fix="Copy digest from the result.json of the publish.",
            )
        if result:
            raise errors.ParameterError(
                "Both an identity and a result are given.", fix="Use --identity or --result."
            )
        return Expected(identity, "argument")
    if not result:
        return Expected()
    places = records.places(result) if NEW_RUN_ID.fullmatch(result) else (result,)
    place, values = next(
        ((place, found) for place in places if (found := records.read(place))), (places[0], {})
    )
    digest = str(values.get("digest") or "")
    if not _is_publish(values) or not _IDENTITY.fullmatch(digest):
        raise errors.ParameterError(
            f"{place} is not the result of a publish." if values else f"Could not find {place}.",
            why=f"It is of {values.get('runbook')}, with status {values.get('status')}." if values else "",
            fix="Use the result.json of a publish that registered an AMI.",
        )
    return Expected(digest, "result", place)


def _is_publish(values: Mapping[str, Any]) -> bool:
    # Other jobs, such as a smoke test or a proof, also write an AMI and a digest, which they read from its
    # tag. Only a publish computes the digest, and only it has a method.
    return (
        bool(values.get("ami_id"))
        and values.get("via") in history.METHODS
        and values.get("status") in ("done", "partial")
        and (values.get("dry_run") is not True)
    )


@needs("s3:GetObject", "s3:ListBucket")
def _object(session: boto3.Session, region: str, place: str) -> bytes | None:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    if not bucket or not key:
        return None
    s3, missing = client(session, "s3", region), ("NoSuchKey", "NoSuchBucket", "404")
    with calling(f"read {place}"):
        return if_found(lambda: s3.get_object(Bucket=bucket, Key=key)["Body"].read(), *missing)


class _Records:
    """The records of AMIs in the tables and the archive. Tables that cannot be read are only a `problem`."""

    def __init__(self, settings: Settings, session: boto3.Session, tables: RunTables) -> None:
        self.settings, self.session, self.tables = settings, session, tables
        self.problem = ""
        self._read: dict[str, Mapping[str, Any]] = {}
        try:
            self.amis = history.amis(tables, all_rows=True).to_dict("records")
            promotions = history.promotions(tables).to_dict("records")
        except errors.RecordsError as error:
            self.problem = f"{error.what} {error.why}".strip()
            self.amis, promotions = [], []
        self._sources = {
            (row["ami_id"], row["region"]): (row["source_ami_id"], row["source_region"])
            for row in promotions
            if isinstance(row["source_ami_id"], str) and row["source_ami_id"]
        }

    def places(self, run_id: str) -> tuple[str, str]:
        """Return the possible locations of a run's ``result.json``: the archive, and the run's folder."""
        return (
            f"{self.settings.archive}/{run_id}/{FILE_NAME}",
            str(self.settings.state / "runs" / run_id / FILE_NAME),
        )

    def read(self, place: str) -> Mapping[str, Any]:
        """Return a ``result.json``; empty if it does not exist or is damaged."""
        if place not in self._read:
            content: bytes | None = None
            if place.startswith("s3://"):
                content = _object(self.session, home_region(self.session, self.settings.region), place)
            else:
                with suppress(OSError, ValueError, RuntimeError):  # a NUL in it, or an unknown user
                    content = files.read(Path(place).expanduser())
            self._read[place] = parse(content)
        return self._read[place]

    def regions(self, word: str) -> tuple[str, ...]:
        """Return the regions with an AMI of this ID or name in the tables."""
        return tuple(
            dict.fromkeys(row["region"] for row in self.amis if word in (row["ami_id"], row["name"]))
        )

    def identities(self, ami: Ami) -> list[str]:
        """Return every identity that was recorded of an AMI, the latest first."""
        found = (row["digest"] for row in self._rows(ami.ami_id, ami.region))
        return list(dict.fromkeys(digest for digest in found if isinstance(digest, str) and digest))

    def published(self, ami: Ami) -> tuple[Expected, str]:
        """Return the identity in the ``result.json`` of the publish, or the reason why it is unknown."""
        why = self.problem or "The tables name no publish of this AMI."
        for ami_id, region in self._origins(ami):
            rows = (row for row in self._rows(ami_id, region) if row["source"] == "publish")
            # An ID that is no name of a folder would lead out of the archive.
            runs = [run for row in rows if isinstance(run := row["run_id"], str) and RUN_ID.fullmatch(run)]
            for place in (place for run_id in dict.fromkeys(runs) for place in self.places(run_id)):
                try:
                    values = self.read(place)
                except errors.CredentialsError:
                    raise
                except errors.AwsError as error:
                    why = f"{error.what} {error.why}"
                    continue
                digest = str(values.get("digest") or "")
                if _is_publish(values) and values["ami_id"] == ami_id and _IDENTITY.fullmatch(digest):
                    return Expected(digest, "result", place), ""
                why = f"{place} is missing or damaged, or not of a publish of this AMI."
        return Expected(), why

    def snapshots_of(self, identity: str) -> tuple[str, ...]:
        """Return the recorded snapshots of an identity, whose manifests may exist."""
        found = (row["snapshot_id"] for row in self.amis if row["digest"] == identity)
        return tuple(dict.fromkeys(one for one in found if isinstance(one, str) and one))

    def _rows(self, ami_id: str, region: str) -> list[dict[Any, Any]]:
        return [row for row in self.amis if row["ami_id"] == ami_id and row["region"] == region]

    def _origins(self, ami: Ami) -> Iterator[tuple[str, str]]:
        """Yield ID and region of the AMI, of its source, of that one's source, and so on."""
        where = (ami.ami_id, ami.region)
        next_one = (ami.source_ami_id, ami.source_region or ami.region)
        for _ in range(MOST_COPIES):
            yield where
            where = self._sources.get(where) or next_one
            next_one = ("", "")
            if not where[0]:
                return


# What is known before blocks are read


@dataclass(frozen=True, slots=True)
class _Planning:
    records: _Records
    given: Expected
    extent: Extent
    sample_blocks: int

    def targets(self, word: str, regions: tuple[str, ...], here: str) -> list[Proof]:
        """Return the AMIs of an ID or a name."""
        found = list[Proof]()
        places = regions or self.records.regions(word) or (here,)
        for region in places:
            ec2 = client(self.records.session, "ec2", region)
            try:
                ami = _find(ec2, word)
                found += [] if ami is None else [self.target(ec2, ami)]
            except errors.AwsError as error:
                found.append(_unreadable(Proof(region, word), error))
        if found:
            return found
        where = ", ".join(places)
        missing = Proof(places[0] if len(places) == 1 else where, word)
        why = f"No AMI {word} in {where} is visible to these credentials."
        return [missing.ended("not provable", "no AMI", why, "Check its name, or add --regions NAME.")]

    def target(self, ec2: EC2Client, ami: Ami) -> Proof:
        """Return the target for an AMI. No block is read."""
        expected, why = self._expected(ami)
        root, others = _disks(ami)
        target = Proof(ami.region, ami.ami_id, ami.name, ami.account, root, expected=expected)
        tags = {key: ami.tags[key] for key in tagging.OF_ATTESTED if key in ami.tags}
        target = replace(target, notes=self._notes(ami, expected), attested=tags if ami.tpm_support else None)
        if others:
            return target.ended(
                "differs",
                "another disk",
                "It has an additional disk, which no published image has: "
                f"{', '.join(f'{snapshot_id} on {device}' for device, snapshot_id in others)}.",
                "Do not launch it. Publish or promote the image again.",
            )
        if not root:
            return target.ended("not provable", "no root snapshot", "Its root device has no EBS snapshot.")
        snapshot = snapshots.find_snapshots(ec2, [root]).get(root)
        if snapshot is None:
            why = f"The snapshot {root} was deleted, or these credentials cannot read it."
            return target.ended("not provable", "no snapshot", why)
        target = replace(target, size_gib=snapshot.size_gib, encrypted=snapshot.encrypted)
        if _other(tagged := snapshot.tags.get(tagging.DIGEST, ""), expected):
            note = _note(f"The tag {tagging.DIGEST} of {root}", tagged, expected)
            target = replace(target, notes=(*target.notes, note))
        stopped = _not_readable(ec2, target, snapshot)
        if stopped is not None:
            return stopped
        if not expected.identity:
            fix = "Add --identity, or --result with the result.json of the publish."
            return target.ended("not provable", "no identity", f"No identity to compare with. {why}", fix)
        try:
            listed = manifests.list_indices(client(self.records.session, "ebs", ami.region), root)
        except errors.AwsError as error:
            return _unreadable(target, error)
        target = replace(target, listed=len(listed), gets=len(listed))
        blocks, problem = self._blocks(target)
        if self.extent == "sample":
            return self._sampled(replace(target, blocks=blocks), listed, problem)
        known = _journal(self.records.settings, target).read()
        again = len(listed) if target.attested else 0  # its store is read a second time, to measure it
        gets = len(listed) - sum(index in known for index in listed) + again
        return replace(target, blocks=blocks, gets=gets)

    def _expected(self, ami: Ami) -> tuple[Expected, str]:
        if self.given.identity:
            return self.given, ""
        found, why = self.records.published(ami)
        if found.identity:
            return found, ""
        if _IDENTITY.fullmatch(ami.digest):
            return Expected(ami.digest, "tag"), why
        return Expected(), why

    def _notes(self, ami: Ami, expected: Expected) -> tuple[str, ...]:
        """Return sentences about a tag or a table with another identity than the expected one."""
        found = [(f"Its tag {tagging.DIGEST}", ami.digest)]
        found += [("Its row in the tables", recorded) for recorded in self.records.identities(ami)]
        return tuple(_note(what, value, expected) for what, value in found if _other(value, expected))

    def _blocks(self, target: Proof) -> tuple[Digests | None, str]:
        """Return the blocks of the expected identity from a manifest, or the reason why there is none."""
        problem = ""
        identity = target.expected.identity
        for snapshot_id in dict.fromkeys((target.snapshot_id, *self.records.snapshots_of(identity))):
            try:
                manifest = manifests.read(self.records.tables, snapshot_id)
            except errors.RecordsError as error:
                problem = problem or f"{error.what} {error.why}".strip()
                continue
            if manifest is not None and manifest.identity == identity:  # `read` recomputed it
                return manifest.blocks, ""
            if manifest is not None:
                problem = problem or f"The manifest of {snapshot_id} has the identity {manifest.identity}."
        return None, problem

    def _sampled(self, target: Proof, listed: Iterable[int], problem: str) -> Proof:
        """Return the target with the indices of a sample."""
        if target.blocks is None:
            fix = "Read the whole snapshot: --extent whole."
            if problem:
                return target.ended("not provable", "bad manifest", problem, fix)
            return target.ended("not provable", "no manifest", "A sample needs the image's manifest.", fix)
        there, content = frozenset(listed), _content(target.blocks)
        missing = tuple(islice((index for index in content if index not in there), FIRST))
        if missing:
            return replace(
                target.ended("differs", "content", f"It has no block {missing[0]} of the image.", _REPLACE),
                first_differing=missing,
            )
        # Blocks that the image does not have must be zeros. All are read, because they may be an added file.
        added = there.difference(content)
        target = replace(target, sample=min(self.sample_blocks, len(content)), added=added)
        journal = _journal(self.records.settings, target)
        known = journal.read()
        only = _chosen(target, journal.seed, known)
        return replace(target, gets=sum(index not in known for index in only))


_REPLACE = "Do not launch it. Find out who changed it, then publish or promote the image again."


def _find(ec2: EC2Client, word: str) -> Ami | None:
    if AMI_ID.fullmatch(word):
        return images.find_amis(ec2, [word]).get(word)
    found = images.find_all_by_name(ec2, word)
    return next((ami for ami in found if ami.state not in images.FAILED_STATES), None)


def _disks(ami: Ami) -> tuple[str, list[tuple[str, str]]]:
    """Return the snapshot of the root device, and device and snapshot of the other disks with a snapshot."""
    found = {
        mapping["DeviceName"]: mapping["Ebs"]["SnapshotId"]
        for mapping in ami.mappings
        if mapping.get("Ebs", {}).get("SnapshotId")
    }
    root = found.pop(ami.root_device, "")
    return root, sorted(found.items())


def _not_readable(ec2: EC2Client, target: Proof, snapshot: Snapshot) -> Proof | None:
    """Return the target with its verdict if the EBS direct APIs cannot read the snapshot, else ``None``."""
    name, region = snapshot.snapshot_id, target.region
    if snapshot.archived:
        return target.ended(
            "not provable",
            "archived",
            f"The snapshot {name} is in the archive tier, which the EBS direct APIs cannot read.",
            f"Restore it: {snapshots.restore_tier_command(name, region)}",
        )
    if snapshot.state != "completed":
        why = f"The snapshot {name} is {snapshot.state}. {snapshot.message}".strip()
        return target.ended("not provable", "not completed", why, "Wait until it is completed.")
    if snapshots.is_public(ec2, name):
        return target.ended(
            "not provable",
            "public",
            f"The snapshot {name} is public, and the EBS direct APIs do not read public snapshots.",
            "Copy the AMI, prove the copy with --identity, and delete it: aws ec2 copy-image "
            f"--source-image-id {target.ami_id} --source-region {region} --region {region} "
            f"--name proof-of-{target.ami_id}",
        )
    return None


def _unreadable(target: Proof, error: errors.AwsError) -> Proof:
    """Return the target with its verdict if AWS refuses to read it; raise errors of the credentials."""
    if isinstance(error, errors.CredentialsError):
        raise error
    answer = getattr(error.__cause__, "response", None) or {}
    words = f"{error.why} {answer.get('Reason', '')}"
    if target.encrypted and any(word in words for word in _KEY):
        why = f"The snapshot {target.snapshot_id} cannot be decrypted. {error.why}"
        fix = "Enable its KMS key, and allow kms:Decrypt with this key."
        return target.ended("not provable", "undecryptable", why, fix)
    return target.ended("not provable", "unreadable", f"{error.what} {error.why}".strip(), error.fix)


def _other(value: str, expected: Expected) -> bool:
    """Return whether a tag or a row has another identity than the expected one."""
    return bool(expected.identity) and value not in ("", expected.identity)


def _note(what: str, value: str, expected: Expected) -> str:
    return f"{what} is {value}, expected {expected.identity}."


def _of(expected: Expected) -> str:
    """Return the origin of an identity, for tables."""
    return {"argument": "the operator", "result": expected.place, "tag": "its tag", "": ""}[expected.source]


def _chance(target: Proof) -> str:
    """Return a sentence about the probability that a sample misses a change."""
    one, some = _undetected(target, 1), _undetected(target, 0.01)
    return (
        f"The probability that a change is not detected is {one:.3g} for one block, and {some:.3g} for 1 % "
        "of the blocks."
    )


def _undetected(target: Proof, changed: float) -> float:
    """Return the probability that a sample contains none of the changed blocks.

    `changed` is their number, or below 1 their share.
    """
    content, compared = len(_content(target.blocks or Digests())), target.sample or 0
    if not content:  # every block of the snapshot is read
        return 0.0
    bad = min(content, max(1, math.ceil(content * changed) if changed < 1 else int(changed)))
    return math.prod(max(content - compared - at, 0) / (content - at) for at in range(bad))


def _content(blocks: Digests) -> list[int]:
    return [index for index, digest in blocks.raw() if digest not in (ZERO, NONE)]


def _chosen(target: Proof, seed: bytes, known: Digests) -> frozenset[int]:
    """Return the indices of a sample.

    The choice must not be predictable, or a forger could change only blocks that are not compared. Nor may it
    be repeated until it misses a change: the seed decides it, which is in the journal before the first block
    is read. A larger sample of the same seed contains the smaller one. What an interrupted sample has read is
    always compared, and not counted by `_undetected`, because the interruption may have chosen it.
    """
    content = _content(target.blocks or Digests())

    def rank(index: int) -> bytes:
        return hashlib.sha256(seed + index.to_bytes(8, "big")).digest()

    some = nsmallest(target.sample or 0, content, key=rank)
    return target.added.union(some, (index for index in content if index in known))


# Reading


def _journal(settings: Settings, target: Proof) -> DigestJournal:
    path = settings.state / "proofs" / f"{target.region}-{target.snapshot_id}"
    journal = partial(DigestJournal, snapshot_id=target.snapshot_id, region=target.region)
    if target.sample is None:
        return journal(path)
    # The identity determines the blocks of the image, and so the choice. The seed is for a new journal.
    mine, seed = target.expected.identity, secrets.token_bytes(32)
    return journal(path.with_name(f"{path.name}-{mine}"), identity=mine, seed=seed)


def _apply(plan: ProofPlan) -> ProofResult:
    if plan.usd > CONFIRM_USD and not plan.confirmed:
        raise errors.ConfirmationError(
            f"The proof costs {plan.usd:.2f} USD.",
            why=f"It reads {human_bytes(plan.gets * BLOCK_BYTES)} with {plan.gets:,} requests.",
            fix="Add --yes (yes=True) to start it, or compare a sample: --extent sample.",
        )
    started, proofs = datetime.now(UTC), list[Proof]()
    kept = f"What was read is kept in {plan.settings.state / 'proofs'}."
    with stopping(), interruptible("proof", kept):
        for target in plan.targets:
            with plan.progress.step(
                f"prove {target.ami_id}", total=target.gets * BLOCK_BYTES or None, unit="bytes"
            ) as step:
                proofs.append(_proof(plan, target, step))
    result = ProofResult(plan, tuple(proofs), (datetime.now(UTC) - started).total_seconds())
    # Only now: a run that is cut reads nothing twice. A sample that found a difference keeps its journal, so
    # that the next one does not choose other blocks and miss it.
    for proof in proofs:
        if proof.found or proof.verdict in ("proven", "matches its tag"):
            _journal(plan.settings, proof).remove()
    return replace(result, problems=_record(result, started))


def _proof(plan: ProofPlan, target: Proof, step: Step) -> Proof:
    if target.verdict is not None:
        return target
    try:
        found, only = _read(plan, target, step)
    except errors.AwsError as error:
        return _unreadable(target, error)
    expected = target.blocks
    differing: tuple[int, ...] = ()
    if expected is not None:
        chosen = (one for one in expected.raw() if only is None or one[0] in only)
        differing = tuple(islice(_differing(found.raw(), chosen), FIRST))
    identity = identity_of(found.raw()) if only is None else ""
    same = identity == target.expected.identity if only is None else not differing
    undetected = None if only is None else _undetected(target, 1)
    proof = replace(
        target, found=identity, compared=len(found), first_differing=differing, undetected=undetected
    )
    if not same:
        parts = [f"Its identity is {identity}, expected {target.expected.identity}."] if identity else []
        parts += [f"The first blocks that differ: {', '.join(map(str, differing))}."] if differing else []
        parts += ["There is no manifest, so it is unknown which blocks differ."] if expected is None else []
        return replace(proof, verdict="differs", reason="content", why=" ".join(parts), fix=_REPLACE)
    if target.expected.source == "tag":
        why = "Only its tag names this identity, and everybody who may tag the AMI can change it."
        fix = "Add --identity, or --result with the result.json of the publish."
        return _measured(plan, replace(proof, verdict="matches its tag", why=why, fix=fix))
    return _measured(plan, replace(proof, verdict="proven"))


def _measured(plan: ProofPlan, proof: Proof) -> Proof:
    """Return the proof with the measurements of the snapshot's bytes, after comparing the tags with them.

    The store is read too, unless the proof is a sample. An AMI without a TPM is not measured.
    """
    if proof.attested is None:
        return proof
    try:
        with reading.open_snapshot(plan.session, region=proof.region, snapshot_id=proof.snapshot_id) as disk:
            found = measure(disk)
            if found is not None and plan.extent == "whole":
                check_store(disk, found.root_hash)
    except errors.ImageFormatError as error:
        if not proof.attested:  # an image that does not claim to be attested
            return proof
        why = f"{error.what} {error.why}"
        return replace(proof, verdict="differs", reason="content", why=why, fix=_REPLACE)
    except errors.AwsError as error:
        return _unreadable(proof, error)
    values = measurement_tags(found) if found is not None else {}
    notes = tuple(
        f"Its tag {key} is {value}, but its bytes have {values.get(key, 'no such measurement')}."
        for key, value in proof.attested.items()
        if values.get(key) != value
    )
    return replace(proof, measurements=found, notes=(*proof.notes, *notes))


def _read(plan: ProofPlan, target: Proof, step: Step) -> tuple[Digests, frozenset[int] | None]:
    """Return the digests of the compared blocks of the snapshot, and their indices; ``None`` for all."""
    journal, only = _journal(plan.settings, target), None
    with lock_journal(journal.path, f"proves {target.snapshot_id}", step, remove=True):
        if target.sample is not None:
            known = journal.open()
            only = _chosen(target, journal.seed, known)
        pairs = reading.digests(
            plan.session,
            region=target.region,
            snapshot_id=target.snapshot_id,
            only=only,
            journal=journal,
            step=step,
        )
        return Digests((index, digest.hex()) for index, digest in pairs), only


def _differing(found: Iterable[tuple[int, bytes]], expected: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    """Yield the indices of the differing blocks. Missing blocks are zeros."""
    both = merge(
        ((index, digest, True) for index, digest in found),
        ((index, digest, False) for index, digest in expected),
        key=itemgetter(0),
    )
    for index, pair in groupby(both, key=itemgetter(0)):
        digests = {mine: NONE if digest == ZERO else digest for _, digest, mine in pair}
        if digests.get(True, NONE) != digests.get(False, NONE):
            yield index


def _some(bad: list[Proof], result: ProofResult) -> str:
    if len(result.proofs) == 1:
        return "The AMI does"
    return f"{len(bad)} of {len(result.proofs)} AMIs {'does' if len(bad) == 1 else 'do'}"


def _record(result: ProofResult, started: datetime) -> tuple[str, ...]:
    plan, now = result.plan, datetime.now(UTC)
    rows = []
    for proof in result.proofs:
        values = proof.as_dict(plan.extent)
        same = ("region", "ami_id", "verdict", "extent", "blocks", "compared")
        texts = ("name", "account", "snapshot_id", "reason", "digest", "source")
        rows.append(
            {name: values[name] for name in same}
            | {name: values[name] or None for name in texts}
            | {"run_id": result.run_id, "proved_at": now}
        )
    status, error = result.as_dict()["status"], result.error
    single = result.proofs[0] if len(result.proofs) == 1 else None
    where = {"region": single.region, "ami_id": single.ami_id} if single else {}
    try:
        plan.tables.append("proofs", rows, once=f"{result.run_id}/proofs")
        more = {"error": str(error)} if error else {}
        record_run(plan.run, plan.tables, status, started, **where, **more)
    except errors.RecordsError as unsaved:
        return (f"The proof could not be recorded. {unsaved}",)
    return ()
