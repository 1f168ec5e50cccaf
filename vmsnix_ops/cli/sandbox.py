"""``vmsnix sandbox``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="TCP port on 127.0.0.1; 0 chooses a free one."
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Sandbox seconds per real second.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder that keeps the sandbox's state across restarts.",
)
def sandbox(port: int, speed: float, state: Path | None) -> None:
    """Run a local AWS in the foreground, and print the export lines for a shell.

    boto3, the AWS CLI and other tools can use it. Stop it with Ctrl-C.
    """
    from vmsnix_ops.errors import RunError
    from vmsnix_ops.sandbox.serve import serve

    try:
        serve(port, speed, state)
    except OSError as error:
        raise RunError("The sandbox could not start.", why=f"{error}") from error
