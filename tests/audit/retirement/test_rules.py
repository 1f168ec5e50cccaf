"""Rules of a retirement, held against accounts that nobody would think of."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnix_ops.audit.region import Region
from vmsnix_ops.audit.retirement.decisions import Decision, Rules, candidates, decide_by_rules
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


def see(amis: Iterable[Ami], **changes: Any) -> Region:
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
    return Region(**(base | changes))


def retired(days_ago: float, grace: float) -> dict[str, str]:
    at = NOW - timedelta(days=days_ago)
    return retiring.Mark(at, at + timedelta(days=grace), "run").tags()


@st.composite
def views(draw: st.DrawFn) -> Region:
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
    return see(amis, references=references, channels=channels)


rule_sets = st.builds(
    Rules,
    keep_last=st.integers(0, 2),
    min_age_days=st.integers(0, 40),
    launched_days=st.integers(0, 60),
    retention_days=st.integers(0, 30),
    max_count=st.integers(0, 12),
    allow_shared=st.booleans(),
)


@settings(deadline=None)
@given(views(), rule_sets)
def test_nothing_goes_that_any_rule_keeps(view: Region, rules: Rules) -> None:
    decisions = decide_by_rules([view], rules, NOW)
    amis = {ami.ami_id: ami for ami in view.amis}
    going = [one for one in decisions if one.goes]
    assert sorted(one.resource_id for one in decisions if one.kind == "ami") == sorted(amis)
    assert all(one.reasons and all(one.reasons) for one in decisions)
    assert len(going) <= rules.max_count
    for one in going:
        if one.kind != "ami":
            continue
        ami = amis[one.resource_id]
        assert ami.digest
        assert not view.references.unread
        assert not view.references.names(ami.ami_id)
        assert ami.protection == "disabled"
        assert rules.allow_shared or not view.references.of(ami.ami_id)
        assert ami.launched_at is None or NOW - ami.launched_at >= timedelta(days=rules.launched_days)
        for values in view.channels.values():
            assert ami.ami_id not in list(dict.fromkeys(values))[: max(rules.keep_last, 1)]
        if one.action == "retire":
            assert NOW - ami.created_at >= timedelta(days=rules.min_age_days)
        elif ami.state != "failed":
            mark = retiring.mark(ami.tags)
            assert ami.state == "disabled"
            assert mark is not None
            assert mark.retained_until <= NOW


@settings(deadline=None)
@given(views(), rule_sets)
def test_the_newest_of_each_image_stay_usable(view: Region, rules: Rules) -> None:
    going = {one.resource_id for one in decide_by_rules([view], rules, NOW) if one.goes}
    groups: dict[tuple[str, str], list[Ami]] = {}
    for ami in view.amis:
        if ami.digest and ami.state == "available":
            groups.setdefault((ami.tags[tagging.IMAGE], ami.architecture), []).append(ami)
    for group in groups.values():
        left = [ami for ami in group if ami.ami_id not in going]
        assert len(left) >= min(rules.keep_last, len(group))


@settings(deadline=None)
@given(views(), rule_sets)
def test_no_snapshot_goes_that_an_ami_which_stays_needs(view: Region, rules: Rules) -> None:
    decisions = decide_by_rules([view], rules, NOW)
    removed = {one.resource_id for one in decisions if one.action == "delete" and one.kind == "ami"}
    held = {name for ami in view.amis if ami.ami_id not in removed for name in ami.snapshot_ids}
    deleted = [name for one in decisions if one.action == "delete" for name in one.snapshots]
    deleted += [one.resource_id for one in decisions if one.action == "delete" and one.kind == "snapshot"]
    assert not held.intersection(deleted)
    assert len(deleted) == len(set(deleted))
    # And none that nobody needs any more is forgotten.
    gone = [ami for ami in view.amis if ami.ami_id in removed]
    assert {name for ami in gone for name in ami.snapshot_ids} - held <= set(deleted)


@settings(deadline=None)
@given(views(), rule_sets)
def test_the_same_account_gives_the_same_plan_and_another_moment_only_ages_it(
    view: Region, rules: Rules
) -> None:
    first, again = decide_by_rules([view], rules, NOW), decide_by_rules([view], rules, NOW)
    assert [one.fingerprint for one in first] == [one.fingerprint for one in again]
    assert all(one.changes(other) == () for one, other in zip(first, again, strict=True))
    # What goes is among what was worth asking about.
    going = {one.resource_id for one in first if one.goes and one.kind == "ami"}
    assert going <= {one.resource_id for one in candidates([view], rules, NOW)}


def only(view: Region, **rules: Any) -> Decision:
    (one,) = decide_by_rules([view], Rules(**{"keep_last": 0, **rules}), NOW)
    return one


def test_a_fingerprint_changes_with_each_fact() -> None:
    before = only(see([make("ami-1", 90)]))
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
        after = only(see([ami]))
        assert after.fingerprint != before.fingerprint, name
        assert any(words.startswith(f"{name}:") for words in before.changes(after)), name
    assert before.changes(None) == ("it is gone",)


def test_a_public_ami_is_shared_with_everybody() -> None:
    one = only(see([make("ami-1", 90, public=True)]))
    assert one.reasons == ("shared with everybody: whether they use it cannot be seen from here",)


def test_what_tags_cannot_remember_stays() -> None:
    many = tuple(Reference("shared-with", f"{number:012d}", type="account") for number in range(300))
    view = see([make("ami-1", 90)], references=References(REGION, {"ami-1": many}))
    assert "more than its tags could remember" in only(view, allow_shared=True).reasons[0]


def test_what_was_half_retired_and_is_kept_now_is_told() -> None:
    ami = make("ami-1", 90, tags={tagging.DIGEST: "d", tagging.IMAGE: "web", **retired(1, 14)})
    one = only(see([ami]), keep_last=1)
    assert one.action == "keep"
    assert "was interrupted, or undone by hand: restore it" in one.reasons[-1]


def test_an_orphan_whose_image_is_being_imported_stays() -> None:
    tags = {tagging.DIGEST: "d"}
    snapshot = Snapshot("snap-1", "completed", NOW - timedelta(days=90), 2, tags)
    view = see([], snapshots={"snap-1": snapshot})
    assert only(view).action == "retire"
    busy = dataclasses.replace(view, importing=frozenset({"d"}))
    assert only(busy).reasons == ("an import of this image is under way",)
    friend = Reference("shared-with", "210987654321", type="account")
    shared = dataclasses.replace(view, references=References(REGION, {"snap-1": (friend,)}))
    assert only(shared).action == "keep"
    assert only(shared, allow_shared=True).action == "retire"


def test_a_snapshot_that_a_launch_makes_volumes_of_stays() -> None:
    template = Reference("launch-template", "lt-1", name="web")
    named = References(REGION, {"snap-1": (template,)})
    loose = Snapshot(
        "snap-1", "completed", NOW - timedelta(days=90), 2, {tagging.DIGEST: "d"} | retired(40, 14)
    )
    free = see([], snapshots={"snap-1": loose})
    assert only(free).action == "delete"
    assert only(dataclasses.replace(free, references=named)).reasons == (f"in use: {template}",)
    blind = References(REGION, {}, {"launch templates": AwsError("Denied.")})
    assert "not known whether it is used" in only(dataclasses.replace(free, references=blind)).reasons[0]
    tags = {tagging.DIGEST: "d", tagging.IMAGE: "web"} | retired(40, 14)
    ami = make("ami-1", 90, state="disabled", tags=tags, snapshot_ids=("snap-1", "snap-2"))
    one = only(see([ami], references=named))
    assert (one.action, one.snapshots) == ("delete", ("snap-2",))
    assert one.kept_snapshots == (("snap-1", f"in use: {template}"),)


def test_nothing_goes_that_aws_was_not_asked_about() -> None:
    copied = make("ami-1", 90, tags={tagging.DIGEST: "d", tagging.IMAGE: "web"})
    here = see([copied, make("ami-2", 80)], asked=frozenset({"ami-1"}))
    copy = dataclasses.replace(copied, ami_id="ami-3", region="eu-west-1")
    used = References("eu-west-1", {"ami-3": (Reference("instance", "i-1", type="running"),)})
    there = see([copy], region="eu-west-1", references=used)
    found = {
        one.resource_id: one for one in decide_by_rules([here, there], Rules(keep_last=0, max_count=1), NOW)
    }
    assert "a copy is in use" in found["ami-1"].reasons[0]
    assert found["ami-2"].action == "keep"
    assert "no more than 1 go in one run" in found["ami-2"].reasons[0]


def test_marks_read_back_what_was_written() -> None:
    names = tuple(f"{number:012d}" for number in range(60))
    mark = retiring.Mark(NOW, NOW + timedelta(days=14), "run", names, NOW + timedelta(days=100), "ami-1")
    assert retiring.mark(mark.tags()) == mark
    assert all(len(value) <= tagging.LONGEST_VALUE for value in mark.tags().values())
    assert retiring.mark({**mark.tags(), tagging.RETIRED: "yesterday"}) is None
    assert retiring.mark({}) is None
