"""The columns of each table with their kinds, units and meanings.

These definitions create the Delta tables, check new rows, and make the reference page
``docs/reference/tables.md`` (``python -m docs.records_pages`` writes it; a test compares the two).

=======  ========================  =======================  ===========================================
kind     in the table (arrow)      in pandas                given as
=======  ========================  =======================  ===========================================
text     string                    ``str``                  str
json     string                    ``str``                  mapping or list, or JSON text
time     timestamp (us, UTC)       ``datetime64[us, UTC]``  datetime with a time zone (stored as UTC)
count    int64                     ``Int64``                int
number   double                    ``float64``              int or float, finite
flag     bool                      ``boolean``              bool
=======  ========================  =======================  ===========================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from vmsnix_ops import outcomes
from vmsnix_ops.endpoints import ENDPOINT_KINDS
from vmsnix_ops.errors import SchemaError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

Kind = Literal["text", "json", "time", "count", "number", "flag"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str  # ends with the unit, if there is one
    kind: Kind
    description: str  # meaning of the values
    unit: str = ""
    required: bool = False  # whether every row must have a value; in other columns an unknown value is empty
    values: tuple[str, ...] = ()  # the only allowed texts; empty for any text


@dataclass(frozen=True, slots=True)
class Schema:
    """One table."""

    name: str  # also the name of its folder
    description: str  # meaning of a row
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns in their order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return a column by its name."""
        for column in self.columns:
            if column.name == name:
                return column
        raise SchemaError(
            f"The table {self.name!r} has no column {name!r}.",
            why=nearest(name, self.names) or f"Its columns are {', '.join(self.names)}.",
            fix="Correct the column's name.",
        )

    @cache  # noqa: B019 - one entry for each table
    def arrow(self) -> pa.Schema:
        """Return the schema for Delta Lake, with descriptions and units as metadata of the fields."""
        import pyarrow as pa

        return pa.schema(
            [
                # All fields are nullable, so that a table can gain columns; `to_arrow` checks required ones.
                pa.field(
                    column.name,
                    arrow_type(column.kind),
                    metadata={"comment": column.description, "unit": column.unit},
                )
                for column in self.columns
            ]
        )


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the arrow type for a kind of column."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "json": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "count": pa.int64(),
        "number": pa.float64(),
        "flag": pa.bool_(),
    }
    return types[kind]


def schema(table: str) -> Schema:
    """Return the schema of a table."""
    if table not in SCHEMAS:
        raise SchemaError(
            f"There is no table {table!r}.",
            why=nearest(table, SCHEMAS) or f"The tables are {', '.join(SCHEMAS)}.",
            fix="Correct the table's name.",
        )
    return SCHEMAS[table]


def _kind(kind: Kind) -> Callable[..., Column]:
    """Return the function that makes a column of a kind from name, description and unit."""
    return lambda name, description, unit="", **more: Column(name, kind, description, unit, **more)


text, json, time, count, number, flag = (_kind(kind) for kind in get_args(Kind))

_RUN_ID = text("run_id", "Run ID; joins `runs`, `steps` and `amis`.", required=True)
_IMAGE = text("image", "Short name of the image, such as `ecs-node`.")
_DIGEST = text("digest", "Identity of the disk, in hexadecimal.")
_REGION = text("region", "AWS region.")
_ACCOUNT = text("account", "AWS account ID, 12 digits.")
_ENDPOINT = text(
    "endpoint",
    "Where the requests were sent: `aws`; `sandbox`, a local AWS on this machine; `custom`, another "
    "endpoint. Empty in rows of older versions.",
    values=ENDPOINT_KINDS,
)
_COST_BASIS = text(
    "cost_basis",
    "What the cost is computed from: `stored`, the bytes that it stores; `volume`, the size of its volume; "
    "`snapshots`, the snapshots of an AMI, which have rows of their own. Leave out `snapshots` from a sum.",
    values=("stored", "volume", "snapshots"),
)
_FINDING_ID = text(
    "finding_id", "Identity of the finding, equal in every audit that finds it: 16 hexadecimal digits."
)
_VIA = text(
    "via",
    "Method that created the snapshot: `import` is VM Import, `direct` is the EBS direct APIs.",
    values=("import", "direct"),
)

