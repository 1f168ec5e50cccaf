"""``vmsnix channels``: list which AMI each channel serves."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import click

from vmsnix_ops.cli.options import json_option, region_option


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
    from vmsnix_ops.text import echo

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
