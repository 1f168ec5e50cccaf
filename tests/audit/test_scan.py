"""`audit.scan`: an inventory to work with in a notebook."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from tests.audit.account import DIGEST, OTHER_ACCOUNT, REGION
from vmsnix_ops import audit, errors
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    from tests.audit.account import Owner


def test_an_inventory_is_a_table_with_frames_of_amis_and_snapshots(own: Owner) -> None:
    ami, orphan = own.ami(tags=DIGEST), own.snapshot()
    found = audit.scan(REGION)
    assert list(found.amis["ami_id"]) == [ami]
    assert found.amis["age_days"].between(2.9, 3.1).all()
    assert orphan in set(found.snapshots.loc[~found.snapshots["referenced"], "snapshot_id"])
    assert str(found).splitlines()[0] == "Inventory"
    assert "<table" in found._repr_html_()
    assert found.table().frame().equals(found.summary())
    assert found.summary()["count"].sum() == len(found.frame)


def test_users_are_one_row_for_each_ami_and_user(own: Owner) -> None:
    used, shared, unused = own.ami(tags=DIGEST), own.ami(tags=DIGEST), own.ami()
    instance, template = own.launch(used), own.template(used)
    own.share(shared, OTHER_ACCOUNT)
    found = audit.scan([REGION])
    users = found.users()
    rows = set(users[["ami_id", "kind", "id", "source", "uses"]].itertuples(index=False, name=None))
    assert rows == {
        (used, "instance", instance, "instances", True),
        (used, "launch-template", template, "launch templates", True),
        (shared, "shared-with", OTHER_ACCOUNT, "launch permissions", False),
    }
    details = users.set_index("kind")["detail"]
    assert details["launch-template"] == "nodes, version 1 (default and latest)"
    joined = found.amis.merge(users, how="left")
    assert set(joined.loc[joined["id"].isna(), "ami_id"]) == {unused}
    assert set(found.amis.columns) & set(users.columns) == {"ami_id", "region"}


def test_an_account_without_amis_has_empty_frames_with_columns(own: Owner) -> None:
    found = audit.scan(REGION)
    for frame in (found.amis, found.snapshots, found.users()):
        assert len(frame) == 0
        assert "region" in frame.columns
    assert found.users().dtypes["uses"] == "bool"


@pytest.mark.parametrize(
    "regions", ["all", ["all"], REGION, [REGION], (REGION, "eu-west-1"), pd.Series([REGION])]
)
@pytest.mark.variants
def test_regions_are_one_or_several_or_all(own: Owner, regions: object) -> None:
    own.ami()
    assert len(audit.scan(regions).amis) == 1  # type: ignore[arg-type]


def test_without_regions_the_region_of_the_settings_is_scanned(own: Owner, tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_text('region = "eu-west-1"\n')
    assert list(audit.scan().regions) == [(own.account, "eu-west-1")]


def test_an_unknown_region_is_refused_with_the_nearest(own: Owner) -> None:
    with pytest.raises(errors.RegionError, match="eu-west-1"):
        audit.scan("eu-wset-1")
    assert own.account


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"region": REGION}, "scan has no argument 'region'. Did you mean 'regions'?"),
        ((REGION, "eu-west-1"), {}, "scan: 2 arguments without a name."),
    ],
)
def test_a_wrong_argument_is_refused_with_the_right_one(
    args: tuple[str, ...], kwargs: dict[str, str], message: str
) -> None:
    with pytest.raises(errors.ParameterError, match=re.escape(message)):
        audit.scan(*args, **kwargs)  # type: ignore[arg-type,misc]


def test_reading_writes_nothing(own: Owner, tmp_path: Path) -> None:
    own.ami(tags=DIGEST)
    audit.scan(REGION)
    found = audit.check(regions=REGION)
    _ = (str(found), found._repr_html_(), found.show_findings()._repr_html_())
    assert list(tmp_path.iterdir()) == []


def test_a_run_stores_one_scan_however_often_it_is_checked(
    own: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMSNIX_RUN_ID", "the-run")
    monkeypatch.setenv("VMSNIX_RUN_DIR", str(tmp_path / "run"))
    own.share(own.ami(tags=DIGEST), "all")
    first = audit.check(regions=[REGION])
    first.save()
    fresh = own.ami(tags=DIGEST)
    again = audit.check(regions=[REGION])
    again.save()
    assert fresh in set(again.inventory.amis["ami_id"])
    assert str(again.changes) == "No earlier scan to compare with."
    tables = open_tables(load())
    scans = tables.read("inventory", endpoint="all")
    assert set(scans["scanned_at"]) == {first.inventory.scanned_at}
    findings = tables.read("findings", endpoint="all")
    assert list(findings["resource_id"]) == list(first.findings["resource_id"])
    assert set(findings["run_id"]) == {"the-run"}
    assert set(findings["cost_basis"].dropna()) <= {"stored", "volume", "snapshots"}
    public = findings[findings["rule"] == "public"].iloc[0]
    assert (public["severity"], public["cost_basis"]) == ("high", "snapshots")
    assert public["remediation"].startswith("aws ec2 modify-image-attribute")
