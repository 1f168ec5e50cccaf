"""Commands about published images: ``channels``, ``diff``, ``download`` and ``undo``."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from vmsnix_ops.cli.options import json_option, region_option
from vmsnix_ops.text import echo, line, write_csv


@click.command()
@click.option("--image", default="", metavar="NAME", help="Show only channels of this image.")
@region_option("Region to read; all is every enabled region.  [default: your region and those in the tables]")
@click.option("--sandbox", is_flag=True, help="Show the channels of the local sandbox.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page for a browser instead of the table.",
)
@json_option
def channels(image: str, regions: tuple[str, ...], sandbox: bool, html: Path | None, as_json: bool) -> None:
    """Show which AMI each channel serves, since when, and whether it drifted, was proven and is in use.

    A region that cannot be read is listed as unknown with the reason, and the exit code is 3.
    """
    from vmsnix_ops import channels as public
    from vmsnix_ops.aws.session import session_of
    from vmsnix_ops.channels import overview
    from vmsnix_ops.cli.output import show_rows, write_file
    from vmsnix_ops.cli.sandbox import run_sandbox
    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import load

    with run_sandbox() if sandbox else nullcontext() as served:
        environment = {**os.environ, **(served.environment if served else {})}
        settings = load(environment=environment)
        frame = public.read(
            image=image,
            regions=regions,
            settings=settings,
            tables=Tables(settings.history, region=settings.region, storage_options=environment),
            session=session_of(environment) if served else None,
        )
    if html is not None:
        write_file(html, public.page(frame))
    if as_json:
        show_rows(frame)
    elif html is None:
        echo(public.show(frame))
    if (incomplete := overview.error_of(frame)) is not None:
        raise incomplete


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


@click.command()
@click.argument("snapshot_id", metavar="SNAPSHOT")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--region", default="", help="Region of the snapshot.  [default: from vmsnix.toml or AWS_REGION]"
)
@json_option
def download(snapshot_id: str, path: Path, region: str, as_json: bool) -> None:
    """Write the snapshot SNAPSHOT into the sparse raw file PATH.

    Run the same command again to continue an interrupted download.
    """
    from vmsnix_ops import progress
    from vmsnix_ops.aws import regions
    from vmsnix_ops.aws.ebs_direct import reading
    from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
    from vmsnix_ops.aws.session import session as default_session
    from vmsnix_ops.cli.output import show_json
    from vmsnix_ops.settings import load

    settings, session = load(), default_session()
    (region,) = regions.check_regions([regions.home_region(session, region, settings.region)])
    shown = progress.silent() if as_json else progress.on_screen()
    with shown.step("download", unit="bytes") as step:
        done = reading.download(
            session,
            region=region,
            snapshot_id=snapshot_id,
            path=path,
            step=step,
            config=TransferConfig(ceiling=settings.put_ceiling),
        )
    if as_json:
        show_json(
            {
                "snapshot_id": done.snapshot_id,
                "path": str(done.path),
                "bytes": done.bytes,
                "fetched_blocks": done.fetched,
            }
        )
        return
    echo(
        f"{line(done.path)}: a disk of {progress.human_bytes(done.bytes)}, "
        f"{progress.counted(done.fetched, 'block')} downloaded"
    )


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def undo(run_id: str, dry_run: bool, as_json: bool) -> int:
    """Undo an unfinished publish: delete its object, uploads, import and snapshots without an AMI.

    RUN is the run ID that `vmsnix runs` lists. A finished run is refused. To continue the publish instead,
    run the same command again. To move a channel back, use `vmsnix rollback`.
    """
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