RUNS = Schema(
    "runs",
    "One row per run of a runbook, written when the run ends.",
    (
        _RUN_ID,
        text("runbook", "Name of the runbook, such as `publish-ami`.", required=True),
        text("status", "Outcome of the run.", required=True, values=outcomes.FINAL_STATUSES),
        time("started_at", "Start of the run.", "UTC", required=True),
        time("finished_at", "End of the run.", "UTC"),
        number("seconds", "Duration of the run.", "s"),
        _REGION,
        _ACCOUNT,
        _ENDPOINT,
        _IMAGE,
        text("image_name", "Name of the AMI that was published or found."),
        text("ami_id", "ID of the AMI that was published or found."),
        text("notebook", "Path of the executed notebook."),
        text("report", "Path of the HTML report."),
        json("parameters", "Parameters of the run."),
        flag("modified", "Whether the notebook's cells differed from those of the package."),
        flag("dry_run", "Whether the run only planned and changed nothing."),
        text("error", "Error that ended the run; empty when the run is done."),
        text("user", "Operating system user that ran it."),
        text("host", "Host name of the machine that ran it."),
        text("version", "Version of vmsnix_ops."),
        count("attempt", "Number of the attempt; each attempt of a resumed run has a row."),
        flag("interactive", "Whether a program other than vmsnix executed the cells."),
        count("journal_entries", "Number of entries of the run's journal `evidence.jsonl`."),
        text(
            "journal_sha256",
            "SHA-256 of the last of these entries, in hexadecimal; `vmsnix runs verify` compares it.",
        ),
    ),
)

STEPS = Schema(
    "steps",
    "One row per step of a run, written when the step ends.",
    (
        _RUN_ID,
        text("step", "Name of the step, such as `upload`.", required=True),
        text(
            "status",
            "Outcome of the step. `reused`: its result existed; `unchanged`: already in the desired state.",
            required=True,
            values=(*outcomes.SUCCEEDED, "planned", "skipped", "failed"),
        ),
        time("started_at", "Start of the step.", "UTC", required=True),
        time("finished_at", "End of the step.", "UTC"),
        number("seconds", "Duration of the step.", "s"),
        count("bytes", "Bytes that the step transferred or processed.", "B"),
        count(
            "items",
            "Number of items that the step processed. For a build: derivations built plus store paths "
            "fetched.",
        ),
        _IMAGE,
        _DIGEST,
        _REGION,
        _ACCOUNT,
        _ENDPOINT,
        _VIA,
        json("detail", "Details of the step: identifiers, attempts, messages."),
    ),
)

AMIS = Schema(
    "amis",
    "One row per recorded state of an AMI in a region; the latest row is the current one.",
    (
        text("ami_id", "AMI ID.", required=True),
        text("name", "Name of the AMI.", required=True),
        _IMAGE,
        text("version", "Version of the image."),
        text("system", "Nix system, such as `x86_64-linux`."),
        _DIGEST,
        text("region", "AWS region.", required=True),
        _ACCOUNT,
        _ENDPOINT,
        text("snapshot_id", "Snapshot of the root device."),
        text("run_id", "Run that published or copied the AMI."),
        time("created_at", "Creation time in AWS.", "UTC"),
        time("recorded_at", "When this row was written.", "UTC", required=True),
        count("size_gib", "Size of the root volume.", "GiB"),
        text("boot_mode", "Boot mode of the AMI.", values=("legacy-bios", "uefi", "uefi-preferred")),
        text("root_device", "Device name of the root volume, such as `/dev/sda1`."),
        text("imds_support", "`v2.0` if instances require IMDSv2 session tokens; empty text if not."),
        text("tpm_support", "`v2.0` if instances have a TPM; empty text if not."),
        flag("ena_support", "Whether enhanced networking (ENA) is on."),
        _VIA,
        flag("public", "Whether every AWS account may launch it."),
        time("deprecated_at", "Deprecation time; empty if none is set.", "UTC"),
        flag("protected", "Whether deregistration protection is on."),
        text("description", "Description of the AMI."),
        text("state", "State of the AMI in AWS, such as `available`."),
        text("flake", "Flake reference that the AMI was built from."),
        text("derivation", "Store path of the derivation."),
        text("root_hash", "Root hash of the verity store of an attested image."),
        text("uki_sha384", "Authenticode hash (SHA-384) of its unified kernel image."),
        text("pcr4_sha384", "Predicted PCR 4 (SHA-384) of its instances."),
        text("pcr12_sha384", "Predicted PCR 12 (SHA-384) of its instances."),
        text(
            "source",
            "Origin of the row: the run that published, copied or retired the AMI, or a sync of the tags in "
            "AWS.",
            required=True,
            values=("publish", "promote", "retire", "sync"),
        ),
        json("tags", "Tags of the AMI."),
    ),
)

