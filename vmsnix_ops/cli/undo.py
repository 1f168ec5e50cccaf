"""``vmsnix undo``: undo an unfinished publish."""

from __future__ import annotations

import click

from vmsnix_ops.text import echo


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def undo(run_id: str, dry_run: bool, as_json: bool) -> int:
    """Undo an unfinished publish: delete its object, uploads, import and snapshots without an AMI.

    RUN is the run ID that `vmsnix runs` lists. A finished run is refused. To continue the publish instead,
    run the same command again. To move a channel back, use `vmsnix rollback`.
    """
    from dataclasses import asdict

    from vmsnix_ops.cli.output import show_json
    from vmsnix_ops.publish.undo import plan_undo

    plan = plan_undo(run_id)
    if not as_json:
        echo(plan)
    removed = () if dry_run else plan.apply()
    if as_json:
        found = [asdict(leftover) for leftover in plan.leftovers]
        deleted = [asdict(leftover) for leftover in removed]
        show_json({"run_id": plan.run_id, "dry_run": dry_run, "found": found, "removed": deleted})
    elif dry_run:
        echo("Dry run: nothing was deleted.")
    elif removed:
        all_of_them = len(removed) == len(plan.leftovers)
        echo(
            "All of it was deleted."
            if all_of_them
            else f"Deleted: {len(removed)}. Another run uses the rest."
        )
    return 0
