"""What stands in each table: every column with its kind, its unit and what it means.

The same definitions make the Delta tables, check what is written, and are the reference page
``docs/reference/tables.md`` (``python -m vmsnix_ops.records.schemas`` prints it; a test keeps the two equal).

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

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import outcomes
from vmsnix_ops.errors import SchemaError, nearest
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "json", "time", "count", "number", "flag"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name
        Name; ends with the unit where there is one.
    kind
        What its values are; see the table in `vmsnix_ops.records.schemas`.
    description
        What it means.
    unit
        Unit of its values, empty where they have none.
    required
        Whether every row must have it. Other columns are empty where nobody knows.
    values
        The only texts allowed, where the column is one of a few words.
    """

    name: str
    kind: Kind
    description: str
    unit: str = ""
    required: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    """One table.

    Attributes
    ----------
    name
        Name of the table, which is also the name of its folder.
    description
        What one row is.
    columns
        The columns in the order in which they are shown.
    """

    name: str
    description: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return a column by its name.

        Raises
        ------
        SchemaError
            When there is none; names the nearest.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise SchemaError(
            f"The table {self.name!r} has no column {name!r}.",
            why=nearest(name, self.names) or f"Its columns are {', '.join(self.names)}.",
            cure="Correct the name.",
        )

    @cache  # noqa: B019 - there are as many as tables
    def arrow(self) -> pa.Schema:
        """Return the schema as Delta Lake stores it; descriptions and units are field metadata."""
        import pyarrow as pa

        return pa.schema(
            [
                # Required columns are checked when written: a table could never gain a column otherwise.
                pa.field(
                    column.name,
                    arrow_type(column.kind),
                    metadata={"comment": column.description, "unit": column.unit},
                )
                for column in self.columns
            ]
        )


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the arrow type in which a kind of column is stored."""
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
    """Return the schema of a table.

    Raises
    ------
    SchemaError
        When there is no such table; names the nearest.
    """
    if table not in SCHEMAS:
        raise SchemaError(
            f"There is no table {table!r}.",
            why=nearest(table, SCHEMAS) or f"The tables are {', '.join(SCHEMAS)}.",
            cure="Correct the name.",
        )
    return SCHEMAS[table]


_RUN_ID = Column("run_id", "text", "The run; joins `runs`, `steps` and `amis`.", required=True)
_IMAGE = Column("image", "text", "Short name of the image, such as `ecs-node`.")
_DIGEST = Column("digest", "text", "SHA-256 of the image file, in hexadecimal.")
_REGION = Column("region", "text", "AWS region.")
_ACCOUNT = Column("account", "text", "AWS account id, 12 digits.")
_VIA = Column(
    "via",
    "text",
    "How the bytes became a snapshot: VM Import, or the EBS direct APIs.",
    values=("import", "direct"),
)

RUNS = Schema(
    "runs",
    "One row is one run of a runbook, written when it ends.",
    (
        _RUN_ID,
        Column("runbook", "text", "Name of the runbook, such as `publish-ami`.", required=True),
        Column(
            "status",
            "text",
            "How it ended.",
            required=True,
            values=outcomes.VERDICTS,
        ),
        Column("started_at", "time", "When it started.", "UTC", required=True),
        Column("finished_at", "time", "When it ended.", "UTC"),
        Column("seconds", "number", "How long it took.", "s"),
        _REGION,
        _ACCOUNT,
        _IMAGE,
        Column("image_name", "text", "Name of the AMI that it published."),
        Column("ami_id", "text", "The AMI that it published."),
        Column("notebook", "text", "Path of the executed notebook."),
        Column("report", "text", "Path of the HTML report."),
        Column("parameters", "json", "The parameters with which it ran."),
        Column("error", "text", "The error that ended it; empty when it is done."),
        Column("user", "text", "Who ran it: the user of the operating system."),
        Column("host", "text", "On which machine."),
        Column("version", "text", "Version of vmsnix_ops."),
    ),
)

STEPS = Schema(
    "steps",
    "One row is one step of one run, written when the step ends.",
    (
        _RUN_ID,
        Column("step", "text", "Name of the step, such as `upload`.", required=True),
        Column(
            "status",
            "text",
            "How it ended; `reused`: its result existed already; `unchanged`: already as wanted.",
            required=True,
            values=(*outcomes.SUCCEEDED, "planned", "skipped", "failed"),
        ),
        Column("started_at", "time", "When it started.", "UTC", required=True),
        Column("finished_at", "time", "When it ended.", "UTC"),
        Column("seconds", "number", "How long it took.", "s"),
        Column("bytes", "count", "How many bytes it moved or worked on.", "B"),
        Column(
            "items",
            "count",
            "How much work there was: of a build, derivations built and store paths fetched.",
        ),
        _IMAGE,
        _DIGEST,
        _REGION,
        _VIA,
        Column("detail", "json", "What else the step has to say: identifiers, attempts, messages."),
    ),
)

AMIS = Schema(
    "amis",
    "One row is what was known of one AMI at one time; the latest row of an AMI and region counts.",
    (
        Column("ami_id", "text", "The AMI.", required=True),
        Column("name", "text", "Name of the AMI.", required=True),
        _IMAGE,
        Column("version", "text", "Version of the image."),
        Column("system", "text", "Nix system, such as `x86_64-linux`."),
        _DIGEST,
        Column("region", "text", "AWS region.", required=True),
        _ACCOUNT,
        Column("snapshot_id", "text", "Snapshot of the root device."),
        Column("run_id", "text", "The run that made it."),
        Column("created_at", "time", "When AWS created it.", "UTC"),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
        Column("size_gib", "count", "Size of the root volume.", "GiB"),
        Column("boot_mode", "text", "How it boots.", values=("legacy-bios", "uefi", "uefi-preferred")),
        Column("root_device", "text", "Device name of the root volume, such as `/dev/sda1`."),
        Column(
            "imds_support",
            "text",
            "`v2.0` when instances answer to session tokens only; empty text when not.",
        ),
        Column("tpm_support", "text", "`v2.0` when instances have a TPM; empty text when not."),
        Column("ena_support", "flag", "Whether it has enhanced networking."),
        _VIA,
        Column("public", "flag", "Whether every AWS account may launch it."),
        Column("deprecated_at", "time", "From when on it is deprecated; empty without a date.", "UTC"),
        Column("protected", "flag", "Whether it is protected from deregistration."),
        Column("description", "text", "What people read of it."),
        Column("state", "text", "State of the AMI as AWS names it, such as `available`."),
        Column("flake", "text", "Flake reference from which it was built."),
        Column("drv", "text", "Store path of the derivation."),
        Column(
            "source",
            "text",
            "Where the row is from: the run that published, copied or retired it, or the tags in AWS.",
            required=True,
            values=("publish", "promote", "retire", "sync"),
        ),
        Column("tags", "json", "Tags of the AMI."),
    ),
)

PROMOTIONS = Schema(
    "promotions",
    "One row is what one AMI was promoted to in one region, or that a channel was rolled back to it.",
    (
        _RUN_ID,
        Column("promoted_at", "time", "When it was done.", "UTC", required=True),
        Column("how", "text", "What was done.", required=True, values=("promote", "roll back")),
        Column("ami_id", "text", "The AMI; joins `amis`.", required=True),
        Column("region", "text", "AWS region.", required=True),
        _ACCOUNT,
        Column("name", "text", "Name of the AMI."),
        _IMAGE,
        Column("version", "text", "Version of the image."),
        _DIGEST,
        Column("source_ami_id", "text", "The AMI that it was copied from; empty for the original."),
        Column("source_region", "text", "Where that one is."),
        Column("channel", "text", "The channel that points to it since; empty when none was moved."),
        Column("pointer", "text", "Name of the channel's parameter."),
        Column("previous_ami_id", "text", "Where the channel pointed before."),
        Column("shared_with", "json", "Accounts, organizations and units that may launch it."),
        Column("snapshots_shared_with", "json", "Accounts that may use its snapshots."),
        Column("public", "flag", "Whether every AWS account may launch it."),
        Column("deprecated_at", "time", "From when on it is deprecated.", "UTC"),
        Column("protected", "flag", "Whether it is protected from deregistration."),
        Column("encrypted", "flag", "Whether its snapshots are encrypted."),
        Column("kms_key", "text", "ARN of the key of its root snapshot."),
    ),
)

PACKAGES = Schema(
    "packages",
    "One row is one store path in the closure of one published image.",
    (
        Column("digest", "text", "SHA-256 of the image file, in hexadecimal; joins `amis`.", required=True),
        _IMAGE,
        Column("image_version", "text", "Version of the image."),
        Column("system", "text", "Nix system, such as `x86_64-linux`."),
        Column("name", "text", "Name of the package, without its version.", required=True),
        Column("version", "text", "Version of the package."),
        Column("store_path", "text", "Its path in the Nix store.", required=True),
        Column("bytes", "count", "Size of the path itself (NAR).", "B"),
        Column("run_id", "text", "The run that recorded it."),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
    ),
)

INVENTORY = Schema(
    "inventory",
    "One row is one resource as one scan of an account saw it; a row of kind `region` or `bucket` says "
    "that it was read.",
    (
        Column("run_id", "text", "The run that scanned.", required=True),
        Column(
            "scanned_at", "time", "When the scan started; the same for all its rows.", "UTC", required=True
        ),
        Column("account", "text", "AWS account id, 12 digits.", required=True),
        Column("region", "text", "AWS region.", required=True),
        Column(
            "kind",
            "text",
            "What it is.",
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
        Column("resource_id", "text", "Its identifier or key.", required=True),
        Column("name", "text", "Its name."),
        Column("state", "text", "Its state as AWS names it."),
        Column("created_at", "time", "When AWS created it.", "UTC"),
        Column("size_gib", "count", "Size of its volumes.", "GiB"),
        Column("stored_bytes", "count", "Bytes that it stores, where AWS tells them.", "B"),
        Column("estimated", "flag", "Whether the cost had to be taken from the size of the volumes."),
        Column("monthly_usd", "number", "What it costs; an AMI costs what its snapshots do.", "USD a month"),
        Column("tier", "text", "Storage tier of a snapshot.", values=("standard", "archive")),
        Column("referenced", "flag", "Whether it is used; empty where that cannot be known."),
        Column("references", "json", "What uses it: objects with `kind`, `id`, and what else is known."),
        Column("public", "flag", "Whether every AWS account may use it."),
        Column("encrypted", "flag", "Whether its bytes are encrypted."),
        Column("last_launched_at", "time", "When an instance was last launched from it.", "UTC"),
        Column("deprecated_at", "time", "From when on it is deprecated.", "UTC"),
        Column("snapshots", "json", "The snapshots that an AMI holds, or that an import made."),
        Column("imds_support", "text", "`v2.0` where instances of an AMI answer to session tokens only."),
        Column("boot_mode", "text", "How an AMI boots; empty for the default of the instance type."),
        Column("root_device", "text", "Device name of an AMI's root volume."),
        Column("source", "text", "What it was made from: a volume, a description, an AMI, an object."),
        Column("message", "text", "What AWS says of its state, such as why a copy failed."),
        _IMAGE,
        _DIGEST,
        Column("tags", "json", "Its tags."),
    ),
)

MANIFESTS = Schema(
    "manifests",
    "One row is one block of one snapshot that was uploaded through the EBS direct APIs.",
    (
        Column("snapshot_id", "text", "The snapshot; joins `amis`.", required=True),
        Column("region", "text", "AWS region.", required=True),
        Column("digest", "text", "SHA-256 of the image file, in hexadecimal; joins `amis`.", required=True),
        _IMAGE,
        Column("block", "count", "Index of the block, which is 524288 bytes.", required=True),
        Column("sha256", "text", "SHA-256 of the block, in hexadecimal.", required=True),
        Column("recorded_at", "time", "When this row was written.", "UTC", required=True),
    ),
)

RETIREMENTS = Schema(
    "retirements",
    "One row is one thing that was done to one AMI or snapshot when it was retired, restored or removed.",
    (
        Column("run_id", "text", "The run that did it.", required=True),
        Column("done_at", "time", "When it was done.", "UTC", required=True),
        Column("account", "text", "AWS account id, 12 digits.", required=True),
        Column("region", "text", "AWS region.", required=True),
        Column("kind", "text", "What it is.", required=True, values=("ami", "snapshot")),
        Column("resource_id", "text", "Its identifier.", required=True),
        Column(
            "action",
            "text",
            "What was done: `retired` and `restored` undo each other, `deleted` is for good.",
            required=True,
            values=("retired", "restored", "deleted"),
        ),
        Column("name", "text", "Its name."),
        _IMAGE,
        _DIGEST,
        Column("ami_id", "text", "Of a snapshot: the AMI with which it went."),
        Column("reasons", "json", "Why: the reasons of the plan."),
        Column("shared_with", "json", "Retired: who could use it. Restored: who can again."),
        Column("deprecated_before", "time", "Its deprecation date before it was retired.", "UTC"),
        Column("grace_until", "time", "Until when it can be restored.", "UTC"),
        Column("size_gib", "count", "Size of its volumes.", "GiB"),
        Column("stored_bytes", "count", "Bytes that its snapshots held, where AWS told them.", "B"),
    ),
)

SCHEMAS: dict[str, Schema] = {
    table.name: table
    for table in (RUNS, STEPS, AMIS, PROMOTIONS, PACKAGES, INVENTORY, MANIFESTS, RETIREMENTS)
}
"""Every table, by name."""


def reference_page() -> str:
    """Return ``docs/reference/tables.md``: every table, column by column."""
    lines = [
        "# Tables",
        "",
        "<!-- Written by `python -m vmsnix_ops.records.schemas`: change vmsnix_ops/records/schemas.py. -->",
        "",
        "Delta Lake tables, append-only, in the folder or S3 prefix that the setting `history` names.",
        "Times are UTC. Read them with `vmsnix_ops.records.history`, or with any reader of Delta Lake.",
        "",
        "| kind | in the table | in pandas | note |",
        "|---|---|---|---|",
        "| text | string | `str` | |",
        "| json | string | `str` | JSON text |",
        "| time | timestamp (µs, UTC) | `datetime64[us, UTC]` | |",
        "| count | int64 | `Int64` | |",
        "| number | double | `float64` | finite |",
        "| flag | boolean | `boolean` | |",
    ]
    for table in SCHEMAS.values():
        lines += ["", f"## {table.name}", "", table.description, ""]
        lines += ["| column | kind | unit | required | meaning |", "|---|---|---|---|---|"]
        for column in table.columns:
            meaning = column.description
            if column.values:
                meaning += f" One of {', '.join(f'`{value}`' for value in column.values)}."
            required = "yes" if column.required else ""
            lines.append(f"| `{column.name}` | {column.kind} | {column.unit} | {required} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    echo(reference_page().removesuffix("\n"))
