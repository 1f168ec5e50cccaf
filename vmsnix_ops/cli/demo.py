"""``vmsnix demo``: publish an image to a local sandbox."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import click

from vmsnix_ops.errors import RunError
from vmsnix_ops.text import line, write

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option(
    "--image",
    metavar="IMAGE",
    help="Flake attribute, result link, image folder or file.  [default: a small sample image]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--keep", is_flag=True, help="Keep the sandbox running afterwards, for other tools.")
@click.option("--fresh", is_flag=True, help="Start with an empty account; the old one is kept in a folder.")
def demo(image: str | None, as_json: bool, keep: bool, fresh: bool) -> int:
    """Publish an image to a local sandbox with the notebook 20-publish-ami, and show the result.

    Needs no AWS account and no Nix, and does not use the network. Other commands use the same account
    with `--sandbox`: `vmsnix runs --sandbox` shows the run.
    """
    from vmsnix_ops.cli.next_steps import next_command
    from vmsnix_ops.cli.output import open_display, show_end
    from vmsnix_ops.cli.sandbox import print_exports, reset_account, run_sandbox
    from vmsnix_ops.runbooks import catalog
    from vmsnix_ops.runbooks.execution.execute import run

    if fresh:
        reset_account()
    with run_sandbox() as served:
        chosen = image or str(_sample(served.state / "image"))
        with open_display(as_json=as_json) as (screen, on_event):
            write(
                screen,
                f"A sandbox runs at {served.url}. All files of this demo are in {line(served.state)}.\n",
            )
            outcome = run(
                "publish-ami",
                {"image": chosen},
                environment=served.environment,
                screen=screen,
                on_event=on_event,
            )
        values = {**outcome.values, "state": str(served.state)}
        following = next_command(catalog.find("publish-ami"), outcome.values, sandbox=True)
        code = show_end(outcome, as_json=values if as_json else None, following=following)
        if keep and outcome.error is None:
            print_exports(served, sys.stderr)
            threading.Event().wait()
    return code


def _sample(folder: Path) -> Path:
    from vmsnix_ops.disk.sample import make_sample_image

    try:
        return make_sample_image(folder)
    except OSError as error:
        raise RunError(
            f"Could not write the sample image to {folder}.",
            why=f"{error.strerror}.",
            fix="Correct the folder's permissions, or set VMSNIX_STATE to another folder.",
        ) from error
