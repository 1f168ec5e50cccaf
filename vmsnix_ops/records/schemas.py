"""The columns of each table with their kinds, units and meanings.

These definitions create the Delta tables, check new rows, and make the reference page
``docs/reference/tables.md`` (``python -m vmsnix_ops.records.schemas`` prints it; a test compares the two).

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
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import outcomes
from vmsnix_ops.endpoints import ENDPOINT_KINDS
from vmsnix_ops.errors import SchemaError, nearest

if TYPE_CHECKING:
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


_RUN_ID = Column("run_id", "text", "Run ID; joins `runs`, `steps` and `amis`.", required=True)
_IMAGE = Column("image", "text", "Short name of the image, such as `ecs-node`.")
_DIGEST = Column("digest", "text", "Identity of the disk, in hexadecimal.")
_REGION = Column("region", "text", "AWS region.")
_ACCOUNT = Column("account", "text", "AWS account ID, 12 digits.")
_ENDPOINT = Column(
    "endpoint",
    "text",
    "Where the requests were sent: `aws`; `sandbox`, a local AWS on this machine; `custom`, another "
    "endpoint. Empty in rows of older versions.",
    values=ENDPOINT_KINDS,
)
_COST_BASIS = Column(
    "cost_basis",
    "text",
    "What the cost is computed from: `stored`, the bytes that it stores; `volume`, the size of its volume; "
    "`snapshots`, the snapshots of an AMI, which have rows of their own. Leave out `snapshots` from a sum.",
    values=("stored", "volume", "snapshots"),
)
_FINDING_ID = Column(
    "finding_id",
    "text",
    "Identity of the finding, equal in every audit that finds it: 16 hexadecimal digits.",
)
_VIA = Column(
    "via",
    "text",
    "Method that created the snapshot: `import` is VM Import, `direct` is the EBS direct APIs.",
    values=("import", "direct"),
)

RUNS = Schema(
    "runs",
    "One row per run of a runbook, written when the run ends.",
    (
        _RUN_ID,
        Column("runbook", "text", "Name of the runbook, such as `publish-ami`.", required=True),
        Column(
            "status",
            "text",
            "Outcome of the run.",
            required=True,
            values=outcomes.FINAL_STATUSES,
        ),
        Column("started_at", "time", "Start of the run.", "UTC", required=True),
        Column("finished_at", "time", "End of the run.", "UTC"),
        Column("seconds", "number", "Duration of the run.", "s"),
        _REGION,
        _ACCOUNT,
        _ENDPOINT,
        _IMAGE,
        Column("image_name", "text", "Name of the AMI that was published or found."),
        Column("ami_id", "text", "ID of the AMI that was published or found."),
        Column("notebook", "text", "Path of the executed notebook."),
        Column("report", "text", "Path of the HTML report."),
        Column("parameters", "json", "Parameters of the run."),
        Column("modified", "flag", "Whether the notebook's cells differed from those of the package."),
        Column("dry_run", "flag", "Whether the run only planned and changed nothing."),
        Column("error", "text", "Error that ended the run; empty when the run is done."),
        Column("user", "text", "Operating system user that ran it."),
        Column("host", "text", "Host name of the machine that ran it."),
        Column("version", "text", "Version of vmsnix_ops."),
        Column("attempt", "count", "Number of the attempt; each attempt of a resumed run has a row."),
        Column("interactive", "flag", "Whether another program than vmsnix executed the cells."),
        Column("journal_entries", "count", "Number of entries of the run's journal `evidence.jsonl`."),
        Column(
            "journal_sha256",
            "text",
            "SHA-256 of the last of these entries, in hexadecimal; `vmsnix runs verify` compares it.",
        ),
    ),
)

STEPS = Schema(
    "steps",
    "One row per step of a run, written when the step ends.",
    (
        _RUN_ID,
        Column("step", "text", "Name of the step, such as `upload`.", required=True),
        Column(
            "status",
            "text",
            "Outcome of the step. `reused`: its result existed; `unchanged`: already in the desired state.",
            required=True,
            values=(*outcomes.SUCCEEDED, "planned", "skipped", "failed"),
        ),
        Column("started_at", "time", "Start of the step.", "UTC", required=True),
        Column("finished_at", "time", "End of the step.", "UTC"),
        Column("seconds", "number", "Duration of the step.", "s"),
        Column("bytes", "count", "Bytes that the step transferred or processed.", "B"),
        Column(
            "items",
            "count",
            "Number of items that the step processed. For a build: derivations built plus store paths "
            "fetched.",
        ),
        _IMAGE,
        _DIGEST,
        _REGION,
        _ACCOUNT,
        _ENDPOINT,
        _VIA,
        Column("detail", "json", "Details of the step: identifiers, attempts, messages."),
    ),
)

AMIS = Schema(
    "amis",
    "One row per recorded state of an AMI in a region; the latest row is the current one.",
    (
        Column("ami_id", "text", "AMI ID.", required=True),
        Column("name", "text", "Name of the AMI.", required=True),
        _IMAGE,
        Column("version", "text", "Version of the image."),
        Column("system", "text", "Nix system, such as `x86_64-linux`."),
        _DIGEST,
        Column("region", "text", "AWS region.", required=True),
        _ACCOUNT,
        _ENDPOINT,
        Column("snapshot_id", "text", "Snapshot of the root device."),
        Column("run_id", "text", "Run that published or copied the AMI."),
        Column("created_at", "time", "Creation time in AWS.", "UTC"),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
        Column("size_gib", "count", "Size of the root volume.", "GiB"),
        Column(
            "boot_mode", "text", "Boot mode of the AMI.", values=("legacy-bios", "uefi", "uefi-preferred")
        ),
        Column("root_device", "text", "Device name of the root volume, such as `/dev/sda1`."),
        Column(
            "imds_support",
            "text",
            "`v2.0` if instances require IMDSv2 session tokens; empty text if not.",
        ),
        Column("tpm_support", "text", "`v2.0` if instances have a TPM; empty text if not."),
        Column("ena_support", "flag", "Whether enhanced networking (ENA) is on."),
        _VIA,
        Column("public", "flag", "Whether every AWS account may launch it."),
        Column("deprecated_at", "time", "Deprecation time; empty if none is set.", "UTC"),
        Column("protected", "flag", "Whether deregistration protection is on."),
        Column("description", "text", "Description of the AMI."),
        Column("state", "text", "State of the AMI in AWS, such as `available`."),
        Column("flake", "text", "Flake reference that the AMI was built from."),
        Column("derivation", "text", "Store path of the derivation."),
        Column("root_hash", "text", "Root hash of the verity store of an attested image."),
        Column("uki_sha384", "text", "Authenticode hash (SHA-384) of its unified kernel image."),
        Column("pcr4_sha384", "text", "Predicted PCR 4 (SHA-384) of its instances."),
        Column("pcr12_sha384", "text", "Predicted PCR 12 (SHA-384) of its instances."),
        Column(
            "source",
            "text",
            "Origin of the row: the run that published, copied or retired the AMI, or a sync of the tags in "
            "AWS.",
            required=True,
            values=("publish", "promote", "retire", "sync"),
        ),
        Column("tags", "json", "Tags of the AMI."),
    ),
)

PROMOTIONS = Schema(
    "promotions",
    "One row per AMI and region of a promotion or a rollback.",
    (
        _RUN_ID,
        Column("promoted_at", "time", "Time of the promotion or rollback.", "UTC", required=True),
        Column("how", "text", "Kind of change.", required=True, values=("promote", "roll back")),
        Column("ami_id", "text", "AMI ID; joins `amis`.", required=True),
        Column("region", "text", "AWS region.", required=True),
        _ACCOUNT,
        _ENDPOINT,
        Column("name", "text", "Name of the AMI."),
        _IMAGE,
        Column("version", "text", "Version of the image."),
        _DIGEST,
        Column("source_ami_id", "text", "AMI that this one is a copy of; empty for the original."),
        Column("source_region", "text", "Region of that AMI."),
        Column("channel", "text", "Channel that was set to the AMI; empty if no channel was set."),
        Column("channel_parameter", "text", "Name of the channel's SSM parameter."),
        Column("previous_ami_id", "text", "AMI that the channel contained before."),
        Column(
            "shared_with", "json", "Accounts, organizations and organizational units that may launch the AMI."
        ),
        Column("snapshots_shared_with", "json", "Accounts that may use its snapshots."),
        Column("public", "flag", "Whether every AWS account may launch it."),
        Column("deprecated_at", "time", "Deprecation time.", "UTC"),
        Column("protected", "flag", "Whether deregistration protection is on."),
        Column("encrypted", "flag", "Whether its snapshots are encrypted."),
        Column("kms_key", "text", "ARN of the KMS key of its root snapshot."),
    ),
)

PACKAGES = Schema(
    "packages",
    "One row per store path in the closure of a published image.",
    (
        Column("digest", "text", "Identity of the disk, in hexadecimal; joins `amis`.", required=True),
        _IMAGE,
        Column("image_version", "text", "Version of the image."),
        Column("system", "text", "Nix system, such as `x86_64-linux`."),
        Column("name", "text", "Package name without the version.", required=True),
        Column("version", "text", "Version of the package, from the store path."),
        Column("store_path", "text", "Path in the Nix store.", required=True),
        Column("bytes", "count", "NAR size of the path itself.", "B"),
        Column("pname", "text", "Package name in nixpkgs; empty if the flake has no facts about the path."),
        Column("package_version", "text", "Version in nixpkgs; empty for a generated file."),
        Column("licenses", "json", "SPDX identifiers of its licences, or their names."),
        Column("cpe", "text", "CPE name, if nixpkgs has one."),
        Column("purl", "text", "Package URL, if nixpkgs has one."),
        Column("patches", "json", "File names of the patches that nixpkgs applies."),
        Column("known_vulnerabilities", "json", "Vulnerabilities that nixpkgs lists for it."),
        Column("run_id", "text", "Run that recorded the row."),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
    ),
)

INVENTORY = Schema(
    "inventory",
    "One row per resource that a scan found. Rows of kind `region` and `bucket` record that the scan read "
    "it.",
    (
        Column("run_id", "text", "Run that scanned.", required=True),
        Column("scanned_at", "time", "Start of the scan; equal in all its rows.", "UTC", required=True),
        Column("account", "text", "AWS account ID, 12 digits.", required=True),
        Column("region", "text", "AWS region.", required=True),
        _ENDPOINT,
        Column(
            "kind",
            "text",
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
        Column("resource_id", "text", "Identifier or key of the resource.", required=True),
        Column("name", "text", "Name of the resource."),
        Column("state", "text", "State in AWS."),
        Column("created_at", "time", "Creation time in AWS.", "UTC"),
        Column("size_gib", "count", "Size of its volumes.", "GiB"),
        Column("stored_bytes", "count", "Bytes stored; empty if AWS does not report them.", "B"),
        Column("estimated", "flag", "Whether the cost is estimated from the volume size."),
        Column(
            "monthly_usd",
            "number",
            "Monthly cost; the cost of an AMI is that of its snapshots.",
            "USD per month",
        ),
        _COST_BASIS,
        Column("tier", "text", "Storage tier of a snapshot.", values=("standard", "archive")),
        Column("referenced", "flag", "Whether the resource is referenced; empty if unknown."),
        Column(
            "references", "json", "References to the resource: objects with `kind`, `id` and further details."
        ),
        Column("public", "flag", "Whether every AWS account may use it."),
        Column("encrypted", "flag", "Whether it is encrypted."),
        Column("last_launched_at", "time", "Last launch of an instance from the AMI.", "UTC"),
        Column(
            "proven_at",
            "time",
            "Last proof that the AMI contains the published image. Empty if there is none, or if the last "
            "proof found that it differs.",
            "UTC",
        ),
        Column("deprecated_at", "time", "Deprecation time.", "UTC"),
        Column("snapshots", "json", "Snapshots of an AMI, or the snapshot of an import."),
        Column("imds_support", "text", "`v2.0` if instances of the AMI require IMDSv2 session tokens."),
        Column("boot_mode", "text", "Boot mode of an AMI; empty for the default of the instance type."),
        Column("root_device", "text", "Device name of the AMI's root volume."),
        Column("source", "text", "Origin of the resource: a volume, a description, an AMI or an object."),
        Column("message", "text", "State message of AWS, such as why a copy failed."),
        _IMAGE,
        _DIGEST,
        Column("tags", "json", "Tags of the resource."),
    ),
)

FINDINGS = Schema(
    "findings",
    "One row per finding of an audit.",
    (
        _FINDING_ID,
        Column("run_id", "text", "Run that scanned; joins `runs` and `inventory`.", required=True),
        Column("scanned_at", "time", "Start of the scan; equal in all its rows.", "UTC", required=True),
        Column(
            "severity",
            "text",
            "How urgent it is: `critical`, production may fail; `high`, fix it today.",
            required=True,
            values=outcomes.SEVERITIES,
        ),
        Column("rule", "text", "Name of the rule that found it.", required=True),
        _ACCOUNT,
        Column("region", "text", "AWS region; empty for a whole account."),
        _ENDPOINT,
        Column("kind", "text", "Kind of the resource, as in `inventory`."),
        Column("resource_id", "text", "Identifier of the resource; joins `inventory`."),
        Column("name", "text", "Name of the resource."),
        Column("image", "text", "Short name of the image, if vmsnix published it."),
        Column("reason", "text", "What is wrong."),
        Column("evidence", "text", "Facts that show it."),
        Column("remediation", "text", "Command that fixes it; empty if a person has to decide."),
        Column(
            "monthly_usd",
            "number",
            "Monthly cost of the resource. A resource can have several findings.",
            "USD per month",
        ),
        _COST_BASIS,
        Column("acknowledged", "flag", "Whether it was acknowledged when the audit ran."),
    ),
)

ACKNOWLEDGEMENTS = Schema(
    "acknowledgements",
    "One row per acknowledgement of a finding or its withdrawal; the latest row of a finding applies.",
    (
        replace(_FINDING_ID, required=True),
        Column(
            "action",
            "text",
            "Kind of change.",
            required=True,
            values=("acknowledged", "withdrawn"),
        ),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
        Column("until", "time", "When the finding counts again; empty in a withdrawal.", "UTC"),
        Column("reason", "text", "Why the finding is acceptable, or why this no longer applies."),
        Column("user", "text", "Operating system user who did it."),
        Column(
            "severity",
            "text",
            "Severity of the finding then. The acknowledgement does not cover a higher one.",
            required=True,
            values=outcomes.SEVERITIES,
        ),
        Column("rule", "text", "Name of the rule that found it."),
        _ACCOUNT,
        Column("region", "text", "AWS region; empty for a whole account."),
        _ENDPOINT,
        Column("kind", "text", "Kind of the resource, as in `inventory`."),
        Column("resource_id", "text", "Identifier of the resource."),
        Column("name", "text", "Name of the resource."),
    ),
)

PROOFS = Schema(
    "proofs",
    "One row per AMI of a run of `prove-ami`.",
    (
        _RUN_ID,
        Column("proved_at", "time", "End of the proof.", "UTC", required=True),
        Column("region", "text", "AWS region.", required=True),
        Column("ami_id", "text", "AMI ID; joins `amis`.", required=True),
        Column("name", "text", "Name of the AMI."),
        Column("account", "text", "AWS account ID of the owner, 12 digits."),
        _ENDPOINT,
        Column("snapshot_id", "text", "Snapshot of the root device."),
        Column(
            "verdict",
            "text",
            "Result of the proof.",
            required=True,
            values=("proven", "matches its tag", "differs", "not provable"),
        ),
        Column("reason", "text", "Why it differs or is not provable."),
        Column("digest", "text", "Identity that was expected, in hexadecimal."),
        Column(
            "source",
            "text",
            "Origin of the expected identity: an argument, the result.json of a publish, or the AMI's tag.",
            values=("argument", "result", "tag"),
        ),
        Column("extent", "text", "Which blocks were read.", required=True, values=("whole", "sample")),
        Column("blocks", "count", "Blocks that the snapshot contains; a block has 524288 bytes."),
        Column("compared", "count", "Blocks that were compared."),
    ),
)

RETIREMENTS = Schema(
    "retirements",
    "One row per AMI or snapshot that was retired, restored or deleted.",
    (
        Column("run_id", "text", "Run that did it.", required=True),
        Column("done_at", "time", "Time of the change.", "UTC", required=True),
        Column("account", "text", "AWS account ID, 12 digits.", required=True),
        Column("region", "text", "AWS region.", required=True),
        _ENDPOINT,
        Column("kind", "text", "Kind of resource.", required=True, values=("ami", "snapshot")),
        Column("resource_id", "text", "Identifier of the resource.", required=True),
        Column(
            "action",
            "text",
            "Kind of change. `retired` and `restored` undo each other; `deleted` is final.",
            required=True,
            values=("retired", "restored", "deleted"),
        ),
        Column("name", "text", "Name of the resource."),
        _IMAGE,
        _DIGEST,
        Column("ami_id", "text", "AMI that a snapshot was retired, restored or deleted with."),
        Column("reasons", "json", "Reasons from the plan."),
        Column(
            "shared_with", "json", "Accounts and groups that lost access (retired) or regained it (restored)."
        ),
        Column("deprecated_before", "time", "Deprecation time before the retirement.", "UTC"),
        Column(
            "retained_until",
            "time",
            "End of the retention period; the resource can be restored until then.",
            "UTC",
        ),
        Column("size_gib", "count", "Size of its volumes.", "GiB"),
        Column(
            "stored_bytes", "count", "Bytes stored in its snapshots; empty if AWS does not report them.", "B"
        ),
    ),
)

PLANS = Schema(
    "plans",
    "One row per plan of a run, so that a later run can list what differs from it.",
    (
        Column("run_id", "text", "Run ID; empty without a run."),
        Column("runbook", "text", "Name of the runbook.", required=True),
        Column("planned_at", "time", "When the plan was made.", "UTC", required=True),
        _ENDPOINT,
        Column("fingerprint", "text", "Fingerprint of the plan, 16 hexadecimal digits.", required=True),
        Column("facts", "json", "What will be done, and what was read to decide it, by name.", required=True),
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
