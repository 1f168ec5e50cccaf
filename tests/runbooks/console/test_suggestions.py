"""Suggestions are fetched once, in a thread, and a failure stops nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import RunError, VmsnixError
from vmsnix_ops.runbooks.console import suggestions
from vmsnix_ops.runbooks.console.backends import Backend
from vmsnix_ops.runbooks.console.suggestions import Suggestion, SuggestionCache, immediate
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HERE = Backend()


class Source:
    """A source that answers when `go` is set."""

    def __init__(self) -> None:
        self.requests = 0
        self.go = threading.Event()
        self.error: VmsnixError | None = None

    def __call__(self, backend: Backend) -> list[Suggestion]:
        self.requests += 1
        assert self.go.wait(30)
        if self.error:
            raise self.error
        return [Suggestion("a")]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source()
    monkeypatch.setitem(suggestions.SOURCES, "things", made)
    return made


def test_requests_at_the_same_time_share_one_fetch_and_later_ones_use_the_cache(
    source: Source, wait: Callable[[Callable[[], object]], None]
) -> None:
    cache, answers = SuggestionCache(), []
    for _ in range(3):
        cache.request(HERE, "things", lambda found, problem: answers.append((found, problem)))
    assert answers == []
    source.go.set()
    wait(lambda: len(answers) == 3)
    cache.request(HERE, "things", lambda found, problem: answers.append((found, problem)))
    assert answers == [([Suggestion("a")], "")] * 4
    assert source.requests == 1
    cache.clear()
    cache.request(HERE, "things", lambda found, problem: answers.append((found, problem)))
    wait(lambda: len(answers) == 5)
    assert source.requests == 2


def test_a_failure_is_reported_and_fetched_again(
    source: Source, wait: Callable[[Callable[[], object]], None]
) -> None:
    cache, answers = SuggestionCache(), []
    source.error = RunError("Nobody knows.", why="Because.")
    source.go.set()
    for number in (1, 2):
        cache.request(HERE, "things", lambda found, problem: answers.append((found, problem)))
        wait(lambda number=number: len(answers) == number)
    assert answers == [([], "Nobody knows.")] * 2
    assert source.requests == 2


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with sandbox(speed=1000) as aws:
        aws.prepare(bucket="vmsnix-images", region="us-east-1")
        state = str(tmp_path_factory.mktemp("state"))
        yield Backend(aws.url, {**aws.environment, "AWS_REGION": "us-east-1", "VMSNIX_STATE": state})


def test_regions_and_buckets_are_those_of_the_backend(backend: Backend) -> None:
    assert "eu-central-1" in [each.value for each in suggestions.regions(backend)]
    assert suggestions.buckets(backend) == [Suggestion("vmsnix-images")]
    assert suggestions.amis(backend) == []
    assert suggestions.published(backend) == []


def test_a_sandbox_suggests_a_sample_image_and_aws_does_not(backend: Backend, tmp_path: Path) -> None:
    (sample,) = immediate(backend, "images")
    assert immediate(backend, "images") == [sample]
    assert immediate(backend, "regions") == []
    assert immediate(Backend(), "images") == []
    (tmp_path / "file").write_text("")
    nowhere = Backend("http://127.0.0.1:9", {"VMSNIX_STATE": str(tmp_path / "file")})
    assert immediate(nowhere, "images") == []
