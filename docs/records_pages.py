"""Write docs/reference/tables.md and result.md from the schemas of the tables and of result.json.

Run ``python -m docs.records_pages`` after a change.
"""

from __future__ import annotations

from pathlib import Path

from vmsnix_ops.records.result import KEYS
from vmsnix_ops.records.schemas import SCHEMAS

REFERENCE = Path(__file__).parent / "reference"


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
