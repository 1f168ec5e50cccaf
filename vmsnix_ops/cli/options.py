"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from vmsnix_ops.errors import VmsnixError


def region_option(text: str) -> Callable[[Any], Any]:
    """Return the option for regions: ``--region A --region B`` and ``--regions A,B`` are the same."""
    return click.option(
        "--region", "--regions", "regions", multiple=True, callback=_split, metavar="REGION", help=text
    )


def _split(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    words = [word.strip() for value in values for word in value.split(",")]
    return tuple(dict.fromkeys(word for word in words if word))


def complete_runbooks(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a runbook."""
    from vmsnix_ops.cli import completion

    return completion.runbooks(incomplete)


archive_option = click.option(
    "--archive",
    default="",
    metavar="FOLDER",
    help="Archive to read: a folder, or s3://bucket/prefix.  [default: the setting archive]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def no_fingerprint() -> VmsnixError:
    """Return the error for an empty fingerprint, which would let the run apply any plan."""
    from vmsnix_ops.errors import ParameterError

    return ParameterError(
        "No fingerprint given with --expect-plan.",
        why="Its value is empty, perhaps because a variable of the shell is not set.",
        fix="Use the fingerprint that the dry run printed, or leave --expect-plan out to apply any plan.",
    )
