"""Retiring an AMI while another job begins to use it: both may lose, both never win, whatever the order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.retirement.fleet import FRIEND, REGION, Fleet, fleet, fleet_sandbox
from tests.faults.interleaving import Actor, every_order
from tests.support import few
from vmsnix_ops import errors
from vmsnix_ops.aws import parameters, retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.channels import promote, rollback
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import smoke
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["fleet", "fleet_sandbox"]
CHANNEL = "/vmsnix/web/stable"
WHOLE = bool(os.environ.get("VMSNIX_WHOLE_TESTS"))
"""Stop at every read of the other job's write, and not only at the first: hundreds of orders for each."""
pytestmark = pytest.mark.usefixtures("nothing_is_recorded")
USERS = ("promote", "smoke test", "promote the first", "roll back")


@pytest.fixture
def nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no tables: they decide nothing here, and cost most of the time."""
    monkeypatch.setattr(Tables, "append", lambda *_words, **_more: None)


class World:
    """An account with two AMIs and a channel, and the two jobs that want one of the AMIs."""

    def __init__(self, fleet: Fleet, user: str) -> None:
        self.fleet, self.user = fleet, user
        self.before, self.ami = fleet.ami(days=80), fleet.ami(days=60)
        fleet.share(self.ami, FRIEND)
        if user == "roll back":
            fleet.set_parameter(CHANNEL, self.ami)
        if user != "promote the first":
            fleet.set_parameter(CHANNEL, self.before)
        else:
            self.before = ""
        self.retirer = Actor("retire", fleet.aws.session(REGION), self._decides_retirement)
        self.user_of_it = Actor("use", fleet.aws.session(REGION), self._decides_use)
        self.marked = self.read = self.used = False
        self.retirement = fleet.plan(
            amis=[self.ami], allow_shared=True, session=self.retirer.session, launched_days=0
        )
        assert [one.resource_id for one in self.retirement.planned] == [self.ami]
        self.use = self._use()
        self.memory = fleet.aws.state.save_tables()

    def _use(self) -> Callable[[], Any]:
        asked: dict[str, Any] = {"dry_run": False, "progress": silent(), "session": self.user_of_it.session}
        if self.user == "smoke test":
            tested = smoke.plan(ami=self.ami, region=REGION, **asked)
            return lambda: tested.apply()
        asked |= {"image": "web", "channel": "stable", "region": REGION}
        if self.user == "roll back":
            return rollback.plan(to=self.ami, **asked).apply
        return promote.plan(ami=self.ami, **asked).apply

    def _decides_retirement(self, call: str, asked: Mapping[str, Any]) -> bool:
        if call == "ec2:CreateTags" and asked["Resources"] == [self.ami]:
            self.marked = True
            return True
        if call == "ec2:DisableImage":
            return True
        if WHOLE:
            return self.marked and call in ("ssm:GetParameters", "ssm:GetParametersByPath")
        # The first read after the mark, of whatever may name the AMI.
        first = self.marked and not self.read and call == "ssm:GetParameters"
        self.read = self.read or first
        return first

    def _decides_use(self, call: str, asked: Mapping[str, Any]) -> bool:
        if call in ("ssm:PutParameter", "ec2:RunInstances", "ssm:DeleteParameter"):
            self.used = True
            return True
        # The first read after the write; in a long run also those after it was taken back.
        first = self.used and call == "ec2:DescribeImages"
        self.used = self.used and (WHOLE or not first)
        return first

    def begin(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.fleet.aws.state.restore_tables(self.memory)
        self.marked = self.read = self.used = False
        says = {"op": "ec2:RunInstances", "do": "outcome", "outcome": {"console": "NixOS"}}
        self.fleet.aws.faults.add(says)
        return self.retirement.apply, self.use

    @property
    def actors(self) -> tuple[Actor, Actor]:
        return self.retirer, self.user_of_it

    def verdict(self, *, stale: bool = False) -> tuple[bool, bool]:
        """Return which of the two won, after a look at whether the account is as they say."""
        if stale:
            self.fleet.aws.faults.clear()
        if self.user_of_it.error is not None:
            raise self.user_of_it.error
        if isinstance(self.retirer.error, errors.StalePlanError):  # it saw the other one before it began
            retired = False
        elif self.retirer.error is not None:
            raise self.retirer.error
        else:
            (one,) = self.retirer.result.outcomes
            retired = one.outcome == "changed"
            assert one.outcome in ("changed", "skipped"), one
        found = self.user_of_it.result
        used = found.passed if self.user == "smoke test" else found.status == "done"
        named = parameters.find_parameter(self.fleet.client("ssm"), CHANNEL)
        assert self.fleet.amis()[self.ami] == ("disabled" if retired else "available")
        if not retired:
            assert not any(retiring.is_retirement_tag(key) for key in self.fleet.tags(self.ami))
            assert self.fleet.permissions(self.ami) == [{"UserId": FRIEND}]
        if self.user == "smoke test":
            assert self._alive() == []
        else:
            assert (named.value if named else "") == (self.ami if used else self.before)
        if not used:
            error = found.error
            # EC2 itself launches nothing of an AMI that was disabled before we could see the mark.
            assert isinstance(
                error, errors.AwsError if self.user == "smoke test" else errors.RegistrationError
            )
        return retired, used

    def _alive(self) -> list[str]:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        found = self.fleet.ec2.describe_instances(Filters=states)["Reservations"]
        return [one["InstanceId"] for group in found for one in group["Instances"]]


def apart(user: str, order: str) -> bool:
    """Tell whether a test's instance was gone before the mark, which the retirement's second turn writes."""
    return user == "smoke test" and "u" not in order.split("r", 2)[-1] and order.count("r") > 1


@pytest.mark.parametrize("user", few(USERS, 2, seconds=15))
def test_in_every_order_a_retired_ami_is_in_no_use(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0,))
    world, seen = World(fleet, user), {}
    for order in every_order(world.actors, world.begin):
        seen[order] = world.verdict()
    assert [order for order, both in seen.items() if both == (True, True) and not apart(user, order)] == []
    assert (True, False) in seen.values()
    assert (False, True) in seen.values() or user == "smoke test"
    assert len(seen) >= 20


@pytest.mark.long(seconds=50)
@pytest.mark.parametrize(
    ("user", "reads"),
    [(user, reads) for user in USERS for reads in (1, 2) if WHOLE or user == "promote" or reads == 2],
)
def test_in_every_order_with_stale_reads_a_retired_ami_is_in_no_use(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, user: str, reads: int
) -> None:
    """After every write, the first reads of each kind still show the state before it."""
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0, 0.0, 0.0))
    world, seen = World(fleet, user), {}

    def begin() -> tuple[Callable[[], Any], Callable[[], Any]]:
        jobs = world.begin()
        for op in ("ssm:GetParameter*", "ec2:DescribeInstances", "ec2:DescribeImages"):
            fleet.aws.faults.add({"op": op, "do": "stale", "reads": reads})
        return jobs

    for order in every_order(world.actors, begin):
        seen[order] = world.verdict(stale=True)
    assert [order for order, both in seen.items() if both == (True, True) and not apart(user, order)] == []
    assert {True} < {won for both in seen.values() for won in both}


class Undoing:
    """An AMI that one run retires or deletes while another one restores it."""

    def __init__(self, fleet: Fleet, *, deletes: bool) -> None:
        self.fleet, self.deletes = fleet, deletes
        self.ami = fleet.ami()
        fleet.share(self.ami, FRIEND)
        fleet.apply(allow_shared=True)
        if not deletes:
            fleet.ec2.enable_image(ImageId=self.ami)  # by hand: it is marked and can be launched
        self.taker = Actor("take", fleet.aws.session(REGION), self._decides)
        self.restorer = Actor("restore", fleet.aws.session(REGION), self._decides)
        when = {"now": fleet.later()} if deletes else {}
        self.taking = fleet.plan(allow_shared=True, session=self.taker.session, **when)
        self.restoring = fleet.plan(action="restore", session=self.restorer.session)
        self.memory = fleet.aws.state.save_tables()

    def _decides(self, call: str, asked: Mapping[str, Any]) -> bool:
        if call == "ec2:CreateTags":
            return bool(asked["Resources"] == [self.ami])
        if call in ("ec2:DisableImage", "ec2:EnableImage", "ec2:DeregisterImage"):
            return True
        return call == "ec2:DeleteTags" and asked["Resources"] == [self.ami]

    def begin(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.fleet.aws.state.restore_tables(self.memory)
        return self.taking.apply, self.restoring.apply

    def verdict(self) -> tuple[bool, bool]:
        """Return which of the two won, after a look at whether the AMI is as they say."""
        won = []
        for actor in (self.taker, self.restorer):
            if isinstance(actor.error, errors.StalePlanError):
                won.append("")
                continue
            if actor.error is not None:
                raise actor.error
            won.append(actor.result.outcomes[0].outcome)
        took, restored = won[0] in ("deleted", "changed"), won[1] == "changed"
        state = self.fleet.amis().get(self.ami, "")
        assert (state == "") == (won[0] == "deleted")
        if state:
            retired = tagging.RETIRED in self.fleet.tags(self.ami)
            assert retired or state == "available", "it is disabled, and nobody knows why"
        if restored:
            assert state == "available"
            # A retirement that marks it after the restoration and gives up puts back the mark that it found.
            marked = any(retiring.is_retirement_tag(key) for key in self.fleet.tags(self.ami))
            assert not marked or won[0] == "skipped"
            assert self.fleet.permissions(self.ami) == [{"UserId": FRIEND}]
        elif won[0] == "changed":
            assert (state, self.fleet.permissions(self.ami)) == ("disabled", [])
        return took, restored


@pytest.mark.parametrize("deletes", few([True, False], 1, seconds=12), ids=["delete", "retire"])
def test_in_every_order_of_taking_and_restoring_one_ami_it_is_as_the_last_one_says(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, deletes: bool
) -> None:
    """Deleting and restoring never both succeed; a restoration after a whole retirement may."""
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0,))
    world, seen = Undoing(fleet, deletes=deletes), {}
    for order in every_order((world.taker, world.restorer), world.begin):
        seen[order] = world.verdict()
    if deletes:
        assert [order for order, both in seen.items() if both == (True, True)] == []
    assert {won for both in seen.values() for won in both} == {True, False}
