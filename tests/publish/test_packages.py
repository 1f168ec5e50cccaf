"""The packages of a published image are recorded once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from vmsnix_ops import publish
from vmsnix_ops.audit.diff import diff
from vmsnix_ops.errors import NixError
from vmsnix_ops.publish import pipeline
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

INSIDE = pd.DataFrame(
    {
        "name": ["openssl", "etc"],
        "version": ["3.0.14", ""],
        "store_path": ["/nix/store/a-openssl-3.0.14", "/nix/store/b-etc"],
        "bytes": [10, 20],
    }
)


class Messages:
    """A step that collects its messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def built_by_nix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image count as built by Nix, with these packages."""
    real = publish.PublishPlan.build

    def build(plan: publish.PublishPlan) -> Any:
        return replace(real(plan), derivation="/nix/store/x.drv", store_path="/nix/store/x")

    monkeypatch.setattr(publish.PublishPlan, "build", build)
    monkeypatch.setattr(pipeline, "closure", lambda _image: INSIDE)


def rows() -> pd.DataFrame:
    return open_tables(load()).read("packages")


def test_a_publish_records_the_packages_of_its_image(
    plan: Callable[..., publish.PublishPlan], built_by_nix: None
) -> None:
    result = plan().apply()
    found = rows().sort_values("bytes")
    assert list(found["name"]) == ["openssl", "etc"]
    assert set(found["digest"]) == {result.digest}
    assert set(found["run_id"]) == {result.run_id}
    plan().apply()
    assert len(rows()) == 2
    assert len(diff(result.ami_id, result.image_name).frame) == 0


def test_an_image_that_nix_did_not_build_has_no_packages(plan: Callable[..., publish.PublishPlan]) -> None:
    assert plan().apply().ami_id
    assert len(rows()) == 0


def test_packages_that_cannot_be_listed_do_not_stop_a_publish(
    plan: Callable[..., publish.PublishPlan], built_by_nix: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_image: object) -> pd.DataFrame:
        raise NixError("What is inside cannot be told.", why="No NixOS system went into it.")

    monkeypatch.setattr(pipeline, "closure", broken)
    messages, planned = Messages(), plan()
    built = planned.build()
    step: Any = messages
    assert pipeline.record_packages(planned.journal.tables, built, run_id="r", step=step) == 0
    assert messages.texts == [
        "its packages are not recorded: What is inside cannot be told. No NixOS system went into it."
    ]
    assert plan().apply().ami_id
