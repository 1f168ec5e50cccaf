"""``vmsnix completion``, and the values that a shell completes.

A shell starts `vmsnix` for every press of the tab key, so this module imports no slow library, starts no Nix
and sends no request to AWS.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click.shell_completion import CompletionItem

RECENT_RUNS = 50  # number of runs whose images are completed
FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/vmsnix.fish"}


@click.command()
@click.argument("shell", type=click.Choice(tuple(FILES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes runbooks, options, choices, images and run IDs in a shell.

    For this shell: eval "$(vmsnix completion bash)". For all shells: add that line to ~/.bashrc or ~/.zshrc;
    for fish: vmsnix completion fish > ~/.config/fish/completions/vmsnix.fish.
    """
    from click.shell_completion import get_completion_class

    shell_class = get_completion_class(shell)
    if shell_class is None:  # click has all three
        raise click.UsageError(f"No completion for the shell {shell}.")
    source = shell_class(context.find_root().command, {}, "vmsnix", "_VMSNIX_COMPLETE").source()
    # click's script for fish splits a line at every comma, and so cuts descriptions at their first comma.
    echo(source.replace('string split ","', 'string split --max 1 ","'))


def items(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Return the words that start with `incomplete`, without those that contain a line end."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(word) for word in words if word and word.isprintable() and word.startswith(incomplete)
    ]


def runbooks(incomplete: str) -> list[CompletionItem]:
    """Return the runbooks whose short name starts with `incomplete`; if none does, search the full names."""
    from click.shell_completion import CompletionItem

    from vmsnix_ops.runbooks import catalog

    books = catalog.runbooks()
    for names in ([book.short_name for book in books], [book.name for book in books]):
        found = [
            CompletionItem(name, help=book.purpose)
            for name, book in zip(names, books, strict=True)
            if name.startswith(incomplete)
        ]
        if found:
            return found
    return []


def images(incomplete: str) -> list[CompletionItem]:
    """Return images of the flake and of past runs that start with `incomplete`; if there are none, files.

    Nix could list the images of any flake, but that takes seconds.
    """
    from click.shell_completion import CompletionItem

    known = list(dict.fromkeys([*_flake_images(), *_past_images()]))
    return items(known, incomplete) or [CompletionItem(incomplete, type="file")]


def _flake_images() -> list[str]:
    """Return the images of a local flake with the files ``images/NAME.nix``."""
    from vmsnix_ops.settings import load

    with suppress(VmsnixError, OSError):
        flake = load().flake
        folders = [Path(flake), *(parent / flake for parent in Path.cwd().parents)]
        folder = next((path / "images" for path in folders if (path / "images").is_dir()), None)
        if folder is not None:
            return sorted(path.stem for path in folder.glob("*.nix") if path.stem != "default")
    return []


def _past_images() -> list[str]:
    """Return the images of the newest runs, if the archive is on this machine."""
    from vmsnix_ops import files
    from vmsnix_ops.records.result import parse
    from vmsnix_ops.settings import load

    with suppress(VmsnixError, OSError):
        archive = load().archive
        if archive.startswith("s3://"):
            return []
        found = []
        for folder in sorted(Path(archive).iterdir(), reverse=True)[:RECENT_RUNS]:
            with suppress(OSError):
                given = parse(files.read(folder / "result.json")).get("parameters") or {}
                found.append(given.get("image"))
        return [image for image in found if isinstance(image, str)]
    return []
