"""What changed since the last scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.audit.account import REGION, Owner
from vmsnix_ops.audit.changes import COLUMNS, since_last, store
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vmsnix_ops.audit.changes import Changes

OTHER = "eu-west-1"


def scan_and_store(own: Owner, tmp_path: Path, *regions: str, buckets: Iterable[str] = ()) -> Changes:
    """Scan, compare and store."""
    tables = Tables(tmp_path / "history")
    found = own.scan(regions=regions or [REGION], buckets=buckets)
    changes = since_last(found, tables)
    store(found, tables)
    return changes


def listed(changes: Changes) -> set[tuple[Any, ...]]:
    return set(changes.frame[["change", "kind", "resource_id"]].itertuples(index=False, name=None))


def test_the_first_scan_has_nothing_to_compare_with(own: Owner, tmp_path: Path) -> None:
    own.ami()
    changes = scan_and_store(own, tmp_path)
    assert (len(changes.frame), changes.since) == (0, {})
    assert list(changes.frame.columns) == list(COLUMNS)
    assert "No earlier scan" in str(changes)


def test_added_deleted_and_changed_resources_are_listed(own: Owner, tmp_path: Path) -> None:
    ec2 = own.client("ec2")
    kept, removed, changed = own.ami(), own.ami(), own.ami()
    scan_and_store(own, tmp_path)
    fresh = own.ami()
    ec2.deregister_image(ImageId=removed)
    own.share(changed, "all")
    ec2.create_tags(Resources=[changed], Tags=[{"Key": "owner", "Value": "ops"}])
    changes = scan_and_store(own, tmp_path)
    amis = {(change, one) for change, kind, one in listed(changes) if kind == "ami"}
    assert amis == {("added", fresh), ("deleted", removed), ("changed", changed)}
    what = changes.frame.set_index("resource_id")["what"]
    assert "public: False → True" in what[changed]
    assert 'tags: {} → {"owner": "ops"}' in what[changed]
    assert "referenced: False → nothing" in what[changed]
    assert kept not in what.index
    assert str(changes).startswith("Since ")


def test_an_unchanged_account_has_no_changes(own: Owner, tmp_path: Path) -> None:
    own.ami()
    scan_and_store(own, tmp_path)
    changes = scan_and_store(own, tmp_path)
    assert (len(changes.frame), len(changes.since)) == (0, 1)


def test_a_region_that_cannot_be_read_has_no_deleted_resources(own: Owner, tmp_path: Path) -> None:
    own.ami(OTHER)
    scan_and_store(own, tmp_path, REGION, OTHER)
    own.fail("ec2:*", "AuthFailure", 401, where={"region": OTHER})
    assert listed(scan_and_store(own, tmp_path, REGION, OTHER)) == set()
    assert scan_and_store(own, tmp_path, OTHER).since == {}
    own.aws.faults.clear()
    own.ami(OTHER)
    counted = scan_and_store(own, tmp_path, REGION, OTHER)
    assert (counted.count("added"), counted.count("deleted")) == (2, 0)


def test_a_region_that_became_empty_is_reported_once(own: Owner, tmp_path: Path) -> None:
    ami = own.ami()
    scan_and_store(own, tmp_path)
    own.client("ec2").deregister_image(ImageId=ami)
    snapshots = own.table("snapshots")
    snapshots.clear()
    assert scan_and_store(own, tmp_path).count("deleted") == 2
    assert len(scan_and_store(own, tmp_path).frame) == 0


def test_a_scan_of_one_region_reports_no_changes_of_another(own: Owner, tmp_path: Path) -> None:
    own.ami(OTHER)
    scan_and_store(own, tmp_path, REGION, OTHER)
    assert listed(scan_and_store(own, tmp_path, REGION)) == set()


def leave(own: Owner, bucket: str, region: str, *keys: str) -> None:
    """Put objects into a bucket."""
    s3 = own.client("s3", region)
    s3.create_bucket(Bucket=bucket, **_located(region))
    for key in keys:
        s3.put_object(Bucket=bucket, Key=f"vmsnix/{key}", Body=b"1")


def _located(region: str) -> dict[str, Any]:
    there = {"LocationConstraint": region}
    return {} if region == REGION else {"CreateBucketConfiguration": there}


def test_a_bucket_is_compared_on_its_own(own: Owner, tmp_path: Path) -> None:
    leave(own, "vmsnix-images", REGION, "a.vhd", "b.vhd")
    own.ami(), own.ami(OTHER)
    scan_and_store(own, tmp_path, REGION, OTHER, buckets=["vmsnix-images"])
    # If a scan does not read the region, or the bucket, nothing in it counts as deleted.
    assert listed(scan_and_store(own, tmp_path, OTHER, buckets=["vmsnix-images"])) == set()
    assert listed(scan_and_store(own, tmp_path, REGION, OTHER)) == set()
    own.client("s3").delete_object(Bucket="vmsnix-images", Key="vmsnix/a.vhd")
    changes = scan_and_store(own, tmp_path, OTHER, buckets=["vmsnix-images"])
    assert listed(changes) == {("deleted", "object", "vmsnix/a.vhd")}
    assert set(changes.since) == {(own.account, OTHER), (own.account, "s3://vmsnix-images")}


def test_a_bucket_that_cannot_be_read_does_not_affect_its_region(own: Owner, tmp_path: Path) -> None:
    leave(own, "vmsnix-images", REGION, "a.vhd")
    scan_and_store(own, tmp_path, REGION, buckets=["vmsnix-images"])
    fresh = own.ami()
    denied = {"op": "s3:ListObjectsV2", "do": "error", "code": "AccessDenied", "http": 403}
    own.aws.faults.add(denied)
    changes = scan_and_store(own, tmp_path, REGION, buckets=["vmsnix-images", "no-such-bucket"])
    assert ("added", "ami", fresh) in listed(changes)
    assert "deleted" not in {change for change, _, _ in listed(changes)}


def test_a_scan_is_stored_once(own: Owner, tmp_path: Path) -> None:
    own.ami()
    tables, found = Tables(tmp_path / "history"), own.scan(regions=[REGION])
    store(found, tables)
    store(found, tables)
    kept = tables.read("inventory")
    assert sorted(kept["kind"]) == ["ami", "region", "snapshot"]
    assert set(kept["run_id"]) == {found.run.run_id}
