"""The inventory read by Dask tasks: what `inventory.scan` finds, account by account."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.audit.account import FRIEND, REGION, STRANGER, Owner
from tests.audit.test_inventory import friend
from vmsnix_ops.audit import spread
from vmsnix_ops.runbooks.fleet.cluster import connected
from vmsnix_ops.runbooks.fleet.plan import Dask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox import Sandbox

__all__ = ["friend"]
OTHER = "eu-central-1"


@pytest.fixture(scope="module")
def client(served: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker process, whose AWS environment points to the sandbox."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {**served.environment, "VMSNIX_STATE": str(folder)}
    with connected(Dask(workers=1), log=folder / "log.txt", environment=environment) as made:
        yield made


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame without what differs between any two scans; evidence has no order of its own."""
    evidence = frame["evidence"].map(lambda text: sorted(json.loads(text)))
    return frame.assign(evidence=evidence).drop(columns=["run_id", "scanned_at"])


def test_it_finds_what_one_process_finds(own: Owner, friend: Owner, client: Any) -> None:
    ours, theirs = own.ami(), friend.ami(region=OTHER)
    own.share(ours, FRIEND)
    friend.launch(ours)
    friend.template(theirs, region=OTHER)
    asked: dict[str, Any] = {"regions": [REGION, OTHER], "accounts": [own.account, FRIEND, STRANGER]}
    found, wanted = spread.scan(client, **asked), own.scan(**asked)
    pd.testing.assert_frame_equal(comparable(found.frame), comparable(wanted.frame))
    assert found.places == wanted.places
    assert [(one.account, one.source) for one in found.unread] == [(STRANGER, "account")]
    assert found.frame.set_index("resource_id")["referenced"][ours]  # by the other account's instance


class Here:
    """A client whose worker is this process."""

    def map(self, function: Any, *given: Any, pure: bool, **more: Any) -> list[Any]:
        assert not pure
        return [function(*some, **more) for some in zip(*given, strict=True)]

    def gather(self, found: list[Any]) -> list[Any]:
        return found


def test_an_account_is_read_once_however_often_it_is_named(
    own: Owner, friend: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_OPEN", {})
    ami = friend.ami()
    role = f"arn:aws:iam::{FRIEND}:role/vmsnix-auditor"
    found = spread.scan(Here(), regions=[REGION], accounts=[FRIEND, role])
    assert list(found.amis["resource_id"]) == [ami]


def test_who_was_refused_is_asked_again(
    own: Owner, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_OPEN", {})
    asked: dict[str, Any] = {"regions": [REGION], "accounts": [FRIEND]}
    assert [one.source for one in spread.scan(Here(), **asked).unread] == ["account"]
    request.getfixturevalue("friend")
    found = spread.scan(Here(), **asked)
    assert (found.unread, set(found.places)) == ((), {(FRIEND, REGION)})


def test_every_enabled_region_is_read(own: Owner, client: Any) -> None:
    found = spread.scan(client, regions=["all"], one_by_one="no")
    assert len(found.places) > 10
    assert found.unread == ()
