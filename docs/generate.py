"""Write the pages that follow from the code: runbooks, commands, errors.

``conf.py`` calls `write_all` before every build. The pages are in ``docs/_generated`` and are not committed.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from runbook_table import runbooks, table

ROOT = Path(__file__).parent.parent
GENERATED = Path(__file__).parent / "_generated"


def write_all() -> None:
    """Write every page, and delete pages that are no longer generated."""
    GENERATED.mkdir(exist_ok=True)
    pages = {"errors": errors_page(), "runbooks": runbooks_page(), "commands": commands_page()}
    for path in GENERATED.glob("*.md"):
        if path.stem not in pages:  # of an earlier version: Sphinx would include it
            path.unlink()
    for name, page in pages.items():
        path = GENERATED / f"{name}.md"
        # Not written when nothing changed, so that Sphinx does not read it again.
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def errors_page() -> str:
    """Return the table of errors."""
    from vmsnix_ops import errors

    lines = [
        "# Errors",
        "",
        "Every error says what happened, why, and what to do. `vmsnix` ends with the exit code of the error:",
        "0 done, 1 failed, 2 usage error, 3 partial.",
        "",
        "| error | base class | exit code | when |",
        "|---|---|---|---|",
    ]
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.VmsnixError):
            base = "" if error is errors.VmsnixError else f"`{error.__bases__[0].__name__}`"
            when = (inspect.getdoc(error) or "").split("\n\n")[0].replace("\n", " ")
            lines.append(f"| `{name}` | {base} | {error.exit_code} | {when} |")
    return "\n".join(lines) + "\n"


def runbooks_page() -> str:
    """Return every runbook with its parameters, read from the notebooks."""
    lines = ["# Runbooks", "", table(), ""]
    for runbook in runbooks():
        lines += [f"## {runbook.name}", "", f"{runbook.description}", ""]
        lines += [f"`vmsnix {runbook.short_name}`; the notebook is `notebooks/{runbook.path.name}`.", ""]
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for parameter in runbook.parameters:
            kind = str(parameter.type).replace("|", "\\|")
            meaning = parameter.help.replace("|", "\\|")
            lines.append(f"| `{parameter.name}` | `{kind}` | `{parameter.default!r}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """Return what ``vmsnix --help`` and the help of every command print."""
    import click

    from vmsnix_ops.cli import COMMANDS, cli

    lines = ["# The command line", ""]

    def describe(command: click.Command, names: list[str]) -> None:
        with click.Context(command, info_name=" ".join(names), terminal_width=100) as context:
            shown = command.get_help(context)
            subcommands = []
            if isinstance(command, click.Group):
                listed = [command.get_command(context, name) for name in command.list_commands(context)]
                subcommands = [subcommand for subcommand in listed if subcommand is not None]
        title = f"{'#' * min(len(names) + 1, 4)} {' '.join(names)}"
        lines.extend([title, "", "```text", shown, "```", ""])
        for subcommand in subcommands:
            # A runbook is a command too; its parameters are on the page of the runbooks.
            if command is not cli or subcommand.name in COMMANDS:
                describe(subcommand, [*names, str(subcommand.name)])

    describe(cli, ["vmsnix"])
    return "\n".join(lines)
