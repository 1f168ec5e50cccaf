"""A proof that an AMI contains a published image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import quick
from tests.publish.proving import BLOCK, HOME, WEST, Account, block, disk, identity, proof, row, verdict
from tests.support import wait_until
from vmsnix_ops import errors, prove
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.identity import SCHEME
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox import Sandbox, sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

GET, LIST = "ebs:GetSnapshotBlock", "ebs:ListSnapshotBlocks"
OTHER = "f" * 64


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with sandbox(speed=5000) as aws:
        yield aws


@pytest.fixture
def account(served: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Account:
    served.reset()
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", HOME)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return Account(served)


def keep_manifest(
    blocks: dict[int, bytes], snapshot_id: str, *, scheme: str = SCHEME, **changes: Any
) -> None:
    """Write a manifest as a publish does, or with changes."""
    digests = Digests((index, hashlib.sha256(data).hexdigest()) for index, data in sorted(blocks.items()))
    manifest = replace(Manifest(identity(blocks), 2**30, snapshot_id, HOME, digests), **changes)
    content = manifest.dump().replace(SCHEME.encode(), scheme.encode())
    open_tables(load()).write_object(f"manifests/{snapshot_id}", content)


def root_of(account: Account, ami: str, region: str = HOME) -> str:
    (image,) = account.client("ec2", region).describe_images(ImageIds=[ami])["Images"]
    return str(image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])


# Proven


def test_an_ami_is_proven_by_the_archived_result_of_its_publish(account: Account) -> None:
    ami = account.published()
    result = proof(ami)
    result.raise_for_status()
    checked = row(result)
    assert (result.verdict, checked["verdict"], checked["source"]) == ("proven", "proven", "result")
    assert checked["found"] == checked["digest"] == identity(disk())
    assert (checked["blocks"], checked["compared"]) == (12, 12)
    assert Path(checked["origin"]).name == "result.json"


def test_an_ami_is_proven_by_the_operators_identity(account: Account) -> None:
    ami = account.ami(account.snapshot(disk()))
    result = proof(ami, identity=identity(disk()))
    result.raise_for_status()
    assert row(result)["source"] == "argument"


def test_an_ami_is_proven_by_a_result_file_or_the_id_of_a_run(account: Account, tmp_path: Path) -> None:
    ami = account.ami(account.snapshot(disk()))
    run_id = account.record("ami-0123456789abcdef0", identity(disk()))
    proof(ami, result=run_id).raise_for_status()
    place = Path(load().archive) / run_id / "result.json"
    proof(ami, result=str(place)).raise_for_status()


def test_an_ami_is_proven_by_a_result_in_an_archive_on_s3(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = account.published()
    (local,) = Path(load().archive).glob("*/result.json")
    s3 = account.client("s3")
    s3.create_bucket(Bucket="vmsnix-archive")
    s3.put_object(
        Bucket="vmsnix-archive", Key=f"evidence/{local.parent.name}/result.json", Body=local.read_bytes()
    )
    local.unlink()
    monkeypatch.setenv("VMSNIX_ARCHIVE", "s3://vmsnix-archive/evidence")
    result = proof(ami)
    result.raise_for_status()
    assert row(result)["origin"].startswith("s3://vmsnix-archive/evidence/")


def test_an_ami_is_found_by_id_and_name_in_the_regions_of_the_tables(account: Account) -> None:
    ami = account.ami(account.snapshot(disk(), region=WEST), region=WEST)
    account.record(ami, identity(disk()), region=WEST)
    for word in (ami, "image-1"):
        plan = prove.plan(amis=[word], progress=silent())
        assert [(one.ami_id, one.region) for one in plan.targets] == [(ami, WEST)]


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_copy_is_proven_by_the_result_of_its_source(account: Account, encrypted: bool) -> None:
    copy = account.copied(account.published(), **({"Encrypted": True} if encrypted else {}))
    result = proof(copy, regions=[WEST])
    result.raise_for_status()
    assert row(result)["source"] == "result"


def test_the_size_of_the_volume_does_not_count(account: Account) -> None:
    ami = account.ami(account.snapshot(disk(), size=3))
    result = proof(ami, identity=identity(disk()))
    result.raise_for_status()
    assert row(result)["size_gib"] == 3


def test_blocks_of_zeros_do_not_count(account: Account) -> None:
    ami = account.ami(account.snapshot({**disk(), 9: bytes(BLOCK), 2000: bytes(BLOCK)}))
    proof(ami, identity=identity(disk())).raise_for_status()


def test_an_empty_disk_is_proven(account: Account) -> None:
    ami = account.ami(account.snapshot({}))
    proof(ami, identity=identity({})).raise_for_status()


# Only a tag


def test_without_a_result_the_verdict_is_that_it_matches_its_tag(account: Account) -> None:
    ami = account.ami(account.snapshot(disk()), tag=identity(disk()))
    result = proof(ami)
    assert (result.verdict, row(result)["source"]) == ("matches its tag", "tag")
    with pytest.raises(errors.PartialError, match="matches its tag"):
        result.raise_for_status()


@pytest.mark.parametrize(
    "values",
    [
        {"ami_id": "ami-0123456789abcdef0"},
        {"status": "failed"},
        {"digest": None},
        {"digest": "0" * 63},
        {"dry_run": True},
        {"runbook": "smoke-test", "via": None},
        {"runbook": "publish-ami", "via": 1},
    ],
)
@pytest.mark.variants
def test_a_result_of_another_ami_or_job_proves_nothing(account: Account, values: dict[str, Any]) -> None:
    ami = account.ami(account.snapshot(disk()), tag=identity(disk()))
    account.record(ami, identity(disk()), **values)
    assert verdict(ami) == "matches its tag"


def test_the_result_of_a_proof_by_tag_proves_nothing(account: Account) -> None:
    """A proof, a smoke test and a promotion write a digest that they read from the tag."""
    ami = account.ami(account.snapshot(disk()), tag=identity(disk()))
    by_tag = proof(ami)
    assert by_tag.verdict == "matches its tag"
    for place in (by_tag.run_id, str(by_tag.save())):
        with pytest.raises(errors.ParameterError, match="is not the result of a publish"):
            proof(ami, result=place)


@pytest.mark.parametrize("up", ["..", "../runs/..", "/"])
@pytest.mark.variants
def test_a_run_id_that_leads_out_of_the_archive_is_not_used(
    account: Account, up: str, tmp_path: Path
) -> None:
    """A person who may write the tables, and other files than those of the archive."""
    ami = account.published()
    (place,) = Path(load().archive).glob("*/result.json")
    elsewhere = tmp_path / "state" / "elsewhere"
    place.parent.rename(elsewhere)
    (tmp_path / "state" / "runs").mkdir(exist_ok=True)
    run_id = str(elsewhere) if up == "/" else f"{up}/elsewhere"
    (row,) = open_tables(load()).read("amis").to_dict("records")
    open_tables(load()).append("amis", [{**row, "run_id": run_id, "recorded_at": row["recorded_at"]}])
    assert verdict(ami) == "matches its tag"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"digest": 1}'])
def test_a_damaged_result_proves_nothing(account: Account, content: str) -> None:
    ami = account.published()
    (place,) = Path(load().archive).glob("*/result.json")
    place.write_text(content)
    assert verdict(ami) == "matches its tag"


def test_without_tables_the_verdict_is_that_it_matches_its_tag(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ami = account.published()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VMSNIX_HISTORY", str(tmp_path / "file"))
    assert verdict(ami) == "matches its tag"


# Tags and tables that differ


def test_a_tag_of_another_identity_is_reported(account: Account) -> None:
    ami = account.published()
    account.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "vmsnix:digest", "Value": OTHER}])
    result = proof(ami)
    assert result.verdict == "proven"
    assert row(result)["notes"] == [f"Its tag vmsnix:digest is {OTHER}, expected {identity(disk())}."]
    with pytest.raises(errors.PartialError, match="another value"):
        result.raise_for_status()


def test_a_table_with_another_identity_is_reported(account: Account) -> None:
    ami = account.ami(account.snapshot(disk()), tag=identity(disk()))
    account.record(ami, OTHER)
    result = proof(ami, identity=identity(disk()))
    assert (result.verdict, result.error is None) == ("proven", False)
    assert row(result)["notes"] == [f"Its row in the tables is {OTHER}, expected {identity(disk())}."]


def test_every_row_with_another_identity_is_reported(account: Account) -> None:
    """A later row does not hide one that was forged."""
    ami = account.ami(account.snapshot(disk()))
    for recorded in ("d" * 64, OTHER, identity(disk())):
        account.record(ami, recorded)
    result = proof(ami, identity=identity(disk()))
    assert [note.split(",")[0] for note in row(result)["notes"]] == [
        f"Its row in the tables is {OTHER}",
        f"Its row in the tables is {'d' * 64}",
    ]


def test_a_snapshot_whose_tag_has_another_identity_is_reported(account: Account) -> None:
    """A publish finds a snapshot by this tag."""
    ami = account.published()
    root = root_of(account, ami)
    account.client("ec2").create_tags(Resources=[root], Tags=[{"Key": "vmsnix:digest", "Value": OTHER}])
    result = proof(ami)
    assert (result.verdict, result.as_dict()["status"]) == ("proven", "partial")
    assert row(result)["notes"] == [
        f"The tag vmsnix:digest of {root} is {OTHER}, expected {identity(disk())}."
    ]


# Not provable


def not_provable(account: Account, ami: str, reason: str, **params: Any) -> str:
    """Check the verdict and return its sentence."""
    result = proof(ami, **{"identity": identity(disk()), **params})
    checked = row(result)
    assert (checked["verdict"], checked["reason"], checked["compared"]) == ("not provable", reason, 0)
    with pytest.raises(errors.PartialError) as caught:
        result.raise_for_status()
    assert caught.value.exit_code == 3
    return f"{checked['why']} {checked['fix']}"


def test_an_ami_that_does_not_exist_is_not_provable(account: Account) -> None:
    text = not_provable(account, "ami-0123456789abcdef0", "no AMI")
    assert text.startswith("No AMI ami-0123456789abcdef0 in us-east-1 is visible")
    assert "us-west-2" in not_provable(account, "nothing", "no AMI", regions=[HOME, WEST])


def test_a_public_snapshot_is_not_provable(account: Account) -> None:
    ami = account.published()
    account.client("ec2").modify_snapshot_attribute(
        SnapshotId=root_of(account, ami),
        Attribute="createVolumePermission",
        OperationType="add",
        GroupNames=["all"],
    )
    assert "is public" in (text := not_provable(account, ami, "public"))
    assert f"aws ec2 copy-image --source-image-id {ami}" in text


@pytest.mark.parametrize(
    ("values", "reason", "text"),
    [
        ({"StorageTier": "archive"}, "archived", "aws ec2 restore-snapshot-tier"),
        ({"State": "pending"}, "not completed", "is pending"),
        ({"State": "error"}, "not completed", "is error"),
        ({"Snapshots": []}, "no snapshot", "was deleted, or these credentials cannot read it"),
    ],
)
def test_a_snapshot_in_another_state_is_not_provable(
    account: Account, values: dict[str, Any], reason: str, text: str
) -> None:
    ami = account.published()
    account.aws.faults.add({"op": "ec2:DescribeSnapshots", "do": "set", "values": values})
    assert text in not_provable(account, ami, reason)


def test_an_ami_without_a_root_snapshot_is_not_provable(account: Account) -> None:
    ami = account.published()
    account.aws.faults.add({"op": "ec2:DescribeImages", "do": "set", "values": {"BlockDeviceMappings": []}})
    not_provable(account, ami, "no root snapshot")


def test_without_any_identity_it_is_not_provable(account: Account) -> None:
    ami = account.ami(account.snapshot(disk()))
    text = not_provable(account, ami, "no identity", identity="")
    assert "--identity" in text
    assert account.gets() == 0


@pytest.mark.parametrize("op", [GET, LIST])
def test_a_snapshot_that_may_not_be_read_is_not_provable(account: Account, op: str) -> None:
    ami = account.published()
    account.aws.faults.add({"op": op, "do": "error", "code": "AccessDeniedException", "http": 403})
    assert "AccessDeniedException" in not_provable(account, ami, "unreadable")


def test_a_region_that_cannot_be_read_is_not_provable(account: Account) -> None:
    account.aws.faults.add(
        {"op": "ec2:DescribeImages", "do": "error", "code": "UnauthorizedOperation", "http": 403}
    )
    assert "UnauthorizedOperation" in not_provable(account, "ami-0123456789abcdef0", "unreadable")


@pytest.mark.parametrize("op", [GET, LIST])
def test_a_snapshot_that_cannot_be_decrypted_is_not_provable(account: Account, op: str) -> None:
    ami = account.copied(account.published(), HOME, Encrypted=True)
    fault = {"op": op, "do": "error", "code": "AccessDeniedException", "http": 403}
    account.aws.faults.add({**fault, "extra": {"Reason": "DEPENDENCY_ACCESS_DENIED"}})
    assert "cannot be decrypted" in not_provable(account, ami, "undecryptable")


def test_expired_credentials_end_the_proof(account: Account) -> None:
    ami = account.published()
    account.aws.faults.add({"op": LIST, "do": "error", "code": "ExpiredTokenException", "http": 403})
    with pytest.raises(errors.CredentialsError):
        proof(ami)


def test_one_ami_that_is_not_provable_does_not_stop_the_others(account: Account) -> None:
    ami = account.published()
    result = proof("ami-0123456789abcdef0", ami)
    assert [one["verdict"] for one in result.as_dict()["proofs"]] == ["not provable", "proven"]
    assert result.as_dict()["status"] == "partial"


# Samples


@pytest.fixture
def sampled(account: Account) -> str:
    """An AMI whose image has a manifest."""
    ami = account.published()
    keep_manifest(disk(), root_of(account, ami))
    return ami


def test_a_sample_is_compared_with_the_manifest(account: Account, sampled: str) -> None:
    plan = prove.plan(amis=[sampled], extent="sample", sample_blocks=5, progress=silent())
    (target,) = plan.targets
    # Block 8 is listed and contains zeros: it is read besides the five.
    assert (plan.gets, target.added) == (6, {8})
    result = plan.apply()
    result.raise_for_status()
    checked = row(result)
    assert (checked["verdict"], checked["compared"], checked["found"]) == ("proven", 6, "")
    assert checked["undetected"] == pytest.approx(1 - 5 / 11)
    assert "The probability that a change is not detected is 0.545 for one block" in str(result)


def test_a_sample_of_all_blocks_misses_nothing(account: Account, sampled: str) -> None:
    assert row(proof(sampled, extent="sample"))["undetected"] == 0


def test_a_sample_of_an_empty_disk_misses_nothing(account: Account) -> None:
    ami = account.published({})
    keep_manifest({}, root_of(account, ami))
    assert row(proof(ami, extent="sample"))["undetected"] == 0


def test_a_copy_is_sampled_with_the_manifest_of_its_source(account: Account, sampled: str) -> None:
    copy = account.copied(sampled)
    proof(copy, regions=[WEST], extent="sample").raise_for_status()


def test_a_sample_without_a_manifest_is_not_provable(account: Account) -> None:
    ami = account.published()
    assert "--extent whole" in not_provable(account, ami, "no manifest", extent="sample")


@pytest.mark.parametrize(
    ("blocks", "changes", "text"),
    [
        ({**disk(), 3: block(99)}, {}, "has the identity"),
        ({**disk(), 3: block(99)}, {"identity": identity(disk())}, "but it names"),
        (disk(), {"scheme": "vmsnix-disk-v2"}, "vmsnix-disk-v2"),
        (disk(), {"disk_bytes": 2**20}, "the disk ends with block 1"),
    ],
    ids=["other", "forged", "scheme", "beyond the disk"],
)
@pytest.mark.variants
def test_a_manifest_that_does_not_prove_its_identity_is_not_used(
    account: Account, blocks: dict[int, bytes], changes: dict[str, Any], text: str
) -> None:
    ami = account.published()
    keep_manifest(blocks, root_of(account, ami), **changes)
    assert text in not_provable(account, ami, "bad manifest", extent="sample")
    assert verdict(ami) == "proven"


def test_a_manifest_of_another_snapshot_is_not_used(account: Account) -> None:
    ami = account.published()
    root = root_of(account, ami)
    other = Manifest(identity(disk()), 2**30, "snap-0123456789abcdef0", HOME, Digests())
    open_tables(load()).write_object(f"manifests/{root}", other.dump())
    assert "belongs to" in not_provable(account, ami, "bad manifest", extent="sample")


def test_a_sample_finds_a_missing_block_without_reading_any(account: Account, sampled: str) -> None:
    blocks = disk()
    del blocks[1001]
    ami = account.ami(account.snapshot(blocks))
    account.record(ami, identity(disk()), root_of(account, sampled))
    before = account.gets()
    checked = row(proof(ami, extent="sample", sample_blocks=1))
    assert (checked["verdict"], checked["first_differing"]) == ("differs", [1001])
    assert account.gets() == before


def test_a_sample_always_finds_an_added_block(account: Account, sampled: str) -> None:
    ami = account.ami(account.snapshot({**disk(), 2047: block(7)}))
    account.record(ami, identity(disk()), root_of(account, sampled))
    checked = row(proof(ami, extent="sample", sample_blocks=1))
    assert (checked["verdict"], checked["first_differing"]) == ("differs", [2047])


# A sample that was interrupted


def requested(account: Account, since: int = 0) -> list[int]:
    """Return the blocks that were requested after the first `since` calls."""
    calls = list(account.aws.calls)[since:]
    return sorted(int(call.params["BlockIndex"]) for call in calls if call.operation == "GetSnapshotBlock")


def cut(ami: str, account: Account, block: str = "*", **params: Any) -> None:
    """Start a proof whose credentials expire at a block."""
    expired = {"do": "error", "code": "ExpiredTokenException", "http": 403}
    account.aws.faults.add({"op": GET, **expired, "where": {"BlockIndex": block}})
    with pytest.raises(errors.CredentialsError):
        proof(ami, extent="sample", **params)
    end_rule(account)


def end_rule(account: Account) -> None:
    """End the fault rule when the sandbox has answered the requests of the workers, which were killed."""
    quick.separate_clients()
    connections = account.aws._server._connections
    wait_until(lambda: not connections, "an open connection to the sandbox")
    account.aws.faults.clear()


def kept() -> list[str]:
    return [path.name for path in (load().state / "proofs").iterdir()]


def read_all_but(account: Account, ami: str, block: int, **params: Any) -> None:
    """Interrupt a sample at a block until all others have been read."""
    left = 12
    while left > 1:
        cut(ami, account, str(block), **params)
        left = prove.plan(amis=[ami], extent="sample", progress=silent()).gets


def test_an_interrupted_sample_continues_with_the_same_blocks(account: Account, sampled: str) -> None:
    params = {"extent": "sample", "sample_blocks": 7}
    # The refusals come late, so that the first three answers are recorded also on a busy machine.
    later = {"op": GET, "nth": list(range(4, 99))}
    account.aws.faults.add({**later, "do": "delay", "seconds": 2})
    account.aws.faults.add({**later, "do": "error", "code": "ExpiredTokenException", "http": 403})
    with pytest.raises(errors.CredentialsError):
        proof(sampled, **params)
    end_rule(account)
    before, since = account.gets(), len(account.aws.calls)
    plan = prove.plan(amis=[sampled], progress=silent(), **params)
    assert 0 < plan.gets < 8
    result = plan.apply()
    result.raise_for_status()
    assert account.gets() - before == plan.gets == len(requested(account, since))
    assert len(set(requested(account))) == 8
    assert (row(result)["compared"], row(result)["undetected"]) == (8, pytest.approx(1 - 7 / 11))
    assert kept() == []


def test_an_interrupted_sample_does_not_choose_again(account: Account, sampled: str) -> None:
    for _ in range(4):
        cut(sampled, account, sample_blocks=1)
    assert len(set(requested(account)) - {8}) == 1
    proof(sampled, extent="sample", sample_blocks=1).raise_for_status()
    assert len(set(requested(account)) - {8}) == 1


def test_each_finished_sample_chooses_again(account: Account, sampled: str) -> None:
    choices = set()
    for _ in range(4):
        since = len(account.aws.calls)
        proof(sampled, extent="sample", sample_blocks=5).raise_for_status()
        choices.add(tuple(requested(account, since)))
    assert len(choices) > 1


def test_a_larger_sample_continues_a_smaller_one(account: Account, sampled: str) -> None:
    cut(sampled, account, sample_blocks=3)
    smaller = set(requested(account))
    result = proof(sampled, extent="sample", sample_blocks=9)
    assert smaller < set(requested(account))
    assert (row(result)["compared"], row(result)["undetected"]) == (10, pytest.approx(1 - 9 / 11))


def test_an_interrupted_sample_finds_a_change_in_a_block_that_was_not_read(
    account: Account, sampled: str
) -> None:
    ami = account.ami(account.snapshot({**disk(), 1002: block(99)}))
    account.record(ami, identity(disk()), root_of(account, sampled))
    read_all_but(account, ami, 1002)
    before = account.gets()
    assert row(proof(ami, extent="sample"))["first_differing"] == [1002]
    assert account.gets() - before == 1


def test_an_interrupted_sample_finds_a_change_in_a_block_that_was_read(
    account: Account, sampled: str
) -> None:
    """The journal has the digest that was read. AWS does not change a completed snapshot."""
    ami = account.ami(account.snapshot({**disk(), 0: block(99)}))
    account.record(ami, identity(disk()), root_of(account, sampled))
    read_all_but(account, ami, 1002)
    before = account.gets()
    # Also a sample that would not choose this block compares it.
    assert row(proof(ami, extent="sample", sample_blocks=1))["first_differing"] == [0]
    assert account.gets() - before <= 1


def test_a_sample_that_found_a_change_is_not_repeated_with_other_blocks(
    account: Account, sampled: str
) -> None:
    ami = account.ami(account.snapshot({**disk(), 0: block(99)}))
    account.record(ami, identity(disk()), root_of(account, sampled))
    assert verdict(ami, extent="sample") == "differs"
    before = account.gets()
    for _ in range(3):
        assert row(proof(ami, extent="sample", sample_blocks=1))["first_differing"] == [0]
    assert account.gets() == before
    assert verdict(ami) == "differs"


def test_a_sample_of_another_identity_does_not_use_the_journal(account: Account, sampled: str) -> None:
    blocks = {index: data for index, data in disk().items() if index != 5}
    other = account.published(blocks)
    keep_manifest(blocks, root_of(account, other))
    cut(sampled, account, sample_blocks=11)
    before = account.gets()
    checked = row(proof(sampled, extent="sample", identity=identity(blocks)))
    assert (checked["verdict"], checked["first_differing"], checked["compared"]) == ("differs", [5], 12)
    assert account.gets() - before == 12


# What differs


def test_the_first_blocks_that_differ_are_named(account: Account, sampled: str) -> None:
    ami = account.ami(account.snapshot({**disk(), 2: block(99), 1002: block(98), 1500: block(97)}))
    account.record(ami, identity(disk()), root_of(account, sampled))
    result = proof(ami)
    assert row(result)["first_differing"] == [2, 1002, 1500]
    with pytest.raises(errors.DriftError, match=r"The first blocks that differ: 2, 1002, 1500\."):
        result.raise_for_status()


def test_without_a_manifest_the_blocks_that_differ_are_not_known(account: Account) -> None:
    ami = account.ami(account.snapshot({**disk(), 2: block(99)}))
    checked = row(proof(ami, identity=identity(disk())))
    assert (checked["verdict"], checked["first_differing"]) == ("differs", [])
    assert "it is unknown which blocks differ" in checked["why"]


# Price, confirmation, continuation


def test_the_plan_shows_requests_price_time_and_traffic(account: Account) -> None:
    here = account.published()
    there = account.copied(here)
    plan = prove.plan(amis=[here, there], regions=[HOME, WEST], progress=silent())
    facts = dict(plan.facts())
    assert facts["requests"] == "24 GetSnapshotBlock, 4 ListSnapshotBlocks"
    assert facts["price"] == "less than 0.01 USD"
    assert facts["cross-region traffic"] == "6.0 MiB from us-west-2, if this machine is in us-east-1"
    assert facts["time"].endswith("at 1,000 requests per second")
    assert account.gets() == 0


def test_more_than_one_dollar_needs_a_confirmation(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.publish.prove.GET_USD", 0.1)
    ami = account.published()
    plan = prove.plan(amis=[ami], progress=silent())
    assert "--yes" in str(plan)
    with pytest.raises(errors.ConfirmationError, match=r"1\.20 USD"):
        plan.apply()
    assert account.gets() == 0
    proof(ami, yes=True).raise_for_status()


@pytest.mark.parametrize(
    ("gets", "usd"), [(8192, 0.0246), (333_333, 1.0), (2_097_152, 6.29)], ids=["4 GiB", "1 USD", "1 TiB"]
)
def test_the_price_is_that_of_the_requests(account: Account, gets: int, usd: float) -> None:
    plan = prove.plan(amis=[account.published()], progress=silent())
    (target,) = plan.targets
    larger = replace(plan, targets=(replace(target, gets=gets, listed=0),))
    assert larger.usd == pytest.approx(usd, rel=0.01)


def test_an_interrupted_proof_continues(account: Account) -> None:
    ami = account.published()
    account.aws.faults.add(
        {"op": GET, "do": "error", "code": "ExpiredTokenException", "http": 403, "nth": list(range(6, 99))}
    )
    with pytest.raises(errors.CredentialsError):
        proof(ami)
    end_rule(account)
    before = account.gets()
    plan = prove.plan(amis=[ami], progress=silent())
    assert 0 < plan.gets < 12
    plan.apply().raise_for_status()
    assert account.gets() - before == plan.gets
    assert not list((load().state / "proofs").iterdir())


@pytest.mark.parametrize("between", ["refused", "sample"])
def test_a_proof_that_was_cut_continues_whatever_was_tried_between(account: Account, between: str) -> None:
    ami = account.published()
    keep_manifest(disk(), root_of(account, ami))
    fault = {"op": GET, "do": "error", "http": 403}
    account.aws.faults.add({**fault, "code": "ExpiredTokenException", "nth": list(range(6, 99))})
    with pytest.raises(errors.CredentialsError):
        proof(ami)
    end_rule(account)
    if between == "refused":
        account.aws.faults.add({**fault, "code": "AccessDeniedException"})
        assert verdict(ami) == "not provable"
        account.aws.faults.clear()
    else:
        proof(ami, extent="sample").raise_for_status()
    plan = prove.plan(amis=[ami], progress=silent())
    assert 0 < plan.gets < 12
    plan.apply().raise_for_status()
    assert not list((load().state / "proofs").iterdir())


# Records and files


def test_every_proof_is_recorded(account: Account) -> None:
    ami = account.published()
    result = proof(ami)
    (found,) = open_tables(load()).read("proofs").to_dict("records")
    assert (found["ami_id"], found["verdict"], found["digest"]) == (ami, "proven", identity(disk()))
    assert (found["run_id"], found["extent"], found["compared"]) == (result.run_id, "whole", 12)
    runs = open_tables(load()).read("runs").to_dict("records")
    assert [(run["runbook"], run["status"]) for run in runs] == [("prove-ami", "done")]


def test_a_proof_that_cannot_be_recorded_is_reported(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ami = account.published()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VMSNIX_HISTORY", str(tmp_path / "file"))
    result = proof(ami, identity=identity(disk()))
    assert result.verdict == "proven"
    with pytest.raises(errors.UnsavedError, match="could not be recorded"):
        result.raise_for_status()


def test_the_result_is_saved_as_json_and_csv(account: Account) -> None:
    ami = account.published()
    result = proof(ami)
    values = json.loads(result.save().read_text())
    assert (values["status"], values["verdict"], values["ami_id"]) == ("done", "proven", ami)
    assert (values["digest"], values["gets"]) == (identity(disk()), 12)
    assert Path(values["csv"]).read_text().count("\n") == 2
    assert list(result.frame()["verdict"]) == ["proven"]


# Parameters


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"amis": []}, "No AMI given"),
        ({"amis": [" "]}, "No AMI given"),
        ({"identity": "ABC"}, "Invalid identity"),
        ({"identity": "0" * 64, "result": "x"}, "Both an identity and a result"),
        ({"result": "nothing.json"}, "Could not find nothing.json"),
        ({"result": "a\0b"}, "Could not find"),
        ({"result": "~nobody-of-this-name/result.json"}, "Could not find"),
        ({"result": "s3://bucket"}, "Could not find s3://bucket"),
        ({"result": "s3:///result.json"}, "Could not find s3:///result.json"),
        ({"result": "20261122T213000000Z-publish-ami-0a1b2c"}, "Could not find"),
        ({"sample_blocks": 0}, "sample_blocks: 0 is not between 1"),
        ({"extent": "half"}, "Invalid extent"),
    ],
)
def test_invalid_parameters_are_refused(account: Account, params: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ParameterError, match=text):
        prove.plan(**{"amis": ["ami-0123456789abcdef0"], **params})
    assert account.gets() == 0
