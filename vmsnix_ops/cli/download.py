"""``vmsnix download``: write a snapshot into a file."""

from __future__ import annotations

from pathlib import Path

import click

from vmsnix_ops.cli.options import json_option
from vmsnix_ops.text import echo, line


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
