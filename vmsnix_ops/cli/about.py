"""``vmsnix help`` and ``vmsnix version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmsnix_ops import __version__
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

LIBRARIES = ("boto3", "botocore")
NIX_SECONDS = 10


def _topics(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of commands and runbooks, without importing any."""
    root = ctx.find_root()
    return [] if ctx.params.get("names") else root.command.shell_complete(root, incomplete)


@click.command("help")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_topics)
@click.pass_context
def show_help(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of a runbook or a command. Without NAME, list all of them.

    `vmsnix help publish` and `vmsnix publish --help` are the same; so are `vmsnix help runs show` and
    `vmsnix runs show --help`.
    """
    context = ctx.find_root()
    for name in names:
        command = context.command
        if not isinstance(command, click.Group):
            raise click.UsageError(f"`{context.command_path}` has no subcommand {name!r}.", ctx)
        _, found, _ = command.resolve_command(context, [name])
        if found is None:  # an option
            raise click.UsageError(f"Unknown command {name!r}.", ctx)
        context = click.Context(found, info_name=name, parent=context)
    echo(context.command.get_help(context))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the versions of vmsnix, Python, boto3, botocore and Nix."""
    import platform
    from importlib import metadata

    versions = {"vmsnix": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = ""
    versions["nix"] = _nix_version()
    if as_json:
        from vmsnix_ops.text import json

        echo(json(versions, indent=2))
        return
    for name, found in versions.items():
        echo(f"{name:<9} {found or 'not found'}")


def _nix_version() -> str:
    """Return the version of the Nix on PATH; empty when there is none, or it fails."""
    import subprocess

    try:
        done = subprocess.run(
            ["nix", "--version"], capture_output=True, text=True, timeout=NIX_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    words = done.stdout.split()
    return words[-1] if done.returncode == 0 and words else ""
