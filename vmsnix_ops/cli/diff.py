"""``vmsnix diff``: which packages differ between two AMIs."""

from __future__ import annotations

import json
import sys

import click

from vmsnix_ops.cli.options import json_option
from vmsnix_ops.text import echo, write_csv


@click.command()
@click.argument("before", metavar="AMI")
@click.argument("after", metavar="AMI")
@click.option("--all", "everything", is_flag=True, help="Also show packages that were only rebuilt.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def diff(before: str, after: str, everything: bool, as_json: bool, as_csv: bool) -> None:
    """Show which packages differ between two published AMIs.

    Use the ID or name of each AMI, or the digest of its image. Give the older AMI first.
    """
    if as_json and as_csv:
        raise click.UsageError("Use either --json or --csv, not both.")
    from vmsnix_ops.audit.diff import diff as compare
    from vmsnix_ops.cli.output import show_json, show_table
    from vmsnix_ops.display import make_table
    from vmsnix_ops.progress import human_bytes

    found = compare(before, after)
    if as_json:
        rows = json.loads(found.frame.to_json(orient="records"))
        show_json({"before": before, "after": after, "bytes": found.bytes, "packages": rows})
        return
    if as_csv:
        write_csv(found.frame, sys.stdout)
        return
    rows = []
    shown = found.frame if everything else found.frame[found.frame["change"] != "rebuilt"]
    for row in shown.to_dict("records"):
        size = f"{'+' if row['bytes'] >= 0 else '-'}{human_bytes(abs(row['bytes']))}"
        rows.append([*(row[column] for column in ("change", "name", "before", "after")), size])
    if rows:
        show_table(make_table(("change", "package", "before", "after", "size"), rows, right=("size",)))
    echo(found)