PROMOTIONS = Schema(
    "promotions",
    "One row per AMI and region of a promotion or a rollback.",
    (
        _RUN_ID,
        time("promoted_at", "Time of the promotion or rollback.", "UTC", required=True),
        text("how", "Kind of change.", required=True, values=("promote", "roll back")),
        text("ami_id", "AMI ID; joins `amis`.", required=True),
        text("region", "AWS region.", required=True),
        _ACCOUNT,
        _ENDPOINT,
        text("name", "Name of the AMI."),
        _IMAGE,
        text("version", "Version of the image."),
        _DIGEST,
        text("source_ami_id", "AMI that this one is a copy of; empty for the original."),
        text("source_region", "Region of that AMI."),
        text("channel", "Channel that was set to the AMI; empty if no channel was set."),
        text("channel_parameter", "Name of the channel's SSM parameter."),
        text("previous_ami_id", "AMI that the channel contained before."),
        json("shared_with", "Accounts, organizations and organizational units that may launch the AMI."),
        json("snapshots_shared_with", "Accounts that may use its snapshots."),
        flag("public", "Whether every AWS account may launch it."),
        time("deprecated_at", "Deprecation time.", "UTC"),
        flag("protected", "Whether deregistration protection is on."),
        flag("encrypted", "Whether its snapshots are encrypted."),
        text("kms_key", "ARN of the KMS key of its root snapshot."),
    ),
)

PACKAGES = Schema(
    "packages",
    "One row per store path in the closure of a published image.",
    (
        text("digest", "Identity of the disk, in hexadecimal; joins `amis`.", required=True),
        _IMAGE,
        text("image_version", "Version of the image."),
        text("system", "Nix system, such as `x86_64-linux`."),
        text("name", "Package name without the version.", required=True),
        text("version", "Version of the package, from the store path."),
        text("store_path", "Path in the Nix store.", required=True),
        count("bytes", "NAR size of the path itself.", "B"),
        text("pname", "Package name in nixpkgs; empty if the flake has no facts about the path."),
        text("package_version", "Version in nixpkgs; empty for a generated file."),
        json("licenses", "SPDX identifiers of its licences, or their names."),
        text("cpe", "CPE name, if nixpkgs has one."),
        text("purl", "Package URL, if nixpkgs has one."),
        json("patches", "File names of the patches that nixpkgs applies."),
        json("known_vulnerabilities", "Vulnerabilities that nixpkgs lists for it."),
        text("run_id", "Run that recorded the row."),
        time("recorded_at", "When this row was written.", "UTC", required=True),
    ),
)

