"""The catalog of runbooks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.cli import main
from vmsnix_ops.errors import RunError, UnknownRunbookError
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf


def test_runbooks_come_in_the_order_of_their_numbers(shelf: Shelf) -> None:
    for file in ("30-retire-ami.ipynb", "00-preflight.ipynb", "20-publish-ami.ipynb"):
        shelf.put(file)
    assert [book.name for book in catalog.runbooks(shelf.folder)] == [
        "preflight",
        "publish-ami",
        "retire-ami",
    ]


def test_a_notebook_without_a_number_is_not_a_runbook(shelf: Shelf) -> None:
    shelf.put("console.ipynb")
    assert catalog.runbooks(shelf.folder) == ()


@pytest.mark.parametrize("name", ["publish", "publish-ami", "20-publish-ami", "20-publish-ami.ipynb"])
def test_a_runbook_is_found_by_its_short_name_and_with_and_without_its_number(
    shelf: Shelf, name: str
) -> None:
    path = shelf.put("20-publish-ami.ipynb")
    assert catalog.find(name, shelf.folder).path == path


def test_the_error_for_an_unknown_name_suggests_the_nearest(shelf: Shelf) -> None:
    shelf.put("20-publish-ami.ipynb")
    with pytest.raises(UnknownRunbookError, match=r"'publsh-ami'.*Did you mean 'publish-ami'"):
        catalog.find("publsh-ami", shelf.folder)


def test_a_runbook_has_title_description_and_side_effects(shelf: Shelf) -> None:
    shelf.put("20-publish-ami.ipynb", side_effects="creates")
    (book,) = catalog.runbooks(shelf.folder)
    assert (book.title, book.description, book.side_effects) == ("A title", "What it is for.", "creates")
    assert book.slug == "20-publish-ami"


@pytest.mark.parametrize("side_effects", ["", "none", "CREATES"])
def test_undeclared_side_effects_are_refused(shelf: Shelf, side_effects: str) -> None:
    shelf.put("20-publish-ami.ipynb", side_effects=side_effects)
    with pytest.raises(RunError, match="side_effects"):
        catalog.find("publish-ami", shelf.folder)


@pytest.mark.parametrize("parameters", ["dry_run: bool = False", "region: str = ''", "dry_run: str = 'True'"])
def test_a_runbook_that_deletes_must_be_a_dry_run_by_default(shelf: Shelf, parameters: str) -> None:
    shelf.put("60-retire-ami.ipynb", side_effects="deletes", parameters=parameters)
    with pytest.raises(RunError, match="dry_run: bool = True"):
        catalog.find("retire-ami", shelf.folder)
    shelf.put("60-retire-ami.ipynb", side_effects="deletes", parameters="dry_run: bool = True")
    assert catalog.find("retire-ami", shelf.folder).side_effects == "deletes"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}', '{"cells": [], "metadata": {}}'])
def test_an_error_names_an_invalid_notebook(shelf: Shelf, content: str) -> None:
    (shelf.folder / "20-publish-ami.ipynb").write_text(content)
    with pytest.raises(RunError, match=r"20-publish-ami\.ipynb is not a runbook"):
        catalog.find("publish-ami", shelf.folder)


def spoil(path: Path, how: str) -> None:
    """Put something invalid at the path of a runbook."""
    good = path.with_name("10-good.ipynb").read_text()
    if how == "a folder":
        path.mkdir()
    elif how == "a dangling link":
        path.symlink_to(path.parent / "nowhere")
    elif how == "not readable":
        path.write_text(good)
        path.chmod(0)
    else:
        contents = {
            "empty": b"",
            "not JSON": b"{",
            "not UTF-8": b"\xff\xfe",
            "deep": b"[" * 100_000,
            "foreign": b'{"nbformat": 4, "metadata": {}, "cells": []}',
            "cells that are none": b'{"metadata": {"vmsnix": {"side_effects": "creates"}}, "cells": [1]}',
            "no dictionary": b'{"metadata": [], "cells": [{}]}',
            "no Python": good.replace("count: int = 1", "count: = ").encode(),
            "a strange type": good.replace("count: int", "count: 'x y'").encode(),
            "NUL": good.replace("how often", "how \\u0000 often").encode(),
        }
        path.write_bytes(contents[how])


HOWS = (
    "a folder", "a dangling link", "empty", "not JSON", "not UTF-8", "deep",
    "foreign", "cells that are none", "no dictionary", "no Python", "a strange type", "NUL",
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_an_invalid_notebook_disables_no_other_one(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    monkeypatch.setenv("VMSNIX_RUNBOOKS", str(shelf.folder))
    shelf.put("10-good.ipynb", "print(name)")
    spoil(shelf.folder / "20-bad.ipynb", how)
    assert [book.name for book in catalog.runbooks(shelf.folder)] == ["good"]
    _books, (error,) = catalog.read_all(shelf.folder)
    assert "20-bad.ipynb" in error.what
    assert error.why
    assert error.fix
    for words in (["--help"], ["list"], ["run", "--help"], ["run", "good", "--help"]):
        assert main(words) == 0
        shown = capsys.readouterr()
        assert "good" in shown.out
        if words in (["--help"], ["list"]):
            assert "20-bad.ipynb" in shown.out + shown.err
    assert main(["run", "bad"]) == 1
    assert "20-bad.ipynb" in capsys.readouterr().err


def test_an_error_names_a_missing_folder(shelf: Shelf) -> None:
    with pytest.raises(RunError, match="nowhere"):
        catalog.runbooks(shelf.folder / "nowhere")


def test_the_project_s_own_runbooks_can_be_read() -> None:
    books = {book.name: book for book in catalog.runbooks()}
    publish = {parameter.name: parameter for parameter in books["publish-ami"].parameters}
    assert publish["prefix"].default == ""
    assert publish["root_device"].default == ""
    assert str(publish["tags"].type) == "dict[str, str]"
    assert all(parameter.help for book in books.values() for parameter in book.parameters)


@pytest.mark.parametrize("name", ["missing", "name"])
def test_only_a_list_parameter_takes_words_without_a_name(shelf: Shelf, name: str) -> None:
    path = shelf.put("20-publish-ami.ipynb")
    notebook = json.loads(path.read_text())
    notebook["metadata"]["vmsnix"]["arguments"] = name
    path.write_text(json.dumps(notebook))
    with pytest.raises(RunError, match=f"names '{name}' as arguments, which is not a list parameter"):
        catalog.find("publish-ami", shelf.folder)
