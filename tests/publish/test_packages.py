"""The packages of a published image are recorded once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from vmsnix_ops import publish
from vmsnix_ops.audit.diff import diff
from vmsnix_ops.errors import NixError
from vmsnix_ops.nix.closure import FACTS as FACTS_COLUMNS
from vmsnix_ops.publish import pipeline
from vmsnix_ops.records import schemas
from vmsnix_ops.records.schemas import PACKAGES
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
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


FACTS: dict[str, dict[str, object]] = {
    "/nix/store/a-openssl-3.0.14": {
        "pname": "openssl",
        "version": "3.0.14",
        "licenses": ["Apache-2.0"],
        "cpe": None,
        "purl": "pkg:generic/openssl@3.0.14",
        "patches": ["nix-ssl-cert-file.patch"],
        "knownVulnerabilities": [],
    }
}


def test_facts_are_recorded_beside_rows_of_an_older_version(
    plan: Callable[..., publish.PublishPlan], built_by_nix: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in PACKAGES.names if name not in FACTS_COLUMNS]
    old = {"digest": "0" * 64, "name": "zlib", "store_path": "/nix/store/z-zlib", "recorded_at": NOW}
    with monkeypatch.context() as older:
        older.setitem(
            schemas.SCHEMAS, "packages", replace(PACKAGES, columns=tuple(map(PACKAGES.column, names)))
        )
        open_tables(load()).append("packages", [old])

    monkeypatch.setattr(pipeline, "read_facts", lambda _image: FACTS)
    planned = plan()
    built = replace(planned.build(), derivation="/nix/store/x.drv", store_path="/nix/store/x")
    messages = Messages()
    step: Any = messages
    assert pipeline.record_packages(planned.journal.tables, built, run_id="r", step=step) == 2
    assert messages.texts == ["1 of 2 paths (50.0%) have package facts; without: /nix/store/b-etc"]
    found = rows().set_index("name")
    assert found.loc["openssl", "licenses"] == '["Apache-2.0"]'
    assert found.loc["openssl", "patches"] == '["nix-ssl-cert-file.patch"]'
    assert found.loc["openssl", "purl"] == "pkg:generic/openssl@3.0.14"
    assert pd.isna(found.loc["openssl", "cpe"])
    assert found.loc[["etc", "zlib"], list(FACTS_COLUMNS)].isna().all(axis=None)


def test_packages_are_recorded_without_facts_that_cannot_be_evaluated(
    plan: Callable[..., publish.PublishPlan], built_by_nix: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_image: object) -> dict[str, dict[str, object]]:
        raise NixError("The facts were not evaluated.", why="A package throws.")

    monkeypatch.setattr(pipeline, "read_facts", broken)
    plan().apply()
    assert list(rows()["pname"].isna()) == [True, True]


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
