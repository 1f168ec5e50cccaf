"""What fields offer is fetched once, beside everything else, and a failure stops nobody."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import RunError, VmsnixError
from vmsnix_ops.runbooks.console import suggestions
from vmsnix_ops.runbooks.console.forms import Suggestion
from vmsnix_ops.runbooks.console.places import Place
from vmsnix_ops.runbooks.console.suggestions import Found, Suggestions, at_once
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HERE = Place()


class Source:
    """A source that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = threading.Event()
        self.error: VmsnixError | None = None

    def __call__(self, place: Place) -> Found:
        self.asked += 1
        assert self.go.wait(30)
        if self.error:
            raise self.error
        return [Suggestion("a")]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source()
    monkeypatch.setitem(suggestions.SOURCES, "things", made)
    return made


def test_all_who_ask_at_once_share_one_answer_and_later_ones_have_it_at_once(
    source: Source, wait: Callable[[Callable[[], object]], None]
) -> None:
    asked, answers = Suggestions(), []
    for _ in range(3):
        asked.ask(HERE, "things", lambda found, problem: answers.append((found, problem)))
    assert answers == []
    source.go.set()
    wait(lambda: len(answers) == 3)
    asked.ask(HERE, "things", lambda found, problem: answers.append((found, problem)))
    assert answers == [([Suggestion("a")], "")] * 4
    assert source.asked == 1
    asked.forget()
    asked.ask(HERE, "things", lambda found, problem: answers.append((found, problem)))
    wait(lambda: len(answers) == 5)
    assert source.asked == 2


def test_a_failure_is_told_and_asked_again(
    source: Source, wait: Callable[[Callable[[], object]], None]
) -> None:
    asked, answers = Suggestions(), []
    source.error = RunError("Nobody knows.", why="Because.")
    source.go.set()
    for number in (1, 2):
        asked.ask(HERE, "things", lambda found, problem: answers.append((found, problem)))
        wait(lambda number=number: len(answers) == number)
    assert answers == [([], "Nobody knows.")] * 2
    assert source.asked == 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with sandbox(speed=1000) as aws:
        aws.prepare(bucket="vmsnix-images", region="us-east-1")
        state = str(tmp_path_factory.mktemp("state"))
        yield Place(aws.url, {**aws.environment, "AWS_REGION": "us-east-1", "VMSNIX_STATE": state})


def test_regions_and_buckets_are_those_of_the_place(place: Place) -> None:
    assert "eu-central-1" in [each.value for each in suggestions.regions(place)]
    assert suggestions.buckets(place) == [Suggestion("vmsnix-images")]
    assert suggestions.amis(place) == []
    assert suggestions.published(place) == []


def test_a_sandbox_offers_an_image_that_needs_no_nix_and_aws_does_not(place: Place, tmp_path: Path) -> None:
    (sample,) = at_once(place, "images")
    assert at_once(place, "images") == [sample]
    assert at_once(place, "regions") == []
    assert at_once(Place(), "images") == []
    (tmp_path / "file").write_text("")
    nowhere = Place("http://127.0.0.1:9", {"VMSNIX_STATE": str(tmp_path / "file")})
    assert at_once(nowhere, "images") == []