INVENTORY = Schema(
    "inventory",
    "One row per resource that a scan found. Rows of kind `region` and `bucket` record that the scan read "
    "it.",
    (
        text("run_id", "Run that scanned.", required=True),
        time("scanned_at", "Start of the scan; equal in all its rows.", "UTC", required=True),
        text("account", "AWS account ID, 12 digits.", required=True),
        text("region", "AWS region.", required=True),
        _ENDPOINT,
        text(
            "kind",
            "Kind of resource.",
            required=True,
            values=(
                "ami",
                "snapshot",
                "import-task",
                "direct-upload",
                "multipart-upload",
                "object",
                "region",
                "bucket",
            ),
        ),
        text("resource_id", "Identifier or key of the resource.", required=True),
        text("name", "Name of the resource."),
        text("state", "State in AWS."),
        time("created_at", "Creation time in AWS.", "UTC"),
        count("size_gib", "Size of its volumes.", "GiB"),
        count("stored_bytes", "Bytes stored; empty if AWS does not report them.", "B"),
        flag("estimated", "Whether the cost is estimated from the volume size."),
        number("monthly_usd", "Monthly cost; the cost of an AMI is that of its snapshots.", "USD per month"),
        _COST_BASIS,
        text("tier", "Storage tier of a snapshot.", values=("standard", "archive")),
        flag("referenced", "Whether the resource is referenced; empty if unknown."),
        json("references", "References to the resource: objects with `kind`, `id` and further details."),
        flag("public", "Whether every AWS account may use it."),
        flag("encrypted", "Whether it is encrypted."),
        time("last_launched_at", "Last launch of an instance from the AMI.", "UTC"),
        time(
            "proven_at",
            "Last proof that the AMI contains the published image. Empty if there is none, or if the last "
            "proof found that it differs.",
            "UTC",
        ),
        time("deprecated_at", "Deprecation time.", "UTC"),
        json("snapshots", "Snapshots of an AMI, or the snapshot of an import."),
        text("imds_support", "`v2.0` if instances of the AMI require IMDSv2 session tokens."),
        text("boot_mode", "Boot mode of an AMI; empty for the default of the instance type."),
        text("root_device", "Device name of the AMI's root volume."),
        text("source", "Origin of the resource: a volume, a description, an AMI or an object."),
        text("message", "State message of AWS, such as why a copy failed."),
        _IMAGE,
        _DIGEST,
        json("tags", "Tags of the resource."),
    ),
)

FINDINGS = Schema(
    "findings",
    "One row per finding of an audit.",
    (
        _FINDING_ID,
        text("run_id", "Run that scanned; joins `runs` and `inventory`.", required=True),
        time("scanned_at", "Start of the scan; equal in all its rows.", "UTC", required=True),
        text(
            "severity",
            "How urgent it is: `critical`, production may fail; `high`, fix it today.",
            required=True,
            values=outcomes.SEVERITIES,
        ),
        text("rule", "Name of the rule that found it.", required=True),
        _ACCOUNT,
        text("region", "AWS region; empty for a whole account."),
        _ENDPOINT,
        text("kind", "Kind of the resource, as in `inventory`."),
        text("resource_id", "Identifier of the resource; joins `inventory`."),
        text("name", "Name of the resource."),
        text("image", "Short name of the image, if vmsnix published it."),
        text("reason", "What is wrong."),
        text("evidence", "Facts that show it."),
        text("remediation", "Command that fixes it; empty if a person has to decide."),
        number(
            "monthly_usd",
            "Monthly cost of the resource. A resource can have several findings.",
            "USD per month",
        ),
        _COST_BASIS,
        flag("acknowledged", "Whether it was acknowledged when the audit ran."),
    ),
)

ACKNOWLEDGEMENTS = Schema(
    "acknowledgements",
    "One row per acknowledgement of a finding or its withdrawal; the latest row of a finding applies.",
    (
        replace(_FINDING_ID, required=True),
        text("action", "Kind of change.", required=True, values=("acknowledged", "withdrawn")),
        time("recorded_at", "When this row was written.", "UTC", required=True),
        time("until", "When the finding counts again; empty in a withdrawal.", "UTC"),
        text("reason", "Why the finding is acceptable, or why the acknowledgement was withdrawn."),
        text("user", "Operating system user who did it."),
        text(
            "severity",
            "Severity when it was acknowledged. The acknowledgement does not cover a higher one.",
            required=True,
            values=outcomes.SEVERITIES,
        ),
        text("rule", "Name of the rule that found it."),
        _ACCOUNT,
        text("region", "AWS region; empty for a whole account."),
        _ENDPOINT,
        text("kind", "Kind of the resource, as in `inventory`."),
        text("resource_id", "Identifier of the resource."),
        text("name", "Name of the resource."),
    ),
)

