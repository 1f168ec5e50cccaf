"""Fixtures for the tests of command lines: a folder of runbooks, a call of ``vmsnix``, and the AWS CLI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fast_aws import fast_aws
from tests.runbooks.shelf import Shelf, make_shelf, replace_package
from tests.support import require
from vmsnix_ops.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Return a folder of test runbooks, with its own state folder."""
    made = make_shelf(tmp_path, tmp_path / "state" / "archive", monkeypatch)
    replace_package(made.folder, monkeypatch)
    return made


@pytest.fixture
def run_vmsnix(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; return exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def aws_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the path of a fast ``aws``."""
    with fast_aws(tmp_path_factory.mktemp("aws"), require("aws")) as programs:
        yield str(programs / "aws")
