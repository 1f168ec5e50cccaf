"""``vmsnix completion``: words that a shell completes.

A shell starts `vmsnix` for every press of the tab key, so nothing here imports anything heavy, starts Nix or
asks AWS.
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

REMEMBERED = 50  # newest runs whose images are offered
FILES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc",
    "fish": "~/.config/fish/completions/vmsnix.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(tuple(FILES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes runbooks, options, choices, images and run IDs in a shell.

    For this shell: eval "$(vmsnix completion bash)". For all shells: add that line to ~/.bashrc or ~/.zshrc;
    for fish: vmsnix completion fish > ~/.config/fish/completions/vmsnix.fish.
    """
    from click.shell_completion import get_completion_class

    known = get_completion_class(shell)
    if known is None:  # click has all three
        raise click.UsageError(f"No completion for the shell {shell}.")
    source = known(context.find_root().command, {}, "vmsnix", "_VMSNIX_COMPLETE").source()
    # What click writes for fish splits a line at each comma, and so cuts descriptions at their first one.
    echo(source.replace('string split ","', 'string split --max 1 ","'))


def items(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Return the words that begin so; a word with a line end would reach the shell as two."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(word) for word in words if word and word.isprintable() and word.startswith(incomplete)
    ]


def runbooks(incomplete: str) -> list[CompletionItem]:
    """Return the runbooks that begin so, by the name to type; full names where no short one begins so."""
    from click.shell_completion import CompletionItem

    from vmsnix_ops.runbooks import catalog

    books = catalog.runbooks()
    for typed in ([book.short_name for book in books], [book.name for book in books]):
        found = [
            CompletionItem(name, help=book.description or book.title)
            for name, book in zip(typed, books, strict=True)
            if name.startswith(incomplete)
        ]
        if found:
            return found
    return []


def images(incomplete: str) -> list[CompletionItem]:
    """Return images that begin so: those of the flake's folder, and those of past runs; else files.

    Only Nix knows all images of any flake, and takes seconds to say them.
    """
    from click.shell_completion import CompletionItem

    known = list(dict.fromkeys([*_of_the_flake(), *_of_past_runs()]))
    return items(known, incomplete) or [CompletionItem(incomplete, type="file")]


def _of_the_flake() -> list[str]:
    """Return the images of a flake that keeps them as ours does: ``images/NAME.nix``."""
    from vmsnix_ops.settings import load

    with suppress(VmsnixError, OSError):
        given = load().flake
        places = [Path(given), *(parent / given for parent in Path.cwd().parents)]
        folder = next((place / "images" for place in places if (place / "images").is_dir()), None)
        if folder is not None:
            return sorted(path.stem for path in folder.glob("*.nix") if path.stem != "default")
    return []


def _of_past_runs() -> list[str]:
    """Return the images of the newest runs in an archive on this machine."""
    from vmsnix_ops import files
    from vmsnix_ops.records.result import parse
    from vmsnix_ops.settings import load

    with suppress(VmsnixError, OSError):
        archive = load().archive
        if archive.startswith("s3://"):
            return []
        found = []
        for folder in sorted(Path(archive).iterdir(), reverse=True)[:REMEMBERED]:
            with suppress(OSError):
                given = parse(files.read(folder / "result.json")).get("parameters") or {}
                found.append(given.get("image"))
        return [image for image in found if isinstance(image, str)]
    return []
