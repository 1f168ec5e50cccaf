"""``vmsnix runbooks``."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every parameter.")
def runbooks(as_json: bool) -> None:
    """List the runbooks: what each is for, and what it may do to the world."""
    from vmsnix_ops.cli.output import cell, console, new_table, show_error, show_json
    from vmsnix_ops.runbooks import catalog

    books, unusable = catalog.read_all()
    for error in unusable:
        show_error(error.what, error.why, error.cure)
    if as_json:
        show_json(
            [
                {
                    "name": book.name,
                    "number": book.number,
                    "title": book.title,
                    "description": book.description,
                    "side_effects": book.side_effects,
                    "notebook": str(book.path),
                    "parameters": [
                        {
                            "name": parameter.name,
                            "type": str(parameter.type),
                            "default": parameter.default,
                            "choices": list(parameter.choices),
                            "help": parameter.help,
                        }
                        for parameter in book.parameters
                    ],
                }
                for book in books
            ]
        )
        return
    table = new_table("runbook", "what it is for", "side effects")
    for book in books:
        words = (book.name, book.description or book.title, book.side_effects.replace("_", " "))
        table.add_row(*map(cell, words))
    console().print(table)