PROOFS = Schema(
    "proofs",
    "One row per AMI of a run of `prove-ami`.",
    (
        _RUN_ID,
        time("proved_at", "End of the proof.", "UTC", required=True),
        text("region", "AWS region.", required=True),
        text("ami_id", "AMI ID; joins `amis`.", required=True),
        text("name", "Name of the AMI."),
        text("account", "AWS account ID of the owner, 12 digits."),
        _ENDPOINT,
        text("snapshot_id", "Snapshot of the root device."),
        text(
            "verdict",
            "Result of the proof.",
            required=True,
            values=("proven", "matches its tag", "differs", "not provable"),
        ),
        text("reason", "Why it differs or is not provable."),
        text("digest", "Identity that was expected, in hexadecimal."),
        text(
            "source",
            "Origin of the expected identity: an argument, the result.json of a publish, or the AMI's tag.",
            values=("argument", "result", "tag"),
        ),
        text("extent", "Which blocks were read.", required=True, values=("whole", "sample")),
        count("blocks", "Blocks that the snapshot contains; a block has 524288 bytes."),
        count("compared", "Blocks that were compared."),
    ),
)

RETIREMENTS = Schema(
    "retirements",
    "One row per AMI or snapshot that was retired, restored or deleted.",
    (
        text("run_id", "Run that did it.", required=True),
        time("done_at", "Time of the change.", "UTC", required=True),
        text("account", "AWS account ID, 12 digits.", required=True),
        text("region", "AWS region.", required=True),
        _ENDPOINT,
        text("kind", "Kind of resource.", required=True, values=("ami", "snapshot")),
        text("resource_id", "Identifier of the resource.", required=True),
        text(
            "action",
            "Kind of change. `retired` and `restored` undo each other; `deleted` is final.",
            required=True,
            values=("retired", "restored", "deleted"),
        ),
        text("name", "Name of the resource."),
        _IMAGE,
        _DIGEST,
        text("ami_id", "AMI with which a snapshot was retired, restored or deleted."),
        json("reasons", "Reasons from the plan."),
        json("shared_with", "Accounts and groups that lost access (retired) or regained it (restored)."),
        time("deprecated_before", "Deprecation time before the retirement.", "UTC"),
        time(
            "retained_until", "End of the retention period; the resource can be restored until then.", "UTC"
        ),
        count("size_gib", "Size of its volumes.", "GiB"),
        count("stored_bytes", "Bytes stored in its snapshots; empty if AWS does not report them.", "B"),
    ),
)

PLANS = Schema(
    "plans",
    "One row per plan of a run, so that a later run can list what differs from it.",
    (
        text("run_id", "Run ID; empty without a run."),
        text("runbook", "Name of the runbook.", required=True),
        time("planned_at", "When the plan was made.", "UTC", required=True),
        _ENDPOINT,
        text("fingerprint", "Fingerprint of the plan, 16 hexadecimal digits.", required=True),
        json("facts", "Planned changes, and the facts that they depend on, by name.", required=True),
    ),
)

SCHEMAS: dict[str, Schema] = {
    table.name: table
    for table in (
        *(RUNS, STEPS, AMIS, PROMOTIONS, PACKAGES, INVENTORY),
        *(FINDINGS, ACKNOWLEDGEMENTS, PROOFS, RETIREMENTS, PLANS),
    )
}
"""The tables by name."""

FILTERS: dict[str, tuple[str, ...]] = {
    "runs": ("run_id", "runbook", "status", "image", "region", "account", "dry_run"),
    "steps": ("run_id", "step", "status", "image", "region", "account", "via"),
    "amis": ("ami_id", "name", "image", "region", "account", "run_id", "digest", "state"),
    "promotions": ("run_id", "ami_id", "channel", "image", "region", "account", "how"),
    "inventory": (
        *("run_id", "kind", "resource_id", "name", "state", "image", "region", "account"),
        *("cost_basis", "referenced", "public"),
    ),
    "findings": ("run_id", "severity", "rule", "kind", "resource_id", "image", "region", "account"),
    "packages": ("digest", "image", "name", "version", "system", "run_id"),
    "proofs": ("run_id", "ami_id", "verdict", "region", "account"),
    "retirements": ("run_id", "resource_id", "action", "kind", "image", "region", "account"),
}
"""The filters of each table that functions and commands list; every text, count and flag is a filter."""
