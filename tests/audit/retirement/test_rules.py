"""The retirement rules, checked with generated accounts."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnix_ops.audit.region import RegionState
from vmsnix_ops.audit.retirement.decisions import AccountDecider, Decision, RetirementRules
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.images import Ami
from vmsnix_ops.aws.references import Reference, References
from vmsnix_ops.aws.snapshots import Snapshot
from vmsnix_ops.errors import AwsError

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
REGION, ACCOUNT = "us-east-1", "012345678901"
REFERENCES = [
    Reference("instance", "i-1", type="running"),
    Reference("launch-template", "lt-1", name="web"),
    Reference("launch-configuration", "old"),
    Reference("auto-scaling-group", "web"),
    Reference("parameter", "/vmsnix/web/stable"),
    Reference("image-recipe", "recipe"),
    Reference("shared-with", "210987654321", type="account"),
]


def make(name: str, days: float, **changes: Any) -> Ami:
    base: dict[str, Any] = {
        "ami_id": name,
        "name": f"name of {name}",
        "region": REGION,
        "account": ACCOUNT,
        "state": "available",
        "created_at": NOW - timedelta(days=days),
        "architecture": "x86_64",
        "boot_mode": "uefi",
        "root_device": "/dev/sda1",
        "snapshot_ids": (f"snap-{name}",),
        "size_gib": 2,
        "public": False,
        "imds_support": "v2.0",
        "ena_support": True,
        "tpm_support": "",
        "tags": {tagging.IMAGE: "web", tagging.DIGEST: f"digest of {name}"},
    }
    return Ami(**(base | changes))


def region_state(amis: Iterable[Ami], **changes: Any) -> RegionState:
    amis = tuple(sorted(amis, key=lambda ami: (ami.created_at, ami.ami_id)))
    snapshots = {
        one: Snapshot(one, "completed", ami.created_at, 2, dict(ami.tags))
        for ami in amis
        for one in ami.snapshot_ids
    }
    base: dict[str, Any] = {
        "region": REGION,
        "account": ACCOUNT,
        "amis": amis,
        "snapshots": snapshots,
        "references": References(REGION, {}),
    }
    return RegionState(**(base | changes))


def retired(days_ago: float, retention_days: float) -> dict[str, str]:
    at = NOW - timedelta(days=days_ago)
    return retiring.RetirementTags(at, at + timedelta(days=retention_days), "run").tags()


@st.composite
def states(draw: st.DrawFn) -> RegionState:
    count = draw(st.integers(0, 12))
    amis = []
    for number in range(count):
        tags = {tagging.IMAGE: draw(st.sampled_from(["web", "db"])), tagging.DIGEST: f"d{number % 5}"}
        if draw(st.integers(0, 9)) == 0:
            tags = {}
        state = draw(st.sampled_from(["available"] * 3 + ["disabled"] * 3 + ["failed", "pending"]))
        if tags and draw(st.booleans()):
            tags |= retired(draw(st.integers(0, 40)), 14)
        amis.append(
            make(
                f"ami-{number}",
                draw(st.integers(0, 200)),
                state=state,
                tags=tags,
                architecture=draw(st.sampled_from(["x86_64", "x86_64", "arm64"])),
                protection=draw(st.sampled_from(["disabled"] * 5 + ["enabled-without-cooldown"])),
                launched_at=draw(
                    st.none()
                    | st.none()
                    | st.none()
                    | st.integers(0, 100).map(lambda days: NOW - timedelta(days=days))
                ),
                snapshot_ids=tuple(draw(st.lists(st.integers(0, 8).map(lambda n: f"snap-{n}"), max_size=3))),
            )
        )
    names = [ami.ami_id for ami in amis] or ["ami-x"]
    found = draw(
        st.dictionaries(st.sampled_from(names), st.sets(st.sampled_from(REFERENCES), max_size=2), max_size=2)
    )
    unread = {"instances": AwsError("Denied.")} if draw(st.integers(0, 9)) == 0 else {}
    channels = draw(
        st.dictionaries(
            st.sampled_from(["/vmsnix/web/stable", "/vmsnix/db/candidate"]),
            st.lists(st.sampled_from(names), min_size=1, max_size=5).map(tuple),
        )
    )
    references = References(REGION, {name: tuple(some) for name, some in found.items()}, unread)
    return region_state(amis, references=references, channels=channels)


rule_sets = st.builds(
    RetirementRules,
    keep_last=st.integers(0, 2),
    min_age_days=st.integers(0, 40),
    launched_days=st.integers(0, 60),
    retention_days=st.integers(0, 30),
    max_count=st.integers(0, 12),
    allow_shared=st.booleans(),
)


@settings(deadline=None)
@given(states(), rule_sets)
def test_nothing_is_retired_or_deleted_that_a_rule_keeps(state: RegionState, rules: RetirementRules) -> None:
    decisions = decide([state], rules, NOW)
    amis = {ami.ami_id: ami for ami in state.amis}
    planned = [one for one in decisions if not one.kept]
    assert sorted(one.resource_id for one in decisions if one.kind == "ami") == sorted(amis)
    assert all(one.reasons and all(one.reasons) for one in decisions)
    assert len(planned) <= rules.max_count
    for one in planned:
        if one.kind != "ami":
            continue
        ami = amis[one.resource_id]
        assert ami.digest
        assert not state.references.unread
        assert not state.references.names(ami.ami_id)
        assert ami.protection == "disabled"
        assert rules.allow_shared or not state.references.of(ami.ami_id)
        assert ami.launched_at is None or NOW - ami.launched_at >= timedelta(days=rules.launched_days)
        for values in state.channels.values():
            assert ami.ami_id not in list(dict.fromkeys(values))[: max(rules.keep_last, 1)]
        if one.action == "retire":
            assert NOW - ami.created_at >= timedelta(days=rules.min_age_days)
        elif ami.state != "failed":
            record = retiring.RetirementTags.parse(ami.tags)
            assert ami.state == "disabled"
            assert record is not None
            assert record.retained_until <= NOW


@settings(deadline=None)
@given(states(), rule_sets)
def test_the_newest_amis_of_each_image_are_kept(state: RegionState, rules: RetirementRules) -> None:
    planned = {one.resource_id for one in decide([state], rules, NOW) if not one.kept}
    groups: dict[tuple[str, str], list[Ami]] = {}
    for ami in state.amis:
        if ami.digest and ami.state == "available":
            groups.setdefault((ami.tags[tagging.IMAGE], ami.architecture), []).append(ami)
    for group in groups.values():
        left = [ami for ami in group if ami.ami_id not in planned]
        assert len(left) >= min(rules.keep_last, len(group))


@settings(deadline=None)
@given(states(), rule_sets)
def test_no_snapshot_is_deleted_that_a_kept_ami_needs(state: RegionState, rules: RetirementRules) -> None:
    decisions = decide([state], rules, NOW)
    removed = {one.resource_id for one in decisions if one.action == "delete" and one.kind == "ami"}
    needed = {name for ami in state.amis if ami.ami_id not in removed for name in ami.snapshot_ids}
    deleted = [name for one in decisions if one.action == "delete" for name in one.snapshots]
    deleted += [one.resource_id for one in decisions if one.action == "delete" and one.kind == "snapshot"]
    assert not needed.intersection(deleted)
    assert len(deleted) == len(set(deleted))
    # Every snapshot that no AMI needs any more is deleted.
    deleted_amis = [ami for ami in state.amis if ami.ami_id in removed]
    assert {name for ami in deleted_amis for name in ami.snapshot_ids} - needed <= set(deleted)


@settings(deadline=None)
@given(states(), rule_sets)
def test_the_same_account_gives_the_same_plan(state: RegionState, rules: RetirementRules) -> None:
    first, again = decide([state], rules, NOW), decide([state], rules, NOW)
    assert [one.fingerprint for one in first] == [one.fingerprint for one in again]
    assert all(one.changes(other) == () for one, other in zip(first, again, strict=True))
    # What is retired or deleted is among the candidates.
    planned = {one.resource_id for one in first if not one.kept and one.kind == "ami"}
    assert planned <= {one.resource_id for one in AccountDecider([state], rules, NOW).candidates}


def decide(states: Iterable[RegionState], rules: RetirementRules, now: datetime) -> tuple[Decision, ...]:
    """Decide by what was read."""
    return AccountDecider(states, rules, now).decisions()


def only(state: RegionState, **rules: Any) -> Decision:
    (one,) = decide([state], RetirementRules(**{"keep_last": 0, **rules}), NOW)
    return one


def test_a_fingerprint_changes_with_each_fact() -> None:
    before = only(region_state([make("ami-1", 90)]))
    assert before.action == "retire"
    changed = {
        "state": make("ami-1", 90, state="disabled"),
        "tags": make("ami-1", 90, tags={tagging.DIGEST: "digest of ami-1", "more": "1"}),
        "deprecated": make("ami-1", 90, deprecated_at=NOW + timedelta(days=9)),
        "snapshots": make("ami-1", 90, snapshot_ids=("snap-1", "snap-2")),
        "public": make("ami-1", 90, public=True),
        "last launch": make("ami-1", 90, launched_at=NOW - timedelta(days=80)),
        "protection": make("ami-1", 90, protection="enabled-with-cooldown"),
    }
    for name, ami in changed.items():
        after = only(region_state([ami]))
        assert after.fingerprint != before.fingerprint, name
        assert any(words.startswith(f"{name}:") for words in before.changes(after)), name
    assert before.changes(None) == ("it no longer exists",)


def test_a_public_ami_is_shared_with_everybody() -> None:
    one = only(region_state([make("ami-1", 90, public=True)]))
    assert one.reasons == ("shared with everybody, who may use it",)


@pytest.mark.parametrize("state", ["pending", "invalid", "transient", "error"])
def test_an_ami_whose_state_can_change_is_kept(state: str) -> None:
    one = only(region_state([make("ami-1", 90, state=state)]))
    assert (one.action, one.reasons) == ("keep", (f"it is {state}",))


def test_an_ami_shared_with_more_accounts_than_tags_can_record_is_kept() -> None:
    many = tuple(Reference("shared-with", f"{number:012d}", type="account") for number in range(300))
    state = region_state([make("ami-1", 90)], references=References(REGION, {"ami-1": many}))
    assert "more than its tags can record" in only(state, allow_shared=True).reasons[0]


def test_a_kept_ami_whose_retirement_was_interrupted_has_that_reason() -> None:
    ami = make("ami-1", 90, tags={tagging.DIGEST: "d", tagging.IMAGE: "web", **retired(1, 14)})
    one = only(region_state([ami]), keep_last=1)
    assert one.action == "keep"
    assert "was interrupted or undone by hand: restore it" in one.reasons[-1]


def test_an_orphan_whose_image_is_being_imported_is_kept() -> None:
    tags = {tagging.DIGEST: "d"}
    snapshot = Snapshot("snap-1", "completed", NOW - timedelta(days=90), 2, tags)
    state = region_state([], snapshots={"snap-1": snapshot})
    assert only(state).action == "retire"
    busy = dataclasses.replace(state, importing=frozenset({"d"}))
    assert only(busy).reasons == ("an import of this image is running",)
    friend = Reference("shared-with", "210987654321", type="account")
    shared = dataclasses.replace(state, references=References(REGION, {"snap-1": (friend,)}))
    assert only(shared).action == "keep"
    assert only(shared, allow_shared=True).action == "retire"


def test_a_snapshot_in_a_launch_template_is_kept() -> None:
    template = Reference("launch-template", "lt-1", name="web")
    named = References(REGION, {"snap-1": (template,)})
    loose = Snapshot(
        "snap-1", "completed", NOW - timedelta(days=90), 2, {tagging.DIGEST: "d"} | retired(40, 14)
    )
    free = region_state([], snapshots={"snap-1": loose})
    assert only(free).action == "delete"
    assert only(dataclasses.replace(free, references=named)).reasons == (f"in use: {template}",)
    unread = References(REGION, {}, {"launch templates": AwsError("Denied.")})
    assert "usage unknown" in only(dataclasses.replace(free, references=unread)).reasons[0]
    tags = {tagging.DIGEST: "d", tagging.IMAGE: "web"} | retired(40, 14)
    ami = make("ami-1", 90, state="disabled", tags=tags, snapshot_ids=("snap-1", "snap-2"))
    one = only(region_state([ami], references=named))
    assert (one.action, one.snapshots) == ("delete", ("snap-2",))
    assert one.kept_snapshots == (("snap-1", f"in use: {template}"),)


def test_nothing_is_retired_that_was_not_read_one_by_one() -> None:
    copied = make("ami-1", 90, tags={tagging.DIGEST: "d", tagging.IMAGE: "web"})
    here = region_state([copied, make("ami-2", 80)], read_one_by_one=frozenset({"ami-1"}))
    copy = dataclasses.replace(copied, ami_id="ami-3", region="eu-west-1")
    used = References("eu-west-1", {"ami-3": (Reference("instance", "i-1", type="running"),)})
    there = region_state([copy], region="eu-west-1", references=used)
    found = {
        one.resource_id: one for one in decide([here, there], RetirementRules(keep_last=0, max_count=1), NOW)
    }
    assert "a copy is in use" in found["ami-1"].reasons[0]
    assert found["ami-2"].action == "keep"
    assert "over the limit of 1 per run" in found["ami-2"].reasons[0]


def test_retirement_tags_are_parsed_as_written() -> None:
    names = tuple(f"{number:012d}" for number in range(60))
    record = retiring.RetirementTags(
        NOW, NOW + timedelta(days=14), "run", names, NOW + timedelta(days=100), "ami-1"
    )
    assert retiring.RetirementTags.parse(record.tags()) == record
    assert all(len(value) <= tagging.LONGEST_VALUE for value in record.tags().values())
    assert retiring.RetirementTags.parse({**record.tags(), tagging.RETIRED: "yesterday"}) is None
    assert retiring.RetirementTags.parse({}) is None
