"""Which runbooks there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import RunError, UnknownRunbookError
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf


def test_runbooks_come_in_the_order_of_their_numbers(shelf: Shelf) -> None:
    for file in ("30-retire-ami.ipynb", "00-preflight.ipynb", "20-publish-ami.ipynb"):
        shelf.put(file)
    assert [book.name for book in catalog.runbooks(shelf.folder)] == [
        "preflight",
        "publish-ami",
        "retire-ami",
    ]


def test_a_notebook_without_a_number_is_no_runbook(shelf: Shelf) -> None:
    shelf.put("console.ipynb")
    assert catalog.runbooks(shelf.folder) == ()


@pytest.mark.parametrize("name", ["publish-ami", "20-publish-ami", "20-publish-ami.ipynb"])
def test_a_runbook_is_found_with_and_without_its_number(shelf: Shelf, name: str) -> None:
    path = shelf.put("20-publish-ami.ipynb")
    assert catalog.find(name, shelf.folder).path == path


def test_an_unknown_name_is_answered_with_the_nearest(shelf: Shelf) -> None:
    shelf.put("20-publish-ami.ipynb")
    with pytest.raises(UnknownRunbookError, match=r"'publsh-ami'.*Did you mean 'publish-ami'"):
        catalog.find("publsh-ami", shelf.folder)


def test_a_runbook_says_what_it_is_for(shelf: Shelf) -> None:
    shelf.put("20-publish-ami.ipynb", side_effects="creates")
    (book,) = catalog.runbooks(shelf.folder)
    assert (book.title, book.description, book.side_effects) == ("A title", "What it is for.", "creates")
    assert book.slug == "20-publish-ami"


@pytest.mark.parametrize("side_effects", ["", "none", "CREATES"])
def test_undeclared_side_effects_are_refused(shelf: Shelf, side_effects: str) -> None:
    shelf.put("20-publish-ami.ipynb", side_effects=side_effects)
    with pytest.raises(RunError, match="side_effects"):
        catalog.runbooks(shelf.folder)


@pytest.mark.parametrize("parameters", ["dry_run: bool = False", "region: str = ''", "dry_run: str = 'True'"])
def test_a_runbook_that_destroys_must_be_a_dry_run_by_default(shelf: Shelf, parameters: str) -> None:
    shelf.put("60-retire-ami.ipynb", side_effects="destroys", parameters=parameters)
    with pytest.raises(RunError, match="dry_run: bool = True"):
        catalog.runbooks(shelf.folder)
    shelf.put("60-retire-ami.ipynb", side_effects="destroys", parameters="dry_run: bool = True")
    assert catalog.find("retire-ami", shelf.folder).side_effects == "destroys"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}', '{"cells": [], "metadata": {}}'])
def test_a_broken_notebook_is_named(shelf: Shelf, content: str) -> None:
    (shelf.folder / "20-publish-ami.ipynb").write_text(content)
    with pytest.raises(RunError, match=r"20-publish-ami\.ipynb is not a runbook"):
        catalog.find("publish-ami", shelf.folder)


def test_a_missing_folder_is_named(shelf: Shelf) -> None:
    with pytest.raises(RunError, match="nowhere"):
        catalog.runbooks(shelf.folder / "nowhere")


def test_the_project_s_own_runbooks_can_be_read() -> None:
    books = {book.name: book for book in catalog.runbooks()}
    publish = {parameter.name: parameter for parameter in books["publish-ami"].parameters}
    assert publish["prefix"].default == "altf4llc"
    assert publish["root_device"].default == ""
    assert str(publish["tags"].type) == "dict[str, str]"
    assert all(parameter.help for book in books.values() for parameter in book.parameters)
