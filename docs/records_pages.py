"""Write docs/reference/tables.md and result.md from the schemas of the tables and of result.json.

Run ``python -m docs.records_pages`` after a change.
"""

from __future__ import annotations

from pathlib import Path

from vmsnix_ops.records.result import KEYS
from vmsnix_ops.records.schemas import SCHEMAS

REFERENCE = Path(__file__).parent / "reference"

JOINS: dict[tuple[str, str], tuple[str, str]] = {
    ("runs", "steps"): ("`run_id`", 'runs.merge(steps, on="run_id", suffixes=("", "_step"))'),
    ("runs", "amis"): ("`run_id`", 'runs.merge(amis, on="run_id", suffixes=("", "_ami"))'),
    ("runs", "promotions"): ("`run_id`", 'runs.merge(promotions, on="run_id", suffixes=("", "_ami"))'),
    ("runs", "inventory"): ("`run_id`", 'runs.merge(inventory, on="run_id", suffixes=("", "_resource"))'),
    ("runs", "findings"): ("`run_id`", 'runs.merge(findings, on="run_id", suffixes=("", "_finding"))'),
    ("runs", "proofs"): ("`run_id`", 'runs.merge(proofs, on="run_id", suffixes=("", "_ami"))'),
    ("runs", "retirements"): ("`run_id`", 'runs.merge(retirements, on="run_id", suffixes=("", "_resource"))'),
    ("steps", "amis"): (
        "`run_id`, `region`",
        'steps.merge(amis, on=["run_id", "region"], suffixes=("", "_ami"))',
    ),
    ("amis", "promotions"): (
        "`ami_id`, `region`",
        'amis.merge(promotions, on=["ami_id", "region"], suffixes=("", "_promoted"))',
    ),
    ("amis", "proofs"): (
        "`ami_id`, `region`",
        'amis.merge(proofs, on=["ami_id", "region"], suffixes=("", "_proof"))',
    ),
    ("amis", "packages"): ("`digest`", 'amis.merge(packages, on="digest", suffixes=("", "_package"))'),
    ("amis", "inventory"): (
        "`ami_id` = `resource_id`, `region`",
        'amis.merge(\n    inventory.rename(columns={"resource_id": "ami_id"}), on=["ami_id", "region"], '
        'suffixes=("", "_scan")\n)',
    ),
    ("amis", "findings"): (
        "`ami_id` = `resource_id`, `region`",
        'amis.merge(\n    findings.rename(columns={"resource_id": "ami_id"}), on=["ami_id", "region"], '
        'suffixes=("", "_finding")\n)',
    ),
    ("amis", "retirements"): (
        "`ami_id` = `resource_id`, `region`",
        'amis.merge(\n    retirements.drop(columns="ami_id").rename(columns={"resource_id": "ami_id"}),\n'
        '    on=["ami_id", "region"],\n    suffixes=("", "_retired"),\n)',
    ),
    ("inventory", "findings"): (
        "`run_id`, `account`, `region`, `kind`, `resource_id`",
        'inventory.merge(\n    findings, on=["run_id", "account", "region", "kind", "resource_id"], '
        'suffixes=("", "_finding")\n)',
    ),
}
"""The keys of each pair of tables, and an example in pandas."""

RECIPES = {
    "Sum the cost of the last scan": """\
inventory = history.inventory(since="7D")
last = inventory[inventory["scanned_at"] == inventory["scanned_at"].max()]
# The snapshots of an AMI have rows of their own.
last[last["cost_basis"] != "snapshots"].groupby(["account", "region"])["monthly_usd"].sum()""",
    "Compare the findings of two scans": """\
findings = history.findings(since="30D")
scans = sorted(findings["scanned_at"].unique())
key = ["rule", "account", "region", "resource_id"]
both = [findings[findings["scanned_at"] == scan] for scan in (scans[0], scans[-1])]
compared = both[0].merge(both[1], on=key, how="outer", suffixes=("", "_now"), indicator="when")
compared[compared["when"] != "both"]  # left_only: fixed, right_only: new""",
    "List the AMIs and who uses them": """\
amis = history.inventory(kind="ami", since="7D")
history.unpack(amis, "references")[["resource_id", "references.kind", "references.id"]]""",
    "Join an AMI with its snapshots": """\
inventory = history.inventory(since="7D")
amis = history.unpack(inventory[inventory["kind"] == "ami"], "snapshots")
snapshots = inventory[inventory["kind"] == "snapshot"].drop(columns="snapshots")
snapshots = snapshots.rename(columns={"resource_id": "snapshots"})
amis.merge(snapshots, on=["run_id", "account", "region", "snapshots"], suffixes=("", "_snapshot"))""",
    "Read the parameters of runs": """\
runs = history.unpack(history.runs(runbook="publish-ami"), "parameters")
runs[["started_at", "status", "parameters.image"]]""",
}
"""More examples, by the task. Tests run them all."""


def tables_page() -> str:
    """Return the text of ``docs/reference/tables.md``."""
    lines = [
        "# Tables",
        "",
        "<!-- Written by `python -m docs.records_pages`: change vmsnix_ops/records/schemas.py. -->",
        "",
        "Delta Lake tables, append-only, in the folder or S3 prefix that the setting `history` names.",
        "Times are UTC. Read them with `from vmsnix_ops import history` or any Delta Lake reader.",
        "",
        "| kind | in the table | in pandas | note |",
        "|---|---|---|---|",
        "| text | string | `str` | |",
        "| json | string | `str` | JSON text; `history.unpack(frame, column)` makes columns or rows of it |",
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
    lines += ["", "## Join the tables", "", "| tables | keys |", "|---|---|"]
    lines += [f"| `{one}`, `{other}` | {keys} |" for (one, other), (keys, _) in JOINS.items()]
    lines += ["", "Each example is run by a test. The tables come from `from vmsnix_ops import history`."]
    for (one, other), (_, code) in JOINS.items():
        opened = f"{one}, {other} = history.{one}(), history.{other}()"
        lines += ["", f"### {one} and {other}", "", "```python", opened, code, "```"]
    for title, code in RECIPES.items():
        lines += ["", f"## {title}", "", "```python", code, "```"]
    return "\n".join(lines) + "\n"


def result_page() -> str:
    """Return the text of ``docs/reference/result.md``."""
    words = {str: "text", bool: "true or false", int: "whole number", (int, float): "number"}
    words |= {dict: "object", list: "list"}
    lines = [
        "# result.json",
        "",
        "<!-- Written by `python -m docs.records_pages`: change vmsnix_ops/records/result.py. -->",
        "",
        "The result of a run for programs. Every key is always present, `null` where it does not apply;",
        "a runbook can add keys. To print it, use `vmsnix NAME --json` or `vmsnix runs show ID --json`. Its",
        "[JSON schema](result.schema.json) describes it for programs.",
        "",
        "In GitHub Actions every plain value is an output of the step.",
        "",
        "| key | value | meaning |",
        "|---|---|---|",
        *(f"| `{key}` | {words[kind]} | {meaning} |" for key, (kind, meaning) in KEYS.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (REFERENCE / "tables.md").write_text(tables_page(), encoding="utf-8")
    (REFERENCE / "result.md").write_text(result_page(), encoding="utf-8")
